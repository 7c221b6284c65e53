"""Random choices depend on what they are for, and on nothing else; batches are what they claim to be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mpi_runner.models import Partition
from mpi_runner.randomness import Sampler, share, shuffled

ROWS = 50
PINNED = (7, 12, 15, 17, 20, 22, 28, 29, 36, 37)
PINNED_SEED = 1314971403116969752
WHOLE = Partition(np.arange(ROWS), np.arange(ROWS))


def chosen(seed: int, iteration: int, number: int, batch: int = 40) -> tuple[int, ...]:
    return tuple(Sampler(seed, 4, batch).draw(WHOLE, number, iteration).inputs.tolist())


def test_draws_are_the_same_whatever_was_drawn_before() -> None:
    steady, late = Sampler(3, 4, 40), Sampler(3, 4, 40)
    drawn = [[steady.draw(WHOLE, number, iteration) for number in range(4)] for iteration in range(12)]
    for iteration, number in ((11, 2), (0, 0), (7, 3), (7, 1)):  # skipping, backwards, in another order
        again = late.draw(WHOLE, number, iteration)
        np.testing.assert_array_equal(again.inputs, drawn[iteration][number].inputs)
        assert again.seed == drawn[iteration][number].seed


def test_draws_differ_between_seeds_iterations_and_partitions() -> None:
    coordinates = list(itertools.product(range(3), range(3), range(3)))
    assert len({chosen(*at) for at in coordinates}) == len(coordinates)
    seeds = {Sampler(seed, 4).draw(WHOLE, number, iteration).seed for seed, iteration, number in coordinates}
    assert len(seeds) == len(coordinates)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_are_pinned() -> None:
    """A resumed run draws what the interrupted one drew: with other versions of the libraries too."""
    assert chosen(5, 2, 1) == PINNED
    assert Sampler(5, 4).draw(WHOLE, 1, 2).seed == PINNED_SEED


@pytest.mark.parametrize("batch", [4, 5, 11, 40, 199, 200, 10**6])
def test_batches_have_their_size_and_no_example_twice(batch: int) -> None:
    sampler = Sampler(1, 4, batch)
    for iteration in range(5):
        parts = [sampler.draw(WHOLE, number, iteration) for number in range(4)]
        assert sum(part.count for part in parts) == min(batch, 4 * ROWS)
        assert max(part.count for part in parts) - min(part.count for part in parts) <= 1
        for part in parts:
            assert len(set(part.inputs.tolist())) == part.count
            np.testing.assert_array_equal(part.inputs, part.labels)


def test_every_example_is_drawn_equally_often() -> None:
    draws = 4000
    counts = np.zeros(ROWS)
    for iteration in range(draws):
        counts[list(chosen(9, iteration, 0))] += 1
    # Each is drawn with probability 1/5: binomial, and 6 standard deviations leave 50 counts one chance in 10⁷.
    assert np.abs(counts - draws / 5).max() < 6 * np.sqrt(draws * 0.2 * 0.8)


def test_no_batch_is_everything() -> None:
    part = Sampler(0, 4).draw(WHOLE, 3, 17)
    assert part.inputs is WHOLE.inputs
    assert part.count == ROWS


def test_a_batch_with_less_than_one_example_a_partition_is_refused() -> None:
    with pytest.raises(ValueError, match="batch must be 0 or at least 4, one example a partition, got 3"):
        Sampler(0, 4, 3)


@pytest.mark.parametrize(("total", "parts"), [(0, 3), (1, 3), (7, 3), (9, 3), (100, 7)])
def test_shares_cut_the_whole(total: int, parts: int) -> None:
    shares = [share(total, part, parts) for part in range(parts)]
    assert [number for part in shares for number in part] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shuffled_is_a_permutation() -> None:
    order = shuffled(1000, (3, 4))
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != shuffled(1000, (3, 5)).tolist()
