"""Confidence intervals of mean iteration times and of their ratios, by a bootstrap over runs and blocks of iterations.

Runs are drawn with replacement, and blocks of consecutive iterations within them: a straggler of one iteration is often
late in the next as well, so single iterations would make intervals too narrow (Künsch 1989). Contestants with as many
runs of as many iterations are drawn alike, since runs under the same seed met the same stragglers: their ratio is a
paired comparison.

With one run of each, an interval says how much iterations vary within it, and nothing of how runs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES, BLOCK, LEVEL = 4000, 10, 0.95

Array = npt.NDArray[Any]


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def block_length(iterations: int) -> int:
    """Iterations in a block: `BLOCK`, fewer where there would be fewer than ten blocks."""
    return max(1, min(BLOCK, iterations // 10))


def resampled_means(runs: Sequence[Sequence[float]], block: int | None = None) -> Array:
    """Resampled means of iteration times.

    Parameters
    ----------
    runs : sequence of sequence of float
        Iteration times of each run, not empty. As many of the first iterations of each are used as the shortest has
        in whole blocks.
    block : int, optional
        Iterations in a block, `block_length` by default.

    Returns
    -------
    ndarray
        `RESAMPLES` means; the same draws for the same number of runs and blocks.
    """
    shortest = min(map(len, runs))
    block = block or block_length(shortest)
    blocks, count = shortest // block, len(runs)
    means = np.array([np.reshape(run[: blocks * block], (blocks, block)).mean(axis=1) for run in runs])
    random = np.random.Generator(np.random.Philox(key=1))
    runs_drawn = random.integers(count, size=(RESAMPLES, count, 1))
    blocks_drawn = random.integers(blocks, size=(RESAMPLES, count, blocks))
    resampled: Array = means[runs_drawn, blocks_drawn].mean(axis=(1, 2))
    return resampled


def interval(value: float, resampled: Array) -> Interval:
    """The interval between the quantiles of resampled values."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
