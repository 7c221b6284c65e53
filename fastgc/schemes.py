"""Gradient-coding schemes: each a choice of who holds which partitions and what is sent."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, islice
from math import comb, pi
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastgc import _checks, codes, linalg, shares, storage
from fastgc._optimized import LONGEST_IN_TABLE
from fastgc.approximate_schemes import (
    bernoulli,
    bibd,
    erasure_head,
    expander,
    from_assignment,
    margulis,
    stochastic_block,
)
from fastgc.codes import LinearCode
from fastgc.decoders import CHECKED_SETS, LinearDecoder, ScaledSum
from fastgc.gradient_code import GradientCode, with_others
from fastgc.storage import Group, SchemeData, freeze

__all__ = [
    "SCHEMES",
    "adaptive",
    "bernoulli",
    "bibd",
    "cyclic_mds",
    "cyclic_repetition",
    "erasure_head",
    "expander",
    "fractional_repetition",
    "from_assignment",
    "from_coefficients",
    "grouped",
    "heterogeneous",
    "ignore_stragglers",
    "load",
    "margulis",
    "polynomial",
    "polynomial_gaussian",
    "stochastic_block",
    "uncoded",
]

Matrix = npt.NDArray[np.float64]

DIRECTIONS = 200
"""Tried by `heterogeneous`, whose code is the better for it; more gain little."""

ILL_CONDITIONED = 1e-3
"""A constructor warns when a promised survivor set has a condition number times eps above this."""


# The framework --------------------------------------------------------------------------------------------------------


def grouped(
    workers: int,
    load: int | None = None,
    reduction: int | None = None,
    *,
    code: LinearCode | str | None = None,
    uneven: bool = False,
    seed: int = 0,
    speeds: npt.ArrayLike | None = None,
    partitions: int | None = None,
) -> GradientCode:
    """Groups of workers under a linear code: Kadhe, Koyluoglu and Ramchandran 2020, arXiv 2005.07184.

    The workers form ``workers / load`` groups. Each worker of a group holds the group's `load` partitions, adds their
    gradients up, and sends the combination of the sum's `reduction` blocks that its row of the [load, reduction] code
    names. Any ``distance - 1`` workers may straggle; with an MDS code that is ``load - reduction``, the optimum.

    Parameters
    ----------
    workers : int
    load, reduction : int, optional
        Block length and dimension of the code; may be left out where `code` is a `LinearCode`.
    code : LinearCode or str, optional
        A code, or the name of a family in `fastgc.codes.FAMILIES`; ``"optimized"`` by default: for
        every size the best conditioned of them.
    uneven : bool
        Allow a `load` that does not divide `workers`: ``ceil(workers / load)`` groups, as equal as possible. A smaller
        group of z workers holds z partitions under a [z, reduction] code of the family, or the first z rows of `code`.
        `stragglers` is then the smallest group's promise, and the scheme's load the largest group's size: three groups
        of 3 for 9 workers under load 4.
    seed : int
        Of the Gaussian family.
    speeds : array_like, shape (workers,), optional
        Relative speeds of the workers. Groups are then of workers alike, and hold partitions in proportion to the speed
        of their slowest worker, so that all groups are through at the same time whoever straggles. `load` is the size
        of a group, the load of the scheme the largest number of partitions that a worker holds.
    partitions : int, optional
        With `speeds`, into how many partitions of equal size the data are cut; at least one a group. By default as few
        as serve the speeds well.

    Raises
    ------
    ValueError
        `load` does not divide `workers` (the message names the nearest numbers that work), a code that contradicts
        `load` or `reduction`, or a numerically singular code.
    """
    workers = _checks.integer("workers", workers, 1)
    _checks.integer("seed", seed, 0)
    if isinstance(code, LinearCode):
        for name, given, own in (("load", load, code.n), ("reduction", reduction, code.k)):
            if given is not None and given != own:
                raise ValueError(f"{name} must be {own}, as the code has it, or left out; not {given!r}")
        load, reduction = code.n, code.k
    elif load is None or reduction is None:
        raise ValueError("load and reduction must be given where code is not a LinearCode")
    load = _checks.integer("load", load, 1)
    if load > workers:
        raise ValueError(f"load must be at most the number of workers, {workers}, not {load}")
    reduction = _checks.integer("reduction", reduction, 1, load)
    if not uneven:
        _require_multiple(workers, load, "load")
    count = -(-workers // load)
    sizes = [workers // count + (g < workers % count) for g in range(count)]
    if min(sizes) < reduction:
        raise ValueError(
            f"reduction must be at most {min(sizes)}, the smallest group of {workers} workers under load {load}, "
            f"not {reduction}"
        )
    code_of = {size: _code_for(size, reduction, code, seed) for size in sorted(set(sizes))}
    label = code_of[max(sizes)].name if isinstance(code, LinearCode) else str(code or "optimized")
    name = f"grouped({workers}, load={load}, reduction={reduction}, code={label}"
    if speeds is None:
        if partitions is not None:
            raise ValueError(
                f"partitions must be left out without speeds: they are as many as workers, not {partitions}"
            )
        return _from_groups(name + ")", _in_order(sizes), sizes, code_of)
    relative = shares.checked(speeds, workers)
    members = _alike(relative, sizes)
    slowest = [min(relative[worker] for worker in group) for group in members]
    if partitions is None:
        partitions = shares.chosen_partitions(slowest, 1, workers)
    held = shares.apportioned(slowest, _checks.integer("partitions", partitions, len(members)), partitions)
    return _from_groups(f"{name}, speeds={shares.described(relative)})", members, held, code_of)


def _in_order(sizes: list[int]) -> list[tuple[int, ...]]:
    """Groups of neighbours."""
    ends = np.cumsum(sizes).tolist()
    return [tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def _alike(speeds: list[float], sizes: list[int]) -> list[tuple[int, ...]]:
    """Groups of workers of like speed, from the slowest: no others have a larger sum of slowest members."""
    order = sorted(range(len(speeds)), key=lambda worker: (speeds[worker], worker))
    return [tuple(sorted(order[place] for place in group)) for group in _in_order(sizes)]


def adaptive(workers: int, load: int, *, code: str | None = None, uneven: bool = False, seed: int = 0) -> GradientCode:
    """`grouped` under every reduction at once: the data stay where they are, the reduction may change at any iteration.

    Who holds what depends on `load` alone, so each reduction m from 1 to the size of the smallest group is but another
    [load, m] code over the same assignment: ``scheme.with_reduction(m)``, which tolerates ``load - m`` stragglers under
    an MDS code. The scheme itself is the one of reduction 1. Saved, fingerprinted and sent to workers as a whole.

    Parameters
    ----------
    workers, load : int
    code : str, optional
        The name of a family in `fastgc.codes.FAMILIES`, ``"optimized"`` by default.
    uneven : bool
    seed : int
        As `grouped` takes them.

    Raises
    ------
    ValueError
        As `grouped`; and a code that is no family, since there has to be one for every reduction.
    """
    if not isinstance(code, str | None):
        raise ValueError(f"code must be one of {', '.join(codes.FAMILIES)}, not {code!r}")
    first = grouped(workers, load, 1, code=code, uneven=uneven, seed=seed)
    smallest = min(len(group.workers) for group in first.groups)
    others = [grouped(workers, load, m, code=code, uneven=uneven, seed=seed) for m in range(2, smallest + 1)]
    name = f"adaptive({workers}, load={load}, code={code or 'optimized'})"
    return with_others(name, first, others)


def _code_for(size: int, reduction: int, code: LinearCode | str | None, seed: int) -> LinearCode:
    if isinstance(code, LinearCode):
        if size == code.n:
            return code
        punctured = code.generator[:size]
        if linalg.rank(punctured) < reduction:
            raise ValueError(f"code must keep rank {reduction} in its first {size} rows, for the smaller groups")
        return codes.from_generator(punctured)
    family = "optimized" if code is None else code
    if not isinstance(family, str) or family not in codes.FAMILIES:
        raise ValueError(f"code must be a LinearCode or one of {', '.join(codes.FAMILIES)}, not {code!r}")
    options: dict[str, Any] = {"seed": seed} if family == "gaussian" else {}
    return codes.FAMILIES[family](size, reduction, **options)


def _from_groups(
    name: str, members: list[tuple[int, ...]], held: list[int], code_of: dict[int, LinearCode]
) -> GradientCode:
    """Groups of these workers, each with so many partitions."""
    decoders = {size: LinearDecoder(code, code.distance - 1) for size, code in code_of.items()}
    numbers = list(decoders)
    groups, assignment, coefficients = [], {}, {}
    for workers, own in zip(members, _in_order(held), strict=True):
        groups.append(Group(workers, numbers.index(len(workers))))
        for worker, row in zip(workers, code_of[len(workers)].generator, strict=True):
            assignment[worker], coefficients[worker] = own, np.tile(row, (len(own), 1))
    used = [decoders[len(workers)] for workers in members]
    order = range(len(assignment))
    return _checked(
        SchemeData(
            name=name,
            assignment=tuple(assignment[worker] for worker in order),
            coefficients=freeze([coefficients[worker] for worker in order]),
            groups=tuple(groups),
            decoders=tuple(decoders.values()),
            stragglers=min(decoder.tolerated for decoder in used),
            reduction=used[0].reduction,
            exact=True,
        )
    )


def uncoded(workers: int) -> GradientCode:
    """Every worker holds one partition and sends its gradient; all must answer."""
    workers = _checks.integer("workers", workers, 1)
    return _from_groups(f"uncoded({workers})", _in_order([1] * workers), [1] * workers, {1: codes.repetition(1)})


def ignore_stragglers(workers: int, stragglers: int) -> GradientCode:
    """Uncoded, but the master goes on without the last `stragglers` workers.

    The result is the survivors' sum times workers / survivors, an estimate (`exact` is False), and any non-empty set of
    survivors can be decoded.
    """
    workers, stragglers = _promise(workers, stragglers)
    return GradientCode(
        SchemeData(
            name=f"ignore_stragglers({workers}, {stragglers})",
            assignment=tuple((i,) for i in range(workers)),
            coefficients=freeze([np.ones((1, 1))] * workers),
            groups=(Group(tuple(range(workers)), 0),),
            decoders=(ScaledSum(workers, stragglers),),
            stragglers=stragglers,
            reduction=1,
            exact=False,
        )
    )


def fractional_repetition(workers: int, stragglers: int) -> GradientCode:
    """Groups of ``stragglers + 1`` workers that all send the group's plain sum (Tandon et al. 2017, section 3.1).

    Raises
    ------
    ValueError
        ``stragglers + 1`` does not divide `workers`; the message names the nearest numbers that work.
    """
    workers, stragglers = _promise(workers, stragglers)
    size = stragglers + 1
    _require_multiple(workers, size, "stragglers + 1")
    name = f"fractional_repetition({workers}, {stragglers})"
    sizes = [size] * (workers // size)
    return _from_groups(name, _in_order(sizes), sizes, {size: codes.repetition(size)})


# Schemes over all workers: worker i holds partitions i … i + load - 1, cyclically -------------------------------------


def cyclic_repetition(workers: int, stragglers: int, *, seed: int = 0) -> GradientCode:
    """Random cyclic code of load ``stragglers + 1`` (Tandon et al. 2017, algorithm 2).

    The rows of the encoding matrix lie in the null space of a random `stragglers` x `workers` matrix H whose rows sum
    to zero; any ``workers - stragglers`` of them span that space, which holds the all-ones vector.
    """
    n, s = _promise(workers, stragglers)
    h = np.random.default_rng(_checks.integer("seed", seed, 0)).standard_normal((s, n))
    if s:
        h[:, -1] = -h[:, :-1].sum(axis=1)
    encoding = np.zeros((n, n))
    for i in range(n):
        rest = (i + 1 + np.arange(s)) % n
        encoding[i, i] = 1.0
        encoding[i, rest] = -np.linalg.solve(h[:, rest], h[:, i])
    basis = np.linalg.qr(h.T, mode="complete")[0][:, s:] if s else np.eye(n)
    return _cyclic(
        f"cyclic_repetition({n}, {s}, seed={seed})",
        encoding[:, :, None],
        s,
        generator=encoding @ basis,
        target=basis.sum(axis=0)[None, :],
    )


def cyclic_mds(workers: int, stragglers: int) -> GradientCode:
    """Deterministic cyclic code of load ``stragglers + 1`` (Raviv, Tandon, Dimakis and Tamo 2018).

    The rows are the cyclic shifts of a polynomial whose roots are `stragglers` consecutive `workers`-th roots of unity
    around -1. They come in conjugate pairs, so that the code is real, only where ``workers - stragglers`` is odd.

    Raises
    ------
    ValueError
        ``workers - stragglers`` is even; the message names neighbours that work.
    """
    n, s = _promise(workers, stragglers)
    if (n - s) % 2 == 0:
        near = [v for v in (s - 1, s + 1) if 0 <= v < n]
        raise ValueError(
            f"workers - stragglers must be odd for a real cyclic MDS code, not {n} - {s} = {n - s}: "
            f"take stragglers {' or '.join(map(str, near))}, or workers {n - 1} or {n + 1}"
        )
    half = (n - s - 1) // 2
    roots = np.exp(2j * pi * np.arange(half + 1, half + 1 + s) / n)
    row = np.real(np.poly(roots)) if s else np.ones(1)
    row /= row.sum()  # the columns of the encoding matrix then sum to 1
    encoding = np.zeros((n, n))
    for i in range(n):
        encoding[i, (i + np.arange(s + 1)) % n] = row
    angles = 2 * pi * np.outer(np.arange(n), np.arange(1, half + 1)) / n
    fourier = np.hstack([np.full((n, 1), np.sqrt(0.5)), np.cos(angles), np.sin(angles)]) * np.sqrt(2.0 / n)
    fourier[np.abs(fourier) < 1e-14] = 0.0  # sin(pi) is 1e-16 and would count as a column once columns are scaled
    target = np.zeros((1, n - s))  # the columns' sums
    target[0, 0] = np.sqrt(n)
    return _cyclic(f"cyclic_mds({n}, {s})", encoding[:, :, None], s, generator=fourier, target=target)


def polynomial(workers: int, stragglers: int, reduction: int = 1) -> GradientCode:
    """Ye and Abbe 2018, section III, with the points ``±(1 + i/2)`` of their section V; load is stragglers + reduction.

    Worker i sends values at its point of polynomials of degree below ``workers - stragglers``, built so that those of a
    partition vanish at the points of all workers without it; the gradient's blocks are their leading coefficients. Each
    worker's coefficients are scaled to a largest one of 1.
    """
    n, s, m = _promise_with_reduction(workers, stragglers, reduction)
    d = s + m
    points = codes.ye_abbe_points(n)
    encoding = np.zeros((n, n, m))
    for j in range(n):
        holders = (j - np.arange(d)) % n
        others = np.setdiff1d(np.arange(n), holders)
        first = np.poly(points[others])[::-1] if len(others) else np.ones(1)  # coefficients, lowest degree first
        values = np.prod(points[holders][:, None] - points[others], axis=1)
        encoding[holders, j, 0] = values
        current, current_values = first, values
        for u in range(1, m):
            # x p_(u-1) - c p_0, where c is the coefficient that keeps the window of leading coefficients a unit vector.
            c = current[n - d - 1] if n > d else 0.0
            current = np.concatenate([[0.0], current])
            current[: len(first)] -= c * first
            current_values = points[holders] * current_values - c * values
            encoding[holders, j, u] = current_values
    # A worker's row may have any scale. As they are, they reach 1e14 at (20, 3, 3) and overflow float32 at (40, 3, 3).
    encoding /= np.abs(encoding).max(axis=(1, 2), keepdims=True)
    # The encoding is the Vandermonde matrix times the polynomials' coefficients, but a set's weights solved with that
    # matrix miss what is sent by |A| |V| |W| eps: 1 % at (20, 3, 3), all digits at (26, 3, 3). Its own columns do not.
    matrix = encoding.reshape(n, -1)
    chosen = linalg.independent_columns(matrix)
    target = np.tile(np.eye(m), (1, n))[:, chosen]
    return _cyclic(f"polynomial({n}, {s}, {m})", encoding, s, generator=matrix[:, chosen], target=target)


def polynomial_gaussian(workers: int, stragglers: int, reduction: int = 1, *, seed: int = 0) -> GradientCode:
    """Ye and Abbe's scheme with a random Gaussian matrix in place of the Vandermonde one (their section IV)."""
    n, s, m = _promise_with_reduction(workers, stragglers, reduction)
    generator = np.random.default_rng(_checks.integer("seed", seed, 0)).standard_normal((n, n - s))
    target = np.eye(n - s)[n - s - m :]
    holders = [(j - np.arange(s + m)) % n for j in range(n)]
    encoding = _encoding(generator, target, holders, [_free(generator, own) for own in holders])
    return _cyclic(f"polynomial_gaussian({n}, {s}, {m}, seed={seed})", encoding, s, generator=generator, target=target)


