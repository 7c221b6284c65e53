"""Fixtures of the runner's tests: prepared flights data, and runs over MPI as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from runner_support import LIMIT, ROWS, SEED, Run, Start, Train

from mpi_runner import flights
from mpi_runner.cache import DataError
from mpi_runner.launch import SESSIONS_OF_ALL

# Jobs that a test starts by mpirun have more ranks than there are cores, as those of the launcher, which does the same:
# threads that wait for each other would take half of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell has what it starts in the background ignore this signal, and what a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def sessions(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no mpirun, and no daemon of one, find what another has left that a test killed: see `launch.SESSIONS`."""
    monkeypatch.setenv(SESSIONS_OF_ALL, str(tmp_path_factory.getbasetemp() / "mpirun" / uuid.uuid4().hex))


@pytest.fixture(scope="session")
def data() -> flights.Flights:
    """The real data, or a skip where they cannot be had."""
    try:
        return flights.prepare(ROWS, SEED)
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture
def start(data: flights.Flights, tmp_path: Path) -> Start:
    """Start ``python -m mpi_runner train`` with a small part of the data in ``tmp_path / "run"``."""

    def begin(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [*before, sys.executable, "-m", "mpi_runner", "train", "--rows", str(ROWS), "--seed", str(SEED)]
        command += ["--run", str(tmp_path / "run"), *arguments]
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if before else {}
        environment = {**os.environ, **root}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


@pytest.fixture
def train(start: Start, tmp_path: Path) -> Train:
    """Do such a run and wait for it."""

    def finish(*arguments: str, before: tuple[str, ...] = ()) -> Run:
        process = start(*arguments, before=before)
        try:
            output, errors = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.terminate()
            output, errors = process.communicate(timeout=30)
            pytest.fail(f"the run did not end in {LIMIT} s; it said {output[-2000:]}{errors[-2000:]}")
        return Run(process.returncode, output, errors, tmp_path / "run")

    return finish
