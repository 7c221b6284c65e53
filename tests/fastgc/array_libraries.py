"""Array libraries under test: how each makes an array of NumPy's, and what its arrays must be."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

DTYPES = tuple(np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Library:
    """A library: `make` copies a NumPy array, strides and all where it can, `read` copies one of its arrays back."""

    name: str
    make: Callable[[Any], Any]
    read: Callable[[Any], Any]
    owns: Callable[[Any], bool]
    dtypes: tuple[Any, ...] = DTYPES
    address: Callable[[Any], int] | None = None
    writable: bool = True
    strided: bool = True

    def __str__(self) -> str:
        return self.name


class Bare:
    """An array of which nothing is known but what DLPack says."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()  # type: ignore[no-any-return]


def from_dlpack(exporter: Any) -> Bare:
    """By which a result becomes an array of this library, which is this module."""
    return Bare(np.from_dlpack(exporter))


def _numpy() -> Library:
    return Library(
        "numpy", lambda a: a.copy("K"), np.array, lambda a: type(a) is np.ndarray, address=lambda a: a.ctypes.data
    )


def _torch() -> Library:
    torch = importlib.import_module("torch")

    def make(array: Any) -> Any:
        bits = array.copy("K") if array.dtype != BFLOAT16 else array.copy("K").view(np.int16)
        return torch.from_numpy(bits) if array.dtype != BFLOAT16 else torch.from_numpy(bits).view(torch.bfloat16)

    def read(tensor: Any) -> Any:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().copy().view(BFLOAT16)
        return tensor.numpy().copy()

    return Library(
        "torch", make, read, lambda a: type(a) is torch.Tensor and a.is_cpu, address=lambda a: a.data_ptr()
    )  # fmt: skip


def _jax() -> Library:
    jax = importlib.import_module("jax")

    def make(array: Any) -> Any:
        with (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(True):  # until JAX 0.7
            return jax.numpy.array(array)

    return Library(
        "jax", make, np.array, lambda a: isinstance(a, jax.Array) and {d.platform for d in a.devices()} == {"cpu"},
        address=lambda a: a.unsafe_buffer_pointer(), writable=False, strided=False,
    )  # fmt: skip


def _strict() -> Library:
    strict = importlib.import_module("array_api_strict")
    return Library(
        "array_api_strict", lambda a: strict.from_dlpack(a.copy("K")), lambda a: np.from_dlpack(a).copy(),
        lambda a: a.__array_namespace__() is strict, dtypes=DTYPES[:2],
        address=lambda a: np.from_dlpack(a).ctypes.data,
    )  # fmt: skip


def _bare() -> Library:
    return Library(
        "DLPack alone", lambda a: Bare(a.copy("K")), lambda a: a.array.copy(), lambda a: type(a) is Bare,
        dtypes=DTYPES[:3], address=lambda a: a.array.ctypes.data,
    )  # fmt: skip


_MAKERS = {"numpy": _numpy, "torch": _torch, "jax": _jax, "array_api_strict": _strict, "bare": _bare}
NAMES = tuple(_MAKERS)


def library(name: str) -> Library:
    """One of `NAMES`; the test is skipped where it is not installed."""
    if name not in ("bare", "numpy"):
        pytest.importorskip(name)
    return _MAKERS[name]()
