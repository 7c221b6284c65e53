"""What travels between master and workers: one contiguous buffer a message, a header in front.

============  =========  =============================================================================================
kind          from, tag  after the 80-byte header
============  =========  =============================================================================================
MODEL         master, 1  the parameters to differentiate at; with error feedback, padded to 8 bytes, and a bit a worker
SKIP, STOP    master, 2  nothing: the header's iteration is over / the run is over
RESULT        worker, 3  the coded gradient, compressed, padded to 8 bytes, and coded (loss, examples) in float64
PART          worker, 3  the same, of a part of the work, more of which is to come
READY         worker, 3  nothing: waiting for the newest model (at the start, and after abandoned work)
OVERFLOW      worker, 3  nothing: the coded gradient has numbers that the messages cannot hold
BYE           worker, 3  nothing: the worker's last message
============  =========  =============================================================================================

A header names the format, the run, the scheme, its reduction and the gradient it is for, and has a checksum of all that
follows it; `Wire.read` says what is wrong with a message. A worker codes under the reduction that the model's header
names: it may be another in every iteration, where the scheme has several. docs/protocol.md has the states of master
and worker.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from fastgc import GradientCode, compression

MODEL, SKIP, STOP, RESULT, READY, OVERFLOW, BYE, PART = 1, 2, 3, 4, 5, 6, 7, 8
TAG_MODEL, TAG_CONTROL, TAG_RESULT = 1, 2, 3

MAGIC = b"fastgc\x00\x05"  # the last byte is the version of this format
HEADER = struct.Struct("<8sQQQqQIBBHfffIH6x")
assert HEADER.size == 80  # a multiple of 8: what follows is aligned


class Header(NamedTuple):
    """What is in front of a message, in the order of `HEADER`."""

    magic: bytes
    checksum: int
    """XXH3, 64 bits, of every byte that follows it."""
    fingerprint: int
    """The first 8 bytes of the scheme's."""
    run: int
    """Drawn by the master: the same scheme may have had a run before."""
    iteration: int
    length: int
    """Of the gradient."""
    worker: int
    kind: int
    element: int
    """How the numbers are written, by `ELEMENTS`."""
    reduction: int
    """That the message is coded under, or is to be."""
    compute_seconds: float = 0.0
    """Spent on gradients, encoding, and sleeping since the model came."""
    encode_seconds: float = 0.0
    delay_seconds: float = 0.0
    rejected: int = 0
    """Messages of the master that this worker has dropped so far."""
    part: int = 0
    """Of a RESULT or PART: which part of the work it is for."""


ELEMENTS = {"float32": 1, "float64": 2, "float16": 3, "bfloat16": 4, "int8": 5}
"""How a header names a codec of `fastgc.compression`."""

STATISTICS = 2
"""Numbers that travel beside the gradient, coded in the same way: the sum of losses and the number of examples."""

Array = npt.NDArray[Any]

_CHECKSUM, _CHECKSUM_AT = struct.Struct("<Q"), 8
_SUMMED_FROM = _CHECKSUM_AT + _CHECKSUM.size


class Spent(NamedTuple):
    """Seconds that a worker spent on a result, by its own clock."""

    compute: float = 0.0
    encode: float = 0.0
    delay: float = 0.0


NOTHING = Spent()


class BadMessage(ValueError):
    """A message is not one that this run waits for; the text says why, in a few words."""


class _Result(NamedTuple):
    """Where what is in a RESULT."""

    length: int
    """Of the coded gradient."""
    gradient_end: int
    statistics_at: int
    size: int

    @classmethod
    def of(cls, scheme: GradientCode, length: int, codec: compression.Codec) -> _Result:
        coded = scheme.message_length(length)
        gradient_end = HEADER.size + codec.size(coded)
        statistics_at = _aligned(gradient_end)
        return cls(coded, gradient_end, statistics_at, statistics_at + scheme.message_length(STATISTICS) * 8)


