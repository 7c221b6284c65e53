"""Linear codes over the reals: the raw material of gradient codes.

A code is an ``n x k`` generator matrix. Worker `i` of a group of `n` sends the combination of the `k` blocks that row
`i` names, and any rows of rank `k` give the blocks back. The minimum distance over the reals, less one, is the number
of rows that may be missing whichever they are (Kadhe, Koyluoglu and Ramchandran 2020, arXiv 2005.07184).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, combinations, islice
from math import comb, pi
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import _checks, _optimized, kernels, linalg
from fastgc._optimized import Certificate
from fastgc.errors import NotDecodableError

__all__ = [
    "FAMILIES",
    "Certificate",
    "LinearCode",
    "cauchy",
    "chebyshev",
    "from_generator",
    "gaussian",
    "hamming",
    "optimized",
    "parity",
    "product",
    "reed_muller",
    "repetition",
    "vandermonde",
]

MOST_SUBSETS = 1_000_000
"""A distance or a worst condition number is computed exactly over up to this many subsets of rows."""
DEFAULT_SAMPLES = 10_000
_CHUNK = 8192  # subsets a batch: a few MB of float64 for the sizes that occur


class LinearCode:
    """A real linear code, given by its generator. Made by the functions of this module.

    Attributes
    ----------
    name : str
        How it was made, such as ``"gaussian(5, 3, seed=0)"``.
    n, k : int
        Block length (rows) and dimension (columns).
    generator : ndarray, shape (n, k), float64
        Read-only.
    distance : int
        Minimum distance over the reals: any ``distance - 1`` rows may be missing. By theorem where the family has one,
        else found by rank on first use.
    is_mds : bool
        Whether ``distance == n - k + 1``, the largest possible.
    certificate : Certificate or None
        Of an optimised code that was searched for: its worst condition number, and whether all sets were looked at.
    """

    certificate: Certificate | None = None

    def __init__(self, generator: npt.ArrayLike, *, name: str, distance: int | None = None) -> None:
        matrix = np.array(generator, dtype=np.float64, order="C")
        matrix.setflags(write=False)
        self.name = name
        self.generator: npt.NDArray[np.float64] = matrix
        self._identity = np.eye(matrix.shape[1])
        self._distance = distance

    @property
    def n(self) -> int:
        """Block length: the number of rows of the generator."""
        return int(self.generator.shape[0])

    @property
    def k(self) -> int:
        """Dimension: the number of columns of the generator."""
        return int(self.generator.shape[1])

    @property
    def distance(self) -> int:
        """Minimum distance over the reals.

        Raises
        ------
        ValueError
            No theorem gives it and more than a million subsets would have to be ranked: give ``distance=`` to
            `from_generator`.
        """
        if self._distance is None:
            self._distance = _distance_by_rank(self.generator)
        return self._distance

    @property
    def is_mds(self) -> bool:
        """Whether any k rows of the generator are independent."""
        return self.distance == self.n - self.k + 1

    def decoding_weights(self, survivors: Iterable[int]) -> npt.NDArray[np.float64]:
        """Weights that give the blocks back from the rows that survive.

        Parameters
        ----------
        survivors : iterable of int
            Distinct row numbers; their order is that of the columns returned.

        Returns
        -------
        ndarray, shape (k, len(survivors)), float64
            A with ``A @ generator[survivors] = I``; with more than k survivors the A of least norm.

        Raises
        ------
        NotDecodableError
            The rows do not have rank k.
        """
        given = _checks.members("survivors", survivors, self.n)
        order = np.argsort(given, kind="stable")
        weights = np.empty((self.k, len(given)))
        weights[:, order] = self.pattern_weights(np.array(sorted(given), dtype=np.int64))
        return weights

    def pattern_weights(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Weights of one sorted pattern, or of each row of an array of them; the bits are those of each alone."""
        try:
            if rows.shape[-1] == self.k:
                return kernels.decoding_weights(self.generator, rows)
            if rows.shape[-1] > self.k:
                return kernels.least_norm_weights(self.generator, rows, self._identity)
        except NotDecodableError as error:
            raise self._not_decodable(error.survivors) from None
        raise self._not_decodable(np.atleast_2d(rows)[0].tolist())

    def _not_decodable(self, survivors: Iterable[int]) -> NotDecodableError:
        present = tuple(sorted(survivors))
        missing = tuple(sorted(set(range(self.n)) - set(present)))
        return NotDecodableError(
            f"rows {list(present)} of {self.name} do not have rank {self.k}; missing are {list(missing)}",
            present,
            missing,
        )

    def condition_number(self, survivors: Iterable[int]) -> float:
        """Ratio of the largest to the smallest singular value of the surviving rows; infinite below rank k."""
        rows = self.generator[list(_checks.members("survivors", survivors, self.n))]
        if linalg.rank(rows) < self.k:
            return float("inf")
        return float(np.linalg.cond(rows))

    def worst_condition_number(self, samples: int | None = None) -> float:
        """Largest condition number over the decodable sets of k rows.

        Parameters
        ----------
        samples : int, optional
            Look at this many random sets (the same ones each time). By default all sets up to a million, and 10,000
            random ones where there are more.

        Returns
        -------
        float
            Exact when every set was looked at, else a lower bound.
        """
        total = comb(self.n, self.k)
        if samples is None and total > MOST_SUBSETS:
            samples = DEFAULT_SAMPLES
        if samples is None:
            batches = _combination_batches(self.n, self.k)
        else:
            count = _checks.integer("samples", samples, 1)
            generator = np.random.default_rng(0)
            picks = (np.sort(generator.permutation(self.n)[: self.k]) for _ in range(count))
            batches = _stack_batches(picks)
        worst = 1.0
        for rows in batches:
            stack = self.generator[rows]
            decodable = linalg.rank(stack) == self.k
            if decodable.any():
                worst = max(worst, float(np.linalg.cond(stack[decodable]).max()))
        return worst

    def decodable_sets(self) -> Iterator[tuple[int, ...]]:
        """All sets of k rows of rank k, in lexicographic order.

        Yields
        ------
        tuple of int
            Row numbers, ascending; `worst_condition_number` is the largest ``condition_number`` of these.
        """
        for rows in _combination_batches(self.n, self.k):
            yield from map(tuple, rows[linalg.rank(self.generator[rows]) == self.k].tolist())

    def __repr__(self) -> str:
        return f"<LinearCode {self.name}: n={self.n}, k={self.k}>"


