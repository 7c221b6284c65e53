"""The kernels inside code that Numba compiles: in functions under `numba.njit`, on arrays and tuples of arrays.

    import fastgc.numba as fnb

    @numba.njit
    def step(coefficients, gradients, out):
        fnb.lincomb(coefficients, gradients, out)

They check what `fastgc.kernels` checks: types when the caller is compiled, all else when it runs. They run on one
thread, that of the caller. `lincomb` calls the compiled kernels of `fastgc.native.get_library`, and kernels written in
Numba where there is no such library. Importing this module imports Numba. A function that calls them takes two or three
seconds to compile for each combination of argument types, which ``numba.njit(cache=True)`` keeps.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import literal_unroll, objmode
from numba.core import errors, types
from numba.extending import overload

from fastgc import arrays, kernels
from fastgc.kernels import numba_kernels, numba_library

__all__ = ["decoding_weights", "lincomb"]

_HALVES = {"float16": numba_kernels.FLOAT16, "bfloat16": numba_kernels.BFLOAT16}
_LARGEST, _LARGEST_SINGLE = float(np.finfo(np.float64).max), float(np.finfo(np.float32).max)


def lincomb(coefficients: Any, inputs: Any, out: Any, accumulate: bool = False, half: str | None = None) -> None:
    """``out[p] = sum over q of coefficients[p, q] * inputs[q]``, in compiled code and outside.

    Parameters
    ----------
    coefficients : array of float32 or float64, shape (P, Q)
        Rounded once to the type computed in: float64 for rows in float64, else float32.
    inputs : array of shape (Q, L), or tuple of Q arrays of shape (L,)
        float32 or float64, or uint16 that hold the bits of a half type: Numba has no arrays of float16 and does not
        know bfloat16, so pass ``row.view(np.uint16)``. Elements of a row must be next to each other.
    out : array of shape (P, L), or tuple of P arrays of shape (L,)
        Where the result goes: of the inputs' type; or float32, where the inputs are of a half type; or of a half type,
        where they are float32. No row may overlap another or an input in memory.
    accumulate : bool
        Add to what `out` holds.
    half : {"float16", "bfloat16"}, optional
        What rows of uint16 are: a string that is known when the caller is compiled.

    Raises
    ------
    numba.core.errors.TypingError
        In compiled code: element types or dimensions that are not these.
    ValueError
        Shapes that do not match, no rows or empty ones, coefficients that are not finite in the element type, rows that
        are not contiguous or overlap. `out` is untouched.

    Notes
    -----
    The arithmetic, and so the bits, are those of `fastgc.kernels.lincomb`.
    """
    if half is not None and half not in _HALVES:
        raise ValueError(f"half: expected 'float16' or 'bfloat16', got {half!r}")

    def seen(rows: Any) -> Any:
        if isinstance(rows, tuple):
            return [seen(row) for row in rows]
        if half is None or rows.dtype != np.uint16:
            return rows
        return rows.view(np.float16 if half == "float16" else arrays.bfloat16("half"))

    kernels.lincomb(coefficients, seen(inputs), seen(out), accumulate=accumulate, threads=1)


def decoding_weights(
    generator: npt.NDArray[np.float64], patterns: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Inverses of selected rows of a generator, in compiled code and outside.

    Parameters
    ----------
    generator : array of float64, shape (n, k)
    patterns : array of int64, shape (B, k)
        Each row names k different rows of the generator.

    Returns
    -------
    weights : array of float64, shape (B, k, k)
        A with ``A @ generator[pattern] = I``, with the bits of `fastgc.kernels.decoding_weights`.
    doubtful : array of bool, shape (B,)
        True where the rank must be looked at (`fastgc.linalg.rank`) before the weights are used: compiled code cannot.

    Raises
    ------
    numba.core.errors.TypingError
        In compiled code: other types or dimensions.
    ValueError
        Shapes that do not match, a row out of range or named twice, entries that are not finite.
    """
    return _decoding_weights(generator, patterns)  # type: ignore[no-any-return]


# Types, when the caller is compiled -----------------------------------------------------------------------------------


def _refuse(message: str) -> None:
    raise errors.TypingError(message)


def _element(name: str, rows: Any, half: str | None) -> int:
    """The element type of rows as the kernels know it, or a TypingError."""
    row_types: tuple[Any, ...] = getattr(rows, "types", ()) if isinstance(rows, types.BaseTuple) else ()
    if isinstance(rows, types.Array) and rows.ndim == 2:
        kinds = {rows.dtype}
    elif row_types and all(isinstance(row, types.Array) for row in row_types):
        if any(row.ndim != 1 for row in row_types):
            _refuse(f"{name}: expected 1-D arrays in the tuple, got {rows}")
        kinds = {row.dtype for row in row_types}
    else:
        _refuse(f"{name}: expected a 2-D array or a tuple of 1-D arrays, got {rows}")
    if len(kinds) > 1:
        _refuse(f"{name}: expected arrays of one element type, got {', '.join(sorted(map(str, kinds)))}")
    (kind,) = kinds
    if kind == types.uint16:
        if half not in _HALVES:
            _refuse(f"half: expected the literal 'float16' or 'bfloat16' for {name} of uint16, got {half!r}")
        return _HALVES[str(half)]
    found = {types.float32: numba_kernels.FLOAT32, types.float64: numba_kernels.FLOAT64}.get(kind)
    if found is None:
        _refuse(f"{name}: expected element type float32, float64 or uint16, got {kind}")
    return int(found)  # type: ignore[arg-type]


