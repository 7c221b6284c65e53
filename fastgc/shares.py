"""Shares of the work for workers of different speed: how many partitions each is given."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fastgc import _checks

MOST_PARTITIONS = 4
"""Times the workers: the most partitions that are tried. More cost a call of the model each, and gain little."""
NEARLY = 1.01
"""Fewer partitions are taken where they cost no more than this in time."""


def checked(speeds: npt.ArrayLike, workers: int) -> list[float]:
    """Relative speeds, positive and finite, one a worker."""
    found = _checks.real_numbers("speeds", speeds)
    if found.shape != (workers,):
        raise ValueError(f"speeds must be {workers} numbers, one a worker, not of shape {found.shape}")
    if not (np.isfinite(found).all() and (found > 0).all()):
        bad = found[~(np.isfinite(found) & (found > 0))][0]
        raise ValueError(f"speeds must be positive and finite, not {bad:g}")
    return [float(speed) for speed in found]


def described(speeds: Sequence[float]) -> str:
    """Speeds as part of a name, all of them where they are few."""
    said = [f"{speed:.3g}" for speed in speeds]
    return ":".join(said if len(said) <= 12 else [min(said, key=float), "…", max(said, key=float)])


def apportioned(speeds: Sequence[float], total: int, most: int) -> list[int]:
    """Whole shares that sum to `total`, each from 1 to `most`, so that the largest ``share / speed`` is least.

    One after the other is given to who will be through with it first: no other shares have a smaller maximum.

    Raises
    ------
    ValueError
        There is nothing for some, or too little room for all.
    """
    if not len(speeds) <= total <= most * len(speeds):
        raise ValueError(f"total must be from {len(speeds)} to {most * len(speeds)}, not {total}")
    given = [1] * len(speeds)
    queue = [(2 / speed, i) for i, speed in enumerate(speeds) if most > 1]
    heapq.heapify(queue)
    for _ in range(total - len(speeds)):
        _, i = queue[0]
        given[i] += 1
        if given[i] < most:
            heapq.heapreplace(queue, ((given[i] + 1) / speeds[i], i))
        else:
            heapq.heappop(queue)
    return given


def chosen_partitions(speeds: Sequence[float], copies: int, workers: int) -> int:
    """Into how many partitions the data are cut, each held by `copies` of those that have these speeds.

    The fewest, from `workers` to `MOST_PARTITIONS` times as many, with which rounding costs next to nothing more.
    """
    counts = range(workers, MOST_PARTITIONS * workers + 1)
    times = [_time(speeds, count * copies, count) / count for count in counts]
    return next(count for count, time in zip(counts, times, strict=True) if time <= NEARLY * min(times))


def _time(speeds: Sequence[float], total: int, most: int) -> float:
    return max(share / speed for share, speed in zip(apportioned(speeds, total, most), speeds, strict=True))


def arcs(shares: Sequence[int], partitions: int) -> Iterator[tuple[int, ...]]:
    """The partitions of each worker: arcs of a circle, each beginning where the one before ends.

    Where the shares sum to r times the partitions, every partition is in exactly r of them, by different workers as
    long as no share is above the number of partitions (Wang et al. 2019).
    """
    start = 0
    for share in shares:
        yield tuple(sorted((start + step) % partitions for step in range(share)))
        start += share
