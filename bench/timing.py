"""Timing of several functions against each other on a machine that is never quite idle.

Samples are interleaved: a round times every contestant once, in an order drawn anew, so that a disturbance or a change
of clock meets all alike. A ratio is taken within each round, and its interval is that of the median over the rounds.
A sample during which the kernel took a core away for somebody else is taken again, a few times at most: the criterion
is not the time itself, so that it favours nobody.
"""

from __future__ import annotations

import gc
import itertools
import math
import resource
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long to measure a case.

    Attributes
    ----------
    seconds : float
        For all rounds of a case together; the bounds on the number of rounds go before it.
    sample_seconds : float
        A sample repeats a call until it lasts about so long.
    fewest, most : int
        Bounds on the number of rounds. Seven rounds give the median an interval of 95 % confidence.
    settle : float
        Seconds of rest before a sample on several threads: idle workers of the pool that ran before still spin, and
        take a core from the next. OpenBLAS's and GNU OpenMP's do so for some milliseconds.
    retakes : int
        How often a sample is taken again because the kernel took a core away.
    hopeless : float
        A contestant whose best first sample is so many times slower than the fastest rival's is not timed further.
    first : int
        Samples by which that is judged; fewer where they would take more than a twentieth of a second each.
    """

    seconds: float = 0.4
    sample_seconds: float = 5e-4
    fewest: int = 7
    most: int = 41
    settle: float = 4e-3
    retakes: int = 4
    hopeless: float = 2.5
    first: int = 4


class Repeated:
    """A call as a contestant: a sample is the mean of so many repetitions."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def sample(self, repetitions: int) -> float:
        """Seconds of one call."""
        call = self._call
        begin = time.perf_counter()
        for _ in itertools.repeat(None, repetitions):
            call()
        return (time.perf_counter() - begin) / repetitions

    def warm(self) -> None:
        """Bring data to where the call wants it and the threads of its pool awake."""
        self._call()


@dataclass
class SelfTimed:
    """A contestant that times itself, over so many repetitions."""

    timer: Callable[[int], float]

    def sample(self, repetitions: int) -> float:
        """Seconds of one repetition."""
        return self.timer(repetitions)

    def warm(self) -> None:
        """One repetition, not counted."""
        self.timer(1)


@dataclass
class Samples:
    """Seconds of each contestant, a list over the rounds; shorter for those that were given up.

    `disturbance` is the fraction of samples that were disturbed, however often they were taken.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    rounds: int = 0
    disturbance: float = 0.0

    def finished(self, name: str) -> bool:
        """Whether a contestant took part in all rounds."""
        return len(self.seconds[name]) == self.rounds

    def summary(self, name: str) -> dict[str, Any]:
        """Median and quartiles of a contestant, and the number of samples behind them."""
        q1, median, q3 = (float(q) for q in np.quantile(self.seconds[name], (0.25, 0.5, 0.75)))
        samples = self.seconds[name]
        return {"seconds": median, "q1": q1, "q3": q3, "fastest": min(samples), "samples": len(samples)}

    def ratio(self, name: str, to: str) -> tuple[float, float, float]:
        """How many times longer `name` takes than `to`: the median over the rounds and its 95 % interval.

        The interval is the distribution-free one between two order statistics.
        """
        a, b = self.seconds[name], self.seconds[to]
        if len(a) != len(b):  # one was given up: no rounds in common, so no interval either
            ratio = float(np.median(a) / np.median(b))
            return ratio, math.nan, math.nan
        ratios = np.array(a) / np.array(b)
        test: Any = stats.quantile_test(ratios, q=float(np.median(ratios)), p=0.5)
        interval = test.confidence_interval(0.95)
        return float(np.median(ratios)), float(interval.low), float(interval.high)


BRIEF, LONG = 0.005, 0.05  # seconds


def _cores_lost() -> int:
    """How often threads of this process had to leave a core, though they had work to do."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def measure(
    contestants: Mapping[str, Repeated | SelfTimed],
    effort: Effort,
    *,
    threads: int,
    rivals: Collection[str] = (),
    keep: Collection[str] = (),
) -> Samples:
    """Time contestants against each other.

    Those in `keep` take part in all rounds, however slow; the others as long as they are not hopeless against the
    fastest of the `rivals`, by default of all.
    """
    settle = effort.settle if threads > 1 else 0.0
    repetitions: dict[str, int] = {}
    first: dict[str, list[float]] = {}
    random = np.random.default_rng(0)

    brief: dict[str, bool] = {}  # a long call neither finds its data in a cache nor minds waking its threads
    disturbed: list[bool] = []

    def sample(name: str, times: int) -> float:
        for _ in range(effort.retakes + 1):
            if settle:
                time.sleep(settle)
            if brief[name]:
                contestants[name].warm()
            before = _cores_lost()
            seconds = contestants[name].sample(times)
            lost = _cores_lost() != before
            if not lost:
                break
            if not brief[name]:  # so long that it is bound to happen
                break
        disturbed.append(lost)
        return seconds

    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in contestants:
            once = contestants[name].sample(1)
            if once < LONG:
                once = min(once, contestants[name].sample(1), contestants[name].sample(1))
            brief[name] = once < BRIEF
            repetitions[name] = max(1, min(1_000_000, round(effort.sample_seconds / max(once, 1e-9))))
            again = effort.first if once < LONG else 0  # a long call is judged by its only sample
            first[name] = [sample(name, repetitions[name]) for _ in range(again)] or [once]
        best = min(min(first[name]) for name in rivals or contestants)
        running = [name for name in first if name in keep or min(first[name]) <= effort.hopeless * best]
        a_round = sum(min(first[name]) * (repetitions[name] + brief[name]) + settle for name in running)
        rounds = max(effort.fewest, min(effort.most, int(effort.seconds / a_round)))
        seconds: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(rounds):
            for index in random.permutation(len(running)):
                seconds[running[index]].append(sample(running[index], repetitions[running[index]]))
    finally:
        if collecting:
            gc.enable()
    given_up = {name: first[name] for name in contestants if name not in seconds}
    return Samples({**seconds, **given_up}, rounds, sum(disturbed) / len(disturbed))
