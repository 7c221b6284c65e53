"""Kernels on a CUDA device start on CuPy's current stream: here that becomes PyTorch's, which the caller works on."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from fastgc.kernels._cuda_streams import on_stream


def on_current_stream(device: Any) -> AbstractContextManager[Any]:
    """A context in which kernels for tensors of `device` keep their place among PyTorch's own; on the CPU, none.

    Raises
    ------
    ValueError
        There is no CuPy for a CUDA device.
    """
    if device.type != "cuda":
        return nullcontext()
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise ValueError(f"inputs: lie on {device}, and backend 'cuda' does not work here: {error}") from None
    stream = torch.cuda.current_stream(device)
    return on_stream(cupy, stream.cuda_stream, stream.device_index)
