"""What a run is told: checked before anything is launched, saved with the run."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastgc import GradientCode, codes, compression, kernels, schemes
from mpi_runner import delays, problems
from mpi_runner.deadlines import Deadline
from mpi_runner.optimizers import OPTIMIZERS

ELEMENT_TYPES = ("float32", "float64")
MESSAGE_TYPES = compression.CODECS
MODEL_TYPES = ("float32", "float64", "bfloat16")
MOST_WORKERS = 100_000
MOST_PARTS = 1000
MEASURED = "measured"
"""In the place of speeds: they are measured in a warm-up."""
POLLS = ("backoff", "spin")
AUTO = "auto"
"""In the place of a reduction: it is chosen anew as the run goes on (`mpi_runner.adaptive`)."""
CHANGEABLE = (
    "iterations", "delay", "poll", "hang_deadline", "evaluate_every", "checkpoint_every", "survivors_from",
)  # fmt: skip
"""What a run may be told anew when it goes on: nothing of what its model depends on."""
CONFIG = "config.json"
"""The file of a run directory that says what the run was told; written first."""
FORMAT = 1
"""Number of the layout of a run directory; `mpi_runner.records` says what changes it."""


class UsageError(ValueError):
    """What was asked for cannot be done; the message is one line."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes
    ----------
    scheme : str
        A name of `fastgc.schemes.SCHEMES`.
    options : dict
        The scheme's own options: load, reduction, stragglers, code, uneven, speeds, partitions, decoder, blocks,
        within, regularized.
    workers, iterations : int
    model, data : str
        Names of `mpi_runner.problems`.
    rows : int, optional
        Training rows used; all by default.
    batch : int
        Examples in an iteration; 0 for all.
    delay : str
        See `mpi_runner.delays`.
    warm_up : int
        How often workers differentiate before the first iteration, where their speeds are measured.
    seed : int
        Of the rows' order, the batches and a model's own random choices, the delays, and the scheme where it is random.
    run : str
        The run directory.
    optimizer, dtype, poll : str
    message_dtype, model_dtype : str, optional
        What coded gradients are compressed to on their way up (`fastgc.compression.CODECS`), and the element type of
        the model on its way down; `dtype` by default.
    error_feedback : bool
        Let workers add what compressing left out of their messages to later ones (`fastgc.compression.ErrorFeedback`).
    hang_deadline : float, optional
        Seconds after which a silent worker counts as hung; learned by default.
    deadline : str, optional
        See `mpi_runner.deadlines`: past it an iteration goes on with an estimate. By default it waits.
    parts : int
        Workers send a message after each of so many parts of their work.
    verify : bool
        Wait for a worker more in every group, and see whether messages agree.
    step, l2 : float, optional
        By default 1 / (smoothness + l2) and 10 / rows.
    checkpoint_every : int
        Write a checkpoint every so many iterations besides the end; 0 for the end alone.
    survivors_from : str, optional
        A run directory: use exactly the messages that were used there.
    evaluate_every : int
        Evaluate on the test rows every so many iterations besides the end; 0 for the end alone.
    """

    scheme: str
    workers: int
    iterations: int
    run: str
    options: dict[str, Any] = field(default_factory=dict)
    model: str = "logistic"
    data: str = "flights"
    rows: int | None = None
    batch: int = 0
    delay: str = "none"
    seed: int = 0
    warm_up: int = 5
    optimizer: str = "nesterov"
    dtype: str = "float32"
    step: float | None = None
    l2: float | None = None
    message_dtype: str | None = None
    model_dtype: str | None = None
    error_feedback: bool = False
    poll: str = "backoff"
    hang_deadline: float | None = None
    deadline: str | None = None
    parts: int = 1
    verify: bool = False
    evaluate_every: int = 0
    checkpoint_every: int = 100
    survivors_from: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def scheme_options(name: str) -> set[str]:
    """The options that a scheme takes besides the number of workers and the seed."""
    return set(inspect.signature(schemes.SCHEMES[name]).parameters) - {"workers", "seed"}


def build_scheme(config: TrainConfig, measured: Sequence[float] | None = None) -> GradientCode:
    """Make the scheme; UsageError for an unknown one, and for options that it does not take, lacks or refuses.

    Parameters
    ----------
    config : TrainConfig
    measured : sequence of float, optional
        The workers' speeds, where the configuration has them measured; without, as if they were alike.
    """
    constructor = schemes.SCHEMES.get(config.scheme)
    if constructor is None:
        raise UsageError(f"--scheme must be one of {', '.join(schemes.SCHEMES)}, not {config.scheme!r}")
    parameters = inspect.signature(constructor).parameters
    taken = scheme_options(config.scheme)
    unknown = [f"--{name}" for name in config.options if name not in taken]
    if unknown:
        allowed = ", ".join(f"--{name}" for name in sorted(taken)) or "none"
        raise UsageError(f"{config.scheme} does not take {', '.join(unknown)}; its options are: {allowed}")
    needed = {name for name in taken if parameters[name].default is inspect.Parameter.empty}
    if config.scheme == "grouped":
        needed = {"load", "reduction"}
    absent = [f"--{name}" for name in sorted(needed - set(config.options))]
    if absent:
        raise UsageError(f"{config.scheme} needs {' and '.join(absent)}")
    options = dict(config.options)
    if options.get("reduction") == AUTO:
        if config.scheme != "grouped":
            raise UsageError(f"--reduction must be a number, not {AUTO}, with a scheme other than grouped")
        if given := [f"--{name}" for name in ("speeds", "partitions") if name in options]:
            raise UsageError(f"--reduction must be a number, not {AUTO}, with {' and '.join(given)}")
        del options["reduction"]
        constructor = schemes.adaptive
    if "seed" in parameters:
        options["seed"] = config.seed
    if config.options.get("code") not in (None, *codes.FAMILIES):
        raise UsageError(f"--code must be one of {', '.join(codes.FAMILIES)}, not {config.options['code']!r}")
    if "speeds" in options:
        options["speeds"] = _speeds(options["speeds"], measured or [1.0] * config.workers)
    try:
        return constructor(config.workers, **options)
    except ValueError as error:
        raise UsageError(f"{config.scheme}: {error}") from None
    except MemoryError:
        raise UsageError(f"{config.scheme}: {config.workers} workers are more than memory holds") from None


def _speeds(text: str, measured: Sequence[float]) -> Sequence[float]:
    if text == MEASURED:
        return measured
    try:
        return [float(number) for number in text.replace(":", ",").split(",")]
    except ValueError:
        raise UsageError(f"--speeds must be numbers with commas between them, or {MEASURED}, not {text!r}") from None


def measures_speeds(config: TrainConfig) -> bool:
    """Whether the scheme is made only after a warm-up."""
    return config.options.get("speeds") == MEASURED


def check(config: TrainConfig) -> GradientCode:
    """Everything that can be known to be wrong before anything is launched; returns the scheme."""
    if config.optimizer not in OPTIMIZERS:
        raise UsageError(f"--optimizer must be one of {', '.join(OPTIMIZERS)}, not {config.optimizer!r}")
    try:
        problems.check(config.model, config.data)
    except ValueError as error:
        raise UsageError(str(error)) from None
    _check_numbers(config)
    scheme = build_scheme(config)
    _check_partitions(config, scheme)
    return scheme


def scheme_title(config: TrainConfig, scheme: GradientCode) -> str:
    """What a run's scheme is called before it is there."""
    return f"{config.scheme}, speeds measured" if measures_speeds(config) else scheme.name


