"""The approximate schemes have the structure of their papers, and the errors that these derive."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb, sqrt
from typing import Any

import numpy as np
import pytest

from fastgc import GradientCode, schemes
from fastgc.approximate_schemes import block_probabilities, second_eigenvalue

SEED = 1805


def holds(scheme: GradientCode) -> Any:
    matrix = np.zeros((scheme.workers, scheme.partitions))
    for worker, held in enumerate(scheme.assignment):
        matrix[worker, list(held)] = scheme.coefficients(worker)[:, 0]
    return matrix


def squared_errors(scheme: GradientCode, count: int, method: str, rng: np.random.Generator, times: int) -> list[float]:
    sets = [sorted(rng.permutation(scheme.workers)[:count].tolist()) for _ in range(times)]
    return [scheme.approximation_error(survivors, method) ** 2 for survivors in sets]


def agree(samples: list[float], expected: float) -> None:
    """The mean of samples is what it should be, within five standard errors."""
    error = float(np.std(samples, ddof=1)) / sqrt(len(samples))
    assert abs(float(np.mean(samples)) - expected) <= 5 * error + 1e-9, (np.mean(samples), expected, error)


# Formulas -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 9, 11])
def test_erasure_head_loses_the_groups_nobody_of_which_answers(count: int) -> None:
    n, d = 12, 3
    scheme = schemes.erasure_head(n, d, 4)
    mean = np.mean([scheme.approximation_error(f) ** 2 for f in combinations(range(n), count)])
    assert mean == pytest.approx(n * comb(n - d, count) / comb(n, count), abs=1e-9)


REGULAR = [
    schemes.erasure_head(12, 3, 4),
    schemes.expander(10, 4, 3),
    schemes.bibd(11, 5, 3),
    schemes.from_assignment([(0, 1), (1, 2), (2, 3), (3, 0)]),
]


@pytest.mark.parametrize("scheme", REGULAR, ids=lambda s: s.name)
def test_the_one_step_error_where_all_hold_and_are_held_alike(scheme: GradientCode) -> None:
    """k (k - d) (n - r) / (r d (n - 1)): each partition is held by hypergeometrically many of r survivors."""
    n, k, d = scheme.workers, scheme.partitions, scheme.load
    for count in (1, n // 2, n - 1, n):
        sets = list(combinations(range(n), count))
        mean = np.mean([np.sum(one_step_residual(scheme, f) ** 2) for f in sets])
        assert mean == pytest.approx(k * (k - d) * (n - count) / (count * d * (n - 1)), abs=1e-9)
        assert mean == pytest.approx(np.mean([scheme.approximation_error(f, "one_step") ** 2 for f in sets]), abs=1e-9)


def one_step_residual(scheme: GradientCode, survivors: tuple[int, ...]) -> Any:
    """The estimate's weight of each partition, less one: Charles et al.'s weights k / (r d) on plain sums."""
    held = holds(scheme)[list(survivors)] != 0
    return scheme.partitions / (len(survivors) * scheme.load) * held.sum(axis=0) - 1


def test_the_one_step_error_of_bernoulli_codes() -> None:
    """k (k - s) / (r s) over the code, which is below the paper's C² k / ((1 - δ) s) with C = 1."""
    n, load, count = 24, 8, 15
    rng = np.random.default_rng(SEED)
    errors = []
    for seed in range(400):
        errors += squared_errors(schemes.bernoulli(n, load, 9, seed=seed), count, "one_step", rng, 1)
    agree(errors, n * (n - load) / (count * load))
    assert np.mean(errors) <= n / (count / n * load)


@pytest.mark.parametrize("within", [0.5, 0.75])
def test_the_one_step_error_of_stochastic_block_codes(within: float) -> None:
    n, load, count, blocks = 24, 8, 15, 2
    p, q = block_probabilities(n, load, blocks, within)
    b = 1 / blocks
    spread = count * (p * (1 - p) + (blocks - 1) * q * (1 - q)) / blocks
    uneven = (p - q) ** 2 * count * b * (1 - b) * (n - count) / (n - 1)
    rng = np.random.default_rng(SEED)
    errors = []
    for seed in range(400):
        scheme = schemes.stochastic_block(n, load, 9, within=within, seed=seed)
        errors += squared_errors(scheme, count, "one_step", rng, 1)
    agree(errors, n * (n / (count * load)) ** 2 * (spread + uneven))


@pytest.mark.parametrize(("n", "load"), [(10, 3), (11, 4), (12, 5), (16, 6), (30, 4)])
def test_expanders_keep_their_bound(n: int, load: int) -> None:
    scheme = schemes.expander(n, load, 2)
    adjacency = load * holds(scheme)
    assert np.array_equal(adjacency, adjacency.T)
    assert not adjacency.diagonal().any()
    assert set(adjacency.sum(axis=1)) == {load}
    check_bound(scheme, second_eigenvalue(adjacency) / load)


