"""Messages as fewer bytes: narrower numbers, and what their rounding left out, sent later.

A codec writes the float32 or float64 numbers of a message as bytes and reads them back:

=============================  =============  ==========================================================================
codec                          bits a number  the bytes of n numbers, in the machine's byte order
=============================  =============  ==========================================================================
``"float64"``, ``"float32"``   64, 32         the numbers
``"bfloat16"``                 16             the numbers, each rounded to nearest
``"float16"``                  16             the numbers times 2**e, each rounded to nearest; e, in an int16
``"int8"``                     8.25           an int8 q for each number; e in an int8 for each `BLOCK`: q · 2**e
=============================  =============  ==========================================================================

A float16 holds numbers from 6e-8 to 65504 only, and gradients are often smaller or larger: a message has a power of two
of its own, which brings its largest number to just below 2**15. bfloat16 has the exponents of float32 and needs none.
In int8 each block of 32 numbers has the smallest power of two with which the largest becomes no more than 127, as in
the OCP Microscaling formats (Rouhani et al. 2023, *Microscaling Data Formats for Deep Learning*). docs/compression.md
measures other blocks and scales.

All scales are powers of two, so a rounding is the only error, and what it leaves out is itself a number of the type
computed with: message = decompressed + rest, exactly. `ErrorFeedback` keeps the rest for the next message.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import _checks, kernels

__all__ = ["BLOCK", "CODECS", "Codec", "ErrorFeedback", "codec"]

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

BLOCK = 32
"""Numbers that share a scale in int8."""
CHUNK = 1 << 17
"""Numbers of a message that are written as int8 at a time: no more scratch memory than that, in float32, is taken."""

_LARGEST_FLOAT32 = (2 - 2.0**-23) * 2.0**127
_LARGEST_HALF = (2 - 2.0**-7) * 2.0**127  # rounded up to bfloat16, more would not be a float32
_HALF_TOP = 15  # scaled float16 values are below 2**15: half of the largest, so that no rounding overflows
_HALF_SCALES = -113, 120  # exponents: of the largest numbers that fit; 2**120 and its inverse are not subnormal
_INT8_SCALES = -126, 120  # exponents: 2**e and 2**-e are float32 numbers and not subnormal


class Codec(ABC):
    """Writes messages of one type computed with as bytes, and reads them. Made by `codec`.

    Attributes
    ----------
    name : str
        One of `CODECS`.
    unit : float
        At most how far rounding moves a number, relative to the largest with the same scale: the unit roundoff of a
        type, 2**-53, 2**-24, 2**-11 (float16) and 2**-8 (bfloat16); 1/127 for int8.
    """

    name: str
    unit: float

    @abstractmethod
    def size(self, length: int) -> int:
        """Bytes of `length` numbers."""

    def compress(self, message: Array, out: Bytes | None = None) -> Bytes:
        """Write a message as bytes, rounding each number once, to nearest, ties to even.

        Parameters
        ----------
        message : ndarray, shape (length,)
            float32 or float64; not modified.
        out : ndarray of uint8, shape (size(length),), optional
            Contiguous. Must not overlap the message.

        Returns
        -------
        ndarray of uint8, shape (size(length),)
            `out` where given. Equal messages give equal bytes.

        Raises
        ------
        OverflowError
            A number is not finite, or larger than the codec holds: 1.8e308 (float64), 3.4e38, or 1.7e38 (int8). What
            is in `out` is then undefined.
        ValueError, TypeError
            A wrong shape or element type; `out` is then untouched.
        """
        size = self.size(len(_message("message", message)))
        out = np.empty(size, np.uint8) if out is None else _bytes("out", out, size)
        if not self._write(message, out):
            raise OverflowError(f"message has numbers that {self.name} cannot hold: they are not finite, or too large")
        return out

    def decompress(self, data: Bytes, length: int, out: Array | None = None) -> Array:
        """Read what `compress` wrote.

        Parameters
        ----------
        data : ndarray of uint8, shape (size(length),)
        length : int
            Of the message.
        out : ndarray, shape (length,), optional
            float32 or float64, contiguous; by default a new float32 array, and float64 for the codec of that name.

        Returns
        -------
        ndarray, shape (length,)
            `out` where given.

        Raises
        ------
        ValueError, TypeError
            A wrong shape or element type, or a scale that `compress` does not write; `out` is then untouched. Numbers
            are not looked at: bytes that no message gave may be read as infinity or NaN, but never from int8.
        """
        length = _checks.integer("length", length, 1)
        data = _bytes("data", data, self.size(length))
        if out is None:
            out = np.empty(length, np.float64 if self.name == "float64" else np.float32)
        elif len(_message("out", out)) != length:
            raise ValueError(f"out must have shape ({length},), not {out.shape}")
        self.check(data, length)
        self._read(data, out)
        return out

    def numbers(self, data: Bytes) -> Array | None:
        """The numbers themselves, a view of a message's bytes, where they are written without a scale; else None."""
        return None

    def check(self, data: Bytes, length: int) -> None:  # noqa: B027  # most have no scales
        """Raise ValueError where `data`, of the right size, has a scale that `compress` does not write."""

    @abstractmethod
    def _write(self, message: Array, out: Bytes) -> bool:
        """Fill `out`; False where some number does not fit."""

    @abstractmethod
    def _read(self, data: Bytes, out: Array) -> None:
        """Fill `out` with the numbers."""


