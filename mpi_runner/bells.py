"""Bells: a rank that sends a message wakes the one of its host that sleeps until it comes.

MPI has no wait that sleeps, and where ranks share cores every look for a message takes time from those who work, much
of it to fill caches again. A bell says only that there is something to look for. One that is not heard, or rung by
somebody else, is no harm: ranks look from time to time all the same.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import sys

import numpy as np
from mpi4py import MPI

from mpi_runner.transport import Poller, all_well, share_number, wait

TAG = 10
PATIENCE = 1.0  # seconds that the trial below may take
LONGEST_TRIAL = 1 << 20  # bytes: MPI treats longer messages alike
MOST_AT_ONCE = 1000  # rings; Linux keeps fewer


class Bells:
    """This rank's bell, and the names of the others': datagram sockets that have no file, which Linux has.

    Parameters
    ----------
    name : str
        Of the job, unlike any other's on this host.
    rank, size : int
        This rank's number and how many there are.
    """

    def __init__(self, name: str, rank: int, size: int) -> None:
        self._names = [f"\0{name}-{other}" for other in range(size)]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self._names[rank])
        self._rung = select.poll()
        self._rung.register(self._socket, select.POLLIN)

    def ring(self, rank: int) -> None:
        """Wake a rank; one that has not yet heard earlier rings need not hear this one, and one that is gone cannot."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"", self._names[rank])

    def wait(self, seconds: float) -> bool:
        """Sleep until this rank's bell is rung, at most so long; whether it was."""
        if not self._rung.poll(1e3 * seconds):
            return False
        with contextlib.suppress(BlockingIOError):  # all rings until now are one
            for _ in range(MOST_AT_ONCE):  # or who rings without end would keep this rank
                self._socket.recv(1)
        return True

    def close(self) -> None:
        """Take the bell down."""
        self._socket.close()


def install(comm: MPI.Intracomm, size: int, poller: Poller) -> Bells | None:
    """Bells for all ranks of a job, which call this together; None for all where bells would not do.

    They do where all ranks are on one host under Linux, and messages arrive there without further help of their sender,
    as the receiver copies them from its memory. Otherwise MPI hands them over piece by piece, whenever their sender
    looks. That is tried.

    Parameters
    ----------
    comm : MPI.Intracomm
    size : int
        Bytes of a message.
    poller : Poller
    """
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    on_one_host = host.Get_size() == comm.Get_size()
    host.Free()
    if not on_one_host or sys.platform != "linux":
        return None
    number = share_number(comm, secrets.randbits(64) if comm.Get_rank() == 0 else None, poller)
    bells = Bells(f"fastgc-{number:016x}", comm.Get_rank(), comm.Get_size())
    wait(comm.Ibarrier(), poller)  # none is rung before it is there
    if all_well(comm, _arrives_unaided(comm, bells, min(size, LONGEST_TRIAL), poller), poller):
        return bells
    bells.close()
    return None


def _arrives_unaided(comm: MPI.Intracomm, bells: Bells, size: int, poller: Poller) -> bool:
    """Whether a message that this rank sends to the first comes there while this one sleeps."""
    message = np.zeros(size, np.uint8)
    if comm.Get_rank() == 0:
        for rank in range(1, comm.Get_size()):
            wait(comm.Irecv(message, source=rank, tag=TAG), poller)
            bells.ring(rank)
        return True
    sent = comm.Isend(message, dest=0, tag=TAG)
    rung = bells.wait(PATIENCE)
    wait(sent, poller)
    return rung
