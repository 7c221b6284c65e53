"""How much accuracy a gradient code loses, measured over its survivor sets: `measure`.

Condition numbers and amplifications foretell the error (`GradientCode.error_bound`); here gradients are encoded,
decoded from every set, and compared with their sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import _checks, codes, schemes
from fastgc.codes import LinearCode
from fastgc.gradient_code import GradientCode

__all__ = ["BLOCK", "LONGEST", "Stability", "Subject", "every", "examples", "measure", "table"]

BLOCK = 64
"""Elements of a message: the error of a set is the largest of so many elements in each block."""
_TOGETHER = 1024  # sets whose decoded sums are compared at once; no more than the pattern cache holds


@dataclass(frozen=True)
class Stability:
    """What `measure` found.

    Attributes
    ----------
    sets : int
        Survivor sets looked at.
    condition : tuple of float
        Worst and median of ``condition_number`` over them.
    errors : dict
        For every element type of the messages, worst and median over the sets of the error of the decoded sum;
        infinite where messages overflow.
    """

    sets: int
    condition: tuple[float, float]
    errors: dict[str, tuple[float, float]]


def measure(
    gc: GradientCode,
    survivor_sets: Iterable[Sequence[int]],
    dtypes: Sequence[npt.DTypeLike] = ("float32",),
    *,
    seed: int = 0,
) -> Stability:
    """Decode random gradients from every set, and look how far the result is from their sum.

    Gradients are standard normal, in float32 (float64 where the messages are); messages are encoded from them in
    the element types asked for, and decoded into the gradients' type.

    Parameters
    ----------
    gc : GradientCode
    survivor_sets : iterable of sequences of int
        Decodable, at least one; each is looked at once.
    dtypes : sequence of dtype
        Element types of the messages.
    seed : int
        Of the gradients.

    Returns
    -------
    Stability
        Errors are relative to the sum over partitions of the largest element of their gradients, as in
        `GradientCode.error_bound`; the sum compared with is taken in long double.

    Raises
    ------
    NotDecodableError
        A set cannot be decoded.
    ValueError
        No set was given.
    """
    length = BLOCK * gc.reduction
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    gradients = rng.standard_normal((gc.partitions, length))
    cases = [_Case(gc, gradients, _checks.element_type("dtypes", dtype)) for dtype in dtypes]
    conditions: list[float] = []
    remaining = iter(survivor_sets)
    while sets := list(islice(remaining, min(_TOGETHER, gc.patterns.maxsize))):
        gc.patterns.precompute(sets)
        conditions += [gc.condition_number(survivors) for survivors in sets]
        for case in cases:
            case.decode(sets)
    if not conditions:
        raise ValueError("survivor_sets must have at least one set, not none")
    errors = {str(case.dtype): _worst_and_median(case.errors) for case in cases}
    return Stability(len(conditions), _worst_and_median(conditions), errors)


class _Case:
    """One element type: its messages, and the errors of the sets decoded so far."""

    def __init__(self, gc: GradientCode, gradients: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.errors: list[float] = []
        self._gc = gc
        self._result = _checks.compute_type(dtype)
        given = gradients.astype(self._result)
        self._sum = given.astype(np.longdouble).sum(axis=0)
        self._scale = np.abs(given).max(axis=1).sum(dtype=np.float64)
        self._messages = [
            gc.encode(
                worker,
                [given[partition] for partition in held],
                out=np.empty(gc.message_length(given.shape[1]), dtype=dtype),
            )
            for worker, held in enumerate(gc.assignment)
        ]

    def decode(self, sets: Sequence[Sequence[int]]) -> None:
        decoded = np.empty((len(sets), len(self._sum)), dtype=self._result)
        for out, survivors in zip(decoded, sets, strict=True):
            messages = {worker: self._messages[worker] for worker in survivors}
            self._gc.decode(messages, out.size, dtype=self._result, out=out)
        errors = (np.abs(decoded - self._sum).max(axis=1) / self._scale).astype(np.float64)
        self.errors += np.where(np.isnan(errors), np.inf, errors).tolist()  # NaN: messages have overflowed


def _worst_and_median(values: Sequence[float]) -> tuple[float, float]:
    return float(max(values)), float(np.median(values))


# Tables ---------------------------------------------------------------------------------------------------------------

LONGEST = 16
"""The largest load in a table: the sets of m of d workers double with each more."""


class Subject(NamedTuple):
    """A code or prior scheme, and the survivor sets over which it is measured."""

    row: dict[str, Any]
    scheme: GradientCode
    sets: Iterable[tuple[int, ...]]


def _of_code(code: LinearCode) -> Subject:
    row = {
        "family": code.name.partition("(")[0],
        "code": code.name,
        "n": code.n,
        "k": code.k,
        "distance": code.distance,
        "stragglers": code.distance - 1,
        "mds": code.is_mds,
    }
    return Subject(row, schemes.grouped(code.n, code=code), code.decodable_sets())


def _of_scheme(scheme: GradientCode, load: int) -> Subject:
    """In terms of codes: load and reduction are length and dimension, and what meets d >= s + m is MDS."""
    row = {
        "family": scheme.name.partition("(")[0],
        "code": scheme.name,
        "n": load,
        "k": scheme.reduction,
        "distance": scheme.stragglers + 1,
        "stragglers": scheme.stragglers,
        "mds": load == scheme.stragglers + scheme.reduction,
    }
    return Subject(row, scheme, combinations(range(scheme.workers), scheme.workers - scheme.stragglers))


def _element_types() -> list[Any]:
    types: list[Any] = [np.float32, np.float16]
    if find_spec("ml_dtypes") is not None:
        import ml_dtypes

        types.insert(1, ml_dtypes.bfloat16)
    return types


def examples() -> list[Subject]:
    """A few codes of each family."""
    sizes = ((4, 2), (8, 4), (12, 6))
    return [_of_code(make(n, k)) for make in codes.FAMILIES.values() for n, k in sizes] + [
        *[_of_code(codes.repetition(n)) for n in (2, 4)],
        *[_of_code(codes.parity(k)) for k in (3, 7)],
        *[_of_code(codes.hamming(r)) for r in (3, 4)],
        *[_of_code(codes.reed_muller(r, m)) for r, m in ((1, 3), (1, 4), (2, 4))],
        _of_code(codes.product(codes.parity(2), codes.parity(2))),
        _of_code(codes.product(codes.repetition(2), codes.cauchy(4, 2))),
    ]


def every(most: int) -> list[Subject]:
    """Every family and prior scheme at every ``1 <= m < d <= most``."""
    sizes = [(d, m) for d in range(2, most + 1) for m in range(1, d)]
    return [
        *[_of_code(make(d, m)) for make in codes.FAMILIES.values() for d, m in sizes],
        *[_of_scheme(schemes.polynomial(d, d - m, m), d) for d, m in sizes],
        *[_of_scheme(schemes.cyclic_repetition(most, d - 1), d) for d in range(2, most)],
    ]


def table(subjects: Iterable[Subject]) -> Iterator[dict[str, Any]]:
    """Codes with what they promise, and how accurate decoding is.

    Parameters
    ----------
    subjects : iterable of Subject

    Yields
    ------
    dict
        ``family``, ``code``, ``n``, ``k``, ``distance``, ``stragglers`` (one less), ``mds``; over all decodable sets of
        k rows (of prior schemes: all of as many workers as must answer) ``condition``, the worst, ``median_condition``,
        and ``errors`` and ``median_errors`` of the decoded sum by element type of the messages, as in
        `fastgc.stability.measure`; None where messages overflow.
    """
    types = _element_types()
    for row, scheme, sets in subjects:
        found = measure(scheme, sets, types)
        errors = {
            name: [value if np.isfinite(value) else None for value in pair] for name, pair in found.errors.items()
        }
        yield {
            **row,
            "condition": found.condition[0],
            "median_condition": found.condition[1],
            "errors": {name: worst for name, (worst, _) in errors.items()},
            "median_errors": {name: median for name, (_, median) in errors.items()},
        }
