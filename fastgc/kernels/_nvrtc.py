"""NVIDIA's run-time compiler, for programs that carry their kernels: C++ in, PTX out. Needs neither a GPU nor CuPy."""

from __future__ import annotations

import ctypes
import functools

from fastgc.kernels import _cuda_tiles as tiles

__all__ = ["compiled", "version"]

OLDEST = (12, 1)
OLDEST_ARCHITECTURE = 75  # the oldest that all releases know so far; newer devices run its PTX
_NEEDED = "fastgc.jax compiles its kernels for a GPU with NVRTC"
_INSTALL = "pip install 'fast-gradient-coding[jax-cuda13]', or [jax-cuda12]"


@functools.cache
def _library() -> ctypes.CDLL:
    """NVRTC, loaded. ImportError, in one line, where there is none that will do."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError:
        raise ImportError(f"{_NEEDED}, and cuda-pathfinder, which finds it, is not installed: {_INSTALL}") from None
    try:
        found = ctypes.CDLL(load_nvidia_dynamic_lib("nvrtc").abs_path)
    except (RuntimeError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ImportError(f"{_NEEDED}, which is not found ({reason}): {_INSTALL}") from None
    numbers = ctypes.c_int(), ctypes.c_int()
    found.nvrtcVersion(*map(ctypes.byref, numbers))
    if (have := (numbers[0].value, numbers[1].value)) < OLDEST:
        raise ImportError(f"{_NEEDED} 12.1 or newer, and {have[0]}.{have[1]} is found: {_INSTALL}")
    found.nvrtcGetErrorString.restype = ctypes.c_char_p
    return found


def version() -> tuple[int, int]:
    """Of the library. ImportError where there is none."""
    numbers = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(*map(ctypes.byref, numbers))
    return numbers[0].value, numbers[1].value


def _known() -> list[int]:
    """Architectures that the library compiles for, as 75 and so on, the oldest first."""
    count = ctypes.c_int()
    _library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    _library().nvrtcGetSupportedArchs(found)
    return sorted(found)


@functools.cache
def compiled(kernels: tuple[tiles.Kernel, ...], architecture: int = OLDEST_ARCHITECTURE) -> str:
    """PTX of kernels, for devices of an architecture, as 75 and so on, and all newer ones.

    It takes some tenths of a second a kernel, once a process. ImportError where there is no compiler; RuntimeError,
    with its first complaint, if it fails.
    """
    nvrtc = _library()
    older = [known for known in _known() if known <= architecture]
    if not older:
        have = ".".join(map(str, version()))
        raise RuntimeError(f"NVRTC {have} knows no architecture as old as sm_{architecture}, got from the device")
    options = [b"--std=c++17", f"-arch=compute_{older[-1]}".encode()]
    program = ctypes.c_void_p()
    text = tiles.program(kernels).encode()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"fastgc.cu", 0, None, None))
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status:
            lines = _text(program, "ProgramLog").splitlines()
            _check(status, next((line for line in lines if "error" in line), ""))
        return _text(program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, buffer))
    return buffer.value.decode()


def _check(status: int, log: str = "") -> None:
    if status:
        name = _library().nvrtcGetErrorString(status).decode()
        raise RuntimeError(f"NVRTC cannot compile fastgc's kernels: {name}" + (f": {log}" if log else ""))
