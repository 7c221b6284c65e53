"""How far rounding can move a decoded sum: the one rule behind `GradientCode.error_bound`.

With S the sum of the gradients' largest elements, the error of any element of the decoded sum is at most
``bound * S``. Every path of an element from a gradient g_j through block v, the message of worker i and output block u
is ``A[u, i] E[i, j, v] g_j`` times factors ``1 + delta``, so the error is at most the sum of ``|A| |E| |g_j|``, which
is at most c(F) S, times how far the product of the factors can be from 1, plus what the float64 weights miss of
A E = I:

- a message: a chain of ``load * reduction`` fused steps on coefficients rounded once (the separate products and sums of
  the portable code leave that number as well: a term meets its product and at most one sum fewer);
- a group: a chain over its survivors on weights rounded once;
- the groups' results: a binary tree;
- a message in a half type is rounded once more, with that type's unit; so is a result in one, and that is relative to
  the sum itself.

``|product of R factors - 1| <= gamma = R u / (1 - R u)`` (Higham, *Accuracy and Stability of Numerical Algorithms*,
lemma 3.1). If the deltas are independent with mean zero instead, sums of them grow with the root of their number:
Hoeffding's inequality bounds ``sum of p_t delta_t`` by ``lambda u (sum of p_t^2)^(1/2)`` but for a chance of
``2 exp(-lambda^2 / 2)`` (Higham and Mary 2019, *A New Approach to Probabilistic Rounding Error Analysis*; first
order). The p_t are the partial sums that are rounded, at most linear forms in the sizes of the gradients. A sum of
their squares is convex, so for a given S it is largest where one gradient has all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import _checks

Array = npt.NDArray[Any]

CONFIDENCE = 6.0
"""The lambda of the probabilistic bound: an element exceeds it with a chance of 3e-8."""


@dataclass(frozen=True)
class Paths:
    """What the bound depends on, for one scheme and one survivor set.

    Attributes
    ----------
    weights : ndarray, shape (reduction, survivors)
        A.
    coefficients : ndarray, shape (survivors, partitions, reduction)
        E of the survivors, zero for partitions that a worker does not hold.
    encoding : int
        Steps of the longest message.
    chains : tuple of ndarray
        For every group, the rows of its survivors.
    """

    weights: Array
    coefficients: Array
    encoding: int
    chains: tuple[npt.NDArray[np.intp], ...]

    def amplification(self) -> float:
        """c(F): the largest over u and j of the sum over i of ``|A[u, i]| sum over v of |E[i, j, v]|``."""
        return float((np.abs(self.weights) @ np.abs(self.coefficients).sum(axis=2)).max())

    def residual(self) -> float:
        """At most how far A E is from I: the largest over u and j of the sum over v."""
        reduction, survivors = self.weights.shape
        wide = self.coefficients.reshape(survivors, -1).astype(np.longdouble)
        product = (self.weights.astype(np.longdouble) @ wide).reshape(reduction, -1, reduction)
        missed = np.abs(product - np.eye(reduction)[:, None]).sum(axis=2).max()
        # The product above has roundings of its own, where long double is no wider than double they count.
        return float(missed) + _gamma(survivors + reduction, float(np.finfo(np.longdouble).eps) / 2) * (
            self.amplification() + 1
        )


def unit(dtype: np.dtype[Any]) -> float:
    """The unit roundoff of an element type: 2^-53, 2^-24, 2^-11 (float16), 2^-8 (bfloat16)."""
    return 2.0**-8 if _checks.is_bfloat16(dtype) else float(np.finfo(dtype).eps) / 2


def _gamma(roundings: int, u: float) -> float:
    return roundings * u / (1 - roundings * u)


def bound(paths: Paths, message: np.dtype[Any], result: np.dtype[Any], *, probabilistic: bool) -> float:
    """The factor of S; see the module.

    Parameters
    ----------
    paths : Paths
    message, result : dtype
        Element types of the messages and of the decoded sum.
    probabilistic : bool
    """
    computing = _checks.compute_type(message)
    u = unit(computing)
    of_message = unit(message) if message != computing else 0.0
    of_result = unit(result) if result != computing else 0.0
    tree = ceil(log2(len(paths.chains)))
    if probabilistic:
        # Of worker i's message in block u, where gradient j is all there is; and what a group's chain has come to.
        parts = np.abs(paths.weights)[:, :, None] * np.abs(paths.coefficients).sum(axis=2)
        of_messages = (parts**2).sum(axis=1)
        of_chains = sum((parts[:, rows].cumsum(axis=1) ** 2).sum(axis=1) for rows in paths.chains)
        squares = u**2 * ((paths.encoding + 2) * of_messages + of_chains + tree * parts.sum(axis=1) ** 2)
        arithmetic = CONFIDENCE * sqrt(float((squares + of_message**2 * of_messages).max()))
    else:
        roundings = paths.encoding + 1 + max(map(len, paths.chains)) + 1 + tree
        computed = _gamma(roundings, u)
        arithmetic = (computed + of_message + computed * of_message) * paths.amplification()
    before = arithmetic + paths.residual()
    return (before * (1 + of_result) + of_result) * (1 + 1e-12)  # the last for the roundings of this very function
