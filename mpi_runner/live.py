"""A run as a terminal shows it while it goes on: how far, how fast, and what each worker is doing."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

RECENT = 50  # iterations: what speeds and the time left are taken from
MOST_NAMED = 48  # workers with a figure each; of more only the states are shown
BARS = "▁▂▃▄▅▆▇█"

Row = Mapping[str, str]


class State(NamedTuple):
    """What a worker is doing."""

    name: str
    glyph: str
    style: str


ANSWERED = State("answered", "●", "green")
WORKING = State("at work", "○", "default")
BEHIND = State("behind, at work for an earlier model", "◐", "yellow")
LOST = State("lost", "✕", "red bold")


@dataclass
class _Worker:
    given: int = 1  # the iteration of its model
    answered: int = 0  # the last iteration that it has answered in time
    messages: int = 0
    used: int = 0
    seconds: float = math.nan  # that its last answer took
    lost: bool = False


class Live:
    """The picture of a run, drawn from rows of its tables.

    Parameters
    ----------
    title : str
    workers, iterations : int
        Of the run.
    """

    def __init__(self, title: str, workers: int, iterations: int) -> None:
        self._title = title
        self._total = iterations
        self._workers = [_Worker() for _ in range(workers)]
        self._begun = time.monotonic()
        self._ended = False
        self._starts: list[float] = []
        self._recent: deque[Row] = deque(maxlen=RECENT)
        self._end = 0.0  # of the last iteration, by the run's clock
        self._seen = self._begun  # and by this one
        self._score: float | None = None
        self._reductions: set[str] = set()
        self.done = 0

    def iterations(self, rows: Sequence[Row]) -> None:
        """Iterations that have ended."""
        for row in rows:
            self.done = int(row["iteration"])
            del self._starts[self.done - 1 :]
            self._starts.append(float(row["start"]))
            self._end = float(row["start"]) + float(row["seconds"])
            self._score = float(row["score"]) if row["score"] else self._score
            self._recent.append(row)
            self._reductions.add(row.get("reduction", ""))
            self._seen = time.monotonic()

    def arrivals(self, rows: Sequence[Row]) -> None:
        """Messages that have come."""
        for row in rows:
            worker, iteration = self._workers[int(row["worker"])], int(row["iteration"])
            worker.messages += 1
            if row.get("more") == "1":  # a part: it is still at work
                worker.used += row["outcome"] == "used"
                continue
            worker.seconds = float(row["arrived"]) - float(row["sent"])
            if row["outcome"] in ("late", "abandoned"):  # it was given the newest model at once
                arrived = float(row["arrived"])
                worker.given = self.done + 1 if arrived > self._end else bisect_left(self._starts, arrived)
            else:
                worker.used += row["outcome"] == "used"
                worker.answered, worker.given = iteration, iteration + 1

    def faults(self, rows: Sequence[Row]) -> None:
        """Workers that were lost."""
        for row in rows:
            self._workers[int(row["worker"])].lost = True

    def stop(self) -> None:
        """The run is over: nobody is at work any more."""
        self._ended = True

    def state(self, worker: int) -> State:
        """What a worker is doing."""
        it = self._workers[worker]
        if it.lost:
            return LOST
        if it.answered > self.done or (it.answered == self.done and self._ended):
            return ANSWERED
        return WORKING if it.given > self.done else BEHIND

    def __rich__(self) -> RenderableType:
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        left = "" if self._ended or not self.done else f" · {_clock(self._left)} left"
        bar.add_row(
            ProgressBar(self._total, self.done),
            Text(f"{self.done:,}/{self._total:,} · {_clock(self._elapsed)}{left}"),
        )
        parts: list[RenderableType] = [Text(self._title, style="bold"), bar]
        if self._recent:
            parts += [self._figures(), self._history()]
        parts.append(self._staff())
        return Group(*parts)

    @property
    def _elapsed(self) -> float:
        """Seconds since the first model was sent; before it, since this began."""
        return self._end + (0.0 if self._ended else time.monotonic() - self._seen)

    @property
    def _span(self) -> float:
        """Seconds of the recent iterations, with what lies between them."""
        return max(self._end - float(self._recent[0]["start"]), 1e-9)

    @property
    def _left(self) -> float:
        return (self._total - self.done) * self._span / len(self._recent)

    def _figures(self) -> Text:
        last = self._recent[-1]
        loss, pace = float(last["loss"]), len(self._recent) / self._span
        said = [f"{1000 / pace:.1f} ms an iteration", f"{pace:.1f}/s"]
        said += [
            f"{sum(int(row[f'bytes_{way}']) for row in self._recent) / self._span / 1e6:.1f} MB/s {short}"
            for way, short in (("received", "in"), ("sent", "out"))
        ]
        if not math.isnan(loss):
            said.insert(0, f"loss {loss:.5f}")
        if len(self._reductions) > 1:
            said.append(f"reduction {last['reduction']}")
        if self._score is not None:
            said.insert(1, f"test {self._score:.4f}")
        return Text(" · ".join(said))

    def _history(self) -> Text:
        times = [float(row["seconds"]) for row in self._recent]
        low, high = min(times), max(times)
        heights = [round((t - low) / max(high - low, 1e-9) * (len(BARS) - 1)) for t in times]
        history = Text("".join(BARS[height] for height in heights), style="cyan", overflow="crop", no_wrap=True)
        return history.append(f"  {low * 1000:.0f} to {high * 1000:.0f} ms", style="dim")

    def _staff(self) -> RenderableType:
        states = [self.state(number) for number in range(len(self._workers))]
        counted = [f"{states.count(s)} {s.name}" for s in (ANSWERED, WORKING, BEHIND, LOST) if s in states]
        summary = Text("workers: " + ", ".join(counted), style="dim")
        if len(states) > MOST_NAMED:
            return Group(summary, Text.assemble(*((state.glyph, state.style) for state in states)))
        cells = []
        for number, (worker, state) in enumerate(zip(self._workers, states, strict=True)):
            used = f"{100 * worker.used / worker.messages:3.0f} %" if worker.messages else "     "
            answer = "" if math.isnan(worker.seconds) else f"{worker.seconds * 1000:5.0f} ms"
            cells.append(Text.assemble((state.glyph, state.style), f" {number:<2}", (f" {used} {answer:>8}", "dim")))
        return Group(summary, Columns(cells, padding=(0, 2), equal=True))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
