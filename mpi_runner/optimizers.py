"""Optimisers that run on the master, in place and without allocating in an iteration.

Every optimiser has two vectors. `parameters` is where gradients are taken: it is what the workers get.
`model` is what is evaluated and saved. They are the same array in gradient descent; Nesterov's method takes its
gradients at a look-ahead point. Both stay owned by the optimiser: a caller that still reads one while
`update` runs (a pending send, say) copies it first, and fetches the properties anew after each update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpi_runner.models import Model, Partition, gradient_and_loss
from mpi_runner.randomness import Sampler

__all__ = [
    "OPTIMIZERS",
    "Adam",
    "GradientDescent",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "mean_gradient",
    "train_single",
]

Vector = NDArray[np.floating[Any]]


class Optimizer(Protocol):
    """What the master needs of an optimiser."""

    @property
    def parameters(self) -> Vector:
        """Where the next gradient is taken."""

    @property
    def model(self) -> Vector:
        """What is evaluated and saved."""

    def update(self, gradient: Vector) -> None:
        """Take one step along a gradient at `parameters`."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of everything that the next steps depend on."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` returned."""


def mean_gradient(total: Vector, count: float, l2: float, parameters: Vector, scratch: Vector | None = None) -> Vector:
    """Turn the sum of the examples' gradients into that of the regularised mean loss, in place.

    ``total ← total / count + l2 · parameters``: the master does this once, so workers know nothing of L2.

    Parameters
    ----------
    total : ndarray
        Sum over all examples; overwritten and returned.
    count : float
        Number of examples, ≥ 1; an estimate where the sum is one.
    l2 : float
        Weight of ½‖parameters‖².
    parameters : ndarray
        Where the gradient was taken; left alone.
    scratch : ndarray, optional
        Room for one vector of the same shape and dtype.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    total /= count
    if l2:
        total += np.multiply(parameters, l2, out=scratch)
    return total


class _AtTheModel:
    """What takes its gradients at the model itself."""

    _model: Vector

    @property
    def parameters(self) -> Vector:
        """Where the next gradient is taken: the model itself."""
        return self._model

    @property
    def model(self) -> Vector:
        """What is evaluated and saved."""
        return self._model


class GradientDescent(_AtTheModel):
    """``w ← w − step · gradient``.

    Parameters
    ----------
    initial : ndarray
        Starting point, copied. Its dtype is kept.
    step : float
        Step size, finite and > 0.
    """

    def __init__(self, initial: Vector, step: float) -> None:
        self.step = _checked_step(step)
        self._model = initial.copy()
        self._scratch = np.empty_like(self._model)

    def update(self, gradient: Vector) -> None:
        """Take one step; `gradient` is not modified."""
        _check_shape(gradient, self._model)
        self._model -= np.multiply(gradient, self.step, out=self._scratch)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return ``{"model": …}``, copied."""
        return {"model": self._model.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` returned."""
        _load(self._model, state["model"])


class Nesterov:
    """Nesterov's accelerated gradient for smooth convex losses (Nesterov 1983).

    ``x' = y − step·∇f(y)``, ``t' = (1 + √(1 + 4t²)) / 2``, ``y = x' + (t − 1)/t' · (x' − x)``, with t = 1 and x = y at
    the start, so the first step is plain gradient descent. `parameters` is y, `model` is x.

    Parameters
    ----------
    initial : ndarray
        Starting point, copied. Its dtype is kept.
    step : float
        1/L for an L-smooth loss, L2 term included. Finite and > 0.
    """

    def __init__(self, initial: Vector, step: float) -> None:
        self.step = _checked_step(step)
        self._ahead = initial.copy()
        self._model = initial.copy()
        self._scratch = np.empty_like(self._model)
        self._t = 1.0

    @property
    def parameters(self) -> Vector:
        """Where the next gradient is taken: the look-ahead point y."""
        return self._ahead

    @property
    def model(self) -> Vector:
        """What is evaluated and saved: x."""
        return self._model

    def update(self, gradient: Vector) -> None:
        """Take one step; `gradient` is not modified."""
        _check_shape(gradient, self._model)
        following = (1.0 + math.sqrt(1.0 + 4.0 * self._t**2)) / 2.0
        new = np.multiply(gradient, self.step, out=self._scratch)
        np.subtract(self._ahead, new, out=new)
        np.subtract(new, self._model, out=self._ahead)
        self._ahead *= (self._t - 1.0) / following
        self._ahead += new
        self._model, self._scratch = new, self._model
        self._t = following

    def state(self) -> dict[str, NDArray[Any]]:
        """Return ``{"model": x, "parameters": y, "t": …}``, copied."""
        return {"model": self._model.copy(), "parameters": self._ahead.copy(), "t": np.array(self._t)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` returned."""
        _load(self._model, state["model"])
        _load(self._ahead, state["parameters"])
        self._t = float(state["t"])


class Momentum(_AtTheModel):
    """Gradient descent with momentum (Polyak 1964): ``v ← momentum · v + gradient``, ``w ← w − step · v``, v = 0 first.

    Parameters
    ----------
    initial : ndarray
        Starting point, copied. Its dtype is kept.
    step : float
        Step size, finite and > 0.
    momentum : float
        Share of the velocity that is kept, 0 ≤ momentum < 1.
    """

    def __init__(self, initial: Vector, step: float, momentum: float = 0.9) -> None:
        self.step = _checked_step(step)
        self.momentum = _checked_share("momentum", momentum)
        self._model = initial.copy()
        self._velocity = np.zeros_like(initial)
        self._scratch = np.empty_like(initial)

    def update(self, gradient: Vector) -> None:
        """Take one step; `gradient` is not modified."""
        _check_shape(gradient, self._model)
        self._velocity *= self.momentum
        self._velocity += gradient
        self._model -= np.multiply(self._velocity, self.step, out=self._scratch)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return ``{"model": w, "velocity": v}``, copied."""
        return {"model": self._model.copy(), "velocity": self._velocity.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` returned."""
        _load(self._model, state["model"])
        _load(self._velocity, state["velocity"])


class Adam(_AtTheModel):
    """Adam (Kingma and Ba 2015, algorithm 1), with L2 in the gradient as everywhere here, not decoupled from it.

    ``m ← β₁m + (1 − β₁)g``, ``v ← β₂v + (1 − β₂)g²``, ``w ← w − step · m̂ / (√v̂ + ε)`` with ``m̂ = m / (1 − β₁ᵗ)`` and
    ``v̂ = v / (1 − β₂ᵗ)`` at the t-th step.

    Parameters
    ----------
    initial : ndarray
        Starting point, copied. Its dtype is kept.
    step : float
        Step size, finite and > 0.
    first, second : float
        β₁ and β₂, in [0, 1).
    epsilon : float
        Finite and > 0.
    """

    def __init__(
        self, initial: Vector, step: float, first: float = 0.9, second: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        self.step = _checked_step(step)
        self._first = _checked_share("first", first)
        self._second = _checked_share("second", second)
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"epsilon must be finite and > 0, got {epsilon}")
        self._epsilon = epsilon
        self._model = initial.copy()
        self._mean = np.zeros_like(initial)
        self._square = np.zeros_like(initial)
        self._scratch = np.empty_like(initial)
        self._steps = 0

    def update(self, gradient: Vector) -> None:
        """Take one step; `gradient` is not modified."""
        _check_shape(gradient, self._model)
        self._steps += 1
        scratch = self._scratch
        self._mean *= self._first
        self._mean += np.multiply(gradient, 1.0 - self._first, out=scratch)
        self._square *= self._second
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1.0 - self._second
        self._square += scratch
        # step · m̂ / (√v̂ + ε), both corrections as numbers.
        np.sqrt(self._square, out=scratch)
        scratch /= math.sqrt(1.0 - self._second**self._steps)
        scratch += self._epsilon
        np.divide(self._mean, scratch, out=scratch)
        scratch *= self.step / (1.0 - self._first**self._steps)
        self._model -= scratch

    def state(self) -> dict[str, NDArray[Any]]:
        """Return ``{"model": w, "mean": m, "square": v, "steps": t}``, copied."""
        return {
            "model": self._model.copy(),
            "mean": self._mean.copy(),
            "square": self._square.copy(),
            "steps": np.array(self._steps),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` returned."""
        _load(self._model, state["model"])
        _load(self._mean, state["mean"])
        _load(self._square, state["square"])
        self._steps = int(state["steps"])


OPTIMIZERS: dict[str, Callable[[Vector, float], Optimizer]] = {
    "nesterov": Nesterov,
    "gd": GradientDescent,
    "momentum": Momentum,
    "adam": Adam,
}
"""Made from a starting point and a step, by name."""


def train_single(
    model: Model,
    partitions: Sequence[Partition],
    optimizer: Optimizer,
    iterations: int,
    l2: float,
    callback: Callable[[int, float, Vector], None] | None = None,
    sampler: Sampler | None = None,
) -> Vector:
    """Train in this process: the reference that coded training is compared with.

    The partitions' gradients are added in index order in float64 and rounded once to the model's dtype; the rest is
    the master's own arithmetic.

    Parameters
    ----------
    model, partitions, optimizer, iterations, l2
        As for a run.
    callback : callable, optional
        Called after each step with its number from 1, the mean training loss *before* it at the point where the
        gradient was taken (L2 left out), and the model, which it must not keep or change.
    sampler : Sampler, optional
        As for a run; by default all examples in every iteration, and seed 0.

    Returns
    -------
    ndarray
        The model, a copy.
    """
    sampler = Sampler(0, len(partitions)) if sampler is None else sampler
    total = np.empty(len(optimizer.parameters), np.float64)
    for iteration in range(iterations):
        total[:] = 0.0
        losses, count = 0.0, 0
        for number, whole in enumerate(partitions):
            partition = sampler.draw(whole, number, iteration)
            gradient, loss = gradient_and_loss(model, optimizer.parameters, partition)
            total += gradient
            losses += loss
            count += partition.count
        mean = mean_gradient(total.astype(optimizer.parameters.dtype), count, l2, optimizer.parameters)
        optimizer.update(mean)
        if callback is not None:
            callback(iteration + 1, losses / count, optimizer.model)
    return optimizer.model.copy()


def _checked_step(step: float) -> float:
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"step must be finite and > 0, got {step}")
    return float(step)


def _checked_share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
    return float(value)


def _check_shape(gradient: Vector, model: Vector) -> None:
    if gradient.shape != model.shape:
        raise ValueError(f"gradient must have shape {model.shape}, got {gradient.shape}")


def _load(target: Vector, source: NDArray[Any]) -> None:
    if source.shape != target.shape or source.dtype != target.dtype:
        raise ValueError(f"state must be {target.dtype} of shape {target.shape}, got {source.dtype} of {source.shape}")
    target[:] = source
