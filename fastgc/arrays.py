"""Arrays of any library: where they come from, how the kernels see them, and how results go back there.

No array library but NumPy is imported here: an array of another exists only where somebody has imported that library.
The kernels see arrays on the host as NumPy arrays, and arrays on a CUDA device as CuPy arrays, which the backend
``"cuda"`` makes. A view shares the array's memory, always. Refused, rather than copied or moved in silence, are:

- arrays of several libraries, or on several devices, in one call;
- arrays on a device that no backend reaches;
- PyTorch tensors that require grad, while grad mode is on: their gradients would be lost;
- PyTorch tensors with the negative bit set, whose memory holds the numbers negated;
- JAX arrays to write to, as they are immutable, and those that a transformation traces, which have no numbers yet.
"""

from __future__ import annotations

import functools
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

View: TypeAlias = npt.NDArray[Any]
"""What a backend computes on: a NumPy array or, on a CUDA device, a CuPy array, which has the same interface."""

_HOST, _CUDA = (1, 3, 11), (2, 13)  # DLPack's device types: memory that the CPU reaches, and that of a CUDA device
_ALIGNMENT = 64  # bytes; XLA copies what is aligned to less
# What libraries raise where they have no view to give.
_NO_VIEW = (BufferError, NotImplementedError, RuntimeError, TypeError, ValueError)


# What looking for a result's shape in bad arguments may raise, of which the kernel then tells.
_NO_SHAPE = (AttributeError, IndexError, TypeError, ValueError)


class Origin(ABC):
    """A library and a device: where the arrays of a call come from, and what its results become. Made by `origin`.

    Attributes
    ----------
    library : str
        ``"NumPy"``, ``"PyTorch"``, ``"JAX"``, ``"CuPy"``, or the name of another library's module.
    device : str
        ``"cpu"``, ``"cuda:0"``, or what else the library calls it.
    backend : str or None
        ``"cuda"`` on a CUDA device; None on the host, where the choice is free.
    """

    native = False
    """Whether arrays are what the kernels see: NumPy's and CuPy's."""
    immutable = False
    """Whether arrays must not change once they are made."""

    def __init__(self, library: str, device: str, backend: str | None) -> None:
        self.library = library
        self.device = device
        self.backend = backend

    def view(self, name: str, array: Any, *, write: bool = False) -> View:
        """An array of this origin as the kernels see it, in the same memory.

        Parameters
        ----------
        name : str
            Of the argument, for messages.
        array : array
        write : bool
            Whether results are to be written to it.

        Raises
        ------
        TypeError
            No array, one of another library or device, or one that is refused as this module says.
        ValueError
            The backend for its device does not work here.
        """
        found = origin(name, array)
        if found is not self and (found.library, found.device) != (self.library, self.device):
            raise TypeError(
                f"{name}: expected an array of {self}, as the others of this call are, got one of {found}; convert or "
                f"move it first: nothing is copied between libraries or devices in silence"
            )
        readable = self._readable(name, array, write)
        backend = None if self.backend is None else cuda(name, self)
        try:
            return self._on_host(name, readable) if backend is None else backend.view(readable)
        except _NO_VIEW as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(f"{name}: this {type(array).__name__} of {self} cannot be viewed: {reason}") from None

    def rows(self, name: str, rows: Any, *, write: bool = False) -> View | list[View]:
        """A 2-D array as a view, or a sequence of arrays as a list of views; raises as `view` does."""
        if is_array(rows):
            return self.view(name, rows, write=write)
        if not isinstance(rows, (list, tuple)):
            raise TypeError(f"{name}: expected an array, a list or a tuple of arrays, got {type(rows).__name__}")
        return [self.view(f"{name}[{i}]", row, write=write) for i, row in enumerate(rows)]

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> View:
        """A new array for a kernel to write to, which `give` can turn into the library's without a copy."""
        if self.backend is not None:
            return cuda("out", self).empty(shape, dtype, self.device)  # type: ignore[no-any-return]
        return np.empty(shape, dtype)

    def compute(
        self, run: Callable[[Any], View], like: Callable[[], tuple[Any, npt.DTypeLike]] | None, out: Any = None
    ) -> Any:
        """What a kernel writes to `out`, or to a new array of this library.

        Parameters
        ----------
        run : callable
            Given a view of where results go, or None, writes them and returns the view, or makes one.
        like : callable, optional
            Returns shape and element type of a new array, if the kernel's arguments have any; else, and without it,
            `run` is given None, for which the kernel has an error or an array.
        out : array, or list of arrays, optional
        """
        if out is not None:
            run(self.rows("out", out, write=True))
            written(out)
            return out
        made = None
        if like is not None:
            with suppress(*_NO_SHAPE):
                made = self.empty(*like())
        return self.give(run(made))

    @abstractmethod
    def give(self, result: View) -> Any:
        """A result as an array of this library on this device; in the same memory, if it was made by `empty`."""

    def written(self, array: Any) -> None:  # noqa: B027  # most libraries need not know
        """Tell the library that the numbers of `array` have changed."""

    def _readable(self, name: str, array: Any, write: bool) -> Any:
        """The array, if it may be viewed, else a TypeError."""
        return array

    def _on_host(self, name: str, array: Any) -> View:
        return np.from_dlpack(array)

    def __str__(self) -> str:
        return f"{self.library} on {self.device}"


