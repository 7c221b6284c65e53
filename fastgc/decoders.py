"""What a group of workers needs to be decoded: from the positions that answered to the weights on their messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from itertools import combinations
from math import comb
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from fastgc import kernels, linalg
from fastgc.codes import LinearCode
from fastgc.errors import NotDecodableError

Matrix = npt.NDArray[np.float64]
Positions = tuple[int, ...]

CHECKED_SETS = 2000
"""Promised survivor sets of a code that a constructor looks at; where there are more, a set is ranked when it comes."""


def mask_of(positions: Iterable[int]) -> int:
    """Bit mask with a bit for every position."""
    mask = 0
    for position in positions:
        mask |= 1 << position
    return mask


def positions_of(mask: int) -> Positions:
    """The positions whose bit is set, in increasing order."""
    return tuple(kernels.positions(mask).tolist())


class Decoder(Protocol):
    """Decoding of one group; a mask has a bit for every position that answered, counting the group's workers from 0."""

    kind: ClassVar[str]
    workers: int
    reduction: int
    tolerated: int
    """Any so many positions may be missing."""

    def is_decodable(self, mask: int) -> bool: ...

    def surely_decodable(self, masks: Sequence[int]) -> bool:
        """Whether all of many sets are decodable, as far as is seen at once; where not, ask for each."""

    def batched_weights(self, masks: Sequence[int]) -> list[Matrix]:
        """The (reduction, positions) weights of decodable sets; bits do not depend on what else is in the list."""

    def condition_number(self, mask: int) -> float | None:
        """Of a decodable set; None where it would depend on how the encoding matrix was factored."""


def _by_size(masks: Sequence[int]) -> dict[int, list[int]]:
    """Masks by the number of their positions: sets of one size are solved as one batch."""
    found: dict[int, list[int]] = {}
    for mask in masks:
        found.setdefault(mask.bit_count(), []).append(mask)
    return found


