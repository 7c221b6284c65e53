"""An emulated cluster: its links have the bandwidth they should, faults happen, and nothing is left of it.

Needs root on Linux; elsewhere the tests are skipped, with the reason that a user is given.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from runner_support import ROWS, SEED, single_model

from mpi_runner import cli, flights
from mpi_runner.cluster import commands, faults, hosts, links, profiles, running, shares
from mpi_runner.cluster.hosts import Cluster, Host
from mpi_runner.cluster.profiles import Profile
from mpi_runner.config import UsageError
from mpi_runner.launch import SESSIONS_OF_ALL, find_mpirun

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
PLAIN = profiles.load()["thin"]
LIMITED = Profile("limited", "100mbit", 0.5, "none", 0.2, {})


@pytest.fixture(scope="module")
def machine() -> None:
    """A machine that can emulate a cluster, or a skip."""
    try:
        hosts.check_machine()
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture
def cluster(machine: None) -> Iterator[Cluster]:
    """A head and two workers, the second limited to a fifth of a core."""
    with Cluster(profiles.load()["wide"], [PLAIN, LIMITED]) as up:
        yield up


def on(host: Host, *command: str, limit: float = 30) -> subprocess.CompletedProcess[str]:
    """Run a command on a host."""
    enter = ["nsenter", "--target", str(host.init), "--all", "--", *command]
    return subprocess.run(enter, capture_output=True, text=True, timeout=limit, check=False)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)


def found(cluster: Cluster) -> running.Running:
    return running.clusters()[cluster.name]


RECEIVE = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
peer, _ = listener.accept()
start, total = time.perf_counter(), 0
while block := peer.recv(1 << 20):
    total += len(block)
print(total, time.perf_counter() - start, flush=True)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[3])) as peer:
    peer.sendall(bytes(int(sys.argv[2])))
"""


def transfer(source: Host, target: Host, size: int, limit: float = 10.0) -> float:
    """The seconds that so many bytes take from one host to the other."""
    enter = ["nsenter", "--target", str(target.init), "--all", "--", sys.executable, "-c", RECEIVE, target.address]
    with subprocess.Popen(enter, stdout=subprocess.PIPE, text=True) as receiver:
        try:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "listening\n"
            sent = on(source, sys.executable, "-c", SEND, target.address, str(size), str(limit))
            assert sent.returncode == 0, sent.stderr
            total, seconds = receiver.stdout.readline().split()
        finally:
            for child in psutil.Process(receiver.pid).children():
                child.kill()
            receiver.kill()
    assert int(total) == size
    return float(seconds)


CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 5001), timeout=1)
except ConnectionRefusedError:
    pass
