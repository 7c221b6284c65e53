"""Schemes whose sum is estimated from any survivors: workers send plain sums over some of the partitions.

Error formulas are for ``err(F) = min over a of ||a @ B_F - 1||²`` (or that of the one-step a), where B is the matrix of
who holds what: the square of `GradientCode.approximation_error`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from math import comb, isqrt

import numpy as np
import numpy.typing as npt

from fastgc import _checks
from fastgc.approximate import METHODS, EstimatingDecoder
from fastgc.gradient_code import GradientCode
from fastgc.storage import Group, SchemeData, freeze

Matrix = npt.NDArray[np.float64]

GRAPHS = 20
"""Random graphs of which `expander` takes the one that expands most."""
MARGULIS_LOAD = 8


def erasure_head(workers: int, load: int, stragglers: int, *, decoder: str = "optimal") -> GradientCode:
    """Fractional repetition that goes on without groups nobody of which has answered.

    Wang, Charles and Papailiopoulos 2019 (ErasureHead, arXiv 1901.09671), the code itself after Charles,
    Papailiopoulos and Ellenberg 2017 (arXiv 1711.06771). Groups of `load` workers hold the same `load` partitions; of r
    random survivors the expected optimal error is ``n C(n - load, r) / C(n, r)``.

    Parameters
    ----------
    workers, load : int
        `load` divides `workers`.
    stragglers : int
        So many workers are not waited for.
    decoder : {"optimal", "one_step", "unbiased"}
        How `decode` estimates. `one_step` and `unbiased` are unbiased where every set of as many survivors is equally
        likely.
    """
    n, d, s = _numbers(workers, load, stragglers)
    if n % d:
        near = [v for v in (n // d * d, -(-n // d) * d) if v > 0]
        raise ValueError(f"workers must be a multiple of load = {d}, not {n}: {' or '.join(map(str, near))} would be")
    held: Matrix = np.kron(np.eye(n // d), np.ones((d, d))).astype(np.float64)
    recovered = np.array([1 - comb(n - d, r) / comb(n, r) for r in range(n + 1)])
    return _scheme(f"erasure_head({n}, {d}, {s})", held, s, decoder, load=d, recovered=recovered)


def bernoulli(
    workers: int,
    load: int,
    stragglers: int,
    *,
    decoder: str = "optimal",
    regularized: bool = False,
    seed: int = 0,
) -> GradientCode:
    """Every worker holds every partition with probability ``load / workers``.

    Charles, Papailiopoulos and Ellenberg 2017 (BGC, arXiv 1711.06771). With k partitions and r survivors the expected
    one-step error, over the code, is ``k (k - load) / (r load)``. A worker that would hold nothing, and a partition
    that nobody would, gets one at random: with a chance of about ``exp(-load)`` each.

    Parameters
    ----------
    workers : int
        As many partitions.
    load : int
        Expected number of partitions of a worker; the largest is the scheme's `load`.
    stragglers, decoder
        As in `erasure_head`. `one_step` is unbiased over the random code; `unbiased` there is none.
    regularized : bool
        A worker that drew more than ``2 * load`` partitions keeps `load` of them, as in the paper's rBGC.
    seed : int
    """
    n, d, s = _numbers(workers, load, stragglers)
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    held = (rng.random((n, n)) < d / n).astype(np.float64)
    if regularized:
        for row in held:
            drawn = np.flatnonzero(row)
            if len(drawn) > 2 * d:
                row[:] = 0
                row[rng.permutation(drawn)[:d]] = 1
    _fill(held, rng)
    regular = ", regularized" if regularized else ""
    return _scheme(f"bernoulli({n}, {d}, {s}{regular}, seed={seed})", held, s, decoder, load=d)


def stochastic_block(
    workers: int,
    load: int,
    stragglers: int,
    *,
    blocks: int = 2,
    within: float = 0.75,
    decoder: str = "optimal",
    seed: int = 0,
) -> GradientCode:
    """Between fractional repetition and `bernoulli`: workers hold partitions of their own block more often.

    Charles and Papailiopoulos 2018 (stochastic block codes, arXiv 1805.10378). Workers and partitions form `blocks` of
    size n / blocks; a worker holds a partition of its own block with probability p, another with probability q, such
    that its expected load is `load`. With r random survivors the expected one-step error, over code and survivors, is
    ``k (k / (r load))² (r (p (1 - p) + (blocks - 1) q (1 - q)) / blocks + (p - q)² r b (1 - b) (n - r) / (n - 1))``
    with b = 1 / blocks.

    Parameters
    ----------
    workers, load, stragglers, decoder, seed
        As in `bernoulli`.
    blocks : int
        Divides `workers`.
    within : float
        The expected share of its load that a worker holds of its own block: ``1 / blocks`` is `bernoulli`.
    """
    n, d, s = _numbers(workers, load, stragglers)
    blocks = _checks.integer("blocks", blocks, 1, n)
    if n % blocks:
        raise ValueError(f"blocks must divide the number of workers, {n}, not {blocks}")
    p, q = block_probabilities(n, d, blocks, within)
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    own = np.kron(np.eye(blocks), np.ones((n // blocks, n // blocks)))
    held = (rng.random((n, n)) < np.where(own > 0, p, q)).astype(np.float64)
    _fill(held, rng)
    name = f"stochastic_block({n}, {d}, {s}, blocks={blocks}, within={within:g}, seed={seed})"
    return _scheme(name, held, s, decoder, load=d)


def block_probabilities(workers: int, load: int, blocks: int, within: float) -> tuple[float, float]:
    """The probabilities p and q of `stochastic_block`; ValueError where they are none."""
    size = workers // blocks
    p = load * within / size
    q = load * (1 - within) / (workers - size) if blocks > 1 else 0.0
    if not (0 <= p <= 1 and 0 <= q <= 1) or (blocks == 1 and within != 1):
        raise ValueError(
            f"within must make probabilities of load * within / {size} and load * (1 - within) / {workers - size}, "
            f"not {p:.3g} and {q:.3g}: {within!r} given"
        )
    return p, q


def expander(workers: int, load: int, stragglers: int, *, decoder: str = "optimal", seed: int = 0) -> GradientCode:
    """Worker i holds the neighbours of vertex i of a random regular graph.

    Raviv, Tandon, Dimakis and Tamo 2018 (arXiv 1707.03858): the adjacency matrix of a d-regular graph, divided by d.
    With λ the largest absolute value of its eigenvalues but d, the one-step error with any s of n workers missing is at
    most ``(λ / d)² n s / (n - s)``, and the optimal one no larger. Of 20 graphs, mixed by exchanges of edges, the
    one with the least λ is taken.

    Parameters
    ----------
    workers, load : int
        ``load < workers``, and one of the two is even.
    stragglers, decoder
        As in `erasure_head`. `one_step` is unbiased where every set of as many survivors is equally likely; `unbiased`
        there is none.
    seed : int
    """
    n, d, s = _numbers(workers, load, stragglers)
    if d == n:
        raise ValueError(f"load must be at most {n - 1} for a graph of {n} workers, not {d}")
    if n % 2 and d % 2:
        raise ValueError(f"load or workers must be even for a regular graph, not {d} and {n}: take load {d + 1}")
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    graphs = (_random_regular_graph(n, d, rng) for _ in range(GRAPHS))
    adjacency = min(graphs, key=second_eigenvalue)
    return _scheme(f"expander({n}, {d}, {s}, seed={seed})", adjacency / d, s, decoder, load=1)


def margulis(workers: int, stragglers: int, *, decoder: str = "optimal") -> GradientCode:
    """The explicit expander of Margulis, whose bound holds for any number of workers a²; load 8.

    Vertices are pairs modulo a, and (x, y) has the neighbours (x ± 2y, y), (x ± (2y + 1), y), (x, y ± 2x) and
    (x, y ± (2x + 1)), some of them twice for small a. Its λ is at most 5√2 (Gabber and Galil 1981), so that the error
    of `expander` is at most ``(50 / 64) n s / (n - s)`` whatever n is.

    Parameters
    ----------
    workers : int
        A square.
    stragglers, decoder
        As in `expander`.
    """
    n, _, s = _numbers(workers, 1, stragglers)
    a = isqrt(n)
    if a * a != n:
        near = f"{a * a} or {(a + 1) ** 2}"
        raise ValueError(f"workers must be a square for the Margulis graph, not {n}: {near} would be")
    adjacency = np.zeros((n, n))
    for x, y in product(range(a), repeat=2):
        for step in (2 * y, -2 * y, 2 * y + 1, -2 * y - 1):
            adjacency[x * a + y, (x + step) % a * a + y] += 1
        for step in (2 * x, -2 * x, 2 * x + 1, -2 * x - 1):
            adjacency[x * a + y, x * a + (y + step) % a] += 1
    return _scheme(f"margulis({n}, {s})", adjacency / MARGULIS_LOAD, s, decoder, load=1)


def bibd(workers: int, load: int, stragglers: int, *, decoder: str = "optimal") -> GradientCode:
    """Any two workers share equally many partitions, so that the error depends on how many answer, not on who.

    Kadhe, Koyluoglu and Ramchandran 2019 (arXiv 1904.13373), with symmetric balanced incomplete block designs. With
    ``λ = load (load - 1) / (n - 1)`` and r survivors the optimal error is
    ``n - load² r / (load - λ + λ r)``, and all weights are equal.

    Parameters
    ----------
    workers, load : int
        Of a design made here: points and hyperplanes of a projective space over a prime field, quadratic residues
        modulo a prime ``workers = 3 mod 4``, the complements of these, and loads 1, workers - 1 and workers.
    stragglers, decoder
        As in `erasure_head`; all methods differ by a factor alone. `unbiased` exists.
    """
    n, d, s = _numbers(workers, load, stragglers)
    designs = _designs(n)
    if d not in designs:
        others = [v for distance in range(1, n + 64) for v in (n - distance, n + distance) if v > d and _admits(v, d)]
        known = f"loads are {', '.join(map(str, sorted(designs)))}"
        near = f", and load {d} has a design with {' or '.join(map(str, others[:2]))} workers" if others else ""
        raise ValueError(f"load must be that of a design of {n} workers made here: {known}{near}; not {d}")
    shared = d * (d - 1) / (n - 1) if n > 1 else 0.0
    counts = np.arange(n + 1)
    recovered = np.zeros(n + 1)
    recovered[1:] = d * d * counts[1:] / ((d - shared) + shared * counts[1:]) / n
    return _scheme(f"bibd({n}, {d}, {s})", designs[d](), s, decoder, load=d, recovered=recovered)


def from_assignment(
    assignment: Sequence[Iterable[int]], *, stragglers: int = 0, decoder: str = "optimal"
) -> GradientCode:
    """Workers that send the plain sum over the partitions they hold, whichever these are.

    Parameters
    ----------
    assignment : sequence of iterables of int
        The partitions of each worker; together 0 … partitions - 1.
    stragglers, decoder
        As in `erasure_head`. `one_step` is unbiased, where every set of as many survivors is equally likely, if every
        partition is held by equally many workers; `unbiased` there is none.

    Raises
    ------
    ValueError
        A worker that holds nothing or one partition twice, or a partition that nobody holds.
    """
    rows = [list(partitions) for partitions in assignment]
    if not rows:
        raise ValueError("assignment must have at least one worker")
    numbers = [_checks.integer(f"assignment[{i}][{t}]", p, 0) for i, row in enumerate(rows) for t, p in enumerate(row)]
    partitions = 1 + max(numbers, default=0)
    held = np.zeros((len(rows), partitions))
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"assignment[{i}] must not be empty")
        held[i, list(_checks.members(f"assignment[{i}]", row, partitions))] = 1
    if len(orphans := np.flatnonzero(~held.any(axis=0))):
        raise ValueError(f"assignment must hold every partition: nobody holds {orphans.tolist()}")
    s = _checks.integer("stragglers", stragglers, 0, len(rows) - 1)
    return _scheme(f"from_assignment({len(rows)})", held, s, decoder, load=held.sum() / len(rows))


# What they share ------------------------------------------------------------------------------------------------------


def _numbers(workers: int, load: int, stragglers: int) -> tuple[int, int, int]:
    n = _checks.integer("workers", workers, 1)
    return n, _checks.integer("load", load, 1, n), _checks.integer("stragglers", stragglers, 0, n - 1)


def _scheme(
    name: str, encoding: Matrix, stragglers: int, decoder: str, *, load: float, recovered: Matrix | None = None
) -> GradientCode:
    """A scheme of one group; `load` is what a row of the encoding sums to, or is expected to."""
    if decoder not in METHODS or (decoder == "unbiased" and recovered is None):
        known = METHODS if recovered is not None else METHODS[:2]
        raise ValueError(f"decoder must be one of {', '.join(known)}, not {decoder!r}")
    n, partitions = encoding.shape
    held = [tuple(np.flatnonzero(row).tolist()) for row in encoding]
    (matrix,) = freeze([encoding])
    step = partitions / (n * load)  # Charles et al.: k / (r s) for r survivors
    return GradientCode(
        SchemeData(
            name=name,
            assignment=tuple(held),
            coefficients=freeze([row[list(own), None] for row, own in zip(matrix, held, strict=True)]),
            groups=(Group(tuple(range(n)), 0),),
            decoders=(EstimatingDecoder(matrix, stragglers, decoder, step, recovered),),
            stragglers=stragglers,
            reduction=1,
            exact=False,
        )
    )


def _fill(held: Matrix, rng: np.random.Generator) -> None:
    """Give every worker a partition and every partition a worker."""
    for lacking in (held, held.T):
        for row in lacking:
            if not row.any():
                row[rng.integers(len(row))] = 1


def second_eigenvalue(adjacency: Matrix) -> float:
    """The largest absolute eigenvalue of a regular graph's adjacency matrix but the first."""
    return float(np.sort(np.abs(np.linalg.eigvalsh(adjacency)))[-2]) if len(adjacency) > 1 else 0.0


