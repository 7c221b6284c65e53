"""The launcher, with a stand-in for mpirun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mpi_runner import launch


@pytest.mark.parametrize(("given", "expected"), [(0, launch.EXIT_FAILED), (5, 5)])
def test_a_job_without_a_recorded_outcome_has_failed(
    given: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mpirun ends with 0 where a daemon of its own is gone, whatever the ranks had still to do."""
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "mpirun (Open MPI) 5.0.0" && exit 0\nexit {given}\n')
    mpirun.chmod(0o755)
    monkeypatch.setattr(launch, "find_mpirun", lambda: str(mpirun))
    assert launch.run(2, tmp_path, [], lambda: None) == expected


def test_what_mpirun_keeps_while_it_runs_is_the_jobs_own_and_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that a killed mpirun has left would keep the next one of its process id from starting."""
    mpirun, places = tmp_path / "mpirun", tmp_path / "places"
    kept = f'mkdir "${launch.SESSIONS}/ompi.$$" && echo "${launch.SESSIONS}" >> {places}'
    mpirun.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "mpirun (Open MPI) 5.0.0" && exit 0\n{kept}\n')
    mpirun.chmod(0o755)
    monkeypatch.setattr(launch, "find_mpirun", lambda: str(mpirun))
    monkeypatch.delenv(launch.SESSIONS_OF_ALL)
    monkeypatch.setenv(launch.SESSIONS, str(tmp_path))  # what a user has set stays in force
    for _ in range(2):
        launch.run(2, tmp_path, [], lambda: None)
    first, second = (Path(line) for line in places.read_text().splitlines())
    assert first != second
    assert first.parent == second.parent == tmp_path
    assert not first.exists()
    assert not second.exists()


@pytest.mark.parametrize("name", [launch.SESSIONS, launch.SESSIONS_OF_ALL])
def test_open_mpi_keeps_its_files_where_it_is_told_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not launch.survives_faults(launch.find_mpirun()):
        pytest.skip("only Open MPI from 5 on takes the place from this variable")
    monkeypatch.delenv(launch.SESSIONS_OF_ALL)
    monkeypatch.setenv(name, str(tmp_path))
    command, environment = launch.python_on(1)
    program = "import os; print(os.environ['OMPI_FILE_LOCATION'])"
    done = subprocess.run(
        [*command, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_a_rank_imports_nothing_that_only_some_runs_need() -> None:
    """A job of n ranks on few cores starts in n times as long as one of them imports."""
    program = "import mpi_runner.cli as cli, mpi_runner.session, sys; cli._parser(['train']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    dear = {"matplotlib", "numba", "pandas", "rich", "scipy", "torch"}
    assert dear & set(done.stdout.split()) == set()
