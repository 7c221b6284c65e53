"""The Numba backend: the checks that the C++ bindings make, and the compiled functions behind them."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import _checks
from fastgc.kernels import _segments, numba_kernels

Array = npt.NDArray[Any]

# Bytes that make a thread worth starting: at 10 GB/s 400 us, where starting one costs about 100.
GRAIN = 4 * 1024 * 1024


def _vector(name: str, value: Any) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a 1-D NumPy array, got {type(value).__name__}")
    if value.ndim != 1:
        raise ValueError(f"{name}: expected a 1-D array, got shape {value.shape}")
    return value


def _items(name: str, value: Any, expected: str) -> list[Any]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__getitem__") or not hasattr(value, "__len__"):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    return list(value)


def _rows(name: str, value: Any, *, write: bool = False) -> list[Array]:
    if isinstance(value, np.ndarray):
        if value.ndim != 2:
            raise ValueError(f"{name}: expected 2 dimensions, got shape {value.shape}")
        rows = [(name, row) for row in value]
        if not rows:
            _element(name, value)
    else:
        items = _items(name, value, "a 2-D array or a sequence of 1-D arrays")
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


def _coefficients(name: str, value: Any, dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    try:
        matrix = np.asarray(value)
    except ValueError as error:  # ragged
        raise TypeError(f"{name}: expected real numbers ({error})") from None
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, got dtype {matrix.dtype}")
    if matrix.ndim != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got shape {matrix.shape}")
    if matrix.size == 0:
        raise ValueError(f"{name}: expected at least one row and column, got shape {matrix.shape}")
    matrix, dtype = matrix.astype(np.float64), _checks.compute_type(dtype)
    bad = np.argwhere(~(np.abs(matrix) <= np.finfo(dtype).max))
    if len(bad):
        p, q = (int(i) for i in bad[0])
        raise ValueError(f"{name}[{p}, {q}]: expected a number finite in {dtype}, got {matrix[p, q]}")
    return matrix


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected a positive integer, got {value!r}")
    if int(value) < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return int(value)


def _thread_limit(threads: Any) -> int:
    limit = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdigit() and int(asked) > 0:
        limit = min(limit, int(asked))
    return limit if threads is None else min(limit, _positive("threads", threads))


def _widened(rows: Sequence[Array]) -> Sequence[Array]:
    """Rows of a half type as float32, others as they are."""
    dtype = rows[0].dtype
    if dtype.itemsize != 2:
        return rows
    if dtype == np.float16:
        return [row.astype(np.float32) for row in rows]
    return [(row.view(np.uint16).astype(np.uint32) << 16).view(np.float32) for row in rows]


def _round(source: Array, out: Array) -> None:
    """Round float32 to the half type of `out`, to nearest even; NaN keeps its sign and upper bits and becomes quiet."""
    bits, halves = source.view(np.uint32), out.view(np.uint16)
    if out.dtype == np.float16:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            out[...] = source
        shift, quiet, payload = 13, 0x7E00, 0x3FF
    else:
        halves[...] = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
        shift, quiet, payload = 16, 0x7FC0, 0x7F
    nan = np.isnan(source)
    if nan.any():
        halves[nan] = (bits[nan] >> 16 & 0x8000) | quiet | (bits[nan] >> shift & payload)


class _Results:
    """The rows in which results are made: those given, or float32 ones that `finish` rounds to a half type."""

    def __init__(self, given: Sequence[Array], accumulate: bool) -> None:
        self._given = given
        self._narrow = given[0].dtype.itemsize == 2
        self.rows = given
        if self._narrow:
            self.rows = _widened(given) if accumulate else [np.empty(row.shape, np.float32) for row in given]

    def finish(self) -> None:
        if self._narrow:
            for row, out in zip(self.rows, self._given, strict=True):
                _round(row, out)


class _Runner:
    """`lincomb` on checked rows, with at most `limit` threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def __call__(
        self, coefficients: Array, inputs: Sequence[Array], outputs: Sequence[Array], accumulate: bool
    ) -> None:
        length, dtype = len(inputs[0]), inputs[0].dtype
        rounded = np.ascontiguousarray(coefficients, dtype=dtype)
        sources = np.array(_addresses(inputs), dtype=np.uintp)
        targets = np.array(_addresses(outputs), dtype=np.uintp)
        moved = (len(inputs) + len(outputs)) * inputs[0].nbytes
        threads = max(1, min(self._limit, moved // GRAIN))
        share = -(-length // threads // 64) * 64  # whole cache lines
        bounds = [min(t * share, length) for t in range(threads)] + [length]

        def run(t: int) -> None:
            numba_kernels.lincomb_columns(rounded, sources, targets, bounds[t], bounds[t + 1], accumulate)

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
    matrix = _coefficients("coefficients", coefficients, dtype)
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
    made = _Results(results, bool(accumulate))
    run(matrix, _widened(rows), made.rows, bool(accumulate))
    made.finish()
    return out


def encode(
    coefficients: Any, gradients: Any, out: Any = None, accumulate: bool = False, threads: int | None = None
) -> Array:
    rows = _rows("gradients", gradients)
    dtype = rows[0].dtype
    matrix = _coefficients("coefficients", coefficients, dtype)
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
    made = _Results(results, bool(accumulate))
    _segments.encode(run, matrix, _widened(rows), made.rows[0], bool(accumulate))
    made.finish()
    return results[0]


def decode(weights: Any, messages: Any, length: int, out: Any = None, threads: int | None = None) -> Array:
    weight_items = _items("weights", weights, "a sequence with a matrix for each group")
    message_items = _items("messages", messages, "a sequence with the messages of each group")
    if not weight_items:
        raise ValueError("weights: expected at least one group, got none")
    if len(weight_items) != len(message_items):
        raise ValueError(
            f"messages: expected {len(weight_items)} groups, one for each of weights, got {len(message_items)}"
        )
    total = _positive("length", length)
    groups: list[list[Array]] = []
    matrices: list[npt.NDArray[np.float64]] = []
    for g, (weight, message) in enumerate(zip(weight_items, message_items, strict=True)):
        rows = _rows(f"messages[{g}]", message)
        groups.append(rows)
        dtype = groups[0][0].dtype
        if rows[0].dtype != dtype:
            raise TypeError(f"messages[{g}]: expected dtype {dtype} like messages[0], got {rows[0].dtype}")
        matrix = _coefficients(f"weights[{g}]", weight, dtype)
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
    made = _Results(results, False)
    _segments.decode(run, matrices, [_widened(rows) for rows in groups], total, made.rows[0])
    made.finish()
    return results[0]


def _finite(name: str, value: Any) -> npt.NDArray[np.float64]:
    matrix = np.asarray(value)
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, got dtype {matrix.dtype}")
    if matrix.ndim != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got shape {matrix.shape}")
    matrix = np.ascontiguousarray(matrix, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        i, j = (int(v) for v in bad[0])
        raise ValueError(f"{name}[{i}, {j}]: expected a finite number, got {matrix[i, j]}")
    return matrix


def _generator(value: Any) -> npt.NDArray[np.float64]:
    matrix = _finite("generator", value)
    if not 0 < matrix.shape[1] <= matrix.shape[0]:
        raise ValueError(f"generator: expected shape (n, k) with 0 < k <= n, got {matrix.shape}")
    return matrix


def _patterns(value: Any, n: int, k: int, square: bool) -> npt.NDArray[np.int64]:
    rows = np.asarray(value)
    if rows.dtype.kind not in "iu":
        raise TypeError(f"patterns: expected integers, got dtype {rows.dtype}")
    width = rows.shape[-1] if rows.ndim else 0
    if rows.ndim not in (1, 2) or width < k or (square and width > k):
        expected = f"(B, {k}) or ({k},)" if square else "(B, q) or (q,) with q >= k,"
        raise ValueError(f"patterns: expected shape {expected} for k = {k}, got {rows.shape}")
    batch = np.ascontiguousarray(rows.reshape(-1, width))
    outside = (batch < 0) | (batch >= n)
    ordered = np.sort(batch, axis=1)
    wrong = outside.any(axis=1) | (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if wrong.any():
        index = int(np.argmax(wrong))
        if outside[index].any():
            row = batch[index, int(np.argmax(outside[index]))]
            raise ValueError(f"patterns[{index}]: row {row} is not among the generator's {n} rows")
        raise ValueError(f"patterns[{index}]: a row is named twice in {tuple(batch[index].tolist())}")
    return batch.astype(np.int64, copy=False)


def decoding_weights(
    generator: Any, patterns: Any, threads: int | None = None
) -> tuple[npt.NDArray[np.float64], list[int]]:
    matrix = _generator(generator)
    batch = _patterns(patterns, len(matrix), matrix.shape[1], True)
    weights = np.empty((*batch.shape, matrix.shape[1]))
    flags = np.empty(len(batch), dtype=np.bool_)
    numba_kernels.decoding_weights(matrix, batch, weights, flags)
    return _as_given(patterns, weights), np.flatnonzero(flags).tolist()


def least_norm_weights(
    generator: Any, patterns: Any, target: Any, threads: int | None = None
) -> tuple[npt.NDArray[np.float64], list[int]]:
    matrix = _generator(generator)
    batch = _patterns(patterns, len(matrix), matrix.shape[1], False)
    wanted = _finite("target", target)
    if wanted.shape[0] < 1 or wanted.shape[1] != matrix.shape[1]:
        raise ValueError(f"target: expected shape (m, {matrix.shape[1]}), got {wanted.shape}")
    weights = np.empty((len(batch), len(wanted), batch.shape[1]))
    flags = np.empty(len(batch), dtype=np.bool_)
    numba_kernels.least_norm_weights(matrix, batch, wanted, weights, flags)
    return _as_given(patterns, weights), np.flatnonzero(flags).tolist()


def _as_given(patterns: Any, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return weights if np.ndim(patterns) == 2 else weights[0].copy()  # a result owns its memory


def positions(masks: int | Sequence[int]) -> npt.NDArray[np.int64]:
    if isinstance(masks, int):
        return np.array([i for i in range(masks.bit_length()) if masks >> i & 1], dtype=np.int64)
    return np.array([positions(mask) for mask in masks], dtype=np.int64).reshape(len(masks), -1)
