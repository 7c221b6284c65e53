"""A file of experiments: schemes × seeds × delays, in TOML.

::

    seeds = [1, 2, 3]
    delays = ["fixed:0.5:2", "exponential:0.02"]   # or one under [run]
    baseline = "uncoded"                           # of the report; the first scheme by default
    skip = 5                                       # first iterations of each run that count to no time

    [run]                                          # options of `train`, the same for all
    workers = 12
    iterations = 200

    [[scheme]]
    name = "uncoded"

    [[scheme]]
    name = "grouped"
    load = [4, 6]                                  # lists are choices: every combination is run
    reduction = 2
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpi_runner.config import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes
    ----------
    schemes : list of (str, dict)
        Names and options.
    options : dict
        Of every run, by the names of `train`'s options.
    seeds : list of int
    delays : list of str
    baseline : str, optional
    skip : int
    """

    schemes: list[tuple[str, dict[str, Any]]]
    options: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    delays: list[str] = field(default_factory=lambda: ["none"])
    baseline: str | None = None
    skip: int = 0

    def interleaved(self) -> Iterator[tuple[int, int, int]]:
        """Numbers of seed, delay and scheme: all under a seed in an order drawn anew, then all under the next.

        What changes on the machine in the course of hours then meets all schemes alike.
        """
        order = np.random.Generator(np.random.Philox(key=0))
        cases = list(itertools.product(range(len(self.delays)), range(len(self.schemes))))
        for seed in range(len(self.seeds)):
            for case in order.permutation(len(cases)):
                yield (seed, *cases[int(case)])


def read(path: Path) -> Experiment:
    """Read a file of experiments; UsageError, in one line, for what is not as described above."""
    name = os.fspath(path)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{name} is not TOML: {error}") from None
    options = content.pop("run", {})
    given = content.pop("scheme", None)
    if not isinstance(options, dict):
        raise UsageError(f"{name}: [run] must be a table of options")
    if not isinstance(given, list) or not given:
        raise UsageError(f"{name} needs at least one [[scheme]] with a name")
    schemes = [choice for table in given for choice in _choices(name, table)]
    seeds = content.pop("seeds", [options.pop("seed", 0)])
    delays = content.pop("delays", [options.pop("delay", "none")])
    baseline, skip = content.pop("baseline", None), content.pop("skip", 0)
    for key, value, least, kind in (("seeds", seeds, 0, int), ("delays", delays, None, str)):
        whole = isinstance(value, list) and value and all(type(v) is kind for v in value)
        if not whole or len(set(value)) < len(value) or (least is not None and min(value) < least):
            what = "distinct texts" if kind is str else "distinct integers from 0"
            raise UsageError(f"{name}: {key} must be a list of {what}, not {value!r}")
    if type(skip) is not int or skip < 0:
        raise UsageError(f"{name}: skip must be an integer from 0, not {skip!r}")
    if not isinstance(baseline, str | None):
        raise UsageError(f"{name}: baseline must be the name of a scheme, not {baseline!r}")
    twice = [key[:-1] for key in ("seeds", "delays") if key[:-1] in options]
    if twice or content:
        unknown = ", ".join([*(f"{key} beside {key}s" for key in twice), *content])
        raise UsageError(f"{name}: unknown {unknown}; known are seeds, delays, baseline, skip, [run] and [[scheme]]")
    return Experiment(schemes, {key.replace("-", "_"): v for key, v in options.items()}, seeds, delays, baseline, skip)


def _choices(name: str, table: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemes of a table: every combination of what its lists offer."""
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise UsageError(f"{name}: every [[scheme]] needs a name, not {table!r}")
    options: Mapping[str, list[Any]] = {
        key.replace("-", "_"): value if isinstance(value, list) else [value]
        for key, value in table.items()
        if key != "name"
    }
    for chosen in itertools.product(*options.values()):
        yield table["name"].replace("-", "_"), dict(zip(options, chosen, strict=True))
