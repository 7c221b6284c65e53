"""Run directories: what is written comes back, also while it is being written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from fastgc import schemes
from mpi_runner.config import TrainConfig
from mpi_runner.processes import Identity
from mpi_runner.records import (
    ARRIVAL_COLUMNS,
    FAULT_COLUMNS,
    ITERATION_COLUMNS,
    ITERATIONS,
    NUMBER,
    OPTIONAL,
    TEXT,
    RunRecords,
    Tail,
    read_outcome,
    read_processes,
    summarize,
)


def values(columns: dict[str, str]) -> dict[str, object]:
    """One of each type."""
    return {name: {NUMBER: 1, TEXT: "1", OPTIONAL: ""}.get(form, 0.5) for name, form in columns.items()}


def row(iteration: int) -> dict[str, object]:
    return values(ITERATION_COLUMNS) | {"iteration": iteration, "survivors": "0 2", "score": ""}


def test_a_run_leaves_what_its_docstring_says(tmp_path: Path) -> None:
    scheme = schemes.grouped(4, 2, 1)
    config = TrainConfig("grouped", 4, 2, str(tmp_path / "run"), {"load": 2, "reduction": 1})
    identities = [Identity("here", 12, 1795541505.1), Identity("there, too", 12, 0.1 + 0.2)]
    assert read_processes(tmp_path / "run") == []
    with RunRecords(config, scheme, "a") as records:
        records.iteration(row(1))
        records.arrival(values(ARRIVAL_COLUMNS))
        records.fault(values(FAULT_COLUMNS) | {"host": "a, b", "reason": 'so "dead"\nas this'})
        records.log("two\nlines")
        records.processes(identities)
        records.model(np.arange(3, dtype=np.float32))
        records.summary({"figure": 1.5})
        assert read_outcome(tmp_path / "run") is None
        records.outcome(3, "too few")
    folder = tmp_path / "run"
    assert read_outcome(folder) == {"status": 3, "reason": "too few"}
    assert read_processes(folder) == identities
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [
            "config.json",
            "scheme.npz",
            "iterations.csv",
            "arrivals.csv",
            "faults.csv",
            "log.txt",
            "processes.csv",
            "model.npy",
            "summary.json",
            "outcome.json",
        ]
    )
    facts = json.loads((folder / "config.json").read_text())
    assert TrainConfig(**facts["config"]) == config
    assert facts["scheme"]["fingerprint"] == scheme.fingerprint == schemes.load(folder / "scheme.npz").fingerprint
    assert {"python", "numpy", "mpi4py"} <= set(facts["versions"])
    np.testing.assert_array_equal(np.load(folder / "model.npy", allow_pickle=False), np.arange(3, dtype=np.float32))
    assert json.loads((folder / "summary.json").read_text()) == {"figure": 1.5}
    with (folder / "iterations.csv").open(newline="") as file:
        assert [r["survivors"] for r in csv.DictReader(file)] == ["0 2"]
    with (folder / "faults.csv").open(newline="") as file:
        assert [(r["host"], r["reason"]) for r in csv.DictReader(file)] == [("a, b", 'so "dead" as this')]
    (line,) = (folder / "log.txt").read_text().splitlines()
    assert line.endswith(" two lines")


def test_rows_are_there_as_soon_as_they_are_added(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "run" / ITERATIONS)
    assert tail.new_rows() == []  # no file yet
    config = TrainConfig("uncoded", 2, 3, str(tmp_path / "run"))
    with RunRecords(config, schemes.uncoded(2), "a") as records:
        assert tail.new_rows() == []  # the header alone
        records.iteration(row(1))
        assert [r["iteration"] for r in tail.new_rows()] == ["1"]
        assert tail.new_rows() == []
        records.iteration(row(2))
        records.iteration(row(3))
        assert [r["iteration"] for r in tail.new_rows()] == ["2", "3"]


def test_a_row_in_the_making_waits(tmp_path: Path) -> None:
    content = (
        ",".join(ITERATION_COLUMNS)
        + "\r\n"
        + ",".join("1" * len(ITERATION_COLUMNS))
        + "\r\n"
        + ",".join("2" * len(ITERATION_COLUMNS))
        + "\r\n"
    ).encode()
    tail, seen = Tail(tmp_path / ITERATIONS), []
    for size in range(len(content) + 1):
        (tmp_path / "iterations.csv").write_bytes(content[:size])
        seen += [r["loss"] for r in tail.new_rows()]
    assert seen == ["1", "2"]


def test_summary_figures() -> None:
    assert summarize([1.0, 2.0, 9.0]) == pytest.approx(
        {"mean_seconds": 4.0, "median_seconds": 2.0, "p95_seconds": 2.0 + 0.9 * 7.0}
    )
