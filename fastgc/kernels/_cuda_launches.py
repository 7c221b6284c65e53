"""The launches that it takes to combine rows, add up groups and invert patterns, on a device that does as it is told.

Nothing here needs CUDA, and nothing is checked. `fastgc.kernels._cuda_calls` launches at once, with coefficients that
it has at hand; `fastgc.kernels._cuda_items` notes the launches for a program that runs later.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastgc.kernels import _cuda_tiles as tiles

Bytes = npt.NDArray[np.uint8]
Matrix = npt.NDArray[Any]
STORE, ACCUMULATE, ADD = range(3)  # enum Mode
MOST_ITEMS = 65535  # in the grid's last axis


@dataclass(frozen=True)
class View:
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

    def launch(self, kernel: tiles.Kernel, work: Work, threads: int, shared: int, argument: Bytes) -> None:
        """Start a kernel on the current stream."""
        ...


@dataclass(frozen=True)
class Row:
    """A row of numbers next to each other, the same of every item ``apart`` bytes from that of the one before."""

    address: int
    length: int
    dtype: str
    owner: Any = None
    apart: int = 0

    @property
    def size(self) -> int:
        return tiles.ELEMENTS[self.dtype][1]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, columns: slice) -> Row:
        begin, end, _ = columns.indices(self.length)
        return Row(self.address + begin * self.size, end - begin, self.dtype, self.owner, self.apart)


def _head(rows: Sequence[Row]) -> int:
    """Columns before the first where every row begins a line; -1 if there is none."""
    smallest = min(rows, key=lambda row: row.size)
    if any(row.apart % tiles.LINE for row in rows):
        return -1  # not the same in the next item
    head = -smallest.address % tiles.LINE // smallest.size
    for _ in range(2):  # rows of wider elements may begin a line half as far again
        if all((row.address + head * row.size) % tiles.LINE == 0 for row in rows):
            return head
        head += tiles.LINE // smallest.size
    return -1


def wide_type(kind: str) -> str:
    """The type that rows of a kind are combined in."""
    return "float64" if kind == "float64" else "float32"


class Launches(ABC):
    """Launches on a device, with `Row` for rows; a subclass says where coefficients are."""

    def __init__(self, device: Device, ones: Matrix) -> None:
        """`ones`: the 1 x 2 matrix that adds two rows."""
        self._device = device
        self._ones = ones
        self._items = 1

    @abstractmethod
    def _combine(self, matrix: Matrix, inputs: Sequence[Row], out: Sequence[Row], mode: int) -> None:
        """Combinations of rows, by a kernel for `lincomb`."""

    def _launch_items(
        self,
        kernel: tiles.Lincomb,
        inputs: Sequence[Row],
        out: Sequence[Row],
        coefficients: int,
        apart: int,
        mode: int,
    ) -> None:
        """Launch a kernel for `Items`, with coefficients in the device's memory, ``apart`` bytes an item."""
        rows = [*inputs, *out]
        room = tiles.items_bytes(len(inputs), len(out))
        for first in range(0, self._items, MOST_ITEMS):
            argument = np.zeros(tiles.ARGUMENT_BYTES, np.uint8)
            table, there = argument[tiles.ARGUMENT_BYTES - tiles.ITEMS_BYTES :], None
            if room > tiles.ITEMS_BYTES:
                table = np.zeros(room, np.uint8)
            table[:room].view(np.int64)[:] = [n for row in rows for n in (row.address + first * row.apart, row.apart)]
            if room > tiles.ITEMS_BYTES:
                there = self._write(table)
            address = 0 if there is None else there.address
            struct.pack_into("<QQq", argument.data, 32, address, coefficients + first * apart, apart)
            self._start(kernel, argument, inputs, out, mode, min(MOST_ITEMS, self._items - first))

    def _start(
        self, kernel: tiles.Lincomb, argument: Bytes, inputs: Sequence[Row], out: Sequence[Row], mode: int, items: int
    ) -> None:
        """Launch, with what both kinds of arguments begin with."""
        length = inputs[0].length
        head = _head([*inputs, *out])
        if head >= length:
            head = -1
        struct.pack_into("<qqiii", argument.data, 0, length, head, len(out), len(inputs), mode)
        wide_tiles = (head > 0) + -(-(length - max(head, 0)) // kernel.columns)
        work = Work(wide_tiles, kernel.layers(len(out)), items)
        self._device.launch(kernel, work, kernel.threads, kernel.shared, argument)

    def _room(self, shape: tuple[int, ...], dtype: str) -> View:
        """Memory of the device, which is lent to others once this is let go: hold it until all is launched."""
        view = self._device.view(self._device.empty(shape, dtype, None))
        assert view is not None  # the device's own
        return view

    def _write(self, table: Bytes) -> View:
        """Tables in the device's memory, which is the caller's to hold."""
        there = self._room((len(table) // 8,), "float64")
        for begin in range(0, len(table), tiles.PIECE_BYTES):
            piece = table[begin : begin + tiles.PIECE_BYTES]
            argument = np.zeros(tiles.PIECE_BYTES + 16, np.uint8)
            struct.pack_into("<Qq", argument.data, 0, there.address + begin, len(piece) // 8)
            argument[16 : 16 + len(piece)] = piece
            self._device.launch(tiles.PIECE, Work(1), tiles.PIECE.threads, 0, argument)
        return there

    def _tree(
        self, groups: int, group: Callable[[int, Sequence[Row], int], None], out: Sequence[Row], kind: str
    ) -> None:
        """The groups' results, added up as `fastgc.kernels.decode` says: in the type computed in.

        ``group(g, rows, mode)`` makes the result of a group of messages of the element type `kind`.
        """
        wide = wide_type(kind)

        def buffer() -> list[Row]:
            length = len(out[0])
            item = len(out) * length
            there, size = self._room((self._items * item,), wide), tiles.ELEMENTS[wide][1]
            apart = item * size if self._items > 1 else 0
            return [Row(there.address + p * length * size, length, wide, there, apart) for p in range(len(out))]

        def tree(lo: int, hi: int, result: Sequence[Row]) -> None:
            if hi - lo == 1:
                return group(lo, result, STORE)
            middle = (lo + hi) // 2
            into = result[0].dtype == wide
            left = result if into else buffer()
            tree(lo, middle, left)
            if hi - middle == 1 and into:
                return group(middle, result, ADD)  # added where it is made
            right = buffer()
            tree(middle, hi, right)
            for p, row in enumerate(result):
                if into:
                    self._combine(self._ones[:, :1], [right[p]], [row], ADD)
                else:
                    self._combine(self._ones, [left[p], right[p]], [row], STORE)
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
        argument = np.zeros(56, np.uint8)
        addresses = [0 if view is None else view.address for view in (generator, patterns, weights, flags, work)]
        struct.pack_into("<QQQQQqii", argument.data, 0, *addresses, count, n, k)
        self._device.launch(kernel, Work(blocks), kernel.threads, kernel.shared, argument)
