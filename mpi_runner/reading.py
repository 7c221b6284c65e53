"""Reading a run directory back, in one call: `read_run`."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_runner import records
from mpi_runner.config import CONFIG, UsageError
from mpi_runner.records import NUMBER, TEXT

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "read_run"]


@dataclass(frozen=True)
class Run:
    """A run directory, as far as it has been written.

    Attributes
    ----------
    path : Path
    facts : dict
        ``config.json``: format, run, config, scheme, versions, host. A run that was ended while it loaded its data has
        only the first of them and config.
    iterations, arrivals, faults, switches, processes : pandas.DataFrame
        The tables, with the columns that `mpi_runner.records` lists, and any that were added later. Times are seconds
        since the first model was sent. ``iterations.survivors`` is text, workers separated by spaces.
    summary, outcome : dict or None
        None where the run has not come so far.
    log : list of str
        Lines of ``log.txt``.
    """

    path: Path
    facts: dict[str, Any]
    iterations: pd.DataFrame
    arrivals: pd.DataFrame
    faults: pd.DataFrame
    switches: pd.DataFrame
    processes: pd.DataFrame
    summary: dict[str, Any] | None
    outcome: dict[str, Any] | None
    log: list[str]

    @property
    def config(self) -> dict[str, Any]:
        """What the run was told."""
        return dict(self.facts["config"])

    @property
    def complete(self) -> bool:
        """Whether the run has done all its iterations."""
        return self.summary is not None and self.outcome is not None and self.outcome["status"] == 0

    @property
    def status(self) -> str:
        """How far it has come, in a few words."""
        done = f"{len(self.iterations):,} of {self.config['iterations']:,} iterations"
        if self.complete:
            return f"complete, {len(self.iterations):,} iterations"
        if self.outcome is not None:
            return f"ended with status {self.outcome['status']} after {done}: {self.outcome['reason']}"
        return f"no orderly end (yet), {done}"


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run directory, of a run that is over, was killed, or still goes on.

    A last row that was cut is left out, and files that are not there yet are empty tables or None.

    Parameters
    ----------
    path : path
        The run directory.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        There is no run that has begun, its layout has a number that this version does not read, or a table is damaged
        elsewhere than at its end. The message is one line.
    """
    folder = Path(path)
    try:
        log = (folder / records.LOG).read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        log = []
    facts = records.read_facts(folder)
    later = {"reduction": facts.get("scheme", {}).get("reduction", 1)}
    return Run(
        folder,
        facts,
        _table(folder / records.ITERATIONS, records.ITERATION_COLUMNS, later),
        _table(folder / records.ARRIVALS, records.ARRIVAL_COLUMNS, later),
        _table(folder / records.FAULTS, records.FAULT_COLUMNS),
        _table(folder / records.SWITCHES, records.SWITCH_COLUMNS),
        _table(folder / records.PROCESSES, records.PROCESS_COLUMNS),
        _json(folder / records.SUMMARY),
        _json(folder / records.OUTCOME),
        log,
    )


def runs_in(folder: Path) -> list[Path]:
    """The run directories that a path stands for: itself, or those that lie in it."""
    if (folder / CONFIG).exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not found:
        raise UsageError(f"{os.fspath(folder)} holds no run that has begun")
    return found


def _table(path: Path, columns: Mapping[str, str], later: Mapping[str, int] | None = None) -> pd.DataFrame:
    """A table; columns that runs of earlier versions lack, or have empty, get what `later` says."""
    import pandas as pd

    later = later or {}

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    header = _cells(lines[0]) if lines else list(columns)
    while len(lines) > 1 and (b"\0" in lines[-1] or len(_cells(lines[-1])) != len(header)):
        lines.pop()  # a loss of power can leave zeros where data were to come
    if absent := [name for name in columns if name not in header and name not in later]:
        raise UsageError(f"{os.fspath(path)} has no column {', '.join(absent)}")
    types: dict[str, Any] = {
        name: "int64" if form == NUMBER and name not in later else str if form == TEXT else "float64"
        for name, form in columns.items()
    }
    try:
        table = pd.read_csv(
            io.BytesIO(b"".join(lines) or (",".join(header) + "\n").encode()),
            dtype=types,
            keep_default_na=False,
            na_values={name: ["", "nan"] for name in header if columns.get(name) != TEXT},
        )
    except ValueError as error:  # pandas' own errors are of this kind
        raise UsageError(f"{os.fspath(path)} is damaged: {' '.join(str(error).split())}") from None
    for name, value in later.items():
        table[name] = table[name].fillna(value).astype("int64") if name in table else value
    return table


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8", errors="replace")]), [])


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(f"{os.fspath(path)} is damaged: {error}") from None
    return content
