"""Starting an MPI job of our own, and knowing whether we are in one."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mpi_runner.config import UsageError

INSIDE = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS")
LAUNCHED = "FASTGC_LAUNCHED"
"""Set for a job that we started: its launcher shows the run, so the ranks need not."""
LOOK_SECONDS = 0.1
END_SECONDS = 10.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PR_SET_PDEATHSIG = 1
SIGNALLED = 128  # exit statuses from here on: a signal ended the job


def inside_mpi() -> bool:
    """Whether this process was started by mpirun or srun."""
    if any(name in os.environ for name in INSIDE):
        return True
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UsageError("srun started several tasks that are no MPI job: use srun --mpi=pmix")
    return False


def find_mpirun() -> str:
    """The mpirun of the wheel beside this Python, else the one on the path."""
    beside = Path(sysconfig.get_path("scripts")) / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise UsageError('mpirun was not found: pip install "fast-gradient-coding[mpi]"')
    return found


def run(ranks: int, arguments: list[str], look: Callable[[], None]) -> int:
    """Run ``python -m mpi_runner`` with `arguments` on `ranks` ranks of this machine.

    Whatever ends this process, a signal or an exception, ends mpirun and with it the ranks.

    Parameters
    ----------
    ranks : int
    arguments : list of str
    look : callable
        Called several times a second while the job runs, and once after it.

    Returns
    -------
    int
        mpirun's exit status, or 128 + the number of the signal that ended the job.
    """
    environment = dict(os.environ)
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if ranks > len(os.sched_getaffinity(0)):  # each rank with threads of its own would only make them wait
        environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("OPENBLAS_NUM_THREADS", environment.get("OMP_NUM_THREADS", "1"))
    environment[LAUNCHED] = "1"
    command = [find_mpirun(), "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    command += [sys.executable, "-u", "-m", "mpi_runner", *arguments]
    with signals_noted() as received:
        # A session of its own: a Ctrl-C would otherwise reach mpirun twice, from the terminal and from here, and
        # mpirun takes a second signal as an order to leave without ending its ranks.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_launcher()
        )
        try:
            while not received:
                try:
                    process.wait(LOOK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    look()
            else:
                _end(process)
            look()
        finally:
            if process.poll() is None:
                _end(process)
        status = process.returncode
    if received or status < 0:
        return SIGNALLED + (received[0] if received else -status)
    return status


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Note the signals that would end this process instead of dying of them."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in ENDING
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup, say
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its ranks end themselves when they lose it
        process.wait()


def _die_with_launcher() -> Callable[[], object] | None:
    """What makes Linux end the child when this process is killed; to be called between fork and exec."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
