"""The functions that reach C++ directly behave as the Python functions they stand in for."""

import copy
import gc
import inspect
import pickle
import sys
import weakref

import numpy as np
import pytest

from fastgc import kernels

pytestmark = pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing")

FUNCTIONS = [kernels.lincomb, kernels.encode, kernels.decode]
C = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.25]])
X = np.arange(10, dtype=np.float32).reshape(2, 5)
WANTED = (C @ X).astype(np.float32)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_they_look_like_functions(function):
    signature = inspect.signature(function)
    assert list(signature.parameters)[-1] == "backend"
    assert function.__doc__ == function.__wrapped__.__doc__
    assert function.__module__ == "fastgc.kernels"
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(function) is function
    assert function.__name__ in repr(function)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((C, X), {}),
        ((C, X, None), {}),
        ((C,), {"inputs": X}),
        ((), {"inputs": X, "coefficients": C}),
        ((C, X), {"threads": 1, "accumulate": False, "out": None}),
        ((C, X), {"backend": None}),
        ((C, X), {"backend": "cpp", "threads": None}),
        ((C.tolist(), list(X)), {}),
        ((C, X), {"".join(["thr", "eads"]): 2}),  # a name that is not the interned one
    ],
)
def test_any_way_to_give_arguments(arguments, keywords):
    np.testing.assert_array_equal(kernels.lincomb(*arguments, **keywords), WANTED)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((), {}),
        ((C,), {}),
        ((C, X, None, False), {}),
        ((C, X), {"inputs": X}),
        ((C, X), {"other": 1}),
        ((C, X), {"isa": "portable"}),
    ],
)
def test_other_calls_are_refused_as_python_does(arguments, keywords):
    with pytest.raises(TypeError) as direct:
        kernels.lincomb(*arguments, **keywords)
    with pytest.raises(TypeError) as plain:
        kernels.lincomb.__wrapped__(*arguments, **keywords)
    assert str(direct.value) == str(plain.value)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((C, X[:, :3]), {"out": X}),
        ((C, X.astype(np.int32)), {}),
        ((C, [X[0], X[1, :3]]), {}),
        ((C[:, :1], X), {}),
        (([[np.inf, 1]], X), {}),
        ((C, X), {"accumulate": True}),
        ((C, X), {"threads": 0}),
        ((C, None), {}),
        ((C, X), {"backend": "fortran"}),
    ],
)
def test_errors_are_the_same(arguments, keywords):
    with pytest.raises((TypeError, ValueError)) as direct:
        kernels.lincomb(*arguments, **keywords)
    with pytest.raises(type(direct.value)) as plain:
        kernels.lincomb.__wrapped__(*arguments, **keywords)
    assert str(direct.value) == str(plain.value)


def test_out_is_returned_and_references_balance():
    c, x = C.copy(), X.copy()
    out = np.empty((3, 5), np.float32)
    rows = [X[0].copy(), X[1].copy()]
    strided = np.arange(20, dtype=np.float32).reshape(2, 10)[:, ::2]  # is copied
    objects = [c, x, out, rows, rows[0], strided]
    before = [sys.getrefcount(item) for item in objects]
    for _ in range(100):
        assert kernels.lincomb(c, x, out=out) is out
        kernels.lincomb(c, rows, out=out)
        kernels.lincomb(c, strided, out)
        with pytest.raises(ValueError, match="columns"):
            kernels.lincomb(c, x[:1], out=out)
    assert [sys.getrefcount(item) for item in objects] == before


def test_a_callable_is_collected_with_its_function():
    from fastgc import _core

    def function():
        pass

    function.held = _core.direct("lincomb", function)  # a cycle
    alive = weakref.ref(function)
    del function
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 65, 200])
def test_any_number_of_rows(rows):
    x = np.arange(rows * 7, dtype=np.float64).reshape(rows, 7)
    reversed_out = np.zeros((rows, 7))[::-1]
    kernels.lincomb(np.eye(rows), list(x), out=reversed_out)
    np.testing.assert_array_equal(reversed_out, x)
    with pytest.raises(ValueError, match="rows overlap each other"):
        kernels.lincomb(np.eye(rows + 1, rows), x, out=[*reversed_out, reversed_out[-1]])
