"""The CUDA backend: the kernels of ``csrc/cuda/`` on a GPU, by way of CuPy. The only file that imports it.

Kernels are compiled by NVRTC when first used, which takes a second or less, for the device at hand, and kept: by CuPy
on disk, and here for each device. They start on the caller's current stream of CuPy and nothing waits for them. See
`fastgc.kernels._cuda_calls` for what is launched, and ``docs/cuda.md`` for what is promised.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt
from cupy.cuda import driver, runtime

from fastgc import _checks
from fastgc.kernels import _cuda_streams
from fastgc.kernels import _cuda_tiles as tiles
from fastgc.kernels._cuda_calls import Calls
from fastgc.kernels._cuda_launches import View, Work

__all__ = [
    "decode",
    "decoding_weights",
    "empty",
    "encode",
    "few_missing_table",
    "invert",
    "least_norm_weights",
    "lincomb",
    "missing",
    "of_torch",
    "on_stream",
    "positions",
    "view",
]


@functools.cache
def missing() -> str:
    """Why this backend does not work here, in one line; empty where it does."""
    try:
        if runtime.getDeviceCount() == 0:
            return "CuPy finds no CUDA device"
        from cupy.cuda import nvrtc

        if nvrtc.getVersion() < (12, 1):
            return f"NVRTC {'.'.join(map(str, nvrtc.getVersion()))} is too old: 12.1 or newer is needed"
        with cupy.cuda.Device(0):
            _function(tiles.PIECE, 0)
    except Exception as error:  # CuPy, the driver, the compiler: whatever they raise says no
        return (f"{type(error).__name__}: {error}".strip().splitlines() or ["?"])[0]
    return ""


# Once for each device: loading a kernel waits for the disk, or for the compiler.
@functools.cache
def _function(kernel: tiles.Kernel, device: int) -> Any:
    module = cupy.RawModule(code=tiles.program([kernel]), options=("--std=c++17",), backend="nvrtc")
    return module.get_function(kernel.name).kernel


@functools.cache
def _ready(kernel: tiles.Kernel, device: int) -> tuple[int, int]:
    """The address of a function, and how many blocks of it a device runs at once."""
    function: int = _function(kernel, device).ptr
    each: int = driver.occupancyMaxActiveBlocksPerMultiprocessor(function, kernel.threads, kernel.shared)
    processors: int = cupy.cuda.Device(device).attributes["MultiProcessorCount"]
    return function, max(1, each) * processors


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if _checks.is_bfloat16(dtype) else dtype.name


@functools.cache
def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)


# Memory that kernels of a graph under construction use: the graph will use it again whenever it is replayed.
_captured: list[Any] = []


def _kept(value: Any) -> Any:
    # The pool gives memory that is let go to the next who asks, in the order of the stream; a graph comes back.
    if cupy.cuda.get_current_stream().is_capturing():
        _captured.append(value)
    return value


class Gpu:
    """See `fastgc.kernels._cuda_calls.Device`. The device is CuPy's current one."""

    def view(self, value: Any) -> View | None:
        if not isinstance(value, cupy.ndarray):
            return None
        memory, current = value.data, cupy.cuda.device.get_device_id()
        if memory.device_id != current and value.size:
            raise ValueError(f"expected arrays on CUDA device {current}, got one on {memory.device_id}")
        return View(memory.ptr, value.shape, value.strides, _name(value.dtype), True, value)

    def contiguous(self, value: Any) -> Any:
        return _kept(cupy.ascontiguousarray(value))

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        return _kept(cupy.empty(shape, _dtype(dtype)))

    def upload(self, value: npt.NDArray[Any]) -> Any:
        return cupy.asarray(value)

    def download(self, value: Any) -> npt.NDArray[Any]:
        return cupy.asnumpy(value)  # type: ignore[no-any-return]

    def launch(self, kernel: tiles.Kernel, work: Work, argument: bytes) -> None:
        # The driver's own call: the argument is one structure, which is copied before the call returns. The driver is
        # given a list with its address, as which a pointer to it serves.
        function, at_once = _ready(kernel, cupy.cuda.device.get_device_id())
        stream, pointer = cupy.cuda.get_current_stream().ptr, ctypes.c_char_p(argument)
        grid, block = work.grid(at_once), (kernel.threads, 1, 1)
        driver.launchKernel(function, *grid, *block, kernel.shared, stream, ctypes.addressof(pointer), 0)


_calls = Calls(Gpu())
_here: Any = nullcontext()  # the current device


