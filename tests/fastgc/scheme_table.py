"""The table of schemes that the tests run over, and what they share: survivor sets, gradients, the error bound.

Every constructor is here with several parameter sets; `from_coefficients` with the coefficients of many of the others.
Up to 12 workers all survivor sets are tested, above that a sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import GradientCode, codes, schemes
from fastgc.codes import LinearCode

Array = npt.NDArray[Any]
Sets = list[tuple[int, ...]]

FLOATS: tuple[np.dtype[Any], ...] = (np.dtype(np.float32), np.dtype(np.float64))
UNIT: dict[np.dtype[Any], float] = {dtype: float(np.finfo(dtype).eps) / 2 for dtype in FLOATS}
"""The unit roundoff of each element type."""


@dataclass(frozen=True)
class Case:
    """A scheme by name; made once on first use, quietly (the warnings have tests of their own)."""

    name: str
    make: Callable[[], GradientCode]

    @property
    def scheme(self) -> GradientCode:
        return _made(self)

    def fresh(self) -> GradientCode:
        """The scheme with an empty pattern cache."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return self.make()

    def __str__(self) -> str:
        return self.name


@cache
def _made(case: Case) -> GradientCode:
    return case.fresh()


def _grouped(workers: int, code: LinearCode, uneven: bool = False) -> Case:
    suffix = " uneven" if uneven else ""
    return Case(f"grouped {workers} {code.name}{suffix}", lambda: schemes.grouped(workers, code=code, uneven=uneven))


def _family(workers: int, load: int, reduction: int, family: str, uneven: bool = False, seed: int = 0) -> Case:
    suffix = " uneven" if uneven else ""
    return Case(
        f"grouped {workers} {family} [{load}, {reduction}]{suffix}",
        lambda: schemes.grouped(workers, load, reduction, code=family, uneven=uneven, seed=seed),
    )


def _call(constructor: Callable[..., GradientCode], *arguments: int) -> Case:
    return Case(f"{constructor.__name__}{arguments}", lambda: constructor(*arguments))


def given_as_coefficients(case: Case, stragglers: bool = False) -> Case:
    """The same scheme, handed over as plain coefficients; the promise found by rank or handed over too."""

    def make() -> GradientCode:
        scheme = case.fresh()
        coefficients = [scheme.coefficients(w) for w in range(scheme.workers)]
        return schemes.from_coefficients(
            scheme.assignment, coefficients, stragglers=scheme.stragglers if stragglers else None
        )

    return Case(f"from_coefficients of {case.name}", make)


def _in_parts(case: Case, count: int) -> Case:
    return Case(f"{case.name} in {count} parts", lambda: case.fresh().in_parts(count))


def _irregular() -> GradientCode:
    """Workers with one, two and three partitions, one of which has no weight at all; not a group each."""
    assignment = [(0,), (0, 1), (1, 2), (2,), (2, 0, 1)]
    weights = [[[1.0]], [[1.0], [-2.0]], [[1.0], [0.5]], [[3.0]], [[1.0], [0.25], [-1.0]]]
    return schemes.from_coefficients(assignment, weights)


def _heterogeneous(stragglers: int, reduction: int, speeds: tuple[float, ...]) -> Case:
    return Case(
        f"heterogeneous {stragglers, reduction} {speeds}",
        lambda: schemes.heterogeneous(len(speeds), stragglers, reduction, speeds=speeds),
    )


def _sorted_groups(workers: int, load: int, reduction: int, speeds: tuple[float, ...]) -> Case:
    return Case(
        f"grouped {workers} [{load}, {reduction}] {speeds}",
        lambda: schemes.grouped(workers, load, reduction, uneven=True, speeds=speeds),
    )


HETEROGENEOUS = (
    (1, 1, (1, 1, 2, 2)),
    (2, 1, (1, 2, 3, 4, 5, 6)),
    (1, 2, (0.7, 1.3, 2.9, 1, 1.1)),
    (2, 2, (1, 1, 1, 1, 1, 40)),
    (3, 2, (3, 1, 2, 2, 1, 4, 1, 2, 3)),
)
REPETITION = ((1, 0), (4, 1), (6, 2), (9, 2), (12, 3), (10, 4), (5, 4))
DIMENSIONS = ((4, 2, 1), (8, 4, 2), (6, 6, 3), (10, 5, 3), (6, 3, 3))
UNEVEN = ((11, 4, 2, "cauchy"), (7, 4, 2, "gaussian"), (10, 6, 3, "chebyshev"))
CYCLIC = ((1, 0), (4, 0), (5, 1), (6, 2), (8, 3), (10, 4), (12, 3), (6, 5))
CYCLIC_MDS = ((1, 0), (3, 0), (5, 2), (6, 1), (6, 3), (8, 3), (9, 4), (10, 5), (12, 3), (4, 3))
YE_ABBE = ((1, 0, 1), (4, 1, 1), (5, 1, 2), (6, 2, 3), (8, 2, 2), (8, 0, 4), (10, 3, 2), (10, 2, 8), (12, 2, 3))

