"""Starting an MPI job of our own, seeing to it that it ends, and knowing whether we are in one."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpi_runner import hostfile, processes
from mpi_runner.config import UsageError
from mpi_runner.records import read_outcome, read_processes

INSIDE = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS")
LAUNCHED = "FASTGC_LAUNCHED"
"""Set for a job that we started: its launcher shows the run, so the ranks need not."""
LOOK_SECONDS = 0.1
SHUTDOWN_SECONDS = 7.0
"""From the master's last word, or its death, until mpirun is ended: it waits for a stopped rank for ever."""
END_SECONDS = 2.0
"""From there until mpirun and the ranks of this host are killed."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
SESSIONS = "PRTE_MCA_prte_local_tmpdir_base"
"""Where mpirun keeps what it needs while it runs, in a folder named by its process id. It cannot start where an mpirun
that was killed has left such a folder and its id has come up again: so every job's is in a place of its own."""
SESSIONS_OF_ALL = "PRTE_MCA_prte_tmpdir_base"
"""The same for mpirun and its daemons on other hosts; it refuses to be told both."""
PR_SET_PDEATHSIG = 1
EXIT_FAILED = 1
EXIT_LOST = 3
"""Too many workers were lost: no gradient can be decoded any more."""
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


@functools.cache
def survives_faults(mpirun: str) -> bool:
    """Whether this MPI can go on without a process that died: Open MPI from 5 on can, by ULFM."""
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Open MPI\)? v?(\d+)", said)
    return found is not None and int(found[1]) >= 5


def python_on(ranks: int) -> tuple[list[str], dict[str, str]]:
    """The command that runs Python on `ranks` ranks, but for its arguments, and its environment. They are on this
    machine, unless mpirun is told of other hosts by its environment, as `mpi_runner.hostfile` and Slurm do."""
    environment = dict(os.environ)
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # macOS does not tell which CPUs a process may use.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if ranks > usable:  # each rank with threads of its own would only make them wait
        environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("OPENBLAS_NUM_THREADS", environment.get("OMP_NUM_THREADS", "1"))
    mpirun = find_mpirun()
    tolerant = ["--with-ft", "ulfm"] if survives_faults(mpirun) else []
    placed = ["--oversubscribe", "--bind-to", "none", *hostfile.passed_on(environment), "-n", str(ranks)]
    return [mpirun, *tolerant, *placed, sys.executable, "-u"], environment


def run(ranks: int, folder: Path, arguments: list[str], look: Callable[[], None]) -> int:
    """Run ``python -m mpi_runner`` with `arguments` on `ranks` ranks.

    Whatever ends this process, a signal or an exception, ends mpirun and with it the ranks. A signal is first passed
    on to the master, which writes down how far it has come.

    Parameters
    ----------
    ranks : int
    folder : Path
        The run directory: who the ranks are and how the run ended is read there.
    arguments : list of str
    look : callable
        Called several times a second while the job runs, and once after it.

    Returns
    -------
    int
        The status that the master has recorded; else mpirun's, `EXIT_LOST` where it ended the job because a rank died,
        or 128 + the number of the signal that ended the job.
    """
    command, environment = python_on(ranks)
    command += ["-m", "mpi_runner", *arguments]
    environment[LAUNCHED] = "1"
    with signals_noted() as received, _sessions_of_its_own(environment):
        # A session of its own: a Ctrl-C would otherwise reach mpirun twice, from the terminal and from here, and
        # mpirun takes a second signal as an order to leave without ending its ranks.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_launcher()
        )
        job = _Job(process, folder)
        try:
            while process.poll() is None and not job.overdue(received):
                try:
                    process.wait(LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    look()
            look()
        finally:
            job.end()
    return _status(process.returncode, received, read_outcome(folder), survives_faults(find_mpirun()))


class _Job:
    """mpirun and its ranks."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._asked = 0  # signals that were passed on to the master
        self._until: float | None = None

    def overdue(self, received: list[int]) -> bool:
        """Whether the job must be ended: it should have ended by itself by now."""
        ranks = read_processes(self._folder)
        master = processes.find(ranks[0]) if ranks else None
        died = bool(ranks) and master is None and ranks[0].host == platform.node()
        if len(received) > self._asked:
            if master is None or self._asked:  # there is no one to ask, or asking was not enough
                return True
            self._asked = len(received)
            master.terminate()
        ending = received or died or read_outcome(self._folder) is not None
        if self._until is None and ending:
            self._until = time.monotonic() + SHUTDOWN_SECONDS
        return self._until is not None and time.monotonic() > self._until

    def end(self) -> None:
        """Leave no process of it on this host."""
        process = self._process
        # The ranks first: mpirun buries its children, and waits for a stopped one for ever.
        for rank in read_processes(self._folder):
            processes.kill(rank)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _status(status: int, received: list[int], outcome: dict[str, Any] | None, survives: bool) -> int:
    if received:
        return SIGNALLED + received[0]
    if outcome is not None and outcome["status"] < SIGNALLED:
        return int(outcome["status"])
    if outcome is None and status == 0:  # so mpirun ends where a daemon of its own is gone: the run was not complete
        return EXIT_FAILED
    if not survives and status != 0:  # mpirun has ended all because one died, or failed
        return EXIT_LOST if status >= SIGNALLED else status
    return status if status >= 0 else SIGNALLED - status


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


@contextmanager
def _sessions_of_its_own(environment: dict[str, str]) -> Iterator[None]:
    """Let mpirun keep its files in a new folder, unless the user has said where all hosts are to keep theirs."""
    if SESSIONS_OF_ALL in environment:
        yield
        return
    with tempfile.TemporaryDirectory(
        prefix="fastgc-", dir=environment.get(SESSIONS), ignore_cleanup_errors=True
    ) as environment[SESSIONS]:
        yield


def _die_with_launcher() -> Callable[[], object] | None:
    """What makes Linux end the child when this process is killed; to be called between fork and exec."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
