"""Softmax regression: linear scores of the classes, over sparse or dense inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpi_runner.models import Partition, Vector

__all__ = ["SoftmaxRegression"]


class SoftmaxRegression:
    """Multinomial logistic regression without intercept: the loss of an example is log Σₖ exp⟨x, wₖ⟩ − ⟨x, w_y⟩.

    Parameters
    ----------
    features : int
        Columns of the inputs.
    classes : int
        At least 2; labels are 0 … classes − 1.
    dtype : dtype-like
        float32 or float64: of parameters, gradients and inputs alike.

    Notes
    -----
    The parameters are the rows of the (features, classes) matrix of the wₖ, one after the other. Products are computed
    in `dtype`; probabilities and losses of the single examples in float64. With L2 the optimum is unique; the gradient
    of the mean loss has the Lipschitz constant λ_max(XᵀX) / (2N) (Böhning 1992).
    """

    def __init__(self, features: int, classes: int, dtype: DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype}")
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        self.features = features
        self.classes = classes

    def initial(self) -> Vector:
        """Return zeros."""
        return np.zeros(self.features * self.classes, self.dtype)

    def partial_gradient(self, parameters: Vector, partition: Partition) -> Vector:
        """Return the sum of the gradients over the partition, (features · classes,)."""
        return self.gradient_and_loss(parameters, partition)[0]

    def gradient_and_loss(self, parameters: Vector, partition: Partition) -> tuple[Vector, float]:
        """Return the sum of the gradients and the sum of the losses over the partition.

        Parameters
        ----------
        parameters : ndarray
            (features · classes,), of the model's dtype; not modified.
        partition : Partition
            Inputs (count, features) of the model's dtype, dense or CSR; labels (count,), integers.
        """
        scores = self._scores(parameters, partition)
        chosen = np.arange(partition.count), partition.labels
        residuals, losses = _softmax(scores, chosen)
        residuals[chosen] -= 1.0
        gradient = partition.inputs.T @ residuals.astype(self.dtype, copy=False)
        return np.ascontiguousarray(gradient).reshape(-1), float(losses.sum())

    def evaluate(self, parameters: Vector, partition: Partition) -> dict[str, float]:
        """Return ``accuracy`` and mean ``loss`` (without L2) over the partition."""
        scores = self._scores(parameters, partition)
        losses = _softmax(scores, (np.arange(partition.count), partition.labels))[1]
        return {
            "accuracy": float(np.mean(scores.argmax(axis=1) == partition.labels)),
            "loss": float(losses.mean()),
        }

    def _scores(self, parameters: Vector, partition: Partition) -> Vector:
        expected = self.features * self.classes
        if parameters.shape != (expected,) or parameters.dtype != self.dtype:
            raise ValueError(
                f"parameters must be {self.dtype} of shape ({expected},), got {parameters.dtype} of {parameters.shape}"
            )
        if partition.inputs.shape[1] != self.features or partition.inputs.dtype != self.dtype:
            raise ValueError(
                f"the partition must be {self.dtype} with {self.features} columns, got {partition.inputs.dtype} "
                f"with {partition.inputs.shape[1]}"
            )
        labels = partition.labels
        if labels.dtype.kind not in "iu" or (labels.size and not 0 <= labels.min() <= labels.max() < self.classes):
            raise ValueError(f"labels must be integers from 0 to {self.classes - 1}")
        scores: Vector = partition.inputs @ parameters.reshape(self.features, self.classes)
        return scores


def _softmax(scores: Vector, chosen: tuple[NDArray[Any], NDArray[Any]]) -> tuple[NDArray[np.float64], Vector]:
    """Return the probabilities of all classes and the loss of each example, without overflow."""
    shifted = scores.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    picked = shifted[chosen]
    np.exp(shifted, out=shifted)
    totals = shifted.sum(axis=1)
    shifted /= totals[:, None]
    return shifted, np.log(totals) - picked