def _stack_batches(rows: Iterable[Any]) -> Iterator[npt.NDArray[np.intp]]:
    source = iter(rows)
    while batch := list(islice(source, _CHUNK)):
        yield np.array(batch, dtype=np.intp)


def _combination_batches(n: int, size: int) -> Iterator[npt.NDArray[np.intp]]:
    return _stack_batches(combinations(range(n), size))


def _all_of_rank(generator: npt.NDArray[np.float64], size: int) -> bool:
    k = generator.shape[1]
    return all(bool((linalg.rank(generator[rows]) == k).all()) for rows in _combination_batches(len(generator), size))


def _distance_by_rank(generator: npt.NDArray[np.float64]) -> int:
    """n - t + 1 for the smallest t such that all sets of t rows have rank k.

    Whether size t has the property is monotone in t, so the interval of open sizes shrinks from whichever end has fewer
    sets to look at.
    """
    n, k = map(int, generator.shape)
    low, high = k, n  # the smallest t lies in [low, high]; the whole generator has rank k
    budget = MOST_SUBSETS
    while low < high:
        from_below = comb(n, low) <= comb(n, high - 1)
        size = low if from_below else high - 1
        budget -= comb(n, size)
        if budget < 0:
            raise ValueError(
                f"distance= must be given for this [{n}, {k}] code: finding it by rank takes more than "
                f"{MOST_SUBSETS:,} subsets of rows"
            )
        if _all_of_rank(generator, size):
            if from_below:
                return n - size + 1
            high = size
        elif from_below:
            low = size + 1
        else:
            return n - high + 1
    return n - high + 1


def _dimensions(n: int, k: int) -> tuple[int, int]:
    n = _checks.integer("n", n, 1)
    return n, _checks.integer("k", k, 1, n)


