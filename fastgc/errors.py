"""Exceptions of fastgc."""

from __future__ import annotations

from collections.abc import Iterable


class NotDecodableError(ValueError):
    """The workers heard from do not determine the gradient.

    Parameters
    ----------
    message : str
    survivors : iterable of int
        Workers (for a linear code: positions) whose messages there are.
    missing : iterable of int
        Workers whose messages are missing.

    Attributes
    ----------
    survivors, missing : tuple of int
    """

    survivors: tuple[int, ...]
    missing: tuple[int, ...]

    def __init__(self, message: str, survivors: Iterable[int] = (), missing: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.survivors = tuple(survivors)
        self.missing = tuple(missing)

    def __reduce__(self) -> tuple[type[NotDecodableError], tuple[str, tuple[int, ...], tuple[int, ...]]]:
        return type(self), (str(self), self.survivors, self.missing)


class CorruptMessageError(ValueError):
    """Some messages contradict each other, and which of them are wrong cannot be told.

    Parameters
    ----------
    message : str
    survivors : iterable of int
        Workers whose messages there are.
    suspects : iterable of int
        Workers among which the wrong messages are.

    Attributes
    ----------
    survivors, suspects : tuple of int
    """

    survivors: tuple[int, ...]
    suspects: tuple[int, ...]

    def __init__(self, message: str, survivors: Iterable[int] = (), suspects: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.survivors = tuple(survivors)
        self.suspects = tuple(suspects)

    def __reduce__(self) -> tuple[type[CorruptMessageError], tuple[str, tuple[int, ...], tuple[int, ...]]]:
        return type(self), (str(self), self.survivors, self.suspects)
