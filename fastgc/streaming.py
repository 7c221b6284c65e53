"""Encoding and decoding piece by piece, with the same bits as all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from fastgc import _checks, arrays, kernels
from fastgc.errors import NotDecodableError
from fastgc.layout import Layout

if TYPE_CHECKING:
    from fastgc.gradient_code import GradientCode
    from fastgc.verification import Noise, Verified


Gradient: TypeAlias = "npt.NDArray[Any] | Sequence[npt.NDArray[Any]]"
"""Of one partition: an array, or with a layout a list of tensors."""


class Encoder:
    """Adds up a worker's message while its partial gradients come in. Made by `GradientCode.encoder`.

    Partitions may be added in any order, the message is always combined in index order: a gradient that comes before
    its turn is copied, one in its turn is used at once and not kept. The message is of the library and on the device of
    `out` or, without it, of the first gradient; all others must be so too.
    """

    def __init__(
        self,
        partitions: tuple[int, ...],
        coefficients: npt.NDArray[np.float64],
        length: int | Layout,
        dtype: npt.DTypeLike,
        out: npt.NDArray[Any] | None = None,
    ) -> None:
        self._partitions = partitions
        self._coefficients = coefficients
        self._layout = length if isinstance(length, Layout) else None
        self._length = length.length if isinstance(length, Layout) else _checks.integer("length", length, 1)
        self._dtype = _checks.element_type("dtype", dtype)
        self._block = -(-self._length // coefficients.shape[1])
        self._given = out
        self._where: arrays.Origin | None = None
        if out is not None:
            self._where = arrays.origin("out", out)
            self._out = self._where.view("out", out, write=True)
            _checks.message("out", self._out, self._block, self._dtype)
            _checks.output("out", self._out)
            self._make_sum(self._where)
        self._message: Any = None
        self._next = 0
        self._waiting: dict[int, Gradient] = {}

    def add(self, partition: int, gradient: Gradient) -> None:
        """Take the gradient of one partition.

        Parameters
        ----------
        partition : int
            One of this worker's, not added before.
        gradient : array, shape (length,), or with a layout a sequence of arrays of its shapes
            May be overwritten afterwards.
        """
        if partition not in self._partitions:
            raise ValueError(f"partition must be one of {list(self._partitions)}, not {partition!r}")
        turn = self._partitions.index(partition)
        if turn < self._next or turn in self._waiting:
            raise ValueError(f"partition {partition} was added already")
        if self._layout is None:
            where = self._where or arrays.origin("gradient", gradient)
            seen: Any = where.view("gradient", gradient)
            _checks.message("gradient", seen, self._length, self._dtype)
        else:
            where = self._where or self._layout.origin("gradient", [gradient])
            flat = self._layout.flat("gradient", gradient, where)
            if flat[0].dtype != self._dtype:
                raise TypeError(f"gradient must have element type {self._dtype}, not {flat[0].dtype}")
            seen = [tensor.reshape(shape) for tensor, shape in zip(flat, self._layout.shapes, strict=True)]
        if self._where is None:
            self._where = where
            self._make_out(where)
        if turn > self._next:
            self._waiting[turn] = [tensor.copy() for tensor in seen] if self._layout is not None else seen.copy()
            return
        self._take(seen)
        while self._next in self._waiting:
            self._take(self._waiting.pop(self._next))

    def _make_out(self, where: arrays.Origin) -> None:
        self._out = where.empty(self._block, self._dtype)
        self._make_sum(where)

    def _make_sum(self, where: arrays.Origin) -> None:
        # A half type is rounded once, at the end, as `GradientCode.encode` does.
        wide = _checks.compute_type(self._dtype)
        self._sum = self._out if wide == self._dtype else where.empty(self._block, wide)

    def _take(self, gradient: Gradient) -> None:
        turn = self._next
        encode: Callable[..., object] = kernels.encode if self._layout is None else self._layout.encode
        encode(self._coefficients[turn : turn + 1], [gradient], self._sum, accumulate=turn > 0)
        self._next += 1
        if self._next == len(self._partitions) and self._sum is not self._out:
            kernels.lincomb(((1.0,),), (self._sum,), (self._out,))

    def message(self) -> npt.NDArray[Any]:
        """The message, once every partition was added: `out` or the encoder's own array, which changes after `reset`
        (JAX's, which must not change, is a new one every time).

        Raises
        ------
        ValueError
            Some partitions have not been added; the message names them.
        """
        if self._next < len(self._partitions):
            absent = [p for t, p in enumerate(self._partitions) if t >= self._next and t not in self._waiting]
            raise ValueError(f"message is not complete: partitions {absent} have not been added")
        if self._message is None:
            assert self._where is not None
            self._message = self._where.give(self._out) if self._given is None else self._given
            self._where.written(self._message)
        return self._message  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Begin the next message, in the same memory."""
        if self._where is not None and self._where.immutable and self._message is not None:
            self._make_out(self._where)
        self._message = None
        self._next = 0
        self._waiting.clear()


class Collector:
    """Takes messages as they arrive, says when they are enough, and decodes them. Made by `GradientCode.collector`.

    Everything is decoded at once, in `gradient`, by one pass over the messages and one over the result, whatever the
    number of groups. Decoding each group as it completes would save little of the time after the last message: its
    result is m times as long as a message and must be read again, and is in vain where more of its workers answer.
    """

    def __init__(self, scheme: GradientCode, length: int, dtype: npt.DTypeLike) -> None:
        self._scheme = scheme
        self._length = _checks.integer("length", length, 1)
        self._expected = scheme.message_length(length)
        self._dtype = _checks.element_type("dtype", dtype)
        self._groups = scheme.groups
        self._where: arrays.Origin | None = None
        self.reset()

    def add(self, worker: int, message: npt.NDArray[Any]) -> None:
        """Take a worker's message.

        Parameters
        ----------
        worker : int
            Not added since the last `reset`.
        message : array, shape (message_length(length),)
            Of the library and on the device of the others. A reference is kept until `reset`: it must not change
            before.

        Raises
        ------
        ValueError, TypeError
            An unknown or repeated worker, a wrong length or element type, or a gradient already taken; nothing is kept.
        """
        group, position = self._scheme.place(worker)
        if self._frozen:
            raise ValueError(f"worker {worker} comes after the gradient was taken: reset() begins the next one")
        if worker in self._messages:
            raise ValueError(f"worker {worker} was added already")
        where = self._where if self._messages else arrays.origin("message", message)
        assert where is not None
        _checks.message("message", where.view("message", message), self._expected, self._dtype)
        self._where = where
        self._messages[worker] = message
        self._masks[group] |= 1 << position
        if group in self._undecodable and self._scheme.decoder(group).is_decodable(self._masks[group]):
            self._undecodable.discard(group)

    @property
    def ready(self) -> bool:
        """Whether `gradient` can be taken: the survivors determine the sum or, under an inexact scheme, all but
        ``stragglers`` workers have answered."""
        if not self._scheme.exact and len(self._messages) < self._scheme.workers - self._scheme.stragglers:
            return False
        return not self._undecodable

    @property
    def survivors(self) -> tuple[int, ...]:
        """The workers heard so far, increasing."""
        return tuple(sorted(self._messages))

    @property
    def missing(self) -> tuple[int, ...]:
        """The workers not heard yet, increasing."""
        return tuple(w for w in range(self._scheme.workers) if w not in self._messages)

    @overload
    def gradient(
        self, out: npt.NDArray[Any] | None = None, *, approximate: bool | str = False, verify: Literal[False] = False
    ) -> npt.NDArray[Any]: ...
    @overload
    def gradient(
        self, out: npt.NDArray[Any] | None = None, *, approximate: bool | str = False, verify: Literal[True] | Noise
    ) -> Verified: ...
    @overload
    def gradient(
        self, out: npt.NDArray[Any] | None = None, *, approximate: bool | str = False, verify: bool | Noise
    ) -> npt.NDArray[Any] | Verified: ...
    def gradient(
        self, out: npt.NDArray[Any] | None = None, *, approximate: bool | str = False, verify: bool | Noise = False
    ) -> npt.NDArray[Any] | Verified:
        """The sum of all partitions' gradients. The set of survivors is fixed from here until `reset`.

        Parameters
        ----------
        out : array, shape (length,), optional
            Must not overlap the messages.
        approximate : bool or str
            Estimate the sum where it is not determined yet, as `GradientCode.decode` does.
        verify : bool or Noise
            See whether the messages agree, and leave out those found to be wrong, as `GradientCode.decode` does; their
            workers are `survivors` no longer.

        Returns
        -------
        array, shape (length,)
            `out` where given, else a new array. With `verify` a `Verified`.

        Raises
        ------
        NotDecodableError
            Too few workers have answered; more may be added afterwards.
        CorruptMessageError
            Messages contradict each other, and which are wrong cannot be told; more may be added afterwards.
        ValueError, TypeError
            Weights that are not finite in the element type, or an `out` that does not fit; it is then untouched.
        """
        if verify is False:
            if approximate is True and self._scheme.exact and not self._undecodable:
                approximate = False  # the same bits, found sooner
            if approximate is False and self._undecodable:
                raise NotDecodableError(
                    f"survivors {list(self.survivors)} do not determine the sum under {self._scheme.name}: "
                    f"missing are {list(self.missing)}",
                    self.survivors,
                    self.missing,
                )
        result = self._scheme.decode(self._messages, self._length, out=out, approximate=approximate, verify=verify)
        for worker in result.corrupt if isinstance(result, tuple) else ():
            self.discard(worker)
        self._frozen = True
        return result

    def discard(self, worker: int) -> None:
        """Forget a worker's message, as if it had not come.

        Parameters
        ----------
        worker : int
            One of `survivors`.
        """
        if worker not in self._messages:
            raise ValueError(f"worker must be one of {list(self.survivors)}, not {worker!r}")
        group, position = self._scheme.place(worker)
        del self._messages[worker]
        self._masks[group] ^= 1 << position
        if not self._scheme.decoder(group).is_decodable(self._masks[group]):
            self._undecodable.add(group)

    def reset(self) -> None:
        """Forget all messages and begin the next gradient."""
        self._messages: dict[int, npt.NDArray[Any]] = {}
        self._masks = [0] * len(self._groups)  # of the positions heard
        self._undecodable = set(range(len(self._groups)))
        self._frozen = False
