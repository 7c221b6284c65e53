"""Injected delays: how long a worker sleeps in an iteration, the same unit draws for every scheme.

A delay is written as a short string, COMPUTING or COMPUTING+send:SENDING. Conditions that change are such strings one
after the other: ``exponential:0.01@200:exponential:0.05`` is slower from iteration 200 on, counted from 1. Both parts
have these forms:

====================================  ==============================================================================
``none``                              nobody sleeps
``fixed:SECONDS:COUNT``               in each iteration the COUNT workers with the smallest draws are away for SECONDS
``slow:SECONDS:WORKER,...``           the workers named are slower by SECONDS, in every iteration
``exponential:MEAN[:SHIFT]``          SHIFT + MEAN·e, e a unit exponential draw
``pareto:SCALE:SHAPE``                SCALE·u^(−1/SHAPE), u a uniform draw: a heavy tail above SCALE
``uneven:MEAN:SHIFT:SPEED,SPEED,…``   (SHIFT + MEAN·e) / SPEED, one speed a worker: machines of different kinds
``markov:SECONDS:ENTER:LEAVE``        bursts: slow by SECONDS while a chain is in its slow state, which it enters with
                                      probability ENTER an iteration and leaves with LEAVE
``replay:DIR``                        what the run in that directory recorded, `mpi_runner.replay`
====================================  ==============================================================================

What is drawn is the time of a unit of work. Of computing that is 1/n of the data for n workers, a partition under most
schemes: a worker sleeps load times as long, a share after each partition. Of sending it is a message as long as the
gradient: a message 1/m as long takes 1/m of the time, between computing and sending. A fixed delay alone is served
whole, whatever the work.

A new kind is a frozen dataclass with `unit`, `check` and ``__str__``, and one entry in `_FORMS`.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Protocol

import numpy as np

from mpi_runner.replay import ReplayError, Trace

__all__ = [
    "Delay", "Exponential", "Fixed", "Markov", "NoDelay", "Pareto", "Replay", "Slow", "Stream", "Uneven",
    "own_speed", "parse", "unit_draw",
]  # fmt: skip

SPEED = "FASTGC_SPEED"
"""Environment variable: the relative speed of this host, which an emulated cluster sets."""


class Stream:
    """Second word of the Philox key: keeps draws apart from each other and from every other use of the same seed."""

    COMPUTING = 0x64656C6179  # "delay"
    SENDING = 0x73656E64  # "send"
    START = 1 << 48  # added: what state a chain starts in


def unit_draw(seed: int, worker: int, iteration: int, stream: int = Stream.COMPUTING) -> float:
    """Return the uniform draw of a worker in an iteration, strictly inside (0, 1).

    Depends on its arguments alone. Philox's raw output is converted here and not by a NumPy distribution, whose
    streams may change between NumPy versions.
    """
    for name, value in (("seed", seed), ("worker", worker), ("iteration", iteration)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} must be between 0 and 2**64 - 1, got {value}")
    # Words 1 and 2 of the counter hold the coordinates: word 0 is the one that the generator counts up.
    counter = np.array([0, worker, iteration, 0], dtype=np.uint64)
    bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=counter).random_raw()
    # 52 bits, not 53: a half added to a 53-bit integer can round up to 2**53, and a draw of 1 is outside.
    return ((int(bits) >> 12) + 0.5) * 2.0**-52


class Kind(Protocol):
    """One part of a delay, of computing or of sending."""

    whole: ClassVar[bool]
    """Served at one go, whatever the work, like a machine that is away; else in proportion to the work, and a worker
    may find its work stale in between."""

    def unit(self, seed: int, worker: int, iteration: int, workers: int, stream: int) -> float:
        """Return the seconds of a unit of work, or of the whole where it is served whole.

        Parameters
        ----------
        seed : int
            Of the run, 0 ≤ seed < 2⁶⁴.
        worker, iteration : int
            Zero-based.
        workers : int
            Number of workers of the run.
        stream : int
            `Stream.COMPUTING` or `Stream.SENDING`.

        Returns
        -------
        float
            Seconds, ≥ 0. They do not depend on the scheme.
        """

    def check(self, workers: int) -> None:
        """Raise ValueError where this makes no sense for `workers` workers."""


@dataclass(frozen=True)
class NoDelay:
    """Nobody sleeps."""

    whole: ClassVar[bool] = False

    def __str__(self) -> str:
        return "none"

    def unit(self, seed: int, worker: int, iteration: int, workers: int, stream: int) -> float:
        """Return 0."""
        return 0.0

    def check(self, workers: int) -> None:
        """Accept any number of workers."""


@dataclass(frozen=True)
class Fixed:
    """In each iteration the `count` workers with the smallest draws sleep `duration` seconds, whatever their work."""

    whole: ClassVar[bool] = True

    duration: float
    count: int

    def __str__(self) -> str:
        return f"fixed:{self.duration!r}:{self.count}"

    def unit(self, seed: int, worker: int, iteration: int, workers: int, stream: int) -> float:
        """Return `duration` for the stragglers of this iteration, 0 for the others."""
        self.check(workers)
        if not 0 <= worker < workers:
            raise ValueError(f"worker must be between 0 and {workers - 1}, got {worker}")
        own = (unit_draw(seed, worker, iteration, stream), worker)
        earlier = sum((unit_draw(seed, other, iteration, stream), other) < own for other in range(workers))
        return self.duration if earlier < self.count else 0.0

    def check(self, workers: int) -> None:
        """Raise ValueError if there are fewer than `count` workers."""
        if self.count > workers:
            raise ValueError(f"delay {self}: {self.count} delayed workers asked for, there are {workers}")


@dataclass(frozen=True)
class Slow:
    """The same workers are slower by `duration` in every iteration."""

    whole: ClassVar[bool] = False

    duration: float
    slow: tuple[int, ...]

    def __str__(self) -> str:
        return f"slow:{self.duration!r}:{','.join(map(str, self.slow))}"

    def unit(self, seed: int, worker: int, iteration: int, workers: int, stream: int) -> float:
        """Return `duration` for the slow workers, 0 for the others."""
        return self.duration if worker in self.slow else 0.0

    def check(self, workers: int) -> None:
        """Raise ValueError if a worker named is not there."""
        if self.slow[-1] >= workers:
            raise ValueError(f"delay {self}: there is no worker {self.slow[-1]} among {workers}, counted from 0")


@dataclass(frozen=True)
class Exponential:
    """shift + mean·e: a shifted exponential time."""

    whole: ClassVar[bool] = False

    mean: float
    shift: float = 0.0

    def __str__(self) -> str:
        return f"exponential:{self.mean!r}" + (f":{self.shift!r}" if self.shift else "")

    def unit(self, seed: int, worker: int, iteration: int, workers: int, stream: int) -> float:
        """Return the seconds of a unit of work."""
        return self.shift - self.mean * math.log(unit_draw(seed, worker, iteration, stream))

    def check(self, workers: int) -> None:
        """Accept any number of workers."""


@dataclass(frozen=True)
class Uneven:
    """(shift + mean·e) / speed, with a speed for each worker: machines that differ, and straggle beside."""

    whole: ClassVar[bool] = False

    mean: float
    shift: float
    speeds: tuple[float, ...]

    def __str__(self) -> str:
        return f"uneven:{self.mean!r}:{self.shift!r}:{','.join(map(repr, self.speeds))}"

    def unit(self, seed: int, worker: int, iteration: int, workers: int, stream: int) -> float:
        """Return the seconds of a unit of work."""
        return Exponential(self.mean, self.shift).unit(seed, worker, iteration, workers, stream) / self.speeds[worker]

    def check(self, workers: int) -> None:
        """Raise ValueError unless there is one speed a worker."""
        if len(self.speeds) != workers:
            raise ValueError(f"delay {self}: {len(self.speeds)} speeds for {workers} workers")


@dataclass(frozen=True)
class Pareto:
    """scale·u^(−1/shape): at least `scale`, and longer than t with probability (scale/t)^shape."""

    whole: ClassVar[bool] = False

    scale: float
    shape: float

    def __str__(self) -> str:
        return f"pareto:{self.scale!r}:{self.shape!r}"

    def unit(self, seed: int, worker: int, iteration: int, workers: int, stream: int) -> float:
        """Return the seconds of a unit of work."""
        return self.scale * math.pow(unit_draw(seed, worker, iteration, stream), -1.0 / self.shape)

    def check(self, workers: int) -> None:
        """Accept any number of workers."""


@dataclass(frozen=True)
class Markov:
    """Bursts: `duration` while a chain of two states is slow. It enters that state with probability `enter` an
    iteration, leaves it with `leave`, and starts in it as often as it is in it.

    The state in an iteration is a function of the draws up to it, so it is the same however many iterations a worker
    has skipped. Most draws say what the state is whatever it was before: these are looked for backwards, over about
    1 / (enter + leave) draws.
    """

    whole: ClassVar[bool] = False

    duration: float
    enter: float
    leave: float

    def __str__(self) -> str:
        return f"markov:{self.duration!r}:{self.enter!r}:{self.leave!r}"

    def unit(self, seed: int, worker: int, iteration: int, workers: int, stream: int) -> float:
        """Return `duration` while the worker is slow, 0 otherwise."""
        return self.duration if self.slow(seed, worker, iteration, stream) else 0.0

    def slow(self, seed: int, worker: int, iteration: int, stream: int = Stream.COMPUTING) -> bool:
        """Whether the chain of a worker is in its slow state in an iteration."""
        # With the draw u of an iteration the chain is slow after it if it was fast and u < enter, or if it was slow and
        # u < 1 - leave. So u below both says slow, above both fast; between them it keeps the state, or turns it.
        low, high = sorted((self.enter, 1.0 - self.leave))
        turns = 0
        for earlier in range(iteration, 0, -1):
            u = unit_draw(seed, worker, earlier, stream)
            if u < low or u >= high:
                return (u < low) ^ bool(turns % 2)
            turns += self.enter > 1.0 - self.leave
        start = unit_draw(seed, worker, 0, stream + Stream.START)
        return (start < self.enter / (self.enter + self.leave)) ^ bool(turns % 2)

    def check(self, workers: int) -> None:
        """Accept any number of workers."""


@dataclass(frozen=True)
class Replay:
    """What the run in a directory recorded: see `mpi_runner.replay.Trace`."""

    whole: ClassVar[bool] = False

    folder: str

    def __str__(self) -> str:
        return f"replay:{self.folder}"

    def unit(self, seed: int, worker: int, iteration: int, workers: int, stream: int) -> float:
        """Return the recorded seconds of a unit of work."""
        trace = _trace(self.folder)
        return trace.sending(worker, iteration) if stream == Stream.SENDING else trace.computing(worker, iteration)

    def check(self, workers: int) -> None:
        """Raise ValueError if the run cannot be read, or had fewer workers."""
        try:
            recorded = _trace(self.folder).workers
        except ReplayError as error:
            raise ValueError(f"delay {self}: {error}") from None
        if recorded < workers:
            raise ValueError(f"delay {self}: {workers} workers asked for, the run had {recorded}")


@functools.lru_cache(maxsize=2)
def _trace(folder: str) -> Trace:
    return Trace.read(folder)


@dataclass(frozen=True)
class Delay:
    """What `parse` returns: a delay of computing and one of sending."""

    computing: Kind
    sending: Kind = NoDelay()
    later: tuple[tuple[int, Delay], ...] = ()
    """Other delays, each from an iteration on, counted from 1 and increasing."""

    def __str__(self) -> str:
        sending = "" if self.sending == NoDelay() else f"+send:{self.sending}"
        return f"{self.computing}{sending}" + "".join(f"@{first}:{delay}" for first, delay in self.later)

    def check(self, workers: int) -> None:
        """Raise ValueError where this delay makes no sense for `workers` workers."""
        self.computing.check(workers)
        self.sending.check(workers)
        for _, delay in self.later:
            delay.check(workers)

    def at(self, iteration: int) -> Delay:
        """Return the delay of an iteration, counted from 0: one that does not change."""
        if not self.later:
            return self
        begun = [delay for first, delay in self.later if first <= iteration + 1]
        return begun[-1] if begun else Delay(self.computing, self.sending)

    def compute_seconds(self, seed: int, worker: int, iteration: int, load: float, workers: int) -> float:
        """Return how long `worker` sleeps over its `load` n-ths of the data in `iteration`, on a host of speed 1."""
        computing = self.at(iteration).computing
        unit = computing.unit(seed, worker, iteration, workers, Stream.COMPUTING)
        return unit if computing.whole else load * unit

    def send_seconds(self, seed: int, worker: int, iteration: int, share: float, workers: int) -> float:
        """Return how long `worker` sleeps before it sends a message `share` times as long as the gradient."""
        sending = self.at(iteration).sending
        unit = sending.unit(seed, worker, iteration, workers, Stream.SENDING)
        return unit if sending.whole else share * unit


def own_speed() -> float:
    """Return the relative speed of this host, 1 unless the environment says otherwise."""
    return float(os.environ.get(SPEED, "1"))


def _duration(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(text)
    return abs(value)  # -0.0 would print as a negative number


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def _workers(text: str) -> tuple[int, ...]:
    numbers = sorted(_count(part) for part in text.split(","))
    if len(set(numbers)) < len(numbers):
        raise ValueError(text)
    return tuple(numbers)


def _speeds(text: str) -> tuple[float, ...]:
    speeds = tuple(map(_duration, text.split(",")))
    if 0.0 in speeds:
        raise ValueError(text)
    return speeds


def _shape(text: str) -> float:
    value = _duration(text)
    if value <= 1:  # the mean would be infinite
        raise ValueError(text)
    return value


def _probability(text: str) -> float:
    value = _duration(text)
    if not 1e-4 <= value <= 1:  # below, finding the state would take tens of thousands of draws
        raise ValueError(text)
    return value


def _folder(text: str) -> str:
    if not text:
        raise ValueError(text)
    return os.path.abspath(text)


_Form = tuple[tuple[Callable[[str], object], ...], int, Callable[..., Kind], str]

# name: converters of its fields, how many of them are required, constructor, how it is written
_FORMS: dict[str, _Form] = {
    "none": ((), 0, NoDelay, "none"),
    "fixed": ((_duration, _count), 2, Fixed, "fixed:SECONDS:COUNT"),
    "slow": ((_duration, _workers), 2, Slow, "slow:SECONDS:WORKER,..."),
    "exponential": ((_duration, _duration), 1, Exponential, "exponential:MEAN[:SHIFT]"),
    "uneven": ((_duration, _duration, _speeds), 3, Uneven, "uneven:MEAN:SHIFT:SPEED,..."),
    "pareto": ((_duration, _shape), 2, Pareto, "pareto:SCALE:SHAPE"),
    "markov": ((_duration, _probability, _probability), 3, Markov, "markov:SECONDS:ENTER:LEAVE"),
    "replay": ((_folder,), 1, Replay, "replay:DIR"),
}
FORMS = " | ".join(form for *_, form in _FORMS.values())
"""All the forms of either part, for messages."""
_CHANGE = re.compile(r"@([0-9]{1,18}):")
_RULES = "durations in seconds, finite and >= 0; speeds > 0; shapes > 1; probabilities from 0.0001 to 1"


def parse(spec: str) -> Delay:
    """Return the delay written as `spec`; ``str`` of the result parses to an equal delay.

    Raises
    ------
    ValueError
        One line with what was given and the allowed forms: unknown name, too few or too many fields, a
        duration that is negative or not finite, a count that is not a plain non-negative integer; or changes that are
        not in the order of their iterations.
    """
    first, *rest = _CHANGE.split(spec)
    starts = [int(number) for number in rest[::2]]
    try:
        if any(two <= one for one, two in pairwise([1, *starts])):
            raise ValueError(spec)
        later = tuple(zip(starts, map(_steady, rest[1::2]), strict=True))
        return replace(_steady(first), later=later)
    except (KeyError, ValueError):
        raise ValueError(
            f"delay {spec!r} is not one of {FORMS}, or two of these as COMPUTING+send:SENDING ({_RULES}), or several "
            "as DELAY@ITERATION:DELAY, iterations above 1 and increasing"
        ) from None


def _steady(spec: str) -> Delay:
    computing, plus, sending = spec.partition("+send:")
    return Delay(_kind(computing), _kind(sending) if plus else NoDelay())


def _kind(spec: str) -> Kind:
    name, _, rest = spec.partition(":")
    converters, required, kind, _ = _FORMS[name]
    # The last field may have colons: a directory's name has any character.
    fields = rest.split(":", len(converters) - 1) if name == "replay" else spec.split(":")[1:]
    if not required <= len(fields) <= len(converters):
        raise ValueError(spec)
    return kind(*(convert(field) for convert, field in zip(converters, fields, strict=False)))
