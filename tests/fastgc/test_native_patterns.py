"""The library's cache of weights by survivor pattern: the kernels' bits, what is kept, threads, and what is refused."""

from __future__ import annotations

import ctypes
import gc
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastgc
from fastgc import codes, kernels, linalg, schemes
from fastgc.decoders import LinearDecoder, mask_of

pytestmark = pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing")

Array = npt.NDArray[np.float64]
OK, INVALID, NOT_DECODABLE = 0, 1, 2
I64, POINTER, INT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = ctypes.CDLL(fastgc.get_library())
    library.fastgc_error_message.restype = ctypes.c_char_p
    library.fastgc_patterns_create.argtypes = [POINTER, I64, I64, POINTER, I64, I64, POINTER]
    library.fastgc_patterns_weights.argtypes = [POINTER, POINTER, I64, POINTER]
    library.fastgc_patterns_precompute.argtypes = [POINTER, POINTER, I64, INT]
    library.fastgc_patterns_precompute_all.argtypes = [POINTER, I64, INT]
    library.fastgc_patterns_destroy.argtypes = [POINTER]
    library.fastgc_patterns_destroy.restype = None
    for name in ("size", "hits", "misses"):
        count = getattr(library, f"fastgc_patterns_{name}")
        count.argtypes, count.restype = [POINTER], I64
    return library


