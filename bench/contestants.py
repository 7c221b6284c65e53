"""Who computes a small matrix times long rows: fastgc with each backend and instruction set, and its peers.

A contestant is a function that is given a `Problem` and gives back a call without arguments, which writes the
problem's outputs. Whatever can be done once is done beforehand, so that a call costs what a user's would. One that is
missing, or cannot do what it should, raises `Unavailable` with the reason, which is recorded; one that is not meant for
the case raises `NotApplicable`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from bench.cases import Array, Problem
from bench.records import OURS
from fastgc import kernels

Call = Callable[[], object]


class Unavailable(Exception):
    """A contestant cannot take part; the message says why."""


class NotApplicable(Exception):
    """The case is none of a contestant's business."""


@dataclass(frozen=True)
class Contestant:
    """A name, whether it is fastgc's own, and how it is made ready for a problem."""

    name: str
    prepare: Callable[[Problem], Call]
    ours: bool = False


# fastgc ---------------------------------------------------------------------------------------------------------------


def _fastgc(problem: Problem, backend: str = "") -> Call:
    """As people call it: what is not chosen is not named. Threads are bounded for all libraries at once."""
    chosen: dict[str, Any] = {}
    if problem.case.accumulate:
        chosen["accumulate"] = True
    if backend:
        chosen["backend"] = backend
    return partial(kernels.lincomb, problem.coefficients, problem.inputs, problem.outputs, **chosen)


def _fastgc_isa(problem: Problem, isa: str) -> Call:
    from fastgc import _core

    case = problem.case
    arguments = (problem.coefficients, problem.inputs, problem.outputs, case.accumulate, case.threads, isa)
    return partial(_core.lincomb, *arguments)


def _instruction_sets() -> tuple[str, ...]:
    """Those that the C++ backend has here beside the one it uses by itself."""
    if "cpp" not in kernels.backends():
        return ()
    from fastgc import _core

    return tuple(isa for isa in _core.isas() if isa != _core.isa())


# BLAS -----------------------------------------------------------------------------------------------------------------


def _numpy(problem: Problem) -> Call:
    _needs_blas_type(problem)
    if not problem.case.accumulate:
        return partial(np.matmul, problem.coefficients, problem.inputs, out=problem.outputs)
    product = np.empty_like(problem.outputs)

    def add() -> None:
        np.matmul(problem.coefficients, problem.inputs, out=product)
        np.add(problem.outputs, product, out=problem.outputs)

    return add


def _scipy(problem: Problem) -> Call:
    """``outputs.T = inputs.T @ coefficients.T``, as BLAS has it: all operands are in Fortran order, none is copied."""
    _needs_blas_type(problem)
    blas = importlib.import_module("scipy.linalg.blas")
    letter = "d" if problem.element.name == "f64" else "s"
    beta = float(problem.case.accumulate)
    if problem.case.p == 1:
        row, target = problem.coefficients[0], problem.outputs[0]
        multiply = getattr(blas, letter + "gemv")
        return partial(multiply, 1.0, problem.inputs.T, row, beta=beta, y=target, overwrite_y=1)
    # inputs.T of a single row is contiguous either way, and a flag of the view decides; this one is Fortran's.
    inputs, target = np.asfortranarray(problem.inputs.T), problem.outputs.T
    multiply = getattr(blas, letter + "gemm")
    return partial(multiply, 1.0, inputs, problem.coefficients, beta=beta, c=target, trans_b=1, overwrite_c=1)


def _needs_blas_type(problem: Problem) -> None:
    if problem.element.half:
        raise NotApplicable("BLAS has no half types")


# PyTorch --------------------------------------------------------------------------------------------------------------


@cache
def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed") from error


def _tensor(torch: Any, array: Array) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _torch(problem: Problem) -> Call:
    torch = _module("torch")
    coefficients = _tensor(torch, problem.coefficients.astype(problem.element.dtype))
    inputs, outputs = _tensor(torch, problem.inputs), _tensor(torch, problem.outputs)
    if problem.case.accumulate:
        return partial(torch.addmm, outputs, coefficients, inputs, out=outputs)
    return partial(torch.mm, coefficients, inputs, out=outputs)


# Half types by way of float32 -----------------------------------------------------------------------------------------

BLOCK_BYTES = 1 << 19
"""Float32 buffers of a block of columns: they stay in the second-level cache between conversion and product."""


