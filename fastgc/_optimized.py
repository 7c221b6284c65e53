"""Where `fastgc.codes.optimized` has its generators from: closed forms, the table, or a search whose result is cached.

The table, ``optimized_codes.npz``, holds the codes of up to 16 rows that ``python -m bench.optimize_codes`` found. It
is data: its generators have the same bits on every machine.
"""

from __future__ import annotations

import contextlib
import os
from functools import cache
from math import comb, pi
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LONGEST_IN_TABLE = 16
LONGEST_SEARCHED = 32
"""Longer codes are harmonic, without a search: at n = 20 one takes 10 s already."""
DRAWS, KEPT = 40, 12
"""The budget of a search, in symmetric starts drawn and followed."""
CERTIFIED_EXHAUSTIVELY = 200_000  # sets: seconds
SAMPLED = 5000


class Certificate(NamedTuple):
    """What is known of a code's worst set of k rows.

    Attributes
    ----------
    worst_condition_number : float
        The largest that was found.
    sets : int
        So many sets were looked at.
    exhaustive : bool
        Whether these were all.
    """

    worst_condition_number: float
    sets: int
    exhaustive: bool


def closed_form(n: int, k: int) -> Array | None:
    """The generator where one is known in closed form, of mean square row length 1.

    - k = 1: equal weights, condition number 1. k = n: the identity, condition number 1.
    - k = 2: lines at angles pi i / n, condition number cot(pi / 2n), the least there is.
    - k = n - 1: the orthogonal complement of equal weights. Without row i the smallest singular value of an orthonormal
      generator is the i-th element of the unit vector orthogonal to it, and one of these is at most 1 / sqrt(n): the
      condition number sqrt(n) is the least of orthonormal generators. No other was found to have less.
    """
    if k == n:
        return np.eye(n)
    if k == 1:
        return np.ones((n, 1))
    if k == 2:
        angles = pi * np.arange(n) / n
        return np.column_stack([np.cos(angles), np.sin(angles)])
    if k == n - 1:
        # Cosines of the discrete cosine transform, but the constant one.
        waves = np.cos(pi * np.outer(np.arange(n) + 0.5, np.arange(1, n)) / n)
        return np.asarray(waves * np.sqrt(2.0 / k))
    return None


def entries() -> list[tuple[int, int]]:
    """The sizes in the table, in its order."""
    return [(n, k) for n in range(5, LONGEST_IN_TABLE + 1) for k in range(3, n - 1)]


@cache
def _table() -> dict[tuple[int, int], Array]:
    with np.load(Path(__file__).with_name("optimized_codes.npz"), allow_pickle=False) as stored:
        values = stored["generators"]
    found = {}
    start = 0
    for n, k in entries():
        found[n, k] = values[start : start + n * k].reshape(n, k)
        start += n * k
    return found


def generator(n: int, k: int) -> tuple[Array, Certificate | None]:
    """A generator, and what is known of it; None where a look at all sets takes no time and has not been taken."""
    known = closed_form(n, k)
    if known is None and n <= LONGEST_IN_TABLE:
        known = _table()[n, k]
    if known is not None:
        return known, None
    stored = _cached(n, k)
    if stored is None:
        from fastgc import _optimizing

        candidates = [_optimizing.harmonic(n, k)]
        if n <= LONGEST_SEARCHED:
            candidates += [*_optimizing.from_conferences(n, k), _optimizing.search_sampled(n, k, DRAWS, KEPT)]
        # A search sees an active set: what it found is believed by its certificate, like the others.
        certified = [(found, _certified(found)) for found in candidates]
        stored = min(certified, key=lambda pair: pair[1].worst_condition_number)
        _keep(n, k, *stored)
    return stored


def _certified(found: Array) -> Certificate:
    from fastgc import _optimizing

    n, k = found.shape
    if comb(n, k) <= CERTIFIED_EXHAUSTIVELY:
        patterns = _optimizing.no_symmetry(n, k).representatives()
    else:
        patterns = _optimizing.sample(n, k, SAMPLED if n <= LONGEST_SEARCHED else n, np.random.default_rng([n, k, 1]))
        if n <= LONGEST_SEARCHED:
            patterns = np.unique(np.vstack([patterns, _optimizing.climbed(found, patterns)]), axis=0)
    parts = np.array_split(patterns, len(patterns) // 8192 + 1)
    worst = max(_optimizing.log_conditions(found, some).max() for some in parts)
    return Certificate(float(np.exp(worst)), len(patterns), len(patterns) == comb(n, k))


# The cache on disk: files that are whole or absent, and that are looked at before they are believed -------------------


def cache_folder() -> Path:
    """``$FASTGC_CACHE``, else ``$XDG_CACHE_HOME/fastgc``, else ``~/.cache/fastgc``."""
    if chosen := os.environ.get("FASTGC_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "fastgc"


def _file(n: int, k: int) -> Path:
    return cache_folder() / f"code-{n}-{k}-{DRAWS}-{KEPT}.npz"


def _cached(n: int, k: int) -> tuple[Array, Certificate] | None:
    import zipfile  # with tempfile, a tenth of the time that importing fastgc takes

    try:
        with np.load(_file(n, k), allow_pickle=False) as stored:
            found = np.array(stored["generator"], dtype=np.float64)
            worst, sets, exhaustive = stored["certificate"].tolist()
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None
    if found.shape != (n, k) or not np.isfinite(found).all():
        return None
    return found, Certificate(float(worst), int(sets), bool(exhaustive))


def _keep(n: int, k: int, found: Array, certificate: Certificate) -> None:
    """Write both, if the folder can be written: a code that is not kept is searched for again."""
    import tempfile

    with contextlib.suppress(OSError, RuntimeError):
        path = _file(n, k)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, generator=found, certificate=np.array(certificate, dtype=np.float64))
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