class Patterns:
    """A cache, and what its calls return."""

    def __init__(self, library: ctypes.CDLL, generator: Array, capacity: int, target: Array | None = None) -> None:
        self._library = library
        self.n, self.k = generator.shape
        self.m = self.k if target is None else len(target)
        self.handle = POINTER()
        self.generator = np.ascontiguousarray(generator)
        self.target = None if target is None else np.ascontiguousarray(target)
        place = None if self.target is None else self.target.ctypes.data
        status = library.fastgc_patterns_create(
            self.generator.ctypes.data, self.n, self.k, place, self.m, capacity, ctypes.byref(self.handle)
        )
        assert status == OK, self.error()

    def __del__(self) -> None:
        self._library.fastgc_patterns_destroy(self.handle)

    def error(self) -> str:
        return str(self._library.fastgc_error_message().decode())

    def words(self, survivors: Iterable[int]) -> npt.NDArray[np.uint64]:
        size = 8 * -(-self.n // 64)
        return np.frombuffer(mask_of(survivors).to_bytes(size, "little"), np.uint64)

    def look_up(self, survivors: Sequence[int], q: int | None = None) -> tuple[int, Array]:
        """The status and the weights, which are NaN where none were written."""
        count = len(survivors) if q is None else q
        out = np.full((self.m, max(count, 1)), np.nan)
        words = self.words(survivors)
        status = self._library.fastgc_patterns_weights(self.handle, words.ctypes.data, count, out.ctypes.data)
        return int(status), out

    def weights(self, survivors: Sequence[int]) -> Array:
        status, out = self.look_up(survivors)
        assert status == OK, self.error()
        return out

    def precompute(self, sets: Sequence[Iterable[int]], threads: int = 0) -> int:
        words = np.concatenate([self.words(survivors) for survivors in sets])
        return int(self._library.fastgc_patterns_precompute(self.handle, words.ctypes.data, len(sets), threads))

    def precompute_all(self, q: int, threads: int = 0) -> int:
        return int(self._library.fastgc_patterns_precompute_all(self.handle, q, threads))

    def counts(self) -> tuple[int, int, int]:
        """Patterns held, hits and misses."""
        return tuple(
            getattr(self._library, f"fastgc_patterns_{name}")(self.handle) for name in ("size", "hits", "misses")
        )  # type: ignore[return-value]


# The bits of the kernels ----------------------------------------------------------------------------------------------

CODES: dict[str, Callable[[], codes.LinearCode]] = {
    "repetition": lambda: codes.repetition(4),
    "optimized [6, 3]": lambda: codes.optimized(6, 3),
    "gaussian [9, 4]": lambda: codes.gaussian(9, 4, seed=1),
    "hamming [7, 4]": lambda: codes.hamming(3),  # not MDS
    "gaussian [64, 2]": lambda: codes.gaussian(64, 2, seed=2),
    "gaussian [65, 2]": lambda: codes.gaussian(65, 2, seed=3),
    "gaussian [130, 1]": lambda: codes.gaussian(130, 1, seed=4),
}


@pytest.mark.parametrize("name", CODES)
def test_all_survivor_sets_have_the_kernels_bits(library: ctypes.CDLL, name: str) -> None:
    code = CODES[name]()
    small = code.n <= 10
    for q in range(code.k, code.n + 1 if small else code.k + 1):
        sets = list(itertools.combinations(range(code.n), q))
        decodable = [s for s in sets if code.is_mds or linalg.rank(code.generator[list(s)]) == code.k]
        together = np.array(decodable)
        if q == code.k:
            expected = kernels.decoding_weights(code.generator, together)
        else:
            expected = kernels.least_norm_weights(code.generator, together, np.eye(code.k))
        one_by_one = Patterns(library, code.generator, len(sets))
        ahead, listed = (Patterns(library, code.generator, len(sets)) for _ in range(2))
        assert ahead.precompute_all(q) == OK, ahead.error()
        assert listed.precompute(decodable) == OK, listed.error()
        assert ahead.counts() == listed.counts() == (len(decodable), 0, 0)
        for survivors, wanted in zip(decodable, expected, strict=True):
            for cache in (one_by_one, one_by_one, ahead, listed):  # found, held, and found ahead
                assert cache.weights(survivors).tobytes() == wanted.tobytes(), survivors
        assert one_by_one.counts() == (len(decodable), len(decodable), len(decodable))
        assert ahead.counts() == listed.counts() == (len(decodable), len(decodable), 0)
        for survivors in set(sets) - set(decodable):
            status, out = ahead.look_up(survivors)
            assert status == NOT_DECODABLE
            assert np.isnan(out).all()


def test_random_sets_of_any_size_beyond_64_rows(library: ctypes.CDLL) -> None:
    code = codes.gaussian(150, 5, seed=5)
    cache, rng = Patterns(library, code.generator, 1000), random.Random(6)
    for q in [5, 6, 20, 64, 65, 149, 150]:
        for _ in range(5):
            survivors = sorted(rng.sample(range(150), q))
            wanted = code.pattern_weights(np.array(survivors))
            for _ in range(2):
                assert cache.weights(survivors).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("with_target", [False, True])
def test_they_are_those_of_python_s_cache(library: ctypes.CDLL, with_target: bool) -> None:
    """A decoder's: with a target also where as many survive as are needed."""
    scheme = schemes.polynomial(7, 2, 2) if with_target else schemes.grouped(8, load=8, reduction=3)
    decoder = scheme.decoder(0)
    assert isinstance(decoder, LinearDecoder)
    assert (decoder.target is not None) == with_target
    cache = Patterns(library, decoder.code.generator, 500, decoder.target)
    for q in range(decoder.code.k, decoder.workers + 1):
        for survivors in itertools.combinations(range(decoder.workers), q):
            wanted = scheme.patterns.weights(scheme.key(0, survivors))
            for _ in range(2):
                assert cache.weights(survivors).tobytes() == wanted.tobytes()


def test_precomputing_has_the_same_bits_on_any_threads(library: ctypes.CDLL) -> None:
    """In several batches: C(16, 8) patterns."""
    code = codes.gaussian(16, 8, seed=7)
    sets = list(itertools.combinations(range(16), 8))
    expected = kernels.decoding_weights(code.generator, np.array(sets))
    for threads in (1, 3):
        cache = Patterns(library, code.generator, len(sets))
        assert cache.precompute_all(8, threads) == OK
        assert cache.counts() == (comb(16, 8), 0, 0)
        for index in range(0, len(sets), 7):
            assert cache.weights(sets[index]).tobytes() == expected[index].tobytes()
        assert cache.counts()[2] == 0


# What is kept ---------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first(library: ctypes.CDLL) -> None:
    cache = Patterns(library, codes.optimized(6, 2).generator, 3)
    a, b, c, d = (0, 1), (0, 2), (0, 3), (0, 4)
    for survivors in (a, b, c, a):
        cache.weights(survivors)
    assert cache.counts() == (3, 1, 3)
    cache.weights(d)  # drops b
    for survivors in (a, c, d):
        cache.weights(survivors)
    assert cache.counts() == (3, 4, 4)
    cache.weights(b)
    assert cache.counts() == (3, 4, 5)  # dropped a
    assert cache.precompute([c, a]) == OK  # c is held, a is found; d and b are older than these
    assert cache.counts() == (3, 4, 5)
    for survivors in (a, c, b):
        cache.weights(survivors)
    assert cache.counts() == (3, 7, 5)


@pytest.mark.parametrize(("workers", "stragglers"), [(12, 2), (10, 3), (9, 3), (8, 3), (5, 1), (4, 1)])
def test_a_schemes_patterns_have_the_bits_of_python_where_few_are_missing(
    library: ctypes.CDLL, workers: int, stragglers: int
) -> None:
    """With m = 1 a table is made for 9 workers of which 3 may be missing, and not for 8."""
    scheme = schemes.cyclic_repetition(workers, stragglers)
    decoder = scheme.decoder(0)
    assert isinstance(decoder, LinearDecoder)
    cache = Patterns(library, decoder.code.generator, 500, decoder.target)
    for q in range(workers - stragglers, workers + 1):
        for survivors in itertools.combinations(range(workers), q):
            wanted = scheme.decoding_weights(survivors)
            assert cache.weights(survivors).tobytes() == wanted.tobytes(), survivors


def test_it_has_copies_of_what_it_was_made_of(library: ctypes.CDLL) -> None:
    cache = Patterns(library, codes.optimized(5, 2).generator.copy(), 3, np.array([[1.0, 2.0]]))
    assert cache.target is not None
    wanted = kernels.least_norm_weights(cache.generator, [1, 3], cache.target)
    cache.generator[:] = cache.target[:] = np.nan
    assert cache.weights((1, 3)).tobytes() == wanted.tobytes()


def test_any_number_of_threads(library: ctypes.CDLL) -> None:
    """Look-ups that drop each other's patterns, while others are found ahead."""
    code = codes.gaussian(8, 3, seed=8)
    cache = Patterns(library, code.generator, 25)
    sets = [s for q in (3, 4) for s in itertools.combinations(range(8), q)]
    wanted = {survivors: code.pattern_weights(np.array(survivors)).tobytes() for survivors in sets}

    def use(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(400):
            survivors = rng.choice(sets)
            assert cache.weights(survivors).tobytes() == wanted[survivors]
            if rng.random() < 0.02:
                assert cache.precompute(rng.sample(sets, 20)) == OK
            assert cache.counts()[0] <= 25

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(use, range(6)))
    assert sum(cache.counts()[1:]) == 6 * 400


# Refusals -------------------------------------------------------------------------------------------------------------

GENERATOR = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 1.0], [2.0, 2.0]])  # rows 2 and 3 have rank 1


