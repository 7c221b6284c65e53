"""Small dense linear algebra in float64: the one rank decision, and least-norm row solves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def significant(values: npt.NDArray[np.floating[Any]], rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """Which singular values of a matrix, or of each of a stack, count: those above
    ``64 * max(rows, columns) * eps * largest``.

    Parameters
    ----------
    values : ndarray, shape (..., min(rows, columns))
        Decreasing.
    rows, columns : int
        Of the matrix.
    """
    return np.asarray(values > 64 * max(rows, columns) * np.finfo(np.float64).eps * values[..., :1])


def rank(matrix: npt.ArrayLike, /) -> Any:
    """Numerical rank, after scaling every column to unit length.

    The `significant` singular values are counted. This one function decides rank everywhere: what is decodable, which
    patterns are singular, which distances are claimed.

    Parameters
    ----------
    matrix : array_like, shape (..., rows, columns)
        One matrix, or a stack of them.

    Returns
    -------
    int, or ndarray of int with the leading shape
    """
    stack = np.asarray(matrix, dtype=np.float64)
    rows, columns = stack.shape[-2:]
    if rows == 0 or columns == 0:
        ranks = np.zeros(stack.shape[:-2], dtype=np.intp)
    else:
        length = np.linalg.norm(stack, axis=-2, keepdims=True)
        values = np.linalg.svd(stack / np.where(length > 0, length, 1.0), compute_uv=False)
        ranks = np.count_nonzero(significant(values, rows, columns), axis=-1)
    return int(ranks) if stack.ndim == 2 else ranks


def spans(matrix: Matrix, target: Matrix) -> Any:
    """Whether every row of `target` is a combination of the rows of `matrix` (or of each matrix of a stack).

    Parameters
    ----------
    matrix : ndarray, shape (..., q, k)
    target : ndarray, shape (m, k)

    Returns
    -------
    bool, or ndarray of bool with the leading shape
    """
    # Rows of the target are brought to the matrix's own size, so that neither drowns in the other's rounding.
    size = np.linalg.norm(matrix, axis=-1).max(axis=-1, initial=0.0)[..., None, None]
    length = np.linalg.norm(target, axis=1, keepdims=True)
    scaled = target / np.where(length > 0, length, 1.0) * np.where(size > 0, size, 1.0)
    return rank(np.concatenate([matrix, scaled], axis=-2)) == rank(matrix)


def independent_columns(matrix: Matrix) -> list[int]:
    """As many columns as the rank, chosen by QR with column pivoting, in increasing order."""
    from scipy.linalg import qr  # SciPy is imported where it is needed: it costs more than all of fastgc

    length = np.linalg.norm(matrix, axis=0)
    _, _, order = qr(matrix / np.where(length > 0, length, 1.0), mode="economic", pivoting=True)
    return sorted(int(column) for column in order[: rank(matrix)])


def solve_rows(matrix: Matrix, target: Matrix) -> Matrix:
    """Least-norm A with ``A @ matrix = target``, for a target that the rows of `matrix` span, whatever their rank.

    By singular values; where the rank is that of the columns, `fastgc.kernels.least_norm_weights` takes a fiftieth.

    Parameters
    ----------
    matrix : ndarray, shape (q, k)
    target : ndarray, shape (m, k)

    Returns
    -------
    ndarray, shape (m, q)
    """
    length = np.linalg.norm(matrix, axis=0)
    length[length == 0] = 1.0
    return nearest_rows(matrix / length, target / length)


def nearest_rows(matrix: Matrix, target: Matrix) -> Matrix:
    """The shortest A of those for which ``A @ matrix`` comes nearest to `target`, in the Frobenius and spectral norms.

    Singular values that are not `significant` count as zero. Columns are not scaled: distance is measured in
    them.

    Parameters
    ----------
    matrix : ndarray, shape (q, k)
    target : ndarray, shape (m, k)

    Returns
    -------
    ndarray, shape (m, q)
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    keep = significant(values, *matrix.shape)
    return np.asarray((target @ right[keep].T / values[keep]) @ left[:, keep].T)
