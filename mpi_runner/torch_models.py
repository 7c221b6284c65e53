"""Any PyTorch module as a model, and the two that the command line offers.

This is the only file that imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from mpi_runner.models import Partition, Vector

__all__ = ["TorchModel", "cnn", "mlp"]


def _cross_entropy(outputs: Any, labels: Any) -> Any:
    return nn.functional.cross_entropy(outputs, labels, reduction="sum")


class TorchModel:
    """A PyTorch module on the CPU.

    Every call starts from the parameters that it is given, from the buffers that the module was built with, and from a
    random state made of the partition's seed: dropout masks, say, are the same on every holder of a partition, and
    nothing is left over from one call to the next.

    Parameters
    ----------
    build : callable
        Makes the module; called once, under `seed`, so that every rank makes the same.
    loss : callable, optional
        Given outputs and labels, returns the *sum* of the examples' losses; by default the cross entropy.
    seed : int
        Of the initial parameters.
    chunk : int
        Examples that go through the module at once: what bounds the memory.
    threads : int, optional
        Of PyTorch in this process; None leaves its setting. There are as many ranks as cores, or more.

    Raises
    ------
    ValueError
        The module has no parameters to train, or some of another element type than float32 or float64; or it
        has batch normalisation that keeps running averages: those would stay on the workers, and the master would
        evaluate the module with the averages it was built with.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        loss: Callable[[Any, Any], Any] = _cross_entropy,
        *,
        seed: int = 0,
        chunk: int = 512,
        threads: int | None = 1,
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        if threads is not None:
            torch.set_num_threads(threads)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = build()
        self._loss = loss
        self._chunk = chunk
        trained = _checked(self.module)
        # One vector holds all parameters and another all gradients; the module's own tensors are views of them.
        self._parameters = torch.cat([parameter.detach().reshape(-1) for parameter in trained])
        self._gradient = torch.zeros_like(self._parameters)
        self._initial: Vector = self._parameters.numpy().copy()
        start = 0
        for parameter in trained:
            stop = start + parameter.numel()
            parameter.data = self._parameters[start:stop].view_as(parameter)
            parameter.grad = self._gradient[start:stop].view_as(parameter)
            start = stop
        self._buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]

    def initial(self) -> Vector:
        """Return the parameters that the module was built with."""
        return self._initial.copy()

    def partial_gradient(self, parameters: Vector, partition: Partition) -> Vector:
        """Return the sum of the gradients over the partition, with the module in training mode."""
        return self.gradient_and_loss(parameters, partition)[0]

    def gradient_and_loss(self, parameters: Vector, partition: Partition) -> tuple[Vector, float]:
        """Return the sum of the gradients, in an array that the next call overwrites, and the sum of the losses."""
        self._start_from(parameters)
        self.module.train()
        self._gradient.zero_()
        total = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(partition.seed)
            for inputs, labels in self._chunks(partition):
                loss = self._loss(self.module(inputs), labels)
                loss.backward()
                total += loss.item()
        return self._gradient.numpy(), total

    def evaluate(self, parameters: Vector, partition: Partition) -> dict[str, float]:
        """Return the mean ``loss``, and before it, where labels are class numbers, ``accuracy``; in evaluation mode."""
        self._start_from(parameters)
        self.module.eval()
        total, right, classes = 0.0, 0, False
        with torch.no_grad():
            for inputs, labels in self._chunks(partition):
                outputs = self.module(inputs)
                total += self._loss(outputs, labels).item()
                classes = outputs.ndim == 2 and labels.ndim == 1 and not labels.is_floating_point()
                if classes:
                    right += int((outputs.argmax(dim=1) == labels).sum())
        figures = {"accuracy": right / partition.count} if classes else {}
        return {**figures, "loss": total / partition.count}

    def _start_from(self, parameters: Vector) -> None:
        if parameters.shape != self._initial.shape or parameters.dtype != self._initial.dtype:
            raise ValueError(
                f"parameters must be {self._initial.dtype} of shape {self._initial.shape}, got {parameters.dtype} of "
                f"{parameters.shape}"
            )
        self._parameters.numpy()[:] = parameters
        with torch.no_grad():
            for buffer, built in self._buffers:
                buffer.copy_(built)

    def _chunks(self, partition: Partition) -> Iterator[tuple[Any, Any]]:
        for start in range(0, partition.count, self._chunk):
            rows = slice(start, start + self._chunk)
            yield self._tensor(partition.inputs[rows]), self._tensor(partition.labels[rows])

    def _tensor(self, rows: Any) -> Any:
        rows = np.ascontiguousarray(rows)
        if rows.dtype.kind == "f":
            rows = rows.astype(self._initial.dtype, copy=False)
        return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def _checked(module: nn.Module) -> list[Any]:
    """The parameters to train, or ValueError for a module that cannot be trained here."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            raise ValueError(
                f"{name or 'the module'} is batch normalisation with running averages, which would stay on the "
                "workers: use GroupNorm or LayerNorm, or track_running_stats=False"
            )
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("the module has no parameters to train")
    kinds = {parameter.dtype for parameter in trained}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ValueError(f"the module's parameters must all be float32 or all float64, not {named}")
    return trained


def mlp(pixels: int, classes: int) -> nn.Module:
    """Return a network with one hidden layer of 128 units."""
    return nn.Sequential(nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, classes))


def cnn(side: int, classes: int) -> nn.Module:
    """Return two convolutions, dropout and a linear layer, for square images of one channel given as rows of pixels."""
    features = nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
    )
    return nn.Sequential(*features, nn.Linear(16 * (side // 4) ** 2, classes))
