"""What is remembered of survivor sets: of the workers, and of the masks of their positions in a group.

The extension has both types, described in csrc/object_caches.h. Those here stand in for them where there is none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from operator import countOf
from threading import Lock
from typing import Any

from fastgc.kernels._extension import core

_COLLECTIONS = frozenset({tuple, list, set, frozenset, dict, range})


class _Objects:
    """Objects by key, the least recently used first."""

    def __init__(self, count: int, capacity: int) -> None:
        if count < 1 or capacity < 1:
            raise ValueError(f"count, capacity: expected positive integers, got {count} and {capacity}")
        self._count = count
        self._capacity = capacity
        self._lock = Lock()
        self._found: OrderedDict[Hashable, Any] = OrderedDict()

    def _newest(self, key: Hashable) -> Any:
        """What is remembered for a key, which becomes the most recently used. Under the lock."""
        found = self._found.get(key)
        if found is not None:
            self._found.move_to_end(key)
        return found

    def _add(self, key: Hashable, what: object) -> None:
        with self._lock:
            self._found.setdefault(key, what)
            self._found.move_to_end(key)
            self._shrink()

    def _shrink(self) -> None:
        while len(self._found) > self._capacity:
            self._found.popitem(last=False)

    def __len__(self) -> int:
        return len(self._found)


class PythonSetCache(_Objects):
    """Objects by sets of ints below a count."""

    def get(self, values: Any, /) -> Any:
        """What is remembered of a set; None also where `values` is no plain collection of different ints."""
        members = self._members(values)
        with self._lock:
            return None if members is None else self._newest(members)

    def put(self, values: Any, what: object, /) -> None:
        """Remember an object, unless there is one."""
        members = self._members(values)
        if members is None:
            raise ValueError("values: expected a collection of different integers below the count")
        self._add(members, what)

    def sorted(self, values: Any, /) -> tuple[int, ...] | None:
        """The set, increasing; None as by `get`."""
        members = self._members(values)
        return None if members is None else tuple(sorted(members))

    def _members(self, values: Any) -> frozenset[int] | None:
        # True is 1 to a set, and 2.0 is 2.
        if type(values) not in _COLLECTIONS or countOf(map(type, values), int) != len(values):
            return None
        members = frozenset(values)
        good = len(members) == len(values) and (not members or (min(members) >= 0 and max(members) < self._count))
        return members if good else None


class PythonMaskCache(_Objects):
    """Objects by (owner, mask)."""

    def __init__(self, count: int, capacity: int, solvers: tuple[Callable[[int], Any], ...] = ()) -> None:
        super().__init__(count, capacity)
        self.hits = self.misses = 0
        self._solvers = solvers

    def get(self, key: tuple[int, int], /) -> Any:
        """What is remembered for a key, or None."""
        with self._lock:
            found = self._newest(key)
            if found is None:
                self.misses += 1
            else:
                self.hits += 1
            return found

    def solved(self, key: tuple[int, int], /) -> Any:
        """What is remembered for a key; else what its owner's solver makes of the mask, which is from now on."""
        found = self.get(key)
        if found is None:
            found = self._solvers[key[0]](key[1])
            self.put(key, found)
        return found

    def put(self, key: tuple[int, int], what: object, /) -> None:
        """Remember an object, unless there is one."""
        self._add(key, what)

    def touch(self, keys: Iterable[tuple[int, int]], /) -> None:
        """Make keys that there are objects for the most recently used, in this order."""
        with self._lock:
            for key in keys:
                self._newest(key)

    def clear(self) -> None:
        """Forget everything, hits and misses too."""
        with self._lock:
            self._found.clear()
            self.hits = self.misses = 0

    def set_capacity(self, capacity: int, /) -> None:
        """Forget the oldest if there are more."""
        with self._lock:
            self._capacity = capacity
            self._shrink()

    def __contains__(self, key: tuple[int, int], /) -> bool:
        return key in self._found


if core is not None:
    SetCache, MaskCache = core.SetCache, core.MaskCache
else:
    SetCache, MaskCache = PythonSetCache, PythonMaskCache
