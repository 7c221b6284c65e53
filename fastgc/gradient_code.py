"""Gradient codes: who holds which partitions, what each worker sends, and how the sum comes back.

Worker i sends ``y_i = sum over j, u of E[i, j, u] * block u of gradient j``; for survivors F the master finds A with
``sum over i in F of A[u, i] * E[i, j, v] = [u = v]`` for every partition j, and block u of the sum is
``sum over i of A[u, i] * y_i`` (the general form of Ye and Abbe 2018; the grouped case is Kadhe, Koyluoglu and
Ramchandran 2020, arXiv 2005.07184).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastgc import _checks, kernels, storage
from fastgc.decoders import Decoder, Positions
from fastgc.errors import NotDecodableError
from fastgc.kernels._segments import segments
from fastgc.layout import Layout
from fastgc.patterns import Key, PatternCache, mask_of
from fastgc.storage import Group, SchemeData
from fastgc.streaming import Collector, Encoder


class GradientCode:
    """A gradient-coding scheme. Made by the functions of `fastgc.schemes`; immutable but for its pattern cache.

    Attributes
    ----------
    name : str
        Of the scheme and its parameters.
    workers, partitions : int
        Numbers of workers and of data partitions.
    load : int
        Largest number of partitions that a worker holds.
    stragglers : int
        Any so many workers may be missing and the sum is still exact (for inexact schemes: may be ignored).
    reduction : int
        A message has ``ceil(length / reduction)`` numbers.
    assignment : tuple of tuple of int
        The partitions of each worker, increasing.
    exact : bool
        False where decoding estimates the sum.
    patterns : PatternCache
        Decoding weights by survivor pattern.
    fingerprint : str
        SHA-256 over the scheme's data, 64 hexadecimal digits: equal for equal assignment, coefficients and decoding.
    """

    def __init__(self, data: SchemeData) -> None:
        self._data = data
        self.name = data.name
        self.workers = len(data.assignment)
        self.partitions = 1 + max(max(held) for held in data.assignment)
        self.load = max(len(held) for held in data.assignment)
        self.stragglers = data.stragglers
        self.reduction = data.reduction
        self.assignment = data.assignment
        self.exact = data.exact
        self.fingerprint = storage.fingerprint(data)
        self.patterns = PatternCache(data.decoders, self._keys)
        self._place = {
            worker: (number, position)
            for number, group in enumerate(data.groups)
            for position, worker in enumerate(group.workers)
        }

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of workers that are decoded apart, in index order."""
        return self._data.groups

    def decoder(self, group: int) -> Decoder:
        """How group number `group` is decoded."""
        return self._data.decoders[self._data.groups[group].decoder]

    def place(self, worker: int) -> tuple[int, int]:
        """The group of a worker and its position in the group."""
        return self._place[_checks.integer("worker", worker, 0, self.workers - 1)]

    def coefficients(self, worker: int) -> npt.NDArray[np.float64]:
        """Weights of a worker on the blocks of its partitions' gradients.

        Returns
        -------
        ndarray, shape (len(assignment[worker]), reduction), float64
            Read-only.
        """
        return self._data.coefficients[_checks.integer("worker", worker, 0, self.workers - 1)]

    def message_length(self, length: int) -> int:
        """Number of elements of a message for gradients of `length` elements: ``ceil(length / reduction)``."""
        return -(-_checks.integer("length", length, 1) // self.reduction)

    # Workers ---------------------------------------------------------------------------------------------------------

    def encode(
        self,
        worker: int,
        gradients: npt.NDArray[Any] | Sequence[npt.NDArray[Any]] | Sequence[Sequence[npt.NDArray[Any]]],
        out: npt.NDArray[Any] | None = None,
        *,
        layout: Layout | None = None,
    ) -> npt.NDArray[Any]:
        """The message of a worker.

        Parameters
        ----------
        worker : int
        gradients : ndarray, shape (len(assignment[worker]), length), or a sequence of 1-D arrays
            One gradient for each partition of ``assignment[worker]``, in that order; float32 or float64. With a
            `layout`, a sequence of lists of tensors.
        out : ndarray, shape (message_length(length),), optional
            Must not overlap the gradients.
        layout : Layout, optional
            Gradients are lists of tensors of these shapes, read where they lie.

        Returns
        -------
        ndarray, shape (message_length(length),)
            In the gradients' element type; `out` where given.

        Raises
        ------
        ValueError, TypeError
            A wrong worker, shape or element type; `out` is then untouched.
        """
        coefficients = self.coefficients(worker)
        if not hasattr(gradients, "__len__"):
            raise TypeError(f"gradients must be an array or a sequence of arrays, not {type(gradients).__name__}")
        if len(gradients) != len(coefficients):
            raise ValueError(
                f"gradients must be {len(coefficients)}, one a partition of worker {worker}, not {len(gradients)}"
            )
        if layout is not None:
            return layout.encode(coefficients, gradients, out)  # type: ignore[arg-type]  # it checks what it is given
        return kernels.encode(coefficients, gradients, out)  # type: ignore[arg-type]

    def encode_all(
        self, gradients: npt.NDArray[Any] | Sequence[npt.NDArray[Any]], out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[Any]:
        """The messages of all workers, for simulation and tests; the bits of `encode`.

        Workers that hold the same partitions are encoded together, so that their gradients are read once.

        Parameters
        ----------
        gradients : ndarray, shape (partitions, length), or a sequence of 1-D arrays
            The gradient of every partition.
        out : ndarray, shape (workers, message_length(length)), optional
            Must not overlap the gradients.

        Returns
        -------
        ndarray, shape (workers, message_length(length))
            `out` where given.

        Raises
        ------
        ValueError, TypeError
            A wrong shape or element type; `out` is then untouched.
        """
        if not hasattr(gradients, "__len__"):
            raise TypeError(f"gradients must be an array or a sequence of arrays, not {type(gradients).__name__}")
        if len(gradients) != self.partitions:
            raise ValueError(f"gradients must be {self.partitions}, one a partition, not {len(gradients)}")
        length = np.size(gradients[0])
        dtype = _checks.message("gradients[0]", gradients[0], length, None)
        for j, gradient in enumerate(gradients):
            _checks.message(f"gradients[{j}]", gradient, length, dtype)
        shape = (self.workers, self.message_length(length))
        if out is None:
            out = np.empty(shape, dtype)
        elif not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
            raise ValueError(f"out must be a {dtype} array of shape {shape}, not {getattr(out, 'shape', out)!r}")
        elif not (out.flags.c_contiguous and out.flags.writeable):
            raise ValueError("out must be contiguous and writeable")
        elif any(np.may_share_memory(out, gradient) for gradient in gradients):
            raise ValueError("out must not overlap the gradients")
        for worker, coefficients in enumerate(self._data.coefficients):  # before anything is written
            if np.abs(coefficients).max() > np.finfo(dtype).max:
                raise ValueError(f"coefficients of worker {worker} are not finite in {dtype}")
        together: dict[tuple[int, ...], list[int]] = {}
        for worker, held in enumerate(self.assignment):
            together.setdefault(held, []).append(worker)
        for held, workers in together.items():
            _encode_together(
                [self.coefficients(worker) for worker in workers],
                [gradients[j] for j in held],
                [out[worker] for worker in workers],
            )
        return out

    def encoder(
        self, worker: int, length: int | Layout, dtype: npt.DTypeLike, out: npt.NDArray[Any] | None = None
    ) -> Encoder:
        """A streaming encoder, which takes each gradient when it is ready and keeps none of them.

        Parameters
        ----------
        worker : int
        length : int or Layout
            With a `Layout` it takes gradients that are lists of tensors.
        dtype : dtype
        out : ndarray, shape (message_length(length),), optional
            Where messages are made, such as a buffer to send from.
        """
        worker = _checks.integer("worker", worker, 0, self.workers - 1)
        return Encoder(self.assignment[worker], self.coefficients(worker), length, dtype, out)

    # Master ----------------------------------------------------------------------------------------------------------

    def is_decodable(self, survivors: Iterable[int]) -> bool:
        """Whether these workers' messages give the sum."""
        return all(self.decoder(g).is_decodable(positions) for g, positions in enumerate(self._positions(survivors)))

    def decoding_weights(self, survivors: Iterable[int]) -> npt.NDArray[np.float64]:
        """The weights A on the survivors' messages.

        Parameters
        ----------
        survivors : iterable of int
            Distinct workers, in any order.

        Returns
        -------
        ndarray, shape (reduction, len(survivors)), float64
            Columns in the order of the *sorted* survivors. With more survivors than needed, those of least norm.

        Raises
        ------
        NotDecodableError
        """
        present = sorted(_checks.members("survivors", survivors, self.workers))
        weights = np.empty((self.reduction, len(present)))
        column = {worker: i for i, worker in enumerate(present)}
        by_group = self._positions(present)
        for group, positions, key in zip(self.groups, by_group, self._keys(present), strict=True):
            weights[:, [column[group.workers[p]] for p in positions]] = self.patterns.weights(key)
        return weights

    def condition_number(self, survivors: Iterable[int]) -> float:
        """How ill-conditioned decoding from these survivors is; infinite where it is impossible.

        The largest condition number of a group's surviving generator rows, where workers are grouped; else the
        `amplification`, which does not depend on how the scheme's encoding matrix is factored.
        """
        survivors = tuple(survivors) if isinstance(survivors, Iterator) else survivors
        if not self.is_decodable(survivors):
            return float("inf")
        numbers = [self.decoder(g).condition_number(p) for g, p in enumerate(self._positions(survivors))]
        known = [number for number in numbers if number is not None]
        return max(known) if len(known) == len(numbers) else self.amplification(survivors)

    def amplification(self, survivors: Iterable[int]) -> float:
        """c(F), the factor in the bound of the decoding error.

        ``max over u, j of sum over i of |A[u, i]| * sum over v of |E[i, j, v]|``: the error of the decoded sum is at
        most c(F) times the roundings times the machine epsilon, relative to the sum over partitions of the gradients'
        largest elements. Infinite where the set cannot be decoded.
        """
        present = sorted(_checks.members("survivors", survivors, self.workers))
        if not self.is_decodable(present):
            return float("inf")
        weights = np.abs(self.decoding_weights(present))
        sizes = np.zeros((len(present), self.partitions))
        for row, worker in enumerate(present):
            sizes[row, list(self.assignment[worker])] = np.abs(self.coefficients(worker)).sum(axis=1)
        return float((weights @ sizes).max())

    def decode(
        self,
        messages: Mapping[int, npt.NDArray[Any]],
        length: int,
        *,
        dtype: npt.DTypeLike | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """The sum of all partitions' gradients from the messages of the survivors.

        The bits of the result depend on the set of survivors and on nothing else (between machines they also need the
        same LAPACK where weights are not those of k rows of a grouped scheme's code).

        Parameters
        ----------
        messages : mapping from worker to ndarray, shape (message_length(length),)
            All of one element type.
        length : int
            Number of elements of a gradient.
        dtype : dtype, optional
            Of the result; the messages' by default, and the only one supported.
        out : ndarray, shape (length,), optional
            Must not overlap the messages.

        Returns
        -------
        ndarray, shape (length,)
            `out` where given.

        Raises
        ------
        NotDecodableError
            The survivors do not determine the sum; `missing` says who did not answer.
        ValueError, TypeError
            A wrong worker, length or element type; `out` is then untouched.
        """
        expected = self.message_length(length)
        if not isinstance(messages, Mapping):
            raise TypeError(f"messages must be a mapping from worker to array, not {type(messages).__name__}")
        present = sorted(_checks.members("messages", messages, self.workers))
        keys = self._keys(present)
        element_type = None if dtype is None else _checks.element_type("dtype", dtype)
        for worker in present:
            element_type = _checks.message(f"messages[{worker}]", messages[worker], expected, element_type)
        weights = [self.patterns.weights(key) for key in keys]
        grouped: list[list[npt.NDArray[Any]]] = [[] for _ in self.groups]
        for worker in present:
            grouped[self._place[worker][0]].append(messages[worker])
        return kernels.decode(weights, grouped, length, out)

    def collector(self, length: int, dtype: npt.DTypeLike) -> Collector:
        """A streaming master, which decodes every group as soon as it can be."""
        return Collector(self, length, dtype)

    def key(self, group: int, positions: Positions) -> Key:
        """The pattern of a group's survivors, as the cache knows it."""
        return self.groups[group].decoder, mask_of(positions)

    def _positions(self, survivors: Iterable[int]) -> list[Positions]:
        """Sorted in-group positions of the survivors, for each group."""
        by_group: list[list[int]] = [[] for _ in self.groups]
        for worker in sorted(_checks.members("survivors", survivors, self.workers)):
            group, position = self._place[worker]
            by_group[group].append(position)
        return [tuple(positions) for positions in by_group]

    def _keys(self, survivors: Iterable[int]) -> list[Key]:
        """Each group's pattern, or NotDecodableError."""
        present = tuple(sorted(survivors))
        by_group = self._positions(present)
        for g, positions in enumerate(by_group):
            if not self.decoder(g).is_decodable(positions):
                workers = self.groups[g].workers
                absent = [w for p, w in enumerate(workers) if p not in positions]
                raise NotDecodableError(
                    f"survivors {list(present)} do not determine the sum under {self.name}: of workers "
                    f"{list(workers)} missing are {absent}, and any {self.decoder(g).tolerated} may be",
                    present,
                    tuple(w for w in range(self.workers) if w not in present),
                )
        return [self.key(g, positions) for g, positions in enumerate(by_group)]

    # A scheme is data ------------------------------------------------------------------------------------------------

    def save(self, file: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the scheme as ``.npz`` (plain arrays, no pickle); `fastgc.schemes.load` reads it back bit for bit.

        Random streams may differ between NumPy versions: machines that must agree share the data, not the seed.
        """
        storage.save(self._data, file)

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        file = BytesIO()
        self.save(file)
        return _from_bytes, (file.getvalue(),)

    def __repr__(self) -> str:
        return (
            f"<GradientCode {self.name}: workers={self.workers}, partitions={self.partitions}, load={self.load}, "
            f"stragglers={self.stragglers}, reduction={self.reduction}{'' if self.exact else ', inexact'}>"
        )


def _encode_together(
    coefficients: Sequence[npt.NDArray[np.float64]],
    gradients: Sequence[npt.NDArray[Any]],
    out: Sequence[npt.NDArray[Any]],
) -> None:
    """Messages of workers with the same partitions: every element is the chain that `fastgc.kernels.encode` makes."""
    matrix = np.stack(coefficients)
    for columns, present in segments(len(gradients[0]), matrix.shape[2]):
        block = len(out[0])
        inputs = [g[u * block :][columns] for g in gradients for u in range(present)]
        kernels.lincomb(matrix[:, :, :present].reshape(len(out), -1), inputs, [row[columns] for row in out])


def _from_bytes(content: bytes) -> GradientCode:
    """Undo ``GradientCode.__reduce__``, for copies and other processes; the pattern cache starts empty."""
    return GradientCode(storage.load(BytesIO(content)))