CONSTRUCTED = [
    *[_call(schemes.uncoded, n) for n in (1, 2, 5, 8)],
    *[_call(schemes.fractional_repetition, *numbers) for numbers in REPETITION],
    *[_family(n, d, m, family) for family in codes.FAMILIES for n, d, m in DIMENSIONS],
    *[_family(12, 12, 6, family) for family in ("cauchy", "gaussian", "chebyshev")],
    *[_family(12, d, m, "cauchy") for d, m in ((12, 8), (12, 11), (6, 2), (4, 3))],
    *[_family(n, d, m, family, uneven=True) for n, d, m, family in UNEVEN],
    _call(schemes.adaptive, 8, 4),
    _grouped(7, codes.hamming(3)),
    _grouped(9, codes.hamming(2)),
    _grouped(8, codes.reed_muller(1, 3)),
    _grouped(8, codes.reed_muller(2, 3)),
    _grouped(8, codes.reed_muller(0, 2)),
    _grouped(8, codes.parity(3)),
    _grouped(5, codes.parity(1), uneven=True),
    _grouped(9, codes.product(codes.parity(2), codes.parity(2))),
    _grouped(8, codes.product(codes.repetition(2), codes.cauchy(4, 2))),
    _grouped(11, codes.cauchy(6, 3), uneven=True),
    _grouped(12, codes.reed_muller(1, 3), uneven=True),
    *[_call(schemes.cyclic_repetition, *numbers) for numbers in CYCLIC],
    *[_call(schemes.cyclic_mds, *numbers) for numbers in CYCLIC_MDS],
    *[_call(schemes.polynomial, *numbers) for numbers in YE_ABBE],
    *[_call(schemes.polynomial_gaussian, *numbers) for numbers in YE_ABBE],
    *[_heterogeneous(*numbers) for numbers in HETEROGENEOUS],
    _sorted_groups(8, 4, 2, (3, 1, 2, 1, 5, 2, 1, 4)),
    _sorted_groups(7, 4, 2, (1, 1, 2, 5, 2, 3, 1)),
]
GIVEN = [
    *[given_as_coefficients(case) for case in CONSTRUCTED[1::3] if case.scheme.workers <= 10],
    *[given_as_coefficients(case, stragglers=True) for case in CONSTRUCTED[2::6]],
    Case("from_coefficients irregular", _irregular),
]
IN_PARTS = [
    _in_parts(_family(4, 2, 1, "optimized"), 2),
    _in_parts(_call(schemes.cyclic_repetition, 4, 2), 2),
    _in_parts(_call(schemes.polynomial_gaussian, 3, 1, 2), 3),
]
EXACT = CONSTRUCTED + GIVEN + IN_PARTS
"""Exact schemes of at most 12 workers."""

SAMPLED = [
    _family(24, 8, 4, "cauchy"),
    _family(30, 10, 5, "cauchy"),
    _family(15, 5, 3, "gaussian"),
    _family(18, 9, 3, "chebyshev"),
    _family(20, 20, 10, "cauchy"),
    _family(29, 5, 2, "cauchy", uneven=True),
    _grouped(28, codes.hamming(3)),
    _grouped(15, codes.hamming(4)),
    _grouped(16, codes.reed_muller(1, 4)),
    _grouped(30, codes.product(codes.parity(2), codes.cauchy(5, 3))),
    _call(schemes.fractional_repetition, 30, 4),
    _call(schemes.uncoded, 30),
    _call(schemes.cyclic_repetition, 20, 3),
    _call(schemes.cyclic_repetition, 30, 2),
    _call(schemes.cyclic_mds, 21, 4),
    _call(schemes.cyclic_mds, 30, 5),
    _call(schemes.polynomial, 13, 3, 2),
    _call(schemes.polynomial, 16, 3, 3),
    _call(schemes.polynomial_gaussian, 16, 4, 2),
    _call(schemes.polynomial_gaussian, 24, 3, 3),
    _heterogeneous(2, 2, tuple(range(1, 15))),
    given_as_coefficients(_family(28, 7, 3, "cauchy")),
    given_as_coefficients(_call(schemes.cyclic_mds, 14, 3), stragglers=True),
]
"""Exact schemes of 13 to 30 workers."""


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


