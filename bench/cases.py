"""The cases of the grid: which matrix times which rows, how they are counted, and what the right result is."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ElementType:
    """A type of the rows' elements, and of the arithmetic done on them.

    Attributes
    ----------
    name : str
    dtype, arithmetic : numpy dtype
    roundoff : float
        Half the distance from 1 to the next number of `dtype`.
    """

    name: str
    dtype: np.dtype[Any]
    arithmetic: np.dtype[Any]
    roundoff: float

    @property
    def half(self) -> bool:
        """Whether elements take two bytes."""
        return self.dtype.itemsize == 2

    def tolerance(self, terms: int) -> float:
        """Largest error of a sum of `terms` products, relative to the sum of their sizes.

        Products and sums rounded in the arithmetic's type, in any order (gamma_n of Higham 2002, chapter 3, n = terms
        + 1), and, where that is wider than the elements, one rounding of the result.
        """
        unit = 2.0**-24 if self.arithmetic.itemsize == 4 else 2.0**-53
        return (terms + 1) * unit * 1.01 + (self.roundoff * 1.01 if self.half else 0.0)


NAMES = ("f64", "f32", "f16", "bf16")


@functools.cache
def element_type(name: str) -> ElementType:
    """The type of that name. ImportError where ``bf16`` has no home."""
    single = np.dtype(np.float32)
    dtype: np.dtype[Any]
    if name == "bf16":
        import ml_dtypes

        return ElementType(name, np.dtype(ml_dtypes.bfloat16), single, 2.0**-8)
    dtype = np.dtype({"f64": np.float64, "f32": np.float32, "f16": np.float16}[name])
    return ElementType(
        name, dtype, single if name == "f16" else dtype, {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11}[name]
    )


@dataclass(frozen=True, order=True)
class Case:
    """``outputs (P, L) = coefficients (P, Q) @ inputs (Q, L)``, added to what is there with `accumulate`."""

    type: str
    threads: int
    p: int
    q: int
    length: int
    accumulate: bool = False

    @property
    def bytes(self) -> int:
        """Bytes that must move: each input once, each output once, or twice with `accumulate`."""
        return (self.q + self.p * (2 if self.accumulate else 1)) * self.length * element_type(self.type).dtype.itemsize

    @property
    def footprint(self) -> int:
        """Bytes of all inputs and outputs."""
        return (self.q + self.p) * self.length * element_type(self.type).dtype.itemsize

    @property
    def flops(self) -> int:
        """Operations that must be done: a product and a sum a term."""
        return 2 * self.p * self.q * self.length

    @property
    def description(self) -> dict[str, Any]:
        """What tells this case from others, for a record."""
        described = {"type": self.type, "threads": self.threads, "p": self.p, "q": self.q, "length": self.length}
        return {**described, "accumulate": True} if self.accumulate else described


SIZES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (10**3, 10**4, 10**5, 10**6, 10**7)


def grid(
    types: Sequence[str], threads: Sequence[int], sizes: Sequence[int], lengths: Sequence[int], memory: float
) -> Iterator[Case]:
    """All cases whose rows take at most `memory` bytes, short ones before long ones of the same shape."""
    for name in types:
        for count in threads:
            for p in sizes:
                for q in sizes:
                    for length in lengths:
                        case = Case(name, count, p, q, length)
                        if case.footprint <= memory:
                            yield case


class Arena:
    """Memory for rows of one type, touched once and used by all cases, so that none pays for page faults."""

    PERIOD = 1_000_003  # a prime: no two rows of a case are alike

    def __init__(self, element: ElementType) -> None:
        self.element = element
        numbers = np.random.default_rng(0).standard_normal(self.PERIOD)
        self._pattern = numbers.astype(element.dtype)
        self._inputs = self._pattern[:0]
        self._outputs = self._pattern[:0]

    def inputs(self, rows: int, length: int) -> Array:
        """A (rows, length) array of normal numbers."""
        if self._inputs.size < rows * length:
            self._inputs = np.resize(self._pattern, rows * length)
        return self._inputs[: rows * length].reshape(rows, length)

    def outputs(self, rows: int, length: int) -> Array:
        """A (rows, length) array to write to."""
        if self._outputs.size < rows * length:
            self._outputs = np.zeros(rows * length, self.element.dtype)
            self._outputs.fill(1)
        return self._outputs[: rows * length].reshape(rows, length)

    def coefficients(self, p: int, q: int) -> Array:
        """A (p, q) matrix in the arithmetic's type, its entries numbers of the elements' type: nobody rounds them."""
        numbers = np.random.default_rng((p, q)).standard_normal((p, q))
        return numbers.astype(self.element.dtype).astype(self.element.arithmetic)


class Problem:
    """A case with its data, and the right result on a sample of its columns."""

    SAMPLE = 256

    def __init__(self, case: Case, arena: Arena) -> None:
        self.case = case
        self.element = arena.element
        self.coefficients = arena.coefficients(case.p, case.q)
        self.inputs = arena.inputs(case.q, case.length)
        self.outputs = arena.outputs(case.p, case.length)
        inside = np.random.default_rng(case.length).integers(0, case.length, self.SAMPLE)
        ends = np.arange(min(40, case.length))
        self._columns = np.unique(np.concatenate([ends, case.length - 1 - ends, inside]))
        rows = self.inputs[:, self._columns].astype(np.longdouble)
        matrix = self.coefficients.astype(np.longdouble)
        self._expected = matrix @ rows
        self._size = np.abs(matrix) @ np.abs(rows)
        if case.accumulate:
            self._expected += 1
            self._size += 1

    def poison(self) -> None:
        """Fill the outputs with what no right result holds; with ones where they are added to."""
        self.outputs.fill(1 if self.case.accumulate else np.nan)

    def error(self) -> float:
        """Largest error of the outputs on the sample, relative to the sum of the sizes of the terms; NaN counts."""
        found = self.outputs[:, self._columns].astype(np.longdouble)
        return float(np.max(np.abs(found - self._expected) / self._size))

    @property
    def tolerance(self) -> float:
        """Errors above this are mistakes."""
        return self.element.tolerance(self.case.q + self.case.accumulate)
