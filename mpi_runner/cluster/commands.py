"""``python -m mpi_runner cluster run | fault | profiles | clean``."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from mpi_runner import experiments, launch
from mpi_runner.cluster import faults, profiles, running
from mpi_runner.cluster.hosts import Cluster, check_machine
from mpi_runner.config import UsageError

RUNNER_COMMANDS = ("data", "train", "compare")
INJECTING = ("train", "compare")
HOSTS = 9
LOOK_SECONDS = 0.05
END_SECONDS = 20.0
"""What a command has to end after a signal. The runner bounds its own end by 10 s."""


def add(commands: Any) -> None:
    """Add ``cluster`` to a parser's commands."""
    cluster = commands.add_parser(
        "cluster",
        help="hosts on this machine, for any of these commands",
        description="A cluster on one machine: hosts in network namespaces, with links of limited bandwidth. Needs "
        "root on Linux.",
    )
    actions = cluster.add_subparsers(title="actions", required=True, metavar="run | fault | profiles | clean")

    run = actions.add_parser("run", help="make hosts, run a command on them, take them down", description=_run.__doc__)
    run.add_argument(
        "--hosts", type=int, help=f"a head and workers (default: as many as train or compare need, else {HOSTS})"
    )
    run.add_argument("--worker", default="thin", metavar="PROFILE", help="of the workers (default: thin)")
    run.add_argument("--head", default="wide", metavar="PROFILE", help="of the head (default: wide)")
    run.add_argument("--profiles", type=Path, metavar="FILE", help="profiles of your own, in TOML")
    run.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="HOST@SECONDSs:FAULT",
        help=f"such as worker3@20s:link-down; faults: {', '.join(faults.KINDS)}; may be given again",
    )
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- then a command of the runner, or any program")
    run.set_defaults(run_command=_run)

    fault = actions.add_parser("fault", help="let something happen to a host that is up", description=_fault.__doc__)
    fault.add_argument("host", help="head, worker0, worker1, ...")
    fault.add_argument("fault", help=", ".join(faults.KINDS))
    fault.add_argument("--cluster", metavar="NAME", help="which, where several are up")
    fault.set_defaults(run_command=_fault)

    listed = actions.add_parser("profiles", help="the kinds of hosts", description=_profiles.__doc__)
    listed.add_argument("--profiles", type=Path, metavar="FILE", help="profiles of your own, in TOML")
    listed.set_defaults(run_command=_profiles)

    clean = actions.add_parser("clean", help="remove what dead clusters left", description=_clean.__doc__)
    clean.set_defaults(run_command=_clean)


def _run(options: argparse.Namespace) -> int:
    """Make hosts, run a command of the runner, or any program, on the head, with MPI ranks one a host, and take
    everything down however that ends."""
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise UsageError("cluster run: give a command after --, such as: -- train --scheme uncoded --workers 8")
    known = profiles.load(options.profiles)
    head = profiles.choose(known, options.head, "--head")
    worker = profiles.choose(known, options.worker, "--worker")
    planned = [faults.parse_timed(text) for text in options.fault]
    needed = ranks(words)
    hosts = options.hosts if options.hosts is not None else needed or HOSTS
    if needed is not None and hosts < needed:
        raise UsageError(f"--hosts must be at least {needed}, a head and {needed - 1} workers, not {hosts}")
    names = ["head", *(f"worker{i}" for i in range(hosts - 1))]
    if unknown := sorted({fault.host for fault in planned} - set(names)):
        raise UsageError(f"--fault: no host {', '.join(unknown)} among head and worker0 to worker{hosts - 2}")
    with launch.signals_noted() as received, Cluster(head, [worker] * (hosts - 1)) as cluster:
        return execute(cluster, runner_command(words, worker), planned, received)


def ranks(words: Sequence[str]) -> int | None:
    """The MPI ranks that a training command starts; None for other commands, and for what train itself will refuse."""
    if words[0] not in INJECTING:
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workers", default=str(HOSTS - 1))
    file = _experiments(words)
    told = parser.parse_known_args(words[1:])[0].workers
    given = str(told if file is None else experiments.read(Path(file)).options.get("workers", told))
    return int(given) + 1 if given.isascii() and given.isdigit() and int(given) > 0 else None


