"""The cache of decoding weights by survivor pattern."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fastgc import _checks
from fastgc.kernels._caches import MaskCache

Key = tuple[int, int]
"""A decoder's number and the bit mask of the positions that answered."""
Weights: TypeAlias = npt.NDArray[np.float64]


class Solver(Protocol):
    """What a cache keeps the results of: a decoder's weights, say."""

    def batched_weights(self, masks: Sequence[int]) -> list[Weights]: ...


_BATCH = 16_384  # patterns solved at once: tens of MB at most for the sizes that occur
DEFAULT_MAXSIZE = 262_144  # all C(20, 10) patterns of a [20, 10] code fit


class PatternCache:
    """Decoding weights by (code, mask of in-group positions); bounded, least recently used out first; thread-safe.

    All groups with the same code share its entries, so a scheme of a hundred groups learns each pattern once. A
    pattern's weights have the same bits whether found alone, precomputed or cached.

    Attributes
    ----------
    weights : callable
        ``weights(key)`` are the (reduction, survivors) weights of a decodable pattern; read-only. Two threads may both
        solve for them, and get the same bits.
    hits, misses : int
        Look-ups since the last `clear`; `precompute` counts as neither.
    size, maxsize : int
        Patterns held, and the most that are. Setting `maxsize` drops the oldest.
    """

    def __init__(
        self,
        decoders: Sequence[Solver],
        workers: int,
        keys: Callable[[Iterable[Iterable[int]]], Iterable[Key]],
        maxsize: int = DEFAULT_MAXSIZE,
    ) -> None:
        self._decoders = decoders
        self._keys = keys
        self._maxsize = maxsize
        self._entries = MaskCache(workers, maxsize, tuple(map(_solver, decoders)))  # masks have no more bits
        self.weights: Callable[[Key], Weights] = self._entries.solved  # without a detour, which takes as long

    @property
    def hits(self) -> int:
        """Look-ups that found their pattern."""
        return self._entries.hits

    @property
    def misses(self) -> int:
        """Look-ups that had to solve."""
        return self._entries.misses

    @property
    def size(self) -> int:
        """Number of patterns held."""
        return len(self._entries)

    @property
    def maxsize(self) -> int:
        """Largest number of patterns held."""
        return self._maxsize

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        self._maxsize = _checks.integer("maxsize", value, 1)
        self._entries.set_capacity(min(self._maxsize, sys.maxsize))

    def precompute(self, survivor_sets: Iterable[Iterable[int]]) -> None:
        """Find the weights of many survivor sets at once, ahead of need.

        Parameters
        ----------
        survivor_sets : iterable of iterables of int
            Worker numbers, each set as `GradientCode.decode` would meet it.

        Raises
        ------
        NotDecodableError
            One of the sets cannot be decoded; nothing is added.
        ValueError
            The sets have more patterns than `maxsize`.
        """
        seen = dict.fromkeys(self._keys(survivor_sets))
        if len(seen) > self._maxsize:
            raise ValueError(
                f"survivor_sets have {len(seen)} patterns, and the cache holds at most {self._maxsize}: set maxsize"
            )
        self._entries.touch(seen)  # so that what is added drives none of them out
        wanted = [key for key in seen if key not in self._entries]
        found: list[tuple[Key, Weights]] = []
        for number, decoder in enumerate(self._decoders):
            masks = [mask for owner, mask in wanted if owner == number]
            for start in range(0, len(masks), _BATCH):
                some = masks[start : start + _BATCH]
                batch = decoder.batched_weights(some)
                found += [((number, mask), _frozen(w)) for mask, w in zip(some, batch, strict=True)]
        for key, weights in found:
            self._entries.put(key, weights)
        self._entries.touch(seen)

    def clear(self) -> None:
        """Forget all patterns and zero the counts."""
        self._entries.clear()

    def __repr__(self) -> str:
        return f"<PatternCache {self.size} of {self.maxsize} patterns, {self.hits} hits, {self.misses} misses>"


def _solver(decoder: Solver) -> Callable[[int], Weights]:
    """What makes the weights of one pattern, read-only: the decoder's own `solve`, if it has one."""
    return getattr(decoder, "solve", None) or (lambda mask: _frozen(decoder.batched_weights((mask,))[0]))


def _frozen(weights: Weights) -> Weights:
    # A view into a batch would keep the whole batch alive.
    own = weights if weights.base is None else weights.copy()
    own.setflags(False)  # type: ignore[call-arg]  # by keyword it takes twice as long
    return own
