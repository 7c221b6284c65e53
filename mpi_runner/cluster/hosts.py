"""Making the hosts of a cluster, running a command on them, and taking them down.

A host is a process that is the first of a PID namespace, with network, name, IPC and mounts of its own. The kernel ends
everything in a PID namespace with its first process, so a host that is lost takes its processes with it. The workers'
hosts are made inside of the head's namespace: when the head's first process ends, all hosts end, and with their last
processes their namespaces, interfaces and mounts. The head's first process ends when the pipe closes whose other end
only the maker of the cluster holds. So whatever becomes of the maker, even SIGKILL, nothing is left but cgroups; these
are removed by the keeper, a shell in a session of its own that waits for the head to end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from mpi_runner.cluster import links, running, shares
from mpi_runner.cluster.profiles import Profile
from mpi_runner.cluster.running import HEAD, HOST, KEEPER, SWITCH
from mpi_runner.config import UsageError
from mpi_runner.delays import SPEED
from mpi_runner.launch import SESSIONS, SESSIONS_OF_ALL

TOOLS = ("ip", "tc", "nsenter", "unshare", "mount")
PRIVATE = "/dev/shm"
"""Every host has one of its own, in memory. The head's holds the agent and the list of hosts; MPI's session files lie
there too, so that none is left on disk."""


# Reports itself ready, then ends with its standard input, a pipe from the maker. `wait` collects whatever processes of
# the head lose their parents. The pipe is read by a child, since a shell that reads collects none.
_HEAD = f"""
hostname "$2" && mount -t tmpfs tmpfs {PRIVATE} && exec 3<&0 && echo ready && exec >/dev/null
cat <&3 & wait $!
"""
_OTHER = f"""
hostname "$2" && mount -t tmpfs tmpfs {PRIVATE} && echo ready && exec >/dev/null
sleep infinity & wait $!
"""
# Like ssh: a host, then words that a shell there puts together. Of a host without power ssh hears nothing, and waits;
# were the agent to end, mpirun would know at once. Processes of a lost host are killed before its first one is gone.
_AGENT = """#!/bin/sh
address=$1; shift
case $address in
{cases}*) echo "no host $address" >&2; exit 255;;
esac
nsenter --target $host --all -- sh -c "$*"
status=$?
[ $status -eq 137 ] && sleep 1 && ! kill -0 $host 2>/dev/null && exec sleep infinity
exit $status
"""
_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc")


@dataclass(frozen=True)
class Host:
    """A host of a cluster that is up.

    Attributes
    ----------
    name, address : str
    profile : Profile
    init : int
        Process id of its first process.
    """

    name: str
    address: str
    profile: Profile
    init: int


def check_machine() -> None:
    """UsageError, with the reason, where no cluster can be emulated."""
    if not sys.platform.startswith("linux"):
        raise UsageError(f"cluster: hosts are made of Linux namespaces; this is {sys.platform}")
    if os.geteuid() != 0:
        raise UsageError("cluster: making network namespaces and limiting links needs root")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise UsageError(f"cluster: {', '.join(missing)} not found; iproute2 and util-linux have them")
    probe = subprocess.run(["unshare", *_NAMESPACES, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        raise UsageError(f"cluster: namespaces cannot be made here: {probe.stderr.strip()}")


class Cluster:
    """Hosts that are up while the ``with`` block runs: ``head``, and ``worker0``, ``worker1``, …

    Parameters
    ----------
    head : Profile
    workers : sequence of Profile
        One a worker.
    """

    def __init__(self, head: Profile, workers: Sequence[Profile]) -> None:
        if not 1 <= len(workers) < links.MOST_HOSTS:
            raise UsageError(f"cluster: from 2 to {links.MOST_HOSTS} hosts, not {len(workers) + 1}")
        self.name = running.own_name()
        self.hosts: dict[str, Host] = {}
        self._profiles = {HEAD: head} | {f"worker{i}": profile for i, profile in enumerate(workers)}
        self._join: dict[str, str] = {}  # by host: how a shell joins its cgroup, where it has one
        self._keeper: subprocess.Popen[str] | None = None
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Cluster:
        check_machine()
        limited = sorted({p.name for p in self._profiles.values() if p.cores is not None})
        if limited and not shares.available():
            print(f"mpi_runner: no cgroups to write: cores of {', '.join(limited)} are not limited", file=sys.stderr)
        running.clean()
        try:
            self._make(limit_cores=shares.available())
        except links.NetworkError as error:
            self.close()
            raise UsageError(f"cluster: {error}") from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def command(self, words: Sequence[str]) -> list[str]:
        """What to execute for a command to run on the head, in the working directory that this process has."""
        place = ["sh", "-c", f'{self._join[HEAD]}cd "$1" && shift && exec "$@"', "sh", os.getcwd()]
        return ["nsenter", "--target", str(self.hosts[HEAD].init), "--all", "--", *place, *words]

    def environment(self) -> dict[str, str]:
        """This process's variables, with which Open MPI's mpirun, started on the head, puts its ranks on the hosts, one
        a host. Where they name one place for all hosts' session files, it is not kept: daemons there are told apart by
        process id, and every host counts its own."""
        kept = {name: value for name, value in os.environ.items() if name not in (SESSIONS, SESSIONS_OF_ALL)}
        return kept | {
            "PRTE_MCA_plm": "ssh",
            "PRTE_MCA_plm_ssh_agent": f"{PRIVATE}/agent",
            "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
            "PRTE_MCA_prte_if_include": links.SUBNET,
            "PRTE_MCA_prte_default_hostfile": f"{PRIVATE}/hostfile",
            "OMPI_MCA_btl": "tcp,self",
            "OMPI_MCA_btl_tcp_if_include": links.SUBNET,
            "TMPDIR": PRIVATE,
            SPEED: str(self._profiles[HEAD].speed),
        }

    def close(self) -> None:
        """Take everything down. May be called again."""
        if self._keeper is not None:
            if self._keeper.stdin is not None:
                self._keeper.stdin.close()
            try:
                self._keeper.wait(running.END_SECONDS)
            except subprocess.TimeoutExpired:
                if found := running.clusters().get(self.name):
                    running.end(found)
            self._keeper.wait()
        for process in self._processes:  # nsenter: it ends with what it started
            process.wait()
        self._processes.clear()
        self._keeper = None
        shares.remove(self.name)

    def _make(self, *, limit_cores: bool) -> None:
        self._keeper = self._begin_head()
        head = self._first_process(self._keeper, HEAD)
        names = [SWITCH, *list(self._profiles)[1:]]
        started = {name: self._begin_other(head, name) for name in names}
        inits = {name: self._first_process(process, name) for name, process in started.items()}
        switch = inits.pop(SWITCH)
        inits = {HEAD: head} | inits
        links.connect(switch, inits, {name: profile.bandwidth for name, profile in self._profiles.items()})
        for number, (name, init) in enumerate(inits.items()):
            self.hosts[name] = Host(name, links.address(number), self._profiles[name], init)
        self._write_files(limit_cores)

    def _begin_head(self) -> subprocess.Popen[str]:
        group = shares.folder(self.name)
        clear = f"find {group} -depth -type d -exec rmdir {{}} +" if group is not None else "true"
        # The keeper: outside of all namespaces, deaf to the terminal's signals. `trap` without a command: ignored
        # signals stay ignored in what it starts, and the head ends by its pipe alone.
        keeper = f"""
