"""The run directory: what a run leaves behind, in open formats.

=================  ====================================================================================================
file               content
=================  ====================================================================================================
``config.json``    what the run was told, the scheme, versions and host; written first
``scheme.npz``     the scheme itself (`fastgc.schemes.load`)
``iterations.csv`` a row per iteration, as it ends
``arrivals.csv``   a row per message, as it arrives
``processes.csv``  host, pid and start time of every rank; the launcher looks after them
``checkpoints/``   the newest two (`mpi_runner.checkpoint`)
``faults.csv``     a row per lost worker, as it is lost
``model.npy``      the final parameters
``summary.json``   figures of a run that was completed
``outcome.json``   exit status and reason, of any run that came to an orderly end; written last
=================  ====================================================================================================
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import GradientCode
from mpi_runner.config import CONFIG, TrainConfig, UsageError
from mpi_runner.processes import Identity

ITERATION_COLUMNS = (
    "iteration",  # from 1
    "start",  # seconds since the first model was sent
    "seconds",  # of the whole iteration
    "wait",  # of these, until enough workers had answered
    "decode",
    "update",
    "loss",  # mean training loss with L2, at the parameters that were sent, before the step
    "survivors",  # workers used, separated by spaces
    "bytes_received",  # by the master, in this iteration
    "bytes_sent",
    "score",  # the model's measure on the test rows (summary.json names it) after the step, where it was evaluated
)
ARRIVAL_COLUMNS = (
    "iteration",  # that the message is for
    "worker",
    "sent",  # when its model was sent, seconds since the first model was sent
    "arrived",
    "compute",  # seconds spent on gradients, by the worker's clock
    "encode",  # on encoding them
    "delay",  # seconds injected
    "bytes",
    "outcome",  # used, late (its iteration was over), abandoned (so was it, and no gradient was sent), overflow
)
PROCESS_COLUMNS = ("rank", "host", "pid", "started")  # seconds since the epoch
FAULT_COLUMNS = (
    "seconds",  # since the first model was sent; before it, since the run directory was made
    "iteration",  # under way
    "worker",
    "host",
    "pid",
    "kind",  # died, hung (silent for longer than the deadline), unstopped (silent after the end)
    "reason",
)


SCHEME, ITERATIONS, ARRIVALS = "scheme.npz", "iterations.csv", "arrivals.csv"
PROCESSES, FAULTS = "processes.csv", "faults.csv"
MODEL, SUMMARY, OUTCOME = "model.npy", "summary.json", "outcome.json"


class RunRecords:
    """Writes a run directory; rows are flushed as they come.

    Parameters
    ----------
    config : TrainConfig
    scheme : GradientCode
    run : str
        What tells this run from any other. A run that goes on keeps it, and adds to what `rewind` has left.
    """

    def __init__(self, config: TrainConfig, scheme: GradientCode, run: str) -> None:
        self.folder = Path(config.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "run": run,
            "config": config.as_dict(),
            "scheme": {
                "name": scheme.name,
                "fingerprint": scheme.fingerprint,
                "workers": scheme.workers,
                "partitions": scheme.partitions,
                "load": scheme.load,
                "stragglers": scheme.stragglers,
                "reduction": scheme.reduction,
                "exact": scheme.exact,
            },
            "versions": _versions(),
            "host": {"name": platform.node(), "machine": platform.machine(), "cores": os.cpu_count()},
        }
        self._write_json(CONFIG, facts)
        scheme.save(self.folder / SCHEME)
        self._iterations = _Table(self.folder / ITERATIONS, ITERATION_COLUMNS)
        self._arrivals = _Table(self.folder / ARRIVALS, ARRIVAL_COLUMNS)
        self._faults = _Table(self.folder / FAULTS, FAULT_COLUMNS)

    def processes(self, identities: Sequence[Identity]) -> None:
        """Write ``processes.csv``, a row for each rank."""
        partial = self.folder / f".{PROCESSES}"
        partial.unlink(missing_ok=True)
        table = _Table(partial, PROCESS_COLUMNS)
        for rank, identity in enumerate(identities):
            table.add({"rank": rank, **identity._asdict()})
        table.close()
        partial.replace(self.folder / PROCESSES)

    def iteration(self, **row: Any) -> None:
        """Add a row to ``iterations.csv``."""
        self._iterations.add(row)

    def arrival(self, **row: Any) -> None:
        """Add a row to ``arrivals.csv``."""
        self._arrivals.add(row)

    def fault(self, **row: Any) -> None:
        """Add a row to ``faults.csv``."""
        self._faults.add(row)

    def outcome(self, status: int, reason: str | None) -> None:
        """Write ``outcome.json``: all that the master had to write down is there."""
        self._write_json(OUTCOME, {"status": status, "reason": reason})

    def model(self, parameters: npt.NDArray[Any]) -> None:
        """Write the model."""
        np.save(self.folder / MODEL, parameters, allow_pickle=False)

    def summary(self, figures: dict[str, Any]) -> None:
        """Write the summary, in the place of an earlier one."""
        self._write_json(SUMMARY, figures)

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}
        # Written aside and renamed: a file that is there is whole.
        partial = self.folder / f".{name}"
        partial.write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n")
        partial.replace(self.folder / name)

    def __enter__(self) -> RunRecords:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._iterations.close()
        self._arrivals.close()
        self._faults.close()


class _Table:
    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._file = path.open("a", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, columns)
        if self._file.tell() == 0:
            self._writer.writeheader()

    def add(self, row: dict[str, Any]) -> None:
        self._writer.writerow(row)

    def close(self) -> None:
        self._file.close()


class IterationTail:
    """Reads ``iterations.csv`` while it is written."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ITERATIONS
        self._read = 0

    def new_rows(self) -> list[dict[str, str]]:
        """The rows completed since the last call; none before the file is there."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        complete = content[: content.rfind(b"\n") + 1]
        rows = [line for line in csv.reader(complete.decode().splitlines()) if line]
        if self._read == 0:
            rows = rows[1:]
        self._read += len(complete)
        return [dict(zip(ITERATION_COLUMNS, row, strict=True)) for row in rows]


def rewind(folder: Path, iteration: int) -> None:
    """Make a run directory what it was after `iteration` steps, for the run to go on from there."""
    for name in (OUTCOME, SUMMARY, MODEL, PROCESSES):
        (folder / name).unlink(missing_ok=True)
    for name in (ITERATIONS, ARRIVALS):
        try:
            with (folder / name).open(newline="") as file:
                header, *rows = csv.reader(file)
        except (FileNotFoundError, ValueError):  # it never began
            continue
        # A row cut short by a loss of power is one of those that go: its iteration was not over.
        kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= iteration]
        partial = folder / f".{name}"
        with partial.open("w", newline="") as file:
            csv.writer(file).writerows([header, *kept])
        partial.replace(folder / name)


def read_run(folder: Path) -> str:
    """What tells a run from any other, from ``config.json``; UsageError where there is no run."""
    try:
        return str(json.loads((folder / CONFIG).read_text())["run"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{os.fspath(folder)} holds no run that has begun") from None


def read_survivors(folder: Path, scheme: GradientCode) -> dict[int, frozenset[int]]:
    """The recorded survivors of each iteration, counted from 0; UsageError for the run of another scheme."""
    try:
        fingerprint = json.loads((folder / CONFIG).read_text())["scheme"]["fingerprint"]
        with (folder / ITERATIONS).open(newline="") as file:
            rows = list(csv.DictReader(file))
        sets = {int(row["iteration"]) - 1: frozenset(map(int, row["survivors"].split())) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"--survivors-from: {os.fspath(folder)} holds no run with iterations") from None
    if fingerprint != scheme.fingerprint:
        raise UsageError(f"--survivors-from: {os.fspath(folder)} is of another scheme than {scheme.name}")
    return sets


def read_processes(folder: Path) -> list[Identity]:
    """The ranks of a run, from ``processes.csv``; none before it is written."""
    try:
        with (folder / PROCESSES).open(newline="") as file:
            return [Identity(row["host"], int(row["pid"]), float(row["started"])) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """``outcome.json``, or None where the run has come to no orderly end (yet)."""
    try:
        outcome: dict[str, Any] = json.loads((folder / OUTCOME).read_text())
    except FileNotFoundError:
        return None
    return outcome


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("fast-gradient-coding", "numpy", "scipy", "mpi4py", "openmpi"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def summarize(seconds: npt.ArrayLike) -> dict[str, float]:
    """Mean, median and 95th percentile of iteration times, in seconds."""
    values = np.asarray(seconds, dtype=np.float64)
    return {
        "mean_seconds": float(values.mean()),
        "median_seconds": float(np.median(values)),
        "p95_seconds": float(np.quantile(values, 0.95)),
    }
