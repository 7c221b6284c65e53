"""The master: sends models, takes coded messages as they come, steps as soon as the gradient can be decoded.

Every worker has at most one model to work on, and owes one message for it. A worker that owes a message of an iteration
that is over is told so once, and gets the newest model when it answers: nothing queues up behind a straggler, and the
master waits for no one in particular.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from fastgc import GradientCode
from mpi_runner import wire
from mpi_runner.optimizers import Optimizer, mean_gradient
from mpi_runner.records import RunRecords
from mpi_runner.transport import Poller
from mpi_runner.wire import Wire

Array = npt.NDArray[Any]

STOP_SECONDS = 8.0
"""A worker that computes has to finish its partition first; one that does not answer by then is left to mpirun."""

IDLE, BUSY, HEARD, GONE = "idle", "busy", "heard", "gone"


class Master:
    """The master of a run.

    Parameters
    ----------
    comm : MPI.Intracomm
        Rank 0 is the master, rank i + 1 worker i.
    scheme : GradientCode
    optimizer : Optimizer
    l2 : float
        Weight of half the squared norm of the parameters, added to the mean loss.
    records : RunRecords
    poller : Poller
    with_loss : bool
        Whether the workers' model gives losses; without, the recorded ones are NaN.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        scheme: GradientCode,
        optimizer: Optimizer,
        l2: float,
        records: RunRecords,
        poller: Poller,
        with_loss: bool = True,
    ) -> None:
        self._scheme = scheme
        self._optimizer = optimizer
        self._l2 = l2
        self._records = records
        self._poller = poller
        self._with_loss = with_loss
        parameters = optimizer.parameters
        self._wire = Wire(scheme, len(parameters), parameters.dtype)
        self._gradients = scheme.collector(len(parameters), parameters.dtype)
        self._statistics = scheme.collector(wire.STATISTICS, np.float64)
        self._gradient = np.empty_like(parameters)
        self._peers = _Peers(comm, self._wire, scheme.workers)
        self._seconds: list[float] = []
        self._loss = float("nan")
        self._epoch = 0.0

    def run(self, iterations: int, after_step: Callable[[int, float, float], float | None]) -> dict[str, Any]:
        """Train, and return the run's figures; the workers are then still there.

        Parameters
        ----------
        iterations : int
        after_step : callable
            Called with the iteration's number from 1, its loss and its seconds; returns the model's score if it
            evaluated it. Its own time counts to no iteration.
        """
        self._peers.await_ready(self._poller)
        self._epoch = time.perf_counter()
        for iteration in range(iterations):
            self._iterate(iteration, after_step)
        total = time.perf_counter() - self._epoch
        return {
            "iterations": iterations,
            "final_loss": self._loss,
            "total_seconds": total,
            "iteration_seconds": self._seconds,
            "bytes_received": self._peers.bytes_received,
            "bytes_sent": self._peers.bytes_sent,
            "messages": dict(self._peers.outcomes),
        }

    def stop(self) -> tuple[int, ...]:
        """Stop the workers; returns those that have not said goodbye within `STOP_SECONDS`."""
        return self._peers.stop(self._poller)

    def _iterate(self, iteration: int, after_step: Callable[[int, float, float], float | None]) -> None:
        self._gradients.reset()
        self._statistics.reset()
        received_before = self._peers.bytes_received
        start = time.perf_counter()
        self._peers.offer(iteration, self._optimizer.parameters)
        self._poller.restart()
        while not self._gradients.ready:
            if not self._take(iteration):
                self._poller.pause()
        ready = time.perf_counter()
        survivors = self._gradients.survivors
        gradient = self._gradients.gradient(out=self._gradient)
        loss_sum, count = self._statistics.gradient()
        decoded = time.perf_counter()
        parameters = self._optimizer.parameters
        square = float(np.einsum("i,i->", parameters, parameters, dtype=np.float64))
        loss = float(loss_sum / count) + 0.5 * self._l2 * square if self._with_loss else float("nan")
        self._loss = loss
        self._optimizer.update(mean_gradient(gradient, count, self._l2, parameters))
        end = time.perf_counter()
        self._peers.conclude()
        self._seconds.append(end - start)
        score = after_step(iteration + 1, loss, end - start)
        self._records.iteration(
            iteration=iteration + 1,
            start=start - self._epoch,
            seconds=end - start,
            wait=ready - start,
            decode=decoded - ready,
            update=end - decoded,
            loss=loss,
            survivors=" ".join(map(str, survivors)),
            bytes_received=self._peers.bytes_received - received_before,
            score="" if score is None else score,
        )

    def _take(self, iteration: int) -> bool:
        """Handle what has come; whether anything has."""
        arrived = self._peers.arrivals()
        for worker, buffer in arrived:
            header = self._wire.header(buffer)
            if int(header["kind"]) != wire.RESULT:
                self._record(worker, header, "abandoned")
            elif int(header["iteration"]) != iteration:
                self._record(worker, header, "late")
            else:
                self._record(worker, header, "used")
                self._gradients.add(worker, self._wire.gradient(buffer))
                self._statistics.add(worker, self._wire.statistics(buffer))
                continue
            self._peers.release(worker)
            self._peers.send_newest(worker)
        if arrived:
            self._poller.restart()
        return bool(arrived)

    def _record(self, worker: int, header: Any, outcome: str) -> None:
        self._peers.outcomes[outcome] += 1
        self._records.arrival(
            iteration=int(header["iteration"]) + 1,
            worker=worker,
            sent=self._peers.sent_at[worker] - self._epoch,
            arrived=time.perf_counter() - self._epoch,
            compute=float(header["compute_seconds"]),
            encode=float(header["encode_seconds"]),
            delay=float(header["delay_seconds"]),
            bytes=self._peers.last_bytes[worker],
            outcome=outcome,
        )


