"""How a run begins: in a directory of its own, or where an earlier one was left."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from fastgc import GradientCode
from mpi_runner import checkpoint
from mpi_runner.checkpoint import Checkpoint
from mpi_runner.config import CONFIG, TrainConfig, UsageError, changed, check, claim, measures_speeds
from mpi_runner.records import SUMMARY, read_identity, read_survivors, rewind


def resumed_config(run: str, given: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a run was left with, with what is given anew."""
    given = dict(given)
    if "run" in given and os.path.realpath(given.pop("run")) != os.path.realpath(run):
        raise UsageError("--run: a run goes on in its own directory, leave this out with --resume")
    return replace(changed(_newest(run).config, given), run=run)


class Standing(Enum):
    """How far a run has come that may have been cut off anywhere."""

    NEW = "new"
    """It begins, over what an attempt without a checkpoint may have left."""
    BEGUN = "begun"
    COMPLETE = "complete"


def standing(config: TrainConfig) -> Standing:
    """How far the run of a configuration has come in its directory.

    Raises
    ------
    UsageError
        The directory holds another run: one that differs in what may not change while a run goes on, which the message
        names. Or it has checkpoints, and none can be used.
    """
    folder = Path(config.run)
    if not (folder / CONFIG).exists():
        return Standing.NEW
    checkpoints = checkpoint.written(folder)
    if not checkpoints:
        _same(_told(folder), config)
        return Standing.NEW
    newest = _newest(config.run)
    _same(newest.config, config)
    if newest.iteration >= config.iterations:
        if (folder / SUMMARY).exists():
            return Standing.COMPLETE
        return Standing.BEGUN if len(checkpoints) > 1 else Standing.NEW  # of its end there is no account
    return Standing.BEGUN


def clear(config: TrainConfig, standing: Standing) -> None:
    """Remove what stands in the way of beginning anew, or of going on: the last checkpoint of a run that was cut off
    between this and its summary, since the figures at the end are taken from steps that were made."""
    folder = Path(config.run)
    if standing is Standing.NEW:
        rewind(folder, 0)
    for path in checkpoint.written(folder):
        if standing is Standing.NEW or checkpoint.iteration_of(path) >= config.iterations:
            path.unlink()
    if standing is Standing.NEW:
        (folder / CONFIG).unlink(missing_ok=True)


def _told(folder: Path) -> TrainConfig:
    try:
        return TrainConfig(**json.loads((folder / CONFIG).read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"--run: {os.fspath(folder)} holds a run of another version") from None


def _same(saved: TrainConfig, config: TrainConfig) -> None:
    given = {**dict.fromkeys(saved.options), **config.as_dict(), **config.options}
    for name in ("run", "options"):
        del given[name]
    changed(saved, given)


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
    if config.survivors_from is not None and resumed is None and measures_speeds(config):
        raise UsageError("--survivors-from needs the speeds that were measured there, and not --speeds measured")
    if config.survivors_from is not None:
        recorded = read_survivors(Path(config.survivors_from), scheme, config.parts)
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
