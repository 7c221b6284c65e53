"""The run directory: what a run leaves behind, in open formats.

=================  ====================================================================================================
file               content
=================  ====================================================================================================
``config.json``    format of the directory, what the run was told, the scheme, versions and host; written first
``scheme.npz``     the scheme itself (`fastgc.schemes.load`)
``iterations.csv`` a row per iteration, as it ends
``arrivals.csv``   a row per message, written with its iteration's row, or after `FLUSH_SECONDS` where that takes longer
``processes.csv``  host, pid and start time of every rank; the launcher looks after them
``checkpoints/``   the newest two (`mpi_runner.checkpoint`)
``faults.csv``     a row per lost worker, as it is lost
``switches.csv``   a row per change of the reduction; there from the first on
``log.txt``        what the master has said, with the time
``model.npy``      the final parameters
``summary.json``   figures of a run that was completed
``outcome.json``   exit status and reason, of any run that came to an orderly end; written last
=================  ====================================================================================================

Its layout has a number, ``format`` in ``config.json`` (`mpi_runner.config.FORMAT`). A new file or a new column leaves
the number as it is: readers take columns by name, keep those that they do not know, and miss none that came later. What
changes its meaning or goes makes a new number, and is refused by readers of the old one.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import GradientCode
from mpi_runner.config import CONFIG, FORMAT, TrainConfig, UsageError
from mpi_runner.processes import Identity

NUMBER, SECONDS, REAL, TEXT, OPTIONAL = "d", ".6f", ".17g", "s", ""
"""How a column is written: times to the microsecond, an optional real number also as an empty cell."""

ITERATION_COLUMNS = {
    "iteration": NUMBER,  # from 1
    "start": SECONDS,  # since the first model was sent
    "seconds": SECONDS,  # of the whole iteration: the sum of the next five, which are the master's time
    "send": SECONDS,  # giving models to MPI
    "wait": SECONDS,  # nothing had come
    "receive": SECONDS,  # taking what had come: checking, widening, adding up, writing down
    "decode": SECONDS,
    "update": SECONDS,
    "loss": REAL,  # mean training loss with L2, at the parameters that were sent, before the step
    "survivors": TEXT,  # workers used, separated by spaces
    "parts": TEXT,  # worker:part of each message used, where workers send after parts of their work; else empty
    "approximate": NUMBER,  # 1 where the gradient is an estimate
    "approximation_error": REAL,  # of these survivors (`GradientCode.approximation_error`), 0 for an exact gradient
    "bytes_received": NUMBER,  # by the master, in this iteration
    "bytes_sent": NUMBER,
    "score": OPTIONAL,  # the model's measure on the test rows after the step, where it was evaluated
    "reduction": NUMBER,  # of its messages
}
ARRIVAL_COLUMNS = {
    "iteration": NUMBER,  # that the message is for
    "worker": NUMBER,
    "sent": SECONDS,  # when its model was sent, since the first model was sent
    "arrived": SECONDS,
    "compute": SECONDS,  # spent on gradients, by the worker's clock
    "encode": SECONDS,  # on encoding them
    "delay": SECONDS,  # injected
    "bytes": NUMBER,
    # used, late (its iteration was over), abandoned (so was it, and no gradient was sent), overflow; what was used
    # under another reduction than its iteration's was dropped when that was begun anew
    "outcome": TEXT,
    "reduction": NUMBER,  # of the message, or that it was to have
    "part": NUMBER,  # of the work, that the message is for
    "more": NUMBER,  # 1 where the worker has further parts to do: times up to the last answer go on from its model
}
PROCESS_COLUMNS = {"rank": NUMBER, "host": TEXT, "pid": NUMBER, "started": REAL}  # seconds since the epoch
FAULT_COLUMNS = {
    "seconds": SECONDS,  # since the first model was sent; before it, since the run directory was made
    "iteration": NUMBER,  # under way
    "worker": NUMBER,
    "host": TEXT,
    "pid": NUMBER,
    "kind": TEXT,  # died, hung (silent for longer than the deadline), unstopped (silent after the end), corrupt
    "reason": TEXT,
}
SWITCH_COLUMNS = {
    "iteration": NUMBER,  # the first under the new reduction
    "before": NUMBER,
    "after": NUMBER,
    "predicted_before": SECONDS,  # of an iteration, nan where nothing was predicted
    "predicted_after": SECONDS,
    "reason": TEXT,
}


SCHEME, ITERATIONS, ARRIVALS = "scheme.npz", "iterations.csv", "arrivals.csv"
PROCESSES, FAULTS, SWITCHES, LOG = "processes.csv", "faults.csv", "switches.csv", "log.txt"
MODEL, SUMMARY, OUTCOME = "model.npy", "summary.json", "outcome.json"
FLUSH_SECONDS = 0.5
"""Rows of an iteration that takes longer are written before its end: whoever watches sees whom it waits for."""


class RunRecords:
    """Writes a run directory; rows are handed to the system at the end of each iteration.

    Parameters
    ----------
    config : TrainConfig
    scheme : GradientCode
    run : str
        What tells this run from any other. A run that goes on keeps it, and adds to what `rewind` has left.
    speeds : list of float, optional
        Of the workers, relative to the slowest, where they were measured. A run that goes on keeps those that it had.
    """

    def __init__(self, config: TrainConfig, scheme: GradientCode, run: str, speeds: list[float] | None = None) -> None:
        self.folder = Path(config.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        if speeds is None and (self.folder / CONFIG).exists():
            speeds = read_facts(self.folder).get("speeds")
        facts = {
            "format": FORMAT,
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
                "reductions": list(scheme.reductions),
                "exact": scheme.exact,
            },
            "speeds": speeds,
            "versions": _versions(),
            "host": {"name": platform.node(), "machine": platform.machine(), "cores": os.cpu_count()},
        }
        self._write_json(CONFIG, facts)
        scheme.save(self.folder / SCHEME)
        self._iterations = _Table(self.folder / ITERATIONS, ITERATION_COLUMNS)
        self._arrivals = _Table(self.folder / ARRIVALS, ARRIVAL_COLUMNS)
        self._faults = _Table(self.folder / FAULTS, FAULT_COLUMNS)
        self._switches: _Table | None = None
        self._log = (self.folder / LOG).open("a", buffering=1)
        self._since = math.inf  # when the oldest row came that is not flushed

    def processes(self, identities: Sequence[Identity]) -> None:
        """Write ``processes.csv``, a row for each rank."""
        partial = self.folder / f".{PROCESSES}"
        partial.unlink(missing_ok=True)
        table = _Table(partial, PROCESS_COLUMNS)
        for rank, identity in enumerate(identities):
            table.add({"rank": rank, **identity._asdict(), "host": _quoted(identity.host)})
        table.close()
        partial.replace(self.folder / PROCESSES)

    def iteration(self, row: Mapping[str, Any]) -> None:
        """Add a row to ``iterations.csv``; what has arrived by then is there before it."""
        self._arrivals.flush()
        self._iterations.add(row)
        self._iterations.flush()
        self._since = math.inf

    def iteration_seconds(self, done: int) -> list[float]:
        """Of the iterations recorded after so many: kept by the file alone, so that memory does not grow with a run."""
        with (self.folder / ITERATIONS).open(newline="", encoding="utf-8") as file:
            return [float(row["seconds"]) for row in csv.DictReader(file) if int(row["iteration"]) > done]

    def arrival(self, row: Mapping[str, Any]) -> None:
        """Add a row to ``arrivals.csv``."""
        self._arrivals.add(row)
        self._since = min(self._since, time.monotonic())

    def settle(self) -> None:
        """Nothing to do at the moment: flush what has been kept for `FLUSH_SECONDS`."""
        if time.monotonic() - self._since > FLUSH_SECONDS:
            self._arrivals.flush()
            self._since = math.inf

    def fault(self, row: Mapping[str, Any]) -> None:
        """Add a row to ``faults.csv``."""
        self._faults.add({**row, "host": _quoted(row["host"]), "reason": _quoted(row["reason"])})
        self._faults.flush()

    def switch(self, row: Mapping[str, Any]) -> None:
        """Add a row to ``switches.csv``."""
        if self._switches is None:
            self._switches = _Table(self.folder / SWITCHES, SWITCH_COLUMNS)
        self._switches.add({**row, "reason": _quoted(row["reason"])})
        self._switches.flush()

    def log(self, text: str) -> None:
        """Add a line to ``log.txt``, with the time."""
        print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), " ".join(text.splitlines()), file=self._log)

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
        for file in (self._arrivals, self._iterations, self._faults, self._switches, self._log):
            if file is not None:
                file.close()


class _Table:
    """Appends rows to a CSV file, formatted at once: `csv.DictWriter` takes ten times as long."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        self._file = path.open("a", newline="", encoding="utf-8")
        self._line = ",".join(f"{{{name}:{form}}}" for name, form in columns.items()) + "\n"
        if self._file.tell() == 0:
            self._file.write(",".join(columns) + "\n")
            self._file.flush()

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write(self._line.format_map(row))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _quoted(text: str) -> str:
    """Free text as a cell, in one line."""
    return '"' + " ".join(text.split()).replace('"', '""') + '"'


