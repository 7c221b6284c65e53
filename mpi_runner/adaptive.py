"""Which reduction is the fastest now: a policy that learns from when messages come, and what workers say they spent.

Who holds what stays as it is, so any reduction m may be used in any iteration (`fastgc.schemes.adaptive`). A larger m
makes messages shorter, and lets the master wait for more workers of every group. What an iteration would take under
each m is found by replaying the last ones: each worker's own seconds, as measured, and the way of model and message as
``a + b · bytes``. docs/adaptive.md derives it, and says when it errs.

Nothing here knows of MPI or of clocks: the same observations give the same choices.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import GradientCode

Array = npt.NDArray[Any]

WINDOW = 32
"""Iterations that are replayed."""
LEAST = 3
"""Iterations before the first prediction; the very first counts to none, since connections are made in it."""
MARGIN = 0.03
"""A switch must be predicted to save more than this share of an iteration, beyond its standard error."""
EVERY = 4
"""Iterations from one prediction to the next, while nothing is new."""
DWELL = 6
"""Iterations until the next switch, but where conditions change or workers are lost."""
PROBE = 3
"""Iterations under a reduction that is tried to learn what bytes cost."""
RECENT = 5
"""Iterations that show a change, and are all that is left of the window after it."""
SHIFT = 0.2
"""A change of less than this share is none."""
PRIOR = 0.01
"""Weight of the guess that model and message cost the same a byte, against 1 for what was measured last."""
BIAS = 0.15
"""Standard deviation that the replay's errors are taken to have, as a share, before any was seen."""
FORGET = 20
"""Predictions until an error that was seen counts for a third."""
GOLDEN = 0.6180339887498949
TINY = 1e-9  # seconds
STALE = 300
"""Iterations after which nothing is known any more of what bytes cost, if one reduction alone was used since."""


class Answer(NamedTuple):
    """A message that has come."""

    iteration: int
    worker: int
    reduction: int
    sent: float
    """When its model was sent; seconds by the master's clock, as all times here."""
    arrived: float
    own: float
    """What the worker says it spent: computing, encoding, injected delay."""
    complete: bool
    """Whether it did all its work, and did not abandon it."""


class Switch(NamedTuple):
    """Another reduction from an iteration on."""

    iteration: int
    """From 0."""
    before: int
    after: int
    predicted_before: float
    """Seconds of an iteration, NaN where nothing was predicted."""
    predicted_after: float
    reason: str


class Cost(NamedTuple):
    """The seconds of a message's way, the model's down included: ``fixed + a_byte · bytes``."""

    fixed: float
    a_byte: float


@dataclass
class _Row:
    """What is known of an iteration."""

    iteration: int
    reduction: int
    own: Array
    """Each worker's seconds for the work of this iteration, NaN where it had none."""
    censored: Array
    """Whether it took longer than that: it was told that the iteration was over."""
    seconds: float = np.nan
    tail: float = 0.0
    """From the last message that was needed to the end."""


class Replay:
    """What iterations take under each reduction, by the rules of the protocol.

    Every worker gets its model as soon as it owes nothing, spends its own seconds and sends. The iteration is over with
    the m-th message of the slowest group. Who has not finished computing abandons its work at the end of a partition,
    who is sending finishes that, and both begin the next model so much later.

    Parameters
    ----------
    groups : sequence of sequence of int
        Workers by group, those alone that are there.
    load : int
        Partitions of a worker.
    """

    WARM_UP = 4

    def __init__(self, groups: Sequence[Sequence[int]], load: int) -> None:
        self._groups = [np.array(group) for group in groups]
        self._load = load

    def seconds(self, own: Array, cost: Cost, sizes: Mapping[int, int], spare: int, tail: float) -> dict[int, Array]:
        """The seconds of each iteration, by reduction.

        Parameters
        ----------
        own : ndarray, shape (iterations, workers)
            Seconds for the whole work.
        cost : Cost
        sizes : mapping
            Bytes of a message by reduction.
        spare : int
            Workers waited for beyond the reduction, where a group has them.
        tail : float
            Seconds from the last message needed to the end.
        """
        reductions = list(sizes)
        way = np.array([cost.fixed + cost.a_byte * sizes[m] for m in reductions])[:, None]
        clock = np.zeros((len(reductions), 1))
        free = np.zeros((len(reductions), own.shape[1]))
        last = [  # of the messages that are waited for, counted from 0
            np.minimum(np.array(reductions)[:, None] + spare, len(group)) - 1 for group in self._groups
        ]
        found = []
        warm_up = min(self.WARM_UP, len(own))
        for row in np.concatenate([own[len(own) - warm_up :], own]):
            begin = np.maximum(clock, free)
            there = begin + cost.fixed  # the model, and what else no byte of the message is to blame for
            computed = there + row
            done = begin + way + row
            heard = [
                np.take_along_axis(np.sort(done[:, group], axis=1), needed, axis=1)
                for group, needed in zip(self._groups, last, strict=True)
            ]
            end = np.maximum.reduce(heard) + tail
            found.append((end - clock)[:, 0])
            share = np.maximum(row / self._load, TINY)
            partitions = np.ceil(np.maximum(end - there, 0.0) / share)
            abandoned = np.minimum(there + partitions * share, computed)
            free = np.where(done <= end, end, np.where(computed <= end, done, abandoned))
            clock = end
        times = np.array(found[warm_up:])
        return {m: times[:, i] for i, m in enumerate(reductions)}


