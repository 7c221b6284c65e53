"""Starting an MPI job of our own, and knowing whether we are in one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from mpi_runner.config import UsageError

INSIDE = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS")
TERMINAL = "FASTGC_TERMINAL_WIDTH"
"""Set for the job to the width of the launcher's terminal, since ranks write to a pipe."""


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


def run(ranks: int, arguments: list[str]) -> int:
    """Run ``python -m mpi_runner`` with `arguments` on `ranks` ranks of this machine; return mpirun's exit status."""
    environment = dict(os.environ)
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if ranks > len(os.sched_getaffinity(0)):  # each rank with threads of its own would only make them wait
        environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("OPENBLAS_NUM_THREADS", environment.get("OMP_NUM_THREADS", "1"))
    if sys.stdout.isatty():
        environment[TERMINAL] = str(shutil.get_terminal_size().columns)
    command = [find_mpirun(), "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    command += [sys.executable, "-u", "-m", "mpi_runner", *arguments]
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 130
