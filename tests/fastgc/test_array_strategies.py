"""Arrays that hypothesis draws, of NumPy and by the array API standard, against `lincomb` and coded round trips."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning
from hypothesis.extra import numpy as hnp
from hypothesis.extra.array_api import make_strategies_namespace

from fastgc import GradientCode, kernels, schemes
from fastgc.kernels import reference

STANDARD = "2023.12"


def depths(some: int, many: int) -> Any:
    """How many examples `make test` and `make soak` draw."""
    both = [pytest.param(some, id="some"), pytest.param(many, id="many", marks=pytest.mark.soak)]
    return pytest.mark.parametrize("examples", both)


namespaces = pytest.mark.parametrize(
    "name", ["numpy", "array_api_strict", "array_api_compat.numpy", "array_api_compat.torch", "jax.numpy"]
)

SCHEMES = [
    schemes.grouped(6, load=3, reduction=2),
    schemes.cyclic_repetition(5, 2),
    schemes.polynomial(5, 1, 2),
    schemes.fractional_repetition(6, 2),
    schemes.uncoded(3),
]


def run(examples: int, test: Callable[..., None], **strategies: Any) -> None:
    """Run a test on so many examples, the same ones every time."""
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    limits = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=quiet)
    seed(0)(limits(given(**strategies)(test)))()


def finite(width: int, most: float) -> st.SearchStrategy[float]:
    """Numbers of which a few can be multiplied and added without over- or underflow: normal ones, or zero."""
    least = 2.0**-8
    positive = st.floats(least, most, width=width)
    return st.one_of(st.just(0.0), positive, positive.map(lambda x: -x))


def strides() -> st.SearchStrategy[tuple[slice, slice]]:
    """Ways to cut rows and columns, backwards too."""
    steps = st.sampled_from([1, 2, 3, -1, -2])
    return st.tuples(*[steps.map(lambda step: slice(None, None, step))] * 2)


# NumPy ----------------------------------------------------------------------------------------------------------------


@depths(40, 3000)
def test_any_numbers_in_any_layout_have_the_same_bits(examples: int) -> None:
    """NaN and infinity included: strides, order of axes and the way rows are given are nobody's business."""

    def check(data: st.DataObject) -> None:
        dtype = np.dtype(data.draw(st.sampled_from(["f4", "f8", "f2"])))
        shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
        whole = data.draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype)))
        x = whole[data.draw(strides())]
        x = x.T if data.draw(st.booleans()) else x
        c = data.draw(hnp.arrays(np.float64, (data.draw(st.integers(1, 9)), len(x)), elements=finite(64, 1e3)))
        before = whole.copy()
        plain = kernels.lincomb(c, np.ascontiguousarray(x))
        assert kernels.lincomb(c, x).tobytes() == plain.tobytes()
        assert kernels.lincomb(c, list(x)).tobytes() == plain.tobytes()
        out = np.full((len(c), x.shape[1] + 2), np.nan, dtype)
        kernels.lincomb(c, x, out[:, 1:-1])
        assert out[:, 1:-1].tobytes() == plain.tobytes()
        assert np.isnan(out[:, [0, -1]]).all()
        assert whole.tobytes() == before.tobytes()

    run(examples, check, data=st.data())


@depths(40, 3000)
def test_lincomb_is_within_its_bound(examples: int) -> None:
    def check(data: st.DataObject) -> None:
        dtype = np.dtype(data.draw(st.sampled_from(["f4", "f8"])))
        shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
        x = data.draw(hnp.arrays(dtype, shape, elements=finite(8 * dtype.itemsize, 1024.0)))
        c = data.draw(hnp.arrays(dtype, (data.draw(st.integers(1, 9)), len(x)), elements=finite(32, 1024.0)))
        exact = reference.lincomb(c.astype(np.longdouble), x.astype(np.longdouble))
        # Two roundings a term at most, where multiplication and addition are not fused.
        roundings = 2 * len(x) * np.finfo(dtype).eps / 2
        bound = roundings / (1 - roundings) * (np.abs(c).astype(np.longdouble) @ np.abs(x).astype(np.longdouble))
        assert (np.abs(kernels.lincomb(c, x) - exact) <= bound).all()

    run(examples, check, data=st.data())