@pytest.mark.parametrize("a", [2, 3, 5, 7])
def test_margulis_graphs_expand_as_gabber_and_galil_show(a: int) -> None:
    scheme = schemes.margulis(a * a, 1)
    adjacency = 8 * holds(scheme)
    assert np.array_equal(adjacency, adjacency.T)
    assert set(adjacency.sum(axis=1)) == {8}
    assert second_eigenvalue(adjacency) <= 5 * sqrt(2) + 1e-9
    check_bound(scheme, 5 * sqrt(2) / 8)


def check_bound(scheme: GradientCode, share: float) -> None:
    """Raviv et al.: at most (λ / d) (n s / (n - s))^(1/2), for random sets and for neighbourhoods."""
    n = scheme.workers
    rng = np.random.default_rng(SEED)
    for missing in range(1, n):
        sets = [rng.permutation(n)[missing:].tolist() for _ in range(10)]
        sets.append([w for w in range(n) if w >= missing])
        for survivors in sets:
            bound = share * sqrt(n * missing / (n - missing)) + 1e-9
            assert scheme.approximation_error(survivors, "one_step") <= bound
            assert scheme.approximation_error(survivors) <= bound


DESIGNS = [(7, 3), (7, 4), (7, 6), (11, 5), (11, 6), (13, 4), (13, 9), (15, 7), (15, 8), (19, 9), (21, 20), (31, 6)]


@pytest.mark.parametrize(("n", "load"), DESIGNS)
def test_designs_have_one_error_for_each_number_of_survivors(n: int, load: int) -> None:
    scheme = schemes.bibd(n, load, 2)
    common = holds(scheme) @ holds(scheme).T
    shared = load * (load - 1) / (n - 1)
    assert np.array_equal(common, np.full((n, n), shared) + (load - shared) * np.eye(n))
    rng = np.random.default_rng(SEED)
    for count in range(1, n + 1):
        expected = n - load**2 * count / (load - shared + shared * count)
        for error in squared_errors(scheme, count, "optimal", rng, 5):
            assert error == pytest.approx(expected, abs=1e-8)
        weights = scheme.decoding_weights(sorted(rng.permutation(n)[:count].tolist()))
        assert np.ptp(weights) < 1e-9


def test_regularized_bernoulli_codes_have_no_large_load() -> None:
    plain = [max(map(len, schemes.bernoulli(40, 3, 5, seed=seed).assignment)) for seed in range(20)]
    regular = [max(map(len, schemes.bernoulli(40, 3, 5, regularized=True, seed=s).assignment)) for s in range(20)]
    assert max(plain) > 6 >= max(regular)


def test_random_schemes_leave_nobody_and_nothing_out() -> None:
    for seed in range(20):
        for scheme in (schemes.bernoulli(12, 1, 3, seed=seed), schemes.stochastic_block(12, 1, 3, seed=seed)):
            assert scheme.partitions == 12
            assert all(scheme.assignment)
            assert {p for held in scheme.assignment for p in held} == set(range(12))
        assert schemes.bernoulli(12, 3, 3, seed=seed).fingerprint == schemes.bernoulli(12, 3, 3, seed=seed).fingerprint
    assert schemes.bernoulli(12, 3, 3, seed=0).fingerprint != schemes.bernoulli(12, 3, 3, seed=1).fingerprint


BAD: list[tuple[Callable[[], GradientCode], str]] = [
    (lambda: schemes.erasure_head(10, 4, 2), "workers must be a multiple of load = 4, not 10: 8 or 12 would be"),
    (lambda: schemes.erasure_head(8, 4, 8), "stragglers must be an integer of at least 0 and at most 7, not 8"),
    (lambda: schemes.bernoulli(8, 9, 2), "load must be an integer of at least 1 and at most 8, not 9"),
    (
        lambda: schemes.bernoulli(8, 2, 2, decoder="unbiased"),
        "decoder must be one of optimal, one_step, not 'unbiased'",
    ),
    (lambda: schemes.bibd(7, 3, 2, decoder="best"), "decoder must be one of optimal, one_step, unbiased, not 'best'"),
    (lambda: schemes.bibd(12, 4, 3), "loads are 1, 11, 12, and load 4 has a design with 13 or 7 workers; not 4"),
    (lambda: schemes.expander(9, 3, 2), "load or workers must be even for a regular graph, not 3 and 9: take load 4"),
    (lambda: schemes.expander(6, 6, 2), "load must be at most 5 for a graph of 6 workers, not 6"),
    (lambda: schemes.margulis(10, 2), "workers must be a square for the Margulis graph, not 10: 9 or 16 would be"),
    (lambda: schemes.stochastic_block(9, 3, 2), "blocks must divide the number of workers, 9, not 2"),
    (lambda: schemes.stochastic_block(8, 6, 2, within=1.0), "within must make probabilities of"),
    (lambda: schemes.from_assignment([(0,), ()]), r"assignment\[1\] must not be empty"),
    (lambda: schemes.from_assignment([(0, 2)]), r"nobody holds \[1\]"),
    (lambda: schemes.from_assignment([]), "assignment must have at least one worker"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(make: Callable[[], GradientCode], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
