"""Estimates of the sum from whoever has answered, and how far off they can be.

For survivors F every estimate is ``A @ B_F`` of the gradients, where B_F are the survivors' rows of the encoding matrix
(a row for each worker, a column for each block of each partition's gradient) and T, the identity once a partition, is
what is wanted. Its error is at most ``||A @ B_F - T||_2`` times the root of the sum of the gradients' squared norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import comb
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import linalg
from fastgc.decoders import Decoder, LinearDecoder, positions_of
from fastgc.patterns import Key, PatternCache

if TYPE_CHECKING:
    from fastgc.storage import SchemeData

Matrix = npt.NDArray[np.float64]

METHODS = ("optimal", "one_step", "unbiased")
MOST_SETS = 1 << 16
"""Survivor sets of a group that are looked at for the probability that it can be decoded."""


class EstimatingDecoder:
    """Messages are plain sums over some partitions, and the sum over all is estimated from any of them.

    Parameters
    ----------
    encoding : ndarray, shape (workers, partitions)
    tolerated : int
        So many workers may be ignored.
    method : {"optimal", "one_step", "unbiased"}
        How `GradientCode.decode` estimates, unless it is told.
    step : float
        The weight of every message in the one-step estimate from all workers: from r of them it is ``workers / r``
        times that.
    recovered : ndarray, shape (workers + 1,), optional
        The expected weight of each partition in the least-error estimate from so many random survivors, where it is the
        same for all partitions: `unbiased` divides by it.
    """

    kind: ClassVar[str] = "estimate"
    reduction = 1

    def __init__(
        self, encoding: Matrix, tolerated: int, method: str, step: float, recovered: Matrix | None = None
    ) -> None:
        self.encoding = encoding
        self.tolerated = tolerated
        self.method = method
        self.step = step
        self.recovered = recovered
        self.workers = len(encoding)

    def is_decodable(self, mask: int) -> bool:
        """Whether anyone answered."""
        return mask != 0

    def surely_decodable(self, masks: Sequence[int]) -> bool:
        """See `fastgc.decoders.Decoder`."""
        return all(masks)

    def batched_weights(self, masks: Sequence[int]) -> list[Matrix]:
        """See `fastgc.decoders.Decoder`."""
        return [self.estimate(mask, self.method) for mask in masks]

    def condition_number(self, mask: int) -> float | None:
        """See `fastgc.decoders.Decoder`."""
        return None

    def estimate(self, mask: int, method: str) -> Matrix:
        """The weights of a method, shape (1, positions)."""
        count = mask.bit_count()
        if method == "one_step":
            return np.full((1, count), self.step * self.workers / count)
        weights = linalg.nearest_rows(self.encoding[list(positions_of(mask))], np.ones((1, self.encoding.shape[1])))
        if method == "unbiased":
            assert self.recovered is not None  # the scheme's constructor has seen to it
            weights = weights / self.recovered[count]
        return weights


class Problem(NamedTuple):
    """What a group's survivors can come near to: ``A @ matrix[positions]`` to `target`, `copies` times side by side."""

    matrix: Matrix
    target: Matrix
    copies: int

    def batched_weights(self, masks: Sequence[int]) -> list[Matrix]:
        """The least-error weights of patterns; each has the bits that it has alone."""
        return [linalg.nearest_rows(self.matrix[list(positions_of(mask))], self.target) for mask in masks]

    def error(self, mask: int, weights: Matrix | None) -> Matrix:
        """``R @ R.T`` for the error R of an estimate of the group's part; without weights it is nought."""
        residual = -self.target
        if weights is not None:
            residual = weights @ self.matrix[list(positions_of(mask))] - self.target
        return self.copies * (residual @ residual.T)


def problem_of(data: SchemeData, group: int) -> Problem:
    """The problem of a group, from what its workers send."""
    members = data.groups[group]
    decoder = data.decoders[members.decoder]
    held = sorted({partition for worker in members.workers for partition in data.assignment[worker]})
    if isinstance(decoder, LinearDecoder) and decoder.target is None:
        return Problem(decoder.code.generator, np.eye(decoder.code.k), len(held))  # all send of one sum
    column = {partition: place for place, partition in enumerate(held)}
    whole = np.zeros((len(members.workers), len(held), data.reduction))
    for row, worker in enumerate(members.workers):
        whole[row, [column[p] for p in data.assignment[worker]]] = data.coefficients[worker]
    return Problem(whole.reshape(len(whole), -1), np.tile(np.eye(data.reduction), (1, len(held))), 1)


