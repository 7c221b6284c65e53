"""Coded training with compressed messages in one process: the bits of a run with the same survivors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import GradientCode
from fastgc.compression import ErrorFeedback, codec
from mpi_runner import wire
from mpi_runner.models import Model, Partition, gradient_and_loss
from mpi_runner.optimizers import Optimizer, mean_gradient
from mpi_runner.randomness import Sampler

Array = npt.NDArray[Any]


class Channel:
    """From the partitions' gradients to the decoded one: encoding, compression, decoding.

    Parameters
    ----------
    scheme : GradientCode
    length : int
        Of the gradient.
    dtype : dtype-like
        Computed with, float32 or float64.
    message : str
        A codec of `fastgc.compression`.
    feedback : bool
    """

    def __init__(
        self, scheme: GradientCode, length: int, dtype: npt.DTypeLike, message: str, feedback: bool = False
    ) -> None:
        self._scheme, self._length, self._codec = scheme, length, codec(message)
        self._size, self._dtype = scheme.message_length(length), np.dtype(dtype)
        self._feedback = [ErrorFeedback(self._codec, self._size, dtype) for _ in range(scheme.workers * feedback)]

    def decoded(self, gradients: Sequence[Array] | Array, survivors: Sequence[int]) -> Array:
        """The sum of the gradients of all partitions, from the messages of these workers; the others' are not used."""
        received = {}
        for worker in survivors:
            message = self._scheme.encode(worker, [gradients[j] for j in self._scheme.assignment[worker]])
            compressor = self._feedback[worker] if self._feedback else self._codec
            data = compressor.compress(message)
            received[worker] = self._codec.decompress(data, self._size, np.empty(self._size, self._dtype))
        total = self._scheme.decode(received, self._length)
        for worker in survivors if self._feedback else ():
            self._feedback[worker].settle(True)
        return total


def train(
    model: Model,
    partitions: Sequence[Partition],
    scheme: GradientCode,
    optimizer: Optimizer,
    l2: float,
    survivors: Sequence[Sequence[int]],
    message: str,
    feedback: bool = False,
    sampler: Sampler | None = None,
    forget: Callable[[int], bool] = lambda iteration: False,
) -> Array:
    """Train with the messages of given workers.

    Parameters
    ----------
    model, partitions, scheme, optimizer, l2, sampler
        As for a run; by default all examples in every iteration.
    survivors : sequence of sequences of int
        Of each iteration.
    message, feedback
        As for `Channel`.
    forget : callable
        Whether, before an iteration, counted from 0, workers begin anew and owe nothing.

    Returns
    -------
    ndarray
        The model.
    """
    sampler = Sampler(0, scheme.partitions) if sampler is None else sampler
    length, dtype = len(optimizer.parameters), optimizer.parameters.dtype
    channel = Channel(scheme, length, dtype, message, feedback)
    for iteration, heard in enumerate(survivors):
        if forget(iteration):
            channel = Channel(scheme, length, dtype, message, feedback)
        drawn = [sampler.draw(whole, number, iteration) for number, whole in enumerate(partitions)]
        gradients, statistics = [], []
        for part in drawn:
            gradient, loss = gradient_and_loss(model, optimizer.parameters, part)
            gradients.append(gradient.copy())
            statistics.append(np.array([loss, part.count]))
        coded = {w: scheme.encode(w, [statistics[j] for j in scheme.assignment[w]]) for w in heard}
        total = channel.decoded(gradients, heard)
        count = float(scheme.decode(coded, wire.STATISTICS)[1])
        optimizer.update(mean_gradient(total, count, l2, optimizer.parameters))
    return optimizer.model.copy()
