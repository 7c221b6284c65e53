"""Intervals: they hold the truth as often as they say, also where iterations hang together."""

from __future__ import annotations

import numpy as np
import pytest

from mpi_runner.intervals import block_length, interval, resampled_means


def correlated(rng: np.random.Generator, iterations: int) -> np.ndarray:
    """Times around 1 with a slow part that lasts some iterations."""
    noise = rng.exponential(0.3, size=iterations + 4)
    return 0.7 + np.convolve(noise, np.ones(5) / 5, "valid")


def test_intervals_cover_the_mean() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(120):
        times = correlated(rng, 400)
        found = interval(float(times.mean()), resampled_means([times.tolist()]))
        assert found.low < found.value < found.high
        covered += found.low <= 1.0 <= found.high
    # 95 % of 120 is 114, and 40 blocks of 10 fall a little short. Drawing single iterations would cover 62 %, 74 of
    # 120: a mean of five neighbours has √5 times the error that independent times would have.
    assert 100 <= covered <= 120


def test_runs_vary_too() -> None:
    rng = np.random.default_rng(12)
    runs = [(level + 0.01 * rng.standard_normal(200)).tolist() for level in (1.0, 1.2, 1.4)]
    together = interval(1.2, resampled_means(runs))
    assert together.high - together.low > 0.2
    alone = interval(1.0, resampled_means(runs[:1]))
    assert alone.high - alone.low < 0.01


def test_contestants_under_the_same_seeds_are_drawn_in_pairs() -> None:
    rng = np.random.default_rng(13)
    times = [rng.exponential(size=100) for _ in range(3)]
    ratio = resampled_means([(2 * t).tolist() for t in times]) / resampled_means([t.tolist() for t in times])
    np.testing.assert_allclose(ratio, 2.0)


@pytest.mark.parametrize(("iterations", "block"), [(1, 1), (9, 1), (25, 2), (100, 10), (5000, 10)])
def test_blocks_are_ten_at_least_where_there_are_iterations_for_it(iterations: int, block: int) -> None:
    assert block_length(iterations) == block
    assert np.allclose(resampled_means([[3.0] * iterations]), 3.0)