class Wire:
    """Sizes and headers of a run's messages.

    Parameters
    ----------
    scheme : GradientCode
    length : int
        Of the gradient.
    model, message : str
        The codecs, of `fastgc.compression`, of the parameters on their way down (one without scales) and of the coded
        gradient on its way up.
    run : int
        Any number below 2⁶⁴ that no other run has.
    feedback : bool
        Whether models say whose messages were used in the iteration before.
    parts : int
        After how many parts of its work a worker sends a message.
    """

    def __init__(
        self,
        scheme: GradientCode,
        length: int,
        model: str,
        message: str,
        run: int = 0,
        feedback: bool = False,
        parts: int = 1,
    ) -> None:
        self._model = compression.codec(model)
        self.codec = compression.codec(message)
        """Of coded gradients."""
        self.length = length
        self.run = run
        self.feedback = feedback
        self.parts = parts
        self.rounding = self.codec.unit * ((2 + self.codec.unit) if feedback else 1)
        """At most how far an element of a coded gradient is moved on its way, relative to the largest there has been.

        With error feedback the residual is added, which is one rounding, and the sum is rounded.
        """
        self.fingerprint = int.from_bytes(bytes.fromhex(scheme.fingerprint)[:8], "little")
        self._own_reduction = scheme.reduction
        self._results = {m: _Result.of(scheme.with_reduction(m), length, self.codec) for m in scheme.reductions}
        longest = max(self._results.values())
        self._parameters_end = HEADER.size + self._model.size(length)
        self._used_at = _aligned(self._parameters_end)
        empty = HEADER.size
        self.sizes = {
            MODEL: self._used_at + _aligned(-(-scheme.workers // 8)) if feedback else self._parameters_end,
            **dict.fromkeys((RESULT, PART), longest.size),
            **dict.fromkeys((SKIP, STOP, READY, OVERFLOW, BYE), empty),
        }
        """Bytes of a message, by kind; of a RESULT the most, `size` tells those of a reduction."""
        up, down = ELEMENTS[message], ELEMENTS[model]
        self._elements = dict.fromkeys(self.sizes, up) | {MODEL: down}

    def _result(self, reduction: int | None) -> _Result:
        return self._results[self._own_reduction if reduction is None else reduction]

    def message_length(self, reduction: int | None = None) -> int:
        """Numbers of a coded gradient. Here and below the reduction is the scheme's own, unless another is given."""
        return self._result(reduction).length

    def size(self, kind: int, reduction: int | None = None) -> int:
        """Bytes of a message."""
        return self._result(reduction).size if kind in (RESULT, PART) else self.sizes[kind]

    def result_buffer(self) -> Array:
        """Room for any message of a worker."""
        return np.zeros(self.sizes[RESULT], np.uint8)

    def model_buffer(self) -> Array:
        """Room for a model."""
        return np.zeros(self.sizes[MODEL], np.uint8)

    @staticmethod
    def control_buffer() -> Array:
        """Room for SKIP and STOP."""
        return np.zeros(HEADER.size, np.uint8)

    def seal(
        self,
        buffer: Array,
        kind: int,
        iteration: int,
        *,
        worker: int = 0,
        spent: Spent = NOTHING,
        rejected: int = 0,
        reduction: int | None = None,
        part: int = 0,
    ) -> Array:
        """Fill in a buffer's header, the checksum of what follows included; returns the part that is to be sent."""
        coded = self._own_reduction if reduction is None else reduction
        message = buffer[: self.size(kind, coded)]
        HEADER.pack_into(
            message.data, 0, MAGIC, 0, self.fingerprint, self.run, iteration, self.length, worker, kind,
            self._elements[kind], coded, *spent, rejected, part,
        )  # fmt: skip
        _CHECKSUM.pack_into(message.data, _CHECKSUM_AT, checksum(message))
        return message

    def parameters(self, buffer: Array) -> Array:
        """The parameters in a MODEL: a view."""
        numbers = self._model.numbers(buffer[HEADER.size : self._parameters_end])
        assert numbers is not None  # the codec of models has no scales
        return numbers

    def mark_used(self, buffer: Array, workers: Collection[int]) -> None:
        """Say in a MODEL whose messages were used in the iteration before."""
        used = buffer[self._used_at :]
        used[:] = 0
        for worker in workers:
            used[worker // 8] |= 1 << worker % 8

    def was_used(self, buffer: Array, worker: int) -> bool:
        """Whether a MODEL says that a worker's message of the iteration before was used."""
        return bool(buffer[self._used_at + worker // 8] >> worker % 8 & 1)

    def gradient(self, buffer: Array, reduction: int | None = None) -> Array:
        """The bytes of the coded gradient in a RESULT or PART, as `codec` writes them: a view."""
        return buffer[HEADER.size : self._result(reduction).gradient_end]

    def statistics(self, buffer: Array, reduction: int | None = None) -> Array:
        """The coded statistics in a RESULT or PART: a view."""
        result = self._result(reduction)
        return buffer[result.statistics_at : result.size].view(np.float64)

    def read(
        self, message: Array, awaited: Mapping[int, int | None], worker: int = 0, reduction: int | None = None
    ) -> Header:
        """The header of a message that has come.

        Parameters
        ----------
        message : ndarray of uint8
            What was received and no more.
        awaited : mapping
            The kinds that may come now, each with the iteration it must be for, or None for any.
        worker : int
            Who sent it; 0 for the master.
        reduction : int, optional
            That it must be coded under if it is for a certain iteration; any of the scheme's by default.

        Raises
        ------
        BadMessage
            Where anything about it is not as it should be.
        """
        if len(message) < HEADER.size:
            raise BadMessage(f"{len(message)} bytes are no header")
        header = Header._make(HEADER.unpack_from(message.data))
        kind = header.kind
        if header.magic != MAGIC:
            raise BadMessage("another format")
        if kind not in self.sizes:
            raise BadMessage(f"unknown kind {kind}")
        if header.reduction not in self._results:
            raise BadMessage(f"of reduction {header.reduction}, which the scheme has not")
        if len(message) != (size := self.size(kind, header.reduction)):
            raise BadMessage(f"{len(message)} bytes in place of {size}")
        if header.checksum != checksum(message):
            raise BadMessage("the checksum is wrong")
        expected = (self.fingerprint, self.run, self.length, self._elements[kind])
        if (header.fingerprint, header.run, header.length, header.element) != expected:
            raise BadMessage("of another run, scheme, gradient or element type")
        if header.worker != worker:
            raise BadMessage(f"worker {worker} speaks for worker {header.worker}")
        if header.part >= self.parts:
            raise BadMessage(f"part {header.part} of {self.parts}")
        if kind not in awaited:
            raise BadMessage(f"kind {kind} is not expected")
        if awaited[kind] not in (None, header.iteration):
            raise BadMessage(f"for iteration {header.iteration} in place of {awaited[kind]}")
        if awaited[kind] is not None and reduction not in (None, header.reduction):
            raise BadMessage(f"of reduction {header.reduction} in place of {reduction}")
        if kind in (RESULT, PART):
            try:
                self.codec.check(self.gradient(message, header.reduction), self.message_length(header.reduction))
            except ValueError as fault:
                raise BadMessage(str(fault)) from None
        return header


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def checksum(message: Array) -> int:
    """Of everything behind the checksum. XXH3 takes 21 µs a megabyte; zlib's CRC-32 took 260, CRC32C in hardware 42."""
    return xxhash.xxh3_64_intdigest(message[_SUMMED_FROM:].data)
