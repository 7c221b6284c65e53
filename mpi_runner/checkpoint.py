"""Checkpoints: all that a run needs to go on, in one ``npz`` file without pickles, written in one step.

A checkpoint has the optimiser's state (the model is part of it), the iteration, the scheme and the configuration. It is
written aside, forced to the disk and renamed, so that a file with its final name is whole; the newest two are kept. A
file that is damaged all the same, or is another run's, is refused with its reason, and the one before it is used.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastgc import GradientCode, schemes
from mpi_runner.config import TrainConfig, UsageError

FOLDER = "checkpoints"
KEPT = 2
FORMAT = 1

State = dict[str, npt.NDArray[Any]]

_FACTS, _SCHEME, _STATE, _POLICY = "facts", "scheme", "state.", "policy."
_PATTERN = "iteration-*.npz"


class Checkpoint(NamedTuple):
    """What a run goes on from."""

    run: str
    """The identity of the run."""
    iteration: int
    """Steps taken."""
    elapsed: float
    """Seconds that they took, since the first model was sent."""
    config: TrainConfig
    scheme: GradientCode
    state: State
    """Of the optimiser."""
    policy: State = {}  # noqa: RUF012  # never written to
    """Of the choice of the reduction, where there is one."""


class CheckpointError(Exception):
    """A file cannot be used; the message is its reason."""


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint of a run directory, and remove all but the newest `KEPT`."""
    scheme = io.BytesIO()
    checkpoint.scheme.save(scheme)
    facts = {
        "format": FORMAT,
        "run": checkpoint.run,
        "iteration": checkpoint.iteration,
        "elapsed": checkpoint.elapsed,
        "config": checkpoint.config.as_dict(),
    }
    arrays = {
        _FACTS: _bytes(json.dumps(facts).encode()),
        _SCHEME: _bytes(scheme.getvalue()),
        **{_STATE + name: array for name, array in checkpoint.state.items()},
        **{_POLICY + name: array for name, array in checkpoint.policy.items()},
    }
    target = folder / FOLDER / f"iteration-{checkpoint.iteration:09}.npz"
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # none of them holds objects: nothing is pickled
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    _sync_folder(target.parent)
    for old in written(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return target


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        A file that is damaged (the format has a checksum for each array), or no checkpoint, or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        facts = json.loads(arrays[_FACTS].tobytes())
        if facts["format"] != FORMAT:
            raise CheckpointError(f"it has format {facts['format']}, not {FORMAT}")
        unknown = set(facts["config"]) - {field.name for field in fields(TrainConfig)}
        if unknown:
            raise CheckpointError(f"its configuration has options unknown here: {', '.join(sorted(unknown))}")
        return Checkpoint(
            facts["run"],
            int(facts["iteration"]),
            float(facts["elapsed"]),
            TrainConfig(**facts["config"]),
            schemes.load(io.BytesIO(arrays[_SCHEME].tobytes())),
            _named(arrays, _STATE),
            _named(arrays, _POLICY),
        )
    except CheckpointError:
        raise
    except Exception as error:  # a damaged zip raises nearly anything: NotImplementedError, zlib.error, MemoryError …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"it is damaged or no checkpoint ({reason})") from None


def _named(arrays: State, prefix: str) -> State:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def written(folder: Path) -> list[Path]:
    """The checkpoints of a run directory, usable or not, the newest first."""
    return sorted((folder / FOLDER).glob(_PATTERN), reverse=True)


def iteration_of(path: Path) -> int:
    """The steps taken until a checkpoint, by its name."""
    return int(path.stem.rpartition("-")[2])


def newest(folder: Path, run: str) -> Checkpoint:
    """The newest usable checkpoint of a run directory; those that are refused on the way are warned of.

    Parameters
    ----------
    folder : Path
    run : str
        The identity of the run: checkpoints of others are refused.

    Raises
    ------
    UsageError
        There is none.
    """
    reasons = []
    for path in written(folder):
        try:
            checkpoint = read(path)
            if checkpoint.run != run:
                raise CheckpointError("it is another run's")
            if checkpoint.iteration != iteration_of(path):
                raise CheckpointError(f"it is of iteration {checkpoint.iteration}")
        except CheckpointError as error:
            reasons.append(f"{path.name}: {error}")
            continue
        for reason in reasons:
            warnings.warn(f"refused checkpoint {reason}", RuntimeWarning, stacklevel=2)
        return checkpoint
    told = "; ".join(reasons) or "there is none"
    raise UsageError(f"--resume: {os.fspath(folder)} has no checkpoint that can be used: {told}")


def _bytes(content: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
