"""Host files, and training on their hosts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from runner_support import Train, single_model

from mpi_runner import hostfile
from mpi_runner.cluster.hosts import check_machine
from mpi_runner.cluster.links import address
from mpi_runner.config import UsageError
from mpi_runner.flights import Flights

BAD = [
    ("", "names no host"),
    ("# nothing\n", "names no host"),
    ("localhost\n", "line 1 of {} must be HOST slots=RANKS, not 'localhost'"),
    ("localhost slots=1\nb slots=0\n", "line 2 of {} must be HOST slots=RANKS, not 'b slots=0'"),
    ("localhost slots=1 ; reboot\n", "must be HOST slots=RANKS"),
    ("$(reboot) slots=1\n", "must be HOST slots=RANKS"),
    ("localhost slots=2\nlocalhost slots=2\n", "line 2 of {} names localhost again"),
    ("localhost slots=1\nb slots=1\n", "has 2 slots, and 3 are needed"),
    ("192.0.2.77 slots=3\n", "begins with 192.0.2.77, which is not this host"),
    ("no-such-host.invalid slots=3\n", "which is not this host"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_file_is_refused_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        hostfile.use(path, 3)
    assert str(caught.value).startswith("--hostfile: ")
    assert message.format(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hostfile.VARIABLE not in os.environ


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*: No such file"):
        hostfile.use(tmp_path / "none", 2)


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# the lab\n\n127.0.0.1  slots=2  # the master and a worker\n::1 slots=1\nnode-3.lab\tslots=16\n")
    assert hostfile.read(path) == {"127.0.0.1": 2, "::1": 1, "node-3.lab": 16}


def test_only_what_is_set_is_passed_on() -> None:
    assert hostfile.passed_on({"OMP_NUM_THREADS": "1"}) == []
    given = {hostfile.VARIABLE: "f", "OMP_NUM_THREADS": "1", "SECRET": "x", "FASTGC_CACHE": "/c"}
    assert hostfile.passed_on(given) == ["-x", "FASTGC_CACHE", "-x", "OMP_NUM_THREADS"]


def test_ranks_are_started_on_the_hosts_of_the_file(train: Train, data: Flights, tmp_path: Path) -> None:
    """On an emulated cluster: one of its hosts is not in the file, and one has two ranks."""
    try:
        check_machine()
    except UsageError as error:
        pytest.skip(str(error))
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{address(0)} slots=1\n{address(2)} slots=2\n")
    arguments = ["--scheme", "cyclic_repetition", "--stragglers", "1", "--workers", "2", "--iterations", "12"]
    on_cluster = (sys.executable, "-m", "mpi_runner", "cluster", "run", "--hosts", "3", "--worker", "wide", "--")
    run = train(*arguments, "--delay", "none", "--hostfile", str(hosts), before=on_cluster)
    assert run.status == 0, run.errors
    assert [row["host"].strip('"') for row in run.table("processes.csv")] == ["head", "worker1", "worker1"]
    expected = single_model(run.folder, data, 12)
    assert abs(run.model - expected).max() < 1e-5 * abs(expected).max()
