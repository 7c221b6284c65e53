"""How curved a loss of linear scores can be: what the usual step of a convex model is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["largest_eigenvalue"]


def largest_eigenvalue(matrix: Any, tolerance: float = 1e-9, limit: int = 1000) -> float:
    """Return λ_max(XᵀX) of a float64 matrix without negative entries, dense or sparse, by power iteration.

    The leading vector then has no negative entries either: the ones it starts from cannot be orthogonal to it.
    """
    value = 0.0
    for estimate in _power(matrix, np.ones(matrix.shape[1]), limit):
        if abs(estimate - value) <= tolerance * estimate:
            return estimate
        value = estimate
    return value


def _power(matrix: Any, vector: NDArray[np.float64], limit: int) -> Iterator[float]:
    for _ in range(limit):
        vector /= np.linalg.norm(vector)
        image = matrix @ vector
        yield float(image @ image)  # the Rayleigh quotient
        vector = matrix.T @ image
