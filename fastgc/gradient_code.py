"""Gradient codes: who holds which partitions, what each worker sends, and how the sum comes back.

Worker i sends ``y_i = sum over j, u of E[i, j, u] * block u of gradient j``; for survivors F the master finds A with
``sum over i in F of A[u, i] * E[i, j, v] = [u = v]`` for every partition j, and block u of the sum is
``sum over i of A[u, i] * y_i`` (the general form of Ye and Abbe 2018; the grouped case is Kadhe, Koyluoglu and
Ramchandran 2020, arXiv 2005.07184).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from typing import IO, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from fastgc import _checks, arrays, kernels, parts, rounding, storage
from fastgc.approximate import Approximation
from fastgc.decoders import Decoder, Positions, mask_of
from fastgc.errors import NotDecodableError
from fastgc.kernels._segments import segments
from fastgc.layout import Layout
from fastgc.patterns import Key, PatternCache
from fastgc.storage import Group, SchemeData
from fastgc.streaming import Collector, Encoder
from fastgc.survivors import Survivors, SurvivorSets
from fastgc.verification import Noise, Verifiable, Verified, Verifier


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
    reductions : tuple of int
        Those that there is a code for over this assignment, increasing: `with_reduction`. Of most schemes one alone.
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
        self._others = {other.reduction: GradientCode(other) for other in data.others}
        self.reductions = tuple(sorted((data.reduction, *self._others)))
        self.fingerprint = storage.fingerprint(data)
        self._sets = SurvivorSets(data)
        self.patterns = PatternCache(data.decoders, self.workers, self._sets.keys)
        # At hand where they are half the time.
        self._known, self._pattern_weights = self._sets.known, self.patterns.weights

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of workers that are decoded apart, in index order."""
        return self._data.groups

    def decoder(self, group: int) -> Decoder:
        """How group number `group` is decoded."""
        return self._data.decoders[self._data.groups[group].decoder]

    def place(self, worker: int) -> tuple[int, int]:
        """The group of a worker and its position in the group."""
        return self._sets.places[_checks.integer("worker", worker, 0, self.workers - 1)]

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

    def with_reduction(self, reduction: int) -> GradientCode:
        """The scheme of the same assignment under another reduction, with a pattern cache of its own.

        Parameters
        ----------
        reduction : int
            One of `reductions`.
        """
        if reduction == self.reduction:
            return self
        if (other := self._others.get(reduction)) is None:
            has = ", ".join(map(str, self.reductions))
            raise ValueError(f"reduction must be one that {self.name} has a code for, {has}, not {reduction!r}")
        return other

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
        gradients : array, shape (len(assignment[worker]), length), or a sequence of 1-D arrays
            One gradient for each partition of ``assignment[worker]``, in that order, in float32, float64, float16 or
            bfloat16 (of ml_dtypes), of any library (`fastgc.arrays`). With a `layout`, a sequence of lists of tensors.
        out : array, shape (message_length(length),), optional
            Must not overlap the gradients. Of their element type; gradients in float32 may also go out as float16 or
            bfloat16, and such gradients as float32.
        layout : Layout, optional
            Gradients are lists of tensors of these shapes, read where they lie.

        Returns
        -------
        array, shape (message_length(length),)
            In the gradients' element type, of their library and on their device; `out` where given.

        Raises
        ------
        ValueError, TypeError
            A wrong worker, shape or element type; `out` is then untouched.
        """
        coefficients = self.coefficients(worker)
        if (given := _count(gradients)) != len(coefficients):
            raise ValueError(f"gradients must be {len(coefficients)}, one a partition of worker {worker}, not {given}")
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
        gradients : array, shape (partitions, length), or a sequence of 1-D arrays
            The gradient of every partition.
        out : array, shape (workers, message_length(length)), optional
            Must not overlap the gradients.

        Returns
        -------
        array, shape (workers, message_length(length))
            `out` where given.

        Raises
        ------
        ValueError, TypeError
            A wrong shape or element type; `out` is then untouched.
        """
        if (given := _count(gradients)) != self.partitions:
            raise ValueError(f"gradients must be {self.partitions}, one a partition, not {given}")
        where = arrays.origin_of_rows("gradients", gradients)
        rows = where.rows("gradients", gradients)
        length = rows[0].size
        dtype = _checks.message("gradients[0]", rows[0], length, None)
        for j, row in enumerate(rows):
            _checks.message(f"gradients[{j}]", row, length, dtype)
        shape = (self.workers, self.message_length(length))
        for worker, coefficients in enumerate(self._data.coefficients):  # before anything is written
            if np.abs(coefficients).max() > np.finfo(dtype).max:
                raise ValueError(f"coefficients of worker {worker} are not finite in {dtype}")

        def run(made: npt.NDArray[Any]) -> npt.NDArray[Any]:
            if getattr(made, "shape", None) != shape or made.dtype != dtype:
                raise ValueError(f"out must be a {dtype} array of shape {shape}, not {getattr(made, 'shape', made)!r}")
            _checks.output("out", made)
            if any(arrays.overlap(made, row) for row in rows):
                raise ValueError("out must not overlap the gradients")
            together: dict[tuple[int, ...], list[int]] = {}
            for worker, held in enumerate(self.assignment):
                together.setdefault(held, []).append(worker)
            for held, workers in together.items():
                _encode_together(
                    [self.coefficients(worker) for worker in workers],
                    [rows[j] for j in held],
                    [made[worker] for worker in workers],
                )
            return made

        return where.compute(run, lambda: (shape, dtype), out)  # type: ignore[no-any-return]

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
        out : array, shape (message_length(length),), optional
            Where messages are made, such as a buffer to send from.
        """
        worker = _checks.integer("worker", worker, 0, self.workers - 1)
        return Encoder(self.assignment[worker], self.coefficients(worker), length, dtype, out)

    # Partial stragglers ----------------------------------------------------------------------------------------------

    def in_parts(self, count: int) -> GradientCode:
        """This scheme where workers send a message after each of `count` parts of their work.

        Part t is slice t of every partition, coded as the whole is. So the sum is there as soon as every part can be
        decoded, each from its own survivors, and what a worker has done of its work by then is used, whether it ever
        finishes or not.

        Parameters
        ----------
        count : int
            1 is the scheme itself.

        Returns
        -------
        GradientCode
            Its ``workers * count`` "workers" are the messages: number ``worker * count + t`` is `worker`'s on part t.
            Its partition ``j * count + t`` is slice t of partition j.

        Notes
        -----
        A message is as long as without parts, so who finishes everything sends `count` times as much.
        """
        count = _checks.integer("count", count, 1)
        return self if count == 1 else GradientCode(parts.split(self._data, count))

    def part_order(self, worker: int, count: int) -> tuple[int, ...]:
        """The order in which a worker should do `count` parts, so that workers together have all of them early.

        In a group of z workers of which any m decode, all equally fast, the sum is there after ``ceil(m * count / z)``
        parts, where it takes all `count` if everybody begins with the same.

        Parameters
        ----------
        worker : int
        count : int

        Returns
        -------
        tuple of int
            A permutation of 0 … count - 1.
        """
        group, position = self.place(worker)
        return parts.order(position, len(self.groups[group].workers), _checks.integer("count", count, 1))

    # Master ----------------------------------------------------------------------------------------------------------

    def is_decodable(self, survivors: Iterable[int]) -> bool:
        """Whether these workers' messages give the sum."""
        return self._sets.is_decodable(_checks.members("survivors", survivors, self.workers))

    def decoding_weights(self, survivors: Iterable[int]) -> npt.NDArray[np.float64]:
        """The weights A on the survivors' messages.

        Parameters
        ----------
        survivors : iterable of int
            Distinct workers, in any order.

        Returns
        -------
        ndarray, shape (reduction, len(survivors)), float64
            Read-only. Columns in the order of the *sorted* survivors. With more survivors than needed, those of least
            norm.

        Raises
        ------
        NotDecodableError
        """
        found = self._known(survivors) or self._sets.learn("survivors", survivors)
        # What has comprehensions is apart: each call would make cells for what they share, a tenth of its time.
        return self._joined(found) if found.alone is None else self._pattern_weights(found.alone)

    def _joined(self, found: Survivors) -> npt.NDArray[np.float64]:
        """The weights of all groups in one matrix, or NotDecodableError."""
        own = self._weights(found)
        columns = {worker: column for column, worker in enumerate(found.workers)}
        weights = np.empty((self.reduction, len(columns)))
        for members, part in zip(found.members, own, strict=True):
            weights[:, [columns[worker] for worker in members]] = part
        weights.setflags(write=False)
        return weights

    def condition_number(self, survivors: Iterable[int]) -> float:
        """How ill-conditioned decoding from these survivors is; infinite where it is impossible.

        The largest condition number of a group's surviving generator rows, where workers are grouped; else the
        `amplification`, which does not depend on how the scheme's encoding matrix is factored.
        """
        present = _checks.members("survivors", survivors, self.workers)
        if not self._sets.is_decodable(present):
            return float("inf")
        numbers = [self.decoder(g).condition_number(mask) for g, mask in enumerate(self._sets.masks(present))]
        known = [number for number in numbers if number is not None]
        return max(known) if len(known) == len(numbers) else self.amplification(present)

    def amplification(self, survivors: Iterable[int]) -> float:
        """c(F), the factor in the bound of the decoding error.

        ``max over u, j of sum over i of |A[u, i]| * sum over v of |E[i, j, v]|``: the error of the decoded sum is at
        most c(F) times the roundings times the machine epsilon, relative to the sum over partitions of the gradients'
        largest elements. Infinite where the set cannot be decoded.
        """
        present = sorted(_checks.members("survivors", survivors, self.workers))
        return self._paths(present).amplification() if self.is_decodable(present) else float("inf")

    def error_bound(
        self,
        survivors: Iterable[int],
        dtype: npt.DTypeLike,
        *,
        result: npt.DTypeLike | None = None,
        probabilistic: bool = False,
    ) -> float:
        """The factor c in ``max |decoded - sum| <= c * sum over partitions of max |gradient|``.

        Known before anything is sent: it depends on the scheme, the survivors and the element types alone. It holds as
        long as nothing overflows or underflows; of float16, whose smallest normal number is 6e-5, see to that.

        Parameters
        ----------
        survivors : iterable of int
        dtype : dtype
            Of the messages. Gradients are of that type, or float32 where it is float16 or bfloat16.
        result : dtype, optional
            Of the decoded sum, as `decode` takes it; by default the messages' own.
        probabilistic : bool
            Instead of what roundings can do at worst, what they do if they are independent with mean zero: the bound
            grows with the root of their number, and an element exceeds it with a chance of 3e-8 (Higham and Mary 2019,
            *A New Approach to Probabilistic Rounding Error Analysis*). By no means rigorous: roundings are not random.

        Returns
        -------
        float
            Infinite where the set cannot be decoded. Of schemes that are not exact, it covers the estimate's error too.

        Raises
        ------
        TypeError
            No element type, or messages of `dtype` do not decode to `result`.
        """
        present = sorted(_checks.members("survivors", survivors, self.workers))
        message = _checks.element_type("dtype", dtype)
        decoded = message if result is None else _checks.element_type("result", result)
        if not _checks.converts(message, decoded):
            raise TypeError(f"result must be an element type that {message} decodes to, not {decoded}")
        if not self.is_decodable(present):
            return float("inf")
        return rounding.bound(self._paths(present), message, decoded, probabilistic=probabilistic)

    def _paths(self, present: list[int]) -> rounding.Paths:
        """What decides the error of decoding from these workers, who can be decoded."""
        coefficients = np.zeros((len(present), self.partitions, self.reduction))
        chains: list[list[int]] = [[] for _ in self.groups]
        for row, worker in enumerate(present):
            coefficients[row, list(self.assignment[worker])] = self.coefficients(worker)
            chains[self._sets.places[worker][0]].append(row)
        return rounding.Paths(
            weights=self.decoding_weights(present),
            coefficients=coefficients,
            encoding=self.load * self.reduction,
            chains=tuple(np.array(rows, dtype=np.intp) for rows in chains),
        )

    def approximation_error(self, survivors: Iterable[int], approximate: bool | str = True) -> float:
        """How far off an estimate from these survivors can be: ``||A E_F - 1 (x) I||_2``.

        The estimate differs from the sum, in the Euclidean norm and but for rounding, by at most this times the root of
        the sum of the gradients' squared norms; and by as much for some gradients. It depends on who has answered
        alone, and is 0 where the sum is determined.

        Parameters
        ----------
        survivors : iterable of int
            None at all are allowed: the error of nothing.
        approximate : bool or str
            The estimate, as in `decode`.

        Raises
        ------
        NotDecodableError
            With ``approximate=False``, under an exact scheme.
        ValueError
            As in `decode`.
        """
        present = sorted(_checks.members("survivors", survivors, self.workers))
        masks = self._sets.masks(present)
        if not present:
            return self._approximation.error(masks, [None] * len(masks))
        weights: list[npt.NDArray[np.float64] | None] = [None] * len(masks)
        for group, _, own in self.group_weights(present, approximate):
            weights[group] = own
        return self._approximation.error(masks, weights)

    def verifiable(self, survivors: Iterable[int]) -> Verifiable:
        """How many wrong messages of any group ``decode(..., verify=True)`` notices, and how many it finds.

        Parameters
        ----------
        survivors : iterable of int

        Returns
        -------
        Verifiable
            ``detectable``, δ_F - 1, and ``correctable``, ⌊(δ_F - 1) / 2⌋, of the weakest group, and both for each of
            the ``groups``. δ_F is the distance of the code punctured to the survivors; where finding it takes more than
            a million subsets of a group, it is bounded from below by the code's own distance less the missing.
        """
        return self._verifier.verifiable(self._sets.masks(_checks.members("survivors", survivors, self.workers)))

    def detection_floor(
        self, survivors: Iterable[int], dtype: npt.DTypeLike, *, noise: Noise | None = None
    ) -> dict[int, float]:
        """How large an error of one worker's message must be to be noticed for certain by ``verify=True``.

        Parameters
        ----------
        survivors : iterable of int
        dtype : dtype
            Of the messages.
        noise : Noise, optional
            Without its `scale`.

        Returns
        -------
        dict
            For each survivor the least error of an element, relative to the largest element of its group's messages
            among the 32,768 columns around it (or a thousandth of their largest of all, where that is more). Infinite
            where the worker's errors cannot be told from another gradient.
        """
        noise = noise or Noise()
        if noise.scale is not None:
            raise ValueError(f"noise must leave scale alone: the floor is then absolute; not {noise.scale}")
        masks = self._sets.masks(_checks.members("survivors", survivors, self.workers))
        return self._verifier.detection_floor(masks, _checks.element_type("dtype", dtype), noise)

    @overload
    def decode(
        self,
        messages: Mapping[int, npt.NDArray[Any]],
        length: int,
        *,
        dtype: npt.DTypeLike | None = None,
        out: npt.NDArray[Any] | None = None,
        approximate: bool | str = False,
        verify: Literal[False] = False,
    ) -> npt.NDArray[Any]: ...
    @overload
    def decode(
        self,
        messages: Mapping[int, npt.NDArray[Any]],
        length: int,
        *,
        dtype: npt.DTypeLike | None = None,
        out: npt.NDArray[Any] | None = None,
        approximate: bool | str = False,
        verify: Literal[True] | Noise,
    ) -> Verified: ...
    @overload
    def decode(
        self,
        messages: Mapping[int, npt.NDArray[Any]],
        length: int,
        *,
        dtype: npt.DTypeLike | None = None,
        out: npt.NDArray[Any] | None = None,
        approximate: bool | str = False,
        verify: bool | Noise,
    ) -> npt.NDArray[Any] | Verified: ...
    def decode(
        self,
        messages: Mapping[int, npt.NDArray[Any]],
        length: int,
        *,
        dtype: npt.DTypeLike | None = None,
        out: npt.NDArray[Any] | None = None,
        approximate: bool | str = False,
        verify: bool | Noise = False,
    ) -> npt.NDArray[Any] | Verified:
        """The sum of all partitions' gradients from the messages of the survivors.

        The bits of the result depend on the set of survivors and on nothing else (between machines they also need the
        same LAPACK where the survivors' rows of the generator are dependent and the sum is determined all the same,
        and for estimates).

        Parameters
        ----------
        messages : mapping from worker to array, shape (message_length(length),)
            All of one element type and library, and on one device.
        length : int
            Number of elements of a gradient.
        dtype : dtype, optional
            Of the result: the messages' own by default, else float32 for messages in float16 or bfloat16, and either of
            these for messages in float32.
        out : array, shape (length,), optional
            Must not overlap the messages. Of the type `dtype`, or of one that it could be.
        approximate : bool or {"optimal", "one_step", "unbiased"}
            Estimate the sum where the survivors do not determine it; `approximation_error` says how well. True and
            ``"optimal"``: with the least error for the worst gradients; the sum itself, with the bits of an exact
            decoding, where it is determined, and biased towards zero where not. ``"one_step"``: the weights of a
            decoding from all workers, times workers / survivors (Charles, Papailiopoulos and Ellenberg 2017).
            ``"unbiased"``: the groups that can be decoded, each divided by the probability that it can. The straggler
            model of both: every set of as many survivors is equally likely, as with delays that are independent and
            alike. The estimate's mean over it is the sum (for `one_step` under a scheme that is not exact: where every
            partition is held by equally many).
        verify : bool or Noise
            See whether the messages agree, and leave out those that are found to be wrong: at most
            `verifiable` of a group. What is known of their rounding may be given as a `Noise`. A result in `out` is a
            copy more.

        Returns
        -------
        array, shape (length,)
            Of the messages' library and on their device; `out` where given. With `verify` a `Verified`: ``gradient``,
            ``survivors``, whose messages alone it is made of (its bits are those of decoding these), and ``corrupt``,
            the workers that were left out.

        Raises
        ------
        NotDecodableError
            The survivors do not determine the sum; `missing` says who did not answer. With `approximate`: there are
            none.
        CorruptMessageError
            With `verify`: the messages contradict each other, and which are wrong cannot be told.
        ValueError, TypeError
            A wrong worker, length or element type, or an unknown `approximate`; `out` is then untouched.
        """
        length = _checks.integer("length", length, 1)
        if not isinstance(messages, (dict, Mapping)):  # of a dict it is known in a tenth of the time
            raise TypeError(f"messages must be a mapping from worker to array, not {type(messages).__name__}")
        found = self._known(messages) or self._sets.learn("messages", messages)
        present = found.workers
        where: arrays.Origin = arrays.NUMPY
        if present and not isinstance(messages[present[0]], np.ndarray):
            where = arrays.origin(f"messages[{present[0]}]", messages[present[0]])
            if not where.native:
                decoded: npt.NDArray[Any] | Verified
                decoded = self._decode_views(where, messages, length, dtype, out, approximate, verify)
                return decoded
            if verify is not False and where.backend is not None:
                raise ValueError(f"verify: expected False for messages of {where}: what verifies works on the host")
        if verify is not False and present:
            given = _checks.message(f"messages[{present[0]}]", messages[present[0]], self.message_length(length), None)
            result_type = given if dtype is None else _checks.element_type("dtype", dtype)
            if dtype is None and isinstance(out, np.ndarray) and _checks.converts(given, out.dtype):
                result_type = out.dtype
            self._check_types(present[0], given, result_type)
            _check_out(out, length, result_type, messages)
            noise = Noise() if verify is True else verify
            try:
                return self._verifier.decode(messages, present, length, given, out, result_type, approximate, noise)
            except (TypeError, ValueError):
                self._check_messages(messages, length)  # which names the worker
                raise
        if approximate is False:
            if found.undecodable is not None:
                raise self._sets.not_decodable(present, found.undecodable)
        else:
            groups = self.group_weights(present, approximate)
        if dtype is not None:
            result_type = _checks.element_type("dtype", dtype)
            self._check_types(present[0], self._check_messages(messages, length), result_type)
            if out is None:
                out = where.empty(length, result_type)
            elif getattr(out, "dtype", None) != result_type:
                raise TypeError(f"out must have element type {result_type}, not {getattr(out, 'dtype', type(out))}")
        try:
            if approximate is False:
                return kernels.decode_by_pattern(
                    self._pattern_weights, found.keys, found.members, messages, length, out
                )
            return _decode_groups(groups, found, messages, length, out)
        except (TypeError, ValueError):
            self._check_messages(messages, length)  # which names the worker
            raise

    def _decode_views(
        self,
        where: arrays.Origin,
        messages: Mapping[int, Any],
        length: int,
        dtype: npt.DTypeLike | None,
        out: Any,
        approximate: bool | str,
        verify: bool | Noise,
    ) -> Any:
        """`decode` of messages that are not what the kernels see."""
        views = {worker: where.view(f"messages[{worker}]", message) for worker, message in messages.items()}
        wanted = next(iter(views.values())).dtype if dtype is None else _checks.element_type("dtype", dtype)
        verified: list[Verified] = []

        def run(made: npt.NDArray[Any]) -> npt.NDArray[Any]:
            result = self.decode(views, length, dtype=dtype, out=made, approximate=approximate, verify=verify)
            if not isinstance(result, Verified):
                return result
            verified.append(result)
            return result.gradient

        gradient = where.compute(run, lambda: (length, wanted), out)
        return verified[0]._replace(gradient=gradient) if verified else gradient

    def group_weights(
        self, present: Sequence[int], approximate: bool | str = False
    ) -> list[tuple[int, int, npt.NDArray[np.float64]]]:
        """For each group that adds to a decoding its number, the mask of its survivors and their weights.

        Parameters
        ----------
        present : sequence of int
            Sorted survivors, checked.
        approximate : bool or str
            As in `decode`.
        """
        found = self._sets.of("survivors", present)
        masks = found.masks
        if approximate is False:
            return [(g, mask, own) for g, (mask, own) in enumerate(zip(masks, self._weights(found), strict=True))]
        if not present:
            raise NotDecodableError(f"nobody has answered under {self.name}", (), range(self.workers))
        weights = self._approximation.weights(masks, "optimal" if approximate is True else approximate)
        adding = [(g, mask, own) for g, (mask, own) in enumerate(zip(masks, weights, strict=True)) if own is not None]
        # An estimate of nothing is zero, and the kernel wants a group.
        return adding or self._nothing(masks)

    def _weights(self, found: Survivors) -> list[npt.NDArray[np.float64]]:
        """Each group's weights, or NotDecodableError."""
        if found.undecodable is not None:
            raise self._sets.not_decodable(found.workers, found.undecodable)
        return list(map(self._pattern_weights, found.keys))

    def _nothing(self, masks: Sequence[int]) -> list[tuple[int, int, npt.NDArray[np.float64]]]:
        group, mask = next((g, mask) for g, mask in enumerate(masks) if mask)
        return [(group, mask, np.zeros((self.reduction, mask.bit_count())))]

    @property
    def approximations(self) -> PatternCache:
        """The cache of least-error weights, of patterns that cannot be decoded."""
        return self._approximation.patterns

    @cached_property
    def _approximation(self) -> Approximation:
        return Approximation(self._data, self.patterns)

    @cached_property
    def _verifier(self) -> Verifier:
        return Verifier(self, self._data)

    def _check_messages(self, messages: Mapping[int, npt.NDArray[Any]], length: int) -> np.dtype[Any]:
        """The element type of the messages, all of one, for gradients of a length."""
        expected, element_type = self.message_length(length), None
        for worker in sorted(messages):
            element_type = _checks.message(f"messages[{worker}]", messages[worker], expected, element_type)
        assert element_type is not None
        return element_type

    @staticmethod
    def _check_types(worker: int, given: np.dtype[Any], result: np.dtype[Any]) -> None:
        if not _checks.converts(given, result):
            raise TypeError(f"messages[{worker}] must have an element type that converts to {result}, not {given}")

    def collector(self, length: int, dtype: npt.DTypeLike) -> Collector:
        """A streaming master, which takes messages as they come and knows when they are enough."""
        return Collector(self, length, dtype)

    def key(self, group: int, positions: Positions) -> Key:
        """The pattern of a group's survivors, as the cache knows it."""
        return self.groups[group].decoder, mask_of(positions)

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


