"""Finding clusters: their processes say in their command lines whose they are, so nothing is written down anywhere."""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from mpi_runner.cluster import shares

KEEPER, HOST = "fastgc-cluster", "fastgc-host"
"""What stands for the program's name in a shell's command line, before the cluster's name and the host's."""
SWITCH, HEAD = "switch", "head"
END_SECONDS = 5.0
_numbers = itertools.count()


@dataclass(frozen=True)
class Running:
    """A cluster that is up.

    Attributes
    ----------
    name : str
        Process id and start of whoever made it, and a number.
    keeper : psutil.Process
        Ends last, and removes what the kernel does not.
    hosts : dict
        Process ids of the hosts' first processes, by name; the switch is one of them. A lost host is not.
    """

    name: str
    keeper: psutil.Process
    hosts: dict[str, int]

    @property
    def owned(self) -> bool:
        """Whether its maker still lives."""
        return alive(self.name)


def own_name() -> str:
    """A name for a cluster that this process makes."""
    return f"{os.getpid()}-{_start(os.getpid())}-{next(_numbers)}"


def alive(name: str) -> bool:
    """Whether the process lives that a cluster's name names."""
    pid, _, rest = name.partition("-")
    return pid.isdigit() and _start(int(pid)) == rest.partition("-")[0]


def _start(pid: int) -> str | None:
    """A process's start in clock ticks since boot: with its id, it names a process once and for all."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def clusters() -> dict[str, Running]:
    """All clusters on this machine that have processes, by name."""
    keepers: dict[str, psutil.Process] = {}
    hosts: dict[str, dict[str, int]] = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if len(words) == 5 and words[:2] == ["sh", "-c"] and words[3] == KEEPER:
            keepers[words[4]] = process
        elif len(words) == 6 and words[:2] == ["sh", "-c"] and words[3] == HOST:
            hosts.setdefault(words[4], {})[words[5]] = process.pid
    return {name: Running(name, keeper, hosts.get(name, {})) for name, keeper in keepers.items()}


def end(cluster: Running) -> None:
    """End a cluster: with the head's first process the kernel ends all others, and the keeper clears up."""
    if HEAD in cluster.hosts:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(cluster.hosts[HEAD]).kill()
    try:
        cluster.keeper.wait(END_SECONDS)
    except psutil.TimeoutExpired:
        cluster.keeper.kill()
        cluster.keeper.wait(END_SECONDS)


def clean() -> list[str]:
    """Remove what is left of clusters whose maker is dead; returns their names. Others are not touched."""
    left = [cluster for cluster in clusters().values() if not cluster.owned]
    for cluster in left:
        end(cluster)
    names = {cluster.name for cluster in left}
    for name in shares.names():
        if not alive(name):
            shares.remove(name)
            names.add(name)
    return sorted(names)
