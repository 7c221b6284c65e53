"""The ranks of `bench.runner_overhead`: the runner and bare MPI exchanges of its bytes take turns in one job."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from fastgc import GradientCode, schemes
from mpi_runner import wire
from mpi_runner.library import ArrayData, train
from mpi_runner.models import Partition, gradient_and_loss
from mpi_runner.optimizers import GradientDescent
from mpi_runner.randomness import Sampler
from mpi_runner.records import ARRIVALS, ITERATIONS
from mpi_runner.transport import Poller, wait
from mpi_runner.wire import Wire

RUNNER, BARE, BARE_WORKING, BARE_BLOCKING, IDLE = (
    "runner", "bare", "bare, working", "bare, MPI's own waits", "idle",
)  # fmt: skip
WARM_UP = 10  # iterations dropped of each turn: memory is touched, and caches filled
IDLE_ITERATIONS = 5
TAG = 7

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.floating[Any]]


class Constant:
    """A model whose gradient takes no time; it notes this process's clocks at each."""

    def __init__(self, length: int) -> None:
        self._gradient = np.full(length, 1e-3, np.float32)
        self.clocks: list[tuple[float, float]] = []  # CPU seconds of this process, and time

    def initial(self) -> Vector:
        """Return zeros."""
        return np.zeros_like(self._gradient)

    def partial_gradient(self, parameters: Vector, partition: Partition) -> Vector:
        """Return the same vector at any point."""
        self.clocks.append((time.process_time(), time.perf_counter()))
        return self._gradient

    def evaluate(self, parameters: Vector, partition: Partition) -> dict[str, float]:
        """Return a figure, since there must be one."""
        return {"first": float(parameters[0])}


def exchange(
    comm: MPI.Intracomm,
    sizes: tuple[int, int],
    iterations: int,
    poller: Poller | None,
    work: Callable[[int], object] = lambda _: None,
) -> list[float]:
    """Send so many bytes to every worker and receive so many from each; returns seconds of each iteration on rank 0.

    Ranks look as `poller` has them, or wait in MPI where it is None. Workers do `work` before they answer, given the
    number of the iteration.
    """
    down, up = sizes
    outgoing, workers = np.zeros(down, np.uint8), range(1, comm.Get_size())
    if comm.Get_rank() > 0:
        answer = np.zeros(up, np.uint8)
        for iteration in range(iterations):
            _finish([comm.Irecv(outgoing, source=0, tag=TAG)], poller)
            work(iteration)
            _finish([comm.Isend(answer, dest=0, tag=TAG)], poller)
        return []
    inboxes, seconds = [np.zeros(up, np.uint8) for _ in workers], []
    for _ in range(iterations):
        start = time.perf_counter()
        receives = [comm.Irecv(inbox, source=rank, tag=TAG) for rank, inbox in zip(workers, inboxes, strict=True)]
        sends = [comm.Isend(outgoing, dest=rank, tag=TAG) for rank in workers]
        _finish(receives, poller)
        seconds.append(time.perf_counter() - start)
        _finish(sends, poller)
    return seconds


def _finish(requests: list[MPI.Request], poller: Poller | None) -> None:
    if poller is None:
        MPI.Request.Waitall(requests)
        return
    poller.restart()
    while requests:
        left = [request for request in requests if not request.Test()]
        if len(left) == len(requests):
            poller.pause()
        else:
            poller.restart()
        requests = left


def turns(
    comm: MPI.Intracomm, scheme: GradientCode, length: int, repeats: int, iterations: int, pause: float, folder: Path
) -> list[dict[str, Any]]:
    """All contestants once, in an order drawn anew, then all again; what each has measured, on rank 0."""
    layout = Wire(scheme, length, "float32", "float32")
    sizes = layout.sizes[wire.MODEL], layout.sizes[wire.RESULT]
    order = np.random.Generator(np.random.Philox(key=0))
    bare: dict[str, tuple[Poller | None, Callable[[int], object]]] = {
        BARE: (Poller(), lambda _: None),
        BARE_WORKING: (Poller(), _working(scheme, length, comm.Get_rank() - 1)),
        BARE_BLOCKING: (None, lambda _: None),
    }
    done = []
    for repeat in range(repeats):
        for name in order.permutation([RUNNER, *bare, IDLE]).tolist():
            wait(comm.Ibarrier(), Poller())
            load = os.getloadavg()[0]
            if name in bare:
                poller, work = bare[name]
                exchange(comm, sizes, WARM_UP, poller, work)
                begun = time.process_time()
                found: dict[str, Any] = {"seconds": exchange(comm, sizes, iterations, poller, work)}
                found |= _cpu(comm, (time.process_time() - begun) / iterations)
            elif name == RUNNER:
                found = _run(comm, scheme, length, WARM_UP + iterations, folder / f"{repeat}")
            else:
                found = _idle(comm, scheme, length, pause, folder / f"{repeat}-idle")
            if comm.Get_rank() == 0:
                done.append({"contestant": name, "repeat": repeat, "load_average": load, **found})
    return done


