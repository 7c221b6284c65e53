"""What is trained on what: a run's model, data and optimiser, put together by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mpi_runner.models import LogisticRegression, Model, Partition
from mpi_runner.optimizers import OPTIMIZERS, Optimizer

if TYPE_CHECKING:
    from mpi_runner.config import TrainConfig


DATA = ("flights",)
"""The data sets, by name."""


class Usual(NamedTuple):
    """What goes with a model: the data sets that it can be trained on, the usual one first, and the usual settings."""

    data: tuple[str, ...]
    optimizer: str
    batch: int


MODELS = {"logistic": Usual(("flights",), "nesterov", 0)}
"""The models, by name."""


def check(model: str, data: str) -> None:
    """Raise ValueError, in the command line's words, for a model that does not go with the data."""
    if model not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, not {model!r}")
    if data not in MODELS[model].data:
        raise ValueError(f"--data must be one of {', '.join(MODELS[model].data)} for {model}, not {data!r}")


@dataclass(frozen=True)
class Problem:
    """A model and its data, as a rank uses them.

    Attributes
    ----------
    model : Model
    load_train : callable
        Given a partition's number and the number of partitions, returns the partition.
    load_test : callable
        Returns the examples that the model is evaluated on.
    train_rows : int
        Examples of all partitions.
    l2 : float
        Weight of half the squared norm of the parameters.
    make_optimizer : callable
        Returns the optimiser at its start; called on the master alone.
    """

    model: Model
    load_train: Callable[[int, int], Partition]
    load_test: Callable[[], Partition]
    train_rows: int
    l2: float
    make_optimizer: Callable[[], Optimizer]


def prepare(config: TrainConfig) -> None:
    """Fetch and encode what the cache folder lacks.

    Raises
    ------
    DataError, ValueError
        As `mpi_runner.flights.prepare`.
    """
    from mpi_runner import flights

    flights.prepare(config.rows, config.seed)


def describe(data: str, rows: int | None, seed: int) -> dict[str, Any]:
    """Prepare a data set and return what a person wants to know of it."""
    from mpi_runner import flights

    return flights.prepare(rows, seed).describe()


def attach(config: TrainConfig) -> Problem:
    """Return the problem of a configuration whose data are prepared.

    Raises
    ------
    DataError, ValueError
        As `mpi_runner.flights.attach`.
    """
    from mpi_runner import flights

    data = flights.attach(config.rows, config.seed)
    model = LogisticRegression(data.features, config.dtype)
    l2 = 10.0 / data.train_rows if config.l2 is None else config.l2
    step = 1.0 / (data.smoothness + l2) if config.step is None else config.step
    return Problem(
        model,
        lambda partition, partitions: data.load_train(partition, partitions, config.dtype),
        lambda: data.load_test(config.dtype),
        data.train_rows,
        l2,
        lambda: OPTIMIZERS[config.optimizer](model.initial(), step),
    )