def _seed(seed: int) -> int:
    return _checks.integer("seed", seed, 0)


def gaussian(n: int, k: int, seed: int = 0) -> LinearCode:
    """Random code with independent standard normal entries; MDS with probability 1 (Kadhe et al. 2020).

    Parameters
    ----------
    n, k : int
        Block length and dimension, ``1 <= k <= n``.
    seed : int
        Of NumPy's default generator.
    """
    n, k = _dimensions(n, k)
    generator = np.random.default_rng(_seed(seed)).standard_normal((n, k))
    return LinearCode(generator, name=f"gaussian({n}, {k}, seed={seed})", distance=n - k + 1)


def repetition(n: int) -> LinearCode:
    """The [n, 1] code of distance n: every row is 1. Gives fractional repetition (Tandon et al. 2017)."""
    n = _checks.integer("n", n, 1)
    return LinearCode(np.ones((n, 1)), name=f"repetition({n})", distance=n)


def parity(k: int) -> LinearCode:
    """The [k + 1, k] code of distance 2: the blocks themselves and their sum."""
    k = _checks.integer("k", k, 1)
    return LinearCode(np.vstack([np.eye(k), np.ones((1, k))]), name=f"parity({k})", distance=2)


def ye_abbe_points(n: int) -> npt.NDArray[np.float64]:
    """The evaluation points ``±(1 + i/2)``, and 0 for odd n (Ye and Abbe 2018, section V)."""
    half = 1.0 + np.arange(n // 2) / 2
    return np.sort(np.concatenate([half, -half, np.zeros(n % 2)]))


def vandermonde(n: int, k: int, points: npt.ArrayLike | None = None) -> LinearCode:
    """Powers 0 … k - 1 of n distinct points; MDS (Reed–Solomon over the reals).

    Parameters
    ----------
    n, k : int
        Block length and dimension, ``1 <= k <= n``.
    points : array_like, shape (n,), optional
        Distinct and finite; by default Ye and Abbe's ``±(1 + i/2)``.
    """
    n, k = _dimensions(n, k)
    x = ye_abbe_points(n) if points is None else _checks.real_numbers("points", points)
    if x.shape != (n,) or not np.isfinite(x).all() or len(np.unique(x)) != n:
        raise ValueError(f"points must be {n} distinct finite numbers, not {points!r}")
    return LinearCode(np.vander(x, k, increasing=True), name=f"vandermonde({n}, {k})", distance=n - k + 1)


def chebyshev(n: int, k: int) -> LinearCode:
    """Orthonormal Chebyshev polynomials of degree 0 … k - 1 at the n Chebyshev nodes; MDS, and far better conditioned
    than powers."""
    n, k = _dimensions(n, k)
    angles = pi * (np.arange(n) + 0.5) / n
    generator = np.cos(np.outer(angles, np.arange(k)))
    generator[:, 0] = np.sqrt(0.5)  # the same length as the other columns, which are orthogonal to it and each other
    return LinearCode(generator, name=f"chebyshev({n}, {k})", distance=n - k + 1)


def cauchy(n: int, k: int) -> LinearCode:
    """Cauchy matrix on the circle, ``1 / sin(a_i - b_j)``; MDS, since every minor of a Cauchy matrix is nonzero.

    ``1 / (tan a - tan b)`` is a Cauchy matrix; dividing rows by ``cos a`` and columns by ``cos b`` leaves
    ``1 / sin(a - b)``, which treats all points of the circle alike.
    """
    n, k = _dimensions(n, k)
    a = pi * np.arange(n) / n
    b = pi * ((np.arange(k) * n) // k + 0.5) / n
    return LinearCode(1.0 / np.sin(a[:, None] - b), name=f"cauchy({n}, {k})", distance=n - k + 1)


def optimized(n: int, k: int) -> LinearCode:
    """The code whose worst set of k rows is best conditioned, as far as is known; MDS.

    In closed form for k = 1, k = 2 (lines at angles pi i / n, the optimum), k = n - 1 and k = n; for other n up to 16
    from a table, the same bits everywhere, whose every set of k rows was looked at. Longer codes up to n = 32 are
    searched for once within a fixed budget of steps, some seconds, and kept in the cache folder (``$FASTGC_CACHE``,
    else the user's); their last bits depend on the machine's LAPACK, so that machines must share the saved scheme,
    as with random codes. From n = 33 on the code is harmonic. `LinearCode.certificate` says what is known of these.

    Parameters
    ----------
    n, k : int
        Block length and dimension, ``1 <= k <= n``.
    """
    n, k = _dimensions(n, k)
    generator, certificate = _optimized.generator(n, k)
    code = LinearCode(generator, name=f"optimized({n}, {k})", distance=n - k + 1)
    code.certificate = certificate
    return code


def hamming(r: int) -> LinearCode:
    """The binary Hamming code [2^r - 1, 2^r - 1 - r] with its 0/1 generator read over the reals; distance 3.

    A real codeword of least weight can be scaled to integers without common factor; modulo 2 it is a nonzero binary
    codeword of no larger weight, so the distance is at least the binary one, and a column of the generator attains it.
    """
    r = _checks.integer("r", r, 2, 12)
    data = [i for i in range(1, 2**r) if i & (i - 1)]
    checks = np.array([[(i >> bit) & 1 for i in data] for bit in range(r)], dtype=np.float64)
    return LinearCode(np.vstack([np.eye(len(data)), checks]), name=f"hamming({r})", distance=3)


def reed_muller(r: int, m: int) -> LinearCode:
    """Products of at most r of m signs, at all 2^m sign vectors (Walsh characters ±1); distance 2^(m - r).

    The span is that of the multilinear polynomials of degree at most r on the cube; one that is not zero is nonzero on
    at least 2^(m - r) of its points, and ``(1 + x_1) … (1 + x_r)`` on just so many.
    """
    m = _checks.integer("m", m, 1, 16)
    r = _checks.integer("r", r, 0, m)
    signs = 1.0 - 2.0 * ((np.arange(2**m)[:, None] >> np.arange(m)) & 1)
    subsets = chain.from_iterable(combinations(range(m), size) for size in range(r + 1))
    columns = [signs[:, list(subset)].prod(axis=1) for subset in subsets]
    return LinearCode(np.stack(columns, axis=1), name=f"reed_muller({r}, {m})", distance=2 ** (m - r))


def product(a: LinearCode, b: LinearCode) -> LinearCode:
    """Kronecker product of two codes: lengths, dimensions and distances multiply."""
    for name, code in (("a", a), ("b", b)):
        if not isinstance(code, LinearCode):
            raise TypeError(f"{name} must be a LinearCode, not {code!r}")
    distance = a.distance * b.distance
    return LinearCode(np.kron(a.generator, b.generator), name=f"product({a.name}, {b.name})", distance=distance)


def from_generator(generator: npt.ArrayLike, *, distance: int | None = None) -> LinearCode:
    """Anyone's own code.

    Parameters
    ----------
    generator : array_like, shape (n, k)
        Finite, of rank k.
    distance : int, optional
        Minimum distance over the reals, where it is known; else it is found by rank when first asked for, over up to a
        million subsets of rows.

    Raises
    ------
    ValueError
        Wrong shape, an entry that is not finite, rank below k, or an impossible distance.
    """
    matrix = _checks.real_numbers("generator", generator)
    if matrix.ndim != 2 or not 1 <= matrix.shape[1] <= matrix.shape[0]:
        raise ValueError(f"generator must have shape (n, k) with 1 <= k <= n, not {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("generator must be finite: it has NaN or infinite entries")
    n, k = matrix.shape
    if linalg.rank(matrix) < k:
        raise ValueError(f"generator must have rank {k}: it has rank {linalg.rank(matrix)}")
    if distance is not None:
        distance = _checks.integer("distance", distance, 1, n - k + 1)
    return LinearCode(matrix, name=f"from_generator([{n}, {k}])", distance=distance)


FAMILIES: dict[str, Callable[..., LinearCode]] = {
    "optimized": optimized,
    "gaussian": gaussian,
    "vandermonde": vandermonde,
    "chebyshev": chebyshev,
    "cauchy": cauchy,
}
"""The families that have a code for every ``1 <= k <= n``, by name."""
