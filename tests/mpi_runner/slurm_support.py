"""A Slurm of one's own on this machine: a controller and several nodes, on free ports, in a temporary folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

TOOLS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
NODES = 3
GRACE_SECONDS = 20
START_SECONDS = 20.0
CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
KillWait=5
ReturnToService=2
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cores}
PartitionName=low Nodes=n[1-{nodes}] Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=n[1-{nodes}] PriorityTier=2 PreemptMode=OFF
"""


class Slurm:
    """Daemons that are up, and what to run commands with.

    Attributes
    ----------
    environment : dict
        For Slurm's commands, and for what submits jobs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons; a RuntimeError says why they do not come up."""
        folder = self._folder
        (folder / "state").mkdir()
        munge = folder / "munge"
        munge.mkdir()
        (munge / "key").write_bytes(secrets.token_bytes(128))
        (munge / "key").chmod(0o600)
        port = _free_ports(NODES + 1)
        (folder / "slurm.conf").write_text(
            CONF.format(
                host=platform.node().partition(".")[0],
                port=port,
                first=port + 1,
                last=port + NODES,
                user=getpass.getuser(),
                folder=folder,
                nodes=NODES,
                cores=os.cpu_count(),
                grace=GRACE_SECONDS,
            )
        )
        files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "socket": "socket"}
        self._daemon("munged", "--foreground", "--force", *(f"--{name}={munge / file}" for name, file in files.items()))
        self._await("munged", (munge / "socket").exists)
        self._daemon("slurmctld", "-D")
        for node in range(1, NODES + 1):
            self._daemon("slurmd", "-D", "-N", f"n{node}")
        self._await("slurmctld with all nodes", lambda: self.run("sinfo", "-h", "-o", "%D %T") == f"{NODES} idle")

    def run(self, *command: str) -> str:
        """What a command of Slurm says."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.strip()

    def go_on(self, job: str) -> None:
        """Let a job that was queued again start soon: Slurm would have it wait for two minutes.

        Not in the second in which it was ended: to slurmd, which counts seconds, its new credential is then an old one.
        """
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")

    def state(self, job: str) -> str:
        """Of a job: PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, …"""
        said = self.run("scontrol", "--oneliner", "show", "job", job)
        return said.partition("JobState=")[2].partition(" ")[0]

    def stop(self) -> None:
        """End all jobs, all daemons, and whatever job processes are left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("scancel", "--full", "--signal=KILL", "--state=RUNNING", f"--user={getpass.getuser()}")
            self.run("scancel", f"--user={getpass.getuser()}")
            _wait(lambda: not self.run("squeue", "-h"), 10)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Those of jobs, by the configuration in their environment; the daemons are not among them."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    found.append(process)
        own = {daemon.pid for daemon in self._daemons}
        return [process for process in found if process.pid not in own]

    def _daemon(self, *command: str) -> None:
        bound = ["setpriv", "--pdeathsig", "KILL", *command]  # it ends with this process, whatever ends that
        with (self._folder / f"{command[0]}-{len(self._daemons)}.log").open("wb") as log:
            daemon = subprocess.Popen(
                bound, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._daemons.append(daemon)

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        if (
            _wait(lambda: condition() or any(d.poll() is not None for d in self._daemons), START_SECONDS)
            and condition()
        ):
            return
        said = "; ".join(log.read_text(errors="replace")[-300:] for log in sorted(self._folder.glob("*.log")))
        raise RuntimeError(f"{what} did not start: {' '.join(said.split())}")


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _free_ports(count: int) -> int:
    """The first of several free ports in a row."""
    while True:
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
            for port in range(first + 1, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


@contextlib.contextmanager
def local_slurm(folder: Path) -> Iterator[Slurm]:
    """One that is up; the test is skipped where there cannot be one."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: Debian has slurmctld, slurmd, slurm-client and munge")
    slurm = Slurm(folder)
    try:
        slurm.start()
    except RuntimeError as error:
        slurm.stop()
        pytest.skip(f"Slurm cannot be started here: {error}")
    try:
        yield slurm
    finally:
        slurm.stop()