def _count(gradients: Any) -> int:
    """How many gradients there are, in an array or a sequence of them."""
    if hasattr(gradients, "__len__"):
        return len(gradients)
    if not arrays.is_array(gradients):
        raise TypeError(f"gradients must be an array or a sequence of arrays, not {type(gradients).__name__}")
    return len(arrays.view("gradients", gradients))  # the array API standard gives arrays no length


def with_others(name: str, first: GradientCode, others: Iterable[GradientCode]) -> GradientCode:
    """`first` with others over its assignment, of other reductions, as one scheme."""
    return GradientCode(replace(first._data, name=name, others=tuple(other._data for other in others)))


def _decode_groups(
    groups: Sequence[tuple[int, int, npt.NDArray[np.float64]]],
    found: Survivors,
    messages: Mapping[int, npt.NDArray[Any]],
    length: int,
    out: npt.NDArray[Any] | None,
) -> npt.NDArray[Any]:
    """The gradient from some of the groups, each given as its number, its mask and its weights."""
    # Not in `decode`, for the reason given in `decoding_weights`.
    sent = [[messages[worker] for worker in found.members[group]] for group, _, _ in groups]
    return kernels.decode([weights for _, _, weights in groups], sent, length, out)


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


def _check_out(
    out: npt.NDArray[Any] | None, length: int, dtype: np.dtype[Any], messages: Mapping[int, npt.NDArray[Any]]
) -> None:
    """That a result can be written there, before anything is computed."""
    if out is None:
        return
    _checks.message("out", out, length, dtype)
    _checks.output("out", out)
    for worker, message in messages.items():
        if np.may_share_memory(out, message):
            raise ValueError(f"out must not overlap messages[{worker}]")


def _from_bytes(content: bytes) -> GradientCode:
    """Undo ``GradientCode.__reduce__``, for copies and other processes; the pattern cache starts empty."""
    return GradientCode(storage.load(BytesIO(content)))
