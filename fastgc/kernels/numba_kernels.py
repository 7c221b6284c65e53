"""The kernels in Numba, for calling from compiled code (`numba.njit`) and as the fallback of `fastgc.kernels`.

The functions release the GIL, run on one thread and are compiled on first use (a few seconds,
cached on disk). They have the bits of the C++ kernels on instruction sets that fuse multiplication and addition.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils as untyped
from numba.core import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

__all__ = [
    "decoding_weights",
    "few_missing_shape",
    "few_missing_table",
    "few_missing_weights",
    "least_norm_weights",
    "lincomb",
    "lincomb_columns",
    "lincomb_rows",
]

cgutils: Any = untyped
F = TypeVar("F", bound=Callable[..., Any])


def _compiled(function: F) -> F:
    # No fastmath: LLVM must neither reorder a chain nor fuse what is written as two roundings.
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


def _define_fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
    if not (a == b == c and isinstance(a, types.Float)):
        return None
    return a(a, b, c), lambda _codegen, builder, _signature, arguments: builder.fma(*arguments)


def _define_pointer(_context: Any, address: Any) -> Any:
    def convert(codegen: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], codegen.get_value_type(signature.return_type))

    return types.voidptr(address), convert


def _define_cast(source: Any, target: Any, through: Any, last: str) -> Any:
    def define(_context: Any, value: Any) -> Any:
        def convert(codegen: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.bitcast(arguments[0], through) if last == "fpext" else arguments[0]
            if last == "fptrunc":
                value = builder.fptrunc(value, through)
            to = codegen.get_value_type(signature.return_type)
            return builder.fpext(value, to) if last == "fpext" else builder.bitcast(value, to)

        # Numba makes 64 bits of what is combined from 32: the argument is cut back to the type named here.
        fits = isinstance(value, types.Integer) if isinstance(source, types.Integer) else value == source
        return (target(source), convert) if fits else None

    return intrinsic(define)


_bits: Any = _define_cast(types.float32, types.uint32, None, "")  # of a number
_number: Any = _define_cast(types.uint32, types.float32, None, "")  # of bits
_widen_half: Any = _define_cast(types.uint16, types.float32, ir.HalfType(), "fpext")
_narrow_half: Any = _define_cast(types.float32, types.uint16, ir.HalfType(), "fptrunc")
_fma: Any = intrinsic(_define_fma)  # a * b + c, rounded once
_pointer: Any = intrinsic(_define_pointer)


# Tiles ----------------------------------------------------------------------------------------------------------------
#
# R rows by V vectors, all sums in registers, are written in LLVM's vectors: its vectoriser would have to prove that
# rows do not overlap, and gives up on so many. A vector of 32 bytes is what most processors have; others cut or join.

_VECTOR = 32
_ROWS = 4


def _define_tile(rows: int, vectors: int) -> Any:
    """``tile(coefficients, inputs, outputs, stride, count, x, accumulate, one)``: addresses of coefficients (`stride`
    a row) and of the tables of rows, inputs, the column, and a number of the type computed in."""

    def define(_context: Any, *given: Any) -> Any:
        element = given[-1]
        size = element.bitwidth // 8
        lanes = _VECTOR // size

        def generate(codegen: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            coefficients, inputs, outputs, stride, count, x, accumulate, _ = arguments
            scalar = codegen.get_value_type(element)
            vector, word = ir.VectorType(scalar, lanes), ir.IntType(64)
            fused = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f{8 * size}"
            )

            def at(address: Any, index: Any, width: int, kind: Any) -> Any:
                return builder.inttoptr(builder.add(address, builder.mul(index, word(width))), kind.as_pointer())

            def vectors_of(table: Any, row: Any) -> list[Any]:
                first = builder.load(at(table, row, 8, word))
                return [at(first, builder.add(x, word(v * lanes)), size, vector) for v in range(vectors)]

            sums = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in range(rows)]
            # A chain begins with -0, to which the first product is added without a change.
            zero = ir.Constant(vector, [ir.Constant(scalar, -0.0)] * lanes)
            for r in range(rows):
                for v, place in enumerate(vectors_of(outputs, word(r))):
                    with builder.if_else(cgutils.is_not_null(builder, accumulate)) as (then, otherwise):
                        with then:
                            builder.store(builder.load(place, align=size), sums[r][v])
                        with otherwise:
                            builder.store(zero, sums[r][v])
            with cgutils.for_range(builder, count) as loop:
                numbers = [builder.load(place, align=size) for place in vectors_of(inputs, loop.index)]
                for r in range(rows):
                    index = builder.add(builder.mul(stride, word(r)), loop.index)
                    one = builder.load(at(coefficients, index, size, scalar))
                    head = builder.insert_element(ir.Constant(vector, ir.Undefined), one, ir.IntType(32)(0))
                    all_ones = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                    each = builder.shuffle_vector(head, head, all_ones)
                    for v in range(vectors):
                        builder.store(builder.call(fused, [each, numbers[v], builder.load(sums[r][v])]), sums[r][v])
            for r in range(rows):
                for v, place in enumerate(vectors_of(outputs, word(r))):
                    builder.store(builder.load(sums[r][v]), place, align=size)
            return codegen.get_dummy_value()

        if not isinstance(element, types.Float):
            return None
        integers = [types.int64] * 6
        return types.void(*integers, types.boolean, element), generate

    # Numba wants the parameters by name.
    def tile(
        context: Any, coefficients: Any, inputs: Any, outputs: Any, stride: Any, count: Any, x: Any, accumulate: Any,
        one: Any,
    ) -> Any:  # fmt: skip
        return define(context, coefficients, inputs, outputs, stride, count, x, accumulate, one)

    return intrinsic(tile)


_tile1, _tile2, _tile3, _tile4 = (_define_tile(rows, 4 if rows <= 2 else 2) for rows in range(1, _ROWS + 1))


@_compiled
def lincomb_columns(coefficients: Any, inputs: Any, outputs: Any, begin: int, end: int, accumulate: bool) -> None:
    """Columns ``[begin, end)`` of `lincomb` on rows given by address.

    Parameters
    ----------
    coefficients : array, shape (P, Q)
        Of the rows' element type, float32 or float64, C-contiguous.
    inputs, outputs : arrays of uintp, shapes (Q,) and (P,)
        Addresses of the rows' first elements, aligned to their size. Nothing is checked.
    begin, end : int
    accumulate : bool
    """
    P, Q = coefficients.shape
    one = coefficients[0, 0]
    negative = np.empty(1, coefficients.dtype)
    negative[0] = -0.0
    size = coefficients.itemsize
    lanes = _VECTOR // size
    chunk = 32 * 1024 // size // max(1, min(Q, 16)) // 128 * 128 + 128  # inputs stay in cache for the next rows
    sources = inputs.ctypes.data
    for x in range(begin, end, chunk):
        stop = min(x + chunk, end)
        for p in range(0, P, _ROWS):
            rows = min(_ROWS, P - p)
            at = coefficients.ctypes.data + p * Q * size
            targets = outputs.ctypes.data + 8 * p
            i = x
            width = (4 if rows <= 2 else 2) * lanes
            if rows == 4:
                while i + width <= stop:
                    _tile4(at, sources, targets, Q, Q, i, accumulate, one)
                    i += width
            elif rows == 3:
                while i + width <= stop:
                    _tile3(at, sources, targets, Q, Q, i, accumulate, one)
                    i += width
            elif rows == 2:
                while i + width <= stop:
                    _tile2(at, sources, targets, Q, Q, i, accumulate, one)
                    i += width
            else:
                while i + width <= stop:
                    _tile1(at, sources, targets, Q, Q, i, accumulate, one)
                    i += width
            if i < stop:  # fewer columns than a tile has
                for r in range(p, p + rows):
                    out = carray(_pointer(outputs[r]), (stop,), coefficients.dtype)
                    for j in range(i, stop):
                        chain = out[j] if accumulate else negative[0]
                        for q in range(Q):
                            number = carray(_pointer(inputs[q]), (stop,), coefficients.dtype)[j]
                            chain = _fma(coefficients[r, q], number, chain)
                        out[j] = chain


# Half types ----------------------------------------------------------------------------------------------------------
#
# Numba has no arrays of float16 on the CPU and no bfloat16: rows of them are taken by address, as 16 bits a number. An
# element is widened to float32 once, chains run there, and a result is rounded once, to nearest even.

FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = 1, 2, 3, 4  # element types, as fastgc.h numbers them

# LLVM's own conversion takes an instruction where the processor has one, and else a function that is not there.
_CONVERTS = platform.machine() in ("aarch64", "arm64") or bool(binding.get_host_cpu_features().get("f16c"))


@_compiled
def _widen_bits(half: Any) -> Any:
    """float16 to float32 by arithmetic on bits."""
    size = np.uint32(half) & np.uint32(0x7FFF)
    sign = (np.uint32(half) & np.uint32(0x8000)) << np.uint32(16)
    if size >= np.uint32(0x7C00):
        quiet = np.uint32(0x400000) if size > np.uint32(0x7C00) else np.uint32(0)
        return _number(sign | np.uint32(0x7F800000) | quiet | ((size & np.uint32(0x3FF)) << np.uint32(13)))
    return _number(_bits(_number(size << np.uint32(13)) * np.float32(2.0**112)) | sign)


@_compiled
def _narrow_bits(number: Any) -> Any:
    """float32 to float16 by arithmetic on bits; NaN keeps its sign and upper bits and becomes quiet."""
    size = _bits(number) & np.uint32(0x7FFFFFFF)
    sign = _bits(number) >> np.uint32(16) & np.uint32(0x8000)
    if size > np.uint32(0x7F800000):
        return np.uint16(sign | np.uint32(0x7E00) | (size >> np.uint32(13) & np.uint32(0x3FF)))
    if size >= np.uint32(0x477FF000):  # 65520, from which on all rounds to infinity
        return np.uint16(sign | np.uint32(0x7C00))
    if size < np.uint32(0x38800000):  # 2**-14: the sum with 0.5 has the unit of the subnormal numbers
        return np.uint16(sign | (_bits(_number(size) + np.float32(0.5)) - np.uint32(0x3F000000)))
    rounded = size + np.uint32(0xFFF) + (size >> np.uint32(13) & np.uint32(1)) - np.uint32(112 << 23)
    return np.uint16(sign | rounded >> np.uint32(13))


_from_half, _to_half = (_widen_half, _narrow_half) if _CONVERTS else (_widen_bits, _narrow_bits)


@_compiled
def _to_brain(number: Any) -> Any:
    """float32 to bfloat16; NaN keeps its sign and upper bits and becomes quiet."""
    bits = _bits(number)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(bits >> np.uint32(16) | np.uint32(0x40)) if number != number else np.uint16(rounded)


_LANES = 8  # numbers converted at once


def _define_conversion(change: Callable[[Any, Any], Any], source: Any, target: Any) -> Any:
    """``convert(from, to)``: eight numbers at one address to eight at another."""

    def convert(_context: Any, start: Any, to: Any) -> Any:
        def generate(_codegen: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            places = [
                builder.inttoptr(address, ir.VectorType(kind, _LANES).as_pointer())
                for address, kind in zip(arguments, (source, target), strict=True)
            ]
            size = {ir.HalfType(): 2, ir.FloatType(): 4, ir.IntType(16): 2, ir.IntType(32): 4}
            numbers = builder.load(places[0], align=size[source])
            builder.store(change(builder, numbers), places[1], align=size[target])
            return _codegen.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return intrinsic(convert)


def _vector_of(kind: Any, value: int = 0) -> Any:
    vector = ir.VectorType(kind, _LANES)
    return ir.Constant(vector, [ir.Constant(kind, value)] * _LANES)


def _brain_to_single(builder: Any, bits: Any) -> Any:
    word = ir.IntType(32)
    return builder.shl(builder.zext(bits, ir.VectorType(word, _LANES)), _vector_of(word, 16))


def _single_to_brain(builder: Any, bits: Any) -> Any:
    """`_to_brain` on eight numbers."""
    word = ir.IntType(32)
    upper = builder.lshr(bits, _vector_of(word, 16))
    nudge = builder.add(builder.and_(upper, _vector_of(word, 1)), _vector_of(word, 0x7FFF))
    rounded = builder.lshr(builder.add(bits, nudge), _vector_of(word, 16))
    size = builder.and_(bits, _vector_of(word, 0x7FFFFFFF))
    nan = builder.icmp_unsigned(">", size, _vector_of(word, 0x7F800000))
    chosen = builder.select(nan, builder.or_(upper, _vector_of(word, 0x40)), rounded)
    return builder.trunc(chosen, ir.VectorType(ir.IntType(16), _LANES))


_half, _single = ir.HalfType(), ir.FloatType()
_widen_halves = _define_conversion(lambda b, x: b.fpext(x, ir.VectorType(_single, _LANES)), _half, _single)
_narrow_halves = _define_conversion(lambda b, x: b.fptrunc(x, ir.VectorType(_half, _LANES)), _single, _half)
_widen_brains = _define_conversion(_brain_to_single, ir.IntType(16), ir.IntType(32))
_narrow_brains = _define_conversion(_single_to_brain, ir.IntType(32), ir.IntType(16))


@_compiled
def _widen_row(address: Any, kind: int, to: Any, count: int) -> None:
    halves, row = carray(_pointer(address), (count,), np.uint16), carray(_pointer(to), (count,), np.float32)
    whole = count // _LANES * _LANES if kind == BFLOAT16 or _CONVERTS else 0
    if kind == FLOAT16:
        if _CONVERTS:
            for i in range(0, whole, _LANES):
                _widen_halves(address + np.uintp(2 * i), to + np.uintp(4 * i))
        for i in range(whole, count):
            row[i] = _from_half(halves[i])
    else:
        for i in range(0, whole, _LANES):
            _widen_brains(address + np.uintp(2 * i), to + np.uintp(4 * i))
        for i in range(whole, count):
            row[i] = _number(np.uint32(halves[i]) << np.uint32(16))


@_compiled
def _narrow_row(address: Any, kind: int, to: Any, count: int) -> None:
    row, halves = carray(_pointer(address), (count,), np.float32), carray(_pointer(to), (count,), np.uint16)
    whole = count // _LANES * _LANES if kind == BFLOAT16 or _CONVERTS else 0
    if kind == FLOAT16:
        if _CONVERTS:
            for i in range(0, whole, _LANES):
                _narrow_halves(address + np.uintp(4 * i), to + np.uintp(2 * i))
        for i in range(whole, count):
            halves[i] = _to_half(row[i])
    else:
        for i in range(0, whole, _LANES):
            _narrow_brains(address + np.uintp(4 * i), to + np.uintp(2 * i))
        for i in range(whole, count):
            halves[i] = _to_brain(row[i])


@_compiled
def lincomb_rows(
    coefficients: Any, inputs: Any, outputs: Any, begin: int, end: int, accumulate: bool, kind: int, result: int
) -> None:
    """`lincomb_columns` on rows of any element type.

    Parameters
    ----------
    coefficients : array, shape (P, Q)
        float64 for rows of it, else float32.
    inputs, outputs : arrays of uintp, shapes (Q,) and (P,)
    begin, end : int
    accumulate : bool
    kind, result : int
        Element types of inputs and outputs: `FLOAT32`, `FLOAT64`, `FLOAT16` or `BFLOAT16`.
    """
    if kind == result and kind <= FLOAT64:
        lincomb_columns(coefficients, inputs, outputs, begin, end, accumulate)
        return
    P, Q = len(outputs), len(inputs)
    width = max(128, 32768 // (P + Q) // 64 * 64)  # widened rows stay in 128 KiB of the second-level cache
    room = np.empty((P + Q, min(width, end - begin)), np.float32)
    sources, targets = np.empty(Q, np.uintp), np.empty(P, np.uintp)
    for x in range(begin, end, width):
        count = min(width, end - x)
        for q in range(Q):
            if kind == FLOAT32:
                sources[q] = inputs[q] + np.uintp(4 * x)
            else:
                sources[q] = room[q].ctypes.data
                _widen_row(inputs[q] + np.uintp(2 * x), kind, sources[q], count)
        for p in range(P):
            if result == FLOAT32:
                targets[p] = outputs[p] + np.uintp(4 * x)
            else:
                targets[p] = room[Q + p].ctypes.data
                if accumulate:
                    _widen_row(outputs[p] + np.uintp(2 * x), result, targets[p], count)
        lincomb_columns(coefficients, sources, targets, 0, count, accumulate)
        if result != FLOAT32:
            for p in range(P):
                _narrow_row(targets[p], result, outputs[p] + np.uintp(2 * x), count)


@_compiled
def lincomb(coefficients: Any, inputs: Any, out: Any, accumulate: bool) -> None:
    """``out[p] = sum over q of coefficients[p, q] * inputs[q]``; see `fastgc.kernels.lincomb` for the arithmetic.

    Parameters
    ----------
    coefficients : array of float, shape (P, Q)
        Rounded once to the element type of `inputs`.
    inputs : array of float32 or float64, shape (Q, L)
        Elements of a row next to each other, rows at any distance.
    out : array of the same type, shape (P, L)
        Likewise. Must not overlap `inputs`, which is not checked.
    accumulate : bool
        Add to what `out` holds.

    Raises
    ------
    ValueError
        Shapes that do not match, or rows that are not contiguous.
    """
    P, Q = coefficients.shape
    if P == 0 or Q == 0 or inputs.shape[0] != Q or out.shape[0] != P or inputs.shape[1] != out.shape[1]:
        raise ValueError("expected coefficients (P, Q), inputs (Q, L) and out (P, L)")
    if inputs.shape[1] > 1 and (inputs.strides[1] != inputs.itemsize or out.strides[1] != out.itemsize):
        raise ValueError("expected rows of inputs and out to be contiguous")
    from_rows = np.empty(Q, np.uintp)
    for q in range(Q):
        from_rows[q] = inputs.ctypes.data + q * inputs.strides[0]
    to_rows = np.empty(P, np.uintp)
    for p in range(P):
        to_rows[p] = out.ctypes.data + p * out.strides[0]
    lincomb_columns(
        np.ascontiguousarray(coefficients).astype(inputs.dtype), from_rows, to_rows, 0, inputs.shape[1], accumulate
    )


@_compiled
def decoding_weights(generator: Any, patterns: Any, out: Any, flags: Any) -> None:
    """Inverses of selected rows of a generator; see `fastgc.kernels.decoding_weights`.

    Parameters
    ----------
    generator : array of float64, shape (n, k)
    patterns : array of int64, shape (B, k)
        Row numbers, which are not checked.
    out : array of float64, shape (B, k, k)
        Receives the inverses; NaN where elimination met a pivot of zero.
    flags : array of bool, shape (B,)
        Receives True where the rank must be looked at before the inverse is used.
    """
    k = generator.shape[1]
    m = np.empty((k, k + 2))  # row v: M, then the squared norm of column v of the selected rows, then v
    x = np.empty((k, k))
    lengths = np.empty(k)
    for b in range(len(patterns)):
        for v in range(k):
            norm = 0.0
            for i in range(k):
                g = generator[patterns[b, i], v]
                m[v, i] = g
                norm += g * g
            m[v, k] = norm
            m[v, k + 1] = v

        singular = False
        for c in range(k):
            pivot = c
            for r in range(c + 1, k):
                if abs(m[r, c]) > abs(m[pivot, c]):
                    pivot = r
            if not abs(m[pivot, c]) > 0:
                singular = True
                break
            if pivot != c:
                for j in range(k + 2):
                    m[c, j], m[pivot, j] = m[pivot, j], m[c, j]
            reciprocal = 1.0 / m[c, c]
            for r in range(c + 1, k):
                factor = m[r, c] * reciprocal
                m[r, c] = factor
                for j in range(c + 1, k):
                    m[r, j] -= factor * m[c, j]
            m[c, c] = reciprocal
        if singular:
            out[b] = np.nan
            flags[b] = True
            continue

        x[:] = 0.0
        for r in range(k):
            x[r, r] = 1.0
            for c in range(r):
                for u in range(c + 1):
                    x[r, u] -= m[r, c] * x[c, u]
        for r in range(k - 1, -1, -1):
            for c in range(k - 1, r, -1):
                for u in range(k):
                    x[r, u] -= m[r, c] * x[c, u]
            for u in range(k):
                x[r, u] *= m[r, r]

        lengths[:] = 0.0
        for i in range(k):
            for c in range(k):
                lengths[c] += x[i, c] * x[i, c]
        product = 0.0
        for c in range(k):
            product += m[c, k] * lengths[c]
            for i in range(k):
                out[b, int(m[c, k + 1]), i] = x[i, c]
        flags[b] = not k * product < 1e20


@_compiled
def _add_products(sums: Any, factors: Any, rows: Any, count: int, width: int) -> None:
    """Set sums to the first factors times rows, four products added up before they join a sum."""
    for j in range(width):
        sums[j] = 0.0
        for i in range(0, count, 4):
            sums[j] += (factors[i] * rows[i, j] + factors[i + 1] * rows[i + 1, j]) + (
                factors[i + 2] * rows[i + 2, j] + factors[i + 3] * rows[i + 3, j]
            )


@_compiled
def least_norm_weights(generator: Any, patterns: Any, target: Any, out: Any, flags: Any) -> None:
    """Least-norm weights of selected rows of a generator; see `fastgc.kernels.least_norm_weights`.

    Parameters
    ----------
    generator : array of float64, shape (n, k)
    patterns : array of int64, shape (B, q)
        Row numbers, q >= k of them, which are not checked.
    target : array of float64, shape (m, k)
    out : array of float64, shape (B, m, q)
        Receives the weights; NaN where a column vanished.
    flags : array of bool, shape (B,)
        Receives True where the rank must be looked at before the weights are used.
    """
    k = generator.shape[1]
    q = patterns.shape[1]
    stride = (k + 3) // 4 * 4
    height = (q + 3) // 4 * 4 + 4
    g = np.zeros((height, stride))
    m = np.zeros((height, stride))
    x = np.zeros((stride, stride))
    vectors = np.zeros((k, height))
    taus = np.empty(k)
    norms = np.empty(k)
    sums = np.empty(stride)
    t = np.zeros(stride)
    a = np.empty(height)
    parts = np.empty(4)
    for b in range(len(patterns)):
        norms[:] = 0.0
        for r in range(q):
            for j in range(k):
                g[r, j] = generator[patterns[b, r], j]
                norms[j] += g[r, j] * g[r, j]
        m[:] = g

        singular = False
        for c in range(k):
            at = k - 1 - c
            vector = vectors[c]
            vector[:] = 0.0
            for r in range(q - c):
                vector[r] = m[c + r, at]
            _add_products(sums, vector, m[c:], q - c, at + 1)
            square = sums[at]
            first = vector[0]
            if not square > 0:
                singular = True
                break
            length = -np.sqrt(square) if first < 0 else np.sqrt(square)
            vector[0] = first + length
            taus[c] = 1.0 / (square + first * length)
            for j in range(at):
                sums[j] = (sums[j] + length * m[c, j]) * taus[c]
            for r in range(q - c):
                for j in range(at):
                    m[c + r, j] -= vector[r] * sums[j]
            m[c, at] = -length
        if singular:
            out[b] = np.nan
            flags[b] = True
            continue

        x[:] = 0.0
        for i in range(k):
            factors = m[k - 1 - i]
            _add_products(sums, factors, x, i, i)
            reciprocal = 1.0 / factors[i]
            for j in range(i):
                x[i, j] = sums[j] * -reciprocal
            x[i, i] = reciprocal
        sums[:] = 0.0
        for i in range(k):
            for j in range(i + 1):
                sums[j] += norms[i] * (x[i, j] * x[i, j])
        product = 0.0
        for j in range(k):
            product += sums[j]

        for u in range(len(target)):
            row = out[b, u]
            a[:] = 0.0
            for refined in range(2):
                sums[:] = 0.0
                if refined:
                    _add_products(sums, a, g, q, k)
                for j in range(k):
                    t[j] = target[u, j] - sums[j]
                row[:] = a[:q]
                _add_products(sums, t, x, k, k)
                a[:] = 0.0
                for i in range(k):
                    a[i] = sums[k - 1 - i]
                for c in range(k - 1, -1, -1):
                    parts[:] = 0.0
                    for r in range(0, q - c, 4):
                        for e in range(4):
                            parts[e] += vectors[c, r + e] * a[c + r + e]
                    factor = taus[c] * ((parts[0] + parts[1]) + (parts[2] + parts[3]))
                    for r in range(q - c):
                        a[c + r] -= factor * vectors[c, r]
            for i in range(q):
                row[i] += a[i]
        flags[b] = not k * product < 1e20


MOST_PRODUCT, MOST_TRACE = 1e8, 1e6
"""Of the generator and of a block's inverse, beyond which a computed projector is not relied on: see csrc/core.cpp."""


