"""What is remembered of survivor sets: the extension's caches and those in Python, against a list in order of use."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from fastgc.kernels import _caches

SEED = 17
SET_CACHES = list(dict.fromkeys([_caches.SetCache, _caches.PythonSetCache]))
MASK_CACHES = list(dict.fromkeys([_caches.MaskCache, _caches.PythonMaskCache]))
FORMS = (tuple, list, set, frozenset, dict.fromkeys)


class What:
    """Something to remember, which can be asked whether it still is."""


class Model:
    """A bounded cache as a list of pairs, the least recently used first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.pairs: list[tuple[Any, Any]] = []

    def touch(self, key: Any) -> Any:
        for pair in self.pairs:
            if pair[0] == key:
                self.pairs.remove(pair)
                self.pairs.append(pair)
                return pair[1]
        return None

    def put(self, key: Any, what: Any) -> None:
        if self.touch(key) is None:
            self.pairs.append((key, what))
        self.shrink()

    def shrink(self) -> None:
        del self.pairs[: max(0, len(self.pairs) - self.capacity)]


@pytest.mark.parametrize("capacity", [1, 3, 40, 200])
@pytest.mark.parametrize("count", [1, 7, 64, 65, 200, 1500])
@pytest.mark.parametrize("cache_type", SET_CACHES)
def test_sets_are_remembered_in_order_of_use(cache_type: Any, count: int, capacity: int) -> None:
    rng = np.random.default_rng(SEED + count + capacity)
    cache, model = cache_type(count, capacity), Model(capacity)
    met = [frozenset(rng.choice(count, rng.integers(0, count + 1), replace=False).tolist()) for _ in range(90)]
    for _ in range(1500):
        members = met[rng.integers(len(met))]
        given = FORMS[rng.integers(len(FORMS))](rng.permutation(sorted(members)).tolist())
        if rng.random() < 0.4:
            what = What()
            cache.put(given, what)
            model.put(members, what)
        else:
            assert cache.get(given) is model.touch(members)
        assert cache.sorted(given) == tuple(sorted(members))
        assert len(cache) == len(model.pairs)


@pytest.mark.parametrize("cache_type", SET_CACHES)
def test_of_what_is_no_set_of_numbers_nothing_is_known(cache_type: Any) -> None:
    """Whatever equals a set that is known, to Python."""
    cache = cache_type(5, 10)
    what = What()
    cache.put((0, 1), what)
    cache.put((), what)
    for known in ((1, 0), [0, 1], {0, 1}, frozenset({1, 0}), {1: "a", 0: "b"}, range(2), (), {}, [], range(0)):
        assert cache.get(known) is what
    for unknown in (
        (True, 0),
        [0, 1.0],
        (np.int64(0), 1),
        np.array([0, 1]),
        {False, 1},
        {0: "a", True: "b"},
        (0, 0, 1),
        [1, 1],
        (0, 1, 5),
        (0, 1, -1),
        (0, 1, 2**70),
        (0, 1, "2"),
        (0,),
        iter((0, 1)),
        "01",
        b"\0\1",
        None,
        7,
        Ellipsis,
    ):
        assert cache.get(unknown) is None
        assert cache.sorted(unknown) is None or unknown == (0,)
    generator = (i for i in range(2))
    assert cache.get(generator) is None
    assert cache.sorted(generator) is None
    assert list(generator) == [0, 1]  # not touched
    for wrong in ((0, 5), (True,), (-1,), ("1",)):
        with pytest.raises(ValueError, match="values"):
            cache.put(wrong, what)
    assert len(cache) == 2


@pytest.mark.parametrize("capacity", [1, 4, 60, 500])
@pytest.mark.parametrize("count", [1, 10, 64, 65, 130, 1200])
@pytest.mark.parametrize("cache_type", MASK_CACHES)
def test_masks_are_remembered_in_order_of_use(cache_type: Any, count: int, capacity: int) -> None:
    rng = np.random.default_rng(SEED + count + capacity)
    cache, model = cache_type(count, capacity), Model(capacity)

    def mask() -> int:
        return sum(1 << int(bit) for bit in rng.choice(count, rng.integers(0, count + 1), replace=False))

    keys = [(int(rng.integers(3)), mask()) for _ in range(90)]
    hits = misses = 0
    for _ in range(2000):
        key = keys[rng.integers(len(keys))]
        match rng.integers(12):
            case 0 | 1 | 2 | 3:
                what = What()
                cache.put(key, what)
                model.put(key, what)
            case 4:
                some = [keys[i] for i in rng.integers(len(keys), size=4)]
                cache.touch(some)
                for each in some:
                    model.touch(each)
            case 5:
                assert (key in cache) == any(key == known for known, _ in model.pairs)
            case 6 if rng.random() < 0.1:
                model.capacity = int(rng.integers(1, capacity + 1))
                cache.set_capacity(model.capacity)
                model.shrink()
            case 7 if rng.random() < 0.05:
                cache.clear()
                model.pairs.clear()
                hits = misses = 0
            case _:
                found = cache.get(key)
                assert found is model.touch(key)
                hits, misses = hits + (found is not None), misses + (found is None)
        assert (len(cache), cache.hits, cache.misses) == (len(model.pairs), hits, misses)