class Tail:
    """Reads a table of a run directory while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
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
        self._read += len(complete)
        rows = list(csv.reader(complete.decode(errors="replace").splitlines()))
        if rows and not self._columns:
            self._columns = rows.pop(0)
        return [dict(zip(self._columns, row, strict=True)) for row in rows if len(row) == len(self._columns)]


def rewind(folder: Path, iteration: int) -> None:
    """Make a run directory what it was after `iteration` steps, for the run to go on from there."""
    for name in (OUTCOME, SUMMARY, MODEL, PROCESSES):
        (folder / name).unlink(missing_ok=True)
    tables = ((ITERATIONS, ITERATION_COLUMNS), (ARRIVALS, ARRIVAL_COLUMNS), (SWITCHES, SWITCH_COLUMNS))
    for name, columns in tables:
        try:
            with (folder / name).open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
        except (FileNotFoundError, ValueError):  # it never began
            continue
        # A row cut short by a loss of power is one of those that go: its iteration was not over.
        kept = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
        partial = folder / f".{name}"
        with partial.open("w", newline="", encoding="utf-8") as file:
            # Under the columns of now, since the run's next rows have them; those that came later are empty.
            writer = csv.DictWriter(file, list(columns), extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for row in kept if int(row["iteration"]) <= iteration)
        partial.replace(folder / name)


def read_facts(folder: Path) -> dict[str, Any]:
    """``config.json``; UsageError where there is no run, or one whose layout has another number than `FORMAT`."""
    try:
        facts = json.loads((folder / CONFIG).read_text("utf-8"))
        found = facts.get("format")
        if not isinstance(facts["config"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{os.fspath(folder)} holds no run that has begun") from None
    if found != FORMAT:
        layout = "a layout without a number" if found is None else f"layout {found}"
        raise UsageError(f"{os.fspath(folder)} is a run directory of {layout}; this version reads layout {FORMAT}")
    return dict(facts)


def read_identity(folder: Path) -> str:
    """What tells a run from any other, from ``config.json``; UsageError where there is no run."""
    try:
        return str(read_facts(folder)["run"])
    except KeyError:  # it has only taken the directory
        raise UsageError(f"{os.fspath(folder)} holds no run that has begun") from None


class Recorded(NamedTuple):
    """What decides the gradient of an iteration."""

    survivors: frozenset[int]
    """The messages that were used, by their numbers under the scheme in parts."""
    reduction: int


def named_parts(messages: Sequence[int], parts: int) -> str:
    """Messages, by their numbers under ``scheme.in_parts(parts)``, as ``worker:part``; nothing for one part."""
    return " ".join(f"{number // parts}:{number % parts}" for number in messages) if parts > 1 else ""


def read_survivors(folder: Path, scheme: GradientCode, parts: int = 1) -> dict[int, Recorded]:
    """The recorded messages and reduction of each iteration, counted from 0; UsageError for the run of another scheme,
    or in other parts."""
    try:
        facts = json.loads((folder / CONFIG).read_text())
        fingerprint, recorded = facts["scheme"]["fingerprint"], int(facts["config"]["parts"])
        with (folder / ITERATIONS).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = {
            int(row["iteration"]) - 1: Recorded(_messages(row, recorded), int(row.get("reduction") or scheme.reduction))
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"--survivors-from: {os.fspath(folder)} holds no run with iterations") from None
    if fingerprint != scheme.fingerprint:
        raise UsageError(f"--survivors-from: {os.fspath(folder)} is of another scheme than {scheme.name}")
    if recorded != parts:
        raise UsageError(f"--survivors-from: {os.fspath(folder)} has work in {recorded} parts, and not {parts}")
    return found


def _messages(row: Mapping[str, str], parts: int) -> frozenset[int]:
    if parts == 1:
        return frozenset(map(int, row["survivors"].split()))
    pairs = (pair.split(":") for pair in row["parts"].split())
    return frozenset(int(worker) * parts + int(part) for worker, part in pairs)


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
