"""Softmax regression against plain formulas, finite differences, and logistic regression."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.special import log_softmax, softmax

from mpi_runner.models import LogisticRegression, Partition
from mpi_runner.softmax import SoftmaxRegression

DTYPES = [np.float32, np.float64]
SEED = 12


def made(rows: int, features: int, classes: int, dtype: Any, dense: bool) -> Partition:
    rng = np.random.default_rng(SEED + rows)
    inputs = ((rng.random((rows, features)) < 0.4) * rng.random((rows, features))).astype(dtype)
    return Partition(inputs if dense else sparse.csr_array(inputs), rng.integers(0, classes, rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
@pytest.mark.parametrize(("rows", "features", "classes"), [(1, 1, 2), (7, 5, 3), (400, 30, 10)])
def test_gradient_and_loss_are_sums(rows: int, features: int, classes: int, dense: bool, dtype: Any) -> None:
    partition = made(rows, features, classes, dtype, dense)
    model = SoftmaxRegression(features, classes, dtype)
    w = np.random.default_rng(SEED).standard_normal(features * classes).astype(dtype)
    gradient, loss = model.gradient_and_loss(w, partition)
    x = partition.inputs if dense else partition.inputs.toarray()
    x = x.astype(float)
    scores = x @ w.astype(float).reshape(features, classes)
    targets = np.eye(classes)[partition.labels]
    # A score is a sum of `features` products, and an element of the gradient one of `rows`.
    unit = float(np.finfo(dtype).eps)
    slack = unit * features * (x @ np.abs(w.astype(float)).reshape(features, classes))
    assert abs(loss + (targets * log_softmax(scores, axis=1)).sum()) <= 2 * slack.sum() + rows * 1e-14
    expected = x.T @ (softmax(scores, axis=1) - targets)
    bound = x.T @ (2 * slack) + 2 * (rows + 4) * unit * x.sum(axis=0)[:, None] + 1e-14
    assert (np.abs(gradient.reshape(features, classes) - expected) <= bound).all()
    assert gradient.dtype == dtype
    assert gradient.flags.c_contiguous
    np.testing.assert_array_equal(model.partial_gradient(w, partition), gradient)


def test_gradient_is_the_derivative_of_the_loss() -> None:
    partition = made(60, 4, 3, np.float64, False)
    model = SoftmaxRegression(4, 3, np.float64)
    w = np.random.default_rng(SEED).standard_normal(12)
    gradient = model.partial_gradient(w, partition)
    for direction, expected in zip(np.eye(12), gradient, strict=True):
        up, down = (model.gradient_and_loss(w + h * direction, partition)[1] for h in (1e-5, -1e-5))
        assert expected == pytest.approx((up - down) / 2e-5, abs=1e-7)


def test_two_classes_are_logistic_regression() -> None:
    """The difference of the two classes' scores is the logistic score."""
    partition = made(90, 6, 2, np.float64, False)
    logistic = Partition(partition.inputs, 2.0 * partition.labels - 1.0)
    w = np.random.default_rng(SEED).standard_normal((6, 2))
    gradient, loss = SoftmaxRegression(6, 2, np.float64).gradient_and_loss(w.reshape(-1), partition)
    expected, same = LogisticRegression(6, np.float64).gradient_and_loss(w[:, 1] - w[:, 0], logistic)
    np.testing.assert_allclose(gradient.reshape(6, 2), np.stack([-expected, expected], axis=1), atol=1e-12)
    assert loss == pytest.approx(same)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scores_neither_overflow_nor_warn(dtype: Any) -> None:
    partition = Partition(np.eye(2, dtype=dtype), np.array([0, 1]))
    w = np.array([[1e30, -1e30, 0], [1e30, -1e30, 0]], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient, loss = SoftmaxRegression(2, 3, dtype).gradient_and_loss(w.reshape(-1), partition)
    np.testing.assert_array_equal(gradient.reshape(2, 3), [[0, 0, 0], [1, -1, 0]])
    assert loss == pytest.approx(2e30)


def test_evaluate() -> None:
    partition = made(300, 8, 4, np.float64, False)
    model = SoftmaxRegression(8, 4, np.float64)
    w = np.random.default_rng(SEED).standard_normal(32)
    figures = model.evaluate(w, partition)
    assert list(figures) == ["accuracy", "loss"]
    scores = partition.inputs.toarray() @ w.reshape(8, 4)
    assert figures["accuracy"] == np.mean(scores.argmax(axis=1) == partition.labels)
    assert figures["loss"] == pytest.approx(model.gradient_and_loss(w, partition)[1] / partition.count)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        SoftmaxRegression(3, 1)
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        SoftmaxRegression(0, 2)
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got int32"):
        SoftmaxRegression(3, 2, np.int32)
    model = SoftmaxRegression(3, 2)
    good = Partition(np.zeros((2, 3), np.float32), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"parameters must be float32 of shape \(6,\), got float32 of \(3,\)"):
        model.partial_gradient(np.zeros(3, np.float32), good)
    with pytest.raises(ValueError, match="the partition must be float32 with 3 columns, got float64"):
        model.evaluate(model.initial(), Partition(np.zeros((2, 3)), good.labels))
    for labels in ([0, 2], [-1, 0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="labels must be integers from 0 to 1"):
            model.partial_gradient(model.initial(), Partition(good.inputs, np.array(labels)))
