"""Work in parts: what every message is, that what slow workers have done counts, and in which order parts are done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scheme_table import gradients, plain_sum, promised_sets, same_bits, scale

from fastgc import parts, schemes

LENGTH = 31

MADE = [
    lambda: schemes.grouped(8, 4, 2),
    lambda: schemes.cyclic_repetition(6, 2),
    lambda: schemes.polynomial_gaussian(6, 2, 2),
    lambda: schemes.grouped(7, 4, 2, uneven=True),
]


@pytest.mark.parametrize("make", MADE, ids=[make().name for make in MADE])
@pytest.mark.parametrize("count", [2, 3])
def test_a_part_is_coded_as_the_whole_is(make: Callable[[], Any], count: int) -> None:
    whole = make()
    scheme = whole.in_parts(count)
    assert scheme.workers == whole.workers * count
    assert scheme.partitions == whole.partitions * count
    assert (scheme.load, scheme.stragglers, scheme.reduction) == (whole.load, whole.stragglers, whole.reduction)
    slices = gradients(scheme.partitions, LENGTH, np.float64, seed=1)
    for worker, held in enumerate(whole.assignment):
        for part in range(count):
            number = worker * count + part
            assert scheme.assignment[number] == tuple(j * count + part for j in held)
            own = slices[[j * count + part for j in held]]
            assert same_bits(scheme.encode(number, own), whole.encode(worker, own))


def test_the_sum_is_that_of_the_parts_each_from_its_own_survivors() -> None:
    whole = schemes.grouped(6, 3, 2)
    scheme = whole.in_parts(2)
    slices = gradients(scheme.partitions, LENGTH, np.float64, seed=2)
    sent = scheme.encode_all(slices)
    rng = np.random.default_rng(3)
    sets = promised_sets(whole)
    for _ in range(50):
        first, second = (sets[i] for i in rng.integers(len(sets), size=2))
        messages = {worker * 2: sent[worker * 2] for worker in first}
        messages |= {worker * 2 + 1: sent[worker * 2 + 1] for worker in second}
        found = scheme.decode(messages, LENGTH)
        assert np.abs(found - plain_sum(slices)).max() <= scheme.error_bound(messages, np.float64) * scale(slices)
        separate = [
            whole.decode({w: sent[w * 2 + part] for w in chosen}, LENGTH) for part, chosen in enumerate((first, second))
        ]
        assert found == pytest.approx(separate[0] + separate[1], rel=1e-12, abs=1e-12 * scale(slices))


def test_workers_that_never_finish_count() -> None:
    """Each of four workers has done half of its work: two of four would be needed, and none is through."""
    whole = schemes.grouped(4, 4, 2)
    scheme = whole.in_parts(4)
    done = [worker * 4 + part for worker in range(4) for part in whole.part_order(worker, 4)[:2]]
    assert scheme.is_decodable(done)
    assert not scheme.is_decodable(done[:-1])


def test_one_part_is_the_scheme_itself() -> None:
    scheme = schemes.cyclic_mds(5, 2)
    assert scheme.in_parts(1) is scheme


def test_what_may_be_ignored_of_each_part_adds_up() -> None:
    scheme = schemes.ignore_stragglers(5, 2).in_parts(3)
    assert (scheme.workers, scheme.stragglers, scheme.exact) == (15, 6, False)


@pytest.mark.parametrize("workers", range(1, 13))
def test_workers_together_do_all_parts_as_early_as_can_be(workers: int) -> None:
    for count in range(1, 17):
        orders = np.array([parts.order(position, workers, count) for position in range(workers)])
        assert (np.sort(orders, axis=1) == np.arange(count)).all()
        for steps in range(1, count + 1):
            times = np.bincount(orders[:, :steps].ravel(), minlength=count)
            assert times.min() == steps * workers // count, (workers, count, steps)


def test_two_workers_meet() -> None:
    assert [schemes.grouped(2, 2, 1).part_order(worker, 4) for worker in (0, 1)] == [(0, 1, 2, 3), (3, 2, 1, 0)]


def test_positions_count_in_the_group() -> None:
    scheme = schemes.grouped(8, 4, 2)
    assert [scheme.part_order(worker, 4) for worker in range(4)] == [scheme.part_order(w, 4) for w in range(4, 8)]


BAD: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda s: s.in_parts(0), ValueError, "count must be an integer of at least 1, not 0"),
    (lambda s: s.in_parts(1.5), TypeError, "count must be an integer of at least 1, not 1.5"),
    (lambda s: s.part_order(4, 2), ValueError, "worker must be .*not 4"),
    (lambda s: s.part_order(0, 0), ValueError, "count must be .*not 0"),
]


@pytest.mark.parametrize(("call", "kind", "pattern"), BAD)
def test_bad_input(call: Callable[[Any], Any], kind: type[Exception], pattern: str) -> None:
    with pytest.raises(kind, match=pattern):
        call(schemes.grouped(4, 2, 1))
