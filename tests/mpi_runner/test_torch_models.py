"""PyTorch modules as models: gradients against autograd and finite differences, and nothing left between calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from mpi_runner.models import Partition  # noqa: E402
from mpi_runner.optimizers import OPTIMIZERS  # noqa: E402
from mpi_runner.torch_models import TorchModel, cnn, mlp  # noqa: E402

SEED = 21
SIDE, CLASSES = 28, 10


def images(rows: int, dtype: Any = np.float32) -> Partition:
    rng = np.random.default_rng(SEED + rows)
    return Partition(rng.random((rows, SIDE**2)).astype(dtype), rng.integers(0, CLASSES, rows), seed=5)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def small_partition(rows: int = 30) -> Partition:
    rng = np.random.default_rng(SEED)
    return Partition(rng.standard_normal((rows, 4)), rng.integers(0, 3, rows))


NETWORKS = {"mlp": lambda: mlp(SIDE**2, CLASSES), "cnn": lambda: cnn(SIDE, CLASSES)}


@pytest.mark.parametrize("chunk", [512, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_is_autograds_sum(name: str, chunk: int) -> None:
    """Dropout off, which cannot be compared across chunks."""
    model = TorchModel(NETWORKS[name], chunk=chunk)
    for part in model.module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    partition = images(20)
    gradient, loss = model.gradient_and_loss(model.initial(), partition)

    torch.manual_seed(0)
    module = NETWORKS[name]().double().eval()
    outputs = module(torch.from_numpy(partition.inputs.astype(np.float64)))
    expected = nn.functional.cross_entropy(outputs, torch.from_numpy(partition.labels), reduction="sum")
    expected.backward()
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()]).numpy()
    assert gradient.dtype == np.float32
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    # Sums of at most some thousand products, in float32.
    np.testing.assert_allclose(gradient, flat, rtol=0, atol=1e-4 * np.abs(flat).max())


def test_the_gradient_is_the_derivative_of_the_loss() -> None:
    model, partition = TorchModel(small), small_partition()
    w = model.initial()
    assert w.dtype == np.float64
    gradient = model.partial_gradient(w, partition).copy()
    for direction, expected in zip(np.eye(len(w)), gradient, strict=True):
        up, down = (model.gradient_and_loss(w + h * direction, partition)[1] for h in (1e-5, -1e-5))
        assert expected == pytest.approx((up - down) / 2e-5, abs=1e-7)


def test_gradients_of_parts_add_up_to_that_of_the_whole() -> None:
    model, whole = TorchModel(small), small_partition()
    total = model.partial_gradient(model.initial(), whole).copy()
    cuts = [Partition(whole.inputs[rows], whole.labels[rows]) for rows in (slice(0, 11), slice(11, None))]
    parts = [model.partial_gradient(model.initial(), part).copy() for part in cuts]
    np.testing.assert_allclose(sum(parts), total, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_two_holders_agree_whatever_they_did_before(name: str) -> None:
    steady, other = TorchModel(NETWORKS[name], seed=3), TorchModel(NETWORKS[name], seed=3)
    np.testing.assert_array_equal(steady.initial(), other.initial())
    w = steady.initial()
    first = steady.partial_gradient(w, images(20)).copy()
    torch.manual_seed(99)
    other.partial_gradient(w + 1, images(9))
    other.evaluate(w, images(9))
    np.testing.assert_array_equal(other.partial_gradient(w, images(20)), first)


def test_dropout_follows_the_seed_of_the_partition() -> None:
    model, partition = TorchModel(NETWORKS["cnn"]), images(20)
    w = model.initial()
    first = model.partial_gradient(w, partition).copy()
    again = Partition(partition.inputs, partition.labels, seed=6)
    assert not np.array_equal(model.partial_gradient(w, again), first)
    np.testing.assert_array_equal(model.partial_gradient(w, partition), first)


def test_a_call_leaves_the_callers_random_state_and_parameters_alone() -> None:
    model, partition = TorchModel(NETWORKS["cnn"]), images(6)
    w = model.initial()
    before = w.copy()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model.partial_gradient(w, partition)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(w, before)


def test_buffers_are_as_they_were_built_in_every_call() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3).double()
            self.register_buffer("calls", torch.zeros(1, dtype=torch.float64))

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return self.linear(x) * self.calls

    model, partition = TorchModel(Counting), small_partition()
    first = model.partial_gradient(model.initial(), partition).copy()
    np.testing.assert_array_equal(model.partial_gradient(model.initial(), partition), first)


def test_evaluate_is_in_evaluation_mode() -> None:
    model, partition = TorchModel(NETWORKS["cnn"], chunk=7), images(20)
    figures = model.evaluate(model.initial(), partition)
    assert list(figures) == ["accuracy", "loss"]
    assert figures == model.evaluate(model.initial(), partition)
    with torch.no_grad():
        outputs = model.module(torch.from_numpy(partition.inputs)).numpy()
    assert figures["accuracy"] == np.mean(outputs.argmax(axis=1) == partition.labels)


def test_another_loss() -> None:
    """Least squares: no classes, so no accuracy."""
    rng = np.random.default_rng(SEED)
    partition = Partition(rng.random((9, 4)), rng.random((9, 1)))
    model = TorchModel(lambda: nn.Linear(4, 1).double(), lambda outputs, labels: ((outputs - labels) ** 2).sum())
    w = model.initial()
    residuals = partition.inputs @ w[:4] + w[4] - partition.labels[:, 0]
    gradient, loss = model.gradient_and_loss(w, partition)
    np.testing.assert_allclose(gradient, 2 * np.append(partition.inputs.T @ residuals, residuals.sum()), atol=1e-12)
    assert loss == pytest.approx(residuals @ residuals)
    assert model.evaluate(w, partition) == {"loss": pytest.approx(loss / 9)}


def test_threads_are_one_by_default() -> None:
    TorchModel(small, threads=2)
    assert torch.get_num_threads() == 2
    TorchModel(small, threads=None)
    assert torch.get_num_threads() == 2
    TorchModel(small)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("name", "theirs"), [
    ("adam", lambda p: torch.optim.Adam(p, lr=0.01)),
    ("momentum", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    ("gd", lambda p: torch.optim.SGD(p, lr=0.01)),
])  # fmt: skip
def test_optimisers_are_pytorchs(name: str, theirs: Any) -> None:
    gradients = np.random.default_rng(SEED).standard_normal((30, 6))
    optimizer = OPTIMIZERS[name](np.ones(6), 0.01)
    tensor = torch.ones(6, dtype=torch.float64, requires_grad=True)
    peer = theirs([tensor])
    for gradient in gradients:
        optimizer.update(gradient)
        tensor.grad = torch.from_numpy(gradient)
        peer.step()
    np.testing.assert_allclose(optimizer.model, tensor.detach().numpy(), rtol=1e-10)


BAD: list[tuple[str, Any, str]] = [
    ("batch norm", lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "1 is batch normalisation with running"),
    ("nothing to train", nn.ReLU, "no parameters to train"),
    ("half", lambda: nn.Linear(2, 2).half(), "all be float32 or all float64, not float16"),
    ("mixed", lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "not float32, float64"),
]


@pytest.mark.parametrize(("build", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_modules_that_cannot_be_trained(build: Any, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern) as caught:
        TorchModel(build)
    assert "\n" not in str(caught.value)


def test_batch_norm_without_running_averages_is_taken() -> None:
    model = TorchModel(lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double())
    first = model.partial_gradient(model.initial(), small_partition()).copy()
    np.testing.assert_array_equal(model.partial_gradient(model.initial(), small_partition()), first)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        TorchModel(small, chunk=0)
    with pytest.raises(ValueError, match=r"parameters must be float64 of shape \(43,\), got float32 of \(43,\)"):
        TorchModel(small).partial_gradient(np.zeros(43, np.float32), small_partition())