def _free(generator: Matrix, holders: npt.NDArray[np.int64]) -> Matrix:
    """The directions on which workers without a partition have no weight, (k, k - others)."""
    others = np.setdiff1d(np.arange(len(generator)), holders)
    if not len(others):
        return np.eye(generator.shape[1])
    return np.linalg.qr(generator[others].T, mode="complete")[0][:, len(others) :]


def _encoding(
    generator: Matrix, target: Matrix, holders: Sequence[npt.NDArray[np.int64]], free: Sequence[Matrix]
) -> npt.NDArray[np.float64]:
    """Messages are ``generator @ X`` for a sum X over partitions, each of which has the free directions of its holders
    alone, in the basis that the target reads the gradient's blocks from."""
    encoding = np.zeros((len(generator), len(holders), len(target)))
    for j, (own, directions) in enumerate(zip(holders, free, strict=True)):
        encoding[own, j] = generator[own] @ np.linalg.solve((target @ directions).T, directions.T).T
    return encoding


def _cyclic(
    name: str, encoding: npt.NDArray[np.float64], stragglers: int, *, generator: Matrix, target: Matrix
) -> GradientCode:
    """A scheme of one group: ``encoding[i, j, u]``, zero but for j = i … i + load - 1, and its factorisation."""
    n, _, m = encoding.shape
    assignment = tuple(tuple(sorted((i + t) % n for t in range(stragglers + m))) for i in range(n))
    return _as_one_group(name, assignment, encoding, stragglers, generator, target)


