"""How long an iteration waits for the exact gradient before it takes an estimate."""

from __future__ import annotations

from collections import deque
from math import inf

import numpy as np

FORMS = "SECONDS or quantile:Q[:FACTOR]"


class Deadline:
    """Seconds from the start of an iteration: fixed, or a quantile of how long workers have taken to answer.

    Learned from the last `WINDOW` answers, and none before there are `LEAST` a worker. Work that was abandoned counts
    with the time until then, the least that it can have taken.

    Parameters
    ----------
    specification : str
        ``SECONDS``, or ``quantile:Q[:FACTOR]``: the Q-quantile, 0 < Q <= 1, times FACTOR, 1 by default.
    workers : int

    Raises
    ------
    ValueError
        It is none.
    """

    WINDOW = 1000
    LEAST = 3

    def __init__(self, specification: str, workers: int = 1) -> None:
        kind, *rest = specification.split(":")
        self._quantile: float | None = None
        try:
            if kind != "quantile":
                self._factor = float(specification)
            else:
                self._quantile, self._factor = float(rest[0]), float(rest[1]) if len(rest) > 1 else 1.0
        except (ValueError, IndexError):
            raise ValueError(f"must be {FORMS}, not {specification!r}") from None
        if not 0 < self._factor < inf or len(rest) > 2:
            raise ValueError(f"must be {FORMS}, positive and finite, not {specification!r}")
        if self._quantile is not None and not 0 < self._quantile <= 1:
            raise ValueError(f"must have a quantile above 0 and at most 1, not {rest[0]}")
        self._enough = self.LEAST * workers
        self._answers: deque[float] = deque(maxlen=self.WINDOW)

    def note(self, seconds: float) -> None:
        """A worker has answered after so long."""
        if self._quantile is not None:
            self._answers.append(seconds)

    def seconds(self) -> float:
        """What it is now; infinite while it is being learned."""
        if self._quantile is None:
            return self._factor
        if len(self._answers) < self._enough:
            return inf
        return self._factor * float(np.quantile(self._answers, self._quantile))
