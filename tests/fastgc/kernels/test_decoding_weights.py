"""decoding_weights: residuals, bits, singular patterns by index, bad input."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from kernel_support import VARIANTS, same_bits

from fastgc import kernels
from fastgc.errors import NotDecodableError
from fastgc.kernels import reference

variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
backends = pytest.mark.parametrize("backend", kernels.backends())


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


def test_same_bits_everywhere():
    rng = np.random.default_rng(3)
    for k in (1, 2, 3, 5, 8, 16, 17):
        generator = rng.standard_normal((k + 4, k))
        patterns = np.ascontiguousarray(some_patterns(k + 4, k, 200, rng), dtype=np.int64)
        wanted = kernels.decoding_weights(generator, patterns)
        for variant in VARIANTS:
            for threads in (1, 2):
                weights, flags = variant.decoding_weights(generator, patterns, threads=threads)
                assert same_bits(weights, wanted), (variant.name, k)
                assert not flags
            alone, _ = variant.decoding_weights(generator, patterns[7 % len(patterns)][None])
            assert same_bits(alone[0], wanted[7 % len(patterns)])
        np.testing.assert_allclose(reference.decoding_weights(generator, patterns), wanted, rtol=1e-6, atol=1e-8)


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
