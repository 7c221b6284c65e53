"""The launches that it takes to combine rows, add up groups and invert patterns, on a device that does as it is told.

Nothing here needs CUDA, and nothing is checked. `fastgc.kernels._cuda_calls` launches at once, with coefficients that
it has at hand; `fastgc.kernels._cuda_items` notes the launches for a program that runs later.
"""

from __future__ import annotations

import itertools
import math
import operator
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from fastgc.kernels import _cuda_tiles as tiles

Matrix = npt.NDArray[Any]
STORE, ACCUMULATE, ADD = range(3)  # enum Mode
MOST_ITEMS = 65535  # in the grid's last axis


class View(NamedTuple):
    """An array in a device's memory: where it is, not what is in it. Strides are in bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    writeable: bool
    owner: Any  # keeps the memory alive


class Work(NamedTuple):
    """What a launch's blocks share: so many tiles in each of ``layers`` by ``items``, the grid's other two axes."""

    tiles: int
    layers: int = 1
    items: int = 1

    def grid(self, at_once: int) -> tuple[int, int, int]:
        """The grid for a device that runs so many blocks at once."""
        return self.layers, tiles.share(self.tiles, self.layers * self.items, at_once), self.items


class Device(Protocol):
    """What a device does. Nothing waits for it: launches go to the caller's current stream."""

    def view(self, value: Any) -> View | None:
        """The array as it lies in this device's memory, None for anything else; ValueError for another device's."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """A new array, of the kind of `like`, that lives as long as what was launched may use it."""
        ...

    def launch(self, kernel: tiles.Kernel, work: Work, argument: bytes) -> None:
        """Start a kernel on the current stream."""
        ...


class Rows:
    """Rows of one length and element type: numbers next to each other, from each of ``addresses`` on.

    Where a launch is for many items, ``apart`` says of each row how far it is to the same of the next item, in bytes.
    """

    __slots__ = ("addresses", "apart", "dtype", "length", "owner", "size")

    def __init__(
        self, addresses: Sequence[int], length: int, dtype: str, owner: Any = None, apart: Sequence[int] = ()
    ) -> None:
        self.addresses, self.length, self.dtype, self.owner, self.apart = addresses, length, dtype, owner, apart
        self.size = tiles.ELEMENTS[dtype][1]

    def __len__(self) -> int:
        return len(self.addresses)

    def row(self, p: int) -> Rows:
        """One of them."""
        return Rows([self.addresses[p]], self.length, self.dtype, self.owner, self.apart[p : p + 1])

    def __add__(self, other: Rows) -> Rows:
        """These rows and others like them."""
        addresses, apart = [*self.addresses, *other.addresses], [*self.apart, *other.apart]
        return Rows(addresses, self.length, self.dtype, (self.owner, other.owner), apart)

    def bounds(self) -> tuple[int, int]:
        """Where the memory of all begins and ends."""
        addresses, size = self.addresses, self.length * self.size
        if not isinstance(addresses, range):
            return min(addresses), max(addresses) + size
        first, last = addresses[0], addresses[-1]
        return (first, last + size) if first < last else (last, first + size)

    def distance(self) -> float:
        """The smallest from one row's begin to another's."""
        if isinstance(self.addresses, range):
            return abs(self.addresses.step)
        starts = sorted(self.addresses)
        return min(map(operator.sub, starts[1:], starts), default=math.inf)

    def offset(self) -> int:
        """Bytes from the begin of a line to that of a row; -1 if they are not the same of all rows and items."""
        addresses, first = self.addresses, self.addresses[0]
        steps = (addresses.step,) if isinstance(addresses, range) else {at - first for at in addresses}
        for step in itertools.chain(steps, self.apart) if self.apart else steps:
            if step % tiles.LINE:
                return -1
        return first % tiles.LINE


def spaced(first: int, count: int, step: int) -> Sequence[int]:
    """So many addresses, each ``step`` bytes after the one before: a range, of which the ends tell nearly all."""
    return range(first, first + count * step, step) if count > 1 and step else [first] * count


def _head(rows: Sequence[Rows]) -> int:
    """Columns before the first where every row begins a line; -1 if there is none."""
    offsets = [each.offset() for each in rows]
    if not any(offsets):
        return 0
    begins = [(each.size, offset) for each, offset in zip(rows, offsets, strict=True)]
    size, offset = min(begins)
    head = -offset % tiles.LINE // size
    for _ in range(2):  # rows of wider elements may begin a line half as far again
        if all(begin >= 0 and (begin + head * each) % tiles.LINE == 0 for each, begin in begins):
            return head
        head += tiles.LINE // size
    return -1


def wide_type(kind: str) -> str:
    """The type that rows of a kind are combined in."""
    return "float64" if kind == "float64" else "float32"


class Launches(ABC):
    """Launches on a device, with `Rows`; a subclass says where coefficients are."""

    def __init__(self, device: Device, ones: Matrix) -> None:
        """`ones`: the 1 x 2 matrix that adds two rows."""
        self._device = device
        self._ones = ones
        self._items = 1

    @abstractmethod
    def _combine(self, matrix: Matrix, inputs: Rows, out: Rows, mode: int) -> None:
        """Combinations of rows, by a kernel for `lincomb`."""

    def _launch_items(
        self, kernel: tiles.Lincomb, inputs: Rows, out: Rows, coefficients: int, apart: int, mode: int
    ) -> None:
        """Launch a kernel for `Items`, with coefficients in the device's memory, ``apart`` bytes an item."""
        rows = [
            row for each in (inputs, out) for row in zip(each.addresses, each.apart or [0] * len(each), strict=True)
        ]
        fits = tiles.items_bytes(len(inputs), len(out)) <= tiles.ITEMS_BYTES
        for first in range(0, self._items, MOST_ITEMS):
            table = struct.pack(f"<{2 * len(rows)}q", *(n for at, far in rows for n in (at + first * far, far)))
            there = None if fits else self._write(table)
            rest = struct.pack("<QQq8x", there.address if there else 0, coefficients + first * apart, apart)
            items = min(MOST_ITEMS, self._items - first)
            self._start(kernel, rest + table if fits else rest, inputs, out, mode, items)

    def _start(self, kernel: tiles.Lincomb, rest: bytes, inputs: Rows, out: Rows, mode: int, items: int = 1) -> None:
        """Launch, with an argument that is what all begin with, and the rest."""
        length = inputs.length
        head = _head([inputs, out])
        if head >= length:
            head = -1
        begin = struct.pack("<qqiii4x", length, head, len(out), len(inputs), mode)
        argument = (begin + rest).ljust(tiles.ARGUMENT_BYTES[kernel.argument], b"\0")
        wide_tiles = (head > 0) + -(-(length - max(head, 0)) // kernel.columns)
        work = Work(wide_tiles, kernel.layers(len(out)), items)
        self._device.launch(kernel, work, argument)

    def _room(self, shape: tuple[int, ...], dtype: str) -> View:
        """Memory of the device, which is lent to others once this is let go: hold it until all is launched."""
        view = self._device.view(self._device.empty(shape, dtype, None))
        assert view is not None  # the device's own
        return view

    def _write(self, table: bytes) -> View:
        """Tables in the device's memory, which is the caller's to hold."""
        table = table.ljust(-(-len(table) // 8) * 8, b"\0")
        there = self._room((len(table) // 8,), "float64")
        size = tiles.ARGUMENT_BYTES["Piece"]
        for begin in range(0, len(table), size - 16):
            piece = table[begin : begin + size - 16]
            argument = struct.pack("<Qq", there.address + begin, len(piece) // 8) + piece
            self._device.launch(tiles.PIECE, Work(1), argument.ljust(size, b"\0"))
        return there

    def _tree(self, groups: int, group: Callable[[int, Rows, int], None], out: Rows, kind: str) -> None:
        """The groups' results, added up as `fastgc.kernels.decode` says: in the type computed in.

        ``group(g, rows, mode)`` makes the result of a group of messages of the element type `kind`.
        """
        wide = wide_type(kind)

        def buffer() -> Rows:
            count, row = len(out), out.length * tiles.ELEMENTS[wide][1]
            there = self._room((self._items * count * out.length,), wide)
            apart = [count * row if self._items > 1 else 0] * count
            return Rows(spaced(there.address, count, row), out.length, wide, there, apart)

        def tree(lo: int, hi: int, result: Rows) -> None:
            if hi - lo == 1:
                return group(lo, result, STORE)
            middle = (lo + hi) // 2
            into = result.dtype == wide
            if into and hi - lo <= 3:  # the group alone on its side is added where it is made, to the sum of the other
                alone, others = (middle, (lo, middle)) if hi - middle == 1 else (lo, (middle, hi))
                tree(*others, result)
                return group(alone, result, ADD)
            left, right = result if into else buffer(), buffer()
            tree(lo, middle, left)
            tree(middle, hi, right)
            for p in range(len(result)):
                if into:
                    self._combine(self._ones[:, :1], right.row(p), result.row(p), ADD)
                else:
                    self._combine(self._ones, left.row(p) + right.row(p), result.row(p), STORE)
            return None

        tree(0, groups, out)

    def _invert(self, generator: View, patterns: View, weights: View, flags: View) -> None:
        """The inverses of the patterns' rows: see `fastgc.kernels._cuda_calls.Calls.invert`."""
        (n, k), (count, _) = generator.shape, patterns.shape
        kernel = tiles.choose_inversion(k)
        blocks, work = -(-count // kernel.groups), None
        if kernel.width == 0:
            blocks = min(blocks, tiles.ROOMS)
            work = self._room((blocks * tiles.inversion_numbers(k),), "float64")
        addresses = [0 if view is None else view.address for view in (generator, patterns, weights, flags, work)]
        argument = struct.pack("<QQQQQqii", *addresses, count, n, k)
        self._device.launch(kernel, Work(blocks), argument)
