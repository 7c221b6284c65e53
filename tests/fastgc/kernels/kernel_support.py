"""What the kernel tests share: the variants to run, arrays with guards, error bounds set by the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import kernels
from fastgc.kernels import _numba

try:
    from fastgc import _core

    ISAS = _core.isas()
except ImportError:
    _core = None
    ISAS = ()

Array = npt.NDArray[Any]
CPU_BACKENDS = tuple(name for name in kernels.backends() if name != "cuda")  # those for NumPy's arrays
DTYPES = (np.float32, np.float64)
# Lanes of the widest vector; the narrower ones divide it. kernel: at most 4 vectors a tile.
LANES = {np.float32: 16, np.float64: 8}
GUARD = 12345.0


def lengths(dtype: Any) -> list[int]:
    n = LANES[dtype]
    around = {k for v in (n // 4, n // 2, n) for k in (1, v - 1, v, v + 1, 4 * v // 3, 4 * v, 8 * v + 2)}
    return sorted(around - {0}) + [1003]


@dataclass(frozen=True)
class Variant:
    """A backend, or one instruction set of the C++ backend."""

    name: str
    fused: bool
    module: Any
    keywords: tuple[tuple[str, str], ...] = ()

    def lincomb(self, *arguments: Any, **keywords: Any) -> Any:
        return self.module.lincomb(*arguments, **keywords, **dict(self.keywords))

    def encode(self, *arguments: Any, **keywords: Any) -> Any:
        return self.module.encode(*arguments, **keywords, **dict(self.keywords))

    def decode(self, *arguments: Any, **keywords: Any) -> Any:
        return self.module.decode(*arguments, **keywords, **dict(self.keywords))

    def decode_checked(self, *arguments: Any, **keywords: Any) -> Any:
        return self.module.decode_checked(*arguments, **keywords, **dict(self.keywords))

    def decoding_weights(self, *arguments: Any, **keywords: Any) -> Any:
        return self.module.decoding_weights(*arguments, **keywords, **dict(self.keywords))

    def least_norm_weights(self, *arguments: Any, **keywords: Any) -> Any:
        return self.module.least_norm_weights(*arguments, **keywords, **dict(self.keywords))


VARIANTS = [Variant(isa, _core.fused(isa), _core, (("isa", isa),)) for isa in ISAS] + [Variant("numba", True, _numba)]


def guarded(rows: int, length: int, dtype: Any, fill: Array | float = np.nan, offset: int = 0) -> tuple[Array, Array]:
    """A (rows, length) view `offset` elements into a buffer, with guard bands around every row; and the buffer."""
    buffer = np.full((rows, length + offset + 9), GUARD, dtype)
    view = buffer[:, offset : offset + length]
    view[...] = fill
    return view, buffer


def guards_hold(buffer: Array, length: int, offset: int = 0) -> bool:
    return bool((buffer[:, :offset] == GUARD).all() and (buffer[:, offset + length :] == GUARD).all())


def misaligned(rows: Array, offset: int) -> Array:
    """The same rows, `offset` elements into a buffer."""
    view = np.empty((rows.shape[0], rows.shape[1] + offset), rows.dtype)[:, offset:]
    view[...] = rows
    return view


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def gamma(roundings: int, dtype: Any) -> float:
    """Higham's bound for that many roundings; the last term is the reference's own error in longdouble."""
    unit = float(np.finfo(dtype).eps) / 2
    return roundings * unit / (1 - roundings * unit) + roundings * float(np.finfo(np.longdouble).eps)


def products(coefficients: Array, inputs: Array | Sequence[Array], dtype: Any) -> tuple[Array, Array]:
    """``c @ x`` and ``|c| @ |x|`` in longdouble, c rounded to `dtype` first."""
    c = np.asarray(coefficients).astype(dtype).astype(np.longdouble)
    x = np.stack(list(inputs)).astype(np.longdouble)
    return c @ x, np.abs(c) @ np.abs(x)
