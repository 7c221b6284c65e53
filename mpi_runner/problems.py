"""What is trained on what: a run's model, data and optimiser, put together by name."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpi_runner.models import LogisticRegression, Model, Partition
from mpi_runner.optimizers import OPTIMIZERS, Optimizer
from mpi_runner.smoothness import largest_eigenvalue
from mpi_runner.softmax import SoftmaxRegression

if TYPE_CHECKING:
    from mpi_runner.config import TrainConfig
    from mpi_runner.flights import Flights
    from mpi_runner.images import Images


DATA = ("flights", "digits", "fashion-mnist")
"""The data sets, by name."""


class Usual(NamedTuple):
    """What goes with a model: the data sets that it can be trained on, the usual one first, and the usual settings.

    A step of None is 1 / smoothness, an L2 weight of None 10 / rows: what a convex loss is trained with.
    """

    data: tuple[str, ...]
    optimizer: str
    batch: int
    step: float | None
    l2: float | None


IMAGES = ("digits", "fashion-mnist")
MODELS = {
    "logistic": Usual(("flights",), "nesterov", 0, None, None),
    "softmax": Usual((*IMAGES, "flights"), "nesterov", 0, None, None),
    "mlp": Usual(IMAGES, "adam", 512, 1e-3, 0.0),
    "cnn": Usual(IMAGES, "adam", 512, 1e-3, 0.0),
}
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
    train_rows : int, optional
        Examples of all partitions, where that is known.
    l2 : float
        Weight of half the squared norm of the parameters.
    make_optimizer : callable
        Returns the optimiser at its start; called on the master alone.
    """

    model: Model
    load_train: Callable[[int, int], Partition]
    load_test: Callable[[], Partition]
    train_rows: int | None
    l2: float
    make_optimizer: Callable[[], Optimizer]


def prepare(config: TrainConfig) -> None:
    """Fetch and encode what the cache folder lacks.

    Raises
    ------
    DataError, ValueError
        As the data set's own ``prepare``.
    """
    _prepared(config.data, config.rows, config.seed)
    if config.model in ("mlp", "cnn"):
        importlib.import_module("torch")  # to be missed before anything is launched


def describe(data: str, rows: int | None, seed: int) -> dict[str, Any]:
    """Prepare a data set and return what a person wants to know of it."""
    return _prepared(data, rows, seed).describe()


def _prepared(data: str, rows: int | None, seed: int) -> Flights | Images:
    if data == "flights":
        from mpi_runner import flights

        return flights.prepare(rows, seed)
    from mpi_runner import images

    return images.prepare(data, rows, seed)


def attach(config: TrainConfig) -> Problem:
    """Return the problem of a configuration whose data are prepared.

    Raises
    ------
    DataError, ValueError
        As the data set's own ``attach``.
    """
    if config.data == "flights":
        return _on_flights(config)
    return _on_images(config)


def _on_flights(config: TrainConfig) -> Problem:
    from mpi_runner import flights

    data = flights.attach(config.rows, config.seed)
    if config.model == "logistic":
        logistic = LogisticRegression(data.features, config.dtype)
        return _problem(config, logistic, data, lambda: data.smoothness, lambda partition: partition)
    softmax = SoftmaxRegression(data.features, 2, config.dtype)
    return _problem(config, softmax, data, lambda: 2 * data.smoothness, _numbered)


def _numbered(partition: Partition) -> Partition:
    """With labels −1 and +1 as classes 0 and 1."""
    return dataclasses.replace(partition, labels=(partition.labels > 0).astype(np.int64))


def _on_images(config: TrainConfig) -> Problem:
    from mpi_runner import images

    data = images.attach(config.data, config.rows, config.seed)
    pixels = data.side**2
    if config.model == "softmax":

        def smoothness() -> float:
            return largest_eigenvalue(data.load_train(0, 1, np.float64).inputs) / (2 * data.train_rows)

        softmax = SoftmaxRegression(pixels, data.classes, config.dtype)
        return _problem(config, softmax, data, smoothness, lambda partition: partition)

    from mpi_runner.torch_models import TorchModel, cnn, mlp

    def build() -> Any:
        module = mlp(pixels, data.classes) if config.model == "mlp" else cnn(data.side, data.classes)
        return module.double() if config.dtype == "float64" else module

    return _problem(config, TorchModel(build, seed=config.seed), data, None, lambda partition: partition)


def _problem(
    config: TrainConfig,
    model: Model,
    data: Flights | Images,
    smoothness: Callable[[], float] | None,
    relabel: Callable[[Partition], Partition],
) -> Problem:
    usual = MODELS[config.model]
    l2 = config.l2 if config.l2 is not None else 10.0 / data.train_rows if usual.l2 is None else usual.l2

    def make_optimizer() -> Optimizer:
        step = usual.step if config.step is None else config.step
        if step is None:
            assert smoothness is not None
            step = 1.0 / (smoothness() + l2)
        return OPTIMIZERS[config.optimizer](model.initial(), step)

    return Problem(
        model,
        lambda partition, partitions: relabel(data.load_train(partition, partitions, config.dtype)),
        lambda: relabel(data.load_test(config.dtype)),
        data.train_rows,
        l2,
        make_optimizer,
    )