def _block_columns(problem: Problem, blocked: bool) -> int:
    case = problem.case
    if not problem.element.half:
        raise NotApplicable("converts half types only")
    if case.accumulate:
        raise Unavailable("not written for accumulate")
    if not blocked:
        return case.length
    columns = max(256, BLOCK_BYTES // (4 * (case.p + case.q)))
    if columns >= case.length:
        raise NotApplicable("the rows are a single block")
    return columns


def _numpy_converted(problem: Problem, blocked: bool = False) -> Call:
    columns = _block_columns(problem, blocked)
    inputs, outputs, coefficients = problem.inputs, problem.outputs, problem.coefficients
    length = problem.case.length
    wide_inputs = np.empty((len(inputs), columns), np.float32)
    wide_outputs = np.empty((len(outputs), columns), np.float32)

    def whole() -> None:
        np.copyto(wide_inputs, inputs)
        np.matmul(coefficients, wide_inputs, out=wide_outputs)
        np.copyto(outputs, wide_outputs, casting="same_kind")

    def by_blocks() -> None:
        for begin in range(0, length, columns):
            end = min(begin + columns, length)
            x, y = wide_inputs[:, : end - begin], wide_outputs[:, : end - begin]
            np.copyto(x, inputs[:, begin:end])
            np.matmul(coefficients, x, out=y)
            np.copyto(outputs[:, begin:end], y, casting="same_kind")

    return by_blocks if blocked else whole


def _torch_converted(problem: Problem, blocked: bool = False) -> Call:
    columns = _block_columns(problem, blocked)
    torch = _module("torch")
    coefficients = torch.from_numpy(problem.coefficients)
    inputs, outputs = _tensor(torch, problem.inputs), _tensor(torch, problem.outputs)
    length = problem.case.length
    wide_inputs = torch.empty((len(inputs), columns), dtype=torch.float32)
    wide_outputs = torch.empty((len(outputs), columns), dtype=torch.float32)

    def whole() -> None:
        wide_inputs.copy_(inputs)
        torch.mm(coefficients, wide_inputs, out=wide_outputs)
        outputs.copy_(wide_outputs)

    def by_blocks() -> None:
        for begin in range(0, length, columns):
            end = min(begin + columns, length)
            x, y = wide_inputs[:, : end - begin], wide_outputs[:, : end - begin]
            x.copy_(inputs[:, begin:end])
            torch.mm(coefficients, x, out=y)
            outputs[:, begin:end].copy_(y)

    return by_blocks if blocked else whole


# Others ---------------------------------------------------------------------------------------------------------------


def _numkong(problem: Problem) -> Call:
    """NumKong weighs and adds at most two vectors (`scale`, `blend`), and always on one thread."""
    case = problem.case
    numkong = _module("numkong")
    if case.q > 2 or case.accumulate:
        raise NotApplicable("NumKong has no sum of more than two vectors")
    half = {"f16": np.dtype(np.float16), "bf16": np.dtype(np.uint16)}.get(case.type)
    inputs = problem.inputs if half is None else problem.inputs.view(half)
    outputs = problem.outputs if half is None else problem.outputs.view(half)
    name = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}[case.type]
    calls = []
    for row, target in zip(problem.coefficients.tolist(), outputs, strict=True):
        if case.q == 1:
            calls.append(partial(numkong.scale, inputs[0], name, alpha=row[0], beta=0.0, out=target))
        else:
            calls.append(partial(numkong.blend, inputs[0], inputs[1], name, alpha=row[0], beta=row[1], out=target))
    try:
        calls[0]()
    except (TypeError, ValueError) as error:
        raise Unavailable(f"NumKong: {error}") from None

    def all_rows() -> None:
        for call in calls:
            call()

    return calls[0] if case.p == 1 else all_rows


@cache
def _naive_loop() -> Any:
    numba = _module("numba")

    @numba.njit(parallel=True, fastmath=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
    def loop(coefficients: Array, inputs: Array, outputs: Array, accumulate: bool, chunks: int) -> None:
        p, q = coefficients.shape
        length = inputs.shape[1]
        for chunk in numba.prange(chunks):
            begin, end = chunk * length // chunks, (chunk + 1) * length // chunks
            for i in range(p):
                if not accumulate:
                    outputs[i, begin:end] = 0
                for j in range(q):
                    weight = coefficients[i, j]
                    for x in range(begin, end):
                        outputs[i, x] += weight * inputs[j, x]

    return loop


def _naive(problem: Problem) -> Call:
    if problem.element.half:
        raise NotApplicable("Numba has no arithmetic on half types on the CPU")
    case = problem.case
    return partial(_naive_loop(), problem.coefficients, problem.inputs, problem.outputs, case.accumulate, case.threads)


def contestants(only: Sequence[str] = ("",)) -> list[Contestant]:
    """Those whose names begin with one of `only`, case aside; ours first."""
    everyone = [
        Contestant(OURS, _fastgc, ours=True),
        *(Contestant(f"fastgc {isa}", partial(_fastgc_isa, isa=isa), ours=True) for isa in _instruction_sets()),
        *(
            Contestant(f"fastgc {backend}", partial(_fastgc, backend=backend), ours=True)
            for backend in kernels.backends()[1:]
            if backend != "cuda"  # whose arrays are elsewhere: see bench/gpu.py
        ),
        Contestant("NumPy", _numpy),
        Contestant("SciPy BLAS", _scipy),
        Contestant("PyTorch", _torch),
        Contestant("NumKong", _numkong),
        Contestant("Numba loop", _naive),
        Contestant("NumPy via f32", _numpy_converted),
        Contestant("NumPy via f32, blocked", partial(_numpy_converted, blocked=True)),
        Contestant("PyTorch via f32", _torch_converted),
        Contestant("PyTorch via f32, blocked", partial(_torch_converted, blocked=True)),
    ]
    return [c for c in everyone if c.name.lower().startswith(tuple(name.lower() for name in only))]