class _Plain(Codec):
    """Numbers of an element type."""

    def __init__(self, name: str, dtype: np.dtype[Any], unit: float, largest: float) -> None:
        self.name, self.unit = name, unit
        self._dtype, self._most = dtype, largest

    def size(self, length: int) -> int:
        return length * self._dtype.itemsize

    def numbers(self, data: Bytes) -> Array:
        return data.view(self._dtype)

    def _write(self, message: Array, out: Bytes) -> bool:
        if not _largest(message) <= self._most:
            return False
        self.numbers(out)[:] = message
        return True

    def _read(self, data: Bytes, out: Array) -> None:
        out[:] = self.numbers(data)


class _Float16(Codec):
    """Numbers in float16, and the exponent of the scale of all of them."""

    name, unit = "float16", 2.0**-11

    def size(self, length: int) -> int:
        return 2 * length + 2

    def check(self, data: Bytes, length: int) -> None:
        _check_scales(self.name, data[-2:].view(np.int16), _HALF_SCALES)

    def _write(self, message: Array, out: Bytes) -> bool:
        largest = _largest(message)
        if not largest <= _LARGEST_HALF:
            return False
        exponent = min(_HALF_TOP - math.frexp(largest)[1], _HALF_SCALES[1]) if largest else 0
        _scaled(message, 2.0**exponent, out[:-2].view(np.float16))
        out[-2:].view(np.int16)[0] = exponent
        return True

    def _read(self, data: Bytes, out: Array) -> None:
        _scaled(data[:-2].view(np.float16), 2.0 ** -int(data[-2:].view(np.int16)[0]), out)