@_compiled
def few_missing_shape(n: int, k: int, targets: int) -> tuple[int, int]:
    """The shape of a table for `few_missing_weights`: rows and their width are as in struct FewMissing of C++."""
    rows = (n + 3) // 4 * 4
    return rows, 2 * ((k + 3) // 4 * 4) + rows + (targets + 3) // 4 * 4


@_compiled
def few_missing_table(generator: Any, target: Any, inverse: Any, table: Any) -> bool:
    """Fill a table of zeros from the pseudoinverse; whether it may be relied on. See `few_missing_table` of C++."""
    n, k = generator.shape
    columns, rows = (k + 3) // 4 * 4, (n + 3) // 4 * 4
    product = 0.0
    for j in range(k):
        own, inverses = 0.0, 0.0
        for i in range(n):
            own += generator[i, j] * generator[i, j]
            inverses += inverse[j, i] * inverse[j, i]
        product += own * inverses
    if not k * product < MOST_PRODUCT:
        return False
    for i in range(n):
        row = table[i]
        row[2 * columns + i] = 1.0
        for j in range(k):
            row[j] = generator[i, j]
            row[columns + j] = inverse[j, i]
            for c in range(n):
                row[2 * columns + c] -= row[j] * inverse[j, c]
            for u in range(len(target)):
                row[2 * columns + rows + u] += target[u, j] * inverse[j, i]
    return True


@_compiled
def _without_missing(row: Any, gone: Any, x: Any, projector: Any, times: Any) -> None:
    """Take a row of weights to zero on the missing rows, and change nothing of what it makes of the generator."""
    for i in range(len(gone)):
        times[i] = 0.0
        for j in range(len(gone)):
            times[i] += row[gone[j]] * x[j, i]
    for i in range(len(gone)):
        for c in range(len(row)):
            row[c] -= times[i] * projector[gone[i], c]
    for i in range(len(gone)):
        row[gone[i]] = 0.0


@_compiled
def few_missing_weights(table: Any, n: int, k: int, patterns: Any, target: Any, out: Any, flags: Any) -> None:
    """The least-norm weights of patterns that few rows are missing from; see `fastgc.kernels.few_missing_table`.

    Parameters
    ----------
    table : array of float64
    n, k : int
        The shape of the generator.
    patterns : array of int64, shape (B, q)
    target : array of float64, shape (m, k)
    out : array of float64, shape (B, m, q)
        Receives the weights.
    flags : array of bool, shape (B,)
        Receives True where they were not found.
    """
    q = patterns.shape[1]
    missing = n - q
    columns, rows = (k + 3) // 4 * 4, (n + 3) // 4 * 4
    inverse = table[:, columns : 2 * columns]
    projector = table[:, 2 * columns : 2 * columns + rows]
    a, more, rest, size = np.empty(rows), np.empty(rows), np.empty(columns), np.empty(columns)
    gone, times, x = np.empty(missing, np.int64), np.empty(missing), np.empty((missing, missing))
    parts = np.empty(4)
    for b in range(len(patterns)):
        more[:] = 0.0
        for i in range(q):
            more[patterns[b, i]] = 1.0
        found = 0
        for i in range(n):
            if more[i] == 0:
                gone[found] = i
                found += 1
        for i in range(missing):
            for j in range(missing):
                x[i, j] = projector[gone[i], gone[j]]
        flags[b] = False
        for p in range(missing):
            if not x[p, p] > 0:
                flags[b] = True
                break
            reciprocal = 1.0 / x[p, p]
            x[p, p] = 1.0
            for j in range(missing):
                x[p, j] *= reciprocal
            for i in range(missing):
                if i != p:
                    factor = x[i, p]
                    x[i, p] = 0.0
                    for j in range(missing):
                        x[i, j] -= factor * x[p, j]
        trace = 0.0
        for p in range(missing):
            trace += x[p, p]
        if flags[b] or not trace < MOST_TRACE:
            flags[b] = True
            continue
        for u in range(len(target)):
            for i in range(rows):
                a[i] = table[i, 2 * columns + rows + u]
            _without_missing(a, gone, x, projector, times)
            _add_products(rest, a, table, rows, columns)
            for j in range(k):
                rest[j] = target[u, j] - rest[j]
            for i in range(rows):
                parts[:] = 0.0
                for j in range(0, columns, 4):
                    for e in range(4):
                        parts[e] += rest[j + e] * inverse[i, j + e]
                more[i] = (parts[0] + parts[1]) + (parts[2] + parts[3])
            _without_missing(more, gone, x, projector, times)
            for i in range(rows):
                a[i] += more[i]
            rest[:] = 0.0
            size[:] = 0.0
            for i in range(rows):
                for j in range(columns):
                    term = a[i] * table[i, j]
                    rest[j] += term
                    size[j] += abs(term)
            for j in range(k):
                if not abs(rest[j] - target[u, j]) <= (q + k) * 2.0**-53 * (size[j] + abs(target[u, j])):
                    flags[b] = True
            for i in range(q):
                out[b, u, i] = a[patterns[b, i]]
