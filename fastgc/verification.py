"""Messages that contradict each other: seen, and told apart, where more workers have answered than are needed.

The clean messages of a group's survivors F, an element of each, are a word of the code that the survivors' rows of its
generator span. With δ_F the distance of that code, up to δ_F - 1 wrong messages give no such word, and up to
⌊(δ_F - 1) / 2⌋ can be told. What is computed of every column is its distance from the code: the length of ``H @ y``,
with the rows of H an orthonormal basis of what is orthogonal to the code. `kernels.decode_checked` makes these
syndromes together with the blocks and adds up their squares. Rounding makes them noise, which `Noise` bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import comb, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import _checks, kernels, linalg
from fastgc.approximate import problem_of
from fastgc.codes import LinearCode
from fastgc.decoders import LinearDecoder, positions_of
from fastgc.errors import CorruptMessageError, NotDecodableError
from fastgc.patterns import PatternCache

if TYPE_CHECKING:
    from fastgc.gradient_code import GradientCode
    from fastgc.storage import SchemeData

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]

BLOCK = 32_768
"""Columns that are judged together: the noise is relative to the largest element among them."""
CANCELLATION = 64.0
"""How many times larger than the largest element of a block of messages the terms of their sums are taken to be."""
MOST_COLUMNS = 64
"""Wrong columns that supports are tried on, before all are."""
MOST_SUPPORTS = 20_000


class Noise(NamedTuple):
    """How far from the code clean messages may be: what is known of them beyond their own size.

    Without `scale` the floor is relative to the messages of a block, whose terms are taken to be at most `CANCELLATION`
    times larger. With it, the floor is a bound, and no clean message ever exceeds it.
    """

    scale: float | None = None
    """A bound on the sum over any worker's partitions of the gradients' largest absolute elements."""
    magnitude: float = 0.0
    """A size that messages are known to have had, where they may be smaller now because gradients cancel."""
    dtype: npt.DTypeLike | None = None
    """An element type that messages were rounded to on their way."""
    rounding: float = 0.0
    """At most how far other than by that, relative to its message's largest, an element was moved on its way."""


class Verifiable(NamedTuple):
    """How many wrong messages of any group can be dealt with."""

    detectable: int
    """δ_F - 1 of the weakest group: so many are noticed, whichever they are."""
    correctable: int
    """⌊(δ_F - 1) / 2⌋ of the weakest group: so many are found, and the gradient is decoded without them."""
    groups: tuple[tuple[int, int], ...]
    """Both numbers for each group."""


class Verified(NamedTuple):
    """A gradient from messages that agree."""

    gradient: Array
    """With the bits of `GradientCode.decode` from `survivors` alone."""
    survivors: tuple[int, ...]
    """The workers whose messages were used, increasing."""
    corrupt: tuple[int, ...]
    """The workers whose messages were wrong, increasing."""


class _Checks:
    """The parity checks of patterns of a code."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    def basis(self, mask: int) -> tuple[Matrix, Matrix]:
        """Orthonormal columns that span the survivors' code, and rows that span what is orthogonal to it."""
        rows = self.matrix[list(positions_of(mask))]
        length = np.linalg.norm(rows, axis=0)
        left, values, _ = np.linalg.svd(rows / np.where(length > 0, length, 1.0))
        rank = int(np.count_nonzero(linalg.significant(values, *rows.shape)))
        return left[:, :rank], left[:, rank:].T

    def batched_weights(self, masks: Sequence[int]) -> list[Matrix]:
        """H of each, shape (spares, positions)."""
        return [self.basis(mask)[1] for mask in masks]


class _Group(NamedTuple):
    """A group's part in a decoding: what depends on who has answered."""

    number: int
    mask: int
    workers: tuple[int, ...]