def _as_one_group(
    name: str,
    assignment: tuple[tuple[int, ...], ...],
    encoding: npt.NDArray[np.float64],
    stragglers: int,
    generator: Matrix,
    target: Matrix,
) -> GradientCode:
    return _checked(
        SchemeData(
            name=name,
            assignment=assignment,
            coefficients=freeze([encoding[i, list(held)] for i, held in enumerate(assignment)]),
            groups=(Group(tuple(range(len(assignment))), 0),),
            decoders=(LinearDecoder(LinearCode(generator, name=name), stragglers, target),),
            stragglers=stragglers,
            reduction=len(target),
            exact=True,
        ),
        stacklevel=6,
    )


# Workers of different speed -------------------------------------------------------------------------------------------


def heterogeneous(
    workers: int,
    stragglers: int,
    reduction: int = 1,
    *,
    speeds: npt.ArrayLike | None = None,
    partitions: int | None = None,
    seed: int = 0,
) -> GradientCode:
    """Partitions in proportion to the workers' speeds, each held by ``stragglers + reduction`` workers.

    So all workers are through at the same time as long as nobody straggles, and any `stragglers` may. The allocation is
    that of Wang et al. 2019 (*Heterogeneity-aware Gradient Coding for Straggler Tolerance*, arXiv 1901.09339): arcs of
    a circle of partitions, one after the other. Their code, for a reduction of 1, is a random one. Here it is Ye and
    Abbe's of 2018, section IV, over these arcs: for a reduction of 1 it has weights of the same family, and it shortens
    messages as well. In the place of random numbers it has the generator of `fastgc.codes.optimized`, up to
    16 workers, and of `DIRECTIONS` random directions that the sum can be read from the one that amplifies least.

    Parameters
    ----------
    workers : int
    stragglers : int
    reduction : int
    speeds : array_like, shape (workers,), optional
        Relative speeds, positive; all alike by default. Who is so fast that it would hold a partition twice holds each
        once, and the others share the rest.
    partitions : int, optional
        Into how many partitions of equal size the data are cut: more come closer to the speeds, and cost a call of the
        model each. By default, from `workers` to 4 times as many, the fewest that come within 1 % of the best.
    seed : int
        Of the random directions and, beyond 16 workers, of a Gaussian generator.

    Raises
    ------
    ValueError
        Speeds that are not positive and finite, one a worker; too few partitions for everybody to hold one; numbers for
        which the code is numerically singular.
    """
    n, s, m = _promise_with_reduction(workers, stragglers, reduction)
    own = shares.checked(np.ones(n) if speeds is None else speeds, n)
    copies = s + m
    if partitions is None:
        partitions = shares.chosen_partitions(own, copies, n)
    k = _checks.integer("partitions", partitions, -(-n // copies))
    assignment = tuple(shares.arcs(shares.apportioned(own, k * copies, k), k))
    holders = [np.array([i for i, held in enumerate(assignment) if j in held]) for j in range(k)]
    random = np.random.default_rng(_checks.integer("seed", seed, 0))
    tabulated = n <= LONGEST_IN_TABLE
    generator = codes.optimized(n, n - s).generator if tabulated else random.standard_normal((n, n - s))
    free = {tuple(who): _free(generator, who) for who in holders}
    draws = np.linalg.qr(random.standard_normal((DIRECTIONS, n - s, m)))[0].swapaxes(1, 2)
    least = [np.linalg.svd(target @ np.stack([*free.values()]), compute_uv=False).min() for target in draws]
    target = draws[int(np.argmax(least))]
    encoding = _encoding(generator, target, holders, [free[tuple(who)] for who in holders])
    name = f"heterogeneous({n}, {s}, {m}, seed={seed}, speeds={shares.described(own)})"
    return _as_one_group(name, assignment, encoding, s, generator, target)


# Anyone's own scheme --------------------------------------------------------------------------------------------------


def from_coefficients(
    assignment: Sequence[Iterable[int]], coefficients: Sequence[npt.ArrayLike], *, stragglers: int | None = None
) -> GradientCode:
    """A scheme given by who holds what and what is sent.

    Workers that share no partition, directly or through others, become groups of their own.

    Parameters
    ----------
    assignment : sequence of iterables of int
        The partitions of each worker; together 0 … partitions - 1.
    coefficients : sequence of array_like, shape (len(assignment[worker]), reduction)
        Rows in the order of the worker's partitions as given.
    stragglers : int, optional
        Any so many workers may be missing; by default found by rank, over up to a million survivor sets a group.

    Raises
    ------
    ValueError
        Wrong shapes, entries that are not finite, a partition that nobody holds, coefficients that do not determine the
        sum even from all workers, or a promise that does not hold.
    """
    held, weights, reduction = _checked_coefficients(assignment, coefficients)
    groups: list[Group] = []
    decoders: list[LinearDecoder] = []
    for members in _components(held):
        code, target = _factored(members, held, weights, reduction)
        if stragglers is None:
            tolerated = _tolerated(code.generator, target)
        elif _checks.integer("stragglers", stragglers, 0, len(held) - 1) < len(members):
            tolerated = stragglers
        else:
            raise ValueError(
                f"stragglers must be at most {len(members) - 1}, not {stragglers}: workers {members} share partitions "
                "with no one else, and cannot all be missing"
            )
        groups.append(Group(tuple(members), len(decoders)))
        decoders.append(LinearDecoder(code, tolerated, target))
    promised = min(decoder.tolerated for decoder in decoders)
    return _checked(
        SchemeData(
            name=f"from_coefficients({len(held)})",
            assignment=tuple(held),
            coefficients=freeze(weights),
            groups=tuple(groups),
            decoders=tuple(decoders),
            stragglers=promised,
            reduction=reduction,
            exact=True,
        ),
        stacklevel=4,
    )


def _checked_coefficients(
    assignment: Sequence[Iterable[int]], coefficients: Sequence[npt.ArrayLike]
) -> tuple[list[tuple[int, ...]], list[Matrix], int]:
    given = [list(partitions) for partitions in assignment]
    if not given or len(coefficients) != len(given):
        raise ValueError(f"coefficients must be one array a worker: {len(coefficients)} given for {len(given)} workers")
    numbered = ((f"assignment[{i}][{t}]", p) for i, partitions in enumerate(given) for t, p in enumerate(partitions))
    count = 1 + max((_checks.integer(name, p, 0) for name, p in numbered), default=-1)
    held, weights = [], []
    shapes = []
    for i, (partitions, array) in enumerate(zip(given, coefficients, strict=True)):
        numbers = _checks.members(f"assignment[{i}]", partitions, max(count, 1))
        if not numbers:
            raise ValueError(f"assignment[{i}] must not be empty")
        matrix = _checks.real_numbers(f"coefficients[{i}]", array)
        if matrix.ndim != 2 or len(matrix) != len(numbers) or matrix.shape[1] < 1:
            raise ValueError(f"coefficients[{i}] must have shape ({len(numbers)}, reduction), not {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise ValueError(f"coefficients[{i}] must be finite: it has NaN or infinite entries")
        order = np.argsort(numbers)
        held.append(tuple(sorted(numbers)))
        weights.append(matrix[order])
        shapes.append(matrix.shape[1])
    if len(set(shapes)) > 1:
        raise ValueError(f"coefficients must agree in their number of columns, not {sorted(set(shapes))}")
    everything = {p for numbers in held for p in numbers}
    if len(everything) < count:
        orphans = list(islice((p for p in range(count) if p not in everything), 10))
        raise ValueError(f"assignment must hold every partition: nobody holds {orphans}")
    return held, weights, shapes[0]


def _components(held: list[tuple[int, ...]]) -> list[list[int]]:
    """Workers connected through shared partitions, each component and their list in index order."""
    root = list(range(len(held)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    first_holder: dict[int, int] = {}
    for worker, partitions in enumerate(held):
        for partition in partitions:
            a, b = find(first_holder.setdefault(partition, worker)), find(worker)
            root[max(a, b)] = min(a, b)
    components: dict[int, list[int]] = {}
    for worker in range(len(held)):
        components.setdefault(find(worker), []).append(worker)
    return list(components.values())


def _factored(
    members: list[int], held: list[tuple[int, ...]], weights: list[Matrix], reduction: int
) -> tuple[LinearCode, Matrix]:
    """Bring a component's encoding matrix B to a generator and a target: A B_F = T becomes A U_F = Y.

    U is a largest set of independent columns of B, and Y the same columns of T: no rounding enters, and the other
    columns follow, since they are combinations of these.
    """
    column = {p: i for i, p in enumerate(sorted({p for worker in members for p in held[worker]}))}
    encoding = np.zeros((len(members), len(column), reduction))
    for row, worker in enumerate(members):
        encoding[row, [column[p] for p in held[worker]]] = weights[worker]
    matrix = encoding.reshape(len(members), -1)
    wanted = np.tile(np.eye(reduction), (1, len(column)))
    if not linalg.spans(matrix, wanted):
        raise ValueError(f"coefficients must determine the sum: those of workers {members} together do not")
    chosen = linalg.independent_columns(matrix)
    code = LinearCode(matrix[:, chosen], name=f"coefficients of workers {members}")
    return code, wanted[:, chosen]


def _tolerated(generator: Matrix, target: Matrix) -> int:
    workers = len(generator)
    budget = codes.MOST_SUBSETS
    for missing in range(1, workers):
        budget -= comb(workers, missing)
        if budget < 0:
            raise ValueError(
                f"stragglers must be given for a group of {workers} workers: finding it by rank takes more "
                f"than {codes.MOST_SUBSETS:,} survivor sets"
            )
        sets = combinations(range(workers), workers - missing)
        while batch := list(islice(sets, CHECKED_SETS)):
            if not linalg.spans(generator[np.array(batch)], target).all():
                return missing - 1
    return workers - 1


# What every constructor checks ----------------------------------------------------------------------------------------


def _promise(workers: int, stragglers: int) -> tuple[int, int]:
    workers = _checks.integer("workers", workers, 1)
    return workers, _checks.integer("stragglers", stragglers, 0, workers - 1)


def _promise_with_reduction(workers: int, stragglers: int, reduction: int) -> tuple[int, int, int]:
    workers, stragglers = _promise(workers, stragglers)
    return workers, stragglers, _checks.integer("reduction", reduction, 1, workers - stragglers)


def _require_multiple(workers: int, size: int, what: str) -> None:
    if workers % size:
        near = [v for v in (workers // size * size, -(-workers // size) * size) if v > 0]
        raise ValueError(
            f"workers must be a multiple of {what} = {size}, not {workers}: {' or '.join(map(str, near))} would be"
        )


def _checked(data: SchemeData, stacklevel: int = 5) -> GradientCode:
    """Refuse a scheme with a promised survivor set that is numerically singular, and warn of one that is nearly so.

    `stacklevel` is the depth of the user's line, which the warning names, below `_check_conditioning`.
    """
    for number, decoder in enumerate(data.decoders):
        if isinstance(decoder, LinearDecoder) and any(group.decoder == number for group in data.groups):
            _check_conditioning(data.name, decoder, stacklevel)
    return GradientCode(data)


def _check_conditioning(name: str, decoder: LinearDecoder, stacklevel: int) -> None:
    rows = decoder.code.generator[np.array(decoder.promised_sets())]
    k = decoder.code.k
    decodable = linalg.rank(rows) == k if decoder.target is None else linalg.spans(rows, decoder.target)
    if not decodable.all():
        raise ValueError(
            f"{name} is numerically singular: float64 cannot decode it with {decoder.tolerated} of {decoder.workers} "
            "workers missing; take fewer workers or stragglers, another code, or another seed where it is random"
        )
    if decoder.target is not None:
        # Columns are coordinates that the factorisation chose: their scale is of no account. Those of a group's code
        # are blocks of the gradient, and a block's error is relative to all of them.
        length = np.linalg.norm(rows, axis=-2, keepdims=True)
        rows = rows / np.where(length > 0, length, 1.0)
    values = np.linalg.svd(rows, compute_uv=False)
    smallest = values[np.arange(len(rows)), np.maximum(linalg.rank(rows), 1) - 1]
    worst = float((values[:, 0] / np.maximum(smallest, 1e-300 * values[:, 0])).max())
    if worst * np.finfo(np.float64).eps > ILL_CONDITIONED:
        warnings.warn(
            f"{name} is badly conditioned: some promised survivor set has condition number {worst:.1e}, which leaves "
            f"about {max(0, int(15.9 - np.log10(worst)))} correct digits of float64",
            RuntimeWarning,
            stacklevel=stacklevel,
        )


def load(file: str | os.PathLike[str] | IO[bytes]) -> GradientCode:
    """Read a scheme that `GradientCode.save` wrote; it is the same bit for bit.

    Raises
    ------
    ValueError
        The file is not a saved scheme, or is damaged.
    """
    return GradientCode(storage.load(file))


SCHEMES: dict[str, Callable[..., GradientCode]] = {
    "grouped": grouped,
    "uncoded": uncoded,
    "ignore_stragglers": ignore_stragglers,
    "fractional_repetition": fractional_repetition,
    "cyclic_repetition": cyclic_repetition,
    "cyclic_mds": cyclic_mds,
    "polynomial": polynomial,
    "polynomial_gaussian": polynomial_gaussian,
    "heterogeneous": heterogeneous,
    "erasure_head": erasure_head,
    "bernoulli": bernoulli,
    "stochastic_block": stochastic_block,
    "expander": expander,
    "margulis": margulis,
    "bibd": bibd,
}
"""The schemes that are made from numbers alone, by name."""
