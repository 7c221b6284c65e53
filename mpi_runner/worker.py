"""A worker: waits for a model, differentiates its partitions, sends a coded message, or one after each part of them.

It works for the newest model it knows of. Between partitions it looks whether the master still wants the result; if
not it abandons the work and asks for the newest model, so a straggler never sends what can no longer be used. Without
its master it ends.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from fastgc import GradientCode
from fastgc.compression import Codec, ErrorFeedback
from fastgc.streaming import Encoder
from mpi_runner import wire
from mpi_runner.bells import Bells
from mpi_runner.delays import Delay, own_speed
from mpi_runner.models import Model, Partition, gradient_and_loss
from mpi_runner.randomness import Sampler
from mpi_runner.transport import Poller, wait
from mpi_runner.wire import BadMessage, Header, Spent, Wire

Array = npt.NDArray[Any]

MASTER = 0
LONGEST_SLEEP = 0.01  # seconds until an injected delay notices that the run is over
BETWEEN_LOOKS = 0.5e-3
"""Seconds of work until a worker looks again whether its result is still wanted: on a core that ranks share, a look
lets the others run first, and their memory takes the place of this one's in the caches."""


class MasterLost(Exception):
    """Nothing can be sent to the master or come from it: it has died, or the job is being ended."""


class _Coder(NamedTuple):
    """What makes messages of one reduction, in a buffer that they are sent from."""

    gradient: Encoder
    figures: Array
    """(load, 2): loss and number of examples of each partition."""
    statistics: Callable[[Array], object]
    """Codes them."""
    coded: Array
    """The coded gradient in the type computed with."""
    compressed: Array
    """Its bytes on their way; the same memory where nothing is compressed."""
    compressor: Codec | ErrorFeedback | None

    def reset(self) -> None:
        """Begin a message."""
        self.gradient.reset()

    def add(self, turn: int, partition: int, gradient: Array, loss: float, count: int) -> None:
        """Add the gradient and statistics of a partition, this worker's `turn`-th."""
        self.gradient.add(partition, gradient)
        self.figures[turn] = loss, count

    def complete(self) -> None:
        """Bring the message into the form that it is sent in; OverflowError where it does not fit."""
        self.statistics(self.figures)
        if self.compressor is not None:
            self.compressor.compress(self.coded, self.compressed)


class _Outbox:
    """A place to make messages in, of any reduction, and to send them from."""

    def __init__(self, scheme: GradientCode, worker: int, layout: Wire, parameters: Array) -> None:
        self.buffer = layout.result_buffer()
        self.coders = {m: self._coder(scheme, worker, layout, parameters, m) for m in scheme.reductions}
        self.sent: MPI.Request = MPI.REQUEST_NULL

    def _coder(self, scheme: GradientCode, worker: int, layout: Wire, parameters: Array, reduction: int) -> _Coder:
        scheme, length, dtype = scheme.with_reduction(reduction), len(parameters), parameters.dtype
        compressed = layout.gradient(self.buffer, reduction)
        compressor: Codec | ErrorFeedback | None = None
        coded = layout.codec.numbers(compressed)
        if coded is None or coded.dtype != dtype:
            room = layout.message_length(reduction)
            coded = np.empty(room, dtype)
            compressor = ErrorFeedback(layout.codec, room, dtype) if layout.feedback else layout.codec
        return _Coder(
            scheme.encoder(worker, length, dtype, coded),
            np.zeros((len(scheme.assignment[worker]), wire.STATISTICS)),
            partial(scheme.encode, worker, out=layout.statistics(self.buffer, reduction)),
            coded, compressed, compressor,
        )  # fmt: skip


