"""Linear codes: distances by theorem and by rank, MDS by enumeration, conditioning, decoding weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb, tan

import numpy as np
import pytest

from fastgc import NotDecodableError, codes, linalg
from fastgc.codes import LinearCode

MDS = [
    codes.FAMILIES[name](n, k)
    for name in codes.FAMILIES
    for n in (*range(1, 9), 10, 12, 14, 16)
    for k in range(1, n + 1)
    if (n <= 8 or k in (1, 2, n // 2, n - 1, n)) and not (name == "vandermonde" and n > 14)
]
OTHER = [
    *[codes.repetition(n) for n in range(1, 17)],
    *[codes.parity(k) for k in range(1, 16)],
    *[codes.hamming(r) for r in (2, 3, 4)],
    *[codes.reed_muller(r, m) for m in range(1, 5) for r in range(m + 1)],
    codes.product(codes.parity(2), codes.parity(2)),
    codes.product(codes.parity(3), codes.parity(3)),
    codes.product(codes.hamming(3), codes.repetition(2)),
    codes.product(codes.repetition(3), codes.cauchy(5, 2)),
    codes.product(codes.cauchy(4, 2), codes.gaussian(4, 3)),
    codes.product(codes.reed_muller(1, 2), codes.parity(3)),
]


@pytest.mark.parametrize("code", MDS + OTHER, ids=lambda code: code.name)
def test_distance_by_theorem_is_the_distance_by_rank(code: LinearCode) -> None:
    assert code.distance == codes._distance_by_rank(code.generator)
    assert code.is_mds == (code.distance == code.n - code.k + 1)
    assert 1 <= code.distance <= code.n - code.k + 1


@pytest.mark.parametrize("code", MDS, ids=lambda code: code.name)
def test_all_sets_of_an_mds_code_have_full_rank(code: LinearCode) -> None:
    assert code.is_mds
    rows = np.array(list(combinations(range(code.n), code.k)))
    for batch in np.array_split(rows, -(-len(rows) // 5000)):
        assert (linalg.rank(code.generator[batch]) == code.k).all()


def least_weight(code: LinearCode) -> int:
    """The distance from its definition: the least number of nonzeros of a codeword. All k - 1 zeros are tried."""
    if code.k == 1:
        return int(np.count_nonzero(code.generator))
    least = code.n
    for zeros in combinations(range(code.n), code.k - 1):
        _, values, right = np.linalg.svd(code.generator[list(zeros)])
        for direction in right[np.count_nonzero(values > 1e-9) :]:
            word = code.generator @ direction
            least = min(least, int(np.count_nonzero(np.abs(word) > 1e-9 * np.abs(word).max())))
    return least


@pytest.mark.parametrize(
    "code",
    [codes.hamming(2), codes.hamming(3), codes.parity(5), codes.repetition(6), codes.reed_muller(1, 3), *MDS[20:61:20]],
    ids=lambda code: code.name,
)  # fmt: skip
def test_distance_is_the_least_weight_of_a_word(code: LinearCode) -> None:
    assert code.distance == least_weight(code)


@pytest.mark.parametrize(
    ("code", "n", "k", "distance"),
    [
        (codes.hamming(2), 3, 1, 3),
        (codes.hamming(3), 7, 4, 3),
        (codes.hamming(4), 15, 11, 3),
        (codes.reed_muller(1, 3), 8, 4, 4),
        (codes.reed_muller(2, 4), 16, 11, 4),
        (codes.repetition(5), 5, 1, 5),
        (codes.parity(4), 5, 4, 2),
        (codes.product(codes.parity(2), codes.hamming(3)), 21, 8, 6),
    ],
    ids=lambda value: value.name if isinstance(value, LinearCode) else str(value),
)
def test_parameters(code: LinearCode, n: int, k: int, distance: int) -> None:
    assert (code.n, code.k, code.distance) == (n, k, distance)
    assert code.generator.shape == (n, k)
    assert code.generator.dtype == np.float64
    assert code.generator.flags.c_contiguous
    assert str(n) in repr(code)


# Conditioning ---------------------------------------------------------------------------------------------------------

SIZES = [(4, 2), (6, 3), (8, 4), (10, 5), (12, 6), (12, 8)]
# Worst condition numbers over all sets of k rows, at most so much; two digits of what is published or was measured.
WORST: dict[str, list[float]] = {
    "vandermonde": [10.4, 105, 1330, 21200, 404000, 1470000],
    "chebyshev": [5.0, 31.6, 237, 1920, 16300, 7380],
    "cauchy": [2.415, 5.83, 15.3, 42.4, 122, 95],
}


@pytest.mark.parametrize("family", WORST)
@pytest.mark.parametrize("column", range(len(SIZES)), ids=str)
def test_worst_condition_number(family: str, column: int) -> None:
    n, k = SIZES[column]
    expected = WORST[family][column]
    assert codes.FAMILIES[family](n, k).worst_condition_number() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("d", [3, 4, 5, 8, 12])
@pytest.mark.parametrize("family", codes.FAMILIES)
def test_no_code_of_two_blocks_beats_the_optimum(family: str, d: int) -> None:
    """d lines in the plane at angles pi i / d have cot(pi / 2d), the least that there is."""
    least = 1 / tan(np.pi / 2 / d)
    assert codes.FAMILIES[family](d, 2).worst_condition_number() >= least * (1 - 1e-12)
    angles = np.pi * np.arange(d) / d
    lines = codes.from_generator(np.column_stack([np.cos(angles), np.sin(angles)]), distance=d - 1)
    assert lines.worst_condition_number() == pytest.approx(least, rel=1e-12)


def test_reed_muller_basis_matters() -> None:
    signs = codes.reed_muller(1, 3)
    zero_one = codes.from_generator(np.column_stack([np.ones(8), (1 - signs.generator[:, 1:]) / 2]))
    assert signs.worst_condition_number() == pytest.approx(3.7, rel=0.01)
    assert zero_one.worst_condition_number() == pytest.approx(10.9, rel=0.01)
    assert zero_one.distance == signs.distance == 4


def test_worst_condition_number_is_that_of_the_worst_set() -> None:
    code = codes.gaussian(8, 4, seed=3)
    every = [code.condition_number(rows) for rows in combinations(range(8), 4)]
    assert code.worst_condition_number() == pytest.approx(max(every), rel=1e-9)
    few = code.worst_condition_number(samples=10)
    assert few == code.worst_condition_number(samples=10) <= max(every) * (1 + 1e-9)
    assert code.worst_condition_number(samples=5000) == pytest.approx(max(every), rel=1e-9)


def test_condition_number_of_any_set() -> None:
    code = codes.reed_muller(1, 3)
    for size in range(9):
        for rows in combinations(range(8), size):
            number = code.condition_number(rows)
            if linalg.rank(code.generator[list(rows)]) < 4:
                assert number == np.inf
            else:
                assert number == pytest.approx(np.linalg.cond(code.generator[list(rows)]), rel=1e-9)


def test_large_codes_are_sampled() -> None:
    assert 1 < codes.cauchy(40, 20).worst_condition_number() < np.inf
    assert comb(40, 20) > codes.MOST_SUBSETS


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [c for c in MDS + OTHER if c.n <= 8], ids=lambda code: code.name)
def test_weights_of_every_set(code: LinearCode) -> None:
    """A G = I up to the solve's rounding, of least norm; NotDecodableError below rank k."""
    for size in range(code.n + 1):
        for rows in combinations(range(code.n), size):
            selected = code.generator[list(rows)]
            if size < code.k or linalg.rank(selected) < code.k:
                with pytest.raises(NotDecodableError) as caught:
                    code.decoding_weights(rows)
                assert caught.value.survivors == rows
                assert caught.value.missing == tuple(i for i in range(code.n) if i not in rows)
                continue
            weights = code.decoding_weights(rows)
            assert weights.shape == (code.k, size)
            size_of_product = (np.abs(weights) @ np.abs(selected)).max()
            eps = np.finfo(float).eps
            assert np.abs(weights @ selected - np.eye(code.k)).max() <= 4 * (size + code.k) * eps * size_of_product
            pseudo = np.linalg.pinv(selected)
            assert np.abs(weights - pseudo).max() <= 64 * size * eps * np.linalg.cond(selected) * np.abs(pseudo).max()


