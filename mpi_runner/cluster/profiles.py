"""Instance profiles: what kinds of machines an emulated cluster has, each number with its source."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mpi_runner import delays
from mpi_runner.config import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NUMBERS = ("bandwidth", "cores", "speed", "straggling")
RATE = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)")
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
LOWEST_RATE, HIGHEST_RATE = 8e3, 1e11
"""Bits a second. Below, tc's burst is longer than a minute; above, no machine that emulates one keeps up."""


@dataclass(frozen=True)
class Profile:
    """A kind of machine.

    Attributes
    ----------
    name : str
    bandwidth : str
        Of the link, each way, as tc writes it.
    speed : float
        Relative speed of computing: delays injected into computing take 1 / speed as long.
    straggling : str
        Injected delays, see `mpi_runner.delays`.
    cores : float, optional
        Limit on the CPU time of the host's processes.
    source : dict
        Where each of these is from, or that it is assumed.
    """

    name: str
    bandwidth: str
    speed: float
    straggling: str
    cores: float | None
    source: dict[str, str]


def rate(text: object) -> float:
    """Return a rate such as ``100mbit`` in bits a second; ValueError for anything else."""
    match = RATE.fullmatch(text) if isinstance(text, str) else None
    bits = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not LOWEST_RATE <= bits <= HIGHEST_RATE:
        raise ValueError(f"a rate is a number and kbit, mbit or gbit, from 8kbit to 100gbit, not {text!r}")
    return bits


def load(own: Path | None = None) -> dict[str, Profile]:
    """Return the profiles by name: the package's, and over them those of a file of the user's.

    Raises
    ------
    UsageError
        For a file that cannot be read, and for a profile that lacks a number or its source, or has a wrong one.
    """
    known = _read("profiles.toml", files("mpi_runner.cluster").joinpath("profiles.toml").read_text("utf-8"))
    if own is not None:
        try:
            text = own.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--profiles: cannot read {own}: {getattr(error, 'strerror', None) or error}") from None
        known |= _read(str(own), text)
    return known


def choose(known: dict[str, Profile], name: str, option: str) -> Profile:
    """Return a profile by name; UsageError with the names there are."""
    if name not in known:
        raise UsageError(f"{option} must be one of {', '.join(known)}, not {name!r}")
    return known[name]


def _read(file: str, text: str) -> dict[str, Profile]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"profiles: {file} is not TOML: {error}") from None
    try:
        return {name: _profile(name, table) for name, table in content.items()}
    except ValueError as error:
        raise UsageError(f"profiles: {file}: {error}") from None


def _profile(name: str, table: Any) -> Profile:
    if not isinstance(table, dict):
        raise ValueError(f"{name} is not a table")
    sources = table.get("source", {})
    given = set(table) - {"source"}
    if unknown := sorted(given - set(NUMBERS)):
        raise ValueError(f"[{name}] has {', '.join(unknown)}; it may have {', '.join(NUMBERS)} and source")
    if absent := sorted(set(NUMBERS) - {"cores"} - given):
        raise ValueError(f"[{name}] lacks {', '.join(absent)}")
    unsourced = [field for field in sorted(given) if not (isinstance(sources, dict) and sources.get(field))]
    if unsourced:
        raise ValueError(f'[{name}.source] must say where {", ".join(unsourced)} is from, or "assumed"')
    try:
        rate(table["bandwidth"])
        straggling = str(delays.parse(str(table["straggling"])))
    except ValueError as error:
        raise ValueError(f"[{name}] {error}") from None
    for field in ("speed", "cores"):
        value = table.get(field, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"[{name}] {field} must be a positive number, not {value!r}")
    cores = table.get("cores")
    return Profile(
        name,
        table["bandwidth"],
        float(table["speed"]),
        straggling,
        None if cores is None else float(cores),
        {field: str(sources[field]) for field in given},
    )