class _NumPy(Origin):
    native = True

    @classmethod
    def of(cls, name: str, array: Any) -> Origin:
        return NUMPY

    def view(self, name: str, array: Any, *, write: bool = False) -> View:
        return array if isinstance(array, np.ndarray) else super().view(name, array, write=write)

    def give(self, result: View) -> Any:
        return result


class _Torch(Origin):
    @classmethod
    def of(cls, name: str, array: Any) -> Origin:
        if array.is_cpu:
            return _TORCH_ON_HOST
        if array.device not in _torch_devices:
            _torch_devices[array.device] = cls("PyTorch", *_on_device(name, array, str(array.device), "cpu()"))
        return _torch_devices[array.device]

    def view(self, name: str, array: Any, *, write: bool = False) -> View:
        # What is nearly always the case, in half the time.
        torch = sys.modules["torch"]
        if type(array) is torch.Tensor and self.backend is None and array.is_cpu and array.dtype is not torch.bfloat16:
            try:
                if not (array.requires_grad or array.is_neg()):
                    return array.numpy()  # type: ignore[no-any-return]
            except _NO_VIEW:
                pass
        return super().view(name, array, write=write)

    def _readable(self, name: str, array: Any, write: bool) -> Any:
        if array.requires_grad:
            if sys.modules["torch"].is_grad_enabled():
                raise TypeError(
                    f"{name}: the tensor requires grad, of which the kernels know nothing: pass detach() of it, call "
                    f"within torch.no_grad(), or use fastgc.torch"
                )
            array = array.detach()
        if array.is_neg():
            raise TypeError(f"{name}: the tensor has its negative bit set: pass resolve_neg() of it, which is a copy")
        return array

    def _on_host(self, name: str, array: Any) -> View:
        torch = sys.modules["torch"]
        if array.dtype is torch.bfloat16:
            # NumPy has no such type, and PyTorch does not know that of ml_dtypes: as integers the 16 bits can pass.
            return array.view(torch.int16).numpy().view(bfloat16(name))  # type: ignore[no-any-return]
        return array.numpy()  # type: ignore[no-any-return]

    def compute(
        self, run: Callable[[Any], View], like: Callable[[], tuple[Any, npt.DTypeLike]] | None, out: Any = None
    ) -> Any:
        if self.backend is None:
            return super().compute(run, like, out)
        torch = sys.modules["torch"]
        stream = torch.cuda.current_stream(self.device).cuda_stream
        with cuda("inputs", self).on_stream(stream, self.device):
            if out is not None or like is None:
                return super().compute(run, like, out)
            tensor = made = None
            with suppress(*_NO_SHAPE):
                shape, dtype = like()
                if (shape if isinstance(shape, int) else min(shape)) >= 0:
                    tensor = torch.empty(shape, dtype=_torch_type(np.dtype(dtype)), device=self.device)
                    made = self.view("out", tensor)
            result = run(made)
            return self.give(result) if made is None else tensor

    def give(self, result: View) -> Any:
        torch = sys.modules["torch"]
        take = torch.from_numpy if self.backend is None else torch.from_dlpack
        if result.dtype.kind == "V":  # bfloat16 of ml_dtypes; its name takes microseconds to make
            return take(result.view(np.int16)).view(torch.bfloat16)
        return take(result)

    def written(self, array: Any) -> None:
        if not array.is_inference():
            # So that autograd notices, where it has kept the tensor for a backward pass.
            sys.modules["torch"].autograd.graph.increment_version(array)


