"""Faults on demand: what happens to a host, now or at a given second of a run.

==================  ===================================================================================================
fault               what happens
==================  ===================================================================================================
``link-down``       the host's cable is pulled: nothing comes or goes, and nobody is told
``link-up``         it is plugged in again
``bandwidth=RATE``  the link has this rate from now on, both ways
``lost``            the host loses power: its link goes dead, then all its processes end
==================  ===================================================================================================
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from dataclasses import dataclass

from mpi_runner.cluster import links
from mpi_runner.cluster.profiles import rate
from mpi_runner.cluster.running import HEAD, SWITCH, Running
from mpi_runner.config import UsageError

KINDS = ("link-down", "link-up", "bandwidth=RATE", "lost")
TIMED = re.compile(r"(?P<host>[^@:]+)@(?P<seconds>\d+(\.\d+)?)s:(?P<fault>.+)")


@dataclass(frozen=True)
class Fault:
    """What happens to a host.

    Attributes
    ----------
    host : str
    kind : str
        link-down, link-up, bandwidth or lost.
    value : str
        The rate, of a bandwidth.
    seconds : float
        When, after the command's start.
    """

    host: str
    kind: str
    value: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.host}: {self.kind}{'=' + self.value if self.value else ''}"


def parse(host: str, text: str, seconds: float = 0.0) -> Fault:
    """Return the fault written as `text`; UsageError with the faults there are."""
    kind, _, value = text.partition("=")
    if text not in ("link-down", "link-up", "lost"):
        if kind != "bandwidth":
            raise UsageError(f"fault: must be one of {', '.join(KINDS)}, not {text!r}")
        try:
            rate(value)
        except ValueError as error:
            raise UsageError(f"fault: bandwidth: {error}") from None
    if kind == "lost" and host == HEAD:
        raise UsageError("fault: the head runs the command and holds the other hosts: it cannot be lost")
    return Fault(host, kind, value, seconds)


def parse_timed(text: str) -> Fault:
    """Return the fault written as ``HOST@SECONDSs:FAULT``, such as ``worker3@20s:link-down``."""
    match = TIMED.fullmatch(text)
    if match is None:
        raise UsageError(f"--fault must be HOST@SECONDSs:FAULT, such as worker3@20s:link-down, not {text!r}")
    return parse(match["host"], match["fault"], float(match["seconds"]))


def inflict(cluster: Running, fault: Fault) -> None:
    """Let it happen, to a cluster that is up; UsageError where it cannot."""
    hosts = {name: init for name, init in cluster.hosts.items() if name != SWITCH}
    if fault.host not in hosts:
        raise UsageError(f"fault: no host {fault.host!r} is up; there are {', '.join(sorted(hosts))}")
    switch, init = cluster.hosts[SWITCH], hosts[fault.host]
    try:
        if fault.kind == "bandwidth":
            links.limit(switch, fault.host, init, fault.value)
        else:
            # Of a lost host the link goes first: processes that are killed say goodbye to their peers.
            links.cut(switch, fault.host, down=fault.kind != "link-up")
    except links.NetworkError as error:
        raise UsageError(f"fault: {fault}: {error}") from None
    if fault.kind == "lost":
        with contextlib.suppress(ProcessLookupError):
            os.kill(init, signal.SIGKILL)