"""


def reachable(source: Host, target: Host) -> bool:
    """Whether a connection is answered within a second: by a refusal, since nobody listens."""
    return on(source, sys.executable, "-c", CONNECT, target.address).returncode == 0


def test_links_have_their_bandwidth_both_ways(cluster: Cluster) -> None:
    """100 Mbit/s move 2.5 MB in 0.2 s, less the burst; 10 Mbit/s, later, 0.9 MB in 0.7 s. Never less; a busy machine
    may take more, but not five times in a row."""
    head, worker = cluster.hosts["head"], cluster.hosts["worker0"]

    def moves(size: int, rate: float, most: float) -> None:
        for source, target in ((head, worker), (worker, head)):
            least = 8 * (size - 2 * links.BURST_BYTES) / rate
            for _ in range(5):
                seconds = transfer(source, target, size)
                assert seconds > least
                if seconds < most:
                    break
            else:
                pytest.fail(f"{size} bytes took {seconds} s, more than {most} s")

    moves(2_500_000, 1e8, 0.6)
    faults.inflict(found(cluster), faults.parse("worker0", "bandwidth=10mbit"))
    moves(900_000, 1e7, 2.0)


def test_faults_happen_to_their_host_alone(cluster: Cluster) -> None:
    head, first, second = cluster.hosts.values()
    everyone = found(cluster)
    assert reachable(head, first)
    assert reachable(first, second)
    faults.inflict(everyone, faults.parse("worker0", "link-down"))
    assert not reachable(head, first)
    assert not reachable(first, second)
    assert reachable(head, second)
    faults.inflict(everyone, faults.parse("worker0", "link-up"))
    wait_for(lambda: reachable(head, first), 10)
    resident = subprocess.Popen(["nsenter", "--target", str(first.init), "--all", "--", "sleep", "1000"])
    faults.inflict(everyone, faults.parse("worker0", "lost"))
    assert resident.wait(5) != 0
    wait_for(lambda: not psutil.pid_exists(first.init), 5)
    assert not reachable(head, first)
    assert reachable(head, second)
    with pytest.raises(UsageError, match="no host 'worker0' is up; there are head, worker1"):
        faults.inflict(found(cluster), faults.parse("worker0", "link-up"))


def test_hosts_are_apart_from_this_machine_and_from_the_world(cluster: Cluster) -> None:
    here = socket.gethostname()
    for host in cluster.hosts.values():
        assert on(host, "hostname").stdout == f"{host.name}\n" != f"{here}\n"
        routes = on(host, "ip", "-json", "route").stdout
        assert [route["dst"] for route in json.loads(routes)] == [links.SUBNET]
        interfaces = json.loads(on(host, "ip", "-json", "link").stdout)
        assert {entry["ifname"] for entry in interfaces} == {"lo", "eth0"}
        assert on(host, "ls", "-A", hosts.PRIVATE).stdout.split() == (
            ["agent", "hostfile"] if host.name == "head" else []
        )


BURN = """
import time
start = time.perf_counter()
while time.process_time() < 0.5:
    pass
print(time.perf_counter() - start)
"""


def test_cores_are_limited(machine: None) -> None:
    """Half a second of computing takes 2.5 s on a fifth of a core, on the head and on a worker."""
    if not shares.available():
        pytest.skip("no cgroups to write: cores are not limited on this machine")
    with Cluster(LIMITED, [LIMITED, PLAIN]) as up:
        agent = [f"{hosts.PRIVATE}/agent", up.hosts["worker0"].address, sys.executable, "-c", shlex.quote(BURN)]
        free = [f"{hosts.PRIVATE}/agent", up.hosts["worker1"].address, "cat", "/proc/self/cgroup"]
        for program in (agent, [sys.executable, "-c", BURN]):
            limited = subprocess.run(up.command(program), capture_output=True, text=True, check=True, timeout=60)
            assert float(limited.stdout) > 2.0
        # The agent runs on the head, whose limit a worker without one of its own must not inherit.
        own = subprocess.run(up.command(free), capture_output=True, text=True, check=True, timeout=60).stdout
        assert f"/{shares.PREFIX}{up.name}/worker1\n" in own


RANK = """
import os, socket
from mpi4py import MPI
from mpi_runner.delays import own_speed
private = os.environ["OMPI_FILE_LOCATION"].startswith("/dev/shm/")
names = MPI.COMM_WORLD.gather((socket.gethostname(), own_speed(), private))
if MPI.COMM_WORLD.Get_rank() == 0:
    print(names)
