"""What travels between master and workers: one contiguous buffer a message, a header in front.

============  =========  =============================================================================================
kind          from, tag  after the 64-byte header
============  =========  =============================================================================================
MODEL         master, 1  the parameters to differentiate at
SKIP, STOP    master, 2  nothing: the header's iteration is over / the run is over
RESULT        worker, 3  the coded gradient, padded to 8 bytes, and coded (loss, examples) in float64
READY         worker, 3  nothing: waiting for the newest model (at the start, and after abandoned work)
BYE           worker, 3  nothing: the worker's last message
============  =========  =============================================================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import GradientCode

MODEL, SKIP, STOP, RESULT, READY, BYE = 1, 2, 3, 4, 5, 6
TAG_MODEL, TAG_CONTROL, TAG_RESULT = 1, 2, 3

MAGIC = b"fastgc\x00\x01"  # the last byte is the version of this format
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("kind", "<u4"),
        ("worker", "<u4"),
        ("iteration", "<i8"),
        ("length", "<u8"),  # of the gradient
        ("itemsize", "<u4"),
        ("encode_seconds", "<f4"),  # of a RESULT: spent in encoding, computing the gradients, and sleeping
        ("fingerprint", "<u8"),  # the first 8 bytes of the scheme's
        ("compute_seconds", "<f8"),
        ("delay_seconds", "<f8"),
    ]
)
assert HEADER.itemsize == 64

STATISTICS = 2
"""Numbers that travel beside the gradient, coded in the same way: the sum of losses and the number of examples."""

Array = npt.NDArray[Any]


class Spent(NamedTuple):
    """Seconds that a worker spent on a result, by its own clock."""

    compute: float = 0.0
    encode: float = 0.0
    delay: float = 0.0


NOTHING = Spent()


class Wire:
    """Sizes and headers of a run's messages."""

    def __init__(self, scheme: GradientCode, length: int, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.length = length
        self.fingerprint = int.from_bytes(bytes.fromhex(scheme.fingerprint)[:8], "little")
        self.message_length = scheme.message_length(length)
        self.statistics_length = scheme.message_length(STATISTICS)
        gradient_bytes = self.message_length * self.dtype.itemsize
        self._statistics_at = HEADER.itemsize + -(-gradient_bytes // 8) * 8
        self.result_bytes = self._statistics_at + self.statistics_length * 8
        self.model_bytes = HEADER.itemsize + length * self.dtype.itemsize

    def result_buffer(self) -> Array:
        """Room for any message of a worker."""
        return np.zeros(self.result_bytes, np.uint8)

    def model_buffer(self) -> Array:
        """Room for a model."""
        return np.zeros(self.model_bytes, np.uint8)

    @staticmethod
    def control_buffer() -> Array:
        """Room for SKIP and STOP."""
        return np.zeros(HEADER.itemsize, np.uint8)

    def write_header(self, buffer: Array, kind: int, worker: int, iteration: int, spent: Spent = NOTHING) -> Array:
        """Fill in a buffer's header; returns the part of the buffer that a message of this kind has."""
        header = self.header(buffer)
        header[...] = (
            MAGIC, kind, worker, iteration, self.length, self.dtype.itemsize, spent.encode, self.fingerprint,
            spent.compute, spent.delay,
        )  # fmt: skip
        return buffer if kind in (MODEL, RESULT) else buffer[: HEADER.itemsize]

    @staticmethod
    def header(buffer: Array) -> Any:
        """The header of a buffer: a view, to read and write."""
        return buffer[: HEADER.itemsize].view(HEADER)[0:1].reshape(())

    def parameters(self, buffer: Array) -> Array:
        """The parameters in a MODEL: a view."""
        return buffer[HEADER.itemsize :].view(self.dtype)

    def gradient(self, buffer: Array) -> Array:
        """The coded gradient in a RESULT: a view."""
        end = HEADER.itemsize + self.message_length * self.dtype.itemsize
        return buffer[HEADER.itemsize : end].view(self.dtype)

    def statistics(self, buffer: Array) -> Array:
        """The coded statistics in a RESULT: a view."""
        return buffer[self._statistics_at :].view(np.float64)

    def fault(self, buffer: Array, received: int, kinds: dict[int, int], worker: int | None = None) -> str | None:
        """Why a message of `received` bytes is not one of this run's, or None.

        Parameters
        ----------
        buffer : ndarray
        received : int
            Bytes received.
        kinds : dict
            The kinds that are expected here, with their sizes in bytes.
        worker : int, optional
            Who sent it.
        """
        if received < HEADER.itemsize:
            return f"{received} bytes are no header"
        header = self.header(buffer)
        expected = (MAGIC, self.length, self.dtype.itemsize, self.fingerprint)
        # NumPy strips trailing zeros of "S8" items, and the magic ends in a nonzero byte: comparing is exact.
        given = (bytes(header["magic"]), int(header["length"]), int(header["itemsize"]), int(header["fingerprint"]))
        if given != expected:
            return "the header is of another format, scheme or gradient"
        kind = int(header["kind"])
        if kind not in kinds:
            return f"unexpected kind {kind}"
        if received != kinds[kind]:
            return f"{received} bytes in place of {kinds[kind]}"
        if worker is not None and int(header["worker"]) != worker:
            return f"worker {worker} speaks for worker {int(header['worker'])}"
        return None