def view(array: Any) -> Any:
    """An array of any library on a CUDA device as a CuPy array, in the same memory.

    By DLPack, which lets CuPy's current stream wait for what the array's library has started, without the host: of
    PyTorch that is not needed where its current stream is CuPy's.
    """
    if isinstance(array, cupy.ndarray):
        return array
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return cupy.from_dlpack(array)
    if torch.cuda.current_stream(array.device).cuda_stream == cupy.cuda.get_current_stream().ptr:
        return of_torch(array)
    if array.dtype is torch.bfloat16:
        return cupy.from_dlpack(array.view(torch.int16)).view(_dtype("bfloat16"))
    return cupy.from_dlpack(array)


def of_torch(tensor: Any) -> Any:
    """A tensor of PyTorch as a CuPy array, in the same memory and in a fraction of DLPack's time.

    TypeError for an element type that NumPy has not, but for bfloat16 where ml_dtypes is installed.
    """
    dtype = _torch_dtype(tensor.dtype)
    size, strides = dtype.itemsize, tensor.stride()
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, strides, strict=True))
    length = (last + 1) * size if tensor.numel() else 0
    memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), length, tensor, tensor.device.index or 0)
    there = cupy.cuda.MemoryPointer(memory, 0)
    return cupy.ndarray(tuple(tensor.shape), dtype, there, strides=tuple(stride * size for stride in strides))


@functools.cache
def _torch_dtype(dtype: Any) -> np.dtype[Any]:
    name = str(dtype).rpartition(".")[2]
    try:
        return _dtype(name)
    except ImportError as error:
        raise TypeError(f"bfloat16 needs the package ml_dtypes: {error}") from None
    except TypeError:
        raise TypeError(f"expected dtype {_checks.ELEMENT_TYPES}, got {name}") from None


def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike, device: str) -> Any:
    """A new CuPy array on a device that is called as `fastgc.arrays` does: ``"cuda:0"``."""
    with cupy.cuda.Device(int(device.partition(":")[2])):
        return _kept(cupy.empty(shape, dtype))


def on_stream(pointer: int, device: str) -> Any:
    """A context in which work goes to another library's stream, by its address."""
    return _cuda_streams.on_stream(cupy, pointer, int(device.partition(":")[2]))


def _where(rows: Any) -> Any:
    """The device of the first array, as the current one while a call lasts."""
    first = rows
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if not isinstance(first, cupy.ndarray) or first.data.device_id == cupy.cuda.device.get_device_id():
        return _here
    return cupy.cuda.Device(first.data.device_id)


def lincomb(
    coefficients: Any, inputs: Any, out: Any = None, accumulate: bool = False, threads: int | None = None
) -> Any:
    """See `fastgc.kernels.lincomb`."""
    with _where(inputs):
        return _calls.lincomb(coefficients, inputs, out, accumulate, threads)


def encode(
    coefficients: Any, gradients: Any, out: Any = None, accumulate: bool = False, threads: int | None = None
) -> Any:
    """See `fastgc.kernels.encode`."""
    with _where(gradients):
        return _calls.encode(coefficients, gradients, out, accumulate, threads)


def decode(weights: Any, messages: Any, length: int, out: Any = None, threads: int | None = None) -> Any:
    """See `fastgc.kernels.decode`."""
    with _where(messages):
        return _calls.decode(weights, messages, length, out, threads)


def invert(generator: Any, patterns: Any) -> tuple[Any, Any]:
    """See `fastgc.kernels._cuda_calls.Calls.invert`: weights and flags on the device, without waiting."""
    with _where(patterns):
        return _calls.invert(generator, patterns)


def decoding_weights(generator: Any, patterns: Any, threads: int | None = None) -> tuple[Any, list[int]]:
    """See `fastgc.kernels.decoding_weights`. Waits for the stream, as it looks at what is doubtful."""
    with _where(patterns if isinstance(patterns, cupy.ndarray) else generator):
        return _calls.decoding_weights(generator, patterns, threads)


def least_norm_weights(
    generator: Any, patterns: Any, target: Any, table: Any = None, threads: int | None = None
) -> tuple[Any, list[int]]:
    """There is no such kernel: a ValueError."""
    return _calls.least_norm_weights(generator, patterns, target, table, threads)


def few_missing_table(generator: Any, target: Any) -> Any:
    """There is no such kernel: a ValueError."""
    return _calls.few_missing_table(generator, target)


def positions(masks: int | Sequence[int]) -> npt.NDArray[np.int64]:
    """There is no such kernel: a ValueError."""
    return _calls.positions(masks)