def _literal(half: Any) -> str | None:
    value = getattr(half, "literal_value", getattr(half, "value", None))
    return value if isinstance(value, str) else None


# Values, when it runs -------------------------------------------------------------------------------------------------


def _rows(rows: Any) -> Any:
    """Addresses, lengths and strides of rows."""


@overload(_rows)
def _overload_rows(rows: Any) -> Any:
    if isinstance(rows, types.Array):

        def of_array(rows: Any) -> Any:
            found = np.empty((3, len(rows)), np.int64)
            for q in range(len(rows)):
                found[0, q] = rows.ctypes.data + q * rows.strides[0]
                found[1, q] = rows.shape[1]
                found[2, q] = rows.strides[1]
            return found

        return of_array

    def of_tuple(rows: Any) -> Any:
        found = np.empty((3, len(rows)), np.int64)
        q = 0  # literal_unroll does not go with enumerate
        for row in literal_unroll(rows):
            found[0, q] = row.ctypes.data
            found[1, q] = row.shape[0]
            found[2, q] = row.strides[0]
            q += 1  # noqa: SIM113
        return found

    return of_tuple


# Codes of what may be wrong, which compiled code finds, with up to three numbers; Python makes the messages, as to
# compile the making of them would take seconds.
_MESSAGES = (
    "inputs[{}]: expected length {} like inputs[0], got {}",
    "out[{}]: expected length {} like out[0], got {}",
    "inputs[{}]: elements of a row must be contiguous, got a stride of {} bytes",
    "out[{}]: elements of a row must be contiguous, got a stride of {} bytes",
    "coefficients: expected at least one row and column, got shape ({}, {})",
    "coefficients: expected {} columns, one for each input, got shape ({}, {})",
    "inputs: rows have length 0",
    "out: expected {} rows, got {}",
    "out: expected length {}, got {}",
    "coefficients[{}, {}]: expected a number finite in the type computed in",
    "out: rows overlap each other in memory",
    "out: overlaps inputs row {} in memory",
    "generator: expected shape (n, k) with 0 < k <= n, got ({}, {})",
    "patterns: expected shape (B, {}), got ({}, {})",
    "generator[{}, {}]: expected a finite number",
    "patterns[{}]: row {} is not among the generator's {} rows",
    "patterns[{}]: row {} is named twice",
)
_FINE = len(_MESSAGES)


def _message(problem: Any) -> str:
    what, *numbers = problem
    return _MESSAGES[what].format(*numbers)


@numba.njit(cache=True)
def _fail(problem: Any) -> None:
    with objmode(message="unicode_type"):
        message = _message(problem)
    raise ValueError(message)


@numba_kernels._compiled
def _shape_problem(coefficients: Any, inputs: Any, out: Any, size: int, result_size: int) -> Any:
    """The code of what is wrong with the shapes of a call, and its numbers; rows are addresses, lengths and strides."""
    P, Q = coefficients.shape
    length = inputs[1, 0] if inputs.shape[1] else 0
    for which, rows, each in ((0, inputs, size), (1, out, result_size)):
        for q in range(rows.shape[1]):
            if rows[1, q] != rows[1, 0]:
                return (which, q, rows[1, 0], rows[1, q])
            if rows[1, q] > 1 and rows[2, q] != each:
                return (2 + which, q, rows[2, q], 0)
    if P == 0 or Q == 0:
        return (4, P, Q, 0)
    if inputs.shape[1] != Q:
        return (5, inputs.shape[1], P, Q)
    if length == 0:
        return (6, 0, 0, 0)
    if out.shape[1] != P:
        return (7, P, out.shape[1], 0)
    if out[1, 0] != length:
        return (8, length, out[1, 0], 0)
    return (_FINE, 0, 0, 0)


@numba_kernels._compiled
def _value_problem(coefficients: Any, inputs: Any, out: Any, size: int, result_size: int, largest: float) -> Any:
    """The same of coefficients and addresses, where shapes are right; the library looks at these itself."""
    P, Q = coefficients.shape
    length = inputs[1, 0]
    for p in range(P):
        for q in range(Q):
            if not abs(coefficients[p, q]) <= largest:
                return (9, p, q, 0)
    for p in range(P):
        begin, end = out[0, p], out[0, p] + length * result_size
        for other in range(p):
            if begin < out[0, other] + length * result_size and out[0, other] < end:
                return (10, 0, 0, 0)
        for q in range(Q):
            if begin < inputs[0, q] + length * size and inputs[0, q] < end:
                return (11, q, 0, 0)
    return (_FINE, 0, 0, 0)