def test_columns_follow_the_order_given_with_the_same_bits() -> None:
    rng = np.random.default_rng(4)
    for code in (codes.cauchy(7, 3), codes.hamming(3)):
        for size in range(code.k + (code.distance < 4), code.n + 1):
            for _ in range(5):
                order = rng.permutation(code.n)[:size].tolist()
                if linalg.rank(code.generator[order]) == code.k:
                    weights = code.decoding_weights(sorted(order))
                    mixed = code.decoding_weights(order)
                    assert mixed[:, np.argsort(order)].tobytes() == weights.tobytes(), f"seed 4: {order}"


def test_pattern_weights_have_the_bits_of_each_alone() -> None:
    code = codes.cauchy(9, 4)
    for size in (4, 5, 6, 9):
        patterns = np.array(list(combinations(range(9), size)))
        for pattern, weights in zip(patterns, code.pattern_weights(patterns), strict=True):
            assert weights.tobytes() == code.decoding_weights(pattern.tolist()).tobytes()


def test_seeds_make_gaussian_codes() -> None:
    assert np.array_equal(codes.gaussian(6, 3, seed=7).generator, codes.gaussian(6, 3, seed=7).generator)
    assert not np.array_equal(codes.gaussian(6, 3, seed=7).generator, codes.gaussian(6, 3, seed=8).generator)


