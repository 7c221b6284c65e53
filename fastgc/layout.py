"""A list of tensors, one a layer, as one gradient: encoded where they lie, without concatenating them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import _checks, arrays, kernels

Array = npt.NDArray[Any]


class Stretch(NamedTuple):
    """Columns of a message over which every block lies in one tensor; ``parts[u]``: the tensor and where block u
    starts in it. Blocks beyond the gradient's end are absent."""

    begin: int
    end: int
    parts: tuple[tuple[int, int], ...]


class Layout:
    """How tensors follow each other in a gradient: in the order given, each in C order.

    Parameters
    ----------
    shapes : iterable of sequences of int
        Of the tensors, such as a model's parameters; together at least one element.

    Attributes
    ----------
    shapes : tuple of tuple of int
    length : int
        Number of elements of the gradient.

    Raises
    ------
    TypeError, ValueError
        A shape that is none, or no elements at all.
    """

    def __init__(self, shapes: Iterable[Sequence[int]]) -> None:
        try:
            given = [tuple(shape) for shape in shapes]
        except TypeError:
            raise TypeError(f"shapes must be an iterable of sequences of integers, not {shapes!r}") from None
        self.shapes: tuple[tuple[int, ...], ...] = tuple(
            tuple(_checks.integer(f"shapes[{t}][{axis}]", size, 0) for axis, size in enumerate(shape))
            for t, shape in enumerate(given)
        )
        self._starts = [0, *accumulate(map(prod, self.shapes))]
        self.length = self._starts[-1]
        if self.length == 0:
            raise ValueError(f"shapes must have at least one element in all, not {list(self.shapes)}")
        self._cached = lru_cache(maxsize=16)(self._cut)

    def views(self, vector: Array) -> list[Array]:
        """The tensors of a gradient, as views of it.

        Parameters
        ----------
        vector : array, shape (length,)
            Contiguous, of any library that cuts and reshapes arrays without copying them (JAX copies).
        """
        shape = getattr(vector, "shape", type(vector).__name__)
        if not arrays.is_array(vector) or shape != (self.length,) or not _is_contiguous(vector):
            raise ValueError(f"vector must be a contiguous array of shape ({self.length},), not {shape}")
        reshape = getattr(type(vector), "reshape", None) or vector.__array_namespace__().reshape
        pieces = zip(pairwise(self._starts), self.shapes, strict=True)
        return [reshape(vector[a:b], shape) for (a, b), shape in pieces]

    def flat(self, name: str, tensors: Any, where: arrays.Origin | None = None) -> list[Array]:
        """The tensors as 1-D views for the kernels, or copies of those that are not contiguous.

        Parameters
        ----------
        name : str
            For messages.
        tensors : sequence of arrays
            Of the layout's shapes, all of one element type.
        where : Origin, optional
            Where they come from; by default, where the first does.

        Raises
        ------
        TypeError, ValueError
            Tensors that do not fit.
        """
        if arrays.is_array(tensors) or not isinstance(tensors, Sequence):
            raise TypeError(f"{name} must be a sequence of arrays, not {type(tensors).__name__}")
        if len(tensors) != len(self.shapes):
            raise ValueError(f"{name} must be {len(self.shapes)} arrays, as the layout has it, not {len(tensors)}")
        where = where or arrays.origin(f"{name}[0]", tensors[0])
        found = [where.view(f"{name}[{t}]", tensor) for t, tensor in enumerate(tensors)]
        for t, (tensor, shape) in enumerate(zip(found, self.shapes, strict=True)):
            if tensor.shape != shape:
                raise ValueError(f"{name}[{t}] must have shape {shape}, not {tensor.shape}")
            if tensor.dtype != found[0].dtype:
                raise TypeError(f"{name}[{t}] must have element type {found[0].dtype}, not {tensor.dtype}")
        return [tensor.reshape(-1) for tensor in found]

    def origin(self, name: str, gradients: Any) -> arrays.Origin:
        """Where lists of tensors come from, by the first tensor of the first; `arrays.NUMPY` where there is none."""
        first = gradients[0] if isinstance(gradients, Sequence) and gradients else None
        return arrays.origin_of_rows(f"{name}[0]", list(first[:1]) if isinstance(first, Sequence) else None)

    def encode(
        self, coefficients: npt.NDArray[np.float64], gradients: Sequence[Any], out: Array | None,
        accumulate: bool = False,
    ) -> Array:  # fmt: skip
        """A message from gradients that are lists of tensors: the bits of `fastgc.kernels.encode` on them concatenated.

        Parameters
        ----------
        coefficients : ndarray, shape (d, m)
        gradients : sequence of d sequences of arrays
        out : array, shape (ceil(length / m),), optional
        accumulate : bool
        """
        m = coefficients.shape[1]
        where = self.origin("gradients", gradients)
        rows = [self.flat(f"gradients[{j}]", tensors, where) for j, tensors in enumerate(gradients)]
        dtype = _checks.element_type("gradients", rows[0][0].dtype)
        for j, row in enumerate(rows):
            if row[0].dtype != dtype:
                raise TypeError(f"gradients[{j}] must have element type {dtype}, not {row[0].dtype}")
        size = -(-self.length // m)

        def run(made: Array) -> Array:
            found = _checks.message("out", made, size, None)
            if not _checks.converts(dtype, found):
                raise TypeError(f"out must have element type {dtype}, or one that it goes out as, not {found}")
            _checks.output("out", made)
            if any(arrays.overlap(made, piece) for row in rows for piece in row):
                raise ValueError("out must not overlap the gradients")
            for begin, end, parts in self.stretches(m):
                inputs = [row[t][start : start + end - begin] for row in rows for t, start in parts]
                weights = coefficients[:, : len(parts)].reshape(1, -1)
                kernels.lincomb(weights, inputs, [made[begin:end]], accumulate=accumulate)
            return made

        return where.compute(run, lambda: (size, dtype), out)  # type: ignore[no-any-return]

    def stretches(self, m: int) -> list[Stretch]:
        """The stretches of messages m times shorter than the gradient; not to be changed."""
        return self._cached(m)

    def _cut(self, m: int) -> list[Stretch]:
        block = -(-self.length // m)
        # A tensor's start is a new stretch in whichever block it falls, and so is the gradient's end.
        cuts = sorted({start % block for start in self._starts} | {0, block})
        full = [t for t, (a, b) in enumerate(pairwise(self._starts)) if a < b]
        starts = [self._starts[t] for t in full]
        stretches = []
        for begin, end in pairwise(cuts):
            parts = []
            for first in range(begin, self.length, block):
                index = bisect_right(starts, first) - 1
                parts.append((full[index], first - starts[index]))
            stretches.append(Stretch(begin, end, tuple(parts)))
        return stretches

    def __reduce__(self) -> tuple[type[Layout], tuple[tuple[tuple[int, ...], ...]]]:
        return Layout, (self.shapes,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and other.shapes == self.shapes

    def __hash__(self) -> int:
        return hash(self.shapes)

    def __repr__(self) -> str:
        return f"Layout({list(self.shapes)!r})"


def _is_contiguous(vector: Any) -> bool:
    if hasattr(vector, "is_contiguous"):  # PyTorch's
        return bool(vector.is_contiguous())
    return not hasattr(vector, "flags") or bool(vector.flags.c_contiguous)  # others have no strides, or copy