def survivors_of(scheme: GradientCode) -> st.SearchStrategy[list[int]]:
    """Workers of which at most so many are missing as the scheme promises, in any order."""
    fewest = scheme.workers - scheme.stragglers
    return st.lists(st.integers(0, scheme.workers - 1), min_size=fewest, max_size=scheme.workers, unique=True)


def error(total: Any, gradients: Any) -> float:
    """Of the decoded sum, relative to the sum of the gradients' largest elements; 0 where all are zero."""
    scale = float(np.abs(gradients).max(axis=1).astype(np.float64).sum())
    return float(np.abs(total - gradients.astype(np.longdouble).sum(axis=0)).max()) / scale if scale else 0.0


@depths(40, 3000)
def test_round_trips(examples: int) -> None:
    def check(data: st.DataObject) -> None:
        scheme = data.draw(st.sampled_from(SCHEMES))
        dtype = np.dtype(data.draw(st.sampled_from(["f4", "f8"])))
        shape = (scheme.partitions, data.draw(st.integers(1, 40)))
        gradients = data.draw(hnp.arrays(dtype, shape, elements=finite(8 * dtype.itemsize, 1024.0)))
        workers = data.draw(survivors_of(scheme))
        messages = {w: scheme.encode(w, gradients[list(scheme.assignment[w])]) for w in workers}
        total = scheme.decode(messages, shape[1])
        assert error(total, gradients) <= scheme.error_bound(workers, dtype)
        out = np.full(shape[1], np.nan, dtype)
        assert scheme.decode(dict(sorted(messages.items())), shape[1], out=out).tobytes() == total.tobytes()

    run(examples, check, data=st.data())


# The array API standard -----------------------------------------------------------------------------------------------


def namespace(name: str) -> Any:
    """A namespace by the standard; the test is skipped where it is not there."""
    package = name.rpartition(".")[2] if name.startswith("array_api_compat") else name.partition(".")[0]
    if package not in ("numpy", "array_api_strict"):
        pytest.importorskip(package)
    pytest.importorskip(name.partition(".")[0])
    return importlib.import_module(name)


def strategies(xp: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # of shims, which do not say that they follow the standard
        return make_strategies_namespace(xp, api_version=STANDARD)


def read(array: Any) -> Any:
    return np.from_dlpack(array)


@namespaces
@depths(12, 600)
def test_lincomb_by_the_standard(name: str, examples: int) -> None:
    xp = namespace(name)
    xps = strategies(xp)
    dtypes = [xp.float32] if name == "jax.numpy" else [xp.float32, xp.float64]  # JAX has the wider one on request

    def check(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(dtypes))
        shape = data.draw(xps.array_shapes(min_dims=2, max_dims=2, max_side=20))
        x = data.draw(xps.arrays(dtype, shape))
        if data.draw(st.booleans()):
            x = xp.permute_dims(x, (1, 0))
        rows, columns = x.shape
        step = data.draw(st.integers(1, 3))
        x = x[:, 0:columns:step]
        c = data.draw(hnp.arrays(np.float64, (data.draw(st.integers(1, 5)), rows), elements=finite(64, 1e3)))
        plain = kernels.lincomb(c, np.array(read(x), order="C"))
        for given_rows in (x, [x[i, :] for i in range(rows)]):
            result = kernels.lincomb(c, given_rows)
            assert type(result) is type(x)
            assert result.dtype == x.dtype
            assert result.shape == (len(c), x.shape[1])
            assert read(result).tobytes() == plain.tobytes()

    run(examples, check, data=st.data())


@namespaces
@depths(12, 600)
def test_round_trips_by_the_standard(name: str, examples: int) -> None:
    xp = namespace(name)
    xps = strategies(xp)

    def check(data: st.DataObject) -> None:
        scheme = data.draw(st.sampled_from(SCHEMES))
        shape = (scheme.partitions, data.draw(st.integers(1, 20)))
        gradients = data.draw(xps.arrays(xp.float32, shape, elements=finite(32, 1024.0)))
        workers = data.draw(survivors_of(scheme))
        collector = scheme.collector(shape[1], xp.float32)
        for w in workers:
            collector.add(w, scheme.encode(w, [gradients[j, :] for j in scheme.assignment[w]]))
        total = collector.gradient()
        assert type(total) is type(gradients)
        assert total.shape == (shape[1],)
        assert error(read(total), np.array(read(gradients))) <= scheme.error_bound(workers, np.float32)

    run(examples, check, data=st.data())