class _Jax(Origin):
    immutable = True

    @classmethod
    def of(cls, name: str, array: Any) -> Origin:
        if isinstance(array, sys.modules["jax"].core.Tracer):
            raise TypeError(f"{name}: the array is traced by JAX and has no numbers yet: use fastgc.jax within jax.jit")
        devices = array.devices()
        if len(devices) != 1:
            raise TypeError(f"{name}: the array lies on {len(devices)} devices: pass a shard of it, which lies on one")
        (device,) = devices
        if device.platform == "cpu":
            found = cls("JAX", f"cpu:{device.id}" if device.id else "cpu", None)
        else:
            found = cls("JAX", *_on_device(name, array, str(device), "jax.device_put"))
        # An array that was put on no device in particular may meet those of any device, and so may what is made of it.
        found._device = device if array.committed else None
        return found

    _device: Any

    def _readable(self, name: str, array: Any, write: bool) -> Any:
        if write:
            raise TypeError(
                f"{name}: JAX arrays are immutable, so that nothing can be written to one: do not give {name}"
            )
        return array

    def _on_host(self, name: str, array: Any) -> View:
        return np.asarray(array)  # the buffer itself, read-only; DLPack to NumPy has no bfloat16

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> View:
        if self.backend is not None:
            return super().empty(shape, dtype)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        room = np.empty(size + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        return room[start : start + size].view(dtype).reshape(shape)

    def give(self, result: View) -> Any:
        jax = sys.modules["jax"]
        if self.backend is not None:
            return jax.dlpack.from_dlpack(result)
        if result.dtype == np.float64 and not jax.config.jax_enable_x64:
            enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # until JAX 0.7
            with enable(True):  # which the inputs must have had when they were made
                return jax.device_put(result, self._device, may_alias=True)
        return jax.device_put(result, self._device, may_alias=True)


class _CuPy(Origin):
    native = True

    @classmethod
    def of(cls, name: str, array: Any) -> Origin:
        return _cupy_on(array.data.device_id)

    def give(self, result: View) -> Any:
        return result


class _DLPack(Origin):
    """Any other library whose arrays have ``__dlpack__``."""

    @classmethod
    def of(cls, name: str, array: Any) -> Origin:
        library = type(array).__module__.partition(".")[0]
        kind, number = array.__dlpack_device__()
        if kind in _HOST:
            found = cls(library, "cpu", None)
        else:
            found = cls(library, *_on_device(name, array, f"device ({int(kind)}, {number}) of DLPack", "its library"))
        found._namespace = _namespace(array)
        return found

    _namespace: Any

    def give(self, result: View) -> Any:
        if not hasattr(self._namespace, "from_dlpack"):
            raise TypeError(f"out: must be given, as {self.library} has no from_dlpack to make an array of the result")
        return self._namespace.from_dlpack(result)


NUMPY = _NumPy("NumPy", "cpu", None)
_TORCH_ON_HOST = _Torch("PyTorch", "cpu", None)
_torch_devices: dict[Any, Origin] = {}


@functools.cache
def _cupy_on(device: int) -> Origin:
    return _CuPy("CuPy", f"cuda:{device}", "cuda")


_OF_LIBRARIES = (("numpy", "ndarray", _NumPy), ("torch", "Tensor", _Torch), ("jax", "Array", _Jax),
                 ("cupy", "ndarray", _CuPy))  # fmt: skip
_namespaces: dict[type, Any] = {}  # by type: to ask an array of array-api-strict takes as long as to view it
_known: dict[type, Any] = {}  # by type: to look it up takes a tenth of asking every library


def is_array(value: Any) -> bool:
    """Whether this is one array, rather than a sequence of arrays or none."""
    return _adapter(value) is not None


def origin(name: str, array: Any) -> Origin:
    """Where an array comes from.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    array : array
        Of NumPy, PyTorch, JAX, CuPy, or any library whose arrays have ``__dlpack__`` and ``__dlpack_device__``.

    Raises
    ------
    TypeError
        No array, one on a device that no backend reaches or on several, or one that JAX traces.
    """
    adapter = _adapter(array)
    if adapter is None:
        raise TypeError(f"{name}: expected an array of NumPy, or one with __dlpack__, got {type(array).__name__}")
    found: Origin = adapter.of(name, array)
    return found


def origin_of_rows(name: str, rows: Any) -> Origin:
    """Where a 2-D array, or the first of a list of arrays, comes from; `NUMPY` for what is neither, which is for a
    backend to refuse."""
    if isinstance(rows, (list, tuple)):
        return origin(f"{name}[0]", rows[0]) if rows and is_array(rows[0]) else NUMPY
    return origin(name, rows) if is_array(rows) else NUMPY


def view(name: str, array: Any) -> View:
    """An array of any library as the kernels see it; see `Origin.view`."""
    return array if isinstance(array, np.ndarray) else origin(name, array).view(name, array)


def written(arrays: Any) -> None:
    """Tell the library of an array, or of a list of arrays, that their numbers have changed; see `Origin.written`."""
    for array in arrays if isinstance(arrays, (list, tuple)) else (arrays,):
        origin("out", array).written(array)


def overlap(a: View, b: View) -> bool:
    """Whether two views share memory, as far as their bounds tell."""
    bounds: Any = np if isinstance(a, np.ndarray) else sys.modules["cupy"]
    return bool(bounds.may_share_memory(a, b))


def on_host(name: str, value: Any) -> Any:
    """What is array-like for NumPy, with arrays of other libraries as NumPy arrays; TypeError for those elsewhere."""
    if isinstance(value, np.ndarray) or not is_array(value):
        return value
    found = origin(name, value)
    if found.backend is not None:
        raise TypeError(f"{name}: expected numbers on the host, got an array of {found}: move it there first")
    return found.view(name, value)


@functools.cache
def _torch_type(dtype: np.dtype[Any]) -> Any:
    return getattr(sys.modules["torch"], dtype.name)


def bfloat16(name: str) -> np.dtype[Any]:
    """The type of ml_dtypes, which NumPy alone does not have; TypeError where it is not installed."""
    try:
        found: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        return found
    except ImportError as error:
        raise TypeError(f"{name}: bfloat16 needs the package ml_dtypes: {error}") from None


def _namespace(array: Any) -> Any:
    """Of an array by the array API standard, else the module of its library."""
    kind = type(array)
    if kind not in _namespaces:
        ask = getattr(array, "__array_namespace__", None)
        _namespaces[kind] = ask() if ask is not None else sys.modules.get(kind.__module__.partition(".")[0])
    return _namespaces[kind]


def _adapter(array: Any) -> Any:
    kind = type(array)
    try:
        return _known[kind]
    except KeyError:
        found: Any = next(
            (a for m, n, a in _OF_LIBRARIES if isinstance(array, getattr(sys.modules.get(m), n, ()))), None
        )
        if found is None and hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__"):
            found = _DLPack
        _known[kind] = found
        return found


def _on_device(name: str, array: Any, device: str, how: str) -> tuple[str, str]:
    """Name and backend of a device that is not the host's, or a TypeError."""
    try:
        kind, number = array.__dlpack_device__()
    except _NO_VIEW:
        kind, number = 0, 0
    if kind not in _CUDA:
        raise TypeError(
            f"{name}: lies on {device}, where there are no kernels: move it to the host by {how}, or to CUDA"
        )
    return f"cuda:{number}", "cuda"


def cuda(name: str, where: Origin) -> Any:
    """The backend for CUDA devices, or a ValueError with the reason why it does not work here.

    Beside what all backends have it has ``missing()``, the reason if there is one, ``view(array)``, any array of a CUDA
    device as a CuPy array in the same memory, and ``empty(shape, dtype, device)``.
    """
    try:
        import fastgc.kernels._cuda as module  # in a third of the time of import_module, at every call

        reason = module.missing()
    except ImportError as error:
        reason = str(error).partition("\n")[0]
    if reason:
        raise ValueError(f"{name}: lies on {where.device}, and backend 'cuda' does not work here: {reason}")
    return module
