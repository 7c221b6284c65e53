"""Element types on the wire: shorter than those computed with, to save bandwidth.

A float16 holds numbers from 6e-8 to 65504 only, and gradients are often smaller or larger: each message is therefore
scaled by a power of two of its own, which is exact. bfloat16 has the exponents of float32 and needs no scale.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CODES = {"float32": 1, "float64": 2, "float16": 3, "bfloat16": 4}
"""How a header names an element type."""

_LARGEST = {"float32": (2 - 2.0**-23) * 2.0**127}
_LARGEST["bfloat16"] = _LARGEST["float16"] = (2 - 2.0**-7) * 2.0**127  # rounded up, more would not be a float32
_HALF_TOP = 15  # scaled float16 values are below 2**15: half of the largest, so that no rounding overflows
_WIDEST_SCALE = 120  # of exponents: 2**120 and its inverse are float32 numbers and not subnormal


def element_type(name: str) -> np.dtype[Any]:
    """The NumPy type of a name in `CODES`."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def code(dtype: np.dtype[Any]) -> int:
    """The number of an element type in a header."""
    return CODES[dtype.name]


def narrow(values: Array, out: Array, scratch: Array) -> int | None:
    """Write float32 or float64 `values` into `out`, of another element type, rounding each once.

    Parameters
    ----------
    values : ndarray, 1-D
    out : ndarray
        Of the same shape; undefined where None is returned.
    scratch : ndarray
        Of the shape and type of `values`; overwritten.

    Returns
    -------
    int or None
        The exponent e with ``out · 2**-e ≈ values``; None where some value, not finite or too large, does not fit.
    """
    largest = max(float(values.max()), -float(values.min()))  # NaN where there is one
    if not largest <= _LARGEST[out.dtype.name]:
        return None
    exponent = 0
    if out.dtype == np.float16 and largest:
        exponent = min(_HALF_TOP - math.frexp(largest)[1], _WIDEST_SCALE)
        values = np.multiply(values, values.dtype.type(2.0**exponent), out=scratch)
    out[:] = values
    return exponent


def widen(values: Array, exponent: int, out: Array) -> Array:
    """Write ``values · 2**-exponent`` into `out`, float32 or float64; returns it. What `narrow` wrote it gives back."""
    out[:] = values
    if exponent:
        out *= out.dtype.type(2.0**-exponent)
    return out
