"""Runs killed at random moments, all their processes at once: the directory is read back, and its report opens."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from runner_support import LIMIT, Start, progress

import mpi_runner
from mpi_runner.cli import main

SEED = 20


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.soak)])
def test_a_run_killed_at_any_moment_leaves_a_readable_directory(start: Start, tmp_path: Path, kills: int) -> None:
    rng = np.random.default_rng(SEED)
    folder, begun, done = tmp_path / "run", 0, []
    for kill in range(kills):
        process = start(
            "--scheme", "cyclic_repetition", "--workers", "2", "--stragglers", "1", "--iterations", "100000",
            "--delay", "exponential:0.001", "--checkpoint-every", "20",
        )  # fmt: skip
        end = time.monotonic() + LIMIT
        # Every other one while it loads, the rest while it trains.
        awaited = int(rng.integers(1, 60)) if kill % 2 else 0
        while (not folder.exists() or progress(folder) < awaited) and time.monotonic() < end:
            time.sleep(0.002)
        wait = rng.uniform(0, 0.1 if kill % 2 else 3)
        time.sleep(wait)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        process.communicate()
        psutil.wait_procs(family, timeout=20)
        said = f"kill {kill} of seed {SEED}, after {wait:.3f} s"
        if (folder / "config.json").exists():  # else it had not begun
            found = mpi_runner.read_run(folder)
            begun += 1
            done.append(len(found.iterations))
            assert found.iterations["iteration"].tolist() == list(range(1, done[-1] + 1)), said
            last = found.arrivals[found.arrivals["outcome"] == "used"]["iteration"]
            assert set(range(1, done[-1] + 1)) <= set(last.tolist()), said  # the messages of all its iterations
            assert not found.complete, said
            assert main(["report", str(folder)]) == 0, said
            assert f"of {100000:,} iterations" in (folder / "report.html").read_text("utf-8"), said
        folder.rename(tmp_path / f"killed-{kill}")
    assert begun >= 0.9 * kills
    assert max(done) >= 1