def test_nothing_is_added_where_one_is_not_decodable(library: ctypes.CDLL) -> None:
    cache = Patterns(library, GENERATOR, 10)
    cache.weights((0, 1))
    assert cache.precompute([(0, 2), (2, 3), (0, 3)]) == NOT_DECODABLE
    assert cache.error() == "survivors[1]: these rows of the generator do not have rank 2"
    assert cache.counts() == (1, 0, 1)
    assert cache.precompute([(0, 2), (3,)]) == NOT_DECODABLE
    assert cache.error() == "survivors[1]: 1 of them cannot have rank 2"
    assert cache.precompute_all(1) == NOT_DECODABLE
    assert cache.error() == "q: sets of 1 cannot have rank 2"
    assert cache.counts() == (1, 0, 1)
    assert cache.precompute_all(2) == OK
    assert cache.counts() == (comb(4, 2) - 1, 0, 1)


def look_ups() -> dict[str, tuple[int, str, Any]]:
    """Status, message, and a call."""

    def of(survivors: Sequence[int], q: int | None = None, n: int = 4) -> Any:
        def call(library: ctypes.CDLL) -> tuple[int, Array]:
            rows = GENERATOR if n == 4 else np.resize(GENERATOR, (n, 2))
            return Patterns(library, rows, 10).look_up(survivors, q)

        return call

    def null(which: int) -> Any:
        def call(library: ctypes.CDLL) -> tuple[int, Array]:
            cache, out = Patterns(library, GENERATOR, 10), np.full((2, 2), np.nan)
            given = [cache.handle, cache.words((0, 1)).ctypes.data, 2, out.ctypes.data]
            given[which] = None
            return int(library.fastgc_patterns_weights(*given)), out

        return call

    return {
        "no cache": (INVALID, "patterns: is a null pointer", null(0)),
        "no survivors": (INVALID, "survivors: is a null pointer", null(1)),
        "no weights": (INVALID, "weights: is a null pointer", null(3)),
        "bit": (INVALID, "survivors: bit 4 is beyond the 4 rows of the generator", of((0, 4))),
        "last bit": (INVALID, "survivors: bit 63 is beyond the 4 rows of the generator", of((0, 63))),
        "bit of a second word": (
            INVALID,
            "survivors: bit 71 is beyond the 70 rows of the generator",
            of((0, 71), n=70),
        ),
        "q": (INVALID, "q: expected the number of survivors, which is 3, got 2", of((0, 1, 2), q=2)),
        "negative q": (INVALID, "q: expected the number of survivors, which is 2, got -1", of((0, 1), q=-1)),
        "too few": (NOT_DECODABLE, "survivors: 1 of them cannot have rank 2", of((1,))),
        "none": (NOT_DECODABLE, "survivors: 0 of them cannot have rank 2", of(())),
        "singular": (NOT_DECODABLE, "survivors: these rows of the generator do not have rank 2", of((2, 3))),
    }


