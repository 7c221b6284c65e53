"""The CUDA backend without CUDA: checks, and the launches that a call takes, for a device that only does as it is told.

The device of `fastgc.kernels._cuda` is a GPU by way of CuPy; the tests have one that runs the same kernels on the host.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastgc import _checks
from fastgc.kernels import _arguments, _cuda_launches, _segments
from fastgc.kernels import _cuda_tiles as tiles
from fastgc.kernels._cuda_launches import ACCUMULATE, STORE, Bytes, Launches, Matrix, Row, View, wide_type

__all__ = ["Bytes", "Calls", "Device", "View"]


class Device(_cuda_launches.Device, Protocol):
    """What a device does, of calls from Python."""

    def contiguous(self, value: Any) -> Any:
        """A copy of a 1-D array, in order."""
        ...

    def upload(self, value: npt.NDArray[Any]) -> Any:
        """A copy of a host's array."""
        ...

    def download(self, value: Any) -> npt.NDArray[Any]:
        """A copy on the host. The one that waits."""
        ...


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

    def _rows(self, name: str, value: Any, *, write: bool = False) -> list[Row]:
        whole = self._device.view(value)
        if whole is None:
            items = _arguments.items(name, value, "a 2-D array or a sequence of 1-D arrays on the device")
            views = [(f"{name}[{i}]", self._vector(f"{name}[{i}]", item), item) for i, item in enumerate(items)]
        else:
            if len(whole.shape) != 2:
                raise ValueError(f"{name}: expected 2 dimensions, got shape {whole.shape}")
            step, stride = whole.strides
            views = []
            for q in range(whole.shape[0]):
                address = whole.address + q * step
                row = View(address, whole.shape[1:], (stride,), whole.dtype, whole.writeable, value)
                views.append((name, row, (value, q)))
        if not views:
            raise ValueError(f"{name}: expected at least one row, got none")
        return self._checked(name, views, write)

    def _checked(self, name: str, views: list[tuple[str, View, Any]], write: bool) -> list[Row]:
        first, rows = views[0][1], []
        for label, view, item in views:
            if view.dtype not in tiles.ELEMENTS:
                raise TypeError(f"{label}: expected dtype {_checks.ELEMENT_TYPES}, got {view.dtype}")
            if view.dtype != first.dtype:
                raise TypeError(f"{label}: expected dtype {first.dtype} like {name}[0], got {view.dtype}")
            if view.shape != first.shape:
                raise ValueError(f"{label}: expected length {first.shape[0]} like {name}[0], got {view.shape[0]}")
            size = tiles.ELEMENTS[view.dtype][1]
            adjacent = view.shape[0] <= 1 or view.strides[0] == size
            if write and not view.writeable:
                raise ValueError(f"{label}: the array is read-only")
            if write and not adjacent:
                raise ValueError(f"{label}: elements of a row must be contiguous, got strides {view.strides}")
            if view.address % size:
                raise ValueError(f"{label}: elements must be aligned to their size")
            owner = view.owner
            if not adjacent:
                owner = self._device.contiguous(item[0][item[1]] if isinstance(item, tuple) else item)
                view = self._view(label, owner, "")
            rows.append(Row(view.address, view.shape[0], view.dtype, owner))
        if rows[0].length == 0:
            raise ValueError(f"{name}: rows have length 0")
        return rows

    @staticmethod
    def _require(name: str, rows: Sequence[Row], like: str, dtype: str, count: int, length: int) -> None:
        if (dtype, rows[0].dtype) not in tiles.PAIRS:
            raise TypeError(f"{name}: expected dtype {dtype} like {like}, got {rows[0].dtype}")
        if len(rows) != count:
            raise ValueError(f"{name}: expected {count} rows, got {len(rows)}")
        if rows[0].length != length:
            raise ValueError(f"{name}: expected length {length}, got {rows[0].length}")

    @staticmethod
    def _refuse_overlap(out: Sequence[Row], name: str, inputs: Sequence[Row]) -> None:
        starts = sorted(row.address for row in out)
        size = out[0].length * out[0].size
        if any(b < a + size for a, b in itertools.pairwise(starts)):
            raise ValueError("out: rows overlap each other in memory")
        for q, row in enumerate(inputs):
            after = bisect.bisect_left(starts, row.address + row.length * row.size)
            if after and row.address < starts[after - 1] + size:
                raise ValueError(f"out: overlaps {name} row {q} in memory")

    @staticmethod
    def _allow(threads: Any) -> None:
        """A limit to the threads of a CPU, which there are none of here."""
        if threads is not None:
            _arguments.positive("threads", threads)

    # Rows -------------------------------------------------------------------------------------------------------------

    def _combine(self, matrix: Matrix, inputs: Sequence[Row], out: Sequence[Row], mode: int) -> None:
        kind = inputs[0].dtype
        kernel = tiles.choose(kind, out[0].dtype, len(out), len(inputs))
        coefficients = np.zeros((len(inputs), kernel.layers(len(out)) * kernel.rows), wide_type(kind))
        coefficients[:, : len(out)] = matrix.T
        given = coefficients.reshape(-1).view(np.uint8)
        if kernel.argument == "Items":
            padded = np.concatenate([given, np.zeros(-len(given) % 8, np.uint8)])
            there = self._write(padded)
            return self._launch_items(kernel, inputs, out, there.address, 0, mode)
        argument = np.zeros(tiles.ARGUMENT_BYTES, np.uint8)
        table, at = argument[tiles.ARGUMENT_BYTES - tiles.TABLE_BYTES :], tiles.coefficients_at(len(inputs), len(out))
        addresses = [row.address for row in (*inputs, *out)]
        table[: 8 * len(addresses)].view(np.uint64)[:] = addresses
        table[at : at + len(given)] = given
        return self._start(kernel, argument, inputs, out, mode, 1)

    def lincomb(
        self, coefficients: Any, inputs: Any, out: Any = None, accumulate: bool = False, threads: int | None = None
    ) -> Any:
        rows = self._rows("inputs", inputs)
        kind, length = rows[0].dtype, rows[0].length
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

    def _result(self, value: Any, length: int, kind: str, like: Any) -> tuple[Any, list[Row]]:
        out = self._device.empty((length,), kind, like) if value is None else value
        return out, self._checked("out", [("out", self._vector("out", out), out)], True)

    def encode(
        self, coefficients: Any, gradients: Any, out: Any = None, accumulate: bool = False, threads: int | None = None
    ) -> Any:
        rows = self._rows("gradients", gradients)
        kind = rows[0].dtype
        matrix = _arguments.coefficients("coefficients", coefficients, np.dtype(wide_type(kind)))
        if len(matrix) != len(rows):
            raise ValueError(
                f"coefficients: expected {len(rows)} rows, one for each gradient, got shape {matrix.shape}"
            )
        self._allow(threads)
        length = _segments.block_length(rows[0].length, matrix.shape[1])
        if out is None and accumulate:
            raise ValueError("out: must be given to accumulate into")
        out, results = self._result(out, length, kind, gradients)
        self._require("out", results, "gradients", kind, 1, length)
        self._refuse_overlap(results, "gradients", rows)

        def run(c: Any, inputs: Any, outputs: Any, adds: bool) -> None:
            self._combine(c, inputs, outputs, ACCUMULATE if adds else STORE)

        _segments.encode(run, matrix, rows, results[0], bool(accumulate))  # type: ignore[arg-type]
        return out

    def decode(self, weights: Any, messages: Any, length: int, out: Any = None, threads: int | None = None) -> Any:
        weight_items, message_items = _arguments.groups(weights, messages)
        total = _arguments.positive("length", length)
        groups: list[list[Row]] = []
        matrices: list[npt.NDArray[np.float64]] = []
        for g, (weight, message) in enumerate(zip(weight_items, message_items, strict=True)):
            rows = self._rows(f"messages[{g}]", message)
            groups.append(rows)
            kind = groups[0][0].dtype
            if rows[0].dtype != kind:
                raise TypeError(f"messages[{g}]: expected dtype {kind} like messages[0], got {rows[0].dtype}")
            matrix = _arguments.coefficients(f"weights[{g}]", weight, np.dtype(wide_type(kind)))
            matrices.append(matrix)
            expected = (len(matrices[0]), len(rows))
            if matrix.shape != expected:
                raise ValueError(f"weights[{g}]: expected shape {expected}, got {matrix.shape}")
            block = _segments.block_length(total, expected[0])
            self._require(f"messages[{g}]", rows, "messages[0]", kind, len(rows), block)
        self._allow(threads)
        kind = groups[0][0].dtype
        out, results = self._result(out, total, kind, message_items[0])
        self._require("out", results, "messages", kind, 1, total)
        for g, rows in enumerate(groups):
            self._refuse_overlap(results, f"messages[{g}]", rows)
        m, block = len(matrices[0]), _segments.block_length(total, len(matrices[0]))

        def group(g: int, result: Sequence[Row], mode: int) -> None:
            for columns, present in _segments.segments(total, m):
                blocks = [result[0][u * block + columns.start : u * block + columns.stop] for u in range(present)]
                self._combine(matrices[g][:present], [message[columns] for message in groups[g]], blocks, mode)

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
        self, generator: Any, patterns: Any, target: Any, threads: int | None = None
    ) -> tuple[Any, list[int]]:
        raise ValueError("backend: least_norm_weights has no CUDA kernel; take the weights on the CPU")

    def positions(self, masks: int | Sequence[int]) -> npt.NDArray[np.int64]:
        raise ValueError("backend: positions has no CUDA kernel; take them on the CPU")
