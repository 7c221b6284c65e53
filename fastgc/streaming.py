"""Encoding and decoding piece by piece, with the same bits as all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastgc import _checks, kernels
from fastgc.errors import NotDecodableError
from fastgc.layout import Layout

if TYPE_CHECKING:
    from fastgc.gradient_code import GradientCode


Gradient: TypeAlias = "npt.NDArray[Any] | Sequence[npt.NDArray[Any]]"
"""Of one partition: an array, or with a layout a list of tensors."""


class Encoder:
    """Adds up a worker's message while its partial gradients come in. Made by `GradientCode.encoder`.

    Partitions may be added in any order, the message is always combined in index order: a gradient that comes before
    its turn is copied, one in its turn is used at once and not kept.
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
        block = -(-self._length // coefficients.shape[1])
        self._out = np.empty(block, self._dtype) if out is None else out
        _checks.message("out", self._out, block, self._dtype)
        if not (self._out.flags.c_contiguous and self._out.flags.writeable):
            raise ValueError("out must be contiguous and writeable")
        # A half type is rounded once, at the end, as `GradientCode.encode` does.
        wide = _checks.compute_type(self._dtype)
        self._sum = self._out if wide == self._dtype else np.empty(block, wide)
        self._next = 0
        self._waiting: dict[int, Gradient] = {}

    def add(self, partition: int, gradient: Gradient) -> None:
        """Take the gradient of one partition.

        Parameters
        ----------
        partition : int
            One of this worker's, not added before.
        gradient : ndarray, shape (length,), or with a layout a sequence of ndarray of its shapes
            May be overwritten afterwards.
        """
        if partition not in self._partitions:
            raise ValueError(f"partition must be one of {list(self._partitions)}, not {partition!r}")
        turn = self._partitions.index(partition)
        if turn < self._next or turn in self._waiting:
            raise ValueError(f"partition {partition} was added already")
        if self._layout is None:
            _checks.message("gradient", gradient, self._length, self._dtype)
        elif (found := self._layout.flat("gradient", gradient)[0].dtype) != self._dtype:
            raise TypeError(f"gradient must have element type {self._dtype}, not {found}")
        if turn > self._next:
            self._waiting[turn] = gradient.copy() if isinstance(gradient, np.ndarray) else [t.copy() for t in gradient]
            return
        self._take(gradient)
        while self._next in self._waiting:
            self._take(self._waiting.pop(self._next))

    def _take(self, gradient: Gradient) -> None:
        turn = self._next
        encode: Callable[..., object] = kernels.encode if self._layout is None else self._layout.encode
        encode(self._coefficients[turn : turn + 1], [gradient], self._sum, accumulate=turn > 0)
        self._next += 1
        if self._next == len(self._partitions) and self._sum is not self._out:
            kernels.lincomb(((1.0,),), (self._sum,), (self._out,))

    def message(self) -> npt.NDArray[Any]:
        """The message, once every partition was added: `out` or the encoder's own array, which changes after `reset`.

        Raises
        ------
        ValueError
            Some partitions have not been added; the message names them.
        """
        if self._next < len(self._partitions):
            absent = [p for t, p in enumerate(self._partitions) if t >= self._next and t not in self._waiting]
            raise ValueError(f"message is not complete: partitions {absent} have not been added")
        return self._out

    def reset(self) -> None:
        """Begin the next message, in the same memory."""
        self._next = 0
        self._waiting.clear()


class Collector:
    """Takes messages as they arrive and decodes each group as soon as it can be. Made by `GradientCode.collector`.

    While some group still waits, every other group that can be decoded is, and the groups' results are added up along
    a fixed binary tree: the last message costs the decoding of its own group and a sum for each level of the tree. A
    group decoded early is decoded again if more of its workers answer, so the bits of the gradient depend on the set of
    survivors alone, and equal those of `GradientCode.decode`. Up to two buffers of `length` elements a group are kept
    for this, where there is more than one group; they are reused after `reset`.
    """

    def __init__(self, scheme: GradientCode, length: int, dtype: npt.DTypeLike) -> None:
        self._scheme = scheme
        self._length = _checks.integer("length", length, 1)
        self._expected = scheme.message_length(length)
        self._dtype = _checks.element_type("dtype", dtype)
        self._buffers: dict[tuple[int, int], npt.NDArray[Any]] = {}
        self._clear()

    def _clear(self) -> None:
        groups = len(self._scheme.groups)
        self._messages: dict[int, npt.NDArray[Any]] = {}
        self._masks = [0] * groups  # of the positions heard
        self._undecodable = set(range(groups))
        self._valid: set[tuple[int, int]] = set()  # nodes of the tree whose buffer holds the sum of groups lo … hi - 1
        self._frozen = False

    def add(self, worker: int, message: npt.NDArray[Any]) -> None:
        """Take a worker's message.

        Parameters
        ----------
        worker : int
            Not added since the last `reset`.
        message : ndarray, shape (message_length(length),)
            A reference is kept until `reset`: it must not change before.

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
        _checks.message("message", message, self._expected, self._dtype)
        self._messages[worker] = message
        self._masks[group] |= 1 << position
        if self._valid:
            self._forget(group)
        decodable = group not in self._undecodable
        try:
            if not decodable and self._scheme.decoder(group).is_decodable(self._masks[group]):
                self._undecodable.discard(group)
            if self._undecodable and group not in self._undecodable:
                self._climb(group)
        except BaseException:  # weights that overflow the element type, say
            del self._messages[worker]
            self._masks[group] ^= 1 << position
            if not decodable:
                self._undecodable.add(group)
            raise

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

    def gradient(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """The sum of all partitions' gradients. The set of survivors is fixed from here until `reset`.

        Parameters
        ----------
        out : ndarray, shape (length,), optional
            Must not overlap the messages.

        Returns
        -------
        ndarray, shape (length,)
            `out` where given, else a new array.

        Raises
        ------
        NotDecodableError
            Too few workers have answered; more may be added afterwards.
        """
        if self._undecodable:
            raise NotDecodableError(
                f"survivors {list(self.survivors)} do not determine the sum under {self._scheme.name}: "
                f"missing are {list(self.missing)}",
                self.survivors,
                self.missing,
            )
        if out is not None:
            for worker, message in self._messages.items():
                if np.may_share_memory(out, message):
                    raise ValueError(f"out must not overlap the message of worker {worker}")
        groups = len(self._scheme.groups)
        if groups == 1:
            result = self._decode(0, out)
        else:
            left, right = self._halves(0, groups)
            result = np.empty(self._length, self._dtype) if out is None else out
            _sum(self._node(*left), self._node(*right), result)
        self._frozen = True
        return result

    def reset(self) -> None:
        """Forget all messages and begin the next gradient."""
        self._clear()

    # The tree over groups: node (lo, hi) is the sum of the results of groups lo … hi - 1 -----------------------------

    @staticmethod
    def _halves(lo: int, hi: int) -> tuple[tuple[int, int], tuple[int, int]]:
        middle = (lo + hi) // 2  # the kernel's own rule: the bits of `decode` depend on it
        return (lo, middle), (middle, hi)

    def _path(self, group: int) -> list[tuple[int, int]]:
        """Nodes above and including the group's own, from the leaf up, without the root."""
        lo, hi = 0, len(self._scheme.groups)
        path = []
        while hi - lo > 1:
            left, right = self._halves(lo, hi)
            lo, hi = left if group < left[1] else right
            path.append((lo, hi))
        return path[::-1]

    def _forget(self, group: int) -> None:
        self._valid.difference_update(self._path(group))

    def _climb(self, group: int) -> None:
        """Decode the group now, and every sum above it whose other half is there."""
        for lo, hi in self._path(group):
            if hi - lo > 1 and not self._valid.issuperset(self._halves(lo, hi)):
                break
            self._node(lo, hi)

    def _node(self, lo: int, hi: int) -> npt.NDArray[Any]:
        if (lo, hi) not in self._buffers:
            self._buffers[lo, hi] = np.empty(self._length, _checks.compute_type(self._dtype))
        buffer = self._buffers[lo, hi]
        if (lo, hi) not in self._valid:
            if hi - lo == 1:
                self._decode(lo, buffer)
            else:
                left, right = self._halves(lo, hi)
                _sum(self._node(*left), self._node(*right), buffer)
            self._valid.add((lo, hi))
        return buffer

    def _decode(self, group: int, out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        members = self._scheme.groups[group]
        weights = self._scheme.patterns.weights((members.decoder, self._masks[group]))
        heard = [self._messages[worker] for worker in members.workers if worker in self._messages]
        return kernels.decode([weights], [heard], self._length, out)


def _sum(left: npt.NDArray[Any], right: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    kernels.lincomb(((1.0, 1.0),), (left, right), (out,))
