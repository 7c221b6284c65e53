"""The CUDA backend without CUDA: checks, and the launches that a call takes, for a device that only does as it is told.

The device of `fastgc.kernels._cuda` is a GPU by way of CuPy; the tests have one that runs the same kernels on the host.
"""

from __future__ import annotations

import bisect
import functools
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastgc import _checks
from fastgc.kernels import _arguments, _cuda_launches, _segments
from fastgc.kernels import _cuda_tiles as tiles
from fastgc.kernels._cuda_launches import ACCUMULATE, STORE, Launches, Matrix, Rows, View, spaced, wide_type

__all__ = ["Calls", "Device", "View"]


class Device(_cuda_launches.Device, Protocol):
    """What a device does, of calls from Python."""

    def contiguous(self, value: Any) -> Any:
        """A copy of an array, in C order."""
        ...

    def upload(self, value: npt.NDArray[Any]) -> Any:
        """A copy of a host's array."""
        ...

    def download(self, value: Any) -> npt.NDArray[Any]:
        """A copy on the host. The one that waits."""
        ...


@functools.lru_cache(1024)
def _layout(
    kind: str, result: str, rows: int, count: int
) -> tuple[tiles.Lincomb, int, npt.DTypeLike, struct.Struct | None]:
    """Of a call that makes so many rows of so many inputs: the kernel, how many coefficients of an input there are with
    those that pad, their type, and the tables (addresses, then coefficients), if the argument has room for them."""
    kernel = tiles.choose(kind, result, rows, count)
    stride, wide = kernel.layers(rows) * kernel.rows, np.dtype(wide_type(kind))
    if kernel.argument == "Items":
        return kernel, stride, wide, None
    at = tiles.coefficients_at(count, rows)
    tables = f"<{count + rows}Q{at - 8 * (count + rows)}x{count * stride * wide.itemsize}s"
    return kernel, stride, wide, struct.Struct(tables)


def _blocks(rows: Rows, columns: slice, block: int, count: int) -> Rows:
    """Some columns of the first so many blocks of each row, if blocks are so long: those of the first row first."""
    begin, apart, length = columns.start * rows.size, block * rows.size, columns.stop - columns.start
    if length == rows.length:
        return rows
    if len(rows) == 1:
        return Rows(spaced(rows.addresses[0] + begin, count, apart), length, rows.dtype, rows.owner)
    addresses = [row + begin + u * apart for row in rows.addresses for u in range(count)]
    return Rows(addresses, length, rows.dtype, rows.owner)


