"""What the kernels compute, in plain NumPy: slow, wider inside, and what every backend is tested against.

Coefficients are rounded to the type computed in (float32 for half types, else the inputs'), sums are taken in
``numpy.longdouble`` and rounded once at the end. Given longdouble inputs the functions return unrounded results.
Arguments are not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc.kernels import _segments

__all__ = ["decode", "decoding_weights", "encode", "lincomb"]

Array = npt.NDArray[Any]
Rows = Array | Sequence[Array]


def _into(coefficients: Array, inputs: Sequence[Array], out: Sequence[Array], accumulate: bool) -> None:
    rows = np.stack(inputs).astype(np.longdouble)
    kind = inputs[0].dtype
    sums = coefficients.astype(np.float32 if kind.itemsize == 2 else kind).astype(np.longdouble) @ rows
    for p, row in enumerate(out):
        row[...] = row.astype(np.longdouble) + sums[p] if accumulate else sums[p]


def lincomb(coefficients: npt.ArrayLike, inputs: Rows, out: Rows | None = None, *, accumulate: bool = False) -> Any:
    """``out[p] = sum over q of coefficients[p, q] * inputs[q]``; see `fastgc.kernels.lincomb`."""
    matrix = np.asarray(coefficients)
    if out is None:
        out = np.empty((len(matrix), len(inputs[0])), inputs[0].dtype)
    _into(matrix, list(inputs), list(out), accumulate)
    return out


def encode(
    coefficients: npt.ArrayLike, gradients: Rows, out: Array | None = None, *, accumulate: bool = False
) -> Array:
    """A worker's message; see `fastgc.kernels.encode`."""
    matrix = np.asarray(coefficients)
    if out is None:
        out = np.empty(_segments.block_length(len(gradients[0]), matrix.shape[1]), gradients[0].dtype)
    _segments.encode(_into, matrix, list(gradients), out, accumulate)
    return out


def decode(weights: Sequence[npt.ArrayLike], messages: Sequence[Rows], length: int, out: Array | None = None) -> Array:
    """The gradient from the messages of all groups; see `fastgc.kernels.decode`."""
    if out is None:
        out = np.empty(length, messages[0][0].dtype)
    _segments.decode(_into, [np.asarray(w) for w in weights], [list(rows) for rows in messages], length, out)
    return out


def decoding_weights(generator: npt.ArrayLike, patterns: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Inverses of the selected rows; see `fastgc.kernels.decoding_weights`. `numpy.linalg.LinAlgError` if singular."""
    return np.asarray(np.linalg.inv(np.asarray(generator, dtype=np.float64)[np.asarray(patterns)]))
