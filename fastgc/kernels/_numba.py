"""The Numba backend: the checks that the C++ bindings make, and the compiled functions behind them."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import _checks
from fastgc.kernels import _arguments, _segments, numba_kernels
from fastgc.kernels._threads import get_num_threads

Array = npt.NDArray[Any]

# Bytes that make a thread worth starting: at 10 GB/s 400 us, where starting one costs about 100.
GRAIN = 4 * 1024 * 1024


def _vector(name: str, value: Any) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a 1-D NumPy array, got {type(value).__name__}")
    if value.ndim != 1:
        raise ValueError(f"{name}: expected a 1-D array, got shape {value.shape}")
    return value


def _rows(name: str, value: Any, *, write: bool = False) -> list[Array]:
    if isinstance(value, np.ndarray):
        if value.ndim != 2:
            raise ValueError(f"{name}: expected 2 dimensions, got shape {value.shape}")
        rows = [(name, row) for row in value]
        if not rows:
            _element(name, value)
    else:
        items = _arguments.items(name, value, "a 2-D array or a sequence of 1-D arrays")
        rows = [(f"{name}[{i}]", _vector(f"{name}[{i}]", item)) for i, item in enumerate(items)]
    if not rows:
        raise ValueError(f"{name}: expected at least one row, got none")
    return _checked(name, rows, write)


def _element(name: str, row: Array) -> None:
    if not _checks.is_element_type(row.dtype):
        raise TypeError(f"{name}: expected dtype {_checks.ELEMENT_TYPES} in native byte order, got {row.dtype}")


def _checked(name: str, rows: list[tuple[str, Array]], write: bool) -> list[Array]:
    first, result = rows[0][1], []
    for label, row in rows:
        _element(label, row)
        if row.dtype != first.dtype:
            raise TypeError(f"{label}: expected dtype {first.dtype} like {name}[0], got {row.dtype}")
        if row.shape != first.shape:
            raise ValueError(f"{label}: expected length {len(first)} like {name}[0], got {len(row)}")
        adjacent = row.size <= 1 or row.strides[0] == row.itemsize
        if write and not row.flags.writeable:
            raise ValueError(f"{label}: the array is read-only")
        if write and not adjacent:
            raise ValueError(f"{label}: elements of a row must be contiguous, got strides {row.strides}")
        if write and not row.flags.aligned:
            raise ValueError(f"{label}: elements must be aligned to their size")
        result.append(row if adjacent and row.flags.aligned else row.copy())
    if first.size == 0:
        raise ValueError(f"{name}: rows have length 0")
    return result


def _require(name: str, rows: Sequence[Array], like: str, dtype: np.dtype[Any], count: int, length: int) -> None:
    if not _checks.converts(dtype, rows[0].dtype):
        raise TypeError(f"{name}: expected dtype {dtype} like {like}, got {rows[0].dtype}")
    if len(rows) != count:
        raise ValueError(f"{name}: expected {count} rows, got {len(rows)}")
    if len(rows[0]) != length:
        raise ValueError(f"{name}: expected length {length}, got {len(rows[0])}")


def _addresses(rows: Sequence[Array]) -> list[int]:
    return [row.__array_interface__["data"][0] for row in rows]


def _refuse_overlap(out: Sequence[Array], name: str, inputs: Sequence[Array]) -> None:
    starts = sorted(_addresses(out))
    size = out[0].nbytes
    if any(b < a + size for a, b in itertools.pairwise(starts)):
        raise ValueError("out: rows overlap each other in memory")
    for q, begin in enumerate(_addresses(inputs)):
        after = bisect.bisect_left(starts, begin + inputs[q].nbytes)
        if after and begin < starts[after - 1] + size:
            raise ValueError(f"out: overlaps {name} row {q} in memory")


def _thread_limit(threads: Any) -> int:
    limit = get_num_threads()
    return limit if threads is None else min(limit, _arguments.positive("threads", threads))


def _kind(row: Array) -> int:
    """The element type as the kernels know it."""
    if row.dtype.itemsize != 2:
        return numba_kernels.FLOAT64 if row.dtype == np.float64 else numba_kernels.FLOAT32
    return numba_kernels.FLOAT16 if row.dtype == np.float16 else numba_kernels.BFLOAT16


class _Runner:
    """`lincomb` on checked rows, with at most `limit` threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def __call__(
        self, coefficients: Array, inputs: Sequence[Array], outputs: Sequence[Array], accumulate: bool
    ) -> None:
        length, kinds = len(inputs[0]), (_kind(inputs[0]), _kind(outputs[0]))
        rounded = np.ascontiguousarray(coefficients, dtype=_checks.compute_type(inputs[0].dtype))
        sources = np.array(_addresses(inputs), dtype=np.uintp)
        targets = np.array(_addresses(outputs), dtype=np.uintp)
        moved = (len(inputs) + len(outputs)) * inputs[0].nbytes
        threads = max(1, min(self._limit, moved // GRAIN))
        share = -(-length // threads // 64) * 64  # whole cache lines
        bounds = [min(t * share, length) for t in range(threads)] + [length]

        def run(t: int) -> None:
            numba_kernels.lincomb_rows(rounded, sources, targets, bounds[t], bounds[t + 1], accumulate, *kinds)

        if threads == 1:
            run(0)
        else:
            # Threads made for the call, not Numba's pool: that one ends the process when two threads use it at once
            # (workqueue), or hangs in a child of fork() (OpenMP).
            with ThreadPoolExecutor(threads - 1) as pool:
                others = [pool.submit(run, t) for t in range(1, threads)]
                run(0)
                for other in others:
                    other.result()


def lincomb(
    coefficients: Any, inputs: Any, out: Any = None, accumulate: bool = False, threads: int | None = None
) -> Any:
    rows = _rows("inputs", inputs)
    dtype, length = rows[0].dtype, len(rows[0])
    matrix = _arguments.coefficients("coefficients", coefficients, dtype)
    if matrix.shape[1] != len(rows):
        raise ValueError(f"coefficients: expected {len(rows)} columns, one for each input, got shape {matrix.shape}")
    run = _Runner(_thread_limit(threads))
    if out is None:
        if accumulate:
            raise ValueError("out: must be given to accumulate into")
        out = np.empty((len(matrix), length), dtype)
    results = _rows("out", out, write=True)
    _require("out", results, "inputs", dtype, len(matrix), length)
    _refuse_overlap(results, "inputs", rows)
    run(matrix, rows, results, bool(accumulate))
    return out


def encode(
    coefficients: Any, gradients: Any, out: Any = None, accumulate: bool = False, threads: int | None = None
) -> Array:
    rows = _rows("gradients", gradients)
    dtype = rows[0].dtype
    matrix = _arguments.coefficients("coefficients", coefficients, dtype)
    if len(matrix) != len(rows):
        raise ValueError(f"coefficients: expected {len(rows)} rows, one for each gradient, got shape {matrix.shape}")
    length = _segments.block_length(len(rows[0]), matrix.shape[1])
    run = _Runner(_thread_limit(threads))
    if out is None:
        if accumulate:
            raise ValueError("out: must be given to accumulate into")
        out = np.empty(length, dtype)
    results = _checked("out", [("out", _vector("out", out))], True)
    _require("out", results, "gradients", dtype, 1, length)
    _refuse_overlap(results, "gradients", rows)
    _segments.encode(run, matrix, rows, results[0], bool(accumulate))
    return results[0]


def decode(weights: Any, messages: Any, length: int, out: Any = None, threads: int | None = None) -> Array:
    weight_items, message_items = _arguments.groups(weights, messages)
    total = _arguments.positive("length", length)
    groups: list[list[Array]] = []
    matrices: list[npt.NDArray[np.float64]] = []
    for g, (weight, message) in enumerate(zip(weight_items, message_items, strict=True)):
        rows = _rows(f"messages[{g}]", message)
        groups.append(rows)
        dtype = groups[0][0].dtype
        if rows[0].dtype != dtype:
            raise TypeError(f"messages[{g}]: expected dtype {dtype} like messages[0], got {rows[0].dtype}")
        matrix = _arguments.coefficients(f"weights[{g}]", weight, dtype)
        matrices.append(matrix)
        expected = (len(matrices[0]), len(rows))
        if matrix.shape != expected:
            raise ValueError(f"weights[{g}]: expected shape {expected}, got {matrix.shape}")
        block = _segments.block_length(total, expected[0])
        _require(f"messages[{g}]", rows, "messages[0]", dtype, len(rows), block)
    run = _Runner(_thread_limit(threads))
    if out is None:
        out = np.empty(total, dtype)
    results = _checked("out", [("out", _vector("out", out))], True)
    _require("out", results, "messages", dtype, 1, total)
    for g, rows in enumerate(groups):
        _refuse_overlap(results, f"messages[{g}]", rows)
    # Several groups of a half type are added in float32, and rounded when all are.
    wide = len(groups) == 1 or results[0].dtype.itemsize > 2
    sums = results[0] if wide else np.empty(total, np.float32)
    _segments.decode(run, matrices, groups, total, sums)
    if not wide:
        run(np.ones((1, 1)), [sums], results, False)
    return results[0]


def decode_checked(
    weights: Any,
    checks: Any,
    messages: Any,
    length: int,
    floors: Any,
    least: float = 0.0,
    threads: int | None = None,
) -> tuple[Array, list[int]]:
    _, message_items = _arguments.groups(weights, messages)
    groups = [_rows(f"messages[{g}]", group) for g, group in enumerate(message_items)]
    check_items = _arguments.items("checks", checks, "a sequence with a matrix for each group")
    if len(check_items) != len(groups):
        raise ValueError(
            f"checks: expected {len(groups)} matrices, one for each group of weights, got {len(check_items)}"
        )
    judged = []
    for g, (check, rows) in enumerate(zip(check_items, groups, strict=True)):
        shape = np.shape(check)
        if len(shape) == 2 and shape[1] != len(rows):
            raise ValueError(f"checks[{g}]: expected shape ({shape[0]}, {len(rows)}), got {shape}")
        if shape != (0, len(rows)):
            judged.append((g, _arguments.coefficients(f"checks[{g}]", check, rows[0].dtype), rows))
    allowed = np.asarray(floors, np.float64)
    if allowed.shape != (len(groups), 2):
        raise ValueError(f"floors: expected shape ({len(groups)}, 2), got {allowed.shape}")
    if not least >= 0:
        raise ValueError(f"least: expected a number of at least 0, got {least}")
    computed = _checks.compute_type(groups[0][0].dtype)
    total = _arguments.positive("length", length)
    gradient = decode(weights, messages, total, np.empty(total, computed), threads)
    energies, sizes = [], []
    for _, matrix, rows in judged:
        spares, block = len(matrix), len(rows[0])
        syndromes = np.empty((spares, block), computed)
        lincomb(matrix, rows, syndromes, False, threads)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.square(syndromes, out=syndromes)
            energies.append(
                np.add.reduceat(squares, range(0, block, _segments.JUDGED), axis=1).sum(axis=0, dtype=np.float64)
            )
            few = np.stack([row[:: _segments.JUDGED // 4] for row in rows]).astype(np.float64)
            some = np.sqrt(np.mean(np.square(few), axis=0))
            sizes.append(np.maximum.reduceat(some, range(0, len(some), 4)))
    own = allowed[[g for g, _, _ in judged]]
    return gradient, _segments.doubtful(energies, sizes, own, least, computed == np.float32)


def decoding_weights(
    generator: Any, patterns: Any, threads: int | None = None
) -> tuple[npt.NDArray[np.float64], list[int]]:
    matrix = _arguments.generator(generator)
    batch = _arguments.patterns(patterns, len(matrix), matrix.shape[1], True)
    weights = np.empty((*batch.shape, matrix.shape[1]))
    flags = np.empty(len(batch), dtype=np.bool_)
    numba_kernels.decoding_weights(matrix, batch, weights, flags)
    return _as_given(patterns, weights), np.flatnonzero(flags).tolist()


def least_norm_weights(
    generator: Any, patterns: Any, target: Any, table: Any = None, threads: int | None = None
) -> tuple[npt.NDArray[np.float64], list[int]]:
    matrix = _arguments.generator(generator)
    n, k = matrix.shape
    batch = _arguments.patterns(patterns, n, k, False)
    wanted = _target(target, k)
    weights = np.empty((len(batch), len(wanted), batch.shape[1]))
    flags = np.empty(len(batch), dtype=np.bool_)
    if table is None:
        numba_kernels.least_norm_weights(matrix, batch, wanted, weights, flags)
        return _as_given(patterns, weights), np.flatnonzero(flags).tolist()
    shape = numba_kernels.few_missing_shape(n, k, len(wanted))
    if not isinstance(table, np.ndarray) or table.dtype != np.float64 or table.shape != shape or not table.flags.carray:
        raise ValueError("table: expected what few_missing_table made of a generator and a target of these shapes")
    numba_kernels.few_missing_weights(table, n, k, batch, wanted, weights, flags)
    left = np.flatnonzero(flags)
    if len(left):
        others, doubtful = np.empty((len(left), *weights.shape[1:])), np.empty(len(left), dtype=np.bool_)
        numba_kernels.least_norm_weights(matrix, batch[left], wanted, others, doubtful)
        weights[left] = others
        left = left[doubtful]
    return _as_given(patterns, weights), left.tolist()


def few_missing_table(generator: Any, target: Any) -> npt.NDArray[np.float64] | None:
    matrix = _arguments.generator(generator)
    n, k = matrix.shape
    wanted = _target(target, k)
    inverse, flag = np.empty((1, k, n)), np.empty(1, dtype=np.bool_)
    numba_kernels.least_norm_weights(matrix, np.arange(n)[None], np.eye(k), inverse, flag)
    table = np.zeros(numba_kernels.few_missing_shape(n, k, len(wanted)))
    made = numba_kernels.few_missing_table(matrix, wanted, inverse[0], table)
    return table if made and not flag[0] else None


def _target(target: Any, k: int) -> Array:
    wanted = _arguments.finite("target", target)
    if wanted.shape[0] < 1 or wanted.shape[1] != k:
        raise ValueError(f"target: expected shape (m, {k}), got {wanted.shape}")
    return wanted


def _as_given(patterns: Any, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return weights if np.ndim(patterns) == 2 else weights[0].copy()  # a result owns its memory


def positions(masks: int | Sequence[int]) -> npt.NDArray[np.int64]:
    if isinstance(masks, int):
        return np.array([i for i in range(masks.bit_length()) if masks >> i & 1], dtype=np.int64)
    return np.array([positions(mask) for mask in masks], dtype=np.int64).reshape(len(masks), -1)
