"""The master: sends models, takes coded messages as they come, steps as soon as the gradient can be decoded.

Every worker has at most one model to work on, and owes one message for it. A worker that owes a message of an iteration
that is over is told so once, and gets the newest model when it answers: nothing queues up behind a straggler, and the
master waits for no one in particular. A worker that dies or hangs is one more straggler, for good.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from fastgc import GradientCode
from mpi_runner import processes, wire
from mpi_runner.adaptive import Answer, ReductionPolicy, Switch
from mpi_runner.bells import Bells
from mpi_runner.faults import CannotDecode, HangDeadline, Loss
from mpi_runner.gathering import Gathering, Taken
from mpi_runner.optimizers import Optimizer, mean_gradient
from mpi_runner.peers import Peers
from mpi_runner.processes import Identity
from mpi_runner.records import Recorded, RunRecords, named_parts
from mpi_runner.transport import Poller
from mpi_runner.wire import Header, Wire

Array = npt.NDArray[Any]

END_SECONDS = 1.0  # a killed process is gone in milliseconds


class Interrupted(Exception):
    """A signal asks the run to end."""

    def __init__(self, number: int, iterations: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name} after {iterations} iterations")
        self.number = number


class Master:
    """The master of a run.

    Parameters
    ----------
    comm : MPI.Intracomm
        Rank 0 is the master, rank i + 1 worker i.
    scheme : GradientCode
    layout : Wire
        Of the run's messages.
    optimizer : Optimizer
    l2 : float
        Weight of half the squared norm of the parameters, added to the mean loss.
    records : RunRecords
    poller : Poller
    identities : sequence of Identity
        Of the workers.
    deadline : HangDeadline
    gathering : Gathering
        Of the messages of each iteration, by their numbers under ``scheme.in_parts(layout.parts)``.
    interrupted : callable
        Returns the number of a signal that asks the run to end, or None.
    with_loss : bool
        Whether the workers' model gives losses; without, the recorded ones are NaN.
    policy : ReductionPolicy, optional
        Chooses the reduction; by default it is the scheme's own.
    bells : Bells, optional
        That the ranks wake each other by.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        scheme: GradientCode,
        layout: Wire,
        optimizer: Optimizer,
        l2: float,
        records: RunRecords,
        poller: Poller,
        identities: Sequence[Identity],
        deadline: HangDeadline,
        gathering: Gathering,
        interrupted: Callable[[], int | None],
        with_loss: bool = True,
        policy: ReductionPolicy | None = None,
        bells: Bells | None = None,
    ) -> None:
        self._scheme = scheme
        self._wire = layout
        self._optimizer = optimizer
        self._l2 = l2
        self._records = records
        self._poller = poller if bells is None else Poller(bell=bells)
        self._identities = identities
        self._interrupted = interrupted
        self._with_loss = with_loss
        parameters = optimizer.parameters
        self._gathering = gathering
        self._widened: list[Array] = []  # coded gradients in the type computed with, where messages are compressed
        if layout.codec.name != parameters.dtype.name:
            longest, messages = layout.message_length(min(scheme.reductions)), scheme.workers * layout.parts
            self._widened = [np.empty(longest, parameters.dtype) for _ in range(messages)]
        self._peers = Peers(comm, layout, scheme.workers, deadline, bells)
        self._overflowed: list[int] = []
        self._used: Sequence[int] = ()  # whose messages were used in the iteration before
        self._recorded: Recorded | None = None
        self._policy = policy
        self._reduction = scheme.reduction  # of this iteration
        self._retreat: int | None = None  # to this one, in the midst of it
        self._reductions: Counter[int] = Counter()
        self._switches = 0
        self._loss = float("nan")
        self._estimates = 0  # iterations done here with an approximate gradient
        self.iterations = 0
        """Done so far."""
        self._epoch = time.perf_counter()
        self._sending = self._receiving = 0.0  # seconds of this iteration

    def await_ready(self) -> None:
        """Wait until every worker has loaded its data.

        Raises
        ------
        CannotDecode, Interrupted
            As `run`.
        """
        self._poller.restart()
        while self._peers.loading:
            arrived = self._peers.arrivals()
            for worker, _, _ in arrived:
                self._peers.release(worker)
            self._attend(0)
            if not arrived:
                self._poller.pause()
        self._peers.begin()

    def run(
        self,
        iterations: int,
        evaluate: Callable[[int], float | None],
        after_step: Callable[[int, float, float, float | None], object],
        *,
        done: int = 0,
        elapsed: float = 0.0,
        recorded: Mapping[int, Recorded] | None = None,
    ) -> None:
        """Train; the workers are then still there.

        Parameters
        ----------
        iterations : int
            In all, those done before included.
        evaluate : callable
            Called with the iteration's number from 1 after its step; returns the model's score if it is due.
        after_step : callable
            Called with the iteration's number, its loss, seconds and score, once it is recorded. The time of both
            counts to no iteration.
        done : int
            Iterations that a run which goes on had done.
        elapsed : float
            Seconds that they took.
        recorded : mapping, optional
            For each iteration, from 0, its reduction and the messages that are used, and no others. The iteration waits
            for them all.

        Raises
        ------
        CannotDecode
            As soon as the workers that are left do not determine the gradient.
        Interrupted
            By a signal. In both cases the optimiser is as the last complete iteration has left it.
        """
        self._epoch = time.perf_counter() - elapsed
        self.iterations = done
        for iteration in range(done, iterations):
            self._recorded = None if recorded is None else recorded[iteration]
            self._iterate(iteration, evaluate, after_step)

    def figures(self) -> dict[str, Any]:
        """The run's figures up to now."""
        adapted = {
            "reductions": {str(m): count for m, count in sorted(self._reductions.items())},
            "switches": self._switches,
        }
        return (adapted if len(self._scheme.reductions) > 1 else {}) | {
            "iterations": self.iterations,
            "approximate_iterations": self._estimates,
            "final_loss": self._loss,
            "total_seconds": self.elapsed,
            "bytes_received": self._peers.bytes_received,
            "bytes_sent": self._peers.bytes_sent,
            "messages": self._peers.counts,
            "lost_workers": self.lost_workers,
        }

    @property
    def elapsed(self) -> float:
        """Seconds since the first model was sent."""
        return time.perf_counter() - self._epoch

    def stop(self) -> bool:
        """Stop the workers, and end those of this host that do not; whether all have ended or are about to."""
        self._peers.stop(self._poller)
        for loss in self._peers.take_losses():
            self._record_loss(loss, self.iterations)
        lost = [self._identities[worker] for worker in self.lost_workers]
        processes.await_end(lost, END_SECONDS)
        here = processes.own_identity().host
        return all(identity.host == here for identity in lost)

    @property
    def lost_workers(self) -> list[int]:
        """Those that are no longer counted on, in order."""
        return sorted(set(range(self._scheme.workers)) - set(self._peers.alive))

    def _iterate(
        self,
        iteration: int,
        evaluate: Callable[[int], float | None],
        after_step: Callable[[int, float, float, float | None], object],
    ) -> None:
        received_before, sent_before = self._peers.bytes_received, self._peers.bytes_sent
        start = time.perf_counter()
        if self._policy is not None:
            self._switched(self._policy.limit(self._peers.alive))
            self._reduction = self._policy.reduction
        elif self._recorded is not None:
            self._reduction = self._recorded.reduction
        self._sending = self._receiving = 0.0
        self._begin(iteration)
        if self._policy is not None:  # while workers compute
            self._switched(self._policy.choose(self._peers.alive))
        self._poller.restart()
        taken, ready = self._taken(iteration)
        decoded = time.perf_counter()
        loss = self._regularized(taken.loss / taken.examples) if self._with_loss else float("nan")
        self._loss = loss
        self._estimates += taken.error > 0
        self._used = taken.survivors
        self._optimizer.update(mean_gradient(taken.gradient, taken.examples, self._l2, self._optimizer.parameters))
        end = time.perf_counter()
        for worker in self._workers_of(taken.corrupt):
            self._peers.quarantine(worker, "its message contradicts the others")
        self._peers.conclude()
        self._reductions[self._reduction] += 1
        if self._policy is not None:
            self._policy.conclude(end - start, end - ready)
        self.iterations = iteration + 1
        score = evaluate(iteration + 1)
        self._records.iteration(
            {
                "iteration": iteration + 1,
                "start": start - self._epoch,
                "seconds": end - start,
                "send": self._sending,
                "wait": ready - start - self._sending - self._receiving,
                "receive": self._receiving,
                "decode": decoded - ready,
                "update": end - decoded,
                "loss": loss,
                "survivors": " ".join(map(str, self._workers_of(taken.survivors))),
                "parts": named_parts(taken.survivors, self._wire.parts),
                "approximate": int(taken.error > 0),
                "approximation_error": taken.error,
                "bytes_received": self._peers.bytes_received - received_before,
                "bytes_sent": self._peers.bytes_sent - sent_before,
                "reduction": self._reduction,
                "score": "" if score is None else score,
            }
        )
        after_step(iteration + 1, loss, end - start, score)

    def _begin(self, iteration: int) -> None:
        """Begin an iteration, or begin it anew under another reduction."""
        self._retreat = None
        self._overflowed.clear()
        self._gathering.begin(None if self._recorded is None else self._recorded.survivors, self._reduction)
        if self._policy is not None:
            self._policy.begin(iteration)
        if self.lost_workers or self._recorded is not None:
            self._check_decodable(iteration)
        start = time.perf_counter()
        self._peers.offer(iteration, self._optimizer.parameters, self._used, self._reduction)
        self._sending += time.perf_counter() - start

    def _switched(self, switch: Switch | None) -> None:
        if switch is not None:
            self._switches += 1
            self._records.switch({**switch._asdict(), "iteration": switch.iteration + 1})

    def _begin_anew(self, iteration: int, reduction: int) -> None:
        """Workers are lost, and what is left needs a smaller reduction: all that has come is stale."""
        assert self._policy is not None
        self._switched(self._policy.force(reduction, "too few workers are left for this iteration"))
        self._reduction = reduction
        self._peers.free()
        self._begin(iteration)

    def _taken(self, iteration: int) -> tuple[Taken, float]:
        """The iteration's gradient, as soon as it can be taken, and when that was."""
        while True:
            while self._retreat is not None or not self._gathering.ready(self._left):
                if self._retreat is not None:
                    self._begin_anew(iteration, self._retreat)
                if not self._take(iteration):
                    self._attend(iteration)
                    self._poller.pause(self._gathering.seconds_left)
            ready = time.perf_counter()
            taken = self._gathering.take()
            if taken is not None:
                return taken, ready
            self._check_decodable(iteration)

    def _regularized(self, loss: float) -> float:
        """The mean loss with its L2 term, at the parameters of this iteration."""
        if not self._l2:
            return loss
        parameters = self._optimizer.parameters
        return loss + 0.5 * self._l2 * float(np.einsum("i,i->", parameters, parameters, dtype=np.float64))

    def _take(self, iteration: int) -> bool:
        """Handle what has come; whether anything has."""
        begun, sending = time.perf_counter(), self._sending
        arrived = self._peers.arrivals()
        for worker, header, buffer in arrived:
            number = worker * self._wire.parts + header.part
            outcome = self._outcome(number, header, iteration)
            self._record(worker, header, outcome)
            if self._policy is not None and header.iteration >= 0:
                self._policy.note(self._answer(worker, header))
            last = header.kind != wire.PART
            if last:
                self._gathering.note(begun - self._peers.sent_at[worker])
            if outcome == "used":
                gradient = self._coded_gradient(number, buffer)
                self._gathering.add(number, gradient, self._wire.statistics(buffer, self._reduction))
            elif outcome == "overflow":
                self._overflowed.append(worker)
                self._check_decodable(iteration)
            elif outcome != "unused":
                self._peers.release(worker)
                if last:
                    released = time.perf_counter()
                    self._peers.send_newest(worker)
                    self._sending += time.perf_counter() - released
        if arrived:
            self._poller.restart()
            self._receiving += time.perf_counter() - begun - (self._sending - sending)
        return bool(arrived)

    def _outcome(self, number: int, header: Header, iteration: int) -> str:
        if header.kind == wire.READY:
            return "abandoned"
        if (header.iteration, header.reduction) != (iteration, self._reduction):
            return "late"
        if header.kind == wire.OVERFLOW:
            return "overflow"
        return "used" if self._recorded is None or number in self._recorded.survivors else "unused"

    def _answer(self, worker: int, header: Header) -> Answer:
        own = header.compute_seconds + header.encode_seconds + header.delay_seconds
        sent, complete = self._peers.sent_at[worker], header.kind == wire.RESULT
        return Answer(header.iteration, worker, header.reduction, sent, time.perf_counter(), own, complete)

    def _left(self) -> set[int]:
        """The messages that have come in this iteration or may still do so."""
        parts = self._wire.parts
        able = set(self._peers.alive) - set(self._overflowed)
        return {worker * parts + part for worker in able for part in range(parts)} | set(self._gathering.survivors)

    def _workers_of(self, messages: Sequence[int]) -> list[int]:
        return sorted({number // self._wire.parts for number in messages})

    def _coded_gradient(self, number: int, buffer: Array) -> Array:
        layout, data = self._wire, self._wire.gradient(buffer, self._reduction)
        if self._widened:
            length = layout.message_length(self._reduction)
            return layout.codec.decompress(data, length, self._widened[number][:length])
        gradient = layout.codec.numbers(data)
        assert gradient is not None  # they are of the type computed with
        return gradient

    def _attend(self, iteration: int) -> None:
        """Look after what else may have happened: lost workers, signals."""
        if (number := self._interrupted()) is not None:
            raise Interrupted(number, self.iterations)
        self._records.settle()
        losses = self._peers.take_losses()
        for loss in losses:
            self._record_loss(loss, iteration)
        if losses:
            self._check_decodable(iteration)

    def _record_loss(self, loss: Loss, iteration: int) -> None:
        """Write down that a worker is lost, and see to it that it is gone, or idle until the end."""
        identity = self._identities[loss.worker]
        if loss.kind != "corrupt":
            processes.kill(identity)
        self._records.fault(
            {
                "seconds": time.perf_counter() - self._epoch,
                "iteration": iteration + 1,
                "worker": loss.worker,
                "host": identity.host,
                "pid": identity.pid,
                "kind": loss.kind,
                "reason": loss.reason,
            }
        )
        where = f"worker {loss.worker} ({identity.host}, pid {identity.pid})"
        warnings.warn(f"{where} {loss.kind} in iteration {iteration + 1}: {loss.reason}", RuntimeWarning, stacklevel=2)

    def _check_decodable(self, iteration: int) -> None:
        """Raise CannotDecode where the messages that are there or may still come are not enough for this iteration."""
        if self._gathering.suffices(self._left()):
            return
        if (smaller := self._smaller()) is not None:
            self._retreat = smaller
            return
        said = [self._gathering.obstacle] if self._gathering.obstacle else []
        if self.lost_workers:
            said.append(f"workers {_names(self.lost_workers)} are lost")
        if self._overflowed:
            said.append(f"the gradients of workers {_names(self._overflowed)} overflow what messages can hold")
        raise CannotDecode(
            f"iteration {iteration + 1} cannot be completed under {self._scheme.name}: {' and '.join(said)}"
        )

    def _smaller(self) -> int | None:
        """The largest reduction below this one that the workers which are there determine the gradient under."""
        if self._policy is None:
            return None
        alive = self._peers.alive
        for m in reversed([m for m in self._scheme.reductions if m < self._reduction]):
            if alive and self._scheme.with_reduction(m).is_decodable(alive):
                return m
        return None

    def _record(self, worker: int, header: Header, outcome: str) -> None:
        self._peers.outcomes[outcome] += 1
        self._records.arrival(
            {
                "iteration": header.iteration + 1,
                "worker": worker,
                "sent": self._peers.sent_at[worker] - self._epoch,
                "arrived": time.perf_counter() - self._epoch,
                "compute": header.compute_seconds,
                "encode": header.encode_seconds,
                "delay": header.delay_seconds,
                "bytes": self._peers.last_bytes[worker],
                "part": header.part,
                "more": int(header.kind == wire.PART),
                "outcome": outcome,
                "reduction": header.reduction,
            }
        )


def _names(workers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(workers)))
