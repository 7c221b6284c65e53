"""Checks of arguments that the backends written in Python share: matrices, patterns, sequences, numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import _checks

_LARGEST = {np.dtype(kind): float(np.finfo(kind).max) for kind in (np.float32, np.float64)}


def items(name: str, value: Any, expected: str) -> list[Any]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__getitem__") or not hasattr(value, "__len__"):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    return list(value)


def coefficients(name: str, value: Any, dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
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
    fine = np.abs(matrix) <= _LARGEST[dtype]
    if np.count_nonzero(fine) < fine.size:
        p, q = (int(i) for i in np.argwhere(~fine)[0])
        raise ValueError(f"{name}[{p}, {q}]: expected a number finite in {dtype}, got {matrix[p, q]}")
    return matrix


def positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected a positive integer, got {value!r}")
    if int(value) < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return int(value)


def finite(name: str, value: Any) -> npt.NDArray[np.float64]:
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


def generator(value: Any) -> npt.NDArray[np.float64]:
    matrix = finite("generator", value)
    if not 0 < matrix.shape[1] <= matrix.shape[0]:
        raise ValueError(f"generator: expected shape (n, k) with 0 < k <= n, got {matrix.shape}")
    return matrix


def patterns(value: Any, n: int, k: int, square: bool) -> npt.NDArray[np.int64]:
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


def groups(weights: Any, messages: Any) -> tuple[list[Any], list[Any]]:
    """Each group's weights and messages."""
    weight_items = items("weights", weights, "a sequence with a matrix for each group")
    message_items = items("messages", messages, "a sequence with the messages of each group")
    if not weight_items:
        raise ValueError("weights: expected at least one group, got none")
    if len(weight_items) != len(message_items):
        raise ValueError(
            f"messages: expected {len(weight_items)} groups, one for each of weights, got {len(message_items)}"
        )
    return weight_items, message_items
