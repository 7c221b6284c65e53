"""Starting an MPI job of our own, and knowing whether we are in one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from mpi_runner.config import UsageError

INSIDE = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS")
LAUNCHED = "FASTGC_LAUNCHED"
"""Set for a job that we started: its launcher shows the run, so the ranks need not."""
LOOK_SECONDS = 0.1


def inside_mpi() -> bool:
    """Whether this process was started by mpirun or srun."""
    return any(name in os.environ for name in INSIDE)


def find_mpirun() -> str:
    """The mpirun of the wheel beside this Python, else the one on the path."""
    beside = Path(sysconfig.get_path("scripts")) / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise UsageError('mpirun was not found: pip install "fast-gradient-coding[mpi]"')
    return found


def run(ranks: int, arguments: list[str], look: Callable[[], None]) -> int:
    """Run ``python -m mpi_runner`` with `arguments` on `ranks` ranks of this machine.

    SIGINT and SIGTERM are handed on to mpirun as SIGTERM, which ends its ranks; nothing is left behind.

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
    received: list[int] = []
    # A session of its own: a Ctrl-C would otherwise reach mpirun twice, from the terminal and from here, and mpirun
    # takes a second signal as an order to leave without ending its ranks.
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    def forward(number: int, _frame: FrameType | None) -> None:
        if not received:
            process.send_signal(signal.SIGTERM)
        received.append(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            try:
                status = process.wait(LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                look()
        look()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received or status < 0:
        return 128 + (received[0] if received else -status)
    return status
