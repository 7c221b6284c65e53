"""Messages that contradict each other: seen, and told apart, where more workers have answered than are needed.

The clean messages of a group's survivors F, an element of each, are a word of the code that the survivors' rows of its
generator span. With δ_F the distance of that code, up to δ_F - 1 wrong messages give no such word, and up to
⌊(δ_F - 1) / 2⌋ can be told. What is computed of every column is its distance from the code: the length of ``H @ y``,
with the rows of H an orthonormal basis of what is orthogonal to the code. `kernels.decode_checked` makes these
syndromes together with the blocks and keeps the sums of their squares; the groups' are added up like their blocks,
each turned by an orthogonal matrix of its own. Rounding makes them noise, which `Noise` bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import ceil, comb, log2, sqrt
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
DYNAMIC_RANGE = 1024.0
"""A block's largest element counts as no smaller than the whole message's divided by this."""
UNDERFLOW = 2.0**-50
"""Syndromes smaller than this have squares that float32 may lose: they get the second look, in float64."""
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
    relative: float
    """Of the floor: times the largest element."""
    absolute: float


class _Pass(NamedTuple):
    """A first look at the messages of a survivor set: what the kernel needs, group by group."""

    groups: list[_Group]
    weights: list[Matrix]
    checks: list[Matrix]
    relative: npt.NDArray[np.float64]
    absolute: float
    """The sum over the groups."""


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
        self._parity = PatternCache(self._checks, lambda sets: (), maxsize=16_384)
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
        spares = [self._spares(g, mask) for g, mask in enumerate(masks)]
        rows = max(1, *spares)
        floors = [
            self._floor(g, mask, rows, dtype, noise)[0] if spare else 0.0
            for g, (mask, spare) in enumerate(zip(masks, spares, strict=True))
        ]
        found = {}
        for number, mask in enumerate(masks):
            group = self._data.groups[number]
            seen = np.linalg.norm(self._parity.weights((group.decoder, mask)), axis=0) if mask else ()
            for position, share in zip(positions_of(mask), seen, strict=True):
                visible = share > 1e-12  # else an error of this worker's looks like another gradient
                found[group.workers[position]] = float(2 * sum(floors) / share) if visible else float("inf")
        return dict(sorted(found.items()))

    def decode(
        self,
        messages: Mapping[int, Array],
        length: int,
        given: np.dtype[Any],
        out: Array | None,
        result_type: np.dtype[Any],
        approximate: bool | str,
        noise: Noise,
    ) -> Verified:
        """Decode as `GradientCode.decode` does, from messages that have been checked, leaving wrong ones out.

        Raises
        ------
        CorruptMessageError
            There are wrong messages, and it cannot be told which.
        """
        remaining = {worker: messages[worker] for worker in sorted(messages)}
        removed: dict[int, str] = {}
        while True:
            try:
                planned = self._passes(tuple(remaining), approximate, given, noise._replace(magnitude=0.0))
            except NotDecodableError:
                if not removed:
                    raise
                raise CorruptMessageError(
                    f"messages of workers {sorted(removed)} are wrong, and without them the others do not determine "
                    f"the sum under {self._scheme.name}",
                    sorted(messages),
                    sorted(removed),
                ) from None
            gradient, doubtful = _decoded(planned, remaining, length, noise)
            wrong: dict[int, str] = {}
            for group in planned.groups if doubtful else ():
                wrong |= self._wrong(group, doubtful, noise, messages, removed)
            if not wrong:
                if out is None and result_type == gradient.dtype:
                    out = gradient
                else:
                    out = np.empty(length, result_type) if out is None else out
                    kernels.lincomb(((1.0,),), (gradient,), (out,))
                return Verified(out, tuple(remaining), tuple(sorted(removed)))
            removed |= wrong
            for worker in wrong:
                del remaining[worker]

    # One pass --------------------------------------------------------------------------------------------------------

    def _planned(self, present: tuple[int, ...], approximate: bool | str, dtype: np.dtype[Any], noise: Noise) -> _Pass:
        """Over the groups that add to the gradient, those without spares too."""
        found = self._scheme.group_weights(present, approximate)
        rows = max([1, *(self._spares(number, mask) for number, mask, _ in found)])
        groups, matrices, checks = [], [], []
        for number, mask, weights in found:
            members = self._data.groups[number]
            workers = tuple(members.workers[position] for position in positions_of(mask))
            parity = self._parity.weights((members.decoder, mask))
            # Turned in a space of so many rows: added up, the groups' syndromes do not cancel.
            random = np.random.default_rng(number).standard_normal((rows, len(parity)))
            floor = self._floor(number, mask, rows, dtype, noise) if len(parity) else (0.0, 0.0)
            groups.append(_Group(number, mask, workers, *floor))
            matrices.append(weights)
            checks.append(np.linalg.qr(random)[0] @ parity)
        relative = np.array([group.relative for group in groups])
        return _Pass(groups, matrices, checks, relative, sum(group.absolute for group in groups))

    # Second look -----------------------------------------------------------------------------------------------------

    def _wrong(
        self,
        group: _Group,
        doubtful: list[int],
        noise: Noise,
        messages: Mapping[int, Array],
        removed: Mapping[int, str],
    ) -> dict[int, str]:
        """The workers of a group whose messages are wrong, and how it shows; none where the columns are clean."""
        sent = [messages[worker] for worker in group.workers]
        block = len(sent[0])
        columns = np.concatenate([np.arange(b * BLOCK, min((b + 1) * BLOCK, block)) for b in doubtful])
        wide = np.stack([message[columns].astype(np.float64) for message in sent])
        odd = ~np.isfinite(wide).all(axis=1)
        if odd.any():
            return {worker: "infinite" for worker, is_odd in zip(group.workers, odd, strict=True) if is_odd}
        key = self._data.groups[group.number].decoder, group.mask
        parity = self._parity.weights(key)
        if not len(parity):
            return {}
        syndromes = parity @ wide
        floors = group.absolute + group.relative * _largest(sent, wide, columns, noise)
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

    def _spares(self, group: int, mask: int) -> int:
        return len(self._parity.weights((self._data.groups[group].decoder, mask))) if mask else 0

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

    def _floor(self, group: int, mask: int, rows: int, dtype: np.dtype[Any], noise: Noise) -> tuple[float, float]:
        """The largest distance from the code that rounding explains: relative to the largest element, and absolute.

        Of q messages, each is rounded R times, relative to the sum of its terms' absolute values; its syndromes, rows
        of length 1, are chains of q steps, and the groups' are added up in a tree. See docs/maths.md.
        """
        compute = np.finfo(_checks.compute_type(dtype))
        unit = float(compute.eps) / 2
        members = self._data.groups[group]
        workers = [members.workers[position] for position in positions_of(mask)]
        count, columns = len(workers), self._checks[members.decoder].matrix.shape[1]
        load = max(len(self._data.assignment[worker]) for worker in workers)
        encoding = load * self._data.reduction + 1 + count + columns  # the last two: H itself, in float64
        reading = sqrt(rows) * (count + 2 + ceil(log2(len(self._data.groups))))
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


def _decoded(planned: _Pass, messages: Mapping[int, Array], length: int, noise: Noise) -> tuple[Array, list[int]]:
    """The gradient, and the blocks of columns that deserve a second look: all that exceed their floor, few others."""
    sent = [[messages[worker] for worker in group.workers] for group in planned.groups]
    gradient, energies, sizes = kernels.decode_checked(planned.weights, planned.checks, sent, length)
    with np.errstate(over="ignore", invalid="ignore"):
        # From a few columns of the messages: never above the true floors.
        least = np.maximum(sizes.max(axis=1, keepdims=True) / DYNAMIC_RANGE, noise.magnitude)
        floors = planned.relative @ np.maximum(sizes, least) + planned.absolute
        fine = (energies <= floors * floors) & np.isfinite(energies)  # floors may be infinite too
    if gradient.dtype == np.float32:
        fine &= floors > UNDERFLOW
    doubtful = [] if fine.all() else sorted({int(c) // (BLOCK // kernels.JUDGED) for c in np.flatnonzero(~fine)})
    return gradient, doubtful


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
    least = max(whole / DYNAMIC_RANGE, noise.magnitude) if np.isfinite(whole) else noise.magnitude
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
