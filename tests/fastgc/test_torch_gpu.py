"""`fastgc.torch` on a GPU: the CPU's bits, side streams, there and back. Only by ``make test-gpu``."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from fastgc import schemes  # noqa: E402
from fastgc.torch import GradientDecoder, GradientEncoder, lincomb  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("not torch.cuda.is_available()", reason="PyTorch has no CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_operator_has_the_bits_of_the_cpu(dtype: Any) -> None:
    coefficients = torch.randn(3, 4, dtype=torch.float64)
    rows = torch.randn(4, 10_007).to(dtype)
    there = rows.cuda()
    assert torch.equal(lincomb(coefficients, there).cpu(), lincomb(coefficients, rows))
    assert torch.equal(lincomb(coefficients, list(there)).cpu(), lincomb(coefficients, rows))
    there.requires_grad_()
    rows.requires_grad_()
    for tensor in (there, rows):
        lincomb(coefficients, tensor).sum().backward()
    assert torch.equal(there.grad.cpu(), rows.grad)
    checked = torch.library.opcheck(torch.ops.fastgc.lincomb.default, (coefficients, [there.detach()]))
    assert set(checked.values()) == {"SUCCESS"}


def test_kernels_keep_their_place_on_a_side_stream() -> None:
    coefficients = torch.eye(2, dtype=torch.float64)
    for _ in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            rows = torch.zeros(2, 1 << 20, device="cuda")
            torch.cuda._sleep(10_000_000)
            rows += 1
            out = torch.empty_like(rows)
            lincomb(coefficients, rows, out)
            assert bool((out + 0 == 1).all())


def test_a_model_on_the_gpu_goes_there_and_back() -> None:
    torch.manual_seed(0)
    gc = schemes.grouped(6, 3, 2)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)).cuda()
    data = torch.randn(6, 4, 5, device="cuda")
    sum((model(inputs) ** 2).sum() for inputs in data).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    decoder = GradientDecoder(gc, model)
    for worker in (1, 2, 3, 5):
        encoder = GradientEncoder(gc, worker, model)
        for partition in encoder.partitions:
            (model(data[partition]) ** 2).sum().backward()
            encoder.add(partition)
        decoder.add(worker, encoder.message())
    decoder.decode()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad.is_cuda
        torch.testing.assert_close(parameter.grad, gradient)
