"""Injected delays: how long a worker sleeps in an iteration, the same unit draws for every scheme.

A delay is written as a short string:

=============================  =====================================================================
``none``                       nobody sleeps
``fixed:SECONDS:COUNT``        in each iteration the COUNT workers with the smallest draws sleep SECONDS
``exponential:MEAN[:SHIFT]``   load × (SHIFT + MEAN·e) seconds, e a unit exponential draw
=============================  =====================================================================

A new kind is a frozen dataclass with `seconds`, `check` and ``__str__``, and one entry in `_FORMS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

__all__ = ["Delay", "Exponential", "Fixed", "NoDelay", "parse", "unit_draw"]

# Second word of the Philox key: keeps these draws apart from every other use of the same seed.
_STREAM = 0x64656C6179  # "delay"


class Delay(Protocol):
    """What `parse` returns."""

    whole: ClassVar[bool]
    """Served at one go before the first partition, like a machine that is away; else in equal shares after each
    partition, like slow computing, so that a worker may find its work stale in between."""

    def seconds(self, seed: int, worker: int, iteration: int, load: int, workers: int) -> float:
        """Return how long `worker` sleeps in `iteration`.

        Parameters
        ----------
        seed : int
            Of the run, 0 ≤ seed < 2⁶⁴.
        worker, iteration : int
            Zero-based.
        load : int
            Partitions the worker differentiates in an iteration.
        workers : int
            Number of workers of the run.

        Returns
        -------
        float
            Seconds, ≥ 0.
        """

    def check(self, workers: int) -> None:
        """Raise ValueError where this delay makes no sense for `workers` workers."""


def unit_draw(seed: int, worker: int, iteration: int) -> float:
    """Return the uniform draw of a worker in an iteration, strictly inside (0, 1).

    Depends on its three arguments alone. Philox's raw output is converted here and not by a NumPy
    distribution, whose streams may change between NumPy versions.
    """
    for name, value in (("seed", seed), ("worker", worker), ("iteration", iteration)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} must be between 0 and 2**64 - 1, got {value}")
    # Words 1 and 2 of the counter hold the coordinates: word 0 is the one that the generator counts up.
    counter = np.array([0, worker, iteration, 0], dtype=np.uint64)
    bits = np.random.Philox(key=np.array([seed, _STREAM], dtype=np.uint64), counter=counter).random_raw()
    # 52 bits, not 53: a half added to a 53-bit integer can round up to 2**53, and a draw of 1 is outside.
    return ((int(bits) >> 12) + 0.5) * 2.0**-52


@dataclass(frozen=True)
class NoDelay:
    """Nobody sleeps."""

    whole: ClassVar[bool] = False

    def __str__(self) -> str:
        return "none"

    def seconds(self, seed: int, worker: int, iteration: int, load: int, workers: int) -> float:
        """Return 0."""
        return 0.0

    def check(self, workers: int) -> None:
        """Accept any number of workers."""


@dataclass(frozen=True)
class Fixed:
    """In each iteration the `count` workers with the smallest draws sleep `duration` seconds, whatever their load."""

    whole: ClassVar[bool] = True

    duration: float
    count: int

    def __str__(self) -> str:
        return f"fixed:{self.duration!r}:{self.count}"

    def seconds(self, seed: int, worker: int, iteration: int, load: int, workers: int) -> float:
        """Return `duration` for the stragglers of this iteration, 0 for the others."""
        self.check(workers)
        if not 0 <= worker < workers:
            raise ValueError(f"worker must be between 0 and {workers - 1}, got {worker}")
        own = (unit_draw(seed, worker, iteration), worker)
        earlier = sum((unit_draw(seed, other, iteration), other) < own for other in range(workers))
        return self.duration if earlier < self.count else 0.0

    def check(self, workers: int) -> None:
        """Raise ValueError if there are fewer than `count` workers."""
        if self.count > workers:
            raise ValueError(f"delay {self}: {self.count} delayed workers asked for, there are {workers}")


@dataclass(frozen=True)
class Exponential:
    """load × (shift + mean·e) seconds: a shifted exponential time a partition, one draw a worker and iteration."""

    whole: ClassVar[bool] = False

    mean: float
    shift: float = 0.0

    def __str__(self) -> str:
        return f"exponential:{self.mean!r}" + (f":{self.shift!r}" if self.shift else "")

    def seconds(self, seed: int, worker: int, iteration: int, load: int, workers: int) -> float:
        """Return the seconds for `load` partitions."""
        return load * (self.shift - self.mean * math.log(unit_draw(seed, worker, iteration)))

    def check(self, workers: int) -> None:
        """Accept any number of workers."""


def _duration(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(text)
    return abs(value)  # -0.0 would print as a negative number


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


_Form = tuple[tuple[Callable[[str], float], ...], int, Callable[..., Delay], str]

# name: converters of its fields, how many of them are required, constructor, how it is written
_FORMS: dict[str, _Form] = {
    "none": ((), 0, NoDelay, "none"),
    "fixed": ((_duration, _count), 2, Fixed, "fixed:SECONDS:COUNT"),
    "exponential": ((_duration, _duration), 1, Exponential, "exponential:MEAN[:SHIFT]"),
}


def parse(spec: str) -> Delay:
    """Return the delay written as `spec`; ``str`` of the result parses to an equal delay.

    Raises
    ------
    ValueError
        One line with what was given and the allowed forms: unknown name, too few or too many fields, a
        duration that is negative or not finite, a count that is not a plain non-negative integer.
    """
    name, *fields = spec.split(":")
    try:
        converters, required, kind, _ = _FORMS[name]
        if not required <= len(fields) <= len(converters):
            raise ValueError(spec)
        return kind(*(convert(field) for convert, field in zip(converters, fields, strict=False)))
    except (KeyError, ValueError):
        forms = " | ".join(form for *_, form in _FORMS.values())
        raise ValueError(f"delay {spec!r} is not one of {forms} (durations in seconds, finite and >= 0)") from None
