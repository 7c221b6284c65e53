"""Workers that die or hang, a master that dies, and MPIs that cannot bear it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from runner_support import LIMIT, ROWS, SEED, Start, left, progress, ranks, single_model, wait_for

from fastgc import schemes
from mpi_runner import flights
from mpi_runner.faults import HangDeadline
from mpi_runner.launch import EXIT_LOST, survives_faults
from mpi_runner.processes import Identity, find, kill, own_identity

SHUTDOWN = 10.0  # seconds
SCHEME = ["--scheme", "grouped", "--load", "4", "--reduction", "2", "--workers", "4"]
HANG = "6"  # seconds: on a busy machine a worker may have no core for one or two
SURVIVABLE = 2  # workers of the one group that may be lost
ITERATIONS = 60


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def finish(process: subprocess.Popen[str], folder: Path) -> tuple[float, str]:
    """Wait for a run; returns the seconds from its master's last record to its end, and what it said on standard error.

    The model is evaluated between the last iteration and that record.
    """
    try:
        wait_for(lambda: (folder / "outcome.json").exists() or process.poll() is not None, LIMIT)
        last = time.monotonic()
        _, errors = process.communicate(timeout=LIMIT)
    finally:
        process.terminate()
    return time.monotonic() - last, errors


def check_model(folder: Path, data: flights.Flights, iterations: int = ITERATIONS) -> None:
    single = single_model(folder, data, iterations)
    model = np.load(folder / "model.npy", allow_pickle=False)
    assert np.linalg.norm(model - single) <= 1e-5 * np.linalg.norm(single)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_lost_workers_are_survived(number: int, start: Start, tmp_path: Path, data: flights.Flights) -> None:
    folder = tmp_path / "run"
    process = start(*SCHEME, "--iterations", str(ITERATIONS), "--delay", "exponential:0.01", "--hang-deadline", HANG)
    wait_for(lambda: progress(folder) >= 5, LIMIT)
    family = psutil.Process(process.pid).children(recursive=True)
    there = ranks(psutil.Process(process.pid))
    for worker in (3, 0):
        there[worker + 1].send_signal(number)
    seconds, errors = finish(process, folder)
    assert process.returncode == 0, errors
    assert seconds <= SHUTDOWN
    assert not left(family)
    check_model(folder, data)
    faults = table(folder / "faults.csv")
    assert sorted(int(row["worker"]) for row in faults) == [0, 3]
    kinds = {"died"} if number == signal.SIGKILL else {"hung", "unstopped"}
    assert {row["kind"] for row in faults} <= kinds
    assert all(5 <= int(row["iteration"]) <= ITERATIONS + 1 for row in faults)
    assert {int(row["pid"]) for row in faults} == {there[worker + 1].pid for worker in (0, 3)}
    assert errors.count("mpi_runner: warning: worker ") == 2
    assert json.loads((folder / "summary.json").read_text())["lost_workers"] == [0, 3]


def test_one_worker_too_many_ends_the_run_and_it_goes_on_from_there(
    start: Start, tmp_path: Path, data: flights.Flights
) -> None:
    folder = tmp_path / "run"
    process = start(*SCHEME, "--iterations", str(ITERATIONS), "--delay", "exponential:0.01")
    wait_for(lambda: progress(folder) >= 5, LIMIT)
    family = psutil.Process(process.pid).children(recursive=True)
    there = ranks(psutil.Process(process.pid))
    for worker in range(SURVIVABLE + 1):
        there[worker + 1].kill()
    killed = time.monotonic()
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == EXIT_LOST
    assert time.monotonic() - killed <= SHUTDOWN
    assert not left(family)
    assert "are lost" in errors
    done = progress(folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"iteration-{done:09}.npz"]
    assert json.loads((folder / "outcome.json").read_text())["status"] == EXIT_LOST
    again = subprocess.run(
        [sys.executable, "-m", "mpi_runner", "train", "--resume", str(folder)],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert progress(folder) == ITERATIONS
    check_model(folder, data)


def test_without_its_master_no_worker_stays(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(*SCHEME, "--iterations", "100000", "--delay", "exponential:0.02")
    wait_for(lambda: progress(folder) >= 5, LIMIT)
    family = psutil.Process(process.pid).children(recursive=True)
    there = ranks(psutil.Process(process.pid))
    there[2].suspend()  # this one cannot end by itself
    there[0].kill()
    process.communicate(timeout=SHUTDOWN)
    assert process.returncode not in (0, 2)
    assert not left(family)


NO_ULFM = """
import sys
from mpi_runner import cli, launch

