"""A worker: waits for a model, differentiates its partitions, sends one coded message.

It works for the newest model it knows of. Between partitions it looks whether the master still wants the result; if
not it abandons the work and asks for the newest model, so a straggler never sends what can no longer be used. Without
its master it ends.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from fastgc import GradientCode
from fastgc.compression import Codec, ErrorFeedback
from fastgc.streaming import Encoder
from mpi_runner import wire
from mpi_runner.delays import Delay, own_speed
from mpi_runner.models import Model, Partition, gradient_and_loss
from mpi_runner.randomness import Sampler
from mpi_runner.transport import Poller, wait
from mpi_runner.wire import BadMessage, Header, Spent, Wire

Array = npt.NDArray[Any]

MASTER = 0
LONGEST_SLEEP = 0.01  # seconds until an injected delay notices that the run is over


class MasterLost(Exception):
    """Nothing can be sent to the master or come from it: it has died, or the job is being ended."""


class _Coder(NamedTuple):
    """What makes messages of one reduction, in the buffer that all are sent from."""

    gradient: Encoder
    statistics: Encoder
    coded: Array
    """The coded gradient in the type computed with."""
    compressed: Array
    """Its bytes on their way; the same memory where nothing is compressed."""
    compressor: Codec | ErrorFeedback | None


class Worker:
    """One worker of a run.

    Parameters
    ----------
    comm : MPI.Intracomm
        Rank 0 is the master, rank i + 1 worker i.
    scheme : GradientCode
    layout : Wire
        Of the run's messages.
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
        layout: Wire,
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
        self._wire = layout
        self._model_in = self._wire.model_buffer()
        self._control_in = self._wire.control_buffer()
        # Messages are made where they are sent from, unless they are compressed.
        self._result_out = self._wire.result_buffer()
        self._coders = {m: self._coder(m, length, dtype) for m in scheme.reductions}
        self._reduction = scheme.reduction  # that the newest model asks for
        self._answered = -1  # the newest iteration that a coded gradient was sent for
        self._parameters = self._wire.parameters(self._model_in)
        if self._parameters.dtype != dtype:
            self._parameters = np.empty(length, dtype)
        self._sent: MPI.Request = MPI.REQUEST_NULL
        self._over = -1  # the newest iteration that the master has said is over
        self._stopped = False
        self._rejected = 0
        self._status = MPI.Status()

    def _coder(self, reduction: int, length: int, dtype: np.dtype[Any]) -> _Coder:
        scheme, layout = self._scheme.with_reduction(reduction), self._wire
        compressed = layout.gradient(self._result_out, reduction)
        compressor: Codec | ErrorFeedback | None = None
        coded = layout.codec.numbers(compressed)
        if coded is None or coded.dtype != dtype:
            room = layout.message_length(reduction)
            coded = np.empty(room, dtype)
            compressor = ErrorFeedback(layout.codec, room, dtype) if layout.feedback else layout.codec
        statistics = layout.statistics(self._result_out, reduction)
        return _Coder(
            scheme.encoder(self._number, length, dtype, coded),
            scheme.encoder(self._number, wire.STATISTICS, np.float64, statistics),
            coded, compressed, compressor,
        )  # fmt: skip

    def run(self) -> None:
        """Work until the master says stop.

        Raises
        ------
        MasterLost
        """
        try:
            self._work()
        except MPI.Exception as error:
            raise MasterLost(error.Get_error_string()) from None

    def _work(self) -> None:
        self._await_control()
        self._await_model()
        self._send(wire.READY, -1)
        while (iteration := self._next_model()) is not None:
            kind, spent = self._answer(iteration)
            self._await_model()  # before the answer: the next model finds its place ready
            self._send(kind, iteration, spent)
        self._model_received.Cancel()  # in vain where a model is on its way: it came before STOP, and is received
        wait(self._model_received, self._poller)
        self._send(wire.BYE, -1)
        wait(self._sent, self._poller)

    def _next_model(self) -> int | None:
        """Wait for a model; returns its iteration, or None once the run is over."""
        status = MPI.Status()
        while True:
            self._poller.until(lambda: self._model_received.Test(status) or self._told_to_stop())
            if self._stopped:
                return None
            header = self._read(self._model_in[: status.Get_count(MPI.BYTE)], wire.MODEL)
            if header is not None:
                parameters = self._wire.parameters(self._model_in)
                if parameters.dtype != self._parameters.dtype:
                    self._parameters[:] = parameters
                self._settle(header.iteration, header.reduction)
                return header.iteration
            self._await_model()

    def _read(self, message: Array, *kinds: int) -> Header | None:
        """The header of a message of the master's; one that cannot be used is counted, and dropped."""
        try:
            return self._wire.read(message, dict.fromkeys(kinds))
        except BadMessage as fault:
            self._rejected += 1
            warnings.warn(f"worker {self._number} dropped a message: {fault}", RuntimeWarning, stacklevel=2)
            return None

    def _settle(self, iteration: int, reduction: int) -> None:
        """Learn from the model of an iteration whether the last message was used, and the reduction of the next.

        A message that was used is followed by the next iteration's model, always: any other came too late for its own.
        What compressing left out is of the message's own code: under another it is of no use, and dropped.
        """
        compressor = self._coders[self._reduction].compressor
        if isinstance(compressor, ErrorFeedback):
            follows = iteration == self._answered + 1
            compressor.settle(follows and self._wire.was_used(self._model_in, self._number))
            if reduction != self._reduction:
                compressor.reset()
        self._reduction = reduction

    def _answer(self, iteration: int) -> tuple[int, Spent]:
        """Work for the model that has come; returns the kind of the answer and the time spent."""
        done, spent = self._compute(iteration)
        if not done:
            return wire.READY, spent
        coder = self._coders[self._reduction]
        if coder.compressor is not None:
            start = time.perf_counter()
            try:
                coder.compressor.compress(coder.coded, coder.compressed)
            except OverflowError:
                return wire.OVERFLOW, spent
            spent = spent._replace(encode=spent.encode + time.perf_counter() - start)
        self._answered = iteration
        return wire.RESULT, spent

    def _compute(self, iteration: int) -> tuple[bool, Spent]:
        """Fill the result buffer; whether that was done, and not abandoned half-way, and the time spent on it."""
        load = len(self._partitions)
        key = (self._seed, self._number, iteration)
        away = self._delay.at(iteration).computing.whole
        delay = self._delay.compute_seconds(*key, load, self._scheme.workers) / (1.0 if away else self._speed)
        wait(self._sent, self._poller)  # long done: the master has answered it with this model
        coder = self._coders[self._reduction]
        coder.gradient.reset()
        coder.statistics.reset()
        slept = self._sleep(delay) if away else 0.0
        computed = encoded = 0.0
        for number, whole in self._partitions.items():
            if self._is_over(iteration):
                return False, Spent(computed, encoded, slept)
            start = time.perf_counter()
            partition = self._sampler.draw(whole, number, iteration)
            gradient, loss = gradient_and_loss(self._model, self._parameters, partition)
            between = time.perf_counter()
            coder.gradient.add(number, gradient)
            coder.statistics.add(number, np.array([loss, partition.count], np.float64))
            computed += between - start
            encoded += time.perf_counter() - between
            if not away:
                slept += self._sleep(delay / load)
        over = self._is_over(iteration)
        share = coder.compressed.nbytes / self._parameters.nbytes
        if not over and (sending := self._delay.send_seconds(*key, share, self._scheme.workers)) > 0:
            # A slow link, as far as anybody can tell: not among the worker's own seconds, and no message is recalled.
            self._sleep(sending)
            over = self._told_to_stop()
        return not over, Spent(computed, encoded, slept)

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
        while not self._stopped and self._control.Test(self._status):
            message = self._control_in[: self._status.Get_count(MPI.BYTE)]
            header = self._read(message, wire.SKIP, wire.STOP)
            if header is not None and header.kind == wire.STOP:
                self._stopped = True
                break
            if header is not None:
                self._over = max(self._over, header.iteration)
            self._await_control()
        return self._stopped

    def _send(self, kind: int, iteration: int, spent: Spent = wire.NOTHING) -> None:
        wait(self._sent, self._poller)
        message = self._wire.seal(
            self._result_out, kind, iteration, worker=self._number, spent=spent, rejected=self._rejected,
            reduction=self._reduction,
        )  # fmt: skip
        self._sent = self._comm.Isend(message, dest=MASTER, tag=wire.TAG_RESULT)
