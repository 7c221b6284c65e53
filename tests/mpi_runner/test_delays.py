"""Delays: specifications, and draws that depend on (seed, worker, iteration) alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpi_runner import delays

PINNED = {
    (0, 0, 0): 0.7698132801148031,
    (1, 0, 0): 0.9093882589165577,
    (0, 1, 0): 0.12254324881343892,
    (0, 0, 1): 0.11915560527358193,
    (1, 7, 59): 0.21969509317855562,
    (18446744073709551615, 23, 100000): 0.7860712247106924,
}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", delays.NoDelay()),
        ("fixed:0.5:2", delays.Fixed(0.5, 2)),
        ("fixed:0:0", delays.Fixed(0.0, 0)),
        ("fixed:1e-3:12", delays.Fixed(0.001, 12)),
        ("exponential:0.02", delays.Exponential(0.02)),
        ("exponential:0.02:0.01", delays.Exponential(0.02, 0.01)),
        ("exponential:-0.0", delays.Exponential(0.0)),
    ],
)
def test_parse_and_back(spec: str, expected: delays.Delay) -> None:
    assert delays.parse(spec) == expected
    assert delays.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "None",
        "none:",
        "pareto:1",
        "fixed",
        "fixed:1",
        "fixed:1:2:3",
        "fixed:-1:2",
        "fixed:nan:2",
        "fixed:inf:2",
        "fixed:1:2.0",
        "fixed:1:-2",
        "fixed:1:",
        "fixed:1:²",
        "exponential",
        "exponential:",
        "exponential:-1",
        "exponential:nan",
        "exponential:1:inf",
        "exponential:1:2:3",
        "exponential:x",
    ],
)
def test_bad_specification_says_what_and_what_is_allowed(spec: str) -> None:
    with pytest.raises(ValueError, match="is not one of none") as caught:
        delays.parse(spec)
    message = str(caught.value)
    assert repr(spec) in message
    assert "fixed:SECONDS:COUNT" in message
    assert "exponential:MEAN[:SHIFT]" in message
    assert "\n" not in message


def test_draws_are_pinned() -> None:
    """The stream is part of the format: recorded runs are replayed with it."""
    drawn = [delays.unit_draw(seed, worker, iteration) for seed, worker, iteration in PINNED]
    assert drawn == list(PINNED.values())


def test_draws_are_uniform_and_distinct() -> None:
    draws = np.array([delays.unit_draw(7, worker, iteration) for worker in range(40) for iteration in range(100)])
    assert len(set(draws)) == draws.size
    assert draws.min() > 0
    assert draws.max() < 1
    # Kolmogorov-Smirnov by hand: 1.95/√N is exceeded with probability 0.001.
    distance = np.abs(np.sort(draws) - (np.arange(draws.size) + 0.5) / draws.size).max()
    assert distance < 1.95 / math.sqrt(draws.size)


@pytest.mark.parametrize(("seed", "worker", "iteration"), [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_draws_refuse_what_is_out_of_range(seed: int, worker: int, iteration: int) -> None:
    with pytest.raises(ValueError, match=r"must be between 0 and 2\*\*64 - 1"):
        delays.unit_draw(seed, worker, iteration)


def test_none() -> None:
    delay = delays.parse("none")
    delay.check(1)
    assert delay.seconds(1, 0, 0, 4, 8) == 0


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_fixed_delays_the_smallest_draws(count: int) -> None:
    delay = delays.parse(f"fixed:0.25:{count}")
    workers = 8
    delay.check(workers)
    chosen = set()
    for iteration in range(20):
        slow = {worker for worker in range(workers) if delay.seconds(3, worker, iteration, 4, workers) > 0}
        order = sorted(range(workers), key=lambda worker: delays.unit_draw(3, worker, iteration))
        assert slow == set(order[:count])
        assert all(delay.seconds(3, worker, iteration, 1, workers) == 0.25 for worker in slow)
        chosen.add(frozenset(slow))
    assert len(chosen) > 1 or count in (0, workers)


def test_fixed_needs_that_many_workers() -> None:
    with pytest.raises(ValueError, match=r"fixed:1.0:5: 5 delayed workers asked for, there are 4"):
        delays.parse("fixed:1:5").check(4)


def test_exponential_scales_one_draw_with_the_load() -> None:
    delay = delays.parse("exponential:0.02:0.01")
    for worker in range(5):
        unit = -math.log(delays.unit_draw(11, worker, 2))
        for load in (1, 2, 6):
            assert delay.seconds(11, worker, 2, load, 5) == pytest.approx(load * (0.01 + 0.02 * unit), rel=1e-15)


def test_exponential_mean() -> None:
    delay = delays.parse("exponential:0.5")
    seconds = [delay.seconds(5, worker, iteration, 1, 20) for worker in range(20) for iteration in range(200)]
    # The mean of N exponentials has standard deviation mean/√N: four of them.
    assert np.mean(seconds) == pytest.approx(0.5, rel=4 / math.sqrt(len(seconds)))