@pytest.mark.parametrize(
    ("cache_type", "key"), [(c, (1, 2)) for c in SET_CACHES] + [(c, (0, 3)) for c in MASK_CACHES], ids=str
)
def test_what_is_forgotten_is_let_go(cache_type: Any, key: tuple[int, int]) -> None:
    def remembered(cache: Any) -> weakref.ref[What]:
        what = What()
        cache.put(key, what)
        cache.put(key, What())  # of which nothing is kept
        return weakref.ref(what)

    cache = cache_type(10, 1)
    driven_out = remembered(cache)
    assert driven_out() is not None
    cache.put((0, 1), What())
    assert driven_out() is None
    at_the_end = remembered(cache)
    assert at_the_end() is cache.get(key)
    del cache
    assert at_the_end() is None


@pytest.mark.parametrize("cache_type", SET_CACHES + MASK_CACHES)
def test_a_cache_that_remembers_its_owner_is_collected(cache_type: Any) -> None:
    owner: Any = What()
    owner.cache = cache_type(10, 4)
    owner.cache.put((1, 2), owner)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("cache_type", SET_CACHES + MASK_CACHES)
@pytest.mark.parametrize("arguments", [(0, 1), (1, 0), (-3, 5)])
def test_sizes_are_positive(cache_type: Any, arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="count, capacity"):
        cache_type(*arguments)


@pytest.mark.parametrize("cache_type", MASK_CACHES)
@pytest.mark.parametrize("count", [10, 200])
def test_what_is_not_there_is_solved_once(cache_type: Any, count: int) -> None:
    asked: list[tuple[int, int]] = []

    def solver(owner: int) -> Any:
        def solve(mask: int) -> str:
            asked.append((owner, mask))
            if mask == 7:
                raise LookupError("not this one")
            return f"{owner}: {mask}"

        return solve

    cache = cache_type(count, 2, (solver(0), solver(1)))
    for _ in range(2):
        assert [cache.solved(key) for key in ((0, 5), (1, 5))] == ["0: 5", "1: 5"]
    assert asked == [(0, 5), (1, 5)]
    assert (cache.hits, cache.misses, len(cache)) == (2, 2, 2)
    assert cache.get((0, 5)) == "0: 5"
    cache.put((1, 3), "put before")
    assert cache.solved((1, 3)) == "put before"
    assert len(cache) == 2  # the oldest, (1, 5), is gone
    assert cache.solved((1, 5)) == "1: 5"
    assert asked[2:] == [(1, 5)]
    for _ in range(2):  # an error is the caller's, and nothing is kept
        with pytest.raises(LookupError, match="not this one"):
            cache.solved((0, 7))
    assert (0, 7) not in cache
    with pytest.raises(IndexError):
        cache.solved((2, 1))
    with pytest.raises(IndexError):
        cache_type(count, 2).solved((0, 1))


@pytest.mark.parametrize("cache_type", MASK_CACHES)
def test_solvers_are_let_go(cache_type: Any) -> None:
    class Owner:
        def solve(self, mask: int) -> int:
            return mask

    owner = Owner()
    owner.cache = cache_type(10, 2, (owner.solve,))  # type: ignore[attr-defined]
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(_caches.MaskCache is _caches.PythonMaskCache, reason="takes any key that can be hashed")
@pytest.mark.parametrize("count", [10, 200])
def test_masks_that_are_none_are_refused(count: int) -> None:
    cache = _caches.MaskCache(count, 4)
    wrong: Iterable[Any] = ((0, -1), (0, 1 << 300), (0, "1"), ("0", 1), (0,), [0, 1], 3)
    for key in wrong:
        for call in (
            cache.get,
            cache.solved,
            cache.__contains__,
            lambda key: cache.put(key, None),
            lambda key: cache.touch([key]),
        ):
            with pytest.raises((TypeError, OverflowError, AttributeError)):
                call(key)
    assert len(cache) == 0


@pytest.mark.parametrize("cache_type", SET_CACHES + MASK_CACHES)
def test_threads_may_share_a_cache(cache_type: Any) -> None:
    """What is found is what was put, and no more is held than may be."""
    cache = cache_type(40, 20)
    keys = [(i, j) for i in range(10) for j in range(11, 21)]
    what = {key: key for key in keys}
    wrong: list[Any] = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(len(keys), size=4000).tolist():
            found = cache.get(keys[i])
            if found is None:
                cache.put(keys[i], what[keys[i]])
            elif found != keys[i]:
                wrong.append((keys[i], found))

    threads = [threading.Thread(target=work, args=(SEED + i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) == 20
