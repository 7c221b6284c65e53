"""Launches noted for a program that runs later, on buffers and a device that are not known yet.

`fastgc.jax` gives the notes to a custom call of XLA's, csrc/xla_cuda.cpp, which puts in the addresses of the buffers
and makes the launches. They have all that a launch is but for the number of blocks, which depends on the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc.kernels import _cuda_tiles as tiles
from fastgc.kernels._cuda_launches import ACCUMULATE, STORE, Launches, Matrix, Rows, View, Work

__all__ = ["Notes", "Recorded"]

# An address that is not known yet, as a word of an argument: the number of a buffer and an offset in it. No other word
# begins with these bits, as lengths, distances and pairs of counts are below 2^62, and a head is at least -1.
UNKNOWN, BUFFER = 1 << 62, 1 << 40
HEAD = 1  # the word of a Call or Items that says where rows are aligned, if buffers are
WORKSPACE_LINE = 256  # bytes, as what cudaMalloc gives


def address(buffer: int, offset: int = 0) -> int:
    """Where a buffer will be, in words of arguments."""
    return UNKNOWN | buffer * BUFFER | offset


class Notes:
    """See `fastgc.kernels._cuda_launches.Device`. A device that notes what it is told."""

    def __init__(self, workspace: int) -> None:
        """`workspace`: the buffer whose parts new arrays are."""
        self.workspace = workspace
        self.room = 0  # bytes that it must have
        self._taken = 0
        self._kernels: dict[tiles.Kernel, int] = {}
        self._words: list[int] = []

    def view(self, value: Any) -> View | None:
        return value if isinstance(value, View) else None

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> View:
        at = -(-self._taken // WORKSPACE_LINE) * WORKSPACE_LINE
        size = 1 if dtype == "uint8" else tiles.ELEMENTS[dtype][1]
        self._taken = at + size * math.prod(shape)
        self.room = max(self.room, self._taken)
        return View(address(self.workspace, at), shape, (), dtype, True, None)

    def reuse(self) -> None:
        """New arrays may lie where those so far do, as launches follow each other."""
        self._taken = 0

    def launch(self, kernel: tiles.Kernel, work: Work, argument: bytes) -> None:
        number = self._kernels.setdefault(kernel, len(self._kernels))
        head = HEAD if isinstance(kernel, tiles.Lincomb) else -1
        words = np.trim_zeros(np.frombuffer(argument, np.int64), "b").tolist()
        self._words += [number, *work, head, len(argument), len(words), *words]

    def attributes(self, compiled: Callable[[tuple[tiles.Kernel, ...]], str]) -> dict[str, Any]:
        """What the custom call is told, as its attributes; ``compiled`` makes PTX of kernels.

        ``code`` is the PTX, ``kernels`` the names of its entry points, ``shapes`` threads and bytes of shared memory of
        each, ``launches`` the launches one after the other, and ``key`` is equal only where all but the last are.
        """
        kernels = tuple(self._kernels)
        code, names = compiled(kernels), " ".join(kernel.name for kernel in kernels)
        shapes = [number for kernel in kernels for number in (kernel.threads, kernel.shared)]
        key = hashlib.sha256(repr((code, names, shapes)).encode()).hexdigest()
        launches = np.array(self._words, np.int64)
        return {"code": code, "kernels": names, "shapes": np.array(shapes, np.int64), "launches": launches, "key": key}


class Recorded(Launches):
    """Launches for coefficients that lie in a buffer, and for many items at once, noted.

    A matrix is of numbers of coefficients, of which there are so many: `zero` and `one` are the two numbers after the
    last. `places` says which coefficients the buffer has, one after the other, of each item if it has its own.
    """

    def __init__(self, buffer: int, coefficients: int, notes: Notes, items: int = 1, own: bool = False) -> None:
        self.zero, self.one = coefficients, coefficients + 1
        super().__init__(notes, np.array([[self.one] * 2]))
        self.notes = notes
        self._buffer, self._items, self._own = buffer, items, own
        self._blocks: dict[bytes, int] = {}
        self._placed: list[npt.NDArray[np.int64]] = []

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Numbers of coefficients, as they follow each other in the buffer."""
        return np.concatenate(self._placed)

    def _place(self, block: npt.NDArray[np.int64], line: int) -> int:
        """Where in the buffer a block of coefficients begins: with a line of so many."""
        at = sum(map(len, self._placed))
        begin = at + -at % line
        found = self._blocks.setdefault(block.tobytes(), begin)
        if found == begin:
            self._placed += [np.full(begin - at, self.zero, np.int64), block.reshape(-1)]
        return found

    def _combine(self, matrix: Matrix, inputs: Rows, out: Rows, mode: int) -> None:
        kind = inputs.dtype
        kernel = tiles.choose(kind, out.dtype, len(out), len(inputs), "Items")
        stride = kernel.layers(len(out)) * kernel.rows
        block = np.full((len(inputs), stride), self.zero, np.int64)
        block[:, : len(out)] = matrix.T
        size = tiles.ELEMENTS[kind][2]
        coefficients = address(self._buffer, self._place(block, tiles.LINE // size) * size)
        apart = block.size * size if self._own else 0  # and then there is one block
        self._launch_items(kernel, inputs, out, coefficients, apart, mode)

    def lincomb(self, matrix: Matrix, inputs: Rows, out: Rows, accumulate: bool) -> None:
        """See `fastgc.kernels.lincomb`."""
        self._combine(matrix, inputs, out, ACCUMULATE if accumulate else STORE)

    def stretch(self, out: Rows, groups: Iterable[tuple[Matrix, Rows]]) -> None:
        """Rows, each the sum over groups of what a matrix makes of rows, added up as `fastgc.kernels.decode` does."""
        given = list(groups)

        def group(g: int, result: Rows, mode: int) -> None:
            self._combine(*given[g], result, mode)

        self.notes.reuse()
        self._tree(len(given), group, out, given[0][1].dtype)

    def invert(self, generator: View, patterns: View, weights: View, flags: View) -> None:
        """See `fastgc.kernels._cuda_calls.Calls.invert`."""
        self._invert(generator, patterns, weights, flags)