def completed(own: Array, censored: Array) -> Array:
    """Put in the place of a time that is only known to be longer one that is known, and longer.

    Of the same worker's where there are any, then of anybody's; where none is longer, the tail is taken to be
    exponential, of the mean that the censored times make the likeliest. Longest first, so that a time that was put in
    can stand for shorter ones: the redistribution to the right behind the estimate of Kaplan and Meier (Efron 1967).

    Parameters
    ----------
    own : ndarray, shape (iterations, workers)
        NaN where a worker did no work for an iteration.
    censored : ndarray of bool, of the same shape

    Returns
    -------
    ndarray
        A copy without NaN; of zeros where nothing is known.
    """
    made = own.copy()
    known = np.isfinite(own) & ~censored
    there = np.isfinite(own)
    if not there.any():
        return np.zeros_like(own)
    shift = float(own[there].min())
    excess = float((own[there] - shift).sum()) / max(1, int(known.sum()))
    everybody = sorted(own[known].tolist())
    turn = 0
    for worker in range(own.shape[1]):
        unknown = np.flatnonzero(~known[:, worker])
        least = np.where(there[unknown, worker], own[unknown, worker], -inf)
        pool = sorted(own[known[:, worker], worker].tolist())
        for k in np.argsort(-least, kind="stable").tolist():
            bound = float(least[k])
            first, longer = bisect_right(pool, bound), pool
            if first == len(pool):
                first, longer = bisect_right(everybody, bound), everybody
            if first < len(longer):
                turn += 1  # spread evenly over those that are longer, whatever their number
                value = longer[first + int(turn * GOLDEN % 1.0 * (len(longer) - first))]
            else:
                value = max(bound, shift) + excess
            made[unknown[k], worker] = value
            insort(pool, value)
    return made


class _Ways:
    """What the ways of messages have taken: a running mean by reduction, and when it last was measured."""

    RATE = 0.25  # of an iteration's mean in the running one

    def __init__(self) -> None:
        self.mean: dict[int, float] = {}
        self.deviation: dict[int, float] = {}
        self.seen: dict[int, int] = {}
        self.unlike: list[float] = []

    def note(self, iteration: int, reduction: int, way: float) -> bool:
        """An iteration's mean; whether the last ones show that conditions have changed."""
        mean = self.mean.get(reduction)
        self.seen[reduction] = iteration
        if mean is None:
            self.mean[reduction], self.deviation[reduction] = way, 0.1 * way
            return False
        off = way - mean
        if abs(off) > max(SHIFT * mean, 4 * self.deviation[reduction]):
            self.unlike = [v for v in self.unlike if (v > mean) == (way > mean)] + [way]
            if len(self.unlike) < LEAST:
                return False
            way = float(np.median(self.unlike))
            self.mean, self.seen = {reduction: way}, {reduction: iteration}
            self.deviation = {reduction: 0.1 * way}
            self.unlike = []
            return True
        self.unlike = []
        self.mean[reduction] = mean + self.RATE * off
        self.deviation[reduction] += self.RATE * (abs(off) - self.deviation[reduction])
        return False


