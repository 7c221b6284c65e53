"""Waiting on MPI without burning a core, and agreeing at the start. Buffers only: nothing is ever pickled."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from math import inf
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from fastgc import GradientCode, schemes
from mpi_runner.config import TrainConfig
from mpi_runner.processes import Identity, own_identity

_HOST_BYTES = 256
_IDENTITY = np.dtype([("host", f"S{_HOST_BYTES}"), ("pid", "<i8"), ("started", "<f8")])
SHORTEST, LONGEST = 20e-6, 1e-3  # seconds of sleep between two looks
UNRUNG = 20e-3  # the same, where a bell wakes
SHARE = 0.1  # of the time already waited: what sleeping may add to a wait


class Bell(Protocol):
    """What wakes a sleeping rank."""

    def wait(self, seconds: float) -> bool:
        """Sleep until it is rung, at most so long; whether it was."""


class Poller:
    """Looks again and again until something is there, sleeping in between for a share of the time already waited.

    Open MPI's own waits spin: an idle rank would take a whole core. Between two looks this sleeps a tenth of the time
    waited so far, from 20 µs up to 1 ms; with ``spin=True``, for ranks with cores of their own, not at all; with a
    `bell`, for what is announced by ringing it, until that is rung, and 20 ms at most.
    """

    def __init__(self, spin: bool = False, bell: Bell | None = None) -> None:
        self._spin = spin
        self._bell = bell
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Something came: look often again."""
        self._since = time.perf_counter()

    def pause(self, longest: float = inf) -> None:
        """Nothing there: sleep before the next look, at most so many seconds."""
        if self._spin:
            return
        if self._bell is None:
            waited = time.perf_counter() - self._since
            time.sleep(min(max(SHARE * waited, SHORTEST), LONGEST, longest))
        else:
            self._bell.wait(min(UNRUNG, longest))
            # Tests and probes look before they take in what has come, and would see it the next time only.
            MPI.COMM_SELF.Iprobe()

    def until(self, there: Callable[[], bool]) -> None:
        """Return once `there` says so."""
        self.restart()
        while not there():
            self.pause()


def wait(request: MPI.Request, poller: Poller) -> None:
    """Wait for one request."""
    poller.until(request.Test)


def share(comm: MPI.Intracomm, content: bytes | None, poller: Poller) -> bytes:
    """Give rank 0's content to all; the others pass None."""
    size = np.array([0 if content is None else len(content)], np.int64)
    wait(comm.Ibcast(size, root=0), poller)
    buffer = np.empty(int(size[0]), np.uint8) if content is None else np.frombuffer(content, np.uint8)
    wait(comm.Ibcast(buffer, root=0), poller)
    return buffer.tobytes()


def share_scheme(comm: MPI.Intracomm, scheme: GradientCode | None, poller: Poller) -> GradientCode:
    """Give rank 0's scheme to all, as the bytes of its file: random streams may differ between machines."""
    file = io.BytesIO()
    if scheme is not None:
        scheme.save(file)
    content = share(comm, None if scheme is None else file.getvalue(), poller)
    return scheme if scheme is not None else schemes.load(io.BytesIO(content))


def share_config(comm: MPI.Intracomm, config: TrainConfig | None, poller: Poller) -> TrainConfig:
    """Give rank 0's configuration to all; the others pass None."""
    content = share(comm, None if config is None else json.dumps(config.as_dict()).encode(), poller)
    return TrainConfig(**json.loads(content))


def share_number(comm: MPI.Intracomm, number: int | None, poller: Poller) -> int:
    """Give rank 0's number, 0 ≤ number < 2⁶⁴, to all; the others pass None."""
    content = None if number is None else number.to_bytes(8, "little")
    return int.from_bytes(share(comm, content, poller), "little")


def gather_identities(comm: MPI.Intracomm, poller: Poller) -> list[Identity]:
    """The identities of all ranks, on rank 0; elsewhere nothing."""
    own = np.zeros(1, _IDENTITY)
    identity = own_identity()
    own[0] = (identity.host.encode()[:_HOST_BYTES], identity.pid, identity.started)
    size = comm.Get_size() if comm.Get_rank() == 0 else 0
    all_of_them: npt.NDArray[Any] = np.zeros(size, _IDENTITY)
    wait(comm.Igather(own.view(np.uint8), all_of_them.view(np.uint8), root=0), poller)
    return [Identity(bytes(row["host"]).decode(), int(row["pid"]), float(row["started"])) for row in all_of_them]


def all_well(comm: MPI.Comm, well: bool, poller: Poller) -> bool:
    """Whether all ranks say so."""
    own, least = np.array([well], np.int32), np.zeros(1, np.int32)
    wait(comm.Iallreduce(own, least, op=MPI.MIN), poller)
    return bool(least[0])


def first_on_host_first(
    comm: MPI.Intracomm, work: Callable[[], bool], rest: Callable[[], bool], poller: Poller
) -> bool:
    """Let one rank a host do `work`, then the others `rest`; whether all went well everywhere."""
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        well = work() if host.Get_rank() == 0 else True
        if not all_well(host, well, poller):
            well = False
        elif host.Get_rank() != 0:
            well = rest()
    finally:
        host.Free()
    return all_well(comm, well, poller)
