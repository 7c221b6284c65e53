"""The master's side of every worker: who owes a message, who is lost, and whose buffers are in whose hands."""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import Any

import numpy.typing as npt
from mpi4py import MPI

from mpi_runner import wire
from mpi_runner.faults import HangDeadline, Loss
from mpi_runner.transport import Poller
from mpi_runner.wire import Wire

Array = npt.NDArray[Any]

STOP_SECONDS = 3.0
"""A worker that computes has to finish its partition first; one that does not answer by then is ended."""
WARNINGS = 10
"""Of dropped messages: a broken peer would flood the log. All are counted."""

IDLE, BUSY, HEARD, GONE, LOST = "idle", "busy", "heard", "gone", "lost"
OUTCOMES = ("used", "unused", "late", "abandoned", "overflow", "rejected")


class Peers:
    """All workers, as their master sees them.

    Parameters
    ----------
    comm : MPI.Intracomm
        Rank i + 1 is worker i.
    layout : Wire
    workers : int
    deadline : HangDeadline
        For answers to models.
    """

    def __init__(self, comm: MPI.Intracomm, layout: Wire, workers: int, deadline: HangDeadline) -> None:
        self._comm = comm
        self._wire = layout
        self._deadline = HangDeadline()  # loading data has nothing to do with how long an iteration takes
        self._deadline_of_answers = deadline
        self._state = [BUSY] * workers  # each owes its first READY
        self._given = [-1] * workers  # the iteration of each worker's newest model
        self._inbox = [layout.result_buffer() for _ in range(workers)]
        self._receives = [self._listen(worker) for worker in range(workers)]
        self._status = MPI.Status()
        self._model = _Outgoing(layout.model_buffer())
        self._models = [self._model]
        self._notices: list[_Outgoing] = []
        self._iteration = -1
        self._stopping = False
        self._warned = 0
        self._losses: list[Loss] = []
        self._lost_in_debt = 0  # of an answer
        self._rejected_by = [0] * workers
        self.sent_at = [time.perf_counter()] * workers
        self.last_bytes = [0] * workers
        self.bytes_received = 0
        self.bytes_sent = 0
        self.models_sent = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)

    def _listen(self, worker: int) -> MPI.Request:
        return self._comm.Irecv(self._inbox[worker], source=worker + 1, tag=wire.TAG_RESULT)

    @property
    def loading(self) -> bool:
        """Whether some worker is still loading its data."""
        return any(state == BUSY and given < 0 for state, given in zip(self._state, self._given, strict=True))

    @property
    def alive(self) -> list[int]:
        """The workers that are not lost."""
        return [worker for worker, state in enumerate(self._state) if state != LOST]

    @property
    def counts(self) -> dict[str, int]:
        """Messages: models sent, what became of the answers, and what workers say they have dropped.

        Each model sent has one answer (used, unused, late, abandoned or overflow), or is unanswered as yet.
        """
        return {
            "models": self.models_sent,
            **self.outcomes,
            "unanswered": self._lost_in_debt + (0 if self.loading else self._state.count(BUSY)),
            "rejected_by_workers": sum(self._rejected_by),
        }

    def arrivals(self) -> list[tuple[int, Array]]:
        """Messages that have come, each in its worker's inbox until `release`.

        One request is tested after the other: of several at once MPI does not say reliably which of them failed.
        """
        arrived = []
        for worker, state in enumerate(self._state):
            if state not in (BUSY, IDLE):
                continue
            try:
                if not self._receives[worker].Test(self._status):
                    continue
            except MPI.Exception as error:
                if error.Get_error_class() == MPI.ERR_TRUNCATE:
                    self._reject(worker, "it is longer than any message")
                else:
                    self._lose(Loss(worker, "died", error.Get_error_string()))
                continue
            if self._accept(worker, self._status.Get_count(MPI.BYTE)):
                arrived.append((worker, self._inbox[worker]))
        return arrived

    def _accept(self, worker: int, size: int) -> bool:
        """Judge what has come; whether it is for the master to handle."""
        self.bytes_received += size
        self.last_bytes[worker] = size
        message = self._inbox[worker][:size]
        fault = self._wire.fault(message, self._awaited(worker), worker)
        if fault is not None:
            self._reject(worker, fault)
            return False
        header = self._wire.header(message)
        self._rejected_by[worker] = int(header["rejected"])
        if int(header["kind"]) == wire.BYE:
            self._state[worker] = GONE
            return False
        self._state[worker] = HEARD
        self._deadline.note(time.perf_counter() - self.sent_at[worker])
        return True

    def _awaited(self, worker: int) -> dict[int, int | None]:
        """What a worker may send now: one answer for its newest model, and at the end a goodbye."""
        awaited: dict[int, int | None] = {wire.BYE: None} if self._stopping else {}
        if self._state[worker] == BUSY:
            given = self._given[worker]
            kinds = (wire.RESULT, wire.READY, wire.OVERFLOW) if given >= 0 else (wire.READY,)
            awaited |= dict.fromkeys(kinds, given)
        return awaited

    def _reject(self, worker: int, fault: str) -> None:
        self.outcomes["rejected"] += 1
        if self._warned < WARNINGS:
            self._warned += 1
            warnings.warn(f"dropped a message of worker {worker}: {fault}", RuntimeWarning, stacklevel=2)
        self._receives[worker] = self._listen(worker)

    def _lose(self, loss: Loss) -> None:
        self._lost_in_debt += self._state[loss.worker] == BUSY and self._given[loss.worker] >= 0
        self._state[loss.worker] = LOST
        self._losses.append(loss)

    def take_losses(self) -> list[Loss]:
        """The workers lost since the last call, the hung ones among them."""
        now = time.perf_counter()
        limit = self._deadline.seconds
        for worker, state in enumerate(self._state):
            if state == BUSY and now - self.sent_at[worker] > limit:
                self._lose(Loss(worker, "hung", f"no answer for {limit:.3g} s"))
        losses, self._losses = self._losses, []
        return losses

    def release(self, worker: int) -> None:
        """The message in the inbox is done with: the worker owes nothing, and its next message may come."""
        self._state[worker] = IDLE
        self._receives[worker] = self._listen(worker)

    def begin(self) -> None:
        """All have loaded their data: from here on answers are to models."""
        self._deadline = self._deadline_of_answers

    def offer(self, iteration: int, parameters: Array) -> None:
        """Begin an iteration: the new model goes to every worker that owes nothing."""
        # A model still on its way stays as it is. A worker has one at most, so there are never more than workers + 1;
        # that of a hung worker is never free again.
        free = [model for model in self._models if model.delivered()]
        if free:
            self._model = free[0]
        else:
            self._model = _Outgoing(self._wire.model_buffer())
            self._models.append(self._model)
        self._iteration = iteration
        self._wire.parameters(self._model.buffer)[:] = parameters
        self._wire.seal(self._model.buffer, wire.MODEL, iteration)
        for worker, state in enumerate(self._state):
            if state == IDLE:
                self.send_newest(worker)

    def send_newest(self, worker: int) -> None:
        """Send the newest model to a worker that owes nothing."""
        self._state[worker] = BUSY
        self._given[worker] = self._iteration
        self.sent_at[worker] = time.perf_counter()
        self.bytes_sent += self._model.buffer.nbytes
        self.models_sent += 1
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
            notice = _Outgoing(self._wire.seal(self._wire.control_buffer(), kind, self._iteration))
            for worker in workers:
                self.bytes_sent += notice.buffer.nbytes
                notice.send(self._comm, worker, wire.TAG_CONTROL)
            self._notices.append(notice)

    def stop(self, poller: Poller) -> None:
        """Tell every worker that the run is over, and wait for the last message of each, but not for ever.

        Those that are silent then are lost: `take_losses`.
        """
        self._stopping = True
        for worker, state in enumerate(self._state):
            if state == HEARD:  # in the middle of an iteration
                self.release(worker)
        # A worker that was given up as hung may still hear it, and end by itself.
        self._notify(wire.STOP, list(range(len(self._state))))
        end = time.perf_counter() + STOP_SECONDS
        poller.restart()
        while any(state in (BUSY, IDLE) for state in self._state) and time.perf_counter() < end:
            for worker, _ in self.arrivals():
                self.release(worker)
            poller.pause()
        for worker, state in enumerate(self._state):
            if state in (BUSY, IDLE):
                self._lose(Loss(worker, "unstopped", f"it did not stop within {STOP_SECONDS:g} s"))
        lost = {worker for worker, state in enumerate(self._state) if state == LOST}
        while not all(sent.delivered(lost) for sent in (*self._models, *self._notices)) and time.perf_counter() < end:
            poller.pause()


class _Outgoing:
    """A buffer on its way to some workers: it must not change before all of them have it."""

    def __init__(self, buffer: Array) -> None:
        self.buffer = buffer
        self._pending: list[tuple[int, MPI.Request]] = []

    def send(self, comm: MPI.Intracomm, worker: int, tag: int) -> None:
        with contextlib.suppress(MPI.Exception):  # where it is dead: its receive will say so
            self._pending.append((worker, comm.Isend(self.buffer, dest=worker + 1, tag=tag)))

    def delivered(self, lost: set[int] | frozenset[int] = frozenset()) -> bool:
        """Whether all have it; of those in `lost` it is not expected."""
        self._pending = [(worker, request) for worker, request in self._pending if not _done(request)]
        return all(worker in lost for worker, _ in self._pending)


def _done(request: MPI.Request) -> bool:
    try:
        return request.Test()
    except MPI.Exception:  # to a worker that died: MPI is done with the buffer
        return True