class ReductionPolicy:
    """Chooses the reduction of each iteration.

    Call `note` for every answer, `conclude` at the end of an iteration, and `choose` for the next one. `choose` may be
    called while workers compute: what comes later counts for the choice after.

    Parameters
    ----------
    scheme : GradientCode
        With several `reductions`.
    sizes : mapping
        Bytes of a message by reduction.
    model_bytes : int
    spare : int
        Workers waited for beyond the reduction, where a group has them.
    """

    def __init__(self, scheme: GradientCode, sizes: Mapping[int, int], model_bytes: int, spare: int = 0) -> None:
        self._groups = [group.workers for group in scheme.groups]
        self._load = scheme.load
        self._workers = scheme.workers
        self._sizes = dict(sizes)
        self._model_bytes = model_bytes
        self._spare = spare
        self._alive = set(range(scheme.workers))
        self._rows: deque[_Row] = deque(maxlen=WINDOW)
        self._ways = _Ways()
        self._own_way = np.zeros(scheme.workers)  # of each worker, beyond the mean of all
        self._heard: list[Answer] = []
        self._seconds: list[float] = []  # of the iterations under the present reduction
        self._since = 0  # iterations under it
        self._wait = LEAST  # so many before the next switch
        self._probe_gap = 4 * DWELL
        self._next_probe = 0
        self._home: int | None = None  # where a trial came from
        self._bias = dict.fromkeys(self._sizes, 0.0)  # logarithm of what the replay misses, by reduction
        self._left: tuple[int, Array] | None = None  # the reduction before the last switch, and what iterations took
        self._news = False
        self._skip_first = True
        self.reduction = self._limited(-(-max(self._sizes) // 2))
        """Of the iteration under way, or the next one."""

    # What is observed -------------------------------------------------------------------------------------------------

    def begin(self, iteration: int) -> None:
        """An iteration begins, under `reduction`."""
        if not self._rows or self._rows[-1].iteration != iteration:
            unknown = np.full(self._workers, np.nan)
            self._rows.append(_Row(iteration, self.reduction, unknown, np.zeros(self._workers, bool)))
        self._rows[-1].reduction = self.reduction
        self._heard.clear()

    def note(self, answer: Answer) -> None:
        """A worker has answered, for this iteration or an earlier one."""
        for row in reversed(self._rows):
            if row.iteration == answer.iteration:
                row.own[answer.worker] = max(answer.own, 0.0)
                row.censored[answer.worker] = not answer.complete
                break
        current = self._rows[-1]
        if answer.complete and (answer.iteration, answer.reduction) == (current.iteration, current.reduction):
            self._heard.append(answer)

    def conclude(self, seconds: float, tail: float) -> None:
        """The iteration is over, after so many seconds, `tail` of them since the last message it needed."""
        row = self._rows[-1]
        row.seconds, row.tail = seconds, tail
        if self._skip_first:  # connections were made in it
            self._rows.clear()
            self._skip_first = False
            return
        ways = np.array([max(answer.arrived - answer.sent - answer.own, 0.0) for answer in self._heard])
        if len(ways):
            mean = float(ways.mean())
            for answer, way in zip(self._heard, ways, strict=True):
                self._own_way[answer.worker] += 0.1 * (way - mean - self._own_way[answer.worker])
            if self._ways.note(row.iteration, row.reduction, mean):
                self._changed()
        if row.reduction != self.reduction:  # another one is chosen for the next already
            return
        self._since += 1
        self._seconds.append(seconds)
        if self._shifted():
            self._changed()

    def _shifted(self) -> bool:
        """Whether the last iterations took another time than those before (Welch's test, four standard errors)."""
        past = np.array(self._seconds[:-RECENT][-WINDOW:])
        if len(past) < 2 * RECENT:
            return False
        now = np.array(self._seconds[-RECENT:])
        error = sqrt(past.var(ddof=1) / len(past) + max(now.var(ddof=1), past.var(ddof=1)) / len(now))
        off = abs(float(now.mean() - past.mean()))
        return off > 4 * error and off > SHIFT * float(past.mean())

    def _changed(self) -> None:
        """Conditions are others now: what lies further back says nothing."""
        while len(self._rows) > RECENT:
            self._rows.popleft()
        del self._seconds[:-RECENT]
        self._news = True
        self._bias = dict.fromkeys(self._sizes, 0.0)
        self._left = None
        self._probe_gap, self._next_probe = 4 * DWELL, 0

    # What is chosen ---------------------------------------------------------------------------------------------------

    def most(self, alive: Collection[int]) -> int:
        """The largest reduction with these workers: the live ones of the smallest group, less those to spare."""
        smallest = min(len(set(group) & set(alive)) for group in self._groups)
        allowed = [m for m in self._sizes if m <= max(1, smallest - self._spare)]
        return max(allowed)

    def _limited(self, reduction: int) -> int:
        return min(reduction, self.most(self._alive))

    def limit(self, alive: Collection[int]) -> Switch | None:
        """Take a smaller `reduction` where these workers need it; returns the switch, if it is one."""
        return self.choose(alive) if self.reduction > self.most(alive) else None

    def choose(self, alive: Collection[int]) -> Switch | None:
        """Set `reduction` for the next iteration; returns the switch, if it is one."""
        lost = set(alive) != self._alive
        self._alive = set(alive)
        most = self.most(self._alive)
        if self.reduction > most:
            self._home = None
            return self._go(most, "too few workers are left in a group")
        if sum(np.isfinite(row.seconds) for row in self._rows) < LEAST or not self._ways.mean:
            return None
        due = self._since >= self._wait and (self._since - self._wait) % EVERY == 0
        if not (due or self._news or lost):
            return None
        self._news = False
        allowed = [m for m in self._sizes if m <= most]
        if len(allowed) == 1:
            return None
        cost, least, largest = self.costs()
        rows = [row for row in self._rows if np.isfinite(row.seconds)]
        own = completed(np.array([row.own for row in rows]), np.array([row.censored for row in rows])) + self._own_way
        tail = float(np.median([row.tail for row in rows]))
        self._learn(lambda pair: self._replayed(pair, own, cost, tail))
        times = self._predicted(allowed, own, cost, tail)
        best, saves = self._better(times, self._home or self.reduction)
        home, self._home = self._home, None
        if home is not None and home in allowed:
            target = best if saves else home
            if target == self.reduction:
                self._wait = DWELL
                return None
            return self._go(target, "as predicted" if saves else "back from a trial", times)
        if saves:
            return self._go(best, "as predicted", times)
        if self._since + 1 >= self._next_probe:
            for hypothesis in (largest, least):
                may = self._predicted(allowed, own, hypothesis, tail)
                best, saves = self._better(may, self.reduction)
                if saves:
                    self._next_probe, self._probe_gap = self._probe_gap, min(2 * self._probe_gap, STALE)
                    self._home = self.reduction
                    return self._go(best, "a trial, to learn what bytes cost", may, PROBE)
        return None

    def force(self, reduction: int, reason: str) -> Switch:
        """Take another reduction in the midst of an iteration, which is then begun anew."""
        self._home = None
        return self._go(reduction, reason)._replace(iteration=self._rows[-1].iteration)

    def _go(self, reduction: int, reason: str, times: Mapping[int, Array] | None = None, stay: int = DWELL) -> Switch:
        before, self.reduction = self.reduction, reduction
        predicted = {m: float(v.mean()) for m, v in (times or {}).items()}
        self._left = (before, np.array(self._seconds[-WINDOW:])) if len(self._seconds) >= LEAST else None
        self._since, self._wait = 0, stay
        self._seconds.clear()
        iteration = self._rows[-1].iteration + 1 if self._rows else 0
        nan = float("nan")
        return Switch(iteration, before, reduction, predicted.get(before, nan), predicted.get(reduction, nan), reason)

    def _learn(self, replayed: Callable[[Sequence[int]], dict[int, Array]]) -> None:
        """See what came of the last switch, beside a replay of both reductions by what is known now.

        The better it was measured, the more of the replay's error is taken to be lasting.
        """
        for m in self._bias:
            self._bias[m] *= 1 - 1 / FORGET
        if self._left is None or len(self._seconds) < LEAST:
            return
        (before, was), now, self._left = self._left, np.array(self._seconds), None
        if before == self.reduction:
            return
        replay = replayed([before, self.reduction])
        error = log(now.mean() / was.mean()) - log(replay[self.reduction].mean() / replay[before].mean())
        spread = max(now.std(ddof=1) / now.mean(), was.std(ddof=1) / was.mean())
        variance = spread**2 * (1 / len(now) + 1 / len(was))
        error -= self._bias[self.reduction] - self._bias[before]
        self._bias[self.reduction] += error * BIAS**2 / (BIAS**2 + variance)

    def _predicted(self, reductions: Sequence[int], own: Array, cost: Cost, tail: float) -> dict[int, Array]:
        """Seconds of the iterations in the window under each reduction, as a replay has them, and as these erred."""
        times = self._replayed(reductions, own, cost, tail)
        return {m: seconds * exp(self._bias[m]) for m, seconds in times.items()}

    def _replayed(self, reductions: Sequence[int], own: Array, cost: Cost, tail: float) -> dict[int, Array]:
        groups = [[w for w in group if w in self._alive] for group in self._groups]
        replay = Replay([group for group in groups if group], self._load)
        return replay.seconds(own, cost, {m: self._sizes[m] for m in reductions}, self._spare, tail)

    def _better(self, times: Mapping[int, Array], current: int) -> tuple[int, bool]:
        """The fastest reduction, and whether it saves more than the margin and its standard error."""
        means = {m: float(v.mean()) for m, v in times.items()}
        best = min(means, key=lambda m: means[m])
        if best == current or current not in times:
            return best, best != current
        saved = times[current] - times[best]
        error = float(saved.std(ddof=1)) / sqrt(len(saved)) if len(saved) > 1 else inf
        return best, float(saved.mean()) - error > MARGIN * means[current]

    def costs(self) -> tuple[Cost, Cost, Cost]:
        """What a message costs: the likeliest, and what is possible at the least and the most a byte.

        Through the means of the reductions used, older ones with less weight. Where only one was used there is no
        slope: then model and message are taken to cost the same a byte, which is what a slow link does.
        """
        now = max(self._ways.seen.values())
        own = max(self._ways.seen, key=lambda m: self._ways.seen[m])
        rows, wanted = [[PRIOR, -PRIOR * self._model_bytes]], [0.0]
        freshest = inf
        for m, mean in self._ways.mean.items():
            age = now - self._ways.seen[m]
            weight = 1.0 if m == own else 0.5 ** (age / (STALE / 3))
            rows.append([weight, weight * self._sizes[m]])
            wanted.append(weight * mean)
            if m != own:
                freshest = min(freshest, age)
        (_, a_byte), *_ = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)
        mean, size = self._ways.mean[own], self._sizes[own]
        most = mean / size
        a_byte = min(max(float(a_byte), 0.0), most)
        likely = Cost(mean - a_byte * size, a_byte)
        doubt = min(1.0, freshest / STALE)
        low, high = a_byte * (1 - doubt), a_byte + doubt * (most - a_byte)
        return likely, Cost(mean - low * size, low), Cost(mean - high * size, high)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Array]:
        """All that the next choices depend on, for a checkpoint."""
        rows, ways = list(self._rows), self._ways
        before, was = self._left or (0, np.zeros(0))
        return {
            "now": np.array([
                self.reduction, self._since, self._wait, self._probe_gap, self._next_probe, self._home or 0,
                self._skip_first, self._news, before,
            ]),
            "was": was,
            "unlike": np.array(ways.unlike),
            "rows": np.array([(row.iteration, row.reduction, row.seconds, row.tail) for row in rows]).reshape(-1, 4),
            "own": np.array([row.own for row in rows]).reshape(-1, self._workers),
            "censored": np.array([row.censored for row in rows], bool).reshape(-1, self._workers),
            "ways": np.array([(m, ways.mean[m], ways.deviation[m], ways.seen[m]) for m in ways.mean]).reshape(-1, 4),
            "own_way": self._own_way.copy(),
            "bias": np.array([self._bias[m] for m in self._sizes]),
            "seconds": np.array(self._seconds),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave."""
        now = [int(value) for value in state["now"]]
        self.reduction, self._since, self._wait, self._probe_gap, self._next_probe = now[:5]
        self._home, self._skip_first, self._news = now[5] or None, bool(now[6]), bool(now[7])
        self._left = (now[8], state["was"].copy()) if now[8] else None
        self._rows.clear()
        for (iteration, reduction, seconds, tail), own, censored in zip(
            state["rows"].tolist(), state["own"], state["censored"], strict=True
        ):
            self._rows.append(_Row(int(iteration), int(reduction), own.copy(), censored.copy(), seconds, tail))
        self._ways = _Ways()
        self._ways.unlike = state["unlike"].tolist()
        for m, mean, deviation, seen in state["ways"].tolist():
            self._ways.mean[int(m)], self._ways.deviation[int(m)], self._ways.seen[int(m)] = mean, deviation, int(seen)
        self._own_way = state["own_way"].copy()
        self._bias = dict(zip(self._sizes, state["bias"].tolist(), strict=True))
        self._seconds = state["seconds"].tolist()
