"""Several hosts over ssh: a host file, as mpirun takes it, and what the ranks there are told."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from mpi_runner.config import UsageError

VARIABLE = "PRTE_MCA_prte_default_hostfile"
"""Where mpirun looks for a host file. A variable, so that whatever starts mpirun puts its ranks on these hosts."""
PASSED_ON = ("FASTGC_CACHE", "FASTGC_ISA", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONPATH")
"""Variables that ranks on other hosts get as well: over ssh they would have those of a login there."""
LINE = re.compile(r"(?P<host>[\w.:-]+)[ \t]+slots=(?P<slots>[1-9]\d*)", re.ASCII)


def use(path: Path, ranks: int) -> None:
    """Have mpirun put its ranks on the hosts of a file, whoever starts it from here on.

    Parameters
    ----------
    path : Path
        A line ``HOST slots=RANKS`` for each host, the first of them this one; ``#`` begins a comment.
    ranks : int
        That need a place, the master's included.

    Raises
    ------
    UsageError
        The file cannot be read, has another form or too few places, or begins with another host.
    """
    hosts = read(path)
    slots = sum(hosts.values())
    if slots < ranks:
        raise UsageError(f"--hostfile: {path} has {slots} slots, and {ranks} are needed: the master's and the workers'")
    first = next(iter(hosts))
    if not _is_here(first):  # a signal to end could not reach the master from here
        raise UsageError(f"--hostfile: {path} begins with {first}, which is not this host: the master must be here")
    os.environ[VARIABLE] = os.path.abspath(path)


def read(path: Path) -> dict[str, int]:
    """The hosts of a file, in order, with their numbers of ranks; UsageError for one of another form."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--hostfile: cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        if match is None:
            raise UsageError(f"--hostfile: line {number} of {path} must be HOST slots=RANKS, not {text!r}")
        if match["host"] in hosts:
            raise UsageError(f"--hostfile: line {number} of {path} names {match['host']} again")
        hosts[match["host"]] = int(match["slots"])
    if not hosts:
        raise UsageError(f"--hostfile: {path} names no host")
    return hosts


def passed_on(environment: Mapping[str, str]) -> list[str]:
    """Options of mpirun that pass variables on to other hosts; none where there are none."""
    if VARIABLE not in environment:
        return []
    return [word for name in PASSED_ON if name in environment for word in ("-x", name)]


def _is_here(host: str) -> bool:
    """Whether a name stands for an address of this host: only such a one can be bound."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
    return False