def check_settings(config: TrainConfig, scheme: GradientCode) -> None:
    """What `check` looks at besides names, for a scheme that is made already."""
    _check_numbers(config)
    _check_partitions(config, scheme)


def _check_numbers(config: TrainConfig) -> None:
    for name, value, least in (
        ("workers", config.workers, 1),
        ("iterations", config.iterations, 1),
        ("seed", config.seed, 0),
        ("evaluate-every", config.evaluate_every, 0),
        ("checkpoint-every", config.checkpoint_every, 0),
        ("batch", config.batch, 0),
        ("parts", config.parts, 1),
        ("warm-up", config.warm_up, 1),
    ):
        if value < least:
            raise UsageError(f"--{name} must be at least {least}, not {value}")
    if config.workers > MOST_WORKERS:
        raise UsageError(f"--workers must be at most {MOST_WORKERS}, not {config.workers}")
    if config.parts > MOST_PARTS:
        raise UsageError(f"--parts must be at most {MOST_PARTS}, not {config.parts}")
    if config.step is not None and not 0 < config.step < float("inf"):
        raise UsageError(f"--step must be positive and finite, not {config.step}")
    if config.l2 is not None and not 0 <= config.l2 < float("inf"):
        raise UsageError(f"--l2 must be finite and not negative, not {config.l2}")
    if config.hang_deadline is not None and not 0 < config.hang_deadline < float("inf"):
        raise UsageError(f"--hang-deadline must be positive and finite, not {config.hang_deadline}")
    if config.deadline is not None:
        try:
            Deadline(config.deadline)
        except ValueError as error:
            raise UsageError(f"--deadline {error}") from None
    for name, given in (("message-dtype", config.message_dtype), ("model-dtype", config.model_dtype)):
        if given == "float64" and config.dtype != "float64":
            raise UsageError(f"--{name} must not be wider than --dtype, which is {config.dtype}, not {given}")
    if config.error_feedback and config.parts > 1:
        raise UsageError(
            f"--error-feedback does not go with --parts {config.parts}: some of a message is used, some not"
        )
    if config.error_feedback and config.message_dtype in (None, config.dtype):
        raise UsageError(
            f"--error-feedback needs a --message-dtype narrower than --dtype, which is {config.dtype}; as they are, "
            "messages leave nothing out"
        )
    try:
        delays.parse(config.delay).check(config.workers)
    except ValueError as error:
        raise UsageError(f"--delay: {error}") from None


