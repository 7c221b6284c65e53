"""Estimates: least error, the bound, what they are on average, the same bits from one set of survivors."""

from __future__ import annotations

import io
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scheme_table import CONSTRUCTED, GIVEN, Array, Case, encoding, messages, names, same_bits, subsets

from fastgc import GradientCode, NotDecodableError, codes, schemes

SEED = 20170711
APPROXIMATE = [
    Case("erasure_head", lambda: schemes.erasure_head(8, 2, 3)),
    Case("bernoulli", lambda: schemes.bernoulli(8, 3, 3, seed=1)),
    Case("stochastic_block", lambda: schemes.stochastic_block(8, 3, 3, seed=1)),
    Case("expander", lambda: schemes.expander(8, 3, 3)),
    Case("margulis", lambda: schemes.margulis(4, 1)),
    Case("bibd", lambda: schemes.bibd(7, 3, 3)),
    Case("from_assignment", lambda: schemes.from_assignment([(0, 1), (1, 2, 3), (3,), (0, 3)], stragglers=2)),
    Case("ignore_stragglers", lambda: schemes.ignore_stragglers(6, 2)),
]
SMALL = [case for case in CONSTRUCTED + GIVEN if case.scheme.workers <= 8] + APPROXIMATE


def wanted(scheme: GradientCode) -> Array:
    return np.tile(np.eye(scheme.reduction), (1, scheme.partitions))


def least_error(rows: Array, target: Array) -> float:
    """By NumPy's least squares on the whole encoding."""
    if not len(rows):
        return float(np.linalg.norm(target, 2))
    weights = np.linalg.lstsq(rows.T, target.T, rcond=1e-11)[0].T
    return float(np.linalg.norm(weights @ rows - target, 2))


def survivors_of(scheme: GradientCode, most: int = 30) -> list[tuple[int, ...]]:
    sets = list(subsets(scheme.workers))
    chosen = np.random.default_rng(SEED).permutation(len(sets))[:most]
    return [(), *(sets[i] for i in sorted(chosen))]


@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_the_error_is_the_least_that_any_weights_have(case: Case) -> None:
    scheme = case.scheme
    matrix = encoding(scheme).reshape(scheme.workers, -1)
    for survivors in survivors_of(scheme):
        expected = least_error(matrix[list(survivors)], wanted(scheme))
        assert scheme.approximation_error(survivors) == pytest.approx(expected, abs=1e-6, rel=1e-6), survivors


@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_estimates_keep_the_bound_and_some_gradients_attain_it(case: Case) -> None:
    scheme = case.scheme
    length = 4 * scheme.reduction
    rng = np.random.default_rng(SEED)
    whole = encoding(scheme).reshape(scheme.workers, -1)
    for survivors in survivors_of(scheme, 20)[1:]:
        if not survivors:
            continue
        bound = scheme.approximation_error(survivors)
        # The estimates of unit gradients are the columns of A E; those of the worst direction make the bound tight.
        found = estimated_matrix(scheme, survivors)
        assert np.linalg.norm(found - wanted(scheme), 2) == pytest.approx(bound, abs=1e-6), survivors
        worst = np.linalg.svd(found - wanted(scheme))[2][0].reshape(scheme.partitions, scheme.reduction)
        for values in (rng.standard_normal((scheme.partitions, length)), np.repeat(worst, 4, axis=1)):
            sent = messages(scheme, values)
            decoded = scheme.decode({w: sent[w] for w in survivors}, length, approximate=True)
            error = float(np.linalg.norm(decoded - values.sum(axis=0)))
            size = float(np.linalg.norm(values))
            assert error <= bound * size * (1 + 1e-9) + 1e-6 * size
        assert error == pytest.approx(bound * size, rel=1e-6, abs=1e-6)
    assert whole.any()


def estimated_matrix(scheme: GradientCode, survivors: tuple[int, ...], approximate: bool | str = True) -> Array:
    """A E, a column for each block of each partition, found by decoding unit gradients."""
    m, partitions = scheme.reduction, scheme.partitions
    units = np.zeros((partitions, m, partitions * m))
    for j in range(partitions):
        for u in range(m):
            units[j, u, j * m + u] = 1
    sent = messages(scheme, units.reshape(partitions, -1))
    decoded = scheme.decode({w: sent[w] for w in survivors}, partitions * m * m, approximate=approximate)
    return np.asarray(decoded.reshape(m, -1))


@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_bits_depend_on_the_survivors_alone(case: Case) -> None:
    scheme, other = case.scheme, case.fresh()
    values = np.random.default_rng(SEED).standard_normal((scheme.partitions, 37)).astype(np.float32)
    sent = messages(scheme, values)
    for survivors in survivors_of(scheme, 12)[1:]:
        if not survivors:
            continue
        decoded = scheme.decode({w: sent[w] for w in survivors}, 37, approximate=True)
        backwards = other.decode({w: sent[w] for w in survivors[::-1]}, 37, approximate=True)
        assert same_bits(decoded, backwards)
        collector = scheme.collector(37, np.float32)
        for worker in survivors[::-1]:
            collector.add(worker, sent[worker])
        assert same_bits(collector.gradient(approximate=True), decoded)
        if scheme.exact and scheme.is_decodable(survivors):
            assert scheme.approximation_error(survivors) == 0
            assert same_bits(decoded, scheme.decode({w: sent[w] for w in survivors}, 37))


# On average -----------------------------------------------------------------------------------------------------------

