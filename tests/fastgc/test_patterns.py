"""The pattern cache: bounded, counted, shared by groups, thread-safe, and without influence on any bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import comb
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from scheme_table import CONSTRUCTED, SAMPLED, Case, gradients, larger_sets, messages, names, promised_sets, same_bits

from fastgc import GradientCode, NotDecodableError, codes, kernels, linalg, schemes
from fastgc.codes import LinearCode
from fastgc.decoders import mask_of, positions_of

CASES = [*CONSTRUCTED[::2], *SAMPLED[::4]]


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_weights_have_the_same_bits_alone_precomputed_and_cached(case: Case) -> None:
    sets = promised_sets(case.scheme, 40) + larger_sets(case.scheme, 10)
    together, alone = case.fresh(), case.fresh()
    together.patterns.precompute(sets)
    assert (together.patterns.hits, together.patterns.misses) == (0, 0)
    for survivors in sets:
        alone.patterns.clear()
        found = alone.decoding_weights(survivors)
        cached = alone.decoding_weights(survivors)
        assert same_bits(found, cached)
        assert same_bits(found, together.decoding_weights(survivors))
    assert together.patterns.misses == 0


@pytest.mark.parametrize("case", SAMPLED[::3], ids=names(SAMPLED[::3]))
def test_what_was_ranked_before_does_not_matter(case: Case) -> None:
    """A set is ranked by solving for its weights, which are kept until another is ranked."""
    rng = np.random.default_rng(11)
    sets = promised_sets(case.scheme, 20) + larger_sets(case.scheme, 8)
    together, scheme = case.fresh(), case.fresh()
    together.patterns.precompute(sets[:12])
    expected = [together.decoding_weights(survivors) for survivors in sets[:12]]
    scheme.patterns.maxsize = 1
    for number in rng.integers(12, size=60):
        for other in rng.integers(len(sets), size=rng.integers(3)):
            assert scheme.is_decodable(sets[other])
        assert same_bits(scheme.decoding_weights(sets[number]), expected[number]), "seed 11"


@pytest.mark.parametrize("case", CASES[::2], ids=names(CASES[::2]))
def test_weights_of_an_mds_code_have_the_same_bits_in_any_batch(case: Case) -> None:
    sets = promised_sets(case.scheme, 30)
    rng = np.random.default_rng(5)
    expected = [case.scheme.decoding_weights(s) for s in sets]
    for _ in range(4):
        scheme = case.fresh()
        order = rng.permutation(len(sets))
        for part in np.array_split(order, 3):
            scheme.patterns.precompute([sets[i] for i in part])
        for i in order:
            assert same_bits(scheme.decoding_weights(sets[i]), expected[i]), f"seed 5, set {sets[i]}"


def test_statistics() -> None:
    scheme = schemes.grouped(8, 4, 2)
    cache = scheme.patterns
    assert (cache.hits, cache.misses, cache.size) == (0, 0, 0)
    scheme.decoding_weights([0, 1, 4, 6])  # positions {0, 1} and {0, 2}
    assert (cache.hits, cache.misses, cache.size) == (0, 2, 2)
    scheme.decoding_weights([0, 2, 4, 5])  # the same two patterns, each in the other group
    assert (cache.hits, cache.misses, cache.size) == (2, 2, 2)
    scheme.decoding_weights([0, 1, 2, 4, 6])
    assert (cache.hits, cache.misses, cache.size) == (3, 3, 3)
    assert "3 of " in repr(cache)
    assert "3 hits, 3 misses" in repr(cache)
    cache.clear()
    assert (cache.hits, cache.misses, cache.size) == (0, 0, 0)


def test_the_least_recently_used_pattern_goes_first() -> None:
    scheme = schemes.grouped(5, 5, 2)
    cache = scheme.patterns
    cache.maxsize = 3
    for survivors in ([0, 1], [0, 2], [0, 3]):
        scheme.decoding_weights(survivors)
    scheme.decoding_weights([0, 1])  # used again: {0, 2} is now the oldest
    scheme.decoding_weights([0, 4])
    assert (cache.size, cache.hits, cache.misses) == (3, 1, 4)
    for survivors in ([0, 1], [0, 3], [0, 4]):
        scheme.decoding_weights(survivors)
    assert (cache.hits, cache.misses) == (4, 4)
    scheme.decoding_weights([0, 2])
    assert (cache.hits, cache.misses) == (4, 5)


def test_the_bound_holds_and_can_be_lowered() -> None:
    scheme = schemes.grouped(10, 10, 4)
    cache = scheme.patterns
    cache.maxsize = 50
    for survivors in combinations(range(10), 4):
        scheme.decoding_weights(survivors)
        assert cache.size <= 50
    assert cache.size == cache.maxsize == 50
    cache.maxsize = 7
    assert cache.size == cache.maxsize == 7
    for bad, kind in ((0, ValueError), (-1, ValueError), (2.5, TypeError)):
        with pytest.raises(kind, match=f"maxsize .*{bad}"):
            cache.maxsize = bad  # type: ignore[assignment]
    assert cache.maxsize == 7
    cache.maxsize = 10**30  # no bound at all
    assert (cache.maxsize, cache.size) == (10**30, 7)


def test_eviction_does_not_change_bits() -> None:
    small, large = schemes.grouped(9, 9, 4), schemes.grouped(9, 9, 4)
    small.patterns.maxsize = 1
    for survivors in [s for size in (4, 6) for s in combinations(range(9), size)] * 2:
        assert same_bits(small.decoding_weights(survivors), large.decoding_weights(survivors))
    assert small.patterns.size == 1


def test_precompute() -> None:
    scheme = schemes.grouped(12, 4, 2)
    cache = scheme.patterns
    cache.precompute(promised_sets(scheme))
    # Two missing of twelve: a group has all four, three or two of its workers; 1 + 4 + 6 patterns.
    assert cache.size == 11
    scheme.decoding_weights(range(2, 12))
    assert (cache.hits, cache.misses) == (3, 0)
    cache.precompute(iter([range(12)]))
    cache.precompute([])
    assert cache.size == 11


@pytest.mark.parametrize("form", [tuple, list, set, np.array, iter])
def test_precompute_takes_sets_of_any_form(form: Any) -> None:
    """Sets of one size are keyed by array operations, others one by one: the same patterns, and the same bits."""
    sets = [s for size in (4, 5, 6) for s in combinations(range(6), size)]
    scheme, alone = schemes.grouped(6, 6, 4), schemes.grouped(6, 6, 4)
    scheme.patterns.precompute([form(s) for s in sets])
    assert scheme.patterns.size == len(sets)
    for survivors in sets:
        assert same_bits(scheme.decoding_weights(survivors), alone.decoding_weights(survivors))
    assert scheme.patterns.misses == 0
    for size in (4, 5):
        equal = schemes.grouped(6, 6, 4)
        equal.patterns.precompute(combinations(range(6), size))
        assert equal.patterns.size == comb(6, size)
        for survivors in combinations(range(6), size):
            assert same_bits(equal.decoding_weights(survivors), alone.decoding_weights(survivors))
        assert equal.patterns.misses == 0


@pytest.mark.parametrize(
    ("sets", "kind", "message"),
    [
        ([[0, 1], [2, 2]], ValueError, "survivors must not repeat: 2"),
        ([[0, 1], [2, -1]], ValueError, r"survivors\[1\].*not -1"),
        ([[0, 1], [2, 4]], ValueError, r"survivors\[1\].*not 4"),
        ([[0, 1], [2.0, 3.0]], TypeError, r"survivors\[0\].*2\.0"),
        ([[True, False]], TypeError, r"survivors\[0\].*True"),
        ([["a", "b"]], TypeError, r"survivors\[0\].*'a'"),
        ([3], TypeError, "survivors must be an iterable.*3"),
    ],
)
def test_precompute_refuses_bad_sets(sets: Any, kind: type[Exception], message: str) -> None:
    scheme = schemes.grouped(4, 4, 2)
    with pytest.raises(kind, match=message):
        scheme.patterns.precompute(sets)
    assert scheme.patterns.size == 0


@pytest.mark.parametrize("workers", [63, 64, 70])
def test_precompute_of_wide_groups(workers: int) -> None:
    scheme, alone = (
        schemes.fractional_repetition(workers, workers - 1),
        schemes.fractional_repetition(workers, workers - 1),
    )
    sets = [[i, workers - 1] for i in range(workers - 1)]
    scheme.patterns.precompute(sets)
    for survivors in sets:
        assert same_bits(scheme.decoding_weights(survivors), alone.decoding_weights(survivors))
    assert scheme.patterns.misses == 0


RANKED = [
    codes.hamming(3),
    codes.reed_muller(1, 3),
    codes.product(codes.parity(2), codes.parity(2)),
    codes.gaussian(8, 4),
]


@pytest.mark.parametrize("code", RANKED, ids=str)
def test_weights_exist_exactly_where_the_rank_function_says_so(code: LinearCode) -> None:
    """All sets of rows, alone and each size at once: the fast paths decide nothing by themselves."""
    for size in range(code.k, code.n + 1):
        sets = np.array(list(combinations(range(code.n), size)))
        regular = linalg.rank(code.generator[sets]) == code.k
        assert (kernels.full_rank(code.generator, sets) == regular).all()
        for rows, expected in zip(sets, regular, strict=True):
            if expected:
                weights = code.decoding_weights(rows.tolist())
                assert np.abs(weights @ code.generator[rows] - np.eye(code.k)).max() < 1e-11
            else:
                with pytest.raises(NotDecodableError):
                    code.decoding_weights(rows.tolist())
        if regular.all():
            code.pattern_weights(sets)
        else:
            with pytest.raises(NotDecodableError) as caught:
                code.pattern_weights(sets)
            assert caught.value.survivors == tuple(sets[int(np.argmin(regular))].tolist())


def test_precompute_marks_what_it_finds_as_used() -> None:
    scheme = schemes.grouped(4, 4, 2)
    scheme.patterns.maxsize = 3
    for survivors in ([0, 1], [0, 2], [0, 3]):
        scheme.decoding_weights(survivors)
    scheme.patterns.precompute([[0, 1]])
    scheme.decoding_weights([1, 2])  # drops {0, 2}, not {0, 1}
    before = scheme.patterns.misses
    scheme.decoding_weights([0, 1])
    assert scheme.patterns.misses == before


def test_precompute_refuses_and_adds_nothing() -> None:
    scheme = schemes.grouped(6, 3, 2)
    cache = scheme.patterns
    with pytest.raises(NotDecodableError) as caught:
        cache.precompute([[0, 1, 3, 4], [0, 3, 4]])
    assert caught.value.missing == (1, 2, 5)
    with pytest.raises(ValueError, match=r"survivors\[0\].*not 6"):
        cache.precompute([[6]])
    cache.maxsize = 2
    with pytest.raises(ValueError, match="survivor_sets have 4 patterns, and the cache holds at most 2"):
        cache.precompute(promised_sets(scheme))
    assert cache.size == 0


def test_weights_are_read_only_and_own_their_memory() -> None:
    scheme = schemes.grouped(6, 6, 3)
    scheme.patterns.precompute(promised_sets(scheme))
    weights = scheme.patterns.weights(scheme.key(0, (0, 1, 2)))
    assert weights.base is None
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 1.0
    assert not scheme.decoding_weights([0, 1, 2]).flags.writeable


@pytest.mark.parametrize("maxsize", [3, 1000])
def test_threads_get_the_same_bits(maxsize: int) -> None:
    """Several threads ask for the same patterns at once, with and without eviction under way."""
    reference = schemes.grouped(8, 8, 4)
    sets = [s for size in (4, 5) for s in combinations(range(8), size)]
    expected = {s: reference.decoding_weights(s).tobytes() for s in sets}
    scheme = schemes.grouped(8, 8, 4)
    scheme.patterns.maxsize = maxsize
    start = Barrier(6)

    def ask(seed: int) -> list[tuple[int, ...]]:
        order = np.random.default_rng(seed).permutation(len(sets))
        start.wait()
        return [sets[i] for i in order if scheme.decoding_weights(sets[i]).tobytes() != expected[sets[i]]]

    with ThreadPoolExecutor(6) as pool:
        assert [wrong for found in pool.map(ask, range(6)) for wrong in found] == []
    cache = scheme.patterns
    assert cache.hits + cache.misses == 6 * len(sets)
    assert cache.size == min(maxsize, len(sets))


def test_threads_may_decode_clear_and_precompute_at_once() -> None:
    scheme = schemes.grouped(6, 3, 2)
    sent = messages(scheme, gradients(6, 11, np.float32, 1))
    sets = promised_sets(scheme)
    expected = {s: schemes.grouped(6, 3, 2).decode({w: sent[w] for w in s}, 11).tobytes() for s in sets}

    def work(number: int) -> bool:
        for i in range(200):
            survivors = sets[(i + number) % len(sets)]
            if number == 0 and i % 5 == 0:
                scheme.patterns.clear()
            if number == 1 and i % 7 == 0:
                scheme.patterns.precompute(sets)
            if scheme.decode({w: sent[w] for w in survivors}, 11).tobytes() != expected[survivors]:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


# Many workers ---------------------------------------------------------------------------------------------------------


def exact_of_ones(scheme: GradientCode, survivors: list[int]) -> bool:
    """Decode a gradient of ones from each partition: their number comes back."""
    length = 2 * scheme.reduction + 1
    ones = np.ones((scheme.load, length))
    decoded = scheme.decode({w: scheme.encode(w, ones[: len(scheme.assignment[w])]) for w in survivors}, length)
    return bool(np.allclose(decoded, scheme.partitions, rtol=1e-9, atol=0))


def test_many_groups_share_few_patterns() -> None:
    scheme = schemes.grouped(200, 5, 3)
    rng = np.random.default_rng(9)
    for _ in range(50):
        survivors = [5 * g + int(p) for g in range(40) for p in rng.permutation(5)[: rng.integers(3, 6)]]
        assert scheme.is_decodable(survivors)
        assert exact_of_ones(scheme, survivors), "seed 9"
    assert scheme.patterns.size == 10 + 5 + 1
    assert scheme.patterns.misses == 16


@pytest.mark.parametrize("workers", [63, 64, 65, 130])
def test_masks_go_beyond_machine_words(workers: int) -> None:
    """One group of more workers than a machine word has bits: sets that differ in the last workers only."""
    scheme = schemes.fractional_repetition(workers, workers - 1)
    for survivors in ([workers - 1], [0, workers - 1], [62], [workers - 2, workers - 1], list(range(workers))):
        assert scheme.decoding_weights(survivors).shape == (1, len(survivors))
        assert exact_of_ones(scheme, survivors)
    assert scheme.patterns.size == scheme.patterns.misses


def test_masks() -> None:
    for positions in ((), (0,), (63,), (64,), (0, 5, 64, 200)):
        assert positions_of(mask_of(positions)) == positions
