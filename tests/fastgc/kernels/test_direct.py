"""The functions that reach C++ directly behave as the Python functions they stand in for."""

import copy
import gc
import inspect
import pickle
import sys
import weakref
from collections.abc import Mapping

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


MESSAGES = {3: X[0], 5: X[1], 8: X[0] + 1, 9: X[1] * 2}
WEIGHTS = {"a": C, "b": C[:, ::-1].copy()}
PATTERNS, MEMBERS = ("a", "b"), ((3, 8), (5, 9))
GRADIENT = kernels.decode([C, C[:, ::-1]], [[X[0], X[0] + 1], [X[1], X[1] * 2]], 14)


class Plain(Mapping):
    """A mapping that is no dict."""

    def __getitem__(self, worker):
        return MESSAGES[worker]

    def __iter__(self):
        return iter(MESSAGES)

    def __len__(self):
        return len(MESSAGES)


@pytest.mark.parametrize(
    ("patterns", "members", "messages"),
    [
        (PATTERNS, MEMBERS, MESSAGES),
        (PATTERNS, MEMBERS, Plain()),
        (list(PATTERNS), MEMBERS, MESSAGES),
        (PATTERNS, ([3, 8], [5, 9]), MESSAGES),
        (PATTERNS, MEMBERS, {worker: np.repeat(message, 2)[::2] for worker, message in MESSAGES.items()}),
    ],
)
def test_messages_by_worker_and_weights_by_pattern(patterns, members, messages):
    for decode in (kernels.decode_by_pattern, kernels.decode_by_pattern.__wrapped__):
        out = np.full(14, np.nan, np.float32)
        assert decode(WEIGHTS.get, patterns, members, messages, 14, out) is out
        made = decode(WEIGHTS.get, patterns, members, messages, 14)
        assert out.tobytes() == made.tobytes() == GRADIENT.tobytes()


def test_messages_that_are_no_arrays_are_refused():
    messages = {worker: message.tolist() for worker, message in MESSAGES.items()}
    for decode in (kernels.decode_by_pattern, kernels.decode_by_pattern.__wrapped__):
        with pytest.raises(TypeError, match="messages"):
            decode(WEIGHTS.get, PATTERNS, MEMBERS, messages, 14)


def test_messages_of_another_library_by_worker():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    messages = {worker: torch.from_numpy(message) for worker, message in MESSAGES.items()}
    made = kernels.decode_by_pattern(WEIGHTS.get, PATTERNS, MEMBERS, messages, 14)
    assert isinstance(made, torch.Tensor)
    assert made.numpy().tobytes() == GRADIENT.tobytes()


def test_what_goes_wrong_with_a_pattern_or_a_worker_comes_out():
    def fail(pattern):
        raise RuntimeError(f"no weights for {pattern}")

    out = np.full(14, 7, np.float32)
    with pytest.raises(RuntimeError, match="no weights for a"):
        kernels.decode_by_pattern(fail, PATTERNS, MEMBERS, MESSAGES, 14, out)
    with pytest.raises(KeyError, match="4"):
        kernels.decode_by_pattern(WEIGHTS.get, PATTERNS, ((3, 8), (5, 4)), MESSAGES, 14, out)
    with pytest.raises(ValueError, match="expected 2 groups"):
        kernels.decode_by_pattern(WEIGHTS.get, PATTERNS, MEMBERS[:1], MESSAGES, 14, out)
    assert (out == 7).all()


def test_references_of_a_decoding_by_pattern_balance():
    messages, weights = dict(MESSAGES), dict(WEIGHTS)
    get = weights.get
    objects = [messages, *messages.values(), *weights.values(), get, PATTERNS, MEMBERS, *MEMBERS]
    gc.collect()  # what errors in other tests have left refers to some of these, and may go at any time
    before = [sys.getrefcount(item) for item in objects]
    for _ in range(100):
        kernels.decode_by_pattern(get, PATTERNS, MEMBERS, messages, 14)
        with pytest.raises(KeyError):
            kernels.decode_by_pattern(get, PATTERNS, ((3, 8), (5, 4)), messages, 14)
    assert [sys.getrefcount(item) for item in objects] == before


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
