"""The messages of an iteration on the master: when they are enough, and the gradient that they give.

Without more ado the gradient is taken as soon as it is determined. With a deadline it is estimated from whoever has
answered by then, and with `verify` somebody more is waited for in every group, so that a wrong message shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import CorruptMessageError, GradientCode, Noise, Verified
from mpi_runner import wire
from mpi_runner.deadlines import Deadline

Array = npt.NDArray[Any]

SAMPLE = 4096
"""Elements of a message that its size is taken from."""


class Taken(NamedTuple):
    """What an iteration's messages have given."""

    gradient: Array
    survivors: tuple[int, ...]
    """Whose messages were used."""
    loss: float
    """The sum of the losses; NaN where it is not known."""
    examples: float
    """How many the gradient is the sum over."""
    error: float
    """`GradientCode.approximation_error` of these survivors; 0 for an exact gradient."""
    corrupt: tuple[int, ...]
    """Whose messages were found to be wrong."""


class Gathering:
    """Collects messages.

    Parameters
    ----------
    scheme : GradientCode
        Where workers send after parts of their work, the scheme `in_parts`: its "workers" are then messages.
    length : int
        Of the gradient.
    dtype : dtype
        Of the gradient and, when they are added, of messages.
    rounding : float
        At most how far elements of coded gradients were moved on their way, relative to the largest of their message.
    deadline : Deadline, optional
    verify : bool
    """

    def __init__(
        self,
        scheme: GradientCode,
        length: int,
        dtype: np.dtype[Any],
        rounding: float = 0.0,
        deadline: Deadline | None = None,
        verify: bool = False,
    ) -> None:
        schemes = [scheme.with_reduction(m) for m in scheme.reductions]
        self._collectors = {it.reduction: (it, it.collector(length, dtype)) for it in schemes}
        self._own_reduction = scheme.reduction
        self._gradient = np.empty(length, dtype)
        self._rounding = rounding
        self._deadline = deadline
        self._verify = verify
        self._sizes: dict[int, float] = {}
        self._magnitude = 0.0  # of the messages of earlier iterations
        self._count: float | None = None
        self.contradiction: CorruptMessageError | None = None
        """Between the messages that are there, where there is one."""
        self.begin(None)

    def begin(self, prescribed: frozenset[int] | None, reduction: int | None = None) -> None:
        """Begin an iteration, with the only workers whose messages are to be used, where that is prescribed, and under
        the scheme's own reduction or another one."""
        self._scheme, self._gradients = self._collectors[reduction or self._own_reduction]
        self._gradients.reset()
        self._statistics: dict[int, Array] = {}
        self._sizes.clear()
        self._prescribed = prescribed
        self._doubted = -1  # of so many messages it is known that they contradict each other
        self.contradiction = None
        self._end = time.perf_counter() + (inf if self._deadline is None else self._deadline.seconds())

    @property
    def seconds_left(self) -> float:
        """Until the deadline; without one, or once it has passed, no time is special any more."""
        left = self._end - time.perf_counter()
        return left if left > 0 else inf

    def note(self, seconds: float) -> None:
        """A worker has answered after so long."""
        if self._deadline is not None:
            self._deadline.note(seconds)

    def add(self, worker: int, gradient: Array, statistics: Array) -> None:
        """Take a worker's message."""
        self._gradients.add(worker, gradient)
        self._statistics[worker] = statistics
        if self._verify:
            self._sizes[worker] = float(np.abs(gradient[:SAMPLE]).max())

    @property
    def survivors(self) -> tuple[int, ...]:
        """The workers heard."""
        return self._gradients.survivors

    def suffices(self, workers: Collection[int]) -> bool:
        """Whether an iteration can be completed with these workers, if they all answer."""
        if self._prescribed is not None:
            known = self._may_estimate or self._scheme.is_decodable(self._prescribed)
            return known and self._prescribed <= set(workers)
        if not workers or len(self.survivors) == self._doubted == len(set(workers)):
            return False
        if self._deadline is not None and self._may_estimate:
            return True
        if not self._scheme.exact and len(workers) < self._scheme.workers - self._scheme.stragglers:
            return False
        return self._scheme.is_decodable(sorted(workers))

    def ready(self, left: Callable[[], Collection[int]]) -> bool:
        """Whether the gradient can be taken.

        Parameters
        ----------
        left : callable
            The workers that have answered or may still do so.
        """
        heard = len(self._gradients.survivors)
        if self._prescribed is not None:
            return heard >= len(self._prescribed)
        if heard == self._doubted:
            return False
        if self._gradients.ready and (not self._verify or self._has_spares(left())):
            return True
        return heard > 0 and self._may_estimate and time.perf_counter() > self._end

    @property
    def _may_estimate(self) -> bool:
        # An estimated number of examples is of no use. It is the same in every iteration, and an exact one tells it.
        return not self._scheme.exact or self._count is not None

    @property
    def obstacle(self) -> str | None:
        """What stands against taking a gradient, other than that workers are missing."""
        if self.contradiction is not None:
            return str(self.contradiction)
        if self._prescribed is not None and not self._may_estimate:
            return f"workers {sorted(self._prescribed)} give an estimate, and the number of examples is not known yet"
        return None

    def _has_spares(self, left: Collection[int]) -> bool:
        """Whether every group that can have a worker to spare has one."""
        have = self._scheme.verifiable(self.survivors).groups
        can = self._scheme.verifiable(left).groups
        return all(had[0] >= min(1, could[0]) for had, could in zip(have, can, strict=True))

    def take(self) -> Taken | None:
        """The gradient; None where messages contradict each other and more are needed to tell which are wrong."""
        exact = self._scheme.exact and self._scheme.is_decodable(self.survivors)
        verify: bool | Noise = Noise(magnitude=self._magnitude, rounding=self._rounding) if self._verify else False
        out = None if self._verify else self._gradient  # a verified gradient would be copied there
        try:
            result = self._gradients.gradient(out, approximate=self._scheme.exact and not exact, verify=verify)
        except CorruptMessageError as contradiction:
            self._doubted, self.contradiction = len(self.survivors), contradiction
            return None
        corrupt: tuple[int, ...] = ()
        if isinstance(result, Verified):
            result, _, corrupt = result
            self._magnitude = max([self._magnitude, *(self._sizes[worker] for worker in self.survivors)])
        for worker in corrupt:
            del self._statistics[worker]
        loss, count = nan, self._count
        if exact or not self._scheme.exact:
            loss, count = (float(value) for value in self._scheme.decode(self._statistics, wire.STATISTICS))
            self._count = count
        assert count is not None  # or there would be no estimate
        error = 0.0 if exact else self._scheme.approximation_error(self.survivors, self._scheme.exact)
        return Taken(result, self.survivors, loss, count, error, corrupt)
