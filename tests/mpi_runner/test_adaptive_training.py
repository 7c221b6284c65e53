"""Training with a reduction that is chosen as the run goes on: what is recorded, repeated, survived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from runner_support import LIMIT, Run, Start, Train, progress, ranks, single_model, wait_for

from fastgc import schemes
from mpi_runner import flights, read_run

AUTO = ["--scheme", "grouped", "--load", "4", "--reduction", "auto", "--workers", "4"]
# A message of the gradient's length takes 0.2 s, and computing hardly anything: the largest reduction is the best.
THIN = ["--delay", "exponential:0.0005+send:exponential:0:0.2"]


def column(run: Run, name: str, table: str = "iterations.csv") -> list[str]:
    return [row[name] for row in run.table(table)]


def close(model: Any, expected: Any) -> bool:
    return bool(np.linalg.norm(model - expected) <= 1e-5 * np.linalg.norm(expected))


def test_a_run_that_switches_goes_on_and_is_repeated_bit_for_bit(
    train: Train, tmp_path: Path, data: flights.Flights
) -> None:
    first = train(*AUTO, *THIN, "--iterations", "12")
    assert first.status == 0, first.errors
    assert column(first, "reduction")[0] == "2"
    assert column(first, "reduction")[-1] == "4"
    command = [sys.executable, "-m", "mpi_runner", "train", "--resume", str(first.folder), "--iterations", "16"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert again.returncode == 0, again.stderr
    reductions = column(first, "reduction")
    assert reductions[12:] == ["4"] * 4  # it begins where it was, and not from the start
    assert close(first.model, single_model(first.folder, data, 16))

    read = read_run(first.folder)
    assert read.summary is not None
    switched = [(s.iteration, s.before, s.after) for s in read.switches.itertuples()]
    changes = [i for i in range(1, 16) if reductions[i] != reductions[i - 1]]
    assert switched == [(i + 1, int(reductions[i - 1]), int(reductions[i])) for i in changes]
    assert (read.switches["predicted_after"] < read.switches["predicted_before"]).all()
    made = schemes.load(first.folder / "scheme.npz")
    for row in read.arrivals[read.arrivals["outcome"] == "used"].itertuples():
        assert str(row.reduction) == reductions[row.iteration - 1]
    for row in read.iterations.itertuples():
        assert made.with_reduction(row.reduction).is_decodable([int(w) for w in row.survivors.split()])

    kept = tmp_path / "first"
    first.folder.rename(kept)
    repeated = train(*AUTO, "--iterations", "16", "--survivors-from", str(kept))
    assert repeated.status == 0, repeated.errors
    assert column(repeated, "reduction") == reductions
    assert (repeated.folder / "model.npy").read_bytes() == (kept / "model.npy").read_bytes()
    assert not (repeated.folder / "switches.csv").exists()


def test_lost_workers_lower_the_reduction_in_the_midst_of_an_iteration(
    start: Start, tmp_path: Path, data: flights.Flights
) -> None:
    folder, iterations = tmp_path / "run", 24
    process = start(*AUTO, *THIN, "--iterations", str(iterations), "--hang-deadline", "6")
    for number, worker in enumerate((3, 0)):
        wait_for(lambda done=12 + 4 * number: progress(folder) >= done, LIMIT)  # type: ignore[misc]
        ranks(psutil.Process(process.pid))[worker + 1].kill()
    _, errors = process.communicate(timeout=LIMIT)
    run = Run(process.returncode, "", errors, folder)
    assert run.status == 0, errors
    assert close(run.model, single_model(folder, data, iterations))
    faults = {int(row["worker"]): int(row["iteration"]) for row in run.table("faults.csv")}
    assert sorted(faults) == [0, 3]
    for row in run.table("iterations.csv"):
        live = 4 - sum(int(row["iteration"]) >= iteration for iteration in faults.values())
        assert int(row["reduction"]) <= live
        assert len(row["survivors"].split()) >= int(row["reduction"])
    reasons = [row["reason"] for row in run.table("switches.csv")]
    assert any(reason.startswith("too few workers are left") for reason in reasons)
    # Messages of a reduction that was given up are not used, whatever they were taken for when they came.
    arrivals = run.table("arrivals.csv")
    for row in run.table("iterations.csv"):
        own = [a for a in arrivals if (a["iteration"], a["reduction"]) == (row["iteration"], row["reduction"])]
        assert sorted(int(a["worker"]) for a in own if a["outcome"] == "used") == [
            int(w) for w in row["survivors"].split()
        ]


@pytest.mark.parametrize("more", [
    ["--verify", "--message-dtype", "float16"],
    ["--deadline", "0.12", "--model-dtype", "bfloat16"],
], ids=["verify", "deadline"])  # fmt: skip
def test_other_ways_of_taking_a_gradient_go_with_it(more: list[str], train: Train) -> None:
    run = train(*AUTO, *THIN, "--iterations", "12", *more)
    assert run.status == 0, run.errors
    reductions = [int(m) for m in column(run, "reduction")]
    assert len(set(reductions)) > 1
    if "--verify" in more:
        assert max(reductions) == 3  # one to spare
        assert all(len(row["survivors"].split()) > int(row["reduction"]) for row in run.table("iterations.csv"))
    else:
        assert column(run, "approximate")[0] == "0"
    assert run.summary["reductions"] == {str(m): reductions.count(m) for m in sorted(set(reductions))}
    assert run.summary["switches"] == len(run.table("switches.csv"))
