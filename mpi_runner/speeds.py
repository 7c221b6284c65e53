"""How fast the workers are: measured in a warm-up before the first iteration, for schemes that share by speed."""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI

from mpi_runner import delays
from mpi_runner.config import TrainConfig
from mpi_runner.models import gradient_and_loss
from mpi_runner.problems import Problem
from mpi_runner.randomness import Sampler
from mpi_runner.transport import Poller, wait


def measure(comm: MPI.Intracomm, config: TrainConfig, problem: Problem, poller: Poller) -> list[float]:
    """Let all workers differentiate equal shares of the data at once, as they will in training.

    Injected delays of computing take part, but for those that are served whole: they say nothing of speed.

    Parameters
    ----------
    comm : MPI.Intracomm
        Rank i + 1 is worker i.
    config : TrainConfig
        Its `warm_up` is the number of times; the median counts. One more before is for caches.
    problem : Problem
    poller : Poller

    Returns
    -------
    list of float
        On rank 0 how many times as fast as the slowest each worker is; elsewhere nothing.
    """
    number = comm.Get_rank() - 1
    own = np.array([_own(number, config, problem) if number >= 0 else 0.0])
    found = np.zeros(comm.Get_size() if number < 0 else 0)
    wait(comm.Igather(own, found, root=0), poller)
    return [float(speed / found[1:].min()) for speed in found[1:]]


def _own(number: int, config: TrainConfig, problem: Problem) -> float:
    whole = problem.load_train(number, config.workers)
    sampler = Sampler(config.seed, config.workers, config.batch)
    delay, parameters = delays.parse(config.delay), problem.model.initial()
    rates = []
    for iteration in range(config.warm_up + 1):
        start = time.perf_counter()
        drawn = sampler.draw(whole, number, iteration)
        gradient_and_loss(problem.model, parameters, drawn)
        if not delay.computing.whole:
            seconds = delay.compute_seconds(config.seed, number, iteration, 1, config.workers)
            time.sleep(seconds / delays.own_speed())
        rates.append(drawn.count / (time.perf_counter() - start))
    return float(np.median(rates[1:]))