class Approximation:
    """The estimates of a scheme.

    Parameters
    ----------
    data : SchemeData
    exact : PatternCache
        Of the scheme's own weights: a group that can be decoded is, with the bits of `GradientCode.decode`.

    Attributes
    ----------
    patterns : PatternCache
        The least-error weights of the patterns met that cannot be decoded.
    """

    def __init__(self, data: SchemeData, exact: PatternCache) -> None:
        self._data = data
        self._exact = exact
        numbers: dict[tuple[int, int], int] = {}  # groups of equal load under one code without a target have one
        problems: list[Problem] = []
        self._number = []
        for number, group in enumerate(data.groups):
            decoder = data.decoders[group.decoder]
            shared = isinstance(decoder, LinearDecoder) and decoder.target is None
            kind = group.decoder, len(data.assignment[group.workers[0]])
            if not shared or kind not in numbers:
                numbers[kind] = len(problems)
                problems.append(problem_of(data, number))
            self._number.append(numbers[kind])
        self._problems = tuple(problems)
        self.patterns = PatternCache(self._problems, len(data.assignment), self._keys_of_sets)
        self._probability = lru_cache(maxsize=1024)(self._decoding_probability)

    def weights(self, masks: Sequence[int], method: str) -> list[Matrix | None]:
        """Each group's weights under a method of `METHODS`; None where the group adds nothing to the estimate.

        Raises
        ------
        ValueError
            An unknown method, or ``"unbiased"`` under a scheme and a number of survivors that it does not exist for.
        """
        if method not in METHODS:
            raise ValueError(f"approximate must be True, False or one of {', '.join(METHODS)}, not {method!r}")
        make = {"optimal": self._optimal, "one_step": self._one_step, "unbiased": self._unbiased}[method]
        count = sum(mask.bit_count() for mask in masks)
        return [make(group, mask, count) if mask else None for group, mask in enumerate(masks)]

    def error(self, masks: Sequence[int], weights: Sequence[Matrix | None]) -> float:
        """``||A @ B_F - T||_2`` of weights, one group's after the other; 0 where all are the scheme's exact ones."""
        total = np.zeros((self._data.reduction, self._data.reduction))
        for group, (mask, chosen) in enumerate(zip(masks, weights, strict=True)):
            own = self._own(group, mask)
            if chosen is None or own is None or not np.array_equal(chosen, own):
                total += self._problems[self._number[group]].error(mask, chosen)
        return float(np.sqrt(max(np.linalg.eigvalsh(total)[-1], 0.0)))

    def _decoder(self, group: int) -> Decoder:
        return self._data.decoders[self._data.groups[group].decoder]

    def _own(self, group: int, mask: int) -> Matrix | None:
        """The scheme's weights, where they give the group's sum."""
        if self._data.exact and self._decoder(group).is_decodable(mask):
            return self._exact.weights((self._data.groups[group].decoder, mask))
        return None

    def _optimal(self, group: int, mask: int, count: int) -> Matrix:
        own = self._own(group, mask)
        return self.patterns.weights((self._number[group], mask)) if own is None else own

    def _one_step(self, group: int, mask: int, count: int) -> Matrix:
        decoder = self._decoder(group)
        if isinstance(decoder, EstimatingDecoder):
            return decoder.estimate(mask, "one_step")
        whole = (1 << decoder.workers) - 1
        full = self._exact.weights((self._data.groups[group].decoder, whole))
        return full[:, list(positions_of(mask))] * (len(self._data.assignment) / count)

    def _unbiased(self, group: int, mask: int, count: int) -> Matrix | None:
        decoder = self._decoder(group)
        if isinstance(decoder, EstimatingDecoder):
            if decoder.recovered is None:
                raise ValueError(f"approximate must not be 'unbiased' under {self._data.name}: take 'one_step'")
            return decoder.estimate(mask, "unbiased")
        if not self._data.exact:  # the survivors' scaled sum is unbiased itself
            return self._exact.weights((self._data.groups[group].decoder, mask))
        probability = self._probability(group, count)
        if probability == 0:
            raise ValueError(
                f"approximate must not be 'unbiased' with {count} survivors under {self._data.name}: no such set "
                f"decodes workers {list(self._data.groups[group].workers)}; take 'one_step'"
            )
        own = self._own(group, mask)
        return own if own is None or probability == 1 else own / probability

    def _decoding_probability(self, group: int, count: int) -> float:
        """That a group can be decoded, where every set of `count` workers is equally likely to be the survivors."""
        decoder = self._decoder(group)
        size, others = decoder.workers, len(self._data.assignment) - decoder.workers
        fewest = decoder.reduction if isinstance(decoder, LinearDecoder) and decoder.target is None else 1
        asked = range(fewest, size - decoder.tolerated)  # of more, all are decodable, and of fewer none
        if sum(comb(size, answered) for answered in asked) > MOST_SETS:
            raise ValueError(
                f"approximate must not be 'unbiased' under {self._data.name}: the sets of workers that decode a group "
                f"are more than can be counted; take 'one_step'"
            )
        ways = 0
        for answered in range(fewest, size + 1):
            if answered in asked:
                sets = sum(decoder.is_decodable(mask) for mask in _masks(size, answered))
            else:
                sets = comb(size, answered)
            ways += sets * comb(others, count - answered) if count >= answered else 0
        return ways / comb(size + others, count)

    def _keys_of_sets(self, survivor_sets: Iterable[Iterable[int]]) -> Iterator[Key]:
        place = {w: (g, 1 << p) for g, group in enumerate(self._data.groups) for p, w in enumerate(group.workers)}
        for survivors in survivor_sets:
            masks = [0] * len(self._data.groups)
            for worker in survivors:
                group, bit = place[worker]
                masks[group] |= bit
            for group, mask in enumerate(masks):
                if mask and self._own(group, mask) is None:
                    yield self._number[group], mask


def _masks(size: int, answered: int) -> Iterator[int]:
    """All masks of `size` bits with so many set, in increasing order."""
    mask = (1 << answered) - 1
    while mask < 1 << size:
        yield mask
        low = mask & -mask
        above = mask + low  # the next number with as many bits set
        mask = above | ((mask ^ above) // low >> 2)