class _Int8(Codec):
    """Numbers in int8, and behind them the exponents of their blocks' scales."""

    name, unit = "int8", 1 / 127

    def size(self, length: int) -> int:
        return length + -(-length // BLOCK)

    def check(self, data: Bytes, length: int) -> None:
        _check_scales(self.name, data[length:].view(np.int8), _INT8_SCALES)

    def _write(self, message: Array, out: Bytes) -> bool:
        length = len(message)
        numbers, exponents = out[:length].view(np.int8), out[length:].view(np.int8)
        for start in range(0, length, CHUNK):
            part = message[start : start + CHUNK]
            count, blocks = len(part), -(-len(part) // BLOCK)
            scaled = np.zeros(blocks * BLOCK, np.float32)
            with np.errstate(over="ignore"):  # of float64: to infinity, which does not fit
                scaled[:count] = part
            rows = scaled.reshape(blocks, BLOCK)
            # As integers, magnitudes of floats are in order, infinity and then NaN above all numbers.
            largest = (rows.view(np.int32) & 0x7FFFFFFF).max(axis=1)
            # The exponent, one more where the significand is above 127/64, less that of 64.
            exponent = np.maximum((largest + 0x1FFFF >> 23) - 133, _INT8_SCALES[0])
            if exponent.max() > _INT8_SCALES[1]:
                return False
            rows *= _power_of_two(-exponent)[:, None]
            np.rint(scaled, out=scaled)
            numbers[start : start + count] = scaled[:count]
            exponents[start // BLOCK : start // BLOCK + blocks] = exponent
        return True

    def _read(self, data: Bytes, out: Array) -> None:
        length, whole = len(out), len(out) // BLOCK * BLOCK
        scales = _power_of_two(data[length:].view(np.int8).astype(np.int32))
        out[:] = data[:length].view(np.int8)
        rows = out[:whole].reshape(-1, BLOCK)
        rows *= scales[: len(rows), None]
        out[whole:] *= scales[-1]


class ErrorFeedback:
    """A worker's messages, each with what the roundings of its earlier ones left out.

    A message goes out as the codec's of message + residual, and what its rounding leaves out is the next residual once
    the message is known to have been used. One that was not used, or of which nobody says so, leaves the residual as
    it was: the sum of that iteration has come from other workers, so neither its message nor its rounding is owed.
    So of one worker ``sum of the decompressed used messages + residual = sum of the used messages``, but for the
    rounding of message + residual in the type computed with (Seide et al. 2014, *1-Bit Stochastic Gradient Descent*;
    Karimireddy et al. 2019, *Error Feedback Fixes SignSGD*). As long as the same workers survive, the errors of the
    decoded sums add up to no more than that of one; when survivors change they do not cancel (docs/compression.md).

    Parameters
    ----------
    codec : Codec
    length : int
        Of the messages.
    dtype : dtype
        Of the messages, float32 or float64.
    """

    def __init__(self, codec: Codec, length: int, dtype: npt.DTypeLike) -> None:
        length = _checks.integer("length", length, 1)
        self._codec = codec
        self._residual = _message("dtype", np.zeros(length, dtype))
        self._next, self._sent = np.zeros_like(self._residual), np.empty_like(self._residual)
        self._pending = False

    @property
    def residual(self) -> Array:
        """What the next message is to make up for, shape (length,): a read-only view."""
        view = self._residual.view()
        view.flags.writeable = False
        return view

    def compress(self, message: Array, out: Bytes | None = None) -> Bytes:
        """Write message + residual as bytes, as `Codec.compress` does. An earlier message counts as settled.

        Raises
        ------
        OverflowError, ValueError, TypeError
            As `Codec.compress`; the residual stays as it is.
        """
        if _message("message", message).shape != self._residual.shape or message.dtype != self._residual.dtype:
            raise ValueError(
                f"message must be {self._residual.dtype} of shape {self._residual.shape}, "
                f"not {message.dtype} of {message.shape}"
            )
        self._pending = False
        with np.errstate(over="ignore"):  # that does not fit, as the codec says
            np.add(message, self._residual, out=self._next)
        out = self._codec.compress(self._next, out)
        self._next -= self._codec.decompress(out, len(message), self._sent)
        self._pending = True
        return out

    def settle(self, used: bool) -> None:
        """Say whether the last message was used; said again, or of no message, it changes nothing."""
        if self._pending and used:
            self._residual, self._next = self._next, self._residual
        self._pending = False

    def reset(self) -> None:
        """Owe nothing, as at the beginning."""
        self._residual[:] = 0
        self._pending = False


CODECS = ("float32", "float64", "float16", "bfloat16", "int8")
"""The names of all codecs."""


def codec(name: str) -> Codec:
    """The codec of a name.

    Parameters
    ----------
    name : str
        One of `CODECS`; ``"bfloat16"`` needs ml_dtypes.

    Raises
    ------
    ValueError
        Another name.
    """
    if name == "float64":
        return _Plain(name, np.dtype(np.float64), 2.0**-53, float(np.finfo(np.float64).max))
    if name == "float32":
        return _Plain(name, np.dtype(np.float32), 2.0**-24, _LARGEST_FLOAT32)
    if name == "bfloat16":
        import ml_dtypes

        return _Plain(name, np.dtype(ml_dtypes.bfloat16), 2.0**-8, _LARGEST_HALF)
    if name == "float16":
        return _Float16()
    if name == "int8":
        return _Int8()
    raise ValueError(f"name must be one of {', '.join(CODECS)}, not {name!r}")


def _message(name: str, value: Any) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, not {type(value).__name__}")
    if value.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64, not {value.dtype}")
    if value.ndim != 1 or not len(value) or not value.flags.c_contiguous:
        raise ValueError(f"{name} must be 1-D, contiguous and not empty, not of shape {value.shape}")
    return value


def _bytes(name: str, value: Any, size: int) -> Bytes:
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        raise TypeError(f"{name} must be a NumPy array of uint8, not {getattr(value, 'dtype', type(value).__name__)}")
    if value.shape != (size,) or not value.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous and of shape ({size},), not {value.shape}")
    return value


def _largest(message: Array) -> float:
    """The largest magnitude; NaN where there is one."""
    return max(float(message.max()), -float(message.min()))


def _scaled(numbers: Array, factor: float, out: Array) -> None:
    """Write numbers times a power of two, of which one side is float16: each rounded once at most."""
    if np.float64 in (numbers.dtype, out.dtype):  # where the kernels do not convert
        out[:] = numbers.astype(np.float64) * factor
    else:  # NumPy takes 8 times as long: bench.compressed_messages --suites speed
        kernels.lincomb(((factor,),), (numbers,), (out,))


def _power_of_two(exponents: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """2**e in float32, of exponents that give no subnormal number."""
    return (exponents + 127 << 23).view(np.float32)


def _check_scales(name: str, exponents: npt.NDArray[Any], allowed: tuple[int, int]) -> None:
    least, most = int(exponents.min()), int(exponents.max())
    if least < allowed[0] or most > allowed[1]:
        raise ValueError(
            f"data must have {name} scales from 2**{allowed[0]} to 2**{allowed[1]}, not 2**{least} to 2**{most}"
        )