@numba_kernels._compiled
def _lincomb(coefficients: Any, inputs: Any, out: Any, accumulate: bool, kind: int, result: int) -> Any:
    """All of a call that does not depend on how its rows are given, compiled once; returns what is wrong."""
    double = kind == numba_kernels.FLOAT64
    size = 8 if double else 4 if kind == numba_kernels.FLOAT32 else 2
    result_size = 8 if double else 4 if result == numba_kernels.FLOAT32 else 2
    problem = _shape_problem(coefficients, inputs, out, size, result_size)
    if problem[0] != _FINE:
        return problem
    P, Q = coefficients.shape
    matrix, length = coefficients.ctypes.data, inputs[1, 0]
    first, to = inputs.ctypes.data, out.ctypes.data
    if numba_library.lincomb(matrix, P, Q, kind, first, result, to, length, accumulate):
        return problem
    # There is no library, or it has refused, as it does what _value_problem names and elements that are not aligned.
    problem = _value_problem(coefficients, inputs, out, size, result_size, _LARGEST if double else _LARGEST_SINGLE)
    if problem[0] == _FINE:
        sources, targets = inputs[0].astype(np.uintp), out[0].astype(np.uintp)
        if double:
            numba_kernels.lincomb_rows(coefficients, sources, targets, 0, length, accumulate, kind, result)
        else:
            single = coefficients.astype(np.float32)
            numba_kernels.lincomb_rows(single, sources, targets, 0, length, accumulate, kind, result)
    return problem


@overload(lincomb, strict=False)
def _overload_lincomb(coefficients: Any, inputs: Any, out: Any, accumulate: Any = False, half: Any = None) -> Any:
    if not (
        isinstance(coefficients, types.Array)
        and coefficients.ndim == 2
        and coefficients.dtype in (types.float32, types.float64)
    ):
        _refuse(f"coefficients: expected a 2-D array of float32 or float64, got {coefficients}")
    chosen = _literal(half) if not isinstance(half, str) else half
    kind, result = _element("inputs", inputs, chosen), _element("out", out, chosen)
    if kind != result and (
        numba_kernels.FLOAT64 in (kind, result) or numba_kernels.FLOAT32 not in (kind, result)
    ):  # pragma: no branch
        _refuse(f"out: expected the element type of inputs, or float32 beside a half type, got {out}")

    def call(coefficients: Any, inputs: Any, out: Any, accumulate: Any = False, half: Any = None) -> None:
        matrix = np.empty(coefficients.shape, np.float64)
        for p in range(coefficients.shape[0]):
            for q in range(coefficients.shape[1]):
                matrix[p, q] = coefficients[p, q]
        problem = _lincomb(matrix, _rows(inputs), _rows(out), accumulate, kind, result)
        if problem[0] != _FINE:
            _fail(problem)

    return call


@numba_kernels._compiled
def _inverses(generator: Any, patterns: Any, weights: Any, doubtful: Any) -> Any:
    n, k = generator.shape
    if k == 0 or k > n:
        return (12, n, k, 0)
    if patterns.shape[1] != k:
        return (13, k, patterns.shape[0], patterns.shape[1])
    for i in range(n):
        for j in range(k):
            if not abs(generator[i, j]) < np.inf:
                return (14, i, j, 0)
    for b in range(len(patterns)):
        for i in range(k):
            if patterns[b, i] < 0 or patterns[b, i] >= n:
                return (15, b, patterns[b, i], n)
            for j in range(i):
                if patterns[b, i] == patterns[b, j]:
                    return (16, b, patterns[b, i], 0)
    numba_kernels.decoding_weights(generator, patterns, weights, doubtful)
    return (_FINE, 0, 0, 0)


@numba.njit(cache=True)
def _decoding_weights(generator: Any, patterns: Any) -> Any:
    k = generator.shape[1]
    weights = np.empty((len(patterns), k, k))
    doubtful = np.empty(len(patterns), np.bool_)
    problem = _inverses(generator, patterns, weights, doubtful)
    if problem[0] != _FINE:
        _fail(problem)
    return weights, doubtful


@overload(decoding_weights)
def _overload_decoding_weights(generator: Any, patterns: Any) -> Any:
    for name, value, dtype in (("generator", generator, types.float64), ("patterns", patterns, types.int64)):
        if not (isinstance(value, types.Array) and value.ndim == 2 and value.dtype == dtype):
            _refuse(f"{name}: expected a 2-D array of {dtype}, got {value}")

    def call(generator: Any, patterns: Any) -> Any:
        return _decoding_weights(generator, patterns)

    return call
