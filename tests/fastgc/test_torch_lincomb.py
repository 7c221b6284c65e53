"""The operator for PyTorch: PyTorch's own checks, the bits of the kernel, derivatives, transforms, the compiler."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from fastgc import arrays, kernels  # noqa: E402
from fastgc.torch import lincomb  # noqa: E402
from fastgc.torch._streams import on_current_stream  # noqa: E402

SEED = 8
OPERATOR = torch.ops.fastgc.lincomb.default
INTO = torch.ops.fastgc.lincomb_out.default
ELEMENTS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1), (1, 8, 7), (2, 4, 1003), (5, 3, 64), (16, 16, 33)]


def short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def made(p: int, q: int, length: int, dtype: Any = torch.float64) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(SEED)
    coefficients = torch.randn(p, q, generator=generator, dtype=torch.float64)
    return coefficients, torch.randn(q, length, generator=generator, dtype=torch.float64).to(dtype)


def view(tensor: Any) -> Any:
    return arrays.origin("tensor", tensor).view("tensor", tensor.detach())


def bits(tensor: Any) -> bytes:
    return bytes(view(tensor.contiguous()).tobytes())


# PyTorch's own checks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "form"),
    [
        ((2, 4, 103), torch.float32, "matrix"),
        ((2, 4, 103), torch.float32, "vectors"),
        ((1, 8, 7), torch.float64, "vectors"),
        ((5, 1, 64), torch.float16, "matrix"),
        ((3, 2, 1), torch.bfloat16, "vectors"),
    ],
    ids=lambda v: short(v),
)
def test_opcheck(shape: tuple[int, int, int], dtype: Any, form: str) -> None:
    coefficients, rows = made(*shape, dtype)
    inputs = [rows] if form == "matrix" else list(rows)
    results = (
        [torch.zeros(shape[0], shape[2], dtype=dtype)] if form == "matrix" else [rows[0] * p for p in range(shape[0])]
    )
    into = torch.library.opcheck(INTO, (coefficients, inputs, results, form == "matrix"))
    for tensor in (coefficients, *inputs):
        tensor.requires_grad_()
    for verdict in (torch.library.opcheck(OPERATOR, (coefficients, inputs)), into):
        assert list(verdict.values()) == ["SUCCESS"] * 4, verdict


@pytest.mark.parametrize("form", ["matrix", "vectors"])
def test_first_and_second_derivatives(form: str) -> None:
    coefficients, rows = made(2, 3, 5)
    inputs = [rows] if form == "matrix" else list(rows)
    leaves = [tensor.clone().requires_grad_() for tensor in (coefficients, *inputs)]

    def call(coefficients: Any, *rows: Any) -> Any:
        return lincomb(coefficients, rows[0] if form == "matrix" else rows)

    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, leaves)
    assert torch.autograd.gradcheck(lambda c, *rows: OPERATOR(c, rows), leaves)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=short)
def test_gradients_are_the_kernel_with_transposed_coefficients(dtype: Any) -> None:
    coefficients, rows = made(3, 4, 257, dtype)
    rows.requires_grad_()
    outgoing = torch.randn(3, 257, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    lincomb(coefficients, rows).backward(outgoing)
    assert rows.grad.dtype == dtype
    expected = kernels.lincomb(coefficients.numpy().T, view(outgoing))
    assert bits(rows.grad) == expected.tobytes()
    # Of coefficients in float64 over rows of a half type: products and sums are float32's at least.
    coefficients.requires_grad_()
    lincomb(coefficients, rows.detach()).backward(outgoing)
    exact = outgoing.double() @ rows.detach().double().t()
    scale = outgoing.double().abs() @ rows.detach().double().abs().t()
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    assert coefficients.grad.dtype == torch.float64
    assert ((coefficients.grad - exact).abs() <= 260 * unit * scale).all()


def test_only_what_is_needed_is_kept_and_computed() -> None:
    coefficients, rows = made(2, 3, 50)
    inputs = list(rows)
    inputs[1].requires_grad_()
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        result = lincomb(coefficients, inputs)
    assert [tuple(t.shape) for t in kept] == [(2, 3)]
    result.sum().backward()
    assert (inputs[0].grad, inputs[2].grad) == (None, None)
    torch.testing.assert_close(inputs[1].grad, coefficients[:, 1].sum().expand(50))
    assert lincomb(coefficients, rows).grad_fn is None


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ELEMENTS, ids=short)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_of_the_kernel(shape: tuple[int, int, int], dtype: Any) -> None:
    coefficients, rows = made(*shape, dtype)
    kept = rows.clone()
    expected = kernels.lincomb(coefficients.numpy(), view(rows))
    for given in (coefficients, coefficients.tolist(), coefficients.numpy()):
        result = lincomb(given, rows)
        assert result.dtype == dtype
        assert bits(result) == expected.tobytes()
    wide = torch.full((shape[1], shape[2] + 6), torch.nan, dtype=dtype)
    wide[:, 3:-3] = rows
    for inputs in (list(rows), tuple(rows), wide[:, 3:-3], list(wide[:, 3:-3]), rows.t().contiguous().t()):
        assert bits(lincomb(coefficients, inputs)) == expected.tobytes()
        band = torch.full((shape[0], shape[2] + 2), 7.0, dtype=dtype)
        out = band[:, 1:-1]
        out.fill_(torch.nan)
        assert lincomb(coefficients, inputs, out) is out
        assert bits(out) == expected.tobytes()
        assert (band[:, [0, -1]] == 7).all()
        results = list(torch.full_like(out, torch.nan))
        assert lincomb(coefficients, inputs, results) is results
        assert bits(torch.stack(results)) == expected.tobytes()
    total = view(out).copy()
    kernels.lincomb(coefficients.numpy(), view(rows), total, accumulate=True)
    lincomb(coefficients, rows, out, accumulate=True)
    assert bits(out) == total.tobytes()
    assert bits(rows) == bits(kept)


def test_half_types_go_out_as_float32_and_back() -> None:
    for dtype in ELEMENTS[2:]:
        coefficients, rows = made(2, 3, 40, dtype)
        out = torch.full((2, 40), torch.nan, dtype=torch.float32)
        lincomb(coefficients, rows, out)
        assert bits(out) == kernels.lincomb(coefficients.numpy(), view(rows.float())).tobytes()
        narrow = torch.full((2, 40), torch.nan, dtype=dtype)
        lincomb(coefficients, rows.float(), narrow)
        assert bits(narrow) == bits(out.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool], ids=short)
def test_coefficients_of_other_types(dtype: Any) -> None:
    coefficients = (made(2, 3, 1)[0] * 4).round().to(dtype)
    rows = made(2, 3, 40)[1]
    assert bits(lincomb(coefficients, rows)) == bits(lincomb(coefficients.double(), rows))


def test_a_result_stays_on_the_inputs_device_whatever_the_default() -> None:
    coefficients, rows = made(2, 3, 4)
    with torch.device("meta"):
        assert lincomb(coefficients, rows).device.type == "cpu"
    assert lincomb(coefficients, rows.to("meta")).shape == (2, 4)


def test_many_threads_at_once() -> None:
    coefficients, rows = made(3, 4, 20_011)
    expected = bits(lincomb(coefficients, rows))
    right: list[bool] = []

    def call() -> None:
        right.extend(bits(lincomb(coefficients, list(rows))) == expected for _ in range(20))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 80


def test_writing_into_a_tensor_that_a_backward_pass_needs_is_noticed() -> None:
    coefficients, rows = made(2, 3, 4)
    out, leaf = torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    loss = (leaf * out).sum()
    lincomb(coefficients, rows, out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        lincomb(coefficients, rows.clone(), torch.empty(2, 4, dtype=torch.float64))


# Transforms -----------------------------------------------------------------------------------------------------------


def plain(coefficients: Any, rows: Any) -> Any:
    return coefficients @ rows


def stacked(coefficients: Any, rows: Any) -> Any:
    return lincomb(coefficients, rows.unbind(0))


def cube(function: Any) -> Any:
    return lambda *arguments: (function(*arguments) ** 3).sum()


MATRICES = torch.stack([made(2, 3, 5)[0] * b for b in range(1, 5)])
ROWS = torch.stack([made(2, 3, 5)[1] + b for b in range(4)])
ONE = (MATRICES[0], ROWS[0])
F = torch.func
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "vmap of rows": lambda f: F.vmap(f, (None, 0))(MATRICES[0], ROWS),
    "vmap of matrices": lambda f: F.vmap(f, (0, None))(MATRICES, ROWS[0]),
    "vmap of both": lambda f: F.vmap(f, (0, 0))(MATRICES, ROWS),
    "vmap along the last": lambda f: F.vmap(f, (None, 2), out_dims=1)(MATRICES[0], ROWS.movedim(0, 2)),
    "vmap twice": lambda f: F.vmap(F.vmap(f, (None, 0)), (0, None))(MATRICES, ROWS),
    "grad": lambda f: F.grad(cube(f), (0, 1))(*ONE),
    "grad of grad": lambda f: F.grad(lambda c, x: F.grad(cube(f), 1)(c, x).sin().sum(), (0, 1))(*ONE),
    "vmap of grad": lambda f: F.vmap(F.grad(cube(f), (0, 1)), (None, 0))(MATRICES[0], ROWS),
    "grad of vmap": lambda f: F.grad(cube(F.vmap(f, (None, 0))), (0, 1))(MATRICES[0], ROWS),
    "jvp": lambda f: F.jvp(f, ONE, (MATRICES[1], ROWS[1])),
    "jacrev": lambda f: F.jacrev(f, (0, 1))(*ONE),
    "jacfwd": lambda f: F.jacfwd(f, (0, 1))(*ONE),
    "hessian": lambda f: F.hessian(cube(f), (0, 1))(*ONE),
}


@pytest.mark.parametrize("function", [lincomb, stacked], ids=["matrix", "vectors"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_functions(name: str, function: Any) -> None:
    found, expected = TRANSFORMS[name](function), TRANSFORMS[name](plain)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


def test_a_batch_has_the_bits_of_its_members() -> None:
    for dtype in ELEMENTS:
        rows = ROWS.to(dtype)
        batch = torch.vmap(lincomb, (None, 0))(MATRICES[0], rows)
        assert bits(batch) == bits(torch.stack([lincomb(MATRICES[0], row) for row in rows]))


def test_derivatives_with_respect_to_some_rows() -> None:
    coefficients, rows = made(2, 3, 5)

    def of_the_middle(combine: Any, row: Any) -> Any:
        return combine(coefficients, (rows[0], row, rows[2]))

    def reference(coefficients: Any, rows: Any) -> Any:
        return coefficients @ torch.stack(rows)

    for transform in (F.grad, F.jacfwd):
        found = transform(lambda row: cube(of_the_middle)(lincomb, row))(rows[1])
        expected = transform(lambda row: cube(of_the_middle)(reference, row))(rows[1])
        torch.testing.assert_close(found, expected)
    leaf = rows.clone().requires_grad_()
    torch.vmap(lincomb, (None, 0))(coefficients, leaf.unsqueeze(0)).sum().backward()
    torch.testing.assert_close(leaf.grad, coefficients.sum(0).unsqueeze(1).expand(3, 5))


# The compiler ---------------------------------------------------------------------------------------------------------


def program(coefficients: Any, rows: Any, out: Any) -> Any:
    first = lincomb(2 * coefficients, rows)
    second = lincomb([[1.0, 2.0, 3.0]], list(first[:3] + 1))
    with torch.no_grad():
        lincomb(coefficients, rows.detach(), out)
        lincomb(coefficients, rows.detach(), list(out), accumulate=True)
    return first.sin().sum() + second.sum(), out + 1


def run(function: Any, dtype: Any, length: int) -> tuple[Any, ...]:
    coefficients, rows = made(4, 3, length, dtype)
    out = torch.zeros(4, length, dtype=dtype)
    coefficients.requires_grad_()
    rows.requires_grad_()
    total, after = function(coefficients, rows, out)
    total.backward()
    return total.detach(), after, out, rows.grad, coefficients.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_compiles_into_one_graph(dtype: Any) -> None:
    check_compiled("aot_eager", dtype, dynamic=True)


@pytest.mark.soak
def test_inductor_compiles_it() -> None:
    """In the soak, as it takes half a minute of the C++ compiler."""
    check_compiled("inductor", torch.float32, dynamic=False)


def check_compiled(backend: str, dtype: Any, dynamic: bool) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(program, fullgraph=True, backend=backend, dynamic=dynamic)
    wide = 1e-2 if dtype in ELEMENTS[2:] else 1e-5  # fused operations around ours round elsewhere
    for length in (33, 64):
        for found, expected in zip(run(compiled, dtype, length), run(program, dtype, length), strict=True):
            torch.testing.assert_close(found, expected, rtol=wide, atol=wide)
    assert not torch._dynamo.utils.counters["graph_break"]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == (1 if dynamic else 2)  # for two lengths


def test_inductor_takes_the_operator_as_it_is() -> None:
    """No loops of its own around the operator: quick, and it needs no C++ compiler."""
    torch._dynamo.reset()
    coefficients, rows = made(4, 3, 33, torch.float32)
    compiled = torch.compile(lincomb, fullgraph=True, backend="inductor")
    assert bits(compiled(coefficients, rows)) == bits(lincomb(coefficients, rows))


# Errors ---------------------------------------------------------------------------------------------------------------

C, X = made(2, 3, 4)
OUT = torch.full((2, 4), torch.nan, dtype=torch.float64)
BAD: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("one vector", lambda: lincomb(C, X[0]), ValueError, r"inputs: expected 2 dimensions, got shape \(4,\)"),
    ("no rows", lambda: lincomb(C, []), ValueError, "inputs: expected at least one row"),
    ("a number", lambda: lincomb(C, 3), TypeError, "inputs: .*int"),
    ("arrays", lambda: lincomb(C, list(X.numpy())), TypeError, r"inputs\[0\]: expected a 1-D tensor, got ndarray"),
    ("a list of matrices", lambda: lincomb(C, [X, X, X]), ValueError, r"inputs\[0\]: expected a 1-D tensor"),
    ("integers", lambda: lincomb(C, X.int()), TypeError, "inputs: .*int32"),
    ("two types", lambda: lincomb(C, [X[0], X[1].float(), X[2]]), TypeError, r"inputs\[1\]: .*float64.*float32"),
    ("two lengths", lambda: lincomb(C, [X[0], X[1], X[2, :3]]), ValueError, r"inputs\[2\]: expected length 4"),
    ("empty rows", lambda: lincomb(C, X[:, :0]), ValueError, "inputs: rows have length 0"),
    ("too few rows", lambda: lincomb(C, X[:2]), ValueError, r"coefficients: expected 2 columns.*\(2, 3\)"),
    ("a vector of coefficients", lambda: lincomb(C[0], X), ValueError, r"coefficients: expected 2 dim.*\(3,\)"),
    ("complex", lambda: lincomb(C + 0j, X), TypeError, "coefficients: expected real numbers, got torch.complex128"),
    ("infinite", lambda: lincomb(C / 0, X), ValueError, r"coefficients\[0, 0\]: expected a number finite"),
    ("out too short", lambda: lincomb(C, X, OUT[:, :3]), ValueError, "out: expected length 4, got 3"),
    ("out of another type", lambda: lincomb(C, X, OUT.float()), TypeError, "out: expected dtype float64"),
    ("out strided", lambda: lincomb(C, X, torch.empty(4, 2).double().t()), ValueError, "out: .*contiguous"),
    ("out twice", lambda: lincomb(C, X, [OUT[0], OUT[0]]), ValueError, "out: rows overlap"),
    ("out an input", lambda: lincomb(C, X, X[:2]), ValueError, "out: overlaps inputs"),
    ("accumulate into nothing", lambda: lincomb(C, X, accumulate=True), ValueError, "out: must be given"),
    ("out of a gradient", lambda: lincomb(C, X.clone().requires_grad_(), OUT), RuntimeError, "out: what requires"),
    ("sparse", lambda: lincomb(C, X.to_sparse()), NotImplementedError, "SparseCPU"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        call()
    if kind is not NotImplementedError:  # whose text is PyTorch's own
        assert "\n" not in str(caught.value)
    assert torch.isnan(OUT).all()


TRACED = [
    b for b in BAD if b[0] in ("integers", "two types", "two lengths", "too few rows", "a vector of coefficients")
]


@pytest.mark.parametrize(("name", "kind", "pattern"), [(b[0], *b[2:]) for b in TRACED], ids=[b[0] for b in TRACED])
def test_shapes_alone_are_refused_in_the_same_words(name: str, kind: type[Exception], pattern: str) -> None:
    x = X.to("meta")
    call = {
        "integers": lambda: lincomb(C, x.int()),
        "two types": lambda: lincomb(C, [x[0], x[1].float(), x[2]]),
        "two lengths": lambda: lincomb(C, [x[0], x[1], x[2, :3]]),
        "too few rows": lambda: lincomb(C, x[:2]),
        "a vector of coefficients": lambda: lincomb(C[0], x),
    }[name]
    with pytest.raises(kind, match=pattern):
        call()


@pytest.mark.parametrize("protocol", [False, True], ids=["before CuPy 14", "CuPy 14"])
def test_kernels_on_a_device_keep_their_place_in_pytorchs_stream(
    monkeypatch: pytest.MonkeyPatch, protocol: bool
) -> None:
    """With stand-ins for CuPy and for the stream: that the current one is taken, and left again."""
    entered: list[tuple[Any, ...]] = []

    class Recorder:
        def __init__(self, *what: Any) -> None:
            self.what = what

        def __enter__(self) -> None:
            entered.append(self.what)

        def __exit__(self, *error: Any) -> None:
            entered.append(("left", *self.what))

    cuda = SimpleNamespace(Device=Recorder, device=SimpleNamespace(get_device_id=lambda: current[0]))
    cuda.get_current_stream = lambda: SimpleNamespace(ptr=current[1])
    current = [0, 77]
    if protocol:  # of streams, which tells no device
        cuda.Stream = SimpleNamespace(from_external=lambda stream: Recorder(*stream.__cuda_stream__()))
    else:
        cuda.ExternalStream = Recorder
    into = (0, 77) if protocol else (77, 1)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(device_index=1, cuda_stream=77))
    with on_current_stream(torch.device("cuda", 1)):
        assert entered == [(1,), into]
    assert entered[2:] == [("left", *into), ("left", 1)]
    current[0] = 1  # where both are the current ones, there is nothing to enter
    with on_current_stream(torch.device("cuda", 1)):
        assert len(entered) == 4
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ValueError, match="inputs: lie on cuda:1, and backend 'cuda' does not work here"):
        on_current_stream(torch.device("cuda", 1))
    on_current_stream(torch.device("cpu")).__enter__()
