"""One rank of a training run, from the arguments to the end: agree, load, work."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from fastgc import GradientCode
from mpi_runner import delays, flights
from mpi_runner.config import TrainConfig, UsageError, check
from mpi_runner.display import Display
from mpi_runner.flights import DataError, Flights
from mpi_runner.launch import LAUNCHED
from mpi_runner.master import Master
from mpi_runner.models import LogisticRegression
from mpi_runner.optimizers import OPTIMIZERS
from mpi_runner.records import RunRecords, summarize
from mpi_runner.transport import Poller, all_well, first_on_host_first, share_scheme
from mpi_runner.worker import Worker

EXIT_USAGE = 2
EXIT_FAILED = 1


def train(config: TrainConfig) -> int:
    """Take part in a run as whichever rank this process is; returns its exit status.

    An exception in one rank ends the whole job: the others would wait for it for ever.
    """
    try:
        return _take_part(MPI.COMM_WORLD, config)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(EXIT_FAILED)
        raise


def _take_part(comm: MPI.Intracomm, config: TrainConfig) -> int:
    poller = Poller(spin=config.poll == "spin")
    master = comm.Get_rank() == 0
    scheme: GradientCode | None = None
    well = True
    if master:
        try:
            if comm.Get_size() != config.workers + 1:
                raise UsageError(
                    f"--workers {config.workers} needs {config.workers + 1} MPI ranks, a master's and the workers'; "
                    f"there are {comm.Get_size()}"
                )
            scheme = check(config)
        except UsageError as error:
            complain(error)
            well = False
    if not all_well(comm, well, poller):
        return EXIT_USAGE
    scheme = share_scheme(comm, scheme, poller)
    if not first_on_host_first(comm, partial(_data_there, config, True), partial(_data_there, config, False), poller):
        return EXIT_USAGE
    data = flights.attach(config.rows, config.seed)
    model = LogisticRegression(data.features, config.dtype)
    if master:
        _lead(comm, config, scheme, data, model, poller)
    else:
        number = comm.Get_rank() - 1
        partitions = [data.load_train(p, scheme.partitions, config.dtype) for p in scheme.assignment[number]]
        Worker(comm, scheme, model, partitions, delays.parse(config.delay), config.seed, poller).run()
    return 0


def complain(error: Exception) -> None:
    """Say in one line what is wrong."""
    print(f"mpi_runner: error: {error}", file=sys.stderr, flush=True)


def _data_there(config: TrainConfig, prepare: bool) -> bool:
    try:
        (flights.prepare if prepare else flights.attach)(config.rows, config.seed)
    except (DataError, ValueError) as error:
        complain(error)
        return False
    return True


def _lead(
    comm: MPI.Intracomm,
    config: TrainConfig,
    scheme: GradientCode,
    data: Flights,
    model: LogisticRegression,
    poller: Poller,
) -> None:
    l2 = 10.0 / data.train_rows if config.l2 is None else config.l2
    step = 1.0 / (data.smoothness + l2) if config.step is None else config.step
    optimizer = OPTIMIZERS[config.optimizer](model.initial(), step)
    test = data.load_test(config.dtype)
    # Whoever started us shows the run, from what is recorded.
    shown = nullcontext() if LAUNCHED in os.environ else Display(config, scheme)
    with RunRecords(config, scheme) as records, shown as display:

        def after_step(iteration: int, loss: float, seconds: float) -> float | None:
            evaluated = None
            if config.evaluate_every and iteration % config.evaluate_every == 0:
                evaluated = model.evaluate(optimizer.model, test)["auc"]
            if display is not None:
                display.iteration(iteration, loss, seconds, evaluated)
            return evaluated

        figures = Master(comm, scheme, optimizer, l2, records, poller).run(config.iterations, after_step)
        seconds = figures.pop("iteration_seconds")
        summary: dict[str, Any] = {
            "scheme": scheme.name,
            **{f"test_{name}": value for name, value in model.evaluate(optimizer.model, test).items()},
            **summarize(seconds),
            **figures,
            "step": step,
            "l2": l2,
            "train_rows": data.train_rows,
        }
        records.finish(np.asarray(optimizer.model), summary)
        if display is not None:
            display.summary(summary)
