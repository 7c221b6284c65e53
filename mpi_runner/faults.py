"""Workers that are lost, and when a silent one counts as hung."""

from __future__ import annotations

from typing import NamedTuple


class Loss(NamedTuple):
    """Why a worker is no longer counted on."""

    worker: int
    kind: str
    """``died``, ``hung``, ``corrupt`` (it sent what is wrong) or ``unstopped`` (silent after the end of the run)."""
    reason: str


class CannotDecode(Exception):
    """The workers that are left do not determine the gradient; the message is one line."""


class HangDeadline:
    """How long a worker may owe a message before it counts as hung and not as slow.

    Parameters
    ----------
    seconds : float, optional
        Set by the user. Otherwise it is learned: `FACTOR` times the longest that any worker has taken to answer so
        far, and at least `LEAST`; as long as none has answered, `FIRST`.
    """

    FACTOR = 10.0
    LEAST = 10.0
    FIRST = 600.0

    def __init__(self, seconds: float | None = None) -> None:
        self._given = seconds
        self._longest: float | None = None

    def note(self, seconds: float) -> None:
        """A worker has answered after so long."""
        self._longest = max(seconds, self._longest or 0.0)

    @property
    def seconds(self) -> float:
        """What it is now."""
        if self._given is not None:
            return self._given
        if self._longest is None:
            return self.FIRST
        return max(self.FACTOR * self._longest, self.LEAST)
