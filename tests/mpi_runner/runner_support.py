"""What the tests of the runner share: a finished run, a run's ranks."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

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
