"""What a person sees of a run: a picture on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.live
from rich import box
from rich.console import Console
from rich.table import Table

from mpi_runner.config import TrainConfig
from mpi_runner.launch import inside_mpi
from mpi_runner.live import Live
from mpi_runner.records import ARRIVALS, FAULTS, ITERATIONS, SUMMARY, Tail

PLAIN_LINES = 10  # a run's progress in so many lines where there is no terminal
PLAIN_WIDTH = 120
REFRESH = 5  # pictures a second
MEASURES = {"auc": "AUC"}
"""How a measure is called in a table, where not by its own name."""
CAPTIONS = {
    "flights": "AUC: test flights are drawn at random, on the days of the training flights; "
    "for days held out it is lower."
}
"""What must be said of figures on some data."""


def console(quiet: bool = False) -> Console:
    """Standard output; ranks write plain lines, since mpirun may give them a terminal of its own making."""
    if inside_mpi() or not sys.stdout.isatty():
        return Console(force_terminal=False, color_system=None, width=PLAIN_WIDTH, highlight=False, quiet=quiet)
    return Console(highlight=False, quiet=quiet)


class Display:
    """Shows a run while it goes on: a picture on a terminal, and else a line now and then."""

    def __init__(self, config: TrainConfig, scheme: str, quiet: bool = False) -> None:
        self._console = console(quiet)
        self._iterations = config.iterations
        self._every = max(1, config.iterations // PLAIN_LINES)
        self._seconds = 0.0
        self._count = 0
        title = f"{scheme} · {config.iterations} iterations · delay {config.delay} · {config.run}"
        self.live: Live | None = None
        """Where there is a terminal to draw on."""
        if self._console.is_terminal and not quiet:
            self.live = Live(title, config.workers, config.iterations)
            self._screen = rich.live.Live(self.live, console=self._console, refresh_per_second=REFRESH)
        else:
            self._console.print(title, markup=False, soft_wrap=True)

    def iteration(self, number: int, loss: float, seconds: float, score: float | None) -> None:
        """An iteration has ended; for where there is no terminal."""
        self._seconds += seconds
        self._count += 1
        if number % self._every == 0 or number == self._iterations:
            evaluated = "" if score is None else f"  test {score:.4f}"
            mean = self._seconds / self._count * 1000
            figures = f"loss {figure(loss, 1, 5)}  mean {mean:.1f} ms{evaluated}"
            self._console.print(f"iteration {number}/{self._iterations}  {figures}")

    def stop(self) -> None:
        """The run is over."""
        if self.live is not None:
            self.live.stop()
            self._screen.stop()

    def summary(self, figures: Mapping[str, Any]) -> None:
        """The run has ended."""
        self.stop()
        self._console.print(comparison([figures]))

    def say(self, text: str) -> None:
        """Add a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> Display:
        if self.live is not None:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Follower:
    """Shows a run that other processes write: mpirun holds its ranks' output back until a line is complete, and a
    picture has no lines."""

    def __init__(self, run: str, display: Display) -> None:
        self._folder = Path(run)
        self._display = display
        self._tails = {name: Tail(self._folder / name) for name in (ITERATIONS, ARRIVALS, FAULTS)}

    def look(self) -> None:
        """Show what has been written since the last look."""
        live = self._display.live
        if live is not None:
            live.iterations(self._tails[ITERATIONS].new_rows())
            live.arrivals(self._tails[ARRIVALS].new_rows())
            live.faults(self._tails[FAULTS].new_rows())
            return
        for row in self._tails[ITERATIONS].new_rows():
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
    for name in (measure_name(measure), "loss", "mean ms", "median", "p95", "MB in"):
        table.add_column(name, justify="right", no_wrap=True)
    if len(runs) > 1:
        table.add_column("ratio", justify="right", no_wrap=True)
    for run in runs:
        cells = [
            figure(run[f"test_{measure}"], 1, 4),
            figure(run["final_loss"], 1, 5),
            *(figure(run[f"{which}_seconds"], 1000, 1) for which in ("mean", "median", "p95")),
            figure(run["bytes_received"], 1e-6, 1),
        ]
        if len(runs) > 1:
            cells.append(figure(run["mean_seconds"] / runs[0]["mean_seconds"], 1, 2))
        table.add_row(str(run["scheme"]), *cells)
    return table


def measure_name(measure: str) -> str:
    """How a measure is called in a table."""
    return MEASURES.get(measure, measure.replace("_", " "))


def figure(value: float | None, unit: float, digits: int) -> str:
    """A number in a unit, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value * unit:.{digits}f}"