def _random_regular_graph(n: int, d: int, rng: np.random.Generator) -> Matrix:
    """From a circulant graph by random exchanges of the ends of two edges, which keep all degrees."""
    adjacency = np.zeros((n, n))
    vertices = np.arange(n)
    steps = [*range(1, d // 2 + 1), *([n // 2] if d % 2 else [])]
    for step in steps:
        adjacency[vertices, (vertices + step) % n] = adjacency[(vertices + step) % n, vertices] = 1
    edges = np.argwhere(np.triu(adjacency))
    for _ in range(10 * len(edges)):
        i, j = rng.integers(len(edges), size=2)
        (a, b), (c, e) = edges[i], edges[j] if rng.random() < 0.5 else edges[j][::-1]
        if len({a, b, c, e}) == 4 and not adjacency[a, c] and not adjacency[b, e]:
            for x, y, there in ((a, b, 0), (c, e, 0), (a, c, 1), (b, e, 1)):
                adjacency[x, y] = adjacency[y, x] = there
            edges[i], edges[j] = (a, c), (b, e)
    return adjacency


# Designs --------------------------------------------------------------------------------------------------------------


def _designs(n: int) -> dict[int, Callable[[], Matrix]]:
    """Symmetric designs of n points by load."""
    made: dict[int, Callable[[], Matrix]] = {n: lambda: np.ones((n, n)), 1: lambda: np.eye(n)}
    if n > 1:
        made[n - 1] = lambda: np.ones((n, n)) - np.eye(n)
    basic: dict[int, Callable[[], Matrix]] = {}
    for q in filter(_is_prime, range(2, isqrt(n) + 1)):
        dimension, points = 2, q * q + q + 1
        while points < n:
            dimension += 1
            points = points * q + 1
        if points == n:
            basic[(n - 1) // q] = partial(_hyperplanes, q, dimension)
    if n % 4 == 3 and _is_prime(n):
        basic[(n - 1) // 2] = partial(_residues, n)
    for load, make in basic.items():
        made.setdefault(load, make)
        made.setdefault(n - load, partial(_complement, make))
    return made


def _complement(make: Callable[[], Matrix]) -> Matrix:
    return np.asarray(1 - make())


def _admits(n: int, load: int) -> bool:
    return load in _designs(n)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, isqrt(number) + 1))


def _hyperplanes(q: int, dimension: int) -> Matrix:
    """Which points of the projective space over the field of q elements lie on which hyperplanes."""
    # Every point once: its first coordinate that is not zero is one.
    points = [v for v in product(range(q), repeat=dimension + 1) if any(v) and next(filter(None, v)) == 1]
    coordinates = np.array(points)
    return np.asarray(coordinates @ coordinates.T % q == 0, dtype=np.float64)


def _residues(n: int) -> Matrix:
    """Paley's design: worker i holds i plus each quadratic residue modulo n."""
    residues = sorted({x * x % n for x in range(1, n)})
    matrix = np.zeros((n, n))
    for i in range(n):
        matrix[i, [(i + r) % n for r in residues]] = 1
    return matrix