trap '' INT TERM HUP QUIT
unshare {" ".join(_NAMESPACES)} sh -c '{_HEAD}' {HOST} "$1" {HEAD}
{clear} 2>/dev/null
"""
        return subprocess.Popen(
            ["sh", "-c", keeper, KEEPER, self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )

    def _begin_other(self, head: int, name: str) -> subprocess.Popen[str]:
        enter = ["nsenter", "--target", str(head), "--pid", "--mount", "--"]
        process = subprocess.Popen(
            [*enter, "unshare", *_NAMESPACES, "sh", "-c", _OTHER, HOST, self.name, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def _first_process(self, process: subprocess.Popen[str], name: str) -> int:
        """The process id of a host's first process, once the host is ready."""
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != "ready\n":
            process.kill()
            raise UsageError(f"cluster: host {name} could not be made: {process.stderr.read().strip()}")
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.cmdline()[3:] == [HOST, self.name, name]:
                    return int(child.pid)
        raise UsageError(f"cluster: host {name} ended as soon as it was made")

    def _write_files(self, limit_cores: bool) -> None:
        private = Path(f"/proc/{self.hosts[HEAD].init}/root{PRIVATE}")
        (private / "hostfile").write_text("".join(f"{host.address} slots=1\n" for host in self.hosts.values()))
        limit_cores = limit_cores and any(host.profile.cores is not None for host in self.hosts.values())
        cases = ""
        for host in self.hosts.values():
            # With one host all have a cgroup: agents run on the head, whose limit is not for what they start. 0 stands
            # for whoever writes it: processes have other ids in other namespaces.
            join = f"echo 0 > {shares.make(self.name, host.name, host.profile.cores)}; " if limit_cores else ""
            self._join[host.name] = join
            if host.name != HEAD:
                inside = _inside_head(host.init)
                cases += f"{host.address}) {join}export {SPEED}={host.profile.speed}; host={inside};;\n"
        agent = private / "agent"
        agent.write_text(_AGENT.format(cases=cases))
        agent.chmod(0o755)


def _inside_head(init: int) -> int:
    """A process's id as the head sees it: hosts are nested one deep in the head's namespace."""
    for line in Path(f"/proc/{init}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-2])
    raise RuntimeError(f"process {init} has no NSpid")
