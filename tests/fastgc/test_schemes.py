"""Schemes: parameters, assignments, promises found by rank, refusals and warnings at construction."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scheme_table import CONSTRUCTED, SAMPLED, Case, encoding, given_as_coefficients, names

from fastgc import GradientCode, NotDecodableError, codes, schemes

# Parameters -----------------------------------------------------------------------------------------------------------

NUMBERS: list[tuple[Callable[[], GradientCode], tuple[int, int, int, int, int]]] = [
    # workers, partitions, load, stragglers, reduction
    (lambda: schemes.uncoded(7), (7, 7, 1, 0, 1)),
    (lambda: schemes.ignore_stragglers(7, 3), (7, 7, 1, 3, 1)),
    (lambda: schemes.fractional_repetition(12, 3), (12, 12, 4, 3, 1)),
    (lambda: schemes.cyclic_repetition(7, 3), (7, 7, 4, 3, 1)),
    (lambda: schemes.cyclic_mds(7, 2), (7, 7, 3, 2, 1)),
    (lambda: schemes.polynomial(9, 2, 3), (9, 9, 5, 2, 3)),
    (lambda: schemes.polynomial_gaussian(9, 3, 2), (9, 9, 5, 3, 2)),
    (lambda: schemes.erasure_head(12, 3, 5), (12, 12, 3, 5, 1)),
    (lambda: schemes.expander(10, 3, 4), (10, 10, 3, 4, 1)),
    (lambda: schemes.margulis(25, 6), (25, 25, 8, 6, 1)),
    (lambda: schemes.bibd(13, 4, 6), (13, 13, 4, 6, 1)),
    (lambda: schemes.from_assignment([(0, 1), (1, 2, 3)], stragglers=1), (2, 4, 3, 1, 1)),
    (lambda: schemes.heterogeneous(6, 2, 2), (6, 6, 4, 2, 2)),
    (lambda: schemes.heterogeneous(4, 1, speeds=[1, 1, 2, 2], partitions=3), (4, 3, 2, 1, 1)),
    (lambda: schemes.grouped(8, 4, 2, speeds=[1, 1, 1, 1, 3, 3, 3, 3]), (8, 8, 6, 2, 2)),
    (lambda: schemes.grouped(12, 4, 2), (12, 12, 4, 2, 2)),
    (lambda: schemes.grouped(10, code=codes.gaussian(5, 3)), (10, 10, 5, 2, 3)),
    (lambda: schemes.grouped(14, code=codes.hamming(3)), (14, 14, 7, 2, 4)),
    (lambda: schemes.grouped(16, code=codes.reed_muller(1, 3)), (16, 16, 8, 3, 4)),
    (lambda: schemes.grouped(9, code=codes.product(codes.parity(2), codes.parity(2))), (9, 9, 9, 3, 4)),
    (lambda: schemes.grouped(8, 4, 2, code=codes.cauchy(4, 2)), (8, 8, 4, 2, 2)),
    # Eleven workers under load 4: groups of 4, 4 and 3; the smallest tolerates 3 - 2.
    (lambda: schemes.grouped(11, 4, 2, uneven=True), (11, 11, 4, 1, 2)),
    (lambda: schemes.grouped(12, 5, 2, uneven=True), (12, 12, 4, 2, 2)),
    (lambda: schemes.grouped(8, 4, 2, uneven=True), (8, 8, 4, 2, 2)),
]


INEXACT = ("ignore_stragglers", "erasure_head", "expander", "margulis", "bibd", "from_assignment")


@pytest.mark.parametrize(("make", "numbers"), NUMBERS, ids=[make().name for make, _ in NUMBERS])
def test_parameters(make: Callable[[], GradientCode], numbers: tuple[int, ...]) -> None:
    s = make()
    assert (s.workers, s.partitions, s.load, s.stragglers, s.reduction) == numbers
    assert s.name in repr(s)
    assert s.exact == (not s.name.startswith(INEXACT))


def test_groups_hold_their_own_partitions() -> None:
    scheme = schemes.grouped(11, 4, 2, uneven=True)
    assert [len(group.workers) for group in scheme.groups] == [4, 4, 3]
    for group in scheme.groups:
        assert all(scheme.assignment[worker] == group.workers for worker in group.workers)


def test_each_worker_of_a_group_weighs_its_partitions_alike() -> None:
    code = codes.gaussian(4, 2, seed=3)
    scheme = schemes.grouped(8, code=code)
    for worker in range(8):
        assert np.array_equal(scheme.coefficients(worker), np.tile(code.generator[worker % 4], (4, 1)))


def test_uneven_groups_take_the_punctured_code_or_a_fresh_one() -> None:
    code = codes.cauchy(4, 2)
    punctured = schemes.grouped(7, code=code, uneven=True)
    assert np.array_equal(punctured.coefficients(6)[0], code.generator[2])
    fresh = schemes.grouped(7, 4, 2, uneven=True)
    assert np.array_equal(fresh.coefficients(6)[0], codes.optimized(3, 2).generator[2])


@pytest.mark.parametrize("n", range(1, 13))
def test_cyclic_schemes_hold_consecutive_partitions(n: int) -> None:
    for s in range(n):
        made = [schemes.cyclic_repetition(n, s)]
        if (n - s) % 2:
            made.append(schemes.cyclic_mds(n, s))
        made += [schemes.polynomial_gaussian(n, s, m) for m in (1, 2) if m <= n - s]
        for scheme in made:
            d = s + scheme.reduction
            assert scheme.load == d
            for worker, held in enumerate(scheme.assignment):
                assert set(held) == {(worker + t) % n for t in range(d)}, scheme.name


@pytest.mark.parametrize("n", range(1, 13))
def test_cyclic_mds_is_cyclic_and_sums_to_one(n: int) -> None:
    """Raviv et al.: the rows are the shifts of one polynomial with stragglers + 1 coefficients."""
    for s in range(n):
        if (n - s) % 2 == 0:
            continue
        whole = encoding(schemes.cyclic_mds(n, s))[:, :, 0]
        assert all(np.array_equal(whole[i], np.roll(whole[0], i)) for i in range(n))
        assert np.abs(whole.sum(axis=0) - 1).max() < 64 * n * np.finfo(float).eps
        values = np.polyval(whole[0, s::-1], np.exp(2j * np.pi * np.arange(n) / n))  # at the n-th roots of unity
        assert np.count_nonzero(np.abs(values) < 1e-9) == s


@pytest.mark.parametrize(("n", "s"), [(5, 1), (6, 2), (8, 3), (9, 4), (12, 2)])
def test_cyclic_repetition_lies_in_the_null_space_of_one_matrix(n: int, s: int) -> None:
    whole = encoding(schemes.cyclic_repetition(n, s))[:, :, 0]
    values = np.linalg.svd(whole, compute_uv=False)
    assert values[n - s] < 1e-9 * values[0] < values[n - s - 1]
    ones = np.linalg.lstsq(whole.T, np.ones(n), rcond=1e-9)[0]
    assert np.abs(ones @ whole - 1).max() < 1e-9


@pytest.mark.parametrize(("n", "s", "m"), [(5, 1, 2), (6, 2, 1), (8, 2, 3), (9, 4, 2)])
def test_polynomial_sends_values_of_polynomials_that_vanish_elsewhere(n: int, s: int, m: int) -> None:
    """Column (j, u) is, at the points, a polynomial of degree below n - s; its leading coefficients are block u.

    But for a factor of each worker's own, which column (i, 0) tells: there it is the product of x - x_k over
    the workers k that do not hold partition i.
    """
    whole = encoding(schemes.polynomial(n, s, m))
    points = codes.ye_abbe_points(n)
    for i in range(n):
        others = points[np.setdiff1d(np.arange(n), (i - np.arange(s + m)) % n)]
        whole[i] *= np.prod(points[i] - others) / whole[i, i, 0]
    for j in range(n):
        for u in range(m):
            fit = np.polynomial.polynomial.polyfit(points, whole[:, j, u], n - 1)
            size = np.abs(fit).max()
            assert np.abs(fit[n - s :]).max(initial=0) < 1e-9 * size
            leading = fit[n - s - m : n - s]
            assert np.abs(leading - np.eye(m)[u]).max() < 1e-8 * size


def test_seeds_choose_the_random_schemes() -> None:
    for make in (
        lambda seed: schemes.cyclic_repetition(6, 2, seed=seed),
        lambda seed: schemes.polynomial_gaussian(6, 2, 2, seed=seed),
        lambda seed: schemes.grouped(6, 6, 3, code="gaussian", seed=seed),
    ):
        assert make(4).fingerprint == make(4).fingerprint != make(5).fingerprint


# from_coefficients ----------------------------------------------------------------------------------------------------

EVERY = [case for case in CONSTRUCTED if case.scheme.workers <= 10]


@pytest.mark.parametrize("case", EVERY, ids=names(EVERY))
def test_the_promise_of_plain_coefficients_is_found(case: Case) -> None:
    """What is found by rank is what the constructor promises by theorem, or more (uneven groups, spare columns)."""
    scheme, given = case.scheme, given_as_coefficients(case).scheme
    assert given.stragglers >= scheme.stragglers
    everyone = range(scheme.workers)
    missing = next(
        (
            m
            for m in range(1, scheme.workers + 1)
            if not all(scheme.is_decodable(set(everyone) - set(out)) for out in combinations(everyone, m))
        ),
        scheme.workers,
    )
    assert given.stragglers == missing - 1
    assert given.reduction == scheme.reduction


def test_coefficients_follow_their_partitions_when_they_are_sorted() -> None:
    scheme = schemes.from_coefficients([(1, 0), (0, 1)], [[[10.0], [1.0]], [[1.0], [2.0]]])
    assert scheme.assignment == ((0, 1), (0, 1))
    assert scheme.coefficients(0).tolist() == [[1.0], [10.0]]
    assert scheme.stragglers == 0


def test_workers_without_common_partitions_are_groups() -> None:
    one = np.ones((1, 1))
    scheme = schemes.from_coefficients([(2,), (0,), (2,), (1,), (0,), (1,)], [one] * 6)
    assert [group.workers for group in scheme.groups] == [(0, 2), (1, 4), (3, 5)]
    assert scheme.stragglers == 1
    assert scheme.is_decodable([0, 4, 5])


# Conditioning at construction -----------------------------------------------------------------------------------------


def test_construction_warns_of_bad_and_refuses_singular_codes() -> None:
    """Vandermonde codes of growing size: quiet, then a warning that names this line, then a refusal."""
    said = []
    for d in range(8, 45, 4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                scheme = schemes.grouped(d, d, d // 2, code="vandermonde")
            except ValueError as error:
                assert "numerically singular" in str(error)  # noqa: PT017
                assert f"grouped({d}" in str(error)  # noqa: PT017
                said.append("refused")
                continue
        said.append("warned" if caught else "quiet")
        for warning in caught:
            assert warning.category is RuntimeWarning
            assert warning.filename == __file__
            assert f"grouped({d}" in str(warning.message)
            assert "badly conditioned" in str(warning.message)
            assert scheme.stragglers == d // 2
    assert said == sorted(said, key=["quiet", "warned", "refused"].index)
    assert set(said) == {"quiet", "warned", "refused"}


@pytest.mark.parametrize(("distance", "outcome"), [(1e-11, "quiet"), (3e-13, "warned"), (1e-14, "refused")])
def test_points_that_almost_meet(distance: float, outcome: str) -> None:
    code = codes.vandermonde(4, 2, points=[0, 1, 1 + distance, 2])
    given = [np.tile(row, (4, 1)) for row in code.generator]
    for make in (
        lambda: schemes.grouped(8, code=code),
        lambda: schemes.from_coefficients([range(4)] * 4, given, stragglers=2),
    ):
        if outcome == "quiet":
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                make()
        elif outcome == "warned":
            with pytest.warns(RuntimeWarning, match="badly conditioned.*condition number 1.*e.13") as caught:
                make()
            assert caught[0].filename == __file__
        else:
            with pytest.raises(ValueError, match="numerically singular"):
                make()


def test_the_table_is_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in CONSTRUCTED + SAMPLED:
            case.make()


@pytest.mark.parametrize("n", [20, 26, 32, 38])
def test_polynomial_decodes_as_far_as_it_is_not_refused(n: int) -> None:
    scheme = schemes.polynomial(n, 3, 2)
    whole = encoding(scheme).reshape(n, -1)
    wanted = np.tile(np.eye(2), (1, n))
    rng = np.random.default_rng(n)
    for _ in range(50):
        survivors = sorted(rng.permutation(n)[:-3].tolist())
        miss = np.abs(scheme.decoding_weights(survivors) @ whole[survivors] - wanted).max()
        assert miss < 1e-6, f"seed {n}: {survivors}"


def test_polynomial_is_refused_where_float64_ends() -> None:
    with pytest.raises(ValueError, match=r"polynomial\(38, 8, 4\) is numerically singular"):
        schemes.polynomial(38, 8, 4)


@pytest.mark.parametrize(("workers", "load", "options"), [
    (8, 4, {}), (6, 6, {"code": "chebyshev"}), (3, 1, {}), (11, 4, {"uneven": True}),
    (8, 4, {"code": "gaussian", "seed": 3}),
])  # fmt: skip
def test_adaptive_is_grouped_under_every_reduction(workers: int, load: int, options: dict[str, Any]) -> None:
    scheme = schemes.adaptive(workers, load, **options)
    smallest = min(len(group.workers) for group in scheme.groups)
    assert scheme.reductions == tuple(range(1, smallest + 1))
    assert scheme.reduction == 1
    for m in scheme.reductions:
        own, fixed = scheme.with_reduction(m), schemes.grouped(workers, load, m, **options)
        assert own is scheme.with_reduction(m)
        assert own.assignment == scheme.assignment
        assert (own.reduction, own.stragglers) == (m, fixed.stragglers)
        for worker in range(workers):
            assert np.array_equal(own.coefficients(worker), fixed.coefficients(worker))
        assert fixed.reductions == (m,)
        assert fixed.with_reduction(m) is fixed
        if m > 1:
            assert own.fingerprint == fixed.fingerprint
            assert scheme.in_parts(2).with_reduction(m).fingerprint == fixed.in_parts(2).fingerprint


# Errors ---------------------------------------------------------------------------------------------------------------

ONE = [[1.0]]
given = schemes.from_coefficients
NARROW = codes.from_generator([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [1.0, 1.0]])
BAD: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("no workers", lambda: schemes.uncoded(0), ValueError, "workers .*at least 1.*not 0"),
    ("workers not an integer", lambda: schemes.uncoded(2.0), TypeError, "workers .*not 2.0"),  # type: ignore[arg-type]
    ("workers a bool", lambda: schemes.uncoded(True), TypeError, "workers .*not True"),
    ("stragglers = workers", lambda: schemes.ignore_stragglers(4, 4), ValueError, "stragglers .*at most 3, not 4"),
    ("negative stragglers", lambda: schemes.fractional_repetition(4, -1), ValueError, "stragglers .*not -1"),
    ("repetition does not divide", lambda: schemes.fractional_repetition(10, 2), ValueError, "not 10: 9 or 12"),
    ("load does not divide", lambda: schemes.grouped(10, 4, 2), ValueError, "multiple of load = 4, not 10: 8 or 12"),
    ("load of the code", lambda: schemes.grouped(9, code=codes.cauchy(4, 2)), ValueError, "load = 4, not 9: 8 or 12"),
    ("load above workers", lambda: schemes.grouped(3, 4, 2), ValueError, "load .*at most.*3, not 4"),
    ("no load", lambda: schemes.grouped(8, reduction=2), ValueError, "load and reduction must be given"),
    ("no reduction", lambda: schemes.grouped(8, 4), ValueError, "load and reduction must be given"),
    ("reduction above load", lambda: schemes.grouped(8, 4, 5), ValueError, "reduction .*at most 4, not 5"),
    ("reduction 0", lambda: schemes.grouped(8, 4, 0), ValueError, "reduction .*not 0"),
    ("code against load", lambda: schemes.grouped(8, 8, code=codes.cauchy(4, 2)), ValueError, "load must be 4.*not 8"),
    ("code against m", lambda: schemes.grouped(8, 4, 3, code=codes.cauchy(4, 2)), ValueError, "reduction .*2.*not 3"),
    ("unknown family", lambda: schemes.grouped(8, 4, 2, code="turbo"), ValueError, "code .*cauchy.*not 'turbo'"),
    ("code a number", lambda: schemes.grouped(8, 4, 2, code=4), ValueError, "code .*not 4"),  # type: ignore[arg-type]
    ("small uneven group", lambda: schemes.grouped(9, 4, 4, uneven=True), ValueError, "reduction .*at most 3.*not 4"),
    ("punctured rank", lambda: schemes.grouped(6, code=NARROW, uneven=True), ValueError, "keep rank 2 in its first 3"),
    ("adaptive load", lambda: schemes.adaptive(10, 4), ValueError, "multiple of load = 4, not 10: 8 or 12"),
    ("adaptive code", lambda: schemes.adaptive(8, 4, code=codes.cauchy(4, 2)),  # type: ignore[arg-type]
     ValueError, "code must be one of .*not "),
    ("a reduction of another", lambda: schemes.adaptive(9, 4, uneven=True).with_reduction(4),
     ValueError, r"adaptive\(9, load=4.* has a code for, 1, 2, 3, not 4"),
    ("a reduction of none", lambda: schemes.uncoded(3).with_reduction(0), ValueError, "has a code for, 1, not 0"),
    ("negative seed", lambda: schemes.cyclic_repetition(4, 1, seed=-1), ValueError, "seed .*not -1"),
    ("negative seed", lambda: schemes.polynomial_gaussian(4, 1, seed=-2), ValueError, "seed .*not -2"),
    ("negative seed", lambda: schemes.grouped(4, 4, 2, code="gaussian", seed=-3), ValueError, "seed .*not -3"),
    ("cyclic repetition", lambda: schemes.cyclic_repetition(4, 4), ValueError, "stragglers .*at most 3, not 4"),
    ("even n - s", lambda: schemes.cyclic_mds(6, 2), ValueError, "not 6 - 2 = 4: take stragglers 1 or 3, or"),
    ("even n - s, no smaller s", lambda: schemes.cyclic_mds(4, 0), ValueError, "take stragglers 1, or workers 3 or 5"),
    ("reduction above n - s", lambda: schemes.polynomial(6, 3, 4), ValueError, "reduction .*at most 3, not 4"),
    ("NaN", lambda: given([(0,)], [[[np.nan]]]), ValueError, r"coefficients\[0\] .*finite"),
    ("infinity", lambda: given([(0,)], [[[np.inf]]]), ValueError, r"coefficients\[0\] .*finite"),
    ("no workers given", lambda: given([], []), ValueError, "0 given for 0 workers"),
    ("too few coefficients", lambda: given([(0,), (0,)], [ONE]), ValueError, "1 given for 2"),
    ("an idle worker", lambda: given([(0,), ()], [ONE, ONE]), ValueError, r"assignment\[1\].*empty"),
    ("wrong shape", lambda: given([(0, 1)], [ONE]), ValueError, r"\(2, reduction\), not \(1, 1\)"),
    ("1-D", lambda: given([(0,)], [[1.0]]), ValueError, r"coefficients\[0\].*not \(1,\)"),
    ("columns", lambda: given([(0,), (0,)], [ONE, [[1.0, 2.0]]]), ValueError, r"columns.*\[1, 2\]"),
    ("repeated", lambda: given([(0, 0)], [[[1.0], [1.0]]]), ValueError, r"assignment\[0\].*repeat: 0"),
    ("negative", lambda: given([(0,), (-1,)], [ONE, ONE]), ValueError, r"assignment\[1\]\[0\].*not -1"),
    ("orphan", lambda: given([(0,), (2,)], [ONE, ONE]), ValueError, r"nobody holds \[1\]"),
    ("no sum", lambda: given([(0, 1)], [[[1.0], [2.0]]]), ValueError, r"workers \[0\].*do not"),
    ("zero", lambda: given([(0,), (1,)], [ONE, [[0.0]]]), ValueError, r"workers \[1\].*do not"),
    ("false promise", lambda: given([(0, 1), (0, 1)], [[[1.0], [1.0]], [[1.0], [2.0]]], stragglers=1),
     ValueError, "with 1 of 2 workers missing"),
    ("complex coefficients", lambda: given([(0,)], [[[1 + 1j]]]), TypeError, r"coefficients\[0\] .*complex"),
    ("negative seed", lambda: schemes.grouped(4, 2, 1, seed=-1), ValueError, "seed .*not -1"),
    ("promise for a group", lambda: given([(0,), (1,)], [ONE, ONE], stragglers=1), ValueError,
     r"stragglers .*at most 0, not 1: workers \[0\] share partitions with no one"),
    ("promise too large", lambda: given([(0,)] * 2, [ONE] * 2, stragglers=2), ValueError,
     "stragglers .*at most 1, not 2"),
    ("partition as text", lambda: given([("a",)], [ONE]), TypeError, r"assignment\[0\]\[0\].*'a'"),
    ("far orphans", lambda: given([(0, 10**12)], [[[1.0]] * 2]), ValueError, r"nobody holds \[1, 2,"),
    ("no such file", lambda: schemes.load("/nonexistent/scheme"), FileNotFoundError, "nonexistent"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call: Callable[[], object], kind: type[Exception], pattern: str) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)


# Promises that are too many to check ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [30, 34, 38])
def test_consecutive_rows_are_checked_however_many_sets_there_are(size: int) -> None:
    """Neighbouring points are the worst set of a code on ordered points, and no random sample meets it."""
    with pytest.raises(ValueError, match="numerically singular"):
        schemes.grouped(size, size, size // 2, code="chebyshev")


def test_a_promised_set_that_was_not_checked_is_ranked_when_it_comes() -> None:
    """A code with two equal rows where neither a window nor the sample sees both as the last of its rank."""
    rng = np.random.default_rng(3)
    generator = rng.standard_normal((24, 12))
    bad = np.sort(rng.permutation(24)[:12])
    generator[bad[0]] = generator[bad[1:]].sum(axis=0)  # these 12 rows have rank 11
    code = codes.from_generator(generator, distance=13)
    scheme = schemes.grouped(24, code=code)
    assert scheme.stragglers == 12
    survivors = bad.tolist()
    assert not scheme.is_decodable(survivors)
    assert scheme.condition_number(survivors) == float("inf")
    collector = scheme.collector(12, np.float64)
    for worker in survivors:
        collector.add(worker, np.ones(1))
    assert not collector.ready
    with pytest.raises(NotDecodableError) as caught:
        scheme.decode({w: np.ones(1) for w in survivors}, 12)
    assert caught.value.survivors == tuple(survivors)
    collector.add(next(w for w in range(24) if w not in survivors), np.ones(1))
    assert collector.ready


@pytest.mark.parametrize(("n", "s", "m"), [(12, 3, 3), (20, 3, 3), (40, 3, 3), (44, 1, 1)])
def test_polynomial_coefficients_stay_small(n: int, s: int, m: int) -> None:
    scheme = schemes.polynomial(n, s, m)
    largest = [np.abs(scheme.coefficients(w)).max() for w in range(n)]
    assert largest == pytest.approx(np.ones(n))
    gradients = np.full((s + m, 3 * m), 30.0, np.float32)
    assert all(np.isfinite(scheme.encode(w, gradients)).all() for w in range(n))
