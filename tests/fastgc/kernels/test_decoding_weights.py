"""decoding_weights: residuals, bits, singular patterns by index, bad input."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from kernel_support import CPU_BACKENDS, VARIANTS, same_bits

from fastgc import kernels, linalg
from fastgc.errors import NotDecodableError
from fastgc.kernels import reference

variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
backends = pytest.mark.parametrize("backend", CPU_BACKENDS)


def some_patterns(n, k, most, rng):
    every = list(itertools.islice(itertools.combinations(range(n), k), 5000))
    chosen = rng.permutation(len(every))[:most]
    return np.array([rng.permutation(every[i]) for i in chosen])


def left_residual(weights, rows):
    k = len(rows)
    return weights.astype(np.longdouble) @ rows.astype(np.longdouble) - np.eye(k)


@backends
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 13, 16, 24])
def test_left_residual_within_the_bound_of_lu(k, backend):
    from scipy.linalg import lu

    rng = np.random.default_rng(k)
    unit = np.finfo(float).eps / 2
    generators = {"gaussian": rng.standard_normal((2 * k, k)), "ones": np.sign(rng.standard_normal((2 * k, k)))}
    generators["scaled"] = generators["gaussian"] * 10.0 ** rng.uniform(-6, 6, k)
    generators["vandermonde"] = np.vander(np.linspace(-1, 1, 2 * k), k)
    for name, generator in generators.items():
        patterns = some_patterns(2 * k, k, 30, rng)
        patterns = patterns[np.linalg.matrix_rank(generator[patterns]) == k]
        for pattern, weights in zip(
            patterns, kernels.decoding_weights(generator, patterns, backend=backend), strict=True
        ):
            permutation, lower, upper = lu(generator[pattern].T)
            # Higham, Accuracy and Stability, theorem 9.4: the computed solution of M a = e solves a nearby system,
            # off by at most gamma_3k |L| |U|. Twice, as these factors are computed too.
            bound = 2 * 3 * k * unit * (np.abs(permutation @ lower) @ np.abs(upper) @ np.abs(weights).T)
            residual = np.abs(left_residual(weights, generator[pattern])).T
            assert (residual <= bound).all(), (name, pattern)


SIZES = range(1, 21)  # one at a time above 16, in lanes below


def generators(k, rng):
    """With ties between pivots, columns of any scale, and rows that make many patterns singular."""
    gaussian = rng.standard_normal((k + 4, k))
    repeated = gaussian.copy()
    repeated[k:] = repeated[0] * [[1.0], [-2.0], [0.5], [0.0]]
    return {
        "gaussian": gaussian,
        "ties": rng.choice([-1.0, 1.0], (k + 4, k)),
        "sparse": rng.choice([-1.0, 0.0, 1.0], (k + 4, k)),
        "columns": gaussian * 10.0 ** rng.integers(-60, 60, k),
        "rows": gaussian * 10.0 ** rng.integers(-60, 60, (k + 4, 1)),
        "repeated": repeated,
    }


@pytest.mark.parametrize("k", SIZES)
def test_same_bits_everywhere(k):
    rng = np.random.default_rng(k)
    for name, generator in generators(k, rng).items():
        patterns = some_patterns(k + 4, k, 43, rng)  # no multiple of any number of lanes
        wanted, doubtful = VARIANTS[0].decoding_weights(generator, patterns)
        for variant in VARIANTS:
            for threads in (1, 2):
                weights, found = variant.decoding_weights(generator, patterns, threads=threads)
                assert same_bits(weights, wanted), (variant.name, name)
                assert found == doubtful, (variant.name, name)
            for index in (0, 1, len(patterns) - 1):
                alone, found = variant.decoding_weights(generator, patterns[index])
                assert same_bits(alone, wanted[index]), (variant.name, name)
                assert (found == [0]) == (index in doubtful)
        # What is not flagged has full rank by the one function that decides, so that nothing singular goes by.
        sure = np.setdiff1d(np.arange(len(patterns)), doubtful)
        assert (linalg.rank(generator[patterns[sure]]) == k).all(), name
        assert np.isfinite(wanted[sure]).all(), name
        assert doubtful == [] or name != "gaussian"
    regular = generators(k, rng)["gaussian"]
    patterns = some_patterns(k + 4, k, 20, rng)
    ours = kernels.decoding_weights(regular, patterns)
    np.testing.assert_allclose(reference.decoding_weights(regular, patterns), ours, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 16, 17])
def test_a_singular_pattern_in_any_lane_harms_no_other(k):
    rng = np.random.default_rng(k)
    generator = np.vstack([rng.standard_normal((k + 3, k)), np.zeros((1, k))])
    good = np.array([rng.permutation(k + 3)[:k] for _ in range(19)])
    bad = np.array([k + 3, *range(k - 1)])
    wanted, _ = VARIANTS[0].decoding_weights(generator, good)
    for variant in VARIANTS:
        for lanes in ([at] for at in range(19)):
            patterns = good.copy()
            patterns[lanes] = bad
            weights, doubtful = variant.decoding_weights(generator, patterns)
            assert doubtful == lanes, variant.name
            assert np.isnan(weights[lanes]).all()
            others = np.delete(np.arange(19), lanes)
            assert same_bits(weights[others], wanted[others]), variant.name
        weights, doubtful = variant.decoding_weights(generator, np.array([bad] * 9))
        assert doubtful == list(range(9))


# Least-norm weights ---------------------------------------------------------------------------------------------------


def solve_cases(rng):
    for n, k, q, m in [(1, 1, 1, 1), (4, 1, 3, 1), (6, 4, 4, 1), (9, 4, 7, 2), (10, 5, 8, 5), (20, 7, 20, 3)]:
        yield rng.standard_normal((n, k)), q, rng.standard_normal((m, k))
    yield rng.standard_normal((30, 27)), 27, rng.standard_normal((1, 27))
    yield rng.standard_normal((30, 27)) * 10.0 ** rng.uniform(-4, 4, (30, 1)), 28, rng.standard_normal((2, 27))


def few_missing_cases(rng):
    for n, k, m in [(1, 1, 1), (5, 5, 1), (6, 4, 1), (9, 7, 2), (12, 10, 1), (20, 18, 3), (30, 27, 1), (66, 63, 2)]:
        for missing in range(n - k + 1):
            yield rng.standard_normal((n, k)), n - missing, rng.standard_normal((m, k))


def solve_tables(rng):
    """The cases with a table for the rows that are missing, and without."""
    for generator, q, target in solve_cases(rng):
        yield generator, q, target, None
    for generator, q, target in few_missing_cases(rng):
        table = kernels.few_missing_table(generator, target)
        assert table is not None
        yield generator, q, target, table


def test_least_norm_weights_have_the_same_bits_everywhere():
    rng = np.random.default_rng(1)
    for generator, q, target, table in solve_tables(rng):
        patterns = np.array([rng.permutation(len(generator))[:q] for _ in range(11)])
        wanted = kernels.least_norm_weights(generator, patterns, target, table)
        for variant in VARIANTS:
            for threads in (1, 2):
                weights, doubtful = variant.least_norm_weights(generator, patterns, target, table, threads=threads)
                assert same_bits(weights, wanted), (variant.name, generator.shape)
                assert not doubtful
            alone, _ = variant.least_norm_weights(generator, patterns[3], target, table)
            assert same_bits(alone, wanted[3]), variant.name
        ascending = np.sort(patterns[4])
        by_mask = kernels.pattern_weights(generator, sum(1 << int(row) for row in ascending), target, table)
        assert same_bits(by_mask, kernels.least_norm_weights(generator, ascending, target, table))
        assert not by_mask.flags.writeable


def test_tables_have_the_same_bits_everywhere():
    rng = np.random.default_rng(7)
    for generator, _, target in few_missing_cases(rng):
        wanted = kernels.few_missing_table(generator, target)
        for backend in ("cpp", "numba"):
            assert same_bits(kernels.few_missing_table(generator, target, backend=backend), wanted), backend


@backends
def test_a_table_is_not_made_of_what_it_could_not_be_relied_on_for(backend):
    rng = np.random.default_rng(8)
    generator = rng.standard_normal((12, 9))
    target = rng.standard_normal((1, 9))
    assert kernels.few_missing_table(generator * 10.0 ** rng.uniform(-9, 9, 9), target, backend=backend) is not None
    generator[:, 3] = generator[:, 4] + 1e-5 * generator[:, 3]
    assert kernels.few_missing_table(generator, target, backend=backend) is None
    generator[:, 3] = generator[:, 4]
    assert kernels.few_missing_table(generator, target, backend=backend) is None


@backends
def test_patterns_that_a_table_is_not_good_enough_for_are_solved_without(backend):
    """Rows 0 to 8 are independent, but nearly not; rows 1 to 9 are not at all."""
    rng = np.random.default_rng(9)
    generator, target = rng.standard_normal((11, 9)), rng.standard_normal((1, 9))
    generator[8] = rng.standard_normal(8) @ generator[:8] + 1e-5 * generator[8]
    generator[9] = rng.standard_normal(8) @ generator[1:9]
    table = kernels.few_missing_table(generator, target, backend=backend)
    assert table is not None
    fine, near, deficient = [*range(7), 9, 10], list(range(9)), list(range(1, 10))
    some = kernels.least_norm_weights(generator, [fine, near], target, table, backend=backend)
    without = kernels.least_norm_weights(generator, [fine, near], target, backend=backend)
    assert same_bits(some[1], without[1])
    assert not same_bits(some[0], without[0])
    np.testing.assert_allclose(some[0], without[0], rtol=1e-7)
    with pytest.raises(NotDecodableError, match=r"patterns\[1\].*rank below 9"):
        kernels.least_norm_weights(generator, [fine, deficient], target, table, backend=backend)


@backends
def test_weights_by_a_table_are_as_exact_where_all_is_ill_conditioned(backend):
    """Without a look at the residual, some of these would be off by 10⁸ roundings."""
    rng = np.random.default_rng(3)
    unit = np.finfo(float).eps / 2
    n, k = 20, 16
    by_table = 0
    for exponent, near in itertools.product(np.linspace(0, 5.5, 20), np.linspace(0, 4, 15)):
        left, _, right = np.linalg.svd(rng.standard_normal((n, k)), full_matrices=False)
        generator = (left * np.geomspace(1, 10.0**-exponent, k)) @ right
        pattern = np.sort(rng.permutation(n)[:k])
        last = pattern[-1]
        generator[last] = rng.standard_normal(k - 1) @ generator[pattern[:-1]] + 10.0**-near * generator[last]
        target = rng.standard_normal((1, k))
        table = kernels.few_missing_table(generator, target, backend=backend)
        if table is None:
            continue
        weights = kernels.least_norm_weights(generator, pattern, target, table, backend=backend)
        by_table += not same_bits(weights, kernels.least_norm_weights(generator, pattern, target, backend=backend))
        rows = generator[pattern].astype(np.longdouble)
        residual = np.abs(weights.astype(np.longdouble) @ rows - target)
        bound = 4 * k * unit * (np.abs(weights) @ np.abs(rows) + np.abs(target))
        assert (residual <= bound).all(), (exponent, near)
    assert 50 < by_table < 250


def nearly_spanning(rng):
    """Patterns of too low a rank whose span has the target, so that no residual tells; of generators ever worse."""
    for exponent in np.linspace(0, 6, 150):
        spare = int(rng.integers(1, 3))
        n = int(rng.integers(3 * spare + 4, 16))
        k = n - spare
        left, _, right = np.linalg.svd(rng.standard_normal((n, k)), full_matrices=False)
        generator = (left * np.geomspace(1, 10.0**-exponent, k)) @ right
        pattern = np.sort(rng.permutation(n)[:k])
        generator[pattern[-1]] = rng.standard_normal(k - 1) @ generator[pattern[:-1]]
        yield generator, pattern, rng.standard_normal((1, k)) @ generator[pattern]


@backends
def test_a_deficient_pattern_has_no_weights_even_where_the_target_is_spanned(backend):
    tables = 0
    for generator, pattern, target in nearly_spanning(np.random.default_rng(11)):
        if linalg.rank(generator[pattern]) == len(pattern) or linalg.rank(generator) < len(pattern):
            continue
        table = kernels.few_missing_table(generator, target, backend=backend)
        tables += table is not None
        with pytest.raises(NotDecodableError, match="rank below"):
            kernels.least_norm_weights(generator, pattern, target, table, backend=backend)
    assert tables > 50


def test_a_table_is_of_no_use_without_a_target():
    rng = np.random.default_rng(12)
    generator = rng.standard_normal((9, 7))
    table = kernels.few_missing_table(generator, np.eye(7))
    for mask in (0b101111111, 0b001111111):
        wanted = kernels.pattern_weights(generator, mask)
        for call in (kernels.pattern_weights, getattr(kernels.pattern_weights, "__wrapped__", kernels.pattern_weights)):
            assert same_bits(call(generator, mask, None, table), wanted)


@backends
def test_only_a_table_of_the_same_shape_is_taken(backend):
    generator, target = np.random.default_rng(10).standard_normal((6, 5)), np.ones((1, 5))
    good = kernels.few_missing_table(generator, target, backend=backend)
    for table in (good[:-1], good[:, 1:], good.T.copy().T, good.astype(np.float32), good.tolist(), 3):
        with pytest.raises(ValueError, match=r"table: expected what few_missing_table made"):
            kernels.least_norm_weights(generator, [range(5)], target, table, backend=backend)
    with pytest.raises(ValueError, match=r"target.*\(m, 5\).*\(1, 4\)"):
        kernels.few_missing_table(generator, np.ones((1, 4)), backend=backend)
    with pytest.raises(ValueError, match="generator"):
        kernels.few_missing_table(generator.T, np.ones((1, 6)), backend=backend)


@backends
def test_least_norm_weights_meet_the_target_and_are_the_shortest(backend):
    rng = np.random.default_rng(2)
    unit = np.finfo(float).eps / 2
    for generator, q, target, table in solve_tables(rng):
        k = generator.shape[1]
        patterns = np.array([rng.permutation(len(generator))[:q] for _ in range(20)])
        for pattern, weights in zip(
            patterns, kernels.least_norm_weights(generator, patterns, target, table, backend=backend), strict=True
        ):
            rows = generator[pattern].astype(np.longdouble)
            # Each row by its own size, which is what refinement is for.
            residual = np.abs(weights.astype(np.longdouble) @ rows - target)
            bound = 2 * (q + k) * unit * (np.abs(weights) @ np.abs(rows) + np.abs(target))
            assert (residual <= bound).all(), (generator.shape, q)
            # The shortest: in the span of the columns of G_F.
            basis = np.linalg.qr(generator[pattern])[0]
            beside = weights.T - basis @ (basis.T @ weights.T)
            assert np.abs(beside).max() <= 1e-13 * np.abs(weights).max() * np.linalg.cond(generator[pattern])


@backends
def test_least_norm_weights_of_deficient_patterns(backend):
    rows = np.array([[1.0, 2, 3], [2, 4, 6], [3, 6, 9], [0, 1, 0], [0, 0, 1]])
    with pytest.raises(NotDecodableError, match=r"patterns\[1\].*\(0, 1, 2, 3\).*rank below 3") as caught:
        kernels.least_norm_weights(rows, [[0, 1, 3, 4], [0, 1, 2, 3]], np.eye(3), backend=backend)
    assert caught.value.missing == (4,)
    scale = np.array([1, 1e-150, 1e150])
    far = np.random.default_rng(3).standard_normal((5, 3)) * scale
    weights = kernels.least_norm_weights(far, [0, 1, 2, 4], np.eye(3), backend=backend)
    np.testing.assert_allclose(weights @ far[[0, 1, 2, 4]] / scale * scale[:, None], np.eye(3), rtol=0, atol=1e-13)


BAD_SOLVE = {
    "too few": ([0], np.eye(2), ValueError, r"patterns.*q >= k.*k = 2.*\(1,\)"),
    "twice": ([0, 1, 1], np.eye(2), ValueError, r"patterns\[0\].*twice.*\(0, 1, 1\)"),
    "beyond": ([0, 1, 4], np.eye(2), ValueError, r"patterns\[0\].*row 4"),
    "floats": ([0.0, 1.0], np.eye(2), TypeError, r"patterns.*float64"),
    "width of target": ([0, 1], np.eye(3), ValueError, r"target.*\(m, 2\).*\(3, 3\)"),
    "no target": ([0, 1], np.ones((0, 2)), ValueError, r"target.*\(0, 2\)"),
    "flat target": ([0, 1], np.ones(2), ValueError, r"target.*2 dimensions"),
    "NaN": ([0, 1], [[np.nan, 1]], ValueError, r"target\[0, 0\].*nan"),
    "text": ([0, 1], [["a", "b"]], TypeError, r"target.*real numbers"),
}


@backends
@pytest.mark.parametrize("name", BAD_SOLVE)
def test_bad_input_to_least_norm_weights(name, backend):
    patterns, target, error, message = BAD_SOLVE[name]
    with pytest.raises(error, match=message):
        kernels.least_norm_weights(np.ones((4, 2)), patterns, target, backend=backend)


def test_positions():
    for masks in (0, 1, 5, 2**63, 2**64 - 1, 2**64, 2**200 + 2**64 + 1):
        wanted = [i for i in range(masks.bit_length()) if masks >> i & 1]
        for module in {variant.module for variant in VARIANTS}:
            found = module.positions(masks)
            assert found.dtype == np.int64
            assert found.tolist() == wanted
    assert kernels.positions([5, 2**70 + 1, 6]).tolist() == [[0, 2], [0, 70], [1, 2]]
    assert kernels.positions([0, 0]).shape == (2, 0)
    with pytest.raises(OverflowError):
        kernels.positions(-1)


@backends
def test_shapes_and_order(backend):
    generator = np.array([[1.0, 0], [0, 2], [1, 1], [1, -1]])
    one = kernels.decoding_weights(generator, [3, 1], backend=backend)
    assert one.shape == (2, 2)
    assert one.dtype == np.float64
    np.testing.assert_array_equal(one, [[1, 0.5], [0, 0.5]])
    swapped = kernels.decoding_weights(generator, [1, 3], backend=backend)
    np.testing.assert_array_equal(swapped, one[:, ::-1])
    assert kernels.decoding_weights(generator, [[0, 1]] * 3, backend=backend).shape == (3, 2, 2)
    assert kernels.decoding_weights(generator, np.empty((0, 2), int), backend=backend).shape == (0, 2, 2)
    for other in (np.asfortranarray(generator), generator.astype(np.float32), generator.astype(int).tolist()):
        for pattern in ([3, 1], np.array([3, 1], np.uint8), np.array([1, 9, 3])[::-2]):
            assert same_bits(kernels.decoding_weights(other, pattern, backend=backend), one)


@backends
@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([[1.0, 2, 3], [2, 4, 6], [0, 0, 1]], "a multiple"),
        ([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]], "dependent up to rounding"),
        ([[1.0, 2, 0], [2, 5, 0], [3, 1, 0]], "a column of zeros"),
        ([[0.0, 0, 0], [2, 5, 0], [3, 1, 1]], "a row of zeros"),
        ([[1.0, 1, 1], [1, 1 + 1e-15, 1], [0, 0, 1]], "nearly equal rows"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_singular_pattern_is_named_by_index(rows, name, backend):
    generator = np.vstack([np.eye(3), rows])
    good, bad = [0, 1, 2], [3, 4, 5]
    for index in (0, 1, 5):
        patterns = [good] * 6
        patterns[index] = bad
        with pytest.raises(NotDecodableError, match=rf"patterns\[{index}\].*\(3, 4, 5\).*rank") as caught:
            kernels.decoding_weights(generator, patterns, backend=backend)
        assert caught.value.survivors == (3, 4, 5)
        assert caught.value.missing == (0, 1, 2)
    with pytest.raises(NotDecodableError):
        kernels.decoding_weights(generator, bad, backend=backend)


@backends
def test_badly_conditioned_but_regular_patterns_are_inverted(backend):
    for gap in (1e-9, 1e-11, 1e-12):
        rows = np.array([[1, 1], [1, 1 + gap]])
        weights = kernels.decoding_weights(rows, [0, 1], backend=backend)
        assert np.isfinite(weights).all()
        # The bound of LU here: a few units in the last place of |A| |G|.
        assert np.abs(left_residual(weights, rows)).max() <= 10 * 2.0**-53 * (np.abs(weights) @ np.abs(rows)).max()


@backends
def test_scale_of_columns_does_not_matter(backend):
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((3, 3))
    for scale in (1e-100, 1e-30, 1e30, 1e100):
        for scaled in (rows * scale, rows * [1, scale, 1]):
            weights = kernels.decoding_weights(scaled, [0, 1, 2], backend=backend)
            assert np.isfinite(weights).all()
    with pytest.raises(ValueError, match="generator") as caught:
        kernels.decoding_weights(np.eye(2) * 1e-310, [0, 1], backend=backend)
    assert type(caught.value) is ValueError  # regular, but beyond float64


NAN = np.ones((4, 2))
NAN[3, 1] = np.nan
eye = np.eye(4)[:, :2]
BAD = {
    "k > n": (np.ones((2, 3)), [0, 1, 2], ValueError, r"generator.*k <= n.*\(2, 3\)"),
    "k of zero": (np.ones((2, 0)), [], ValueError, r"generator.*\(2, 0\)"),
    "flat generator": (np.ones(3), [0], ValueError, r"generator.*\(3,\)"),
    "NaN": (NAN, [0, 1], ValueError, r"generator\[3, 1\].*nan"),
    "infinity": (NAN * 0 + [np.inf, 1], [0, 1], ValueError, r"generator\[0, 0\].*inf"),
    "complex": (np.ones((4, 2), complex), [0, 1], TypeError, r"generator.*complex128"),
    "text": (np.full((4, 2), "a"), [0, 1], TypeError, r"generator.*<U1"),
    "float pattern": (eye, [0.0, 1.0], TypeError, r"patterns.*float64"),
    "bool pattern": (eye, [True, False], TypeError, r"patterns.*bool"),
    "width": (eye, [0, 1, 2], ValueError, r"patterns.*k = 2.*\(3,\)"),
    "cube": (eye, [[[0, 1]]], ValueError, r"patterns.*\(1, 1, 2\)"),
    "number": (eye, 1, ValueError, r"patterns.*\(\)"),
    "beyond": (eye, [[0, 1], [0, 4]], ValueError, r"patterns\[1\].*row 4.*4 rows"),
    "negative": (eye, [[0, -1]], ValueError, r"patterns\[0\].*row -1"),
    "huge": (eye, np.array([[0, 2**64 - 1]], np.uint64), ValueError, r"patterns\[0\].*18446744073709551615"),
    "twice": (eye, [[0, 1], [2, 2]], ValueError, r"patterns\[1\].*twice.*\(2, 2\)"),
    "backend": (eye, [0, 1], ValueError, r"backend.*fortran"),
}


@backends
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, backend):
    generator, patterns, error, message = BAD[name]
    with pytest.raises(error, match=message):
        kernels.decoding_weights(generator, patterns, backend="fortran" if name == "backend" else backend)


def test_the_module_itself_refuses_rows_out_of_range():
    for variant in VARIANTS:
        if variant.name != "numba":
            with pytest.raises(ValueError, match="row 4"):
                variant.decoding_weights(eye, np.array([[0, 4]]))
            with pytest.raises(ValueError, match="shape"):
                variant.decoding_weights(eye, np.array([[0, 1, 2]]))


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(NotDecodableError("too few", (1, 2), (0,))))
    assert (str(error), error.survivors, error.missing) == ("too few", (1, 2), (0,))