class _Pass(NamedTuple):
    """A first look at the messages of a survivor set: what the kernel needs, group by group."""

    groups: list[_Group]
    weights: list[Matrix]
    checks: list[Matrix]
    floors: Matrix
    """Shape (groups, 2): what each one's syndromes may be, times its largest element and beside that."""


class Verifier:
    """What a scheme can say about messages.

    Parameters
    ----------
    scheme : GradientCode
    data : SchemeData
    """

    def __init__(self, scheme: GradientCode, data: SchemeData) -> None:
        self._scheme = scheme
        self._data = data
        first = {group.decoder: number for number, group in reversed(list(enumerate(data.groups)))}
        self._checks = [
            _Checks(d.code.generator if isinstance(d, LinearDecoder) else problem_of(data, first[number]).matrix)
            for number, d in enumerate(data.decoders)
        ]
        self._parity = PatternCache(self._checks, scheme.workers, lambda sets: (), maxsize=16_384)
        self.distance = lru_cache(maxsize=16_384)(self._distance)
        self._passes = lru_cache(maxsize=1024)(self._planned)
        # Of each worker the largest sum of absolute coefficients on one partition.
        self._sizes = [float(np.abs(scheme.coefficients(w)).sum(axis=1).max()) for w in range(scheme.workers)]

    def verifiable(self, masks: Sequence[int]) -> Verifiable:
        """See `GradientCode.verifiable`."""
        spare = [self.distance(self._data.groups[g].decoder, mask) - 1 if mask else 0 for g, mask in enumerate(masks)]
        each = tuple((number, number // 2) for number in spare)
        return Verifiable(min(spare), min(spare) // 2, each)

    def detection_floor(self, masks: Sequence[int], dtype: np.dtype[Any], noise: Noise) -> dict[int, float]:
        """See `GradientCode.detection_floor`."""
        found = {}
        for number, mask in enumerate(masks):
            group = self._data.groups[number]
            parity = self._parity.weights((group.decoder, mask)) if mask else np.empty((0, 0))
            floor = self._floor(number, mask, dtype, noise)[0] if len(parity) else 0.0
            seen = np.linalg.norm(parity, axis=0)
            for position, share in zip(positions_of(mask), seen, strict=True):
                visible = share > 1e-12  # else an error of this worker's looks like another gradient
                found[group.workers[position]] = float(2 * floor / share) if visible else float("inf")
        return dict(sorted(found.items()))

    def decode(
        self,
        messages: Mapping[int, Array],
        present: tuple[int, ...],
        length: int,
        given: np.dtype[Any],
        out: Array | None,
        result_type: np.dtype[Any],
        approximate: bool | str,
        noise: Noise,
    ) -> Verified:
        """Decode as `GradientCode.decode` does, from the messages of the sorted survivors, leaving wrong ones out.

        Raises
        ------
        CorruptMessageError
            There are wrong messages, and it cannot be told which.
        """
        remaining = present
        removed: dict[int, str] = {}
        known = noise if noise.magnitude == 0 else noise._replace(magnitude=0.0)
        while True:
            try:
                planned = self._passes(remaining, approximate, given, known)
            except NotDecodableError:
                if not removed:
                    raise
                raise CorruptMessageError(
                    f"messages of workers {sorted(removed)} are wrong, and without them the others do not determine "
                    f"the sum under {self._scheme.name}",
                    sorted(messages),
                    sorted(removed),
                ) from None
            sent = [[messages[worker] for worker in group.workers] for group in planned.groups]
            gradient, doubtful = kernels.decode_checked(
                planned.weights, planned.checks, sent, length, planned.floors, noise.magnitude
            )
            wrong: dict[int, str] = {}
            if doubtful:
                blocks = sorted({stretch * kernels.JUDGED // BLOCK for stretch in doubtful})
                for group, floor in zip(planned.groups, planned.floors.tolist(), strict=True):
                    wrong |= self._wrong(group, floor, blocks, noise, messages, removed)
            if not wrong:
                if out is None and result_type == gradient.dtype:
                    out = gradient
                else:
                    out = np.empty(length, result_type) if out is None else out
                    kernels.lincomb(((1.0,),), (gradient,), (out,))
                return Verified(out, remaining, tuple(sorted(removed)))
            removed |= wrong
            remaining = tuple(worker for worker in remaining if worker not in wrong)

    # One pass --------------------------------------------------------------------------------------------------------

    def _planned(self, present: tuple[int, ...], approximate: bool | str, dtype: np.dtype[Any], noise: Noise) -> _Pass:
        """Over the groups that add to the gradient, those without spares too."""
        groups, matrices, checks, floors = [], [], [], []
        for number, mask, weights in self._scheme.group_weights(present, approximate):
            members = self._data.groups[number]
            workers = tuple(members.workers[position] for position in positions_of(mask))
            parity = self._parity.weights((members.decoder, mask))
            groups.append(_Group(number, mask, workers))
            matrices.append(weights)
            if len(parity):
                checks.append(parity)
                floors.append(self._floor(number, mask, dtype, noise))
            else:  # zero times what is not finite is not zero
                checks.append(np.zeros((1, len(workers))))
                floors.append((0.0, 1.0))
        return _Pass(groups, matrices, checks, np.array(floors))

    # Second look -----------------------------------------------------------------------------------------------------

    def _wrong(
        self,
        group: _Group,
        floor: Sequence[float],
        blocks: list[int],
        noise: Noise,
        messages: Mapping[int, Array],
        removed: Mapping[int, str],
    ) -> dict[int, str]:
        """The workers of a group whose messages are wrong, and how it shows; none where the columns are clean."""
        sent = [messages[worker] for worker in group.workers]
        block = len(sent[0])
        columns = np.concatenate([np.arange(b * BLOCK, min((b + 1) * BLOCK, block)) for b in blocks])
        wide = np.stack([message[columns].astype(np.float64) for message in sent])
        odd = ~np.isfinite(wide).all(axis=1)
        if odd.any():
            return {worker: "infinite" for worker, is_odd in zip(group.workers, odd, strict=True) if is_odd}
        key = self._data.groups[group.number].decoder, group.mask
        parity = self._parity.weights(key)
        if not len(parity):
            return {}
        syndromes = parity @ wide
        relative, absolute = floor
        floors = absolute + relative * _largest(sent, wide, columns, noise)
        excess = np.linalg.norm(syndromes, axis=0) / np.maximum(floors, np.finfo(np.float64).tiny)
        bad = np.flatnonzero(excess > 1)
        if not len(bad):
            return {}
        before = [kind for worker, kind in removed.items() if self._scheme.place(worker)[0] == group.number]
        original = sum(1 << self._scheme.place(w)[1] for w in messages if self._scheme.place(w)[0] == group.number)
        # An erasure costs one of the distance, an error two.
        budget = (self.distance(key[0], original) - 1 - before.count("infinite")) // 2 - before.count("wrong")
        order = bad[np.argsort(-excess[bad], kind="stable")]
        found = _supports(parity, syndromes[:, order], floors[order], budget)
        if len(found) == 1:
            return {group.workers[position]: "wrong" for position in found[0]}
        suspects = sorted({group.workers[p] for support in found for p in support}) or list(group.workers)
        raise CorruptMessageError(
            f"messages of workers {list(group.workers)} contradict each other under {self._scheme.name}, and which are "
            f"wrong cannot be told among workers {suspects}",
            sorted(messages),
            suspects,
        )

    # Codes -----------------------------------------------------------------------------------------------------------

    def _distance(self, decoder: int, mask: int) -> int:
        """δ_F of a group's survivors; where it takes too long to find, the bound that puncturing leaves."""
        basis, parity = self._checks[decoder].basis(mask)
        if not len(parity):
            return 1
        own = self._data.decoders[decoder]
        missing = own.workers - mask.bit_count()
        if isinstance(own, LinearDecoder) and own.target is None and own.code.is_mds:
            return len(parity) + 1
        try:
            return LinearCode(basis, name="survivors").distance
        except ValueError:
            if isinstance(own, LinearDecoder) and own.target is None:
                return max(1, own.code.distance - missing)
            raise

    def _floor(self, group: int, mask: int, dtype: np.dtype[Any], noise: Noise) -> tuple[float, float]:
        """The largest distance from the code that rounding explains: relative to the largest element, and absolute.

        Of q messages, each is rounded R times, relative to the sum of its terms' absolute values; its syndromes, rows
        of length 1, are chains of q steps. See docs/maths.md.
        """
        compute = np.finfo(_checks.compute_type(dtype))
        unit = float(compute.eps) / 2
        members = self._data.groups[group]
        workers = [members.workers[position] for position in positions_of(mask)]
        count, columns = len(workers), self._checks[members.decoder].matrix.shape[1]
        load = max(len(self._data.assignment[worker]) for worker in workers)
        encoding = load * self._data.reduction + 1 + count + columns  # the last two: H itself, in float64
        spares = len(self._parity.weights((members.decoder, mask)))
        reading = sqrt(spares) * (count + 2)
        tiny, half = float(compute.tiny), 0.0
        sent = np.dtype(dtype if noise.dtype is None else noise.dtype)
        if sent != _checks.compute_type(dtype):
            half, least = _rounding(sent)
            tiny += least
        half += noise.rounding
        absolute = sqrt(count) * (encoding + reading) * tiny
        if noise.scale is not None:
            size = sqrt(sum(self._sizes[worker] ** 2 for worker in workers)) * noise.scale
            return 0.0, absolute + (unit * (encoding + reading) + half) * size
        return sqrt(count) * (unit * (encoding * CANCELLATION + reading) + half), absolute


def _rounding(sent: np.dtype[Any]) -> tuple[float, float]:
    """The unit roundoff and the smallest positive number of a type that messages were rounded to."""
    if _checks.is_bfloat16(sent):
        return 2.0**-8, 2.0**-133
    info = np.finfo(sent)
    return float(info.eps) / 2, float(info.smallest_subnormal)


def _largest(sent: list[Array], wide: Matrix, columns: npt.NDArray[np.intp], noise: Noise) -> Matrix:
    """For each of some columns the size that its noise is relative to: the largest element of its block, at least."""
    numbers = columns // BLOCK
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    largest = np.maximum.reduceat(np.abs(wide).max(axis=0), starts)
    with np.errstate(invalid="ignore"):
        whole = max(float(np.fmax.reduce(np.abs(message.astype(np.float64)))) for message in sent)
    least = max(whole / kernels.DYNAMIC_RANGE, noise.magnitude) if np.isfinite(whole) else noise.magnitude
    sizes = np.maximum(largest, least)
    return np.asarray(np.repeat(sizes, np.diff(starts, append=len(columns))))


def _supports(parity: Matrix, syndromes: Matrix, floors: Matrix, most: int) -> list[tuple[int, ...]]:
    """The smallest sets of at most so many positions whose errors explain all syndromes up to the floors."""
    for size in range(1, most + 1):
        if comb(parity.shape[1], size) > MOST_SUPPORTS:
            return []
        found = [
            support
            for support in combinations(range(parity.shape[1]), size)
            if _explains(parity[:, support], syndromes[:, :MOST_COLUMNS], floors[:MOST_COLUMNS])
            and _explains(parity[:, support], syndromes, floors)
        ]
        if found:
            return found
    return []


def _explains(checks: Matrix, syndromes: Matrix, floors: Matrix) -> bool:
    left, values, _ = np.linalg.svd(checks, full_matrices=False)
    basis = left[:, values > 1e-10]
    return bool((np.linalg.norm(syndromes - basis @ (basis.T @ syndromes), axis=0) <= floors).all())