class _Outgoing:
    """A buffer on its way to some workers: it must not change before all of them have it."""

    def __init__(self, buffer: Array) -> None:
        self.buffer = buffer
        self._requests: list[MPI.Request] = []

    def send(self, comm: MPI.Intracomm, worker: int, tag: int) -> None:
        self._requests.append(comm.Isend(self.buffer, dest=worker + 1, tag=tag))

    def delivered(self) -> bool:
        self._requests = [request for request in self._requests if not request.Test()]
        return not self._requests


class _Peers:
    """The master's side of every worker: who owes a message, and whose buffers are in whose hands."""

    def __init__(self, comm: MPI.Intracomm, layout: Wire, workers: int) -> None:
        self._comm = comm
        self._wire = layout
        self._state = [BUSY] * workers  # each owes its first READY
        self._given = [-1] * workers  # the iteration of each worker's newest model
        self._inbox = [layout.result_buffer() for _ in range(workers)]
        self._receives = [self._listen(worker) for worker in range(workers)]
        self._model = _Outgoing(layout.model_buffer())
        self._models = [self._model]
        self._notices: list[_Outgoing] = []
        self._iteration = -1
        self._warned = 0
        self.sent_at = [0.0] * workers
        self.last_bytes = [0] * workers
        self.bytes_received = 0
        self.bytes_sent = 0
        self.outcomes = {"used": 0, "late": 0, "abandoned": 0, "rejected": 0}

    def _listen(self, worker: int) -> MPI.Request:
        return self._comm.Irecv(self._inbox[worker], source=worker + 1, tag=wire.TAG_RESULT)

    def await_ready(self, poller: Poller) -> None:
        """Wait until every worker has loaded its data."""
        poller.restart()
        while BUSY in self._state:
            arrived = self.arrivals()
            for worker, _ in arrived:
                self.release(worker)
            if not arrived:
                poller.pause()

    def arrivals(self) -> list[tuple[int, Array]]:
        """Messages that have come, each in its worker's inbox until `release`."""
        statuses = [MPI.Status() for _ in self._receives]
        done = MPI.Request.Testsome(self._receives, statuses)
        arrived = []
        for status, worker in zip(statuses, done or (), strict=False):
            size = status.Get_count(MPI.BYTE)
            self.bytes_received += size
            self.last_bytes[worker] = size
            fault = self._wire.fault(self._inbox[worker], size, self._expected, worker)
            if fault is not None:
                self._reject(worker, fault)
            elif int(self._wire.header(self._inbox[worker])["kind"]) == wire.BYE:
                self._state[worker] = GONE
            else:
                self._state[worker] = HEARD
                arrived.append((worker, self._inbox[worker]))
        return arrived

    @property
    def _expected(self) -> dict[int, int]:
        empty = wire.HEADER.itemsize
        return {wire.RESULT: self._wire.result_bytes, wire.READY: empty, wire.BYE: empty}

    def _reject(self, worker: int, fault: str) -> None:
        self.outcomes["rejected"] += 1
        if self._warned < 10:  # a broken peer would flood the log
            self._warned += 1
            warnings.warn(f"dropped a message of worker {worker}: {fault}", RuntimeWarning, stacklevel=2)
        self._receives[worker] = self._listen(worker)

    def release(self, worker: int) -> None:
        """The message in the inbox is done with: the worker owes nothing, and its next message may come."""
        self._state[worker] = IDLE
        self._receives[worker] = self._listen(worker)

    def offer(self, iteration: int, parameters: Array) -> None:
        """Begin an iteration: the new model goes to every worker that owes nothing."""
        # A model still on its way stays as it is. A worker has one at most, so there are never more than workers + 1.
        free = [model for model in self._models if model.delivered()]
        if free:
            self._model = free[0]
        else:
            self._model = _Outgoing(self._wire.model_buffer())
            self._models.append(self._model)
        self._iteration = iteration
        self._wire.write_header(self._model.buffer, wire.MODEL, 0, iteration)
        self._wire.parameters(self._model.buffer)[:] = parameters
        for worker, state in enumerate(self._state):
            if state == IDLE:
                self.send_newest(worker)

    def send_newest(self, worker: int) -> None:
        """Send the newest model to a worker that owes nothing."""
        self._state[worker] = BUSY
        self._given[worker] = self._iteration
        self.sent_at[worker] = time.perf_counter()
        self.bytes_sent += self._model.buffer.nbytes
        self._model.send(self._comm, worker, wire.TAG_MODEL)

    def conclude(self) -> None:
        """End an iteration: inboxes are free again, and who still works on it is told that it is over."""
        behind = [w for w, state in enumerate(self._state) if state == BUSY and self._given[w] == self._iteration]
        self._notify(wire.SKIP, behind)
        for worker, state in enumerate(self._state):
            if state == HEARD:
                self.release(worker)

    def _notify(self, kind: int, workers: list[int]) -> None:
        self._notices = [notice for notice in self._notices if not notice.delivered()]
        if workers:
            notice = _Outgoing(self._wire.write_header(self._wire.control_buffer(), kind, 0, self._iteration))
            for worker in workers:
                self.bytes_sent += notice.buffer.nbytes
                notice.send(self._comm, worker, wire.TAG_CONTROL)
            self._notices.append(notice)

    def stop(self, poller: Poller) -> tuple[int, ...]:
        """Tell every worker that the run is over, and wait for the last message of each, but not for ever."""
        self._notify(wire.STOP, list(range(len(self._state))))
        end = time.perf_counter() + STOP_SECONDS
        poller.restart()
        while any(state != GONE for state in self._state) and time.perf_counter() < end:
            for worker, _ in self.arrivals():
                self.release(worker)
            poller.pause()
        silent = tuple(worker for worker, state in enumerate(self._state) if state != GONE)
        if not silent:
            poller.until(lambda: all(sent.delivered() for sent in (*self._models, *self._notices)))
        return silent