class LinearDecoder:
    """Messages are ``generator @ X`` for unknown rows X, and ``target @ X`` is wanted.

    For the grouped framework X is the m blocks of the group's gradient and the target is the identity; any other linear
    scheme is brought to this form by factoring its encoding matrix (see `fastgc.gradient_code`).

    Parameters
    ----------
    code : LinearCode
        Its generator has shape (workers, k).
    tolerated : int
        Any so many positions may be missing.
    target : ndarray, shape (reduction, k), optional
        By default the identity.
    """

    kind: ClassVar[str] = "linear"

    def __init__(self, code: LinearCode, tolerated: int, target: Matrix | None = None) -> None:
        self.code = code
        self._generator, self._k = code.generator, code.k  # at hand where a microsecond counts
        self.tolerated = tolerated
        self.target = target
        self.workers = code.n
        self.reduction = code.k if target is None else len(target)
        self._solved = 0, np.empty((self.reduction, 0))  # the set ranked last, which is often the next to be solved
        self._all_checked = comb(self.workers, tolerated) <= CHECKED_SETS
        # The weights of one decodable set, read-only. Where all promised sets have been looked at, what is decodable
        # has an inverse, and there is nothing else to look for.
        self.solve: Callable[[int], Matrix] = self._solve
        if target is None and self._all_checked:
            self.solve = partial(kernels.pattern_weights, code.generator)
        # Other sets are ranked once each: a master asks after every arrival. Bounded, a few MB at most.
        self._ranked = lru_cache(maxsize=16384)(self._spans_target)

    @cached_property
    def _table(self) -> Matrix | None:
        """What makes weights of sets that few are missing from, where that takes less than from those that are there;
        as `few_missing_pays` of csrc/core.h."""
        if self.target is None or self.workers > 512 or 3 * (self.reduction + self.workers - self._k) > 2 * self._k:
            return None
        return kernels.few_missing_table(self._generator, self.target)

    def promised_sets(self) -> list[Positions]:
        """The sets of ``workers - tolerated`` positions that a constructor looks at: all up to `CHECKED_SETS`, else
        those with neighbours missing, where codes on ordered points are at their worst, and a fixed sample."""
        n, size = self.workers, self.workers - self.tolerated
        if self._all_checked:
            return list(combinations(range(n), size))
        sets = {tuple(sorted((first + i) % n for i in range(size))) for first in range(n)}
        generator = np.random.default_rng(0)
        sets |= {tuple(sorted(generator.permutation(n)[:size].tolist())) for _ in range(CHECKED_SETS - n)}
        return sorted(sets)

    def is_decodable(self, mask: int) -> bool:
        """Whether the rows at these positions span the target."""
        count = mask.bit_count()
        if self._all_checked and count >= self.workers - self.tolerated:
            return True
        if self.target is None and count < self.code.k:
            return False
        return self._ranked(mask)

    def _spans_target(self, mask: int) -> bool:
        if mask.bit_count() >= self._k:
            try:
                weights = kernels.pattern_weights(self._generator, mask, self.target, self._table)
            except (NotDecodableError, ValueError):
                pass  # below rank k; or of rank k, and the weights are beyond float64
            else:
                self._solved = mask, weights
                return True
        rows = kernels.positions(mask)
        if len(rows) >= self.code.k and kernels.full_rank(self.code.generator, rows[None])[0]:
            return True
        return self.target is not None and bool(linalg.spans(self.code.generator[rows], self.target))

    def surely_decodable(self, masks: Sequence[int]) -> bool:
        """See `Decoder`."""
        enough = self.workers - self.tolerated
        return all(
            (self._all_checked and size >= enough)
            or (size >= self.code.k and kernels.full_rank(self.code.generator, kernels.positions(same)).all())
            for size, same in _by_size(masks).items()
        )

    def batched_weights(self, masks: Sequence[int]) -> list[Matrix]:
        """See `Decoder`."""
        if len(masks) == 1:
            return [self._solve(masks[0])]
        found: dict[int, Matrix] = {}
        for same in _by_size(masks).values():
            found.update(zip(same, self._weights(kernels.positions(same)), strict=True))
        return [found[mask] for mask in masks]

    def _solve(self, mask: int) -> Matrix:
        ranked, weights = self._solved
        if mask == ranked:
            return weights
        if mask.bit_count() >= self._k:
            try:  # not suppress(), which takes half as long as to find the weights
                return kernels.pattern_weights(self._generator, mask, self.target, self._table)
            except NotDecodableError:
                pass  # whose rows these are, or that the target is spanned all the same, is said below
        weights = self._weights(kernels.positions(mask)).copy()  # not the whole of which it may be a part
        weights.setflags(write=False)
        return weights

    def _weights(self, rows: npt.NDArray[np.int64]) -> Matrix:
        """Of one pattern, or of each row of an array of patterns."""
        if self.target is None:
            return self.code.pattern_weights(rows)
        if rows.shape[-1] >= self.code.k:
            with suppress(NotDecodableError):  # below rank k, but the target is spanned
                return kernels.least_norm_weights(self.code.generator, rows, self.target, self._table)
        if rows.ndim == 1:
            return linalg.solve_rows(self.code.generator[rows], self.target)
        return np.stack([self._weights(row) for row in rows])  # each as if alone

    def condition_number(self, mask: int) -> float | None:
        """See `Decoder`."""
        return self.code.condition_number(positions_of(mask)) if self.target is None else None


class ScaledSum:
    """The survivors' plain sum times workers / survivors: an estimate, for ignoring stragglers."""

    kind: ClassVar[str] = "scaled-sum"
    reduction = 1

    def __init__(self, workers: int, tolerated: int) -> None:
        self.workers = workers
        self.tolerated = tolerated

    def is_decodable(self, mask: int) -> bool:
        """Whether anyone answered."""
        return mask != 0

    def surely_decodable(self, masks: Sequence[int]) -> bool:
        """See `Decoder`."""
        return all(masks)

    def batched_weights(self, masks: Sequence[int]) -> list[Matrix]:
        """See `Decoder`."""
        counts = [mask.bit_count() for mask in masks]
        return [np.full((1, count), self.workers / count) for count in counts]

    def condition_number(self, mask: int) -> float | None:
        """See `Decoder`."""
        return 1.0