def test_own_points_of_vandermonde() -> None:
    points = np.array([0.5, -2.0, 3.0, 0.0])
    expected = np.stack([points**0, points, points**2], axis=1)
    assert np.array_equal(codes.vandermonde(4, 3, points=points).generator, expected)
    assert codes.ye_abbe_points(5).tolist() == [-1.5, -1.0, 0.0, 1.0, 1.5]


def test_a_generator_is_copied_and_read_only() -> None:
    matrix = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    code = codes.from_generator(matrix)
    matrix[:] = 7
    assert code.generator.tolist() == [[1, 0], [0, 1], [1, 1]]
    with pytest.raises(ValueError, match="read-only"):
        code.generator[0, 0] = 2.0
    assert (code.distance, code.is_mds) == (2, True)
    assert codes.from_generator(code.generator, distance=2).distance == 2


# Errors ---------------------------------------------------------------------------------------------------------------


def test_a_distance_that_takes_too_many_subsets_is_asked_for() -> None:
    large = codes.from_generator(np.random.default_rng(0).standard_normal((1500, 2)))
    with pytest.raises(ValueError, match=r"distance= must be given for this \[1500, 2\] code.*1,000,000 subsets"):
        _ = large.distance
    with pytest.raises(ValueError, match="distance= must be given"):
        _ = large.is_mds
    assert codes.from_generator(large.generator, distance=1499).is_mds
    # The theorem needs no subsets.
    assert codes.gaussian(1500, 20).distance == 1481
    assert codes.hamming(6).distance == 3


CODE = codes.cauchy(5, 3)
NAN = [[1.0, 0.0], [np.nan, 1.0]]
BAD: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("k > n", lambda: codes.gaussian(3, 4), ValueError, "k .*at most 3, not 4"),
    ("k = 0", lambda: codes.cauchy(3, 0), ValueError, "k .*at least 1.*not 0"),
    ("n = 0", lambda: codes.chebyshev(0, 1), ValueError, "n .*at least 1.*not 0"),
    ("n not an integer", lambda: codes.vandermonde(3.0, 2), TypeError, "n .*not 3.0"),  # type: ignore[arg-type]
    ("n a bool", lambda: codes.repetition(True), TypeError, "n .*not True"),
    ("negative seed", lambda: codes.gaussian(3, 2, seed=-1), ValueError, "seed .*not -1"),
    ("seed not an integer", lambda: codes.gaussian(3, 2, seed=None), TypeError, "seed .*not None"),  # type: ignore[arg-type]
    ("parity of nothing", lambda: codes.parity(0), ValueError, "k .*not 0"),
    ("hamming too small", lambda: codes.hamming(1), ValueError, "r .*at least 2.*not 1"),
    ("hamming too large", lambda: codes.hamming(13), ValueError, "r .*at most 12, not 13"),
    ("r > m", lambda: codes.reed_muller(4, 3), ValueError, "r .*at most 3, not 4"),
    ("m = 0", lambda: codes.reed_muller(0, 0), ValueError, "m .*not 0"),
    ("equal points", lambda: codes.vandermonde(3, 2, points=[1, 2, 1]), ValueError, "points must be 3 distinct"),
    ("wrong number of points", lambda: codes.vandermonde(3, 2, points=[1, 2]), ValueError, "points must be 3"),
    ("infinite point", lambda: codes.vandermonde(2, 2, points=[1, np.inf]), ValueError, "points .*finite.*inf"),
    ("not a code", lambda: codes.product(CODE, "x"), TypeError, "b must be a LinearCode, not 'x'"),  # type: ignore[arg-type]
    ("NaN", lambda: codes.from_generator(NAN), ValueError, "generator .*finite.*NaN"),
    ("1-D", lambda: codes.from_generator([1.0, 2.0]), ValueError, r"generator .*not \(2,\)"),
    ("wide", lambda: codes.from_generator(np.eye(3)[:2]), ValueError, r"generator .*not \(2, 3\)"),
    ("empty", lambda: codes.from_generator(np.zeros((3, 0))), ValueError, r"generator .*not \(3, 0\)"),
    ("rank", lambda: codes.from_generator(np.ones((3, 2))), ValueError, "generator must have rank 2: it has rank 1"),
    ("distance above n - k + 1", lambda: codes.from_generator(np.eye(3), distance=2), ValueError, "distance .*not 2"),
    ("repeated row", lambda: CODE.decoding_weights([0, 1, 1]), ValueError, "survivors must not repeat: 1"),
    ("unknown row", lambda: CODE.decoding_weights([0, 1, 5]), ValueError, r"survivors\[2\].*at most 4, not 5"),
    ("negative row", lambda: CODE.condition_number([-1, 1, 2]), ValueError, r"survivors\[0\].*not -1"),
    ("a row as text", lambda: CODE.condition_number(["a"]), TypeError, r"survivors\[0\].*not 'a'"),  # type: ignore[list-item]
    ("no samples", lambda: CODE.worst_condition_number(samples=0), ValueError, "samples .*not 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call: Callable[[], object], kind: type[Exception], pattern: str) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
