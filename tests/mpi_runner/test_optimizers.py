"""Optimisers against their formulas written out, and on problems with a known optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from mpi_runner.models import LogisticRegression, Partition
from mpi_runner.optimizers import Adam, GradientDescent, Momentum, Nesterov, Optimizer, mean_gradient, train_single

KINDS: list[Callable[..., Optimizer]] = [GradientDescent, Momentum, Nesterov, Adam]


def test_gradient_descent_by_hand() -> None:
    optimizer = GradientDescent(np.array([1.0, 2.0]), 0.5)
    optimizer.update(np.array([2.0, -2.0]))
    np.testing.assert_array_equal(optimizer.model, [0.0, 3.0])
    np.testing.assert_array_equal(optimizer.parameters, optimizer.model)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_nesterov_by_the_formula(dtype: Any, tolerance: float) -> None:
    rng = np.random.default_rng(1)
    diagonal = rng.uniform(0.1, 1.0, 9)
    start = rng.standard_normal(9)
    optimizer = Nesterov(start.astype(dtype), 1.0)
    x = y = start.astype(dtype).astype(float)
    t = 1.0
    for _ in range(30):
        np.testing.assert_allclose(optimizer.parameters, y, rtol=0, atol=tolerance)
        optimizer.update((diagonal * optimizer.parameters).astype(dtype))
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        x, previous = y - diagonal * y, x
        y = x + (t - 1) / following * (x - previous)
        t = following
        np.testing.assert_allclose(optimizer.model, x, rtol=0, atol=tolerance)
    assert optimizer.model.dtype == dtype


def test_nesterov_keeps_its_bound() -> None:
    """f(x_k) − f* ≤ 2L‖x_0 − x*‖² / (k + 1)² for L-smooth convex f, here a badly conditioned quadratic."""
    diagonal = np.logspace(-6, 0, 50)
    start = np.ones(50)
    optimizer = Nesterov(start, 1.0)
    for k in range(1, 400):
        optimizer.update(diagonal * optimizer.parameters)
        value = 0.5 * float(diagonal @ optimizer.model**2)
        assert value <= 2 * float(start @ start) / (k + 1) ** 2


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_caller_is_modified(kind: Callable[..., Optimizer]) -> None:
    start, gradient = np.ones(5), np.arange(5.0)
    optimizer = kind(start, 0.1)
    for _ in range(4):
        optimizer.update(gradient)
    np.testing.assert_array_equal(start, np.ones(5))
    np.testing.assert_array_equal(gradient, np.arange(5.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_restored_state_continues_with_the_same_bits(kind: Callable[..., Optimizer], dtype: Any) -> None:
    rng = np.random.default_rng(2)
    gradients = rng.standard_normal((12, 7)).astype(dtype)
    whole = kind(np.zeros(7, dtype), 0.3)
    for gradient in gradients[:5]:
        whole.update(gradient)
    state = whole.state()
    assert all(isinstance(value, np.ndarray) for value in state.values())
    resumed = kind(np.zeros(7, dtype), 0.3)
    resumed.restore(state)
    for gradient in gradients[5:]:
        whole.update(gradient)
        resumed.update(gradient)
    np.testing.assert_array_equal(resumed.model, whole.model)
    np.testing.assert_array_equal(resumed.parameters, whole.parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input(kind: Callable[..., Optimizer]) -> None:
    for step in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="step must be finite and > 0"):
            kind(np.zeros(3), step)
    optimizer = kind(np.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"gradient must have shape \(3,\), got \(1,\)"):
        optimizer.update(np.zeros(1))
    with pytest.raises(ValueError, match="state must be float64"):
        optimizer.restore({"model": np.zeros(4), "parameters": np.zeros(4), "t": np.array(1.0)})


def test_mean_gradient() -> None:
    total, parameters, scratch = np.array([4.0, 8.0]), np.array([1.0, -1.0]), np.empty(2)
    returned = mean_gradient(total, 4, 0.5, parameters, scratch)
    assert returned is total
    np.testing.assert_array_equal(total, [1.5, 1.5])
    np.testing.assert_array_equal(parameters, [1.0, -1.0])
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        mean_gradient(total, 0, 0.5, parameters)


@pytest.mark.parametrize("kind", KINDS[:3])  # Adam with a constant step only comes near
def test_train_single_reaches_the_optimum(kind: Callable[..., Optimizer]) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((200, 5))
    y = np.where(x @ rng.standard_normal(5) + rng.standard_normal(200) > 0, 1.0, -1.0)
    partitions = [Partition(sparse.csr_array(x[i::3]), y[i::3]) for i in range(3)]
    model = LogisticRegression(5, np.float64)
    l2 = 0.01
    step = 1 / (np.linalg.norm(x, 2) ** 2 / 800 + l2)
    losses: list[float] = []
    found = train_single(
        model,
        partitions,
        kind(model.initial(), step),
        2000,
        l2,
        lambda iteration, loss, current: losses.append(loss),
    )
    whole = Partition(sparse.csr_array(x), y)
    gradient = mean_gradient(model.partial_gradient(found, whole), 200, l2, found)
    assert np.abs(gradient).max() < 1e-9
    assert losses[0] == pytest.approx(math.log(2))
    assert len(losses) == 2000


def test_momentum_by_the_formula() -> None:
    rng = np.random.default_rng(5)
    gradients = rng.standard_normal((20, 4))
    optimizer = Momentum(np.ones(4), 0.1, 0.8)
    for steps in range(1, 21):
        optimizer.update(gradients[steps - 1])
        # v after t steps is Σ 0.8ᵗ⁻ⁱ gᵢ, and w what all velocities together have moved it by.
        velocities = [sum(0.8 ** (t - i) * gradients[i] for i in range(t + 1)) for t in range(steps)]
        np.testing.assert_allclose(optimizer.model, 1 - 0.1 * sum(velocities), rtol=0, atol=1e-13)


def test_adam_by_the_formula() -> None:
    rng = np.random.default_rng(6)
    gradients = rng.standard_normal((20, 4))
    optimizer = Adam(np.ones(4), 0.1, 0.8, 0.95, 1e-3)
    expected = np.ones(4)
    for steps in range(1, 21):
        optimizer.update(gradients[steps - 1])
        mean = sum(0.2 * 0.8 ** (steps - 1 - i) * gradients[i] for i in range(steps)) / (1 - 0.8**steps)
        square = sum(0.05 * 0.95 ** (steps - 1 - i) * gradients[i] ** 2 for i in range(steps)) / (1 - 0.95**steps)
        expected = expected - 0.1 * mean / (np.sqrt(square) + 1e-3)
        np.testing.assert_allclose(optimizer.model, expected, rtol=0, atol=1e-13)


def test_shares_out_of_range() -> None:
    for momentum in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="momentum must be at least 0 and below 1, got"):
            Momentum(np.zeros(3), 1.0, momentum)
    with pytest.raises(ValueError, match="second must be at least 0 and below 1, got 1"):
        Adam(np.zeros(3), 1.0, second=1.0)
    with pytest.raises(ValueError, match="epsilon must be finite and > 0, got 0"):
        Adam(np.zeros(3), 1.0, epsilon=0.0)
