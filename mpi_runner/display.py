"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fastgc import GradientCode
from mpi_runner.config import TrainConfig
from mpi_runner.launch import inside_mpi
from mpi_runner.records import SUMMARY, IterationTail

PLAIN_LINES = 10  # a run's progress in so many lines where there is no terminal
PLAIN_WIDTH = 120
CAPTION = "AUC: test flights are drawn at random, on the days of the training flights; for days held out it is lower."


def console() -> Console:
    """Standard output; ranks write plain lines, since mpirun may give them a terminal of its own making."""
    if inside_mpi() or not sys.stdout.isatty():
        return Console(force_terminal=False, color_system=None, width=PLAIN_WIDTH, highlight=False)
    return Console(highlight=False)


class Display:
    """Shows a run while it goes on."""

    def __init__(self, config: TrainConfig, scheme: GradientCode) -> None:
        self._console = console()
        self._iterations = config.iterations
        self._every = max(1, config.iterations // PLAIN_LINES)
        self._seconds = 0.0
        title = f"{scheme.name} · {config.iterations} iterations · delay {config.delay} · {config.run}"
        self._console.print(title, markup=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(config.scheme, total=None, state="starting")

    def iteration(self, number: int, loss: float, seconds: float, auc: float | None) -> None:
        """An iteration has ended."""
        self._seconds += seconds
        milliseconds = self._seconds / number * 1000
        if not self._progress.disable:
            state = f"loss {loss:.5f} · {milliseconds:.0f} ms"
            self._progress.update(self._task, total=self._iterations, completed=number, state=state)
        elif number % self._every == 0 or number == self._iterations:
            evaluated = "" if auc is None else f"  AUC {auc:.4f}"
            self._console.print(
                f"iteration {number}/{self._iterations}  loss {loss:.5f}  mean {milliseconds:.1f} ms{evaluated}"
            )

    def summary(self, figures: Mapping[str, Any]) -> None:
        """The run has ended."""
        self._progress.stop()
        self._console.print(comparison([figures]))

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Follower:
    """Shows a run that other processes write: mpirun holds its ranks' output back until a line is complete, and a
    progress bar has no lines."""

    def __init__(self, run: str, display: Display) -> None:
        self._folder = Path(run)
        self._display = display
        self._tail = IterationTail(self._folder)

    def look(self) -> None:
        """Show what has been written since the last look."""
        for row in self._tail.new_rows():
            auc = float(row["auc"]) if row["auc"] else None
            self._display.iteration(int(row["iteration"]), float(row["loss"]), float(row["seconds"]), auc)

    def figures(self) -> dict[str, Any]:
        """The summary of a run that has ended well."""
        figures: dict[str, Any] = json.loads((self._folder / SUMMARY).read_text())
        return figures


def comparison(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Table of summaries; with several, the time of each against the first."""
    table = Table(caption=CAPTION, caption_justify="left")
    table.add_column("scheme")
    names = ["AUC", "loss", "mean ms", "median ms", "p95 ms", "received MB", "total s"]
    if len(runs) > 1:
        names.append("time / first")
    for name in names:
        table.add_column(name, justify="right")
    for run in runs:
        cells = [
            f"{run['test_auc']:.4f}",
            f"{run['final_loss']:.5f}",
            *(f"{run[f'{which}_seconds'] * 1000:.1f}" for which in ("mean", "median", "p95")),
            f"{run['bytes_received'] / 1e6:.1f}",
            f"{run['total_seconds']:.1f}",
        ]
        if len(runs) > 1:
            cells.append(f"{run['mean_seconds'] / runs[0]['mean_seconds']:.2f}")
        table.add_row(str(run["scheme"]), *cells)
    return table
