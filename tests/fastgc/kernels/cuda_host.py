"""A device for the CUDA backend that runs its kernels on the host: NumPy arrays are its arrays.

The sources are those that GPUs get but for ``device.cuh``, in whose place stands ``tests/csrc/cuda_host.h``: plain
C++ with checked memory. See ``tests/csrc/cuda_host.cpp`` for how threads and barriers are run.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgc import _checks
from fastgc.kernels import _cuda_calls
from fastgc.kernels import _cuda_tiles as tiles
from fastgc.kernels._cuda_launches import Work

CSRC = Path(__file__).parents[2] / "csrc"


_folder = tempfile.TemporaryDirectory(prefix="fastgc-cuda-")  # goes when the process ends


def compiled(name: str, *arguments: str) -> Path:
    """A library that the C++ compiler makes, in a folder that lasts as long as the process."""
    if sys.platform == "win32":
        pytest.skip("the CUDA kernels are built for the host as other systems build a shared library")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler ({compiler}) to build the CUDA kernels for the host with")
    result = Path(_folder.name, name)
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    fused = ["-mfma"] if "fma" in Path("/proc/cpuinfo").read_text().split() else []  # else fma() takes 50 ns
    command = [compiler, *flags, *fused, "-Wno-unknown-pragmas", f"-I{CSRC}", *arguments, "-o", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return result


@functools.cache
def kernels() -> Path:
    """A library of the kernels, compiled for the host, with what a launch needs to know of each."""
    text = tiles.source(skip=("device.cuh",)).replace('"device.cuh"', '"cuda_host.h"')
    for kernel in tiles.kernels():
        argument = f"fastgc::{kernel.argument}"
        text += f'extern "C" void {kernel.name}(const void* argument) {{ fastgc::{kernel.body}('
        text += f"*static_cast<const {argument}*>(argument)); }}\n"
        about = f"sizeof({argument}), {int(kernel.barriers)}, {kernel.threads}"
        text += f'extern "C" {{ unsigned about_{kernel.name}[] = {{{about}}}; }}\n'
    source = Path(_folder.name, "kernels.cpp")
    source.write_text(text)
    return compiled("kernels.so", str(source), str(CSRC / "cuda_host.cpp"))


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, loaded."""
    loaded = ctypes.CDLL(str(kernels()))
    loaded.launch.restype = ctypes.c_char_p
    return loaded


class Host:
    """See `fastgc.kernels._cuda_calls.Device`. Blocks at once are few, so that blocks go round.

    Launches may read and write what has been looked at by `view` since `allow`, and nothing else.
    """

    def __init__(self, reverse: bool = False, at_once: int = 3) -> None:
        self.reverse, self.at_once = reverse, at_once
        self.launched: list[str] = []
        self._ranges: dict[tuple[int, int], bool] = {}
        self._kept: list[Any] = []
        self._free: list[np.ndarray[Any, Any]] = []

    def allow(self) -> None:
        """Forget what earlier calls might touch."""
        self._ranges, self._kept, self.launched = {}, [], []

    def view(self, value: Any) -> _cuda_calls.View | None:
        if not isinstance(value, np.ndarray):
            return None
        begin, end = np.lib.array_utils.byte_bounds(value) if value.size else (0, 0)
        self._ranges[begin, end] = value.flags.writeable
        name = "bfloat16" if _checks.is_bfloat16(value.dtype) else value.dtype.name
        address = value.__array_interface__["data"][0]
        return _cuda_calls.View(address, value.shape, value.strides, name, value.flags.writeable, value)

    def contiguous(self, value: Any) -> Any:
        self._kept.append(value.copy())
        return self._kept[-1]

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        if dtype == "bfloat16":
            import ml_dtypes

            dtype = ml_dtypes.bfloat16
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        # Memory that is let go is lent to the next who asks, while launches before that may still use it.
        large = [i for i, memory in enumerate(self._free) if len(memory) >= size]
        free = self._free.pop(large[-1]) if large else np.empty(max(size, 1 << 16), np.uint8)
        array = np.frombuffer(memoryview(free)[:size], dtype).reshape(shape)
        array.view(np.uint8)[...] = 0xFF  # NaN
        weakref.finalize(array, self._free.append, free)
        return array

    def upload(self, value: Any) -> Any:
        return value

    def download(self, value: Any) -> Any:
        return value

    def launch(self, kernel: tiles.Kernel, work: Work, argument: Any) -> None:
        assert kernel.threads % 32 == 0, "whole warps"
        assert kernel.shared <= tiles.SHARED_BYTES
        self.launched.append(kernel.name)
        ranges = np.array([[*bounds, write] for bounds, write in self._ranges.items()], np.uint64)
        aligned = np.empty(len(argument) + 16, np.uint8)
        start = -aligned.ctypes.data % 16
        aligned[start : start + len(argument)] = np.frombuffer(argument, np.uint8)
        loaded = library()
        error = loaded.launch(
            ctypes.cast(getattr(loaded, kernel.name), ctypes.c_void_p),
            ctypes.c_void_p(aligned.ctypes.data + start),
            *work.grid(self.at_once),
            kernel.threads,
            kernel.shared,
            int(kernel.barriers),
            int(self.reverse),
            ctypes.c_void_p(ranges.ctypes.data),
            len(ranges),
        )
        assert error is None, f"{kernel.name}: {error.decode()}"


def calls(reverse: bool = False, at_once: int = 3) -> tuple[_cuda_calls.Calls, Host]:
    device = Host(reverse, at_once)
    return _cuda_calls.Calls(device), device