# Survivor sets --------------------------------------------------------------------------------------------------------


def promised_sets(scheme: GradientCode, most: int = 1000, seed: int = 0) -> Sets:
    """All sets of ``workers - stragglers``, or `most` random ones where there are more than `most`."""
    n, size = scheme.workers, scheme.workers - scheme.stragglers
    if comb(n, size) <= most:
        return list(combinations(range(n), size))
    rng = np.random.default_rng(seed)
    return [tuple(sorted(rng.permutation(n)[:size].tolist())) for _ in range(most)]


def larger_sets(scheme: GradientCode, count: int, seed: int = 1) -> Sets:
    """Random sets with fewer workers missing than may be, and the full set."""
    n, s = scheme.workers, scheme.stragglers
    rng = np.random.default_rng(seed)
    sets = {tuple(range(n))}
    for _ in range(count if s > 1 else 0):
        sets.add(tuple(sorted(rng.permutation(n)[: n - int(rng.integers(1, s))].tolist())))
    return sorted(sets)


def subsets(n: int) -> Iterator[tuple[int, ...]]:
    """All 2^n of them, by size."""
    for size in range(n + 1):
        yield from combinations(range(n), size)


# The whole encoding, and what decoding must do ------------------------------------------------------------------------


def encoding(scheme: GradientCode) -> Array:
    """E as one array, shape (workers, partitions, reduction)."""
    whole = np.zeros((scheme.workers, scheme.partitions, scheme.reduction))
    for worker, held in enumerate(scheme.assignment):
        whole[worker, list(held)] = scheme.coefficients(worker)
    return whole


def amplification(scheme: GradientCode, survivors: tuple[int, ...], whole: Array) -> float:
    """c(F), computed apart from `GradientCode.amplification`."""
    sizes = np.abs(whole[list(survivors)]).sum(axis=2)
    return float((np.abs(scheme.decoding_weights(survivors)) @ sizes).max())


def residual(scheme: GradientCode, survivors: tuple[int, ...], whole: Array) -> float:
    """How far the stored weights are from A E = I: max over u, j of the sum over v, in long double."""
    weights = scheme.decoding_weights(survivors).astype(np.longdouble)
    rows = whole[list(survivors)].astype(np.longdouble)
    product = (weights @ rows.reshape(len(rows), -1)).reshape(-1, *rows.shape[1:])
    return float(np.abs(product - np.eye(scheme.reduction)[:, None]).sum(axis=2).max())


# LU and QR are backward stable, so a row of A misses its z equations by at most a small constant times k u64 |A| |E|
# (k unknowns a row of the group's generator, z workers), and so do the entries of E that a scheme computed by a solve
# of its own: 4 (z + k) is taken for the constant. The largest ratio over the table is 0.7 of that, where E itself is
# the least accurate (cyclic repetition).
def weights_bound(scheme: GradientCode, amplified: float) -> float:
    """On `residual`, for survivors of the given amplification."""
    decoders = [scheme.decoder(g) for g in range(len(scheme.groups))]
    size = max(d.workers + d.code.k for d in decoders)  # type: ignore[attr-defined]
    return float(4 * size * UNIT[np.dtype(np.float64)] * amplified)


# Gradients ------------------------------------------------------------------------------------------------------------


def gradients(partitions: int, length: int, dtype: npt.DTypeLike, seed: int) -> Array:
    """Numbers of random sign between 1/2 and 1, so that none drowns in another's rounding; some rows far larger."""
    rng = np.random.default_rng(seed)
    values = rng.choice([-1.0, 1.0], (partitions, length)) * rng.uniform(0.5, 1.0, (partitions, length))
    values *= rng.choice([1.0, 1.0, 64.0, 1 / 64], (partitions, 1))
    return values.astype(dtype)


def plain_sum(values: Array) -> Array:
    return np.asarray(values.astype(np.longdouble).sum(axis=0))


def scale(values: Array) -> float:
    """The sum over partitions of the largest absolute element."""
    return float(np.abs(values).max(axis=1).astype(np.float64).sum())


def messages(scheme: GradientCode, values: Array) -> list[Array]:
    """What all workers send."""
    return [scheme.encode(w, [values[j] for j in scheme.assignment[w]]) for w in range(scheme.workers)]


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
