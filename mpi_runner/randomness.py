"""Random choices that are a function of what they are for: no state, no history.

Everything is drawn from Philox, a counter-based generator, at a key and a counter made of the seed, the purpose, and
where there are such the iteration and the partition. So all holders of a partition choose the same, whatever iterations
they skipped, and so does a run that was resumed. Only raw output is used: it is the same in all versions of NumPy;
the streams of distributions and permutations may change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpi_runner.models import Partition

# Second words of Philox keys, the first being the seed: streams of different purposes have nothing in common.
_ORDER = 0x6F72646572
_BATCH = 0x6261746368
_MODEL = 0x6D6F64656C
_SPLIT = (2013, 0x73706C6974)
"""The whole key: the split is the same for every run."""


def shuffled(count: int, key: tuple[int, int]) -> NDArray[np.intp]:
    """Return a permutation that depends on nothing but its arguments: the ranks of Philox's raw output."""
    return np.argsort(_draws(count, key), kind="stable")


def _draws(count: int, key: tuple[int, int]) -> NDArray[np.uint64]:
    return np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(count)


def _smallest(draws: NDArray[np.uint64], count: int) -> NDArray[np.intp]:
    """Return where the `count` ≥ 1 smallest draws are, in order, so that rows are read forwards; a tenth of a sort's
    time."""
    # Two equal draws of 64 bits would make one too many.
    return np.flatnonzero(draws <= np.partition(draws, count - 1)[count - 1])[:count]


def random_split(total: int, test: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the sorted training rows and the sorted test rows, the same for every seed."""
    train = _smallest(_draws(total, _SPLIT), total - test)
    tested = np.ones(total, bool)
    tested[train] = False
    return train, np.flatnonzero(tested)


def training_order(rows: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """Return the training rows in the seed's order: the first so many are those of a smaller set."""
    return rows[shuffled(len(rows), (seed, _ORDER))]


def share(total: int, part: int, parts: int) -> range:
    """Return the numbers that are the share of one of nearly equal parts of ``range(total)``."""
    return range(part * total // parts, (part + 1) * total // parts)


class Sampler:
    """What a partition's holders differentiate in an iteration: some of its examples, and the seed of other choices.

    Parameters
    ----------
    seed : int
        The run's, 0 ≤ seed < 2⁶⁴.
    partitions : int
        Into how many the data are cut.
    batch : int
        Examples of all partitions together in an iteration, drawn without replacement in each partition in nearly equal
        numbers; 0 for all examples.
    """

    def __init__(self, seed: int, partitions: int, batch: int = 0) -> None:
        if batch and batch < partitions:
            raise ValueError(f"batch must be 0 or at least {partitions}, one example a partition, got {batch}")
        self._seeds = _Stream(seed, _MODEL)
        self._batches = _Stream(seed, _BATCH)
        self._partitions = partitions
        self._batch = batch

    def draw(self, whole: Partition, number: int, iteration: int) -> Partition:
        """Return what partition `number`, all of which is given, has in an iteration; of fewer examples than it should
        have, all."""
        seed = int(self._seeds.at(iteration, number, 1)[0]) >> 1
        size = len(share(self._batch, number, self._partitions))
        if size == 0 or size >= whole.count:
            return Partition(whole.inputs, whole.labels, seed)
        draws = self._batches.at(iteration, number, whole.count)
        rows = _smallest(draws, size)
        return Partition(whole.inputs[rows], whole.labels[rows], seed)


class _Stream:
    """Philox's raw output at any place of the stream of a seed and a purpose.

    One generator is moved from place to place: to make one takes four times as long, or ten where the caches are cold.
    """

    def __init__(self, seed: int, purpose: int) -> None:
        self._philox = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64))
        self._counter = 0

    def at(self, iteration: int, partition: int, count: int) -> NDArray[np.uint64]:
        """Return `count` draws for a partition in an iteration."""
        # Words 1 and 2 of the counter hold the coordinates; word 0 the generator counts up, by one for 4 draws.
        place = iteration << 64 | partition << 128
        self._philox.advance((place - self._counter) % 2**256)
        self._counter = place + -(-count // 4)
        return self._philox.random_raw(count)
