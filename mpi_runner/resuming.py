"""How a run begins: in a directory of its own, or where an earlier one was left."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastgc import GradientCode
from mpi_runner import checkpoint
from mpi_runner.checkpoint import Checkpoint
from mpi_runner.config import TrainConfig, UsageError, changed, check, claim
from mpi_runner.records import read_identity, read_survivors, rewind


def resumed_config(run: str, given: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a run was left with, with what is given anew."""
    given = dict(given)
    if "run" in given and os.path.realpath(given.pop("run")) != os.path.realpath(run):
        raise UsageError("--run: a run goes on in its own directory, leave this out with --resume")
    return replace(changed(_newest(run).config, given), run=run)


def ready(config: TrainConfig, resume: bool) -> tuple[GradientCode, Checkpoint | None]:
    """Everything that can be known to be wrong before anything is launched; returns the scheme, and with `resume` the
    newest checkpoint."""
    return where_left(check(config), config, resume)


def where_left(scheme: GradientCode, config: TrainConfig, resume: bool) -> tuple[GradientCode, Checkpoint | None]:
    """What `ready` does beyond `check`, for a scheme that is made already."""
    resumed = _newest(config.run) if resume else None
    if resumed is not None:
        scheme = resumed.scheme  # its bits may not come out the same from other versions
        if resumed.iteration >= config.iterations:
            raise UsageError(
                f"--resume: {config.run} has done {resumed.iteration} iterations; ask for more by --iterations"
            )
    if config.survivors_from is not None:
        recorded = read_survivors(Path(config.survivors_from), scheme)
        absent = set(range(resumed.iteration if resumed else 0, config.iterations)) - set(recorded)
        if absent:
            raise UsageError(f"--survivors-from: {config.survivors_from} has no iteration {min(absent) + 1}")
    return scheme, resumed


def begin(config: TrainConfig, resumed: Checkpoint | None) -> None:
    """Take the run directory for a new run, or make it what it was at the checkpoint."""
    if resumed is None:
        claim(config)
    else:
        rewind(Path(config.run), resumed.iteration)


def _newest(run: str) -> Checkpoint:
    return checkpoint.newest(Path(run), read_identity(Path(run)))