launch.survives_faults = lambda mpirun: False
sys.exit(cli.main(sys.argv[1:]))
"""


def test_an_mpi_that_bears_no_faults_ends_with_a_checkpoint(data: flights.Flights, tmp_path: Path) -> None:
    program, folder = tmp_path / "no_ulfm.py", tmp_path / "run"
    program.write_text(NO_ULFM)
    command = [sys.executable, str(program), "train", *SCHEME, "--rows", str(ROWS), "--seed", str(SEED)]
    command += ["--run", str(folder), "--iterations", "100000", "--checkpoint-every", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: progress(folder) >= 12, LIMIT)
        family = psutil.Process(process.pid).children(recursive=True)
        ranks(psutil.Process(process.pid))[2].kill()
        process.communicate(timeout=SHUTDOWN + 5)
    finally:
        process.terminate()
    assert process.returncode == EXIT_LOST
    assert not left(family)
    assert list((folder / "checkpoints").iterdir())


# 50 runs: up to the number of stragglers in each group, at any moment -------------------------------------------------

SOAKED: list[list[str]] = [
    ["--scheme", "grouped", "--load", "4", "--reduction", "2", "--workers", "8"],
    ["--scheme", "fractional_repetition", "--stragglers", "1", "--workers", "6"],
    ["--scheme", "cyclic_repetition", "--stragglers", "2", "--workers", "6"],
]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(50))
def test_random_losses(seed: int, start: Start, tmp_path: Path, data: flights.Flights) -> None:
    generator = np.random.default_rng(seed)
    folder = tmp_path / "run"
    scheme = SOAKED[seed % len(SOAKED)]
    process = start(*scheme, "--iterations", str(ITERATIONS), "--delay", "exponential:0.01", "--hang-deadline", HANG)
    wait_for(lambda: (folder / "processes.csv").exists() or process.poll() is not None, LIMIT)
    assert process.poll() is None, process.communicate()[1]
    family = psutil.Process(process.pid).children(recursive=True)
    there = ranks(psutil.Process(process.pid))
    made = schemes.load(folder / "scheme.npz")
    # Of a scheme that is one group the stragglers may be any; else so many in each group.
    victims = [
        int(worker)
        for group in made.groups
        for worker in generator.permutation(group.workers)[: generator.integers(0, made.stragglers + 1)]
    ]
    sent = []
    for worker in generator.permutation(victims):
        moment = int(generator.integers(0, ITERATIONS))
        wait_for(lambda moment=moment: progress(folder) >= moment or process.poll() is not None, LIMIT)
        number = signal.SIGKILL if generator.random() < 0.5 else signal.SIGSTOP
        if process.poll() is None and there[int(worker) + 1].is_running():
            there[int(worker) + 1].send_signal(number)
            sent.append((int(worker), number.name, moment))
    seconds, errors = finish(process, folder)
    told = f"seed {seed}: {sent}\n{errors}"
    assert process.returncode == 0, told
    assert seconds <= SHUTDOWN, told
    assert not left(family), told
    assert {int(row["worker"]) for row in table(folder / "faults.csv")} <= set(victims), told
    check_model(folder, data)


# Parts ---------------------------------------------------------------------------------------------------------------


def test_a_deadline_is_learned_from_the_slowest() -> None:
    deadline = HangDeadline()
    assert deadline.seconds == HangDeadline.FIRST
    deadline.note(0.01)
    assert deadline.seconds == HangDeadline.LEAST
    deadline.note(7.0)
    deadline.note(0.5)
    assert deadline.seconds == 7.0 * HangDeadline.FACTOR
    given = HangDeadline(0.25)
    given.note(100.0)
    assert given.seconds == 0.25


def test_a_process_is_known_by_host_pid_and_start() -> None:
    own = own_identity()
    found = find(own)
    assert found is not None
    assert found.pid == os.getpid()
    for other in (own._replace(host="elsewhere"), own._replace(started=own.started - 5), own._replace(pid=2**22 + 1)):
        assert find(other) is None
        assert not kill(other)


def test_a_stopped_process_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        seen = psutil.Process(process.pid)
        seen.suspend()
        identity = Identity(own_identity().host, process.pid, seen.create_time())
        assert kill(identity)
        assert process.wait(5) == -signal.SIGKILL
        assert not kill(identity)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to ...", True),
        ("mpirun (Open MPI) 4.1.6", False),
        ("mpiexec (OpenRTE) 4.1.4", False),
        ("HYDRA build details:\n    Version:  4.2.0", False),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11", False),
    ],
)
def test_which_mpi_bears_faults(said: str, expected: bool, tmp_path: Path) -> None:
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(f"#!/bin/sh\ncat <<'EOF'\n{said}\nEOF\n")
    mpirun.chmod(0o755)
    assert survives_faults(str(mpirun)) is expected
