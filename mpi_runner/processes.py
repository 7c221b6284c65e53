"""Processes by host, pid and start time: a pid alone may belong to another process by now."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

_CLOCKS = 1.0  # seconds: two readings of a start time agree to less, and no pid comes back so soon


class Identity(NamedTuple):
    """A process of some host."""

    host: str
    pid: int
    started: float
    """Seconds since the epoch."""


def own_identity() -> Identity:
    """Of this process."""
    import psutil  # here, because the command line is also there where only its messages are wanted

    process = psutil.Process()
    return Identity(platform.node(), process.pid, process.create_time())


def find(identity: Identity) -> Any:
    """The `psutil.Process` on this host, or None where it is another host's or has ended."""
    import psutil

    if identity.host != platform.node():
        return None
    try:
        process = psutil.Process(identity.pid)
        if abs(process.create_time() - identity.started) > _CLOCKS or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.Error:
        return None
    return process


def kill(identity: Identity) -> bool:
    """End a process of this host with SIGKILL, which a stopped one obeys too; whether there was one."""
    import psutil

    process = find(identity)
    try:
        if process is not None:
            process.kill()
    except psutil.NoSuchProcess:  # it has just ended
        return False
    return process is not None


def await_end(identities: Iterable[Identity], seconds: float) -> None:
    """Wait until none of these processes is left on this host, but no longer than `seconds`."""
    end = time.perf_counter() + seconds
    while any(find(identity) is not None for identity in identities) and time.perf_counter() < end:
        time.sleep(0.02)