def _experiments(words: Sequence[str]) -> str | None:
    """The file of experiments that a command names, which says all that the runs are told."""
    named = words[0] == "compare" and len(words) > 1 and words[1].endswith(".toml")
    return words[1] if named else None


def runner_command(words: Sequence[str], worker: profiles.Profile) -> list[str]:
    """Complete a command of the runner: by this Python, and the profile's delays where it names none."""
    if words[0] not in RUNNER_COMMANDS:
        return list(words)
    delays = []
    named = _experiments(words) is not None or any(word.partition("=")[0] == "--delay" for word in words)
    if words[0] in INJECTING and not named:
        delays = ["--delay", worker.straggling]
    return [sys.executable, "-u", "-m", "mpi_runner", *words, *delays]


def execute(
    cluster: Cluster,
    words: Sequence[str],
    planned: Sequence[faults.Fault] = (),
    received: Sequence[int] = (),
    *,
    output: Any = None,
) -> int:
    """Run a command on a cluster's head, and let faults happen when their time has come.

    Parameters
    ----------
    cluster : Cluster
        One that is up.
    words : sequence of str
        The command.
    planned : sequence of Fault
    received : sequence of int
        Signals that this process has been sent; may grow meanwhile. The first is passed on, and the command has
        `END_SECONDS` to end.
    output : optional
        Where standard output and errors of the command go, as `subprocess.Popen` takes them; by default where this
        process's go.

    Returns
    -------
    int
        The command's exit status, or 128 + the number of the signal.
    """
    if received:
        return launch.SIGNALLED + received[0]
    # A session of its own: a Ctrl-C reaches it from here, once.
    process = subprocess.Popen(
        cluster.command(words),
        env=cluster.environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    start = time.monotonic()
    due = sorted(planned, key=lambda fault: fault.seconds)
    try:
        while not received and process.poll() is None:
            while due and time.monotonic() - start >= due[0].seconds:
                _happen(cluster, due.pop(0))
            _wait(process, lambda: bool(received), LOOK_SECONDS)
        if received and process.poll() is None:
            _signal(process, received[0])
            _wait(process, lambda: False, END_SECONDS)
    finally:
        if process.poll() is None:
            _signal(process, signal.SIGKILL)
            process.kill()
            process.wait()
    for fault in due:
        print(f"mpi_runner: the command ended before {fault}", file=sys.stderr)
    if received or process.returncode < 0:
        return launch.SIGNALLED + (received[0] if received else -process.returncode)
    return process.returncode


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the command: nsenter, which waits for it, passes nothing on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children():
            child.send_signal(number)


def _wait(process: subprocess.Popen[bytes], enough: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and not enough() and time.monotonic() < end:
        time.sleep(0.02)


def _happen(cluster: Cluster, fault: faults.Fault) -> None:
    found = running.clusters().get(cluster.name)
    try:
        if found is not None:
            faults.inflict(found, fault)
            print(f"mpi_runner: {fault}", file=sys.stderr, flush=True)
    except UsageError as error:  # the run goes on: what it does without that host is what is looked at
        print(f"mpi_runner: {error}", file=sys.stderr, flush=True)


def _fault(options: argparse.Namespace) -> int:
    """Let something happen to a host of a cluster that is up."""
    check_machine()
    fault = faults.parse(options.host, options.fault)
    up = {name: cluster for name, cluster in running.clusters().items() if cluster.owned}
    if options.cluster is None and len(up) > 1:
        raise UsageError(f"--cluster must be one of {', '.join(sorted(up))}: several clusters are up")
    name = options.cluster if options.cluster is not None else next(iter(up), None)
    if name not in up:
        raise UsageError("fault: no cluster is up" if name is None else f"--cluster: no cluster {name!r} is up")
    faults.inflict(up[name], fault)
    return 0


def _profiles(options: argparse.Namespace) -> int:
    """List the kinds of hosts, with the source of every number."""
    for profile in profiles.load(options.profiles).values():
        print(profile.name)
        for field in profiles.NUMBERS:
            value = getattr(profile, field)
            if value is not None:
                print(f"  {field}: {value}  ({profile.source[field]})")
    return 0


def _clean(options: argparse.Namespace) -> int:
    """Remove what is left of clusters whose maker is dead. Clusters that are up, and all else, are not touched."""
    check_machine()
    removed = running.clean()
    print(f"removed {', '.join(removed)}" if removed else "nothing to remove")
    return 0
