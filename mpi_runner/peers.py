"""The master's side of every worker: who owes a message, who is lost, and whose buffers are in whose hands."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpi_runner import wire
from mpi_runner.bells import Bells
from mpi_runner.faults import HangDeadline, Loss
from mpi_runner.transport import Poller
from mpi_runner.wire import BadMessage, Header, Wire

Array = npt.NDArray[Any]

STOP_SECONDS = 3.0
"""A worker that computes has to finish its partition first; one that does not answer by then is ended."""
WARNINGS = 10
"""Of dropped messages: a broken peer would flood the log. All are counted."""

_IN_MPIS_HANDS: list[object] = []
MOST_AT_ONCE = 100
"""Bad messages of a worker in a row, before it is the others' turn."""

IDLE, BUSY, HEARD, MUTE, GONE, LOST = "idle", "busy", "heard", "mute", "gone", "lost"
ANSWERS = (wire.RESULT, wire.PART, wire.READY, wire.OVERFLOW)
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
    bells : Bells, optional
        That workers are woken by.
    """

    def __init__(
        self, comm: MPI.Intracomm, layout: Wire, workers: int, deadline: HangDeadline, bells: Bells | None = None
    ) -> None:
        self._comm = comm
        self._bells = bells
        self._wire = layout
        self._deadline = HangDeadline()  # loading data has nothing to do with how long an iteration takes
        self._deadline_of_answers = deadline
        self._state = [BUSY] * workers  # each owes its first READY
        self._given = [-1] * workers  # the iteration of each worker's newest model
        self._coded: list[int | None] = [None] * workers  # the reduction that it names
        # A message keeps its place until the end of the iteration: each worker has one for every part of its work.
        self._inbox = [[layout.result_buffer() for _ in range(layout.parts)] for _ in range(workers)]
        self._held = [0] * workers
        self._parts: list[set[int]] = [set() for _ in range(workers)]  # heard of the newest model
        self._incoming: list[tuple[MPI.Request, Array] | None] = [None] * workers
        self._status = MPI.Status()
        self._model = _Outgoing(layout.model_buffer())
        self._models = [self._model]
        self._notices: list[_Outgoing] = []
        self._iteration = -1
        self._reduction: int | None = None
        self._stopping = False
        self._warned = 0
        self._losses: list[Loss] = []
        self._lost_in_debt = 0  # of an answer
        self._rejected_by = [0] * workers
        self.sent_at = [time.perf_counter()] * workers
        self._since = list(self.sent_at)  # its newest model, or the part of the answer that came after it
        self.parts = 0
        self.last_bytes = [0] * workers
        self.bytes_received = 0
        self.bytes_sent = 0
        self.models_sent = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)

    @property
    def loading(self) -> bool:
        """Whether some worker is still loading its data."""
        return any(state == BUSY and given < 0 for state, given in zip(self._state, self._given, strict=True))

    @property
    def alive(self) -> list[int]:
        """The workers that are not lost."""
        return [worker for worker, state in enumerate(self._state) if state not in (MUTE, LOST)]

    @property
    def counts(self) -> dict[str, int]:
        """Messages: models sent, what became of the answers, and what workers say they have dropped.

        Each model sent has one last answer, or is unanswered as yet, and may have parts of an answer before it: models
        and parts together are those that were used, unused, late, abandoned or overflow, and the unanswered.
        """
        return {
            "models": self.models_sent,
            "parts": self.parts,
            **self.outcomes,
            "unanswered": self._lost_in_debt + (0 if self.loading else self._state.count(BUSY)),
            "rejected_by_workers": sum(self._rejected_by),
        }

    def arrivals(self) -> list[tuple[int, Header, Array]]:
        """Messages that have come, one a worker at most, each in its worker's inbox until `release`.

        One worker is looked at after the other: of several at once MPI does not say reliably which of them failed.
        """
        arrived = []
        for worker, state in enumerate(self._state):
            if state in (BUSY, IDLE) and (answer := self._answer(worker)) is not None:
                arrived.append((worker, *answer))
            elif state == MUTE:
                self._drain(worker)
        return arrived

    def _answer(self, worker: int) -> tuple[Header, Array] | None:
        """What this worker owed, if that has come, and its header."""
        for _ in range(MOST_AT_ONCE):
            try:
                message = self._received(worker)
            except MPI.Exception as error:
                self._lose(Loss(worker, "died", error.Get_error_string()))
                return None
            if message is None:
                return None
            if (header := self._accept(worker, message)) is not None:
                return (header, message) if header.kind != wire.BYE else None
        return None

    def _drain(self, worker: int) -> None:
        """Take what a quarantined worker sends: it may not see that the run is over before it has sent a part."""
        try:
            message = self._received(worker)
            if message is not None:
                self.bytes_received += message.nbytes
                self._wire.read(message, {wire.BYE: None}, worker)
                self._state[worker] = LOST  # for good
        except (BadMessage, MPI.Exception):
            pass

    def _received(self, worker: int) -> Array | None:
        """A message that has come in full, or None.

        Its size is looked at before it is received: what a receive that is too short does with the rest of a message
        is left to MPI, and Open MPI 5.0 writes it past the end of the buffer.
        """
        incoming = self._incoming[worker]
        if incoming is None:
            found = self._comm.Improbe(source=worker + 1, tag=wire.TAG_RESULT, status=self._status)
            if found is None:
                return None
            size = self._status.Get_count(MPI.BYTE)
            inbox = self._inbox[worker][self._held[worker]]
            room = inbox[:size] if size <= len(inbox) else np.empty(size, np.uint8)
            incoming = self._incoming[worker] = found.Irecv(room), room
        request, room = incoming
        if not request.Test():
            return None
        self._incoming[worker] = None
        return room

    def _accept(self, worker: int, message: Array) -> Header | None:
        """Judge what has come; the header of what was waited for."""
        self.bytes_received += message.nbytes
        self.last_bytes[worker] = message.nbytes
        try:
            header = self._wire.read(message, self._awaited(worker), worker, self._coded[worker])
            self._check_part(worker, header)
        except BadMessage as fault:
            self._reject(worker, fault)
            return None
        self._rejected_by[worker] = header.rejected
        if header.kind == wire.BYE:
            self._state[worker] = GONE
            return header
        now = time.perf_counter()
        self._deadline.note(now - self._since[worker])
        self._since[worker] = now
        self._held[worker] += 1
        if header.kind == wire.PART:
            self._parts[worker].add(header.part)
            self.parts += 1
        else:
            self._state[worker] = HEARD
        return header

    def _check_part(self, worker: int, header: Header) -> None:
        """Raise BadMessage for a part that was there already, and for a last one that says that others follow."""
        if header.kind in (wire.PART, wire.RESULT) and header.part in self._parts[worker]:
            raise BadMessage(f"part {header.part} again")
        if header.kind == wire.PART and len(self._parts[worker]) == self._wire.parts - 1:
            raise BadMessage(f"part {header.part} is the last, and calls itself one of several")

    def _awaited(self, worker: int) -> dict[int, int | None]:
        """What a worker may send now: an answer for its newest model, in parts or not, and at the end a goodbye."""
        awaited: dict[int, int | None] = {wire.BYE: None} if self._stopping else {}
        if self._state[worker] == BUSY:
            given = self._given[worker]
            awaited |= dict.fromkeys(ANSWERS if given >= 0 else (wire.READY,), given)
        return awaited

    def _reject(self, worker: int, fault: BadMessage) -> None:
        self.outcomes["rejected"] += 1
        if self._warned < WARNINGS:
            self._warned += 1
            warnings.warn(f"dropped a message of worker {worker}: {fault}", RuntimeWarning, stacklevel=2)

    def _lose(self, loss: Loss) -> None:
        self._lost_in_debt += self._state[loss.worker] == BUSY and self._given[loss.worker] >= 0
        self._state[loss.worker] = LOST
        self._losses.append(loss)

    def quarantine(self, worker: int, reason: str) -> None:
        """Send a worker no more models, and listen to it no more; it is told when the run is over."""
        self._lose(Loss(worker, "corrupt", reason))
        self._state[worker] = MUTE

    def take_losses(self) -> list[Loss]:
        """The workers lost since the last call, the hung ones among them."""
        now = time.perf_counter()
        limit = self._deadline.seconds
        for worker, state in enumerate(self._state):
            if state == BUSY and now - self._since[worker] > limit:
                self._lose(Loss(worker, "hung", f"no answer for {limit:.3g} s"))
        losses, self._losses = self._losses, []
        return losses

    def release(self, worker: int) -> None:
        """The messages in the inbox are done with; a worker whose answer is complete owes nothing any more."""
        self._held[worker] = 0
        if self._state[worker] == HEARD:
            self._state[worker] = IDLE

    def begin(self) -> None:
        """All have loaded their data: from here on answers are to models."""
        self._deadline = self._deadline_of_answers

    def offer(
        self, iteration: int, parameters: Array, used: Collection[int] = (), reduction: int | None = None
    ) -> None:
        """Begin an iteration, or begin it anew under another reduction: the model goes to every worker that owes
        nothing.

        Parameters
        ----------
        iteration : int
        parameters : ndarray
        used : collection of int
            The workers whose messages were used in the iteration before.
        reduction : int, optional
            That workers are to code under; the scheme's own by default.
        """
        # A model still on its way stays as it is. A worker has one at most, so there are never more than workers + 1;
        # that of a hung worker is never free again.
        free = [model for model in self._models if model.delivered()]
        if free:
            self._model = free[0]
        else:
            self._model = _Outgoing(self._wire.model_buffer())
            self._models.append(self._model)
        self._iteration, self._reduction = iteration, reduction
        self._wire.parameters(self._model.buffer)[:] = parameters
        if self._wire.feedback:
            self._wire.mark_used(self._model.buffer, used)
        self._wire.seal(self._model.buffer, wire.MODEL, iteration, reduction=reduction)
        idle = [worker for worker, state in enumerate(self._state) if state == IDLE]
        for worker in idle:
            self._send_newest(worker)
        self._wake(idle)  # not before all is sent: who wakes may take this core

    def send_newest(self, worker: int) -> None:
        """Send the newest model to a worker that owes nothing."""
        self._send_newest(worker)
        self._wake([worker])

    def _send_newest(self, worker: int) -> None:
        self._state[worker] = BUSY
        self._given[worker] = self._iteration
        self._coded[worker] = self._reduction
        self._parts[worker].clear()
        self.sent_at[worker] = self._since[worker] = time.perf_counter()
        self.bytes_sent += self._model.buffer.nbytes
        self.models_sent += 1
        self._model.send(self._comm, worker, wire.TAG_MODEL)

    def _wake(self, workers: Collection[int]) -> None:
        if self._bells is not None:
            for worker in workers:
                self._bells.ring(worker + 1)

    def conclude(self) -> None:
        """End an iteration: inboxes are free again, and who still works on it is told that it is over."""
        behind = [w for w, state in enumerate(self._state) if state == BUSY and self._given[w] == self._iteration]
        self._notify(wire.SKIP, behind)
        self.free()

    def free(self) -> None:
        """Messages that were heard are done with."""
        for worker in range(len(self._state)):
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
        self.free()  # in the middle of an iteration
        # A worker that was given up as hung may still hear it, and end by itself.
        workers = list(range(len(self._state)))
        self._notify(wire.STOP, workers)
        self._wake(workers)
        end = time.perf_counter() + STOP_SECONDS
        poller.restart()
        while any(state in (BUSY, IDLE, MUTE) for state in self._state) and time.perf_counter() < end:
            for worker, _, _ in self.arrivals():
                self.release(worker)
            poller.pause()
        for worker, state in enumerate(self._state):
            if state in (BUSY, IDLE, MUTE):
                self._lose(Loss(worker, "unstopped", f"it did not stop within {STOP_SECONDS:g} s"))
        lost = {worker for worker, state in enumerate(self._state) if state == LOST}
        while not all(sent.delivered(lost) for sent in (*self._models, *self._notices)) and time.perf_counter() < end:
            poller.pause()
        # What a lost worker has not taken, or has not sent in full, MPI may still read or write until it is finalised.
        _IN_MPIS_HANDS.extend(sent for sent in (*self._models, *self._notices) if not sent.delivered())
        _IN_MPIS_HANDS.extend(incoming for incoming in self._incoming if incoming is not None)


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
