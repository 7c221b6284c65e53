"""Gradient codes: who holds which partitions, what each worker sends, and how the sum comes back.

Worker i sends ``y_i = sum over j, u of E[i, j, u] * block u of gradient j``; for survivors F the master finds A with
``sum over i in F of A[u, i] * E[i, j, v] = [u = v]`` for every partition j, and block u of the sum is
``sum over i of A[u, i] * y_i`` (the general form of Ye and Abbe 2018; the grouped case is Kadhe, Koyluoglu and
Ramchandran 2020, arXiv 2005.07184).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastgc import _checks, kernels, storage
from fastgc.decoders import Decoder, Positions
from fastgc.errors import NotDecodableError
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
        gradients: npt.NDArray[Any] | Sequence[npt.NDArray[Any]],
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """The message of a worker.

        Parameters
        ----------
        worker : int
        gradients : ndarray, shape (len(assignment[worker]), length), or a sequence of 1-D arrays
            One gradient for each partition of ``assignment[worker]``, in that order, in float32, float64, float16 or
            bfloat16 (of ml_dtypes).
        out : ndarray, shape (message_length(length),), optional
            Must not overlap the gradients. Of their element type; gradients in float32 may also go out as float16 or
            bfloat16, and such gradients as float32.

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
        if len(gradients) != len(coefficients):
            raise ValueError(
                f"gradients must be {len(coefficients)}, one a partition of worker {worker}, not {len(gradients)}"
            )
        return kernels.encode(coefficients, gradients, out)

    def encoder(self, worker: int, length: int, dtype: npt.DTypeLike) -> Encoder:
        """A streaming encoder, which takes each gradient when it is ready and keeps none of them."""
        worker = _checks.integer("worker", worker, 0, self.workers - 1)
        return Encoder(self.assignment[worker], self.coefficients(worker), length, dtype)

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

        The bits of the result depend on the set of survivors and on nothing else.

        Parameters
        ----------
        messages : mapping from worker to ndarray, shape (message_length(length),)
            All of one element type.
        length : int
            Number of elements of a gradient.
        dtype : dtype, optional
            Of the result: the messages' own by default, else float32 for messages in float16 or bfloat16, and either of
            these for messages in float32.
        out : ndarray, shape (length,), optional
            Must not overlap the messages. Of the type `dtype`, or of one that it could be.

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
        present = sorted(_checks.members("messages", messages, self.workers))
        keys = self._keys(present)
        element_type = None
        for worker in present:
            element_type = _checks.message(f"messages[{worker}]", messages[worker], expected, element_type)
        if dtype is not None and element_type is not None:
            result_type = _checks.element_type("dtype", dtype)
            if not _checks.converts(element_type, result_type):
                raise TypeError(
                    f"messages[{present[0]}] must have an element type that converts to {result_type}, "
                    f"not {element_type}"
                )
            if out is None:
                out = np.empty(length, result_type)
            elif getattr(out, "dtype", None) != result_type:
                raise TypeError(f"out must have element type {result_type}, not {getattr(out, 'dtype', type(out))}")
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

    def __repr__(self) -> str:
        return (
            f"<GradientCode {self.name}: workers={self.workers}, partitions={self.partitions}, load={self.load}, "
            f"stragglers={self.stragglers}, reduction={self.reduction}{'' if self.exact else ', inexact'}>"
        )
