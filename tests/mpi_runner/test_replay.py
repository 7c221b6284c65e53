"""Replay: a run's directory read as a trace, and runs whose delays are recorded and replayed."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from runner_support import Train

from fastgc import schemes
from mpi_runner import delays
from mpi_runner.replay import ReplayError, Trace

Record = Callable[..., str]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Write the directory of a run of four workers under grouped [2, 2], as its records have it."""

    def write(rows: list[dict[str, object]], waits: list[float]) -> str:
        scheme = schemes.grouped(4, 2, 2)
        scheme.save(tmp_path / "scheme.npz")
        (tmp_path / "config.json").write_text(
            json.dumps({"scheme": {"workers": 4, "reduction": 2}, "config": {"parts": 1}})
        )
        for name, table in (
            ("iterations.csv", [iteration(i + 1, wait) for i, wait in enumerate(waits)]),
            ("arrivals.csv", rows),
        ):
            with (tmp_path / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, list(table[0]) if table else list(iteration(1, 0.0)))
                writer.writeheader()
                writer.writerows(table)
        return str(tmp_path)

    return write


def iteration(number: int, ready: float) -> dict[str, object]:
    return {"iteration": number, "seconds": ready + 0.75, "decode": 0.25, "update": 0.5}


def arrival(iteration: int, worker: int, outcome: str, compute: float, delay: float, way: float) -> dict[str, object]:
    encode, sent = 0.125, 10.0 * iteration
    arrived = sent + compute + delay + encode + way
    return {
        "iteration": iteration, "worker": worker, "sent": sent, "arrived": arrived, "compute": compute,
        "encode": encode, "delay": delay, "bytes": 1000, "outcome": outcome,
    }  # fmt: skip


def test_replay_gives_what_was_recorded(record: Record) -> None:
    folder = record(
        [
            arrival(1, 0, "used", 0.5, 1.5, 0.25),
            arrival(1, 1, "late", 3.0, 0.0, 0.5),
            arrival(1, 2, "abandoned", 0.25, 0.0, 0.0),
            arrival(2, 3, "used", 1.0, 0.0, 0.125),
        ],
        [4.0, 2.0],
    )
    delay = delays.parse(f"replay:{folder}+send:replay:{folder}")
    delay.check(4)
    assert delays.parse(str(delay)) == delay
    # Recorded under load 2 and reduction 2: a partition took half the time, a message of full length twice.
    assert delay.compute_seconds(0, 0, 0, 1, 4) == 1.0
    assert delay.compute_seconds(0, 0, 0, 3, 4) == 3.0
    assert delay.send_seconds(0, 0, 0, 1.0, 4) == 0.5
    assert delay.send_seconds(0, 0, 0, 0.25, 4) == 0.125
    assert delay.compute_seconds(0, 1, 0, 1, 4) == 1.5  # late, but done
    # Abandoned, or not even begun: until the iteration's end at least, over two partitions.
    assert delay.compute_seconds(0, 2, 0, 1, 4) == 2.0
    assert delay.compute_seconds(0, 0, 1, 2, 4) == 2.0
    assert delay.send_seconds(0, 2, 0, 1.0, 4) == 0.0
    # From the start again, whatever the seed.
    assert delay.compute_seconds(5, 0, 2, 1, 4) == 1.0
    assert delay.compute_seconds(5, 3, 7, 1, 4) == 0.5
    with pytest.raises(ValueError, match="5 workers asked for, the run had 4"):
        delay.check(5)


def test_what_cannot_be_replayed_is_refused(record: Record, tmp_path: Path) -> None:
    for spoil, reason in (
        (lambda: None, "no iterations"),
        (lambda: (tmp_path / "iterations.csv").write_text("iteration,wait\n1,x\n"), "can be replayed"),
        (lambda: (tmp_path / "arrivals.csv").unlink(), "arrivals.csv"),
        (lambda: (tmp_path / "scheme.npz").write_bytes(b"PK"), "can be replayed"),
        (lambda: (tmp_path / "config.json").write_text("{"), "can be replayed"),
    ):
        folder = record([arrival(1, 0, "used", 0.5, 1.5, 0.25)], [] if reason == "no iterations" else [1.0])
        spoil()
        with pytest.raises(ReplayError, match=reason) as caught:
            Trace.read(folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is not a run: No such file"):
        delays.parse(f"replay:{tmp_path}/nowhere").check(1)


def test_delays_are_served_where_they_occur_and_can_be_replayed(train: Train, tmp_path: Path) -> None:
    """A worker slow in computing says so; one with a slow link does not know it. Both are in the record."""
    quiet = ("--workers", "3", "--iterations", "4", "--scheme", "uncoded")
    run = train(*quiet, "--delay", "slow:0.05:1+send:slow:0.1:2")
    assert run.status == 0, run.errors
    rows = run.table("arrivals.csv")
    assert len(rows) == 12
    for row in rows:
        own = float(row["compute"]) + float(row["delay"]) + float(row["encode"])
        on_the_way = float(row["arrived"]) - float(row["sent"]) - own
        assert (float(row["delay"]) >= 0.05) == (row["worker"] == "1")
        assert on_the_way >= 0.1 if row["worker"] == "2" else on_the_way < 0.1
    kept = tmp_path / "recorded"
    os.rename(run.folder, kept)
    again = train(*quiet, "--delay", f"replay:{kept}+send:replay:{kept}")
    assert again.status == 0, again.errors
    trace = Trace.read(str(kept))
    for row in again.table("arrivals.csv"):
        worker, iteration = int(row["worker"]), int(row["iteration"]) - 1
        assert float(row["delay"]) >= trace.computing(worker, iteration)
        assert float(row["arrived"]) - float(row["sent"]) >= trace.computing(worker, iteration) + trace.sending(
            worker, iteration
        )
