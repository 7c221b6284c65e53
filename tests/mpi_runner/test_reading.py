"""Run directories come back as they were written, cut anywhere, and only where this version knows the layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_support import write_run

import mpi_runner
from mpi_runner.config import TrainConfig, claim
from mpi_runner.reading import runs_in
from mpi_runner.records import (
    ARRIVAL_COLUMNS,
    ARRIVALS,
    FAULT_COLUMNS,
    FAULTS,
    FORMAT,
    ITERATION_COLUMNS,
    ITERATIONS,
    PROCESS_COLUMNS,
    PROCESSES,
    rewind,
)

CONFIG = TrainConfig("grouped", 4, 12, "", {"load": 2, "reduction": 1}, seed=3)
TABLES = {ITERATIONS: ITERATION_COLUMNS, ARRIVALS: ARRIVAL_COLUMNS, FAULTS: FAULT_COLUMNS, PROCESSES: PROCESS_COLUMNS}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", CONFIG, lose=2)
    return tmp_path / "run"


def test_what_was_written_comes_back(run: Path) -> None:
    found = mpi_runner.read_run(run)
    assert found.facts["format"] == FORMAT
    assert found.config["options"] == CONFIG.options
    assert found.complete
    assert found.summary is not None
    assert found.outcome == {"status": 0, "reason": None}
    for table, columns in zip(
        (found.iterations, found.arrivals, found.faults, found.processes), TABLES.values(), strict=True
    ):
        assert list(table.columns) == list(columns)
    assert found.iterations["iteration"].tolist() == list(range(1, 13))
    assert found.iterations["score"].isna().all()
    parts = found.iterations[["send", "wait", "receive", "decode", "update"]].sum(axis=1)
    np.testing.assert_allclose(parts, found.iterations["seconds"], atol=3e-6)
    used = found.arrivals[found.arrivals["outcome"] == "used"].groupby("iteration")["worker"]
    survivors = {i: sorted(workers.tolist()) for i, workers in used}
    assert [list(map(int, text.split())) for text in found.iterations["survivors"]] == [*survivors.values()]
    assert found.faults["host"].tolist() == ["host3"]
    assert found.processes["pid"].tolist() == [100, 101, 102, 103, 104]
    assert len(found.log) == 1


@pytest.mark.parametrize("name", TABLES)
def test_a_table_cut_anywhere_has_its_whole_rows(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    attribute = name.removesuffix(".csv")
    whole = getattr(mpi_runner.read_run(run), attribute)
    rng = np.random.default_rng(0)
    header = content.index(b"\n") + 1
    sizes = {0, 1, header - 1, header, header + 1, len(content) - 1, *rng.integers(len(content), size=8).tolist()}
    for size in sorted(sizes):
        for filling in (b"", b"\0" * 40, b"\0" * 40 + b"\n"):  # the last as a file system may leave it
            (run / name).write_bytes(content[:size] + filling)
            if b"\n" not in content[:size] and filling.endswith(b"\n"):
                continue  # its very header is lost
            found = getattr(mpi_runner.read_run(run), attribute)
            rows = max(content[:size].count(b"\n") - 1, 0)
            assert len(found) == rows, f"cut at {size}"
            assert found.equals(whole.iloc[:rows]) or rows == 0


def test_a_table_damaged_in_the_middle_is_refused_by_name(run: Path) -> None:
    lines = (run / ITERATIONS).read_text().splitlines(keepends=True)
    (run / ITERATIONS).write_text("".join([*lines[:3], "x" + lines[3], *lines[4:]]))
    with pytest.raises(ValueError, match=r"iterations\.csv is damaged") as refusal:
        mpi_runner.read_run(run)
    assert "\n" not in str(refusal.value)


def test_columns_added_later_are_kept_and_missing_ones_named(run: Path) -> None:
    lines = (run / ITERATIONS).read_text().splitlines()
    (run / ITERATIONS).write_text("\n".join([lines[0] + ",error", *(line + "," for line in lines[1:3]), ""]))
    assert mpi_runner.read_run(run).iterations["error"].isna().tolist() == [True, True]
    (run / ITERATIONS).write_text("iteration,start\n1,0.5\n")
    with pytest.raises(ValueError, match=r"iterations\.csv has no column seconds, send"):
        mpi_runner.read_run(run)


def test_a_run_goes_on_under_the_columns_of_now(run: Path) -> None:
    lines = (run / ITERATIONS).read_text().splitlines()
    without = [line.rpartition(",")[0] for line in lines]  # as before the last column was added
    (run / ITERATIONS).write_text("\n".join([*without, ""]))
    rewind(run, 5)
    found = mpi_runner.read_run(run).iterations
    assert found["iteration"].tolist() == [1, 2, 3, 4, 5]
    assert list(found.columns) == list(ITERATION_COLUMNS)
    assert found["score"].isna().all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run that has begun"),
        ("", "holds no run that has begun"),
        ("[]", "holds no run that has begun"),
        ('{"config": {}}', f"layout without a number; this version reads layout {FORMAT}"),
        (json.dumps({"format": FORMAT + 1, "config": {}}), f"layout {FORMAT + 1}; this version reads layout {FORMAT}"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        mpi_runner.read_run(tmp_path)


def test_a_run_that_has_only_taken_its_directory_is_readable(tmp_path: Path) -> None:
    claim(TrainConfig("uncoded", 2, 3, str(tmp_path / "run")))
    found = mpi_runner.read_run(tmp_path / "run")
    assert not found.complete
    assert len(found.iterations) == len(found.arrivals) == 0
    assert found.config["workers"] == 2


def test_folders_of_runs(run: Path) -> None:
    assert runs_in(run) == runs_in(run.parent) == [run]
    with pytest.raises(ValueError, match="holds no run"):
        runs_in(run.parent.parent / "nothing")
