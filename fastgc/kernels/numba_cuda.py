"""`lincomb` for Numba's CUDA target: a device function for your own kernels, and a kernel of it.

The target is ``numba.cuda``, which Numba carries and the package numba-cuda, where it is developed now, replaces under
the same name. Tests run these functions in its simulator. For speed take the backend ``"cuda"``
(`fastgc.kernels.lincomb` on arrays of CuPy or PyTorch), whose kernels move lines and hold several rows in registers;
this is for code that is in Numba already. Decoding weights are not here: on a GPU Numba fuses products with sums and
has no switch for it, so that their bits would not be those of the other kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda as target

from fastgc import _checks
from fastgc.kernels import _arguments

__all__ = ["chain", "lincomb", "lincomb_kernel"]

THREADS = 256
cuda: Any = target  # whose types neither of its two homes describes


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def chain(coefficients: Any, inputs: Any, p: int, column: int, start: Any) -> Any:
    """Element (p, column): ``fma(coefficients[p, q], inputs[q, column], chain)`` in increasing q, from `start` on.

    Parameters
    ----------
    coefficients : device array of float32 or float64, shape (P, Q)
        Of the type computed in, which is float32 for inputs in float16.
    inputs : device array, shape (Q, L)
        Of the type computed in, or float16.
    p, column : int
    start : number of the type computed in
        -0 for a plain sum: the first step then is the rounded product.
    """
    for q in range(inputs.shape[0]):
        c = coefficients[p, q]
        start = cuda.fma(c, type(c)(inputs[q, column]), start)
    return start


@cuda.jit  # type: ignore[untyped-decorator]
def lincomb_kernel(coefficients: Any, inputs: Any, out: Any, accumulate: bool) -> None:
    """``out[p] = sum over q of coefficients[p, q] * inputs[q]``; threads take columns. Arrays as in `chain`."""
    first = cuda.grid(1)
    for column in range(first, inputs.shape[1], cuda.gridsize(1)):
        for p in range(out.shape[0]):
            start = coefficients[p, 0]
            kind = type(start)
            start = kind(out[p, column]) if accumulate else kind(-0.0)
            out[p, column] = chain(coefficients, inputs, p, column, start)


def lincomb(
    coefficients: npt.ArrayLike, inputs: Any, out: Any, accumulate: bool = False, stream: Any = 0, blocks: int = 1024
) -> None:
    """Launch `lincomb_kernel` on Numba's device arrays.

    Parameters
    ----------
    coefficients : array_like of real numbers, shape (P, Q)
        Rounded once to the type computed in, and copied to the device on `stream`.
    inputs : device array of float32, float64 or float16, shape (Q, L)
    out : device array of the same type, or float32 for inputs in float16, shape (P, L)
        Must not overlap `inputs`, which is not checked.
    accumulate : bool
        Add to what `out` holds.
    stream : numba.cuda stream
    blocks : int
        At most so many blocks of 256 threads.

    Raises
    ------
    TypeError
        Another element type, or no device array.
    ValueError
        Shapes that do not match, or coefficients that are not finite in the type computed in.

    Notes
    -----
    The chain is that of `fastgc.kernels.lincomb`. In Numba's simulator products and sums are rounded one by one.
    """
    for name, value in (("inputs", inputs), ("out", out)):
        if not hasattr(value, "copy_to_host"):
            raise TypeError(f"{name}: expected a device array of Numba, got {type(value).__name__}")
        if value.dtype not in (np.float32, np.float64, np.float16):
            raise TypeError(f"{name}: expected dtype float32, float64 or float16, got {value.dtype}")
        if value.ndim != 2 or 0 in value.shape:
            raise ValueError(f"{name}: expected at least one row and column, got shape {value.shape}")
    if not (inputs.dtype == out.dtype or (inputs.dtype, out.dtype) == (np.float16, np.float32)):
        raise TypeError(f"out: expected dtype {inputs.dtype} like inputs, got {out.dtype}")
    wide = _checks.compute_type(inputs.dtype)
    matrix = _arguments.coefficients("coefficients", coefficients, wide)
    if matrix.shape[1] != inputs.shape[0]:
        raise ValueError(f"coefficients: expected {inputs.shape[0]} columns, got shape {matrix.shape}")
    if out.shape != (len(matrix), inputs.shape[1]):
        raise ValueError(f"out: expected shape {(len(matrix), inputs.shape[1])}, got {out.shape}")
    there = cuda.to_device(np.ascontiguousarray(matrix, dtype=wide), stream)
    grid = min(_arguments.positive("blocks", blocks), -(-inputs.shape[1] // THREADS))
    lincomb_kernel[grid, THREADS, stream](there, inputs, out, accumulate)