@pytest.mark.parametrize("case", look_ups())
def test_bad_look_ups_are_refused(library: ctypes.CDLL, case: str) -> None:
    status, message, call = look_ups()[case]
    found, out = call(library)
    assert (found, library.fastgc_error_message().decode()) == (status, message)
    assert np.isnan(out).all()


def test_a_wrong_count_is_refused_of_what_is_held_too(library: ctypes.CDLL) -> None:
    cache = Patterns(library, GENERATOR, 10)
    cache.weights((0, 1, 2))
    status, out = cache.look_up((0, 1, 2), q=2)
    assert (status, cache.counts()) == (INVALID, (1, 0, 1))
    assert np.isnan(out).all()


def creations() -> dict[str, tuple[str, dict[str, Any]]]:
    beyond, long = np.array([1.0, np.inf]), 2**62
    column = {"generator": beyond, "n": 2, "k": 1, "m": 1}
    return {
        "n": ("n: expected a positive number, got 0", {"n": 0}),
        "k": ("k: expected at most n, which is 4, got 5", {"k": 5, "m": 5}),
        "m": ("m: expected k, which is 2, without a target, got 1", {"m": 1}),
        "no m": ("m: expected a positive number, got 0", {"m": 0}),
        "long m": (f"m: expected a positive number, got {long}", {"m": long}),
        "capacity": ("capacity: expected a positive number, got 0", {"capacity": 0}),
        "no generator": ("generator: is a null pointer", {"generator": None}),
        "generator": ("generator[1, 0]: expected a number finite in float64, got inf", column),
        "target": ("target[0, 1]: expected a number finite in float64, got inf", {"target": beyond, "m": 1}),
        "nowhere": ("patterns: is a null pointer", {"patterns": None}),
    }


