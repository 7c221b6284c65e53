"""The cache of decoding weights by survivor pattern."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastgc import _checks

Key = tuple[int, int]
"""A decoder's number and the bit mask of the positions that answered."""


class Solver(Protocol):
    """What a cache keeps the results of: a decoder's weights, say."""

    def batched_weights(self, masks: Sequence[int]) -> list[npt.NDArray[np.float64]]: ...


_BATCH = 16_384  # patterns solved at once: tens of MB at most for the sizes that occur
DEFAULT_MAXSIZE = 262_144  # all C(20, 10) patterns of a [20, 10] code fit


class PatternCache:
    """Decoding weights by (code, mask of in-group positions); bounded, least recently used out first; thread-safe.

    All groups with the same code share its entries, so a scheme of a hundred groups learns each pattern once. A
    pattern's weights have the same bits whether found alone, precomputed or cached.

    Attributes
    ----------
    hits, misses : int
        Look-ups since the last `clear`; `precompute` counts as neither.
    size, maxsize : int
        Patterns held, and the most that are. Setting `maxsize` drops the oldest.
    """

    def __init__(
        self,
        decoders: Sequence[Solver],
        keys: Callable[[Iterable[Iterable[int]]], Iterable[Key]],
        maxsize: int = DEFAULT_MAXSIZE,
    ) -> None:
        self._decoders = decoders
        self._keys = keys
        self._lock = Lock()
        self._entries: OrderedDict[Key, npt.NDArray[np.float64]] = OrderedDict()
        self._maxsize = maxsize
        self.hits = 0
        self.misses = 0

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
        maxsize = _checks.integer("maxsize", value, 1)
        with self._lock:
            self._maxsize = maxsize
            self._shrink()

    def weights(self, key: Key) -> npt.NDArray[np.float64]:
        """The (reduction, survivors) weights of a decodable pattern; read-only."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self.hits += 1
                self._entries.move_to_end(key)
                return found
            self.misses += 1
        decoder, mask = key  # found outside the lock: two threads may both do it, and get the same bits
        (weights,) = self._decoders[decoder].batched_weights((mask,))
        weights = self._frozen(weights)
        with self._lock:
            self._entries[key] = weights
            if len(self._entries) > self._maxsize:
                self._shrink()
        return weights

    def weights_of(self, keys: Sequence[Key]) -> list[npt.NDArray[np.float64]]:
        """The weights of several patterns, as if asked for one by one; the cache is locked once if it has them all."""
        entries = self._entries
        found = []
        with self._lock:
            try:
                for key in keys:
                    found.append(entries[key])
                    entries.move_to_end(key)
            except KeyError:
                pass
            else:
                self.hits += len(keys)
                return found
        return [self.weights(key) for key in keys]

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
        with self._lock:
            wanted = [key for key in seen if key not in self._entries]
        found: list[tuple[Key, npt.NDArray[np.float64]]] = []
        for number, decoder in enumerate(self._decoders):
            masks = [mask for owner, mask in wanted if owner == number]
            for start in range(0, len(masks), _BATCH):
                some = masks[start : start + _BATCH]
                batch = decoder.batched_weights(some)
                found += [((number, mask), self._frozen(w)) for mask, w in zip(some, batch, strict=True)]
        with self._lock:
            self._entries.update(found)
            for key in seen:
                if key in self._entries:
                    self._entries.move_to_end(key)
            self._shrink()

    def clear(self) -> None:
        """Forget all patterns and zero the counts."""
        with self._lock:
            self._entries.clear()
            self.hits = self.misses = 0

    def _shrink(self) -> None:
        while len(self._entries) > self._maxsize:
            self._entries.popitem(last=False)

    @staticmethod
    def _frozen(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # A view into a batch would keep the whole batch alive.
        own = weights if weights.base is None else weights.copy()
        own.setflags(write=False)
        return own

    def __repr__(self) -> str:
        return f"<PatternCache {self.size} of {self.maxsize} patterns, {self.hits} hits, {self.misses} misses>"