class _Answer(NamedTuple):
    """A message for a model, ready to go."""

    kind: int
    outbox: _Outbox
    part: int = 0


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
    partitions : mapping from int to Partition
        This worker's, by their numbers under ``scheme.in_parts(layout.parts)``.
    delay : Delay
        Injected: a share of computing's after each partition, sending's before each message.
    seed : int
        Of the delay.
    sampler : Sampler
        Chooses what of each partition is differentiated in an iteration.
    poller : Poller
    bells : Bells, optional
        That this rank and its master wake each other by.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        scheme: GradientCode,
        layout: Wire,
        model: Model,
        partitions: Mapping[int, Partition],
        delay: Delay,
        seed: int,
        sampler: Sampler,
        poller: Poller,
        bells: Bells | None = None,
    ) -> None:
        self._comm = comm
        self._number = comm.Get_rank() - 1
        self._scheme = scheme
        self._model = model
        self._partitions = partitions
        self._delay = delay
        self._seed = seed
        self._speed = own_speed()
        self._sampler = sampler
        self._poller = poller
        self._until_told = poller if bells is None else Poller(bell=bells)
        self._bells = bells
        initial = model.initial()
        self._wire = layout
        self._model_in = self._wire.model_buffer()
        self._control_in = self._wire.control_buffer()
        self._parameters = self._wire.parameters(self._model_in)
        if self._parameters.dtype != initial.dtype:
            self._parameters = np.empty_like(initial)
        # The next part is worked on while a message is on its way: two places, whatever the number of parts.
        self._order = scheme.part_order(self._number, layout.parts)
        self._outboxes = [_Outbox(scheme, self._number, layout, initial) for _ in self._order[:2]]
        self._reduction = scheme.reduction  # that the newest model asks for
        self._answered = -1  # the newest iteration that the last of an answer was sent for
        self._over = -1  # the newest iteration that the master has said is over
        self._stopped = False
        self._looked = 0.0  # when it was last seen what the master has said meanwhile
        self._rejected = 0
        self._statuses = [MPI.Status(), MPI.Status()]

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
        self._send(self._note(wire.READY), -1)
        while (iteration := self._next_model()) is not None:
            answer, spent = self._answer(iteration)
            self._await_model()  # before the answer: the next model finds its place ready
            self._send(answer, iteration, spent)
        if self._model_received:  # no model has come together with STOP
            self._model_received.Cancel()  # in vain where one is on its way: it was sent before STOP, and is received
        wait(self._model_received, self._poller)
        self._send(self._note(wire.BYE), -1)
        for outbox in self._outboxes:
            wait(outbox.sent, self._poller)

    def _next_model(self) -> int | None:
        """Wait for a model; returns its iteration, or None once the run is over."""
        while True:
            self._until_told.until(self._is_model_or_stop_there)
            if self._stopped:
                return None
            self._looked = time.perf_counter()
            header = self._read(self._model_in[: self._statuses[0].Get_count(MPI.BYTE)], wire.MODEL)
            if header is not None:
                parameters = self._wire.parameters(self._model_in)
                if parameters.dtype != self._parameters.dtype:
                    self._parameters[:] = parameters
                self._settle(header.iteration, header.reduction)
                return header.iteration
            self._await_model()

    def _is_model_or_stop_there(self) -> bool:
        """Whether a model has come, or is awaited no more; a look at both receives by one call."""
        came = MPI.Request.Testsome([self._model_received, self._control], self._statuses) or []
        if 1 in came:
            self._hear(self._statuses[came.index(1)])
            self._told_to_stop()  # more may have come behind it
        return self._stopped or 0 in came

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
        (first, *_) = self._outboxes  # all there is with error feedback
        compressor = first.coders[self._reduction].compressor
        if isinstance(compressor, ErrorFeedback):
            follows = iteration == self._answered + 1
            compressor.settle(follows and self._wire.was_used(self._model_in, self._number))
            if reduction != self._reduction:
                compressor.reset()
        self._reduction = reduction

    def _answer(self, iteration: int) -> tuple[_Answer, Spent]:
        """Work for the model that has come, and send all parts of the answer but the last; returns that, and the time
        spent on all."""
        delay = self._delay.at(iteration)
        slept = 0.0
        if delay.computing.whole:
            slept = self._sleep(delay.compute_seconds(self._seed, self._number, iteration, 1, self._scheme.workers))
        spent = Spent(delay=slept)
        for turn, part in enumerate(self._order):
            outbox = self._outboxes[turn % len(self._outboxes)]
            wait(outbox.sent, self._poller)
            coder = outbox.coders[self._reduction]
            done, spent = self._compute(coder, iteration, part, spent)
            if not done:
                break
            start = time.perf_counter()
            try:
                coder.complete()
            except OverflowError:
                return self._note(wire.OVERFLOW), spent
            spent = Spent(spent.compute, spent.encode + time.perf_counter() - start, spent.delay)
            if turn + 1 == len(self._order):
                self._answered = iteration
                return _Answer(wire.RESULT, outbox, part), spent
            self._send(_Answer(wire.PART, outbox, part), iteration, spent)
        return self._note(wire.READY), spent

    def _compute(self, coder: _Coder, iteration: int, part: int, spent: Spent) -> tuple[bool, Spent]:
        """Make the message of a part; whether that was done, and not abandoned half-way, and the time spent so far."""
        held, parts = self._scheme.assignment[self._number], self._wire.parts
        key, delay = (self._seed, self._number, iteration), self._delay.at(iteration)
        pause = 0.0
        if not delay.computing.whole:
            load = len(held) * self._scheme.workers / self._scheme.partitions
            whole = delay.compute_seconds(*key, load, self._scheme.workers) / self._speed
            pause = whole / (len(held) * parts)
        computed, encoded, slept = spent
        coder.reset()
        for turn, partition in enumerate(held):
            if self._is_over(iteration):
                return False, Spent(computed, encoded, slept)
            start = time.perf_counter()
            number = partition * parts + part
            drawn = self._sampler.draw(self._partitions[number], number, iteration)
            gradient, loss = gradient_and_loss(self._model, self._parameters, drawn)
            between = time.perf_counter()
            coder.add(turn, partition, gradient, loss, drawn.count)
            computed += between - start
            encoded += time.perf_counter() - between
            if pause:
                slept += self._sleep(pause)
        over = self._is_over(iteration)
        share = coder.compressed.nbytes / self._parameters.nbytes
        if not over and (sending := delay.send_seconds(*key, share, self._scheme.workers)) > 0:
            # A slow link, as far as anybody can tell: not among the worker's own seconds, and no message is recalled.
            self._sleep(sending)
            over = self._told_to_stop()
        return not over, Spent(computed, encoded, slept)

    def _is_over(self, iteration: int) -> bool:
        if time.perf_counter() - self._looked > BETWEEN_LOOKS:
            self._told_to_stop()
        return self._stopped or self._over >= iteration

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
        status = self._statuses[1]
        while not self._stopped and self._control.Test(status):
            self._hear(status)
        self._looked = time.perf_counter()
        return self._stopped

    def _hear(self, status: MPI.Status) -> None:
        """Read the control message that has come."""
        header = self._read(self._control_in[: status.Get_count(MPI.BYTE)], wire.SKIP, wire.STOP)
        if header is not None and header.kind == wire.STOP:
            self._stopped = True
            return
        if header is not None:
            self._over = max(self._over, header.iteration)
        self._await_control()

    def _note(self, kind: int) -> _Answer:
        """A message that is a header alone."""
        done = [outbox for outbox in self._outboxes if outbox.sent.Test()]
        return _Answer(kind, (done or self._outboxes)[0])

    def _send(self, answer: _Answer, iteration: int, spent: Spent = wire.NOTHING) -> None:
        kind, outbox, part = answer
        wait(outbox.sent, self._poller)
        message = self._wire.seal(
            outbox.buffer, kind, iteration, worker=self._number, spent=spent, rejected=self._rejected,
            reduction=self._reduction, part=part,
        )  # fmt: skip
        outbox.sent = self._comm.Isend(message, dest=MASTER, tag=wire.TAG_RESULT)
        if self._bells is not None:
            self._bells.ring(MASTER)
