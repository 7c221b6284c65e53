"""A cluster in numbers, for tests of the choice of the reduction: workers, links and the rules of the protocol.

Written apart from the replay in `mpi_runner.adaptive`, and with what that leaves out: models and messages share the
master's link, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import GradientCode
from mpi_runner.adaptive import Answer, ReductionPolicy, Switch

Array = npt.NDArray[Any]
HEADER, LENGTH, ITEM = 100, 250_000, 4
LATENCY, TAIL = 2e-4, 2e-3  # seconds

Rate = float | Callable[[int], float]
"""Bytes a second, in every iteration or by its number."""


class Trained(NamedTuple):
    """What a run gave."""

    seconds: Array
    reductions: Array
    switches: list[Switch]


@dataclass
class ClusterModel:
    """A cluster.

    Attributes
    ----------
    scheme : GradientCode
    own : ndarray, shape (iterations, workers)
        Seconds of each worker for its whole work.
    up, down : float or callable
        Of each worker's link.
    head : float
        Of the master's, each way.
    dead : dict
        The iteration from which each worker that dies is dead.
    """

    scheme: GradientCode
    own: Array
    up: Rate
    down: Rate
    head: float = inf
    dead: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes = {m: HEADER + ITEM * -(-LENGTH // m) for m in self.scheme.reductions}
        self.model = HEADER + ITEM * LENGTH

    def policy(self, spare: int = 0) -> ReductionPolicy:
        """A policy that knows nothing yet."""
        return ReductionPolicy(self.scheme, self.sizes, self.model, spare)

    def run(self, how: int | ReductionPolicy, first: int = 0, last: int | None = None) -> Trained:
        """Train under a fixed reduction or a policy."""
        policy = how if isinstance(how, ReductionPolicy) else None
        workers, load = self.scheme.workers, self.scheme.load
        clock, free = 0.0, [0.0] * workers
        behind: list[Answer] = []
        seconds, reductions, switches = [], [], []
        for t in range(first, len(self.own) if last is None else last):
            alive = [w for w in range(workers) if t < self.dead.get(w, len(self.own))]
            if policy is not None:
                switches += filter(None, [policy.limit(alive)])
                policy.begin(t)
                m = policy.reduction
                switches += filter(None, [policy.choose(alive)])
            else:
                assert isinstance(how, int)
                m = how
            up, down = (rate(t) if callable(rate) else rate for rate in (self.up, self.down))
            begin = {w: max(clock, free[w]) for w in alive}
            there: dict[int, float] = {}
            sent = 0.0
            for w in sorted(alive, key=lambda w: begin[w]):
                sent = max(sent, begin[w]) + self.model / self.head
                there[w] = max(sent, begin[w] + self.model / down) + LATENCY
            computed = {w: there[w] + float(self.own[t, w]) for w in alive}
            answered: dict[int, float] = {}
            received = 0.0
            for w in sorted(alive, key=lambda w: computed[w]):
                received = max(received, computed[w]) + self.sizes[m] / self.head
                answered[w] = max(received, computed[w] + self.sizes[m] / up) + LATENCY
            groups = [[answered[w] for w in group.workers if w in answered] for group in self.scheme.groups]
            ready = max(sorted(times)[m - 1] for times in groups)
            end = ready + TAIL
            for w in alive:
                share = float(self.own[t, w]) / load
                done, spent = answered[w], float(self.own[t, w])
                if done > ready and computed[w] > end:
                    if begin[w] > end:  # busy with an earlier model all the time
                        free[w] = begin[w]
                        continue
                    spent = share * ceil(max(end - there[w], 0.0) / share) if share else 0.0
                    done = there[w] + spent + LATENCY
                free[w] = end if answered[w] <= ready else done
                complete = answered[w] <= ready or computed[w] <= end
                behind.append(Answer(t, w, m, begin[w], done, spent, complete))
            if policy is not None:
                for answer in sorted((a for a in behind if a.arrived <= end), key=lambda answer: answer.arrived):
                    policy.note(answer)
                policy.conclude(end - clock, TAIL)
            behind = [answer for answer in behind if answer.arrived > end]
            seconds.append(end - clock)
            reductions.append(m)
            clock = end
        return Trained(np.array(seconds), np.array(reductions), switches)


def exponential(iterations: int, workers: int, load: int, mean: float, shift: float, seed: int = 0) -> Array:
    """Own times under the runner's delay ``exponential:MEAN:SHIFT``."""
    return load * (shift + mean * np.random.default_rng(seed).exponential(size=(iterations, workers)))


def pareto(iterations: int, workers: int, load: int, scale: float, shape: float, seed: int = 0) -> Array:
    """Own times under the runner's delay ``pareto:SCALE:SHAPE``."""
    return load * scale * np.random.default_rng(seed).random((iterations, workers)) ** (-1 / shape)


def away(iterations: int, workers: int, base: float, seconds: float, count: int, seed: int = 0) -> Array:
    """Own times where so many workers, others in each iteration, take longer by so many seconds."""
    slow = np.random.default_rng(seed).random((iterations, workers)).argsort(axis=1) < count
    return base + seconds * slow
