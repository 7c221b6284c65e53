"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fastgc import GradientCode
from mpi_runner.config import TrainConfig
from mpi_runner.launch import inside_mpi
from mpi_runner.records import ITERATIONS, SUMMARY, Tail

PLAIN_LINES = 10  # a run's progress in so many lines where there is no terminal
PLAIN_WIDTH = 120
MEASURES = {"auc": "AUC"}
"""How a measure is called in a table, where not by its own name."""
CAPTIONS = {
    "flights": "AUC: test flights are drawn at random, on the days of the training flights; "
    "for days held out it is lower."
}
"""What must be said of figures on some data."""


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

    def iteration(self, number: int, loss: float, seconds: float, score: float | None) -> None:
        """An iteration has ended."""
        self._seconds += seconds
        milliseconds = self._seconds / number * 1000
        if not self._progress.disable:
            state = f"loss {_number(loss, 1, 5)} · {milliseconds:.0f} ms"
            self._progress.update(self._task, total=self._iterations, completed=number, state=state)
        elif number % self._every == 0 or number == self._iterations:
            evaluated = "" if score is None else f"  test {score:.4f}"
            figures = f"loss {_number(loss, 1, 5)}  mean {milliseconds:.1f} ms{evaluated}"
            self._console.print(f"iteration {number}/{self._iterations}  {figures}")

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
        self._tail = Tail(self._folder / ITERATIONS)

    def look(self) -> None:
        """Show what has been written since the last look."""
        for row in self._tail.new_rows():
            score = float(row["score"]) if row["score"] else None
            self._display.iteration(int(row["iteration"]), float(row["loss"]), float(row["seconds"]), score)

    def figures(self) -> dict[str, Any] | None:
        """The summary of a run that was completed, else None."""
        try:
            figures: dict[str, Any] = json.loads((self._folder / SUMMARY).read_text())
        except FileNotFoundError:
            return None
        return figures


def comparison(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Table of summaries, readable at 80 columns; with several runs, the time of each against the first."""
    measure = runs[0]["measure"]
    caption = CAPTIONS.get(runs[0]["data"])
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), caption=caption, caption_justify="left")
    table.add_column("scheme", overflow="fold")
    for name in (MEASURES.get(measure, measure), "loss", "mean ms", "median", "p95", "MB in"):
        table.add_column(name, justify="right", no_wrap=True)
    if len(runs) > 1:
        table.add_column("ratio", justify="right", no_wrap=True)
    for run in runs:
        cells = [
            _number(run[f"test_{measure}"], 1, 4),
            _number(run["final_loss"], 1, 5),
            *(_number(run[f"{which}_seconds"], 1000, 1) for which in ("mean", "median", "p95")),
            _number(run["bytes_received"], 1e-6, 1),
        ]
        if len(runs) > 1:
            cells.append(_number(run["mean_seconds"] / runs[0]["mean_seconds"], 1, 2))
        table.add_row(str(run["scheme"]), *cells)
    return table


def _number(value: float | None, unit: float, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value * unit:.{digits}f}"
