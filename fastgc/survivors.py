"""What survivor sets amount to: the pattern of each group, whether it can be decoded, and whose messages it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from fastgc import _checks
from fastgc.errors import NotDecodableError
from fastgc.kernels._caches import SetCache
from fastgc.patterns import Key

if TYPE_CHECKING:
    from fastgc.storage import SchemeData

KEPT_SETS = 1024
"""Survivor sets that a scheme remembers, at most: of 12 workers all with up to 4 missing, in 0.8 KB each."""
KEPT_WORKERS = 1 << 15
"""Workers that these sets have together, at most, in 1 MB: of more than 32 workers fewer sets, as fewer recur."""

Place = tuple[int, int]
"""A worker's group, and its position there."""


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Survivors:
    """A set of workers, group by group; nothing in it depends on their messages, and nothing is changed."""

    workers: tuple[int, ...]
    """All, increasing."""
    masks: tuple[int, ...]
    """Of the positions in each group."""
    keys: tuple[Key, ...]
    """Each group's pattern."""
    members: tuple[tuple[int, ...], ...]
    """The workers of each group, increasing."""
    undecodable: int | None
    """The first group that its workers do not determine."""
    alone: Key | None
    """The pattern of a group that is all there is, if it is decodable."""


class SurvivorSets:
    """The survivor sets of a scheme; those met last are remembered. Safe for threads.

    A master meets few sets, with s of n workers missing at most C(n, s). To find out what one of 12 workers amounts to
    takes 4 to 8 us, as long as to decode 10^4 numbers; to look it up 0.2.

    Attributes
    ----------
    places : tuple of (int, int)
        Of each worker, its group and its position there.
    known : callable
        What is remembered of workers, as `of` takes them, or None. ``known(…) or learn(…)`` is `of` without its call.
    """

    def __init__(self, data: SchemeData) -> None:
        self._data = data
        self._everyone = frozenset(range(len(data.assignment)))
        places = {w: (g, p) for g, group in enumerate(data.groups) for p, w in enumerate(group.workers)}
        self.places = tuple(places[worker] for worker in range(len(places)))
        self._bit = tuple((g, 1 << p) for g, p in self.places).__getitem__
        self._known = SetCache(len(places), max(1, min(KEPT_SETS, KEPT_WORKERS // len(places))))
        self.known: Callable[[object], Survivors | None] = self._known.get

    def of(self, name: str, workers: Iterable[int]) -> Survivors:
        """What workers, in any order, amount to; `name` is what the argument that they are is called in errors."""
        return self.known(workers) or self.learn(name, workers)

    def learn(self, name: str, workers: Iterable[int]) -> Survivors:
        """The same for workers that are not `known`."""
        present = self._known.sorted(workers)
        if present is None:  # wrong, or something else than a plain collection
            return self.of(name, _checks.members(name, workers, len(self._everyone)))
        data, masks, among = self._data, self.masks(present), {*present}
        keys, undecodable = _keys(data, masks), _undecodable(data, masks)
        found = Survivors(
            workers=present,
            masks=tuple(masks),
            keys=keys,
            members=tuple([tuple([w for w in group.workers if w in among]) for group in data.groups]),
            undecodable=undecodable,
            alone=keys[0] if undecodable is None and len(keys) == 1 else None,
        )
        self._known.put(present, found)
        return found

    def masks(self, workers: Iterable[int]) -> list[int]:
        """For each group, the mask of the positions of its workers among these."""
        masks = [0] * len(self._data.groups)
        for group, bit in map(self._bit, workers):
            masks[group] |= bit
        return masks

    def is_decodable(self, workers: Iterable[int]) -> bool:
        """Whether checked workers determine the sum. Not remembered: a master may ask for more sets than it decodes."""
        return _undecodable(self._data, self.masks(workers)) is None

    def not_decodable(self, workers: Collection[int], number: int) -> NotDecodableError:
        """The error that says who is missing, where a group is not decodable."""
        group = self._data.groups[number]
        return NotDecodableError(
            f"survivors {sorted(workers)} do not determine the sum under {self._data.name}: of workers "
            f"{list(group.workers)} missing are {[w for w in group.workers if w not in workers]}, and any "
            f"{self._data.decoders[group.decoder].tolerated} may be",
            sorted(workers),
            sorted(self._everyone.difference(workers)),
        )

    def keys(self, survivor_sets: Iterable[Iterable[int]]) -> Iterator[Key]:
        """The patterns of many survivor sets, which are checked; one may come several times."""
        source = iter(survivor_sets)
        while some := list(islice(source, 4096)):
            keys = self._keys_at_once(some)
            if keys is not None:
                yield from keys
            else:
                for survivors in some:
                    workers = _checks.members("survivors", survivors, len(self._everyone))
                    masks = self.masks(workers)
                    if (group := _undecodable(self._data, masks)) is not None:
                        raise self.not_decodable(workers, group)
                    yield from _keys(self._data, masks)

    def _keys_at_once(self, sets: list[Iterable[int]]) -> list[Key] | None:
        """Patterns of valid sets of one size in a few array operations; None for others, which go one by one."""
        if max(len(group.workers) for group in self._data.groups) > 63:
            return None
        try:
            workers = np.array(sets)
        except ValueError:  # sizes differ
            return None
        if workers.ndim != 2 or workers.dtype.kind not in "iu" or not workers.size:
            return None
        if workers.min() < 0 or workers.max() >= len(self._everyone):
            return None
        keys: list[Key] = []
        for group in self._data.groups:
            bits = np.zeros(len(self._everyone), dtype=np.int64)
            bits[list(group.workers)] = 1 << np.arange(len(group.workers))
            masks = bits[workers]
            joined = np.bitwise_or.reduce(masks, axis=1)
            if (masks.sum(axis=1) != joined).any():  # a worker named twice
                return None
            found = dict.fromkeys(joined.tolist())
            if not self._data.decoders[group.decoder].surely_decodable(list(found)):
                return None
            keys += [(group.decoder, mask) for mask in found]
        return keys


def _keys(data: SchemeData, masks: Sequence[int]) -> tuple[Key, ...]:
    return tuple([(group.decoder, mask) for group, mask in zip(data.groups, masks, strict=True)])


def _undecodable(data: SchemeData, masks: Sequence[int]) -> int | None:
    """The first group that its mask does not decode, or None."""
    for number, (group, mask) in enumerate(zip(data.groups, masks, strict=True)):
        if not data.decoders[group.decoder].is_decodable(mask):
            return number
    return None
