"""CPU tensors as NumPy arrays of the same memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ELEMENTS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def view(tensor: Any) -> npt.NDArray[Any]:
    """The tensor's memory as an array; bfloat16, which NumPy lacks, as the type of ml_dtypes."""
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.int16)
        return tensor.numpy().view(_bfloat16())  # type: ignore[no-any-return]
    return tensor.numpy()  # type: ignore[no-any-return]


def element_type(dtype: Any) -> np.dtype[Any]:
    """NumPy's name for a floating type of PyTorch."""
    return _bfloat16() if dtype is torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch."))


@cache
def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError("bfloat16 tensors need the package ml_dtypes, which is not installed") from None
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found
