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
from mpi_runner import delays, problems
from mpi_runner.cache import DataError
from mpi_runner.config import TrainConfig, UsageError, check, claim
from mpi_runner.display import Display
from mpi_runner.launch import LAUNCHED
from mpi_runner.master import Master
from mpi_runner.models import Vector, has_loss
from mpi_runner.problems import Problem
from mpi_runner.randomness import Sampler
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
            if LAUNCHED not in os.environ:  # else it is claimed
                claim(config)
        except UsageError as error:
            complain(error)
            well = False
    if not all_well(comm, well, poller):
        return EXIT_USAGE
    scheme = share_scheme(comm, scheme, poller)
    if not first_on_host_first(comm, partial(_data_there, config, True), partial(_data_there, config, False), poller):
        return EXIT_USAGE
    take_part(comm, config, scheme, problems.attach(config), poller)
    return 0


def take_part(
    comm: MPI.Intracomm, config: TrainConfig, scheme: GradientCode, problem: Problem, poller: Poller
) -> tuple[Vector, dict[str, Any]] | None:
    """Do this rank's part of a run that all agree on; the master returns the model and the figures."""
    number = comm.Get_rank() - 1
    if number < 0:
        return _lead(comm, config, scheme, problem, poller)
    sampler = Sampler(config.seed, scheme.partitions, config.batch)
    partitions = [problem.load_train(partition, scheme.partitions) for partition in scheme.assignment[number]]
    delay = delays.parse(config.delay)
    Worker(comm, scheme, problem.model, partitions, delay, config.seed, sampler, poller).run()
    return None


def complain(error: Exception) -> None:
    """Say in one line what is wrong."""
    print(f"mpi_runner: error: {error}", file=sys.stderr, flush=True)


def _data_there(config: TrainConfig, prepare: bool) -> bool:
    try:
        (problems.prepare if prepare else problems.attach)(config)
    except (DataError, ValueError) as error:
        complain(error)
        return False
    return True


def _lead(
    comm: MPI.Intracomm, config: TrainConfig, scheme: GradientCode, problem: Problem, poller: Poller
) -> tuple[Vector, dict[str, Any]]:
    model, optimizer = problem.model, problem.make_optimizer()
    test = problem.load_test()
    # Whoever started us shows the run, from what is recorded.
    shown = nullcontext() if LAUNCHED in os.environ else Display(config, scheme)
    with RunRecords(config, scheme) as records, shown as display:

        def after_step(iteration: int, loss: float, seconds: float) -> float | None:
            evaluated = None
            if config.evaluate_every and iteration % config.evaluate_every == 0:
                evaluated = next(iter(model.evaluate(optimizer.model, test).values()))
            if display is not None:
                display.iteration(iteration, loss, seconds, evaluated)
            return evaluated

        master = Master(comm, scheme, optimizer, problem.l2, records, poller, has_loss(model))
        figures = master.run(config.iterations, after_step)
        seconds = figures.pop("iteration_seconds")
        evaluation = model.evaluate(optimizer.model, test)
        summary: dict[str, Any] = {
            "scheme": scheme.name,
            "model": config.model,
            "data": config.data,
            "measure": next(iter(evaluation)),
            **{f"test_{name}": value for name, value in evaluation.items()},
            **summarize(seconds),
            **figures,
            "step": getattr(optimizer, "step", None),
            "l2": problem.l2,
            "train_rows": problem.train_rows,
        }
        records.finish(np.asarray(optimizer.model), summary)
        if display is not None:
            display.summary(summary)
    if silent := master.stop():  # MPI_Finalize would wait for them
        names = ", ".join(map(str, silent))
        print(f"mpi_runner: workers {names} did not stop and are ended", file=sys.stderr, flush=True)
        comm.Abort(0)
    return optimizer.model, summary