SAME_ON_AVERAGE = [
    (schemes.grouped(8, 4, 2), "one_step"),
    (schemes.grouped(8, 4, 2), "unbiased"),
    (schemes.grouped(9, 3, 1), "unbiased"),
    (schemes.grouped(10, 4, 2, uneven=True), "unbiased"),
    (schemes.grouped(8, code=codes.reed_muller(1, 3)), "unbiased"),
    (schemes.fractional_repetition(6, 2), "one_step"),
    (schemes.fractional_repetition(6, 2), "unbiased"),
    (schemes.cyclic_repetition(7, 2), "one_step"),
    (schemes.polynomial(6, 2, 2), "one_step"),
    (schemes.ignore_stragglers(6, 2), "unbiased"),
    (schemes.ignore_stragglers(6, 2), "one_step"),
    (schemes.erasure_head(8, 2, 3), "one_step"),
    (schemes.erasure_head(8, 2, 3), "unbiased"),
    (schemes.expander(8, 3, 3), "one_step"),
    (schemes.margulis(9, 3), "one_step"),
    (schemes.bibd(7, 3, 3), "one_step"),
    (schemes.bibd(7, 4, 3), "unbiased"),
    (schemes.from_assignment([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)]), "one_step"),
]


@pytest.mark.parametrize(("scheme", "method"), SAME_ON_AVERAGE, ids=[f"{s.name} {m}" for s, m in SAME_ON_AVERAGE])
def test_unbiased_where_every_set_of_as_many_survivors_is_equally_likely(scheme: GradientCode, method: str) -> None:
    tried = 0
    for count in range(1, scheme.workers + 1):
        sets = list(combinations(range(scheme.workers), count))
        try:
            mean = sum(estimated_matrix(scheme, survivors, method) for survivors in sets) / len(sets)
        except ValueError:  # so few never decode a group
            continue
        tried += 1
        assert mean == pytest.approx(wanted(scheme), abs=1e-9), count
    assert tried > scheme.workers // 2 if method == "unbiased" else tried == scheme.workers


def test_an_unbiased_estimate_is_the_sum_where_all_such_sets_decode() -> None:
    scheme = schemes.grouped(8, 4, 2)
    sent = messages(scheme, np.random.default_rng(SEED).standard_normal((8, 11)))
    some = {w: sent[w] for w in range(1, 7)}
    expected = scheme.decode({w: sent[w] for w in range(2, 8)}, 11)
    assert same_bits(scheme.decode({w: sent[w] for w in range(2, 8)}, 11, approximate="unbiased"), expected)
    assert scheme.approximation_error(range(1, 7), "unbiased") == 0
    assert scheme.decode(some, 11, approximate="unbiased").shape == (11,)


def test_other_methods_have_no_less_error() -> None:
    for scheme, method in SAME_ON_AVERAGE:
        for survivors in survivors_of(scheme, 20)[1:]:
            if survivors:
                try:
                    error = scheme.approximation_error(survivors, method)
                except ValueError:
                    continue
                assert error >= scheme.approximation_error(survivors) - 1e-7
                found = np.linalg.norm(estimated_matrix(scheme, survivors, method) - wanted(scheme), 2)
                assert error == pytest.approx(found, abs=1e-7)


# The rest -------------------------------------------------------------------------------------------------------------


def test_patterns_that_cannot_be_decoded_have_a_cache_of_their_own() -> None:
    scheme = schemes.grouped(8, 4, 2)
    for _ in range(3):
        scheme.approximation_error([0, 4, 5])
        scheme.approximation_error([1, 2, 4])
    assert scheme.approximations.size == 1  # position 0 alone, in either group
    assert scheme.approximations.misses == 1
    scheme.approximations.precompute([[0, 1, 5], [0, 6]])
    assert scheme.approximations.size == 3


def test_saved_schemes_estimate_the_same() -> None:
    for case in APPROXIMATE:
        scheme = case.scheme
        stream = io.BytesIO()
        scheme.save(stream)
        stream.seek(0)
        back = schemes.load(stream)
        assert back.fingerprint == scheme.fingerprint
        assert (back.exact, back.stragglers) == (False, scheme.stragglers)
        sent = messages(scheme, np.random.default_rng(SEED).standard_normal((scheme.partitions, 5)))
        some = {w: sent[w] for w in range(scheme.workers - 1)}
        assert same_bits(back.decode(some, 5), scheme.decode(some, 5))
        assert same_bits(back.decode(some, 5, approximate=True), scheme.decode(some, 5, approximate=True))


def test_a_scheme_that_is_not_exact_decodes_by_its_own_method() -> None:
    values = np.random.default_rng(SEED).standard_normal((7, 5))
    for method in ("optimal", "one_step", "unbiased"):
        scheme = schemes.bibd(7, 3, 3, decoder=method)
        sent = messages(scheme, values)
        some = {w: sent[w] for w in (0, 2, 3, 6)}
        assert same_bits(scheme.decode(some, 5), scheme.decode(some, 5, approximate=method))
        assert scheme.approximation_error(some, False) == scheme.approximation_error(some, method)
        assert not scheme.collector(5, np.float64).ready


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda s, m: s.decode(m, 9, approximate="best"), ValueError, "approximate must be True, False or one of optimal"),
    (lambda s, m: s.decode({}, 9, approximate=True), NotDecodableError, "nobody has answered"),
    (lambda s, m: s.approximation_error([0, 0]), ValueError, "survivors must not repeat"),
    (lambda s, m: s.approximation_error([0], False), NotDecodableError, "do not determine the sum"),
    (lambda s, m: s.approximation_error([0], "unbiased"), ValueError, "no such set decodes workers"),
    (lambda s, m: s.collector(9, np.float64).gradient(approximate=True), NotDecodableError, "nobody has answered"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_input(call: Any, kind: type[Exception], message: str) -> None:
    scheme = schemes.grouped(8, 4, 2)
    sent = messages(scheme, np.ones((8, 9)))
    with pytest.raises(kind, match=message):
        call(scheme, {0: sent[0]})