def _check_partitions(config: TrainConfig, scheme: GradientCode) -> None:
    if len(scheme.reductions) > 1 and config.parts > 1:
        raise UsageError(f"--parts must be 1 where the reduction is chosen anew, not {config.parts}")
    least, one = scheme.partitions * config.parts, "partition" if config.parts == 1 else "part of a partition"
    if 0 < config.batch < least:
        raise UsageError(f"--batch must be at least {least}, one a {one}, not {config.batch}")
    if config.rows is not None and config.rows < least:
        raise UsageError(f"--rows must be at least {least}, one a {one}, not {config.rows}")
    try:  # FASTGC_ISA may name what this machine lacks
        kernels.lincomb([[1.0]], [np.zeros(1)])
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_directory(run: Path) -> None:
    """Make the run directory, and see that it is writable and holds no earlier run."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise UsageError(f"--run: cannot write to {os.fspath(run)}: {error.strerror or error}") from None
    if (run / CONFIG).exists():
        raise UsageError(f"--run: {os.fspath(run)} already holds a run; choose another directory")


def claim(config: TrainConfig) -> None:
    """Take the run directory for this run alone, by writing the configuration into it."""
    run = Path(config.run)
    check_directory(run)
    try:
        with (run / CONFIG).open("x") as file:
            json.dump({"format": FORMAT, "config": config.as_dict()}, file)
    except FileExistsError:
        raise UsageError(f"--run: {os.fspath(run)} was taken by another run just now") from None


def changed(saved: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """A saved configuration with what is given anew; UsageError for what may not change while a run goes on.

    Parameters
    ----------
    saved : TrainConfig
    given : mapping
        Fields, and the scheme's options by their names.
    """
    own = {**saved.as_dict(), **saved.options}
    for name, value in given.items():
        if name not in CHANGEABLE and value != own.get(name):
            raise UsageError(
                f"--resume: --{name.replace('_', '-')} was {own.get(name)}, not {value}; only "
                f"{', '.join('--' + name.replace('_', '-') for name in CHANGEABLE)} may change"
            )
    return replace(saved, **{name: value for name, value in given.items() if name in CHANGEABLE})


def arguments(config: TrainConfig) -> list[str]:
    """The ``train`` command of a configuration."""
    command = ["train", "--scheme", config.scheme, "--run", os.path.abspath(config.run)]
    values = {**config.options, **config.as_dict()}
    for name in ("scheme", "run", "options"):
        values.pop(name)
    for name, value in values.items():
        if value is True:
            command.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            command += [f"--{name.replace('_', '-')}", str(value)]
    return command
