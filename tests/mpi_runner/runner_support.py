"""What the tests of the runner share: a finished run, a run's ranks and progress, the model it should give."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fastgc import schemes
from mpi_runner import flights
from mpi_runner.launch import find_mpirun
from mpi_runner.models import LogisticRegression
from mpi_runner.optimizers import OPTIMIZERS, train_single

ROWS, SEED = 1500, 7
LIMIT = 180  # seconds: a run of these takes 3 to 10; one that hangs must not hold the suite


@dataclass(frozen=True)
class Run:
    """A finished run over MPI."""

    status: int
    output: str
    errors: str
    folder: Path

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return content

    @property
    def model(self) -> Any:
        return np.load(self.folder / "model.npy", allow_pickle=False)


Start = Callable[..., "subprocess.Popen[str]"]
Train = Callable[..., Run]


def ranks(launcher: psutil.Process) -> dict[int, psutil.Process]:
    """The processes of a job by rank."""
    found = {}
    for process in launcher.children(recursive=True):
        try:
            rank = process.environ().get("OMPI_COMM_WORLD_RANK")
            if rank is not None and "mpi_runner" in process.cmdline():
                found[int(rank)] = process
        except psutil.Error:  # it has just ended
            continue
    return found


def progress(folder: Path) -> int:
    """Iterations done so far."""
    path = folder / "iterations.csv"
    return max(path.read_text().count("\n") - 1, 0) if path.exists() else 0


def left(family: list[psutil.Process], seconds: float = 5.0) -> list[psutil.Process]:
    """Those that still run after a while; what has ended and is not buried yet, since mpirun was faster, does not."""
    end = time.monotonic() + seconds
    while alive := [process for process in family if _runs(process)]:
        if time.monotonic() > end:
            return alive
        time.sleep(0.05)
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)


def single_model(folder: Path, data: flights.Flights, iterations: int) -> Any:
    """What a run with the defaults gives in one process."""
    summary = json.loads((folder / "summary.json").read_text())
    partitions = schemes.load(folder / "scheme.npz").partitions
    model = LogisticRegression(data.features)
    parts = [data.load_train(partition, partitions) for partition in range(partitions)]
    optimizer = OPTIMIZERS["nesterov"](model.initial(), summary["step"])
    return train_single(model, parts, optimizer, iterations, summary["l2"])


def script(
    text: str, ranks: int, folder: Path, options: Sequence[str] = (), seconds: float = LIMIT
) -> subprocess.CompletedProcess[str]:
    """Run a Python script on some ranks, as a user does who starts mpirun; `folder` is where it runs."""
    path = folder / "script.py"
    path.write_text(text)
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [find_mpirun(), *options, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    command += [sys.executable, str(path)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
