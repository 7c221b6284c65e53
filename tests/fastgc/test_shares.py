"""Shares of the work by speed: whole, least in time, and what schemes make of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import inf
from typing import Any

import numpy as np
import pytest
from scheme_table import larger_sets, promised_sets

from fastgc import codes, schemes, shares

SPEEDS = [[1.0] * 6, [1.0, 1.0, 2.0, 2.0, 4.0, 4.0], [0.3, 1.7, 1.1, 2.9, 0.9, 1.3], [1.0, 1.0, 1.0, 1.0, 1.0, 50.0]]


def slowest(given: Any, speeds: list[float]) -> float:
    return max(share / speed for share, speed in zip(given, speeds, strict=True))


@pytest.mark.parametrize("speeds", [[1.0, 1.0, 1.0], [1.0, 2.0, 4.0], [0.4, 3.1, 1.7], [1.0, 1.0, 30.0]])
def test_no_other_shares_are_done_sooner(speeds: list[float]) -> None:
    for most in (2, 4, 6):
        for total in range(3, 3 * most + 1):
            given = shares.apportioned(speeds, total, most)
            assert sum(given) == total
            assert min(given) >= 1
            assert max(given) <= most
            others = (slowest(s, speeds) for s in product(range(1, most + 1), repeat=3) if sum(s) == total)
            assert slowest(given, speeds) == min(others, default=inf)


def test_what_cannot_be_shared_is_refused() -> None:
    for total, most in ((2, 5), (7, 2)):
        with pytest.raises(ValueError, match=f"total must be from 3 to {3 * most}, not {total}"):
            shares.apportioned([1.0, 1.0, 1.0], total, most)


@pytest.mark.parametrize("speeds", SPEEDS)
@pytest.mark.parametrize(("stragglers", "reduction"), [(0, 1), (1, 1), (2, 1), (1, 2), (2, 3), (5, 1)])
def test_partitions_lie_on_as_many_workers_as_they_must(speeds: list[float], stragglers: int, reduction: int) -> None:
    scheme = schemes.heterogeneous(6, stragglers, reduction, speeds=speeds)
    copies = stragglers + reduction
    counts = np.bincount([j for held in scheme.assignment for j in held], minlength=scheme.partitions)
    assert (counts == copies).all()
    assert (scheme.workers, scheme.stragglers, scheme.reduction) == (6, stragglers, reduction)
    # Rounding costs a third at most of those whose share is free: not one partition, the least, and not all of them.
    loads = [len(held) for held in scheme.assignment]
    free = [i for i, load in enumerate(loads) if 1 < load < scheme.partitions]
    if free:
        whole = sum(loads[i] for i in free) / sum(speeds[i] for i in free)
        assert slowest([loads[i] for i in free], [speeds[i] for i in free]) <= 1.34 * whole


def test_equal_speeds_need_no_more_partitions_than_workers() -> None:
    scheme = schemes.heterogeneous(8, 2)
    assert scheme.partitions == 8
    assert {len(held) for held in scheme.assignment} == {3}
    assert schemes.grouped(8, 4, 2, speeds=[3] * 8).assignment == schemes.grouped(8, 4, 2).assignment


def test_proportional_speeds_are_met_exactly() -> None:
    scheme = schemes.heterogeneous(8, 1, speeds=range(1, 9), partitions=18)
    assert [len(held) for held in scheme.assignment] == list(range(1, 9))


def test_groups_are_of_workers_alike_and_share_by_the_slowest() -> None:
    speeds = [4, 1, 3, 1, 3, 1, 4, 1]
    scheme = schemes.grouped(8, 4, 2, speeds=speeds, partitions=8)
    assert [group.workers for group in scheme.groups] == [(1, 3, 5, 7), (0, 2, 4, 6)]
    assert [scheme.assignment[worker] for worker in (1, 0)] == [(0, 1), tuple(range(2, 8))]
    assert (scheme.load, scheme.stragglers, scheme.partitions) == (6, 2, 8)
    generator = codes.optimized(4, 2).generator
    for position, worker in enumerate((0, 2, 4, 6)):
        assert np.array_equal(scheme.coefficients(worker), np.tile(generator[position], (6, 1)))


def test_uneven_groups_take_speeds() -> None:
    scheme = schemes.grouped(7, 4, 2, uneven=True, speeds=[1, 1, 1, 2, 2, 2, 2])
    assert [group.workers for group in scheme.groups] == [(0, 1, 2, 3), (4, 5, 6)]
    assert scheme.partitions == sum(len(scheme.assignment[group.workers[0]]) for group in scheme.groups)


@pytest.mark.parametrize("workers", [4, 8, 12, 16])
def test_the_code_is_well_conditioned(workers: int) -> None:
    """Gaussian numbers in the place of the optimised ones amplify hundreds of times at 8 workers, and more beyond."""
    scheme = schemes.heterogeneous(workers, 2, 2, speeds=range(1, workers + 1))
    assert max(scheme.amplification(s) for s in promised_sets(scheme, 300)) < 8 * workers
    assert max(scheme.amplification(s) for s in larger_sets(scheme, 20)) < 8 * workers


def test_names_say_the_speeds() -> None:
    assert (
        schemes.heterogeneous(3, 1, speeds=[1, 2.5, 1 / 3]).name == "heterogeneous(3, 1, 1, seed=0, speeds=1:2.5:0.333)"
    )
    assert schemes.grouped(16, 4, 2, speeds=range(1, 17)).name.endswith("speeds=1:…:16)")


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: schemes.heterogeneous(3, 1, speeds=[1, 2]),
        ValueError,
        r"speeds must be 3 numbers, .*not of shape \(2,\)",
    ),
    (lambda: schemes.heterogeneous(3, 1, speeds=[1, 2, 0]), ValueError, "speeds must be positive and finite, not 0"),
    (
        lambda: schemes.heterogeneous(3, 1, speeds=[1, 2, inf]),
        ValueError,
        "speeds must be positive and finite, not inf",
    ),
    (lambda: schemes.heterogeneous(3, 1, speeds=["a", "b", "c"]), TypeError, "speeds must be real numbers"),
    (lambda: schemes.heterogeneous(3, 3), ValueError, "stragglers must be .*at most 2, not 3"),
    (lambda: schemes.heterogeneous(3, 1, 3), ValueError, "reduction must be .*at most 2, not 3"),
    (lambda: schemes.heterogeneous(8, 1, partitions=3), ValueError, "partitions must be .*at least 4, not 3"),
    (lambda: schemes.grouped(8, 4, 2, partitions=9), ValueError, "partitions must be left out without speeds"),
    (
        lambda: schemes.grouped(8, 4, 2, speeds=[1] * 8, partitions=1),
        ValueError,
        "partitions must be .*at least 2, not 1",
    ),
    (lambda: schemes.grouped(8, 4, 2, speeds=[1] * 7), ValueError, "speeds must be 8 numbers"),
]


@pytest.mark.parametrize(("call", "kind", "pattern"), BAD)
def test_bad_input(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    with pytest.raises(kind, match=pattern):
        call()
