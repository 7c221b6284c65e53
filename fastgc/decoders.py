"""What a group of workers needs to be decoded: from the positions that answered to the weights on their messages."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from math import comb
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from fastgc import linalg
from fastgc.codes import LinearCode

Matrix = npt.NDArray[np.float64]
Positions = tuple[int, ...]

CHECKED_SETS = 2000
"""Promised survivor sets of a code that a constructor looks at; where there are more, a set is ranked when it comes."""


class Decoder(Protocol):
    """Decoding of one group; positions are sorted and count the group's workers from 0."""

    kind: ClassVar[str]
    workers: int
    reduction: int
    tolerated: int
    """Any so many positions may be missing."""

    def is_decodable(self, positions: Positions) -> bool: ...

    def batched_weights(self, patterns: list[Positions]) -> list[Matrix]:
        """The (reduction, len(positions)) weights of decodable sets; bits do not depend on what else is in the list."""

    def condition_number(self, positions: Positions) -> float | None:
        """Of a decodable set; None where it would depend on how the encoding matrix was factored."""


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
        self.tolerated = tolerated
        self.target = target
        self.workers = code.n
        self.reduction = code.k if target is None else len(target)
        self._all_checked = comb(self.workers, tolerated) <= CHECKED_SETS
        # Other sets are ranked once each: a master asks after every arrival. Bounded, a few MB at most.
        self._ranked = lru_cache(maxsize=16384)(self._spans_target)

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

    def is_decodable(self, positions: Positions) -> bool:
        """Whether the rows at `positions` span the target."""
        if self._all_checked and len(positions) >= self.workers - self.tolerated:
            return True
        if self.target is None and len(positions) < self.code.k:
            return False
        return self._ranked(positions)

    def _spans_target(self, positions: Positions) -> bool:
        rows = self.code.generator[list(positions)]
        if self.target is None:
            return bool(linalg.rank(rows) == self.code.k)
        return bool(linalg.spans(rows, self.target))

    def batched_weights(self, patterns: list[Positions]) -> list[Matrix]:
        """See `Decoder`."""
        if self.target is None:
            return self.code.batched_weights(patterns)
        return [linalg.solve_rows(self.code.generator[list(p)], self.target) for p in patterns]

    def condition_number(self, positions: Positions) -> float | None:
        """See `Decoder`."""
        return self.code.condition_number(positions) if self.target is None else None


class ScaledSum:
    """The survivors' plain sum times workers / survivors: an estimate, for ignoring stragglers."""

    kind: ClassVar[str] = "scaled-sum"
    reduction = 1

    def __init__(self, workers: int, tolerated: int) -> None:
        self.workers = workers
        self.tolerated = tolerated

    def is_decodable(self, positions: Positions) -> bool:
        """Whether anyone answered."""
        return len(positions) > 0

    def batched_weights(self, patterns: list[Positions]) -> list[Matrix]:
        """See `Decoder`."""
        return [np.full((1, len(p)), self.workers / len(p)) for p in patterns]

    def condition_number(self, positions: Positions) -> float | None:
        """See `Decoder`."""
        return 1.0
