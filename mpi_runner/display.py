"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, and a summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fastgc import GradientCode
from mpi_runner.config import TrainConfig
from mpi_runner.launch import TERMINAL, inside_mpi

PLAIN_LINES = 10  # a run's progress in so many lines where there is no terminal
PLAIN_WIDTH = 120


def console() -> Console:
    """Where to write. What a rank writes to says nothing: the launcher tells whether a terminal is at its other end."""
    terminal = os.environ.get(TERMINAL)
    if terminal is not None:
        return Console(force_terminal=True, width=int(terminal), highlight=False)
    if inside_mpi() or not sys.stdout.isatty():
        return Console(force_terminal=False, color_system=None, width=PLAIN_WIDTH, highlight=False)
    return Console(highlight=False)


class Display:
    """Follows a run on the master."""

    def __init__(self, config: TrainConfig, scheme: GradientCode) -> None:
        self._console = console()
        self._iterations = config.iterations
        self._every = max(1, config.iterations // PLAIN_LINES)
        self._seconds = 0.0
        self.loss = float("nan")
        title = f"{scheme.name} · {config.iterations} iterations · delay {config.delay} · {config.run}"
        self._console.print(title, markup=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.5f} · {task.fields[milliseconds]:.0f} ms"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(config.scheme, total=config.iterations, loss=self.loss, milliseconds=0.0)

    def iteration(self, number: int, loss: float, seconds: float, auc: float | None) -> None:
        """An iteration has ended."""
        self.loss = loss
        self._seconds += seconds
        milliseconds = self._seconds / number * 1000
        if not self._progress.disable:
            self._progress.update(self._task, completed=number, loss=loss, milliseconds=milliseconds)
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


def comparison(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Table of summaries; with several, the time of each against the first."""
    table = Table(title=None, caption=None)
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
