"""PyTorch's tensors for the CUDA backend, without a GPU: how they are seen, and where results are made.

Tensors are on the host. CuPy's arrays are real, and their memory is not touched.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("cupy", reason="CuPy is not installed")

from fastgc import arrays, kernels  # noqa: E402
from fastgc.kernels import _cuda  # noqa: E402

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_tensor_is_seen_as_it_lies(dtype: Any) -> None:
    whole = torch.zeros(6, 10, dtype=dtype)
    size = whole.element_size()
    for tensor in (
        whole,
        whole[1:4, 2:9:3],
        whole[2],
        whole.T,
        whole[:0],
        whole[:, :2][:0],
        whole[0, 0],
        whole[:1].expand(3, 10),
    ):
        seen = _cuda.of_torch(tensor)
        assert seen.shape == tuple(tensor.shape)
        assert seen.strides == tuple(size * stride for stride in tensor.stride()) or not seen.size
        assert seen.data.ptr == tensor.data_ptr()
        assert _cuda._name(seen.dtype) == str(dtype).partition(".")[2]
        assert seen.data.device_id == 0


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_another_stream_makes_is_waited_for(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    """By DLPack; on CuPy's own current stream there is nothing to wait for."""
    by_dlpack: list[Any] = []

    def from_dlpack(tensor: Any) -> Any:
        by_dlpack.append(tensor.dtype)
        return tensor.numpy()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=5))
    monkeypatch.setattr(_cuda.cupy.cuda, "get_current_stream", lambda: SimpleNamespace(ptr=current))
    monkeypatch.setattr(_cuda.cupy, "from_dlpack", from_dlpack)
    tensor = torch.zeros(3, dtype=dtype)
    current = 5
    assert _cuda.view(tensor).data.ptr == tensor.data_ptr()
    assert by_dlpack == []
    current = 0
    assert _cuda._name(_cuda.view(tensor).dtype) == str(dtype).partition(".")[2]
    assert by_dlpack == [torch.int16 if dtype is torch.bfloat16 else dtype]


def test_other_element_types_are_left_to_the_checks() -> None:
    assert _cuda.of_torch(torch.zeros(3, dtype=torch.int32)).dtype == np.int32
    with pytest.raises(TypeError, match="expected dtype float32, float64, float16 or bfloat16, got quint8"):
        _cuda._torch_dtype(torch.quint8)


@pytest.fixture
def where(monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyTorch on a device that is the host's memory, with the C++ kernels for a backend."""

    def view(tensor: Any) -> Any:
        if tensor.dtype is torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(arrays.bfloat16(""))
        return tensor.numpy()

    backend = SimpleNamespace(view=view, on_stream=lambda pointer, device: contextlib.nullcontext())
    monkeypatch.setattr(arrays, "cuda", lambda name, where: backend)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    found = arrays._Torch("PyTorch", "cpu", "cuda")
    monkeypatch.setattr(arrays, "_TORCH_ON_HOST", found)
    return found


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_results_are_made_in_pytorchs_memory(where: Any, dtype: Any) -> None:
    x = torch.randn(3, 100).to(dtype)
    seen = where.rows("inputs", x)
    written: list[Any] = []

    def run(made: Any) -> Any:
        written.append(made)
        return kernels.lincomb([[1.0, 2.0, 3.0]], seen, made)

    result = where.compute(run, lambda: ((1, 100), seen.dtype))
    assert result.dtype is dtype
    assert written[0].ctypes.data == result.data_ptr()
    assert torch.equal(result, kernels.lincomb([[1.0, 2.0, 3.0]], x))
    given, copies = x[:1], [row.copy() for row in seen]
    assert where.compute(lambda made: kernels.lincomb([[0, 1.0, 0]], copies, made), None, given) is given
    assert torch.equal(x[0], x[1])


def test_bad_arguments_are_the_kernels_to_refuse(where: Any) -> None:
    def run(made: Any) -> Any:
        assert made is None
        raise ValueError("the kernel's own words")

    for like in (
        lambda: ([][0], np.float32),
        lambda: ((1, 2), np.dtype("O")),
        lambda: (None, np.float32),
        lambda: (-1, np.float32),
        lambda: ((2, -1), np.float32),
    ):
        with pytest.raises(ValueError, match="the kernel's own words"):
            where.compute(run, like)
    with pytest.raises(TypeError, match="inputs: this Tensor of PyTorch on cpu cannot be viewed"):
        where.view("inputs", torch.zeros(2, dtype=torch.complex64).conj())
