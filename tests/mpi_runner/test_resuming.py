"""How far a run has come that may have been cut off anywhere, and what is removed before it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastgc import schemes
from mpi_runner.checkpoint import Checkpoint, write
from mpi_runner.cli import main
from mpi_runner.config import CONFIG, FORMAT, TrainConfig, UsageError, claim
from mpi_runner.records import ITERATIONS, SUMMARY
from mpi_runner.resuming import Standing, clear, standing, where_left

SCHEME = schemes.grouped(4, 2, 1, code=None)


def config(run: Path) -> TrainConfig:
    return TrainConfig("grouped", 4, 10, str(run), {"load": 2, "reduction": 1})


def begin(run: Path, *checkpoints: int) -> TrainConfig:
    """A run directory as it is when the run was cut off after these checkpoints."""
    told = config(run)
    run.mkdir()
    (run / CONFIG).write_text(json.dumps({"format": FORMAT, "run": "this", "config": told.as_dict()}))
    (run / ITERATIONS).write_text("iteration,seconds\n" + "".join(f"{i},0.1\n" for i in range(1, 8)))
    for iteration in checkpoints:
        write(run, Checkpoint("this", iteration, 1.0, told, SCHEME, {"model": np.zeros(3)}))
    return told


def test_a_run_that_was_never_begun_is_new(tmp_path: Path) -> None:
    told = config(tmp_path / "run")
    assert standing(told) is Standing.NEW
    clear(told, Standing.NEW)
    claim(told)


@pytest.mark.parametrize("claimed", [True, False])
def test_an_attempt_without_a_checkpoint_gives_way(claimed: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if claimed:
        claim(config(run))
    else:
        begin(run)
    told = replace(config(run), iterations=20, delay="fixed:1:1")  # these may change
    assert standing(told) is Standing.NEW
    with pytest.raises(UsageError, match="already holds a run"):
        claim(told)
    clear(told, Standing.NEW)
    claim(told)
    assert claimed or len((run / ITERATIONS).read_text().splitlines()) == 1  # the header


def test_a_run_with_checkpoints_has_begun(tmp_path: Path) -> None:
    told = begin(tmp_path / "run", 4, 6)
    assert standing(told) is Standing.BEGUN
    clear(told, Standing.BEGUN)
    _, resumed = where_left(SCHEME, told, True)
    assert resumed is not None
    assert resumed.iteration == 6


def test_a_run_is_complete_with_its_summary(tmp_path: Path) -> None:
    told = begin(tmp_path / "run", 6, 10)
    (tmp_path / "run" / SUMMARY).write_text("{}")
    assert standing(told) is Standing.COMPLETE
    assert standing(replace(told, iterations=11)) is Standing.BEGUN


def test_a_run_cut_off_before_its_summary_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    told = begin(tmp_path / "run", 6, 10)
    assert standing(told) is Standing.BEGUN
    clear(told, Standing.BEGUN)
    _, resumed = where_left(SCHEME, told, True)
    assert resumed is not None
    assert resumed.iteration == 6


def test_without_a_checkpoint_before_it_begins_anew(tmp_path: Path) -> None:
    told = begin(tmp_path / "run", 10)
    assert standing(told) is Standing.NEW
    clear(told, Standing.NEW)
    assert standing(told) is Standing.NEW
    claim(told)


@pytest.mark.parametrize("checkpoints", [(), (6,)])
def test_another_run_is_never_touched(checkpoints: tuple[int, ...], tmp_path: Path) -> None:
    told = begin(tmp_path / "run", *checkpoints)
    for other, message in (
        (replace(told, seed=1), "--seed was 0, not 1"),
        (replace(told, options={"load": 4, "reduction": 1}), "--load was 2, not 4"),
        (replace(told, options={"load": 2}), "--reduction was 1, not None"),
        (replace(told, scheme="uncoded", options={}), "was"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            standing(other)
        assert "\n" not in str(caught.value)


def test_what_nobody_can_read_is_refused(tmp_path: Path) -> None:
    told = begin(tmp_path / "run")
    (tmp_path / "run" / CONFIG).write_text('{"config": {"colour": "blue"}}')
    with pytest.raises(UsageError, match="holds a run of another version"):
        standing(told)


def test_the_option_needs_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--scheme", "uncoded", "--resume-if-begun"]) == 2
    assert "--resume-if-begun: give --run, and not --resume" in capsys.readouterr().err
