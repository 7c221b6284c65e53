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

from fastgc import _checks, kernels

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
        self._stretches = lru_cache(maxsize=16)(self._cut)

    def views(self, vector: Array) -> list[Array]:
        """The tensors of a gradient, as views of it.

        Parameters
        ----------
        vector : ndarray, shape (length,)
            Contiguous.
        """
        if not isinstance(vector, np.ndarray) or vector.shape != (self.length,) or not vector.flags.c_contiguous:
            shape = getattr(vector, "shape", type(vector).__name__)
            raise ValueError(f"vector must be a contiguous array of shape ({self.length},), not {shape}")
        return [vector[a:b].reshape(shape) for (a, b), shape in zip(pairwise(self._starts), self.shapes, strict=True)]

    def flat(self, name: str, tensors: Any) -> list[Array]:
        """The tensors as 1-D arrays, views wherever they are contiguous; ValueError or TypeError where they do not fit.

        Parameters
        ----------
        name : str
            For messages.
        tensors : sequence of ndarray
            Of the layout's shapes, all of one element type.
        """
        if isinstance(tensors, np.ndarray) or not isinstance(tensors, Sequence):
            raise TypeError(f"{name} must be a sequence of arrays, not {type(tensors).__name__}")
        if len(tensors) != len(self.shapes):
            raise ValueError(f"{name} must be {len(self.shapes)} arrays, as the layout has it, not {len(tensors)}")
        for t, (tensor, shape) in enumerate(zip(tensors, self.shapes, strict=True)):
            if not isinstance(tensor, np.ndarray):
                raise TypeError(f"{name}[{t}] must be a NumPy array, not {type(tensor).__name__}")
            if tensor.shape != shape:
                raise ValueError(f"{name}[{t}] must have shape {shape}, not {tensor.shape}")
            if tensor.dtype != tensors[0].dtype:
                raise TypeError(f"{name}[{t}] must have element type {tensors[0].dtype}, not {tensor.dtype}")
        return [tensor.reshape(-1) for tensor in tensors]

    def encode(
        self, coefficients: npt.NDArray[np.float64], gradients: Sequence[Any], out: Array | None,
        accumulate: bool = False,
    ) -> Array:  # fmt: skip
        """A message from gradients that are lists of tensors: the bits of `fastgc.kernels.encode` on them concatenated.

        Parameters
        ----------
        coefficients : ndarray, shape (d, m)
        gradients : sequence of d sequences of ndarray
        out : ndarray, shape (ceil(length / m),), optional
        accumulate : bool
        """
        m = coefficients.shape[1]
        rows = [self.flat(f"gradients[{j}]", tensors) for j, tensors in enumerate(gradients)]
        dtype = _checks.element_type("gradients", rows[0][0].dtype)
        for j, row in enumerate(rows):
            if row[0].dtype != dtype:
                raise TypeError(f"gradients[{j}] must have element type {dtype}, not {row[0].dtype}")
        size = -(-self.length // m)
        if out is None:
            out = np.empty(size, dtype)
        _checks.message("out", out, size, dtype)
        if any(np.may_share_memory(out, piece) for row in rows for piece in row):
            raise ValueError("out must not overlap the gradients")
        for begin, end, parts in self._stretches(m):
            inputs = [row[t][start : start + end - begin] for row in rows for t, start in parts]
            weights = coefficients[:, : len(parts)].reshape(1, -1)
            kernels.lincomb(weights, inputs, [out[begin:end]], accumulate=accumulate)
        return out

    def _cut(self, m: int) -> list[Stretch]:
        """The stretches of messages m times shorter than the gradient."""
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and other.shapes == self.shapes

    def __hash__(self) -> int:
        return hash(self.shapes)

    def __repr__(self) -> str:
        return f"Layout({list(self.shapes)!r})"