def _working(scheme: GradientCode, length: int, worker: int) -> Callable[[int], object]:
    """What a worker of the runner does besides messages, for the model here: to draw, differentiate and encode."""
    if worker < 0:
        return lambda _: None
    model, sampler, held = Constant(length), Sampler(0, scheme.partitions), scheme.assignment[worker]
    row, parameters = np.zeros((1, 1), np.float32), model.initial()
    partition, figures = Partition(row, row[0]), np.ones((len(held), wire.STATISTICS))
    encoder = scheme.encoder(worker, length, np.float32, np.zeros(scheme.message_length(length), np.float32))

    def work(iteration: int) -> None:
        encoder.reset()
        for number in held:
            encoder.add(number, gradient_and_loss(model, parameters, sampler.draw(partition, number, iteration))[0])
        scheme.encode(worker, figures)

    return work


def _cpu(comm: MPI.Intracomm, own: float) -> dict[str, float]:
    """CPU seconds of an iteration on rank 0, and of all others together."""
    seconds = np.zeros(comm.Get_size())
    wait(comm.Igather(np.array([own]), seconds, root=0), Poller())
    return {"master_cpu": float(seconds[0]), "workers_cpu": float(seconds[1:].sum())}


def _run(comm: MPI.Intracomm, scheme: GradientCode, length: int, iterations: int, run: Path) -> dict[str, Any]:
    model, clocks = Constant(length), []

    class Noting(GradientDescent):
        def update(self, gradient: Vector) -> None:
            clocks.append(time.process_time())
            super().update(gradient)

    train(
        model, _rows(scheme), scheme, iterations=iterations, step=0.1, run=str(run),
        optimizer=lambda initial, step: Noting(initial, step),
    )  # fmt: skip
    if comm.Get_rank() > 0:  # the first gradient of each iteration; those before them were for the ranks to agree
        clocks += [cpu for cpu, _ in model.clocks[-iterations * scheme.load :: scheme.load]]
    found = _cpu(comm, (clocks[-1] - clocks[WARM_UP]) / (iterations - WARM_UP - 1))
    return read(run) | found if comm.Get_rank() == 0 else {}


def _idle(comm: MPI.Intracomm, scheme: GradientCode, length: int, pause: float, run: Path) -> dict[str, Any]:
    """Each worker's CPU seconds over time, where the master pauses in every step; the steps' own work is in them."""

    class Pausing(GradientDescent):
        def update(self, gradient: Vector) -> None:
            super().update(gradient)
            time.sleep(pause)

    model = Constant(length)
    train(
        model, _rows(scheme), scheme, iterations=IDLE_ITERATIONS, step=0.1, run=str(run),
        optimizer=lambda initial, step: Pausing(initial, step),
    )  # fmt: skip
    share = np.zeros(1)
    if comm.Get_rank() > 0:  # from the first iteration's first gradient: those before it were for the ranks to agree
        first, last = model.clocks[-IDLE_ITERATIONS * scheme.load], model.clocks[-1]
        share[0] = (last[0] - first[0]) / (last[1] - first[1])
    shares = np.zeros(comm.Get_size())
    wait(comm.Igather(share, shares, root=0), Poller())
    return {"cpu_share": shares[1:].tolist()}


def _rows(scheme: GradientCode) -> ArrayData:
    rows = np.zeros((scheme.partitions, 1), np.float32)
    return ArrayData(rows, rows[:, 0], rows[:1], rows[:1, 0])


def read(run: Path) -> dict[str, Any]:
    """What the runner has recorded of its iterations, in seconds, the first ones left out."""
    with (run / ITERATIONS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (run / ARRIVALS).open(newline="") as file:
        outcomes = {row["outcome"] for row in csv.DictReader(file)}
    if outcomes != {"used"}:
        raise RuntimeError(
            f"every message must be used, for the bytes to be those of the bare exchange, not {outcomes}"
        )
    begun = [float(row["start"]) for row in rows]
    ended = [float(row["start"]) + float(row["seconds"]) for row in rows]
    # From the end of an iteration to the start of the next one; the last has no next.
    found = {"bookkeeping": [after - end for after, end in zip(begun[1:], ended, strict=False)][WARM_UP:]}
    until_ready = ("send", "wait", "receive")  # all that a bare exchange does too
    for ours, theirs in (("seconds", until_ready), ("decode", ("decode",)), ("update", ("update",))):
        found[ours] = [sum(float(row[name]) for name in theirs) for row in rows[WARM_UP:-1]]
    return found


def main(words: list[str]) -> None:
    """Measure on all ranks of this job; rank 0 writes the file."""
    workers, length, reduction, repeats, iterations = map(int, words[:5])
    scheme = schemes.grouped(workers, reduction, reduction)
    done = turns(MPI.COMM_WORLD, scheme, length, repeats, iterations, float(words[5]), Path(words[6]).parent)
    if MPI.COMM_WORLD.Get_rank() == 0:
        Path(words[6]).write_text(json.dumps(done), "utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BaseException:  # the other ranks would wait for ever
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
