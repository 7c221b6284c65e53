"""Before the first iteration: do two holders of a partition find the same gradient?

A coded message is decoded as if all holders of a partition had the same gradient of it. Where they have not, because a
model draws from a generator of its own or keeps state between calls, the sum is wrong, and nothing later would show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fastgc import GradientCode
from mpi_runner.models import Model, Partition, gradient_and_loss
from mpi_runner.randomness import Sampler
from mpi_runner.transport import Poller, wait

TAG = 9


class DisagreementError(Exception):
    """Two holders of a partition find different gradients of it; the message is one line."""


def disagreement(
    comm: MPI.Intracomm,
    scheme: GradientCode,
    model: Model,
    partitions: Mapping[int, Partition],
    sampler: Sampler,
    poller: Poller,
    parts: int = 1,
) -> str | None:
    """Compare the holders of the first partition that several workers hold; on the first of them, say what is wrong.

    All but the first holder differentiate for another iteration in between, as a worker does that has skipped some:
    what a model remembers shows, even where all ranks started alike.

    Parameters
    ----------
    comm : MPI.Intracomm
        Rank i + 1 is worker i.
    partitions : mapping
        This worker's, by number.
    parts : int
        The scheme is one ``in_parts(parts)``, where each worker has so many messages.

    Returns
    -------
    str or None
        A complaint of one line.
    """
    shared = _shared(scheme, parts)
    own = comm.Get_rank() - 1
    if shared is None or own not in shared[1]:
        return None
    number, holders = shared
    parameters = model.initial()

    def gradient(iteration: int) -> NDArray[Any]:
        return gradient_and_loss(model, parameters, sampler.draw(partitions[number], number, iteration))[0]

    if own != holders[0]:
        gradient(1)
        wait(comm.Isend(np.ascontiguousarray(gradient(0)), dest=holders[0] + 1, tag=TAG), poller)
        return None
    expected = gradient(0).copy()
    found = np.empty_like(expected)
    complaint = None
    for other in holders[1:]:
        wait(comm.Irecv(found, source=other + 1, tag=TAG), poller)
        complaint = complaint or difference(expected, found, f"workers {own} and {other}", number)
    return complaint


def difference(expected: NDArray[Any], found: NDArray[Any], who: str, partition: int) -> str | None:
    """Say how two gradients differ, beyond what machines of different kinds may round differently: √ε of the largest
    element."""
    if not np.isfinite(expected).all():
        return f"partition {partition} has a gradient that is not finite at the initial parameters"
    largest = float(np.abs(expected).max())
    distance = float(np.abs(expected - found).max())
    if distance <= np.sqrt(np.finfo(expected.dtype).eps) * largest:
        return None
    return (
        f"{who} find different gradients of partition {partition} (by {distance:.1e}, elements up to {largest:.1e}): "
        "the model must take every random choice from partition.seed and keep nothing between calls"
    )


def _shared(scheme: GradientCode, parts: int) -> tuple[int, list[int]] | None:
    for partition in range(scheme.partitions):
        holders = [message // parts for message, held in enumerate(scheme.assignment) if partition in held]
        if len(holders) > 1:
            return partition, holders
    return None