class Calls(Launches):
    """The functions of a backend, on a device's arrays."""

    _device: Device

    def __init__(self, device: Device) -> None:
        super().__init__(device, np.ones((1, 2)))

    # Arguments --------------------------------------------------------------------------------------------------------

    def _view(self, name: str, value: Any, expected: str) -> View:
        view = self._device.view(value)
        if view is None:
            raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
        return view

    def _vector(self, name: str, value: Any) -> View:
        view = self._view(name, value, "a 1-D array on the device")
        if len(view.shape) != 1:
            raise ValueError(f"{name}: expected a 1-D array, got shape {view.shape}")
        return view

    def _rows(self, name: str, value: Any, *, write: bool = False) -> Rows:
        whole = self._device.view(value)
        if whole is None:
            return self._listed(name, value, write)
        if len(whole.shape) != 2:
            raise ValueError(f"{name}: expected 2 dimensions, got shape {whole.shape}")
        (count, length), (step, _) = whole.shape, whole.strides
        if not count:
            raise ValueError(f"{name}: expected at least one row, got none")
        if not self._adjacent(name, whole, whole, name, write, step if count > 1 else 0):
            return self._rows(name, self._device.contiguous(value))
        return self._long(name, Rows(spaced(whole.address, count, step), length, whole.dtype, value))

    def _listed(self, name: str, value: Any, write: bool) -> Rows:
        items = _arguments.items(name, value, "a 2-D array or a sequence of 1-D arrays on the device")
        views = []
        for i, item in enumerate(items):
            view = self._device.view(item)
            if view is None or len(view.shape) != 1:
                view = self._vector(f"{name}[{i}]", item)  # which says what is wrong
            views.append(view)
        if not views:
            raise ValueError(f"{name}: expected at least one row, got none")
        first, addresses, like, size = views[0], [], None, 1
        for i, view in enumerate(views):
            if view[1:5] != like or view.address % size:  # nearly all are like the first but for their addresses
                if self._adjacent(f"{name}[{i}]", view, first, name, write):
                    like, size = view[1:5], tiles.ELEMENTS[view.dtype][1]
                else:
                    items[i] = self._device.contiguous(items[i])
                    view = self._view("", items[i], "")
            addresses.append(view.address)
        return self._long(name, Rows(addresses, first.shape[0], first.dtype, items))

    def _adjacent(self, label: str, row: View, first: View, name: str, write: bool, step: int = 0) -> bool:
        """Whether the elements of a row are next to each other, or of rows so many bytes apart; all else is checked."""
        if row.dtype not in tiles.ELEMENTS:
            raise TypeError(f"{label}: expected dtype {_checks.ELEMENT_TYPES}, got {row.dtype}")
        if row.dtype != first.dtype:
            raise TypeError(f"{label}: expected dtype {first.dtype} like {name}[0], got {row.dtype}")
        if row.shape != first.shape:
            raise ValueError(f"{label}: expected length {first.shape[0]} like {name}[0], got {row.shape[0]}")
        size = tiles.ELEMENTS[row.dtype][1]
        adjacent = row.strides[-1] == size or row.shape[-1] <= 1
        if write and not row.writeable:
            raise ValueError(f"{label}: the array is read-only")
        if write and not adjacent:
            raise ValueError(f"{label}: elements of a row must be contiguous, got strides {row.strides[-1:]}")
        if (row.address | step) % size:
            raise ValueError(f"{label}: elements must be aligned to their size")
        return adjacent

    @staticmethod
    def _long(name: str, rows: Rows) -> Rows:
        if rows.length == 0:
            raise ValueError(f"{name}: rows have length 0")
        return rows

    @staticmethod
    def _require(name: str, rows: Rows, like: str, dtype: str, count: int, length: int) -> None:
        if (dtype, rows.dtype) not in tiles.PAIRS:
            raise TypeError(f"{name}: expected dtype {dtype} like {like}, got {rows.dtype}")
        if len(rows) != count:
            raise ValueError(f"{name}: expected {count} rows, got {len(rows)}")
        if rows.length != length:
            raise ValueError(f"{name}: expected length {length}, got {rows.length}")

    @staticmethod
    def _refuse_overlap(out: Rows, name: str, inputs: Rows) -> None:
        size, (begin, end), (first, last) = out.length * out.size, out.bounds(), inputs.bounds()
        if out.distance() < size:
            raise ValueError("out: rows overlap each other in memory")
        if last <= begin or end <= first:
            return
        starts = sorted(out.addresses)
        for q, address in enumerate(inputs.addresses):
            after = bisect.bisect_left(starts, address + inputs.length * inputs.size)
            if after and address < starts[after - 1] + size:
                raise ValueError(f"out: overlaps {name} row {q} in memory")

    @staticmethod
    def _allow(threads: Any) -> None:
        """A limit to the threads of a CPU, which there are none of here."""
        if threads is not None:
            _arguments.positive("threads", threads)

    # Rows -------------------------------------------------------------------------------------------------------------

    def _combine(self, matrix: Matrix, inputs: Rows, out: Rows, mode: int) -> None:
        P, Q = matrix.shape
        kernel, stride, wide, tables = _layout(inputs.dtype, out.dtype, P, Q)
        coefficients = np.zeros((Q, stride), wide)
        coefficients[:, :P] = matrix.T
        if tables is not None:
            rest = tables.pack(*inputs.addresses, *out.addresses, coefficients.tobytes())
            return self._start(kernel, rest, inputs, out, mode)
        there = self._write(coefficients.tobytes())
        return self._launch_items(kernel, inputs, out, there.address, 0, mode)

    def lincomb(
        self, coefficients: Any, inputs: Any, out: Any = None, accumulate: bool = False, threads: int | None = None
    ) -> Any:
        rows = self._rows("inputs", inputs)
        kind, length = rows.dtype, rows.length
        matrix = _arguments.coefficients("coefficients", coefficients, np.dtype(wide_type(kind)))
        if matrix.shape[1] != len(rows):
            raise ValueError(
                f"coefficients: expected {len(rows)} columns, one for each input, got shape {matrix.shape}"
            )
        self._allow(threads)
        if out is None:
            if accumulate:
                raise ValueError("out: must be given to accumulate into")
            out = self._device.empty((len(matrix), length), kind, inputs)
        results = self._rows("out", out, write=True)
        self._require("out", results, "inputs", kind, len(matrix), length)
        self._refuse_overlap(results, "inputs", rows)
        self._combine(matrix, rows, results, ACCUMULATE if accumulate else STORE)
        return out

    def _result(self, value: Any, length: int, kind: str, like: Any) -> tuple[Any, Rows]:
        out = self._device.empty((length,), kind, like) if value is None else value
        view = self._vector("out", out)
        self._adjacent("out", view, view, "out", True)
        return out, self._long("out", Rows([view.address], view.shape[0], view.dtype, out))

    def encode(
        self, coefficients: Any, gradients: Any, out: Any = None, accumulate: bool = False, threads: int | None = None
    ) -> Any:
        rows = self._rows("gradients", gradients)
        kind = rows.dtype
        matrix = _arguments.coefficients("coefficients", coefficients, np.dtype(wide_type(kind)))
        if len(matrix) != len(rows):
            raise ValueError(
                f"coefficients: expected {len(rows)} rows, one for each gradient, got shape {matrix.shape}"
            )
        self._allow(threads)
        m, length = matrix.shape[1], _segments.block_length(rows.length, matrix.shape[1])
        if out is None and accumulate:
            raise ValueError("out: must be given to accumulate into")
        out, results = self._result(out, length, kind, gradients)
        self._require("out", results, "gradients", kind, 1, length)
        self._refuse_overlap(results, "gradients", rows)
        for columns, present in _segments.segments(rows.length, m):
            inputs, result = _blocks(rows, columns, length, present), _blocks(results, columns, length, 1)
            self._combine(matrix[:, :present].reshape(1, -1), inputs, result, ACCUMULATE if accumulate else STORE)
        return out

    def decode(self, weights: Any, messages: Any, length: int, out: Any = None, threads: int | None = None) -> Any:
        weight_items, message_items = _arguments.groups(weights, messages)
        total = _arguments.positive("length", length)
        groups: list[Rows] = []
        matrices: list[npt.NDArray[np.float64]] = []
        for g, (weight, message) in enumerate(zip(weight_items, message_items, strict=True)):
            rows = self._rows(f"messages[{g}]", message)
            groups.append(rows)
            kind = groups[0].dtype
            if rows.dtype != kind:
                raise TypeError(f"messages[{g}]: expected dtype {kind} like messages[0], got {rows.dtype}")
            matrix = _arguments.coefficients(f"weights[{g}]", weight, np.dtype(wide_type(kind)))
            matrices.append(matrix)
            expected = (len(matrices[0]), len(rows))
            if matrix.shape != expected:
                raise ValueError(f"weights[{g}]: expected shape {expected}, got {matrix.shape}")
            block = _segments.block_length(total, expected[0])
            self._require(f"messages[{g}]", rows, "messages[0]", kind, len(rows), block)
        self._allow(threads)
        kind = groups[0].dtype
        out, results = self._result(out, total, kind, message_items[0])
        self._require("out", results, "messages", kind, 1, total)
        for g, rows in enumerate(groups):
            self._refuse_overlap(results, f"messages[{g}]", rows)
        m, block = len(matrices[0]), _segments.block_length(total, len(matrices[0]))
        stretches = _segments.segments(total, m)

        def group(g: int, result: Rows, mode: int) -> None:
            for columns, present in stretches:
                inputs, blocks = _blocks(groups[g], columns, block, 1), _blocks(result, columns, block, present)
                self._combine(matrices[g][:present], inputs, blocks, mode)

        self._tree(len(groups), group, results, kind)
        return out

    def _matrix(self, name: str, value: Any, dtype: str) -> View:
        view = self._view(name, value, "an array on the device")
        if view.dtype != dtype:
            raise TypeError(f"{name}: expected dtype {dtype}, got {view.dtype}")
        if len(view.shape) != 2:
            raise ValueError(f"{name}: expected 2 dimensions, got shape {view.shape}")
        if view.strides != (8 * view.shape[1], 8) and 0 not in view.shape:
            raise ValueError(f"{name}: expected an array in C order, got strides {view.strides}")
        return view

    # Weights ----------------------------------------------------------------------------------------------------------

    def invert(self, generator: Any, patterns: Any) -> tuple[Any, Any]:
        """`decoding_weights` without looking at the outcome, so without waiting.

        Parameters
        ----------
        generator : device array of float64, shape (n, k)
        patterns : device array of int64, shape (B, k)
            Both C-contiguous.

        Returns
        -------
        weights : device array of float64, shape (B, k, k)
            NaN where elimination met a pivot of zero or a row that the generator does not have.
        flags : device array of uint8, shape (B,)
            Not zero where the rank, or the pattern, must be looked at before the weights are used.
        """
        matrix = self._matrix("generator", generator, "float64")
        batch = self._matrix("patterns", patterns, "int64")
        (n, k), (count, width) = matrix.shape, batch.shape
        if not 0 < k <= n:
            raise ValueError(f"generator: expected shape (n, k) with 0 < k <= n, got {matrix.shape}")
        if width != k:
            raise ValueError(f"patterns: expected shape (B, {k}) for k = {k}, got {batch.shape}")
        weights = self._device.empty((count, k, k), "float64", generator)
        flags = self._device.empty((count,), "uint8", generator)
        if count:
            self._invert(matrix, batch, self._view("", weights, ""), self._view("", flags, ""))
        return weights, flags

    def decoding_weights(self, generator: Any, patterns: Any, threads: int | None = None) -> tuple[Any, list[int]]:
        self._allow(threads)
        if self._device.view(generator) is None:
            generator = self._device.upload(_arguments.generator(generator))
        n, k = self._matrix("generator", generator, "float64").shape
        one = np.ndim(patterns) == 1
        checked = self._device.view(patterns) is None
        if checked:
            patterns = self._device.upload(_arguments.patterns(patterns, n, k, True))
        elif one:
            patterns = patterns.reshape(1, -1)
        weights, flags = self.invert(generator, patterns)
        doubtful = np.flatnonzero(self._device.download(flags)).tolist()
        if doubtful and not checked:
            _arguments.patterns(self._device.download(patterns), n, k, True)
        return (weights[0] if one else weights), doubtful

    def least_norm_weights(
        self, generator: Any, patterns: Any, target: Any, table: Any = None, threads: int | None = None
    ) -> tuple[Any, list[int]]:
        raise ValueError("backend: least_norm_weights has no CUDA kernel; take the weights on the CPU")

    def few_missing_table(self, generator: Any, target: Any) -> Any:
        raise ValueError("backend: few_missing_table has no CUDA kernel; make the table on the CPU")

    def positions(self, masks: int | Sequence[int]) -> npt.NDArray[np.int64]:
        raise ValueError("backend: positions has no CUDA kernel; take them on the CPU")
