"""Streams of other libraries as CuPy's current one. CuPy is given: nothing here imports it."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

__all__ = ["on_stream"]


class _Stream:
    """A stream by its address, as CUDA's stream protocol has it."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer  # the protocol's version


def on_stream(cupy: Any, pointer: int, device: int) -> AbstractContextManager[Any]:
    """A context in which a device is CuPy's current one, and a stream of that device, by its address."""
    if device == cupy.cuda.device.get_device_id() and pointer == cupy.cuda.get_current_stream().ptr:
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(cupy.cuda.Device(device))
    take = getattr(getattr(cupy.cuda, "Stream", None), "from_external", None)
    # CuPy 14 has it, and warns of what was there before.
    stack.enter_context(cupy.cuda.ExternalStream(pointer, device) if take is None else take(_Stream(pointer)))
    return stack
