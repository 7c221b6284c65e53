"""A worker: waits for a model, differentiates its partitions, sends one coded message.

It works for the newest model it knows of. Between partitions it looks whether the master still wants the result; if
not it abandons the work and asks for the newest model, so a straggler never sends what can no longer be used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from fastgc import GradientCode
from mpi_runner import wire
from mpi_runner.delays import Delay, own_speed
from mpi_runner.models import Model, Partition, gradient_and_loss
from mpi_runner.randomness import Sampler
from mpi_runner.transport import Poller, wait
from mpi_runner.wire import Spent, Wire

MASTER = 0
LONGEST_SLEEP = 0.01  # seconds until an injected delay notices that the run is over


class Worker:
    """One worker of a run.

    Parameters
    ----------
    comm : MPI.Intracomm
        Rank 0 is the master, rank i + 1 worker i.
    scheme : GradientCode
    model : Model
    partitions : sequence of Partition
        Those of ``scheme.assignment[worker]``, in that order.
    delay : Delay
        Injected: a share of computing's after each partition, sending's before the message.
    seed : int
        Of the delay.
    sampler : Sampler
        Chooses what of each partition is differentiated in an iteration.
    poller : Poller
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        scheme: GradientCode,
        model: Model,
        partitions: Sequence[Partition],
        delay: Delay,
        seed: int,
        sampler: Sampler,
        poller: Poller,
    ) -> None:
        self._comm = comm
        self._number = comm.Get_rank() - 1
        self._scheme = scheme
        self._model = model
        self._partitions = dict(zip(scheme.assignment[self._number], partitions, strict=True))
        self._delay = delay
        self._seed = seed
        self._speed = own_speed()
        self._sampler = sampler
        self._poller = poller
        initial = model.initial()
        length, dtype = len(initial), initial.dtype
        self._wire = Wire(scheme, length, dtype)
        self._model_in = self._wire.model_buffer()
        self._control_in = self._wire.control_buffer()
        # Messages are made where they are sent from.
        self._result_out = self._wire.result_buffer()
        gradient, statistics = self._wire.gradient(self._result_out), self._wire.statistics(self._result_out)
        self._gradient_encoder = scheme.encoder(self._number, length, dtype, gradient)
        self._statistics_encoder = scheme.encoder(self._number, wire.STATISTICS, np.float64, statistics)
        self._sent: MPI.Request = MPI.REQUEST_NULL
        self._over = -1  # the newest iteration that the master has said is over
        self._stopped = False

    def run(self) -> None:
        """Work until the master says stop."""
        self._await_control()
        self._await_model()
        self._send(wire.READY, -1)
        while True:
            self._poller.until(lambda: self._model_received.Test() or self._told_to_stop())
            if self._stopped:
                break
            iteration = int(self._wire.header(self._model_in)["iteration"])
            done, spent = self._compute(iteration)
            self._await_model()  # before the answer: the next model finds its place ready
            self._send(wire.RESULT if done else wire.READY, iteration, spent)
        self._model_received.Cancel()  # in vain where a model is on its way: it came before STOP, and is received
        wait(self._model_received, self._poller)
        self._send(wire.BYE, -1)
        wait(self._sent, self._poller)

    def _compute(self, iteration: int) -> tuple[bool, Spent]:
        """Fill the result buffer; whether that was done, and not abandoned half-way, and the time spent on it."""
        load = len(self._partitions)
        key = (self._seed, self._number, iteration)
        away = self._delay.computing.whole
        delay = self._delay.compute_seconds(*key, load, self._scheme.workers) / (1.0 if away else self._speed)
        parameters = self._wire.parameters(self._model_in)
        wait(self._sent, self._poller)  # long done: the master has answered it with this model
        self._gradient_encoder.reset()
        self._statistics_encoder.reset()
        slept = self._sleep(delay) if away else 0.0
        computed = encoded = 0.0
        for number, whole in self._partitions.items():
            if self._is_over(iteration):
                return False, Spent(computed, encoded, slept)
            start = time.perf_counter()
            partition = self._sampler.draw(whole, number, iteration)
            gradient, loss = gradient_and_loss(self._model, parameters, partition)
            between = time.perf_counter()
            self._gradient_encoder.add(number, gradient)
            self._statistics_encoder.add(number, np.array([loss, partition.count], np.float64))
            computed += between - start
            encoded += time.perf_counter() - between
            if not away:
                slept += self._sleep(delay / load)
        if not self._is_over(iteration):  # a slow link, as far as anybody can tell: not among the worker's own seconds
            share = self._wire.message_length / self._wire.length
            self._sleep(self._delay.send_seconds(*key, share, self._scheme.workers))
        return not self._is_over(iteration), Spent(computed, encoded, slept)

    def _is_over(self, iteration: int) -> bool:
        return self._told_to_stop() or self._over >= iteration

    def _sleep(self, seconds: float) -> float:
        """Be slow, as if computing, unless the run ends; returns the seconds slept."""
        start = time.perf_counter()
        while (left := start + seconds - time.perf_counter()) > 0 and not self._told_to_stop():
            time.sleep(min(left, LONGEST_SLEEP))
        return time.perf_counter() - start if seconds else 0.0

    def _await_model(self) -> None:
        self._model_received = self._comm.Irecv(self._model_in, source=MASTER, tag=wire.TAG_MODEL)

    def _await_control(self) -> None:
        self._control = self._comm.Irecv(self._control_in, source=MASTER, tag=wire.TAG_CONTROL)

    def _told_to_stop(self) -> bool:
        """Read what the master has said meanwhile; whether the run is over."""
        while not self._stopped and self._control.Test():
            header = self._wire.header(self._control_in)
            if int(header["kind"]) == wire.STOP:
                self._stopped = True
            else:
                self._over = max(self._over, int(header["iteration"]))
                self._await_control()
        return self._stopped

    def _send(self, kind: int, iteration: int, spent: Spent = wire.NOTHING) -> None:
        wait(self._sent, self._poller)
        message = self._wire.write_header(self._result_out, kind, self._number, iteration, spent)
        self._sent = self._comm.Isend(message, dest=MASTER, tag=wire.TAG_RESULT)
