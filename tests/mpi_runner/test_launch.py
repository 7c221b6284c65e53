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


def test_a_rank_imports_nothing_that_only_some_runs_need() -> None:
    """A job of n ranks on few cores starts in n times as long as one of them imports."""
    program = "import mpi_runner.cli as cli, mpi_runner.session, sys; cli._parser(['train']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    dear = {"matplotlib", "numba", "pandas", "rich", "scipy", "torch"}
    assert dear & set(done.stdout.split()) == set()