@pytest.mark.parametrize("case", creations())
def test_bad_caches_are_refused(library: ctypes.CDLL, case: str) -> None:
    message, changed = creations()[case]
    handle = POINTER(42)
    given = {"generator": GENERATOR, "n": 4, "k": 2, "target": None, "m": 2, "capacity": 10, **changed}
    for name in ("generator", "target"):
        given[name] = None if given[name] is None else given[name].ctypes.data
    place = None if "patterns" in changed else ctypes.byref(handle)
    status = library.fastgc_patterns_create(
        given["generator"], given["n"], given["k"], given["target"], given["m"], given["capacity"], place
    )
    assert (status, library.fastgc_error_message().decode()) == (INVALID, message)
    assert handle.value == 42


def test_bad_precomputing_is_refused(library: ctypes.CDLL) -> None:
    cache = Patterns(library, GENERATOR, 5)
    sets = list(itertools.combinations(range(4), 2))
    words = np.concatenate([cache.words(survivors) for survivors in sets])
    precompute = library.fastgc_patterns_precompute
    for message, call in {
        "count: expected at most the capacity, which is 5, got 6": lambda: cache.precompute(sets),
        "count: expected a positive number, got 0": lambda: precompute(cache.handle, words.ctypes.data, 0, 0),
        "survivors: is a null pointer": lambda: precompute(cache.handle, None, 1, 0),
        "patterns: is a null pointer": lambda: precompute(None, words.ctypes.data, 1, 0),
        "survivors[1]: bit 9 is beyond the 4 rows of the generator": lambda: cache.precompute([(0, 1), (0, 9)]),
        "threads: expected a positive number, or 0 for no limit, got -1": lambda: cache.precompute(sets[:1], -1),
        "q: there are more sets of 2 of 4 than the capacity, which is 5": lambda: cache.precompute_all(2),
        "q: expected at most n, which is 4, got 5": lambda: cache.precompute_all(5),
        "q: expected a positive number, got 0": lambda: cache.precompute_all(0),
    }.items():
        assert call() == INVALID, message
        assert cache.error() == message
    assert library.fastgc_patterns_precompute_all(None, 2, 0) == INVALID
    assert cache.counts() == (0, 0, 0)
    wide = Patterns(library, codes.gaussian(1000, 500, seed=9).generator, 2**56)
    assert wide.precompute_all(500) == INVALID  # a number of 300 digits
    assert "more sets of 500 of 1000" in wide.error()


def test_weights_that_overflow_are_refused(library: ctypes.CDLL) -> None:
    cache = Patterns(library, np.diag([1e-310, 1.0]), 3)
    status, out = cache.look_up((0, 1))
    assert status == INVALID
    assert cache.error() == "generator: entries are so large or small that the weights of survivors overflow"
    assert np.isnan(out).all()
    assert cache.precompute([(0, 1)]) == INVALID
    assert cache.counts()[0] == 0


def test_no_cache_has_no_counts_and_is_destroyed(library: ctypes.CDLL) -> None:
    assert [getattr(library, f"fastgc_patterns_{name}")(None) for name in ("size", "hits", "misses")] == [0, 0, 0]
    library.fastgc_patterns_destroy(None)


def test_memory_is_given_back(library: ctypes.CDLL) -> None:
    """Of patterns that come twice, 0.8 MB a round; that are dropped, 1.9; and that are destroyed, 1.9."""
    psutil = pytest.importorskip("psutil")
    code = codes.gaussian(14, 7, seed=10)
    resident = []
    for _ in range(12):
        cache = Patterns(library, code.generator, 4000)
        assert cache.precompute([range(7)] * 2000) == OK
        assert cache.counts()[0] == 1
        for q in (7, 8, 9):
            assert cache.precompute_all(q) == OK
        assert cache.counts()[0] == 4000
        del cache
        gc.collect()
        resident.append(psutil.Process().memory_info().rss)
    assert resident[-1] - resident[1] < 5e6
