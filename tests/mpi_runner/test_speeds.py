"""Training with shares by speed: given or measured, recorded, and kept by a run that goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from runner_support import Train, single_model

from fastgc import schemes
from mpi_runner import cli, flights

FOUR = ("--scheme", "heterogeneous", "--stragglers", "1", "--workers", "4")


def test_measured_speeds_make_the_scheme_and_stay(train: Train, data: flights.Flights) -> None:
    """Workers 2 and 3 are four times as fast as the others."""
    options = ("--speeds", "measured", "--warm-up", "3", "--delay", "uneven:0:0.1:1,1,4,4")
    run = train(*FOUR, *options, "--iterations", "4")
    assert run.status == 0, run.errors
    scheme = schemes.load(run.folder / "scheme.npz")
    loads = [len(held) for held in scheme.assignment]
    assert max(loads[:2]) < min(loads[2:])
    assert sum(loads) == 2 * scheme.partitions
    speeds = json.loads((run.folder / "config.json").read_text())["speeds"]
    assert len(speeds) == 4
    assert scheme.fingerprint == schemes.heterogeneous(4, 1, speeds=speeds, seed=7).fingerprint
    again = train("--resume", str(run.folder), "--iterations", "8")
    assert again.status == 0, again.errors
    assert schemes.load(run.folder / "scheme.npz").fingerprint == scheme.fingerprint
    assert json.loads((run.folder / "config.json").read_text())["speeds"] == speeds
    expected = single_model(run.folder, data, 8)
    assert np.linalg.norm(again.model - expected) <= 1e-5 * np.linalg.norm(expected)


def test_given_speeds_make_groups(train: Train, data: flights.Flights) -> None:
    options = ("--scheme", "grouped", "--load", "2", "--reduction", "1", "--workers", "4", "--speeds", "3,1,3,1")
    run = train(*options, "--iterations", "5", "--parts", "2")
    assert run.status == 0, run.errors
    scheme = schemes.load(run.folder / "scheme.npz")
    assert [group.workers for group in scheme.groups] == [(1, 3), (0, 2)]
    assert [len(held) for held in scheme.assignment] == [3, 1, 3, 1]
    expected = single_model(run.folder, data, 5)
    assert np.linalg.norm(run.model - expected) <= 1e-5 * np.linalg.norm(expected)


BAD = [
    ((*FOUR, "--speeds", "1,2"), "heterogeneous: speeds must be 4 numbers, one a worker"),
    ((*FOUR, "--speeds", "1,2,x,3"), "--speeds must be numbers with commas between them, or measured, not '1,2,x,3'"),
    ((*FOUR, "--speeds", "1,1,1,0"), "speeds must be positive and finite, not 0"),
    ((*FOUR, "--partitions", "1"), "partitions must be an integer of at least 2, not 1"),
    ((*FOUR, "--speeds", "measured", "--warm-up", "0"), "--warm-up must be at least 1, not 0"),
    ((*FOUR, "--speeds", "measured", "--survivors-from", "x"), "--survivors-from needs the speeds that were measured"),
    (
        ("--scheme", "grouped", "--load", "2", "--reduction", "auto", "--workers", "4", "--speeds", "1,1,1,1"),
        "--reduction must be a number, not auto, with --speeds",
    ),
    (("--scheme", "uncoded", "--workers", "4", "--speeds", "1,1,1,1"), "uncoded does not take --speeds"),
]


@pytest.mark.parametrize(("options", "pattern"), BAD)
def test_bad_input(options: tuple[str, ...], pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *options, "--iterations", "1"]) == 2
    assert pattern in capsys.readouterr().err


def test_schemes_of_a_comparison_take_speeds() -> None:
    name, chosen = cli._scheme("heterogeneous:stragglers=1,speeds=1:1:2:2,partitions=6")
    assert (name, chosen) == ("heterogeneous", {"stragglers": 1, "speeds": "1:1:2:2", "partitions": 6})
