"""Logistic regression against plain formulas, and the area under the ROC curve against its definition."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from mpi_runner.models import LogisticRegression, Partition, auc

DTYPES = [np.float32, np.float64]


def make_partition(rng: np.random.Generator, rows: int, features: int, dtype: Any) -> Partition:
    dense = rng.random((rows, features)) < 0.3
    labels = np.where(rng.random(rows) < 0.3, 1, -1).astype(dtype)
    return Partition(sparse.csr_array(dense.astype(dtype)), labels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (1, 9), (7, 1), (50, 20), (1000, 33)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_gradient_and_loss_are_sums(dtype: Any, rows: int, features: int, scale: float) -> None:
    rng = np.random.default_rng(rows + features)
    partition = make_partition(rng, rows, features, dtype)
    model = LogisticRegression(features, dtype)
    parameters = (scale * rng.standard_normal(features)).astype(dtype)
    before = parameters.copy()
    gradient, loss = model.gradient_and_loss(parameters, partition)

    x, y, w = partition.inputs.toarray().astype(float), partition.labels.astype(float), parameters.astype(float)
    margins = y * (x @ w)
    # A margin is a sum of at most `features` numbers; an error in it moves a loss by as much, a slope by less.
    unit = np.finfo(dtype).eps
    slack = unit * features * (x @ np.abs(w))
    np.testing.assert_array_less(abs(loss - np.logaddexp(0, -margins).sum()), slack.sum() + rows * 1e-14)
    expected = x.T @ (-y * expit(-margins))
    bound = x.T @ slack + (rows + 4) * unit * x.sum(axis=0) + 1e-14
    assert (np.abs(gradient - expected) <= bound).all()
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(parameters, before)
    np.testing.assert_array_equal(model.partial_gradient(parameters, partition), gradient)


def test_gradient_is_the_derivative_of_the_loss() -> None:
    rng = np.random.default_rng(4)
    partition = make_partition(rng, 40, 6, np.float64)
    model = LogisticRegression(6, np.float64)
    w = rng.standard_normal(6)
    for direction in np.eye(6):
        up, down = (model.gradient_and_loss(w + h * direction, partition)[1] for h in (1e-5, -1e-5))
        # A central difference: error h²·f''' plus rounding of the losses over h.
        assert model.partial_gradient(w, partition) @ direction == pytest.approx((up - down) / 2e-5, abs=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_margins_neither_overflow_nor_warn(dtype: Any) -> None:
    matrix = sparse.csr_array(np.eye(4, dtype=dtype))
    partition = Partition(matrix, np.array([1, 1, -1, -1], dtype))
    w = np.array([1e30, -1e30, 50, -50], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient, loss = LogisticRegression(4, dtype).gradient_and_loss(w, partition)
    np.testing.assert_allclose(gradient, [0, -1, 1, np.exp(-50)], rtol=1e-6)
    assert loss == pytest.approx(float(np.float64(dtype(1e30))) + 50)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_in_every_call(dtype: Any) -> None:
    rng = np.random.default_rng(8)
    partition = make_partition(rng, 5000, 200, dtype)
    twin = Partition(partition.inputs.copy(), partition.labels.copy())
    model = LogisticRegression(200, dtype)
    w = rng.standard_normal(200).astype(dtype)
    first = model.gradient_and_loss(w, partition)
    for _ in range(3):
        again = model.gradient_and_loss(w, twin)
        np.testing.assert_array_equal(again[0], first[0])
        assert again[1] == first[1]


def test_evaluate() -> None:
    rng = np.random.default_rng(6)
    partition = make_partition(rng, 300, 12, np.float64)
    model = LogisticRegression(12, np.float64)
    w = rng.standard_normal(12)
    figures = model.evaluate(w, partition)
    scores = partition.inputs.toarray() @ w
    assert set(figures) == {"auc", "loss", "accuracy"}
    assert figures["loss"] == pytest.approx(model.gradient_and_loss(w, partition)[1] / partition.count)
    assert figures["accuracy"] == np.mean((scores > 0) == (partition.labels > 0))
    assert figures["auc"] == pytest.approx(brute_force_auc(scores, partition.labels > 0), abs=1e-12)


def brute_force_auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    pairs = scores[positive][:, None] - scores[~positive][None, :]
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
@pytest.mark.parametrize("size", [2, 3, 10, 400])
def test_auc_is_the_share_of_ordered_pairs(levels: int, size: int) -> None:
    rng = np.random.default_rng(levels + size)
    scores = rng.integers(0, levels, size).astype(float)
    positive = rng.random(size) < 0.4
    positive[:2] = [True, False]
    assert auc(scores, positive) == pytest.approx(brute_force_auc(scores, positive), abs=1e-12)


@pytest.mark.parametrize("value", [True, False])
def test_auc_of_one_class_is_nan(value: bool) -> None:
    assert np.isnan(auc(np.arange(3.0), np.full(3, value)))


def test_bad_input_is_refused() -> None:
    partition = make_partition(np.random.default_rng(0), 5, 3, np.float32)
    model = LogisticRegression(3)
    w = model.initial()
    assert w.dtype == np.float32
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got int32"):
        LogisticRegression(3, np.int32)
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        LogisticRegression(0)
    with pytest.raises(ValueError, match=r"parameters must be float32 of shape \(3,\), got float64"):
        model.gradient_and_loss(np.zeros(3), partition)
    with pytest.raises(ValueError, match=r"parameters must be float32 of shape \(3,\), got float32 of \(4,\)"):
        model.evaluate(np.zeros(4, np.float32), partition)
    with pytest.raises(ValueError, match="the partition must be float64 with 3 columns, got float32"):
        LogisticRegression(3, np.float64).partial_gradient(np.zeros(3), partition)