"""


def test_ranks_are_on_the_hosts_in_order_and_their_files_too(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SESSIONS_OF_ALL, str(tmp_path))  # for hosts with disks, and process ids, of their own
    (tmp_path / "rank.py").write_text(RANK)
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        cluster.command([find_mpirun(), "-n", "3", sys.executable, str(tmp_path / "rank.py")]),
        env=root | cluster.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "[('head', 1.0, True), ('worker0', 1.0, True), ('worker1', 0.5, True)]" in done.stdout


def test_an_error_takes_everything_down(machine: None) -> None:
    watch = Watch()

    def fail() -> None:
        with Cluster(PLAIN, [LIMITED]) as up:
            watch.look()
            assert running.clusters()[up.name].owned
            raise RuntimeError("made to fail")

    with pytest.raises(RuntimeError, match="made to fail"):
        fail()
    watch.assert_nothing_left()


def test_a_host_that_cannot_be_made_takes_everything_down(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()

    def refuse(*arguments: object) -> None:
        watch.look()
        raise links.NetworkError("tc failed: made to fail")

    monkeypatch.setattr(links, "limit", refuse)
    with pytest.raises(UsageError, match="tc failed: made to fail"), Cluster(PLAIN, [LIMITED]):
        pytest.fail("it was made")
    watch.assert_nothing_left()


class Watch:
    """What there is of clusters that the tests make: namespaces, processes, interfaces, cgroups, files."""

    def __init__(self) -> None:
        self._before = self._surroundings()
        self._known = set(running.clusters())
        self._namespaces: set[str] = set()
        self._names: set[str] = set()

    @staticmethod
    def _surroundings() -> tuple[object, ...]:
        interfaces = sorted(name for _, name in socket.if_nameindex())
        named = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        # What MPI leaves has the name of its host, and other jobs may come and go.
        files = [*Path("/dev/shm").iterdir(), *Path("/tmp").glob("ompi*"), *Path("/tmp").glob("prte*")]
        return interfaces, named, sorted(str(path) for path in files if re.search(r"head|worker\d", path.name))

    def look(self) -> None:
        """Note what is up."""
        for name, up in running.clusters().items():
            if name not in self._known:
                self._names.add(name)
                self._namespaces |= {self._namespace(init) for init in up.hosts.values()}
        self._namespaces.discard("")

    @staticmethod
    def _namespace(pid: int) -> str:
        try:
            return os.readlink(f"/proc/{pid}/ns/net")
        except OSError:
            return ""

    def left(self) -> list[str]:
        """What is left of them now."""
        left = [f"cluster {name}" for name in running.clusters() if name in self._names]
        for process in psutil.process_iter():
            if self._namespace(process.pid) in self._namespaces:
                left.append(f"process {process}")
        left += [f"cgroups of {name}" for name in shares.names() if name in self._names]
        return left

    def assert_nothing_left(self, context: object = None) -> None:
        assert self._namespaces, "nothing was seen of it"
        end = time.monotonic() + 5
        while self.left() and time.monotonic() < end:
            time.sleep(0.05)
        assert self.left() == [], context
        assert self._surroundings() == self._before, context


def start(*words: str) -> subprocess.Popen[str]:
    """Start ``python -m mpi_runner cluster``."""
    command = [sys.executable, "-m", "mpi_runner", "cluster", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupted(moment: float, number: int, run: Path) -> None:
    """A training run of three workers that is sent a signal after so many seconds, of which nothing must be left."""
    watch = Watch()
    train = ["train", "--scheme", "uncoded", "--workers", "3", "--iterations", "100000", "--rows", str(ROWS)]
    tool = start("run", "--hosts", "4", "--worker", "t3.micro", "--", *train, "--seed", str(SEED), "--run", str(run))
    wait_for(lambda: any(up.keeper.ppid() == tool.pid for up in running.clusters().values()), 30)
    end = time.monotonic() + moment
    while time.monotonic() < end:
        watch.look()
        time.sleep(0.01)
    watch.look()
    tool.send_signal(number)
    output, errors = tool.communicate(timeout=40)
    context = (moment, number, output, errors)
    assert tool.returncode == (-number if number == signal.SIGKILL else 128 + number), context
    watch.assert_nothing_left(context)


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGINT, 3.0), (signal.SIGTERM, 0.05), (signal.SIGKILL, 3.0)])
def test_an_interrupted_run_leaves_nothing(
    number: int, moment: float, machine: None, data: flights.Flights, tmp_path: Path
) -> None:
    """While it trains, and while its hosts are being made."""
    interrupted(moment, number, tmp_path / "run")


@pytest.mark.soak
def test_twenty_runs_interrupted_at_random_leave_nothing(machine: None, data: flights.Flights, tmp_path: Path) -> None:
    seed = 20
    print(f"seed {seed}")
    rng = random.Random(seed)
    for run in range(20):
        interrupted(rng.uniform(0.0, 6.0), rng.choice(SIGNALS), tmp_path / str(run))


def test_what_dead_clusters_left_is_cleaned_and_the_living_are_not_touched(machine: None, cluster: Cluster) -> None:
    """The tool and its keeper killed at once: the kernel takes the hosts, `clean` the cgroups."""
    watch = Watch()
    tool = start("run", "--hosts", "2", "--worker", "t3.micro", "--", "sleep", "1000")
    wait_for(lambda: any(up.keeper.ppid() == tool.pid and len(up.hosts) == 3 for up in running.clusters().values()), 30)
    watch.look()
    (keeper,) = [up.keeper for up in running.clusters().values() if up.keeper.ppid() == tool.pid]
    if shares.available():
        wait_for(lambda: f"{tool.pid}-" in " ".join(shares.names()), 10)
    keeper.kill()
    tool.kill()
    tool.communicate(timeout=30)
    cleaning = start("clean")
    output, errors = cleaning.communicate(timeout=30)
    assert cleaning.returncode == 0, errors
    assert f"{tool.pid}-" in output or not shares.available()
    watch.assert_nothing_left()
    assert found(cluster).owned
    assert reachable(cluster.hosts["head"], cluster.hosts["worker0"])
    assert running.clean() == []


def lost_workers(run: Path) -> dict[int, str]:
    """The workers that a run lost, and how."""
    with (run / "faults.csv").open(newline="") as file:
        return {int(row["worker"]): row["kind"] for row in csv.DictReader(file)}


SURVIVING_HOSTS = ("--hosts", "5", "--worker", "even")
SURVIVED = (
    "train", "--scheme", "fractional_repetition", "--stragglers", "1", "--workers", "4", "--iterations", "40",
    "--rows", str(ROWS), "--seed", str(SEED), "--delay", "none", "--hang-deadline", "1",
)  # fmt: skip


# For the master both are the same, a worker that is silent.
@pytest.mark.parametrize("fault", ["lost", pytest.param("link-down", marks=pytest.mark.soak)])
def test_a_host_that_is_cut_off_or_lost_is_survived(
    fault: str, machine: None, data: flights.Flights, tmp_path: Path
) -> None:
    """The run goes on without its worker, says so, ends with 0, and has the model of training in one process."""
    run = tmp_path / "run"
    tool = start("run", *SURVIVING_HOSTS, "--", *SURVIVED, "--run", str(run))
    rows = run / "iterations.csv"
    wait_for(lambda: tool.poll() is not None or (rows.exists() and rows.read_text().count("\n") > 10), 60)
    assert tool.poll() is None, tool.communicate()
    (up,) = [up for up in running.clusters().values() if up.keeper.ppid() == tool.pid]
    faults.inflict(up, faults.parse("worker2", fault))
    output, errors = tool.communicate(timeout=60)
    assert tool.returncode == 0, (output, errors)
    assert list(lost_workers(run)) == [2]
    assert "worker 2" in errors
    model = np.load(run / "model.npy", allow_pickle=False)
    single = single_model(run, data, 40)
    assert np.abs(model - single).max() <= 1e-5 * np.abs(single).max()


def test_a_run_of_the_runner_takes_delays_from_the_profile(
    machine: None, data: flights.Flights, tmp_path: Path
) -> None:
    """A fault is due meanwhile, and one after the end, which is said."""
    train = ["train", "--scheme", "uncoded", "--workers", "2", "--iterations", "30", "--rows", str(ROWS)]
    faults_due = ["--fault", "worker1@0.1s:bandwidth=50mbit", "--fault", "worker1@900s:lost"]
    tool = start("run", "--hosts", "3", *faults_due, "--", *train, "--seed", str(SEED), "--run", str(tmp_path / "run"))
    output, errors = tool.communicate(timeout=120)
    assert tool.returncode == 0, output + errors
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["config"]["delay"] == PLAIN.straggling
    assert config["host"]["name"] == "head"
    assert "worker1: bandwidth=50mbit\n" in errors
    assert "the command ended before worker1: lost" in errors


def test_the_commands_status_is_passed_on(machine: None) -> None:
    tool = start("run", "--hosts", "2", "--", "sh", "-c", "exit 7")
    tool.communicate(timeout=30)
    assert tool.returncode == 7


def test_a_fault_from_the_command_line(machine: None) -> None:
    with Cluster(PLAIN, [PLAIN]) as up:
        words = ["fault", "worker0", "link-down", "--cluster", up.name]
        tool = start(*words)
        _, errors = tool.communicate(timeout=30)
        assert tool.returncode == 0, errors
        assert not reachable(up.hosts["head"], up.hosts["worker0"])
    tool = start(*words)
    _, errors = tool.communicate(timeout=30)
    assert (tool.returncode, errors) == (2, f"mpi_runner: error: --cluster: no cluster {up.name!r} is up\n")


def test_delays_that_are_named_are_kept() -> None:
    named = commands.runner_command(["train", "--delay=none"], PLAIN)
    assert named[1:] == ["-u", "-m", "mpi_runner", "train", "--delay=none"]
    assert commands.runner_command(["compare"], PLAIN)[-2:] == ["--delay", PLAIN.straggling]
    assert commands.runner_command(["data"], PLAIN)[-1] == "data"
    assert commands.runner_command(["mpirun", "true"], PLAIN) == ["mpirun", "true"]


def test_the_ranks_of_a_command() -> None:
    assert commands.ranks(["train", "--scheme", "uncoded", "--workers", "12"]) == 13
    assert commands.ranks(["compare", "--workers=3", "--schemes", "uncoded"]) == 4
    assert commands.ranks(["train"]) == 9
    assert commands.ranks(["train", "--workers", "0"]) is None
    assert commands.ranks(["data"]) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "give a command after --"),
        (["run", "--hosts", "8", "--", "train"], "--hosts must be at least 9, a head and 8 workers, not 8"),
        (["run", "--worker", "other", "--", "true"], "--worker must be one of thin"),
        (["run", "--head", "other", "--", "true"], "--head must be one of thin"),
        (["run", "--fault", "worker8@1s:lost", "--", "true"], "no host worker8 among head and worker0 to worker7"),
        (["run", "--fault", "worker1:lost", "--", "true"], "must be HOST@SECONDSs:FAULT"),
        (["run", "--profiles", "/nowhere", "--", "true"], "cannot read /nowhere"),
    ],
)
def test_bad_commands_say_what_is_wrong(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, links.MOST_HOSTS])
def test_too_few_or_many_hosts(count: int) -> None:
    with pytest.raises(UsageError, match=f"from 2 to {links.MOST_HOSTS} hosts, not {count + 1}"):
        Cluster(PLAIN, [PLAIN] * count)


def test_where_no_cluster_can_be_made_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cluster", "run", "--hosts", "2", "--", "true"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert cli.main(command) == 2
    assert capsys.readouterr().err == "mpi_runner: error: cluster: hosts are made of Linux namespaces; this is darwin\n"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "linux")
        patch.setattr(os, "geteuid", lambda: 1000)
        assert cli.main(command) == 2
        assert "needs root" in capsys.readouterr().err
        patch.setattr(os, "geteuid", lambda: 0)
        patch.setattr(shutil, "which", lambda tool: None if tool == "tc" else f"/bin/{tool}")
        assert cli.main(command) == 2
        assert "cluster: tc not found; iproute2 and util-linux have them" in capsys.readouterr().err


def test_profiles_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "profiles"]) == 0
    listed = capsys.readouterr().out
    for profile in profiles.load().values():
        assert profile.name in listed
        assert profile.source["bandwidth"] in listed
