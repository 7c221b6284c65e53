"""Files of experiments: what they ask for is run once, in an order drawn anew, and what they cannot ask for is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_support import write_run

from mpi_runner import compare
from mpi_runner.cli import main
from mpi_runner.config import TrainConfig, UsageError
from mpi_runner.experiments import Experiment, read

FILE = """
seeds = [1, 2]
delays = ["none", "exponential:0.01"]
baseline = "uncoded"
[run]
workers = 4
iterations = 5
[[scheme]]
name = "uncoded"
[[scheme]]
name = "grouped"
load = [2, 4]
reduction = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(FILE)
    return path


def make(name: str, options: dict[str, object], delay: str, seed: int, run: str) -> TrainConfig:
    return TrainConfig(name, 4, 5, run, dict(options), delay=delay, seed=seed)


def test_lists_of_a_scheme_are_choices(file: Path) -> None:
    found = read(file)
    assert found.schemes == [
        ("uncoded", {}), ("grouped", {"load": 2, "reduction": 2}), ("grouped", {"load": 4, "reduction": 2}),
    ]  # fmt: skip
    assert (found.seeds, found.baseline, found.options) == ([1, 2], "uncoded", {"workers": 4, "iterations": 5})


def test_all_runs_under_a_seed_come_before_those_of_the_next(file: Path) -> None:
    order = list(read(file).interleaved())
    assert len(order) == len(set(order)) == 12
    assert [seed for seed, _, _ in order] == [0] * 6 + [1] * 6
    assert [case[1:] for case in order[:6]] != [case[1:] for case in order[6:]]


def test_complete_runs_are_not_done_again(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    configs, planned = compare.plan(read(file), folder, make)
    assert len(configs) == len(planned) == 12
    write_run(Path(configs[0].run), configs[0])
    write_run(Path(configs[1].run), configs[1], end=False)
    configs_again, left = compare.plan(read(file), folder, make)
    assert configs_again == configs
    assert [run.config for run in left] == configs[1:]
    assert left[0].resumed is None  # it has no checkpoint: done again
    other = Experiment(read(file).schemes, seeds=[1, 2], delays=["none", "exponential:0.02"])
    with pytest.raises(UsageError, match=r"holds a run whose delay was|iterations"):
        compare.plan(other, folder, lambda *a: TrainConfig(a[0], 4, 6, a[4], dict(a[1]), delay=a[2], seed=a[3]))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = [1, 2]", "seeds = [1, 1]", "seeds must be a list of distinct integers from 0, not [1, 1]"),
        ("seeds = [1, 2]", 'seeds = "1"', "seeds must be a list"),
        ('"none", ', "3, ", "delays must be a list of distinct texts"),
        ("workers = 4", "worker = 4", "unrecognized arguments: --worker=4"),
        ("workers = 4", 'workers = "x"', "argument --workers: invalid int value: 'x'"),
        ("load = [2, 4]", "lode = 2", "grouped has no option lode"),
        ("load = [2, 4]", "load = 2.5", "load of grouped must be of type int, not 2.5"),
        ('name = "grouped"', "", "every [[scheme]] needs a name"),
        ("seeds", "sedes", "unknown sedes"),
        ("[run]", "[run", "is not TOML"),
    ],
)
def test_what_a_file_cannot_say(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    file.write_text(FILE.replace(old, new, 1))
    try:
        status = main(["compare", str(file), "--run", str(tmp_path / "runs")])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    refusal = capsys.readouterr().err
    assert said in refusal
    assert refusal.count("\n") == 1


def test_options_stand_in_the_file_or_on_the_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(file), "--workers", "3"]) == 2
    assert "compare takes --workers from" in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert "needs a FILE of experiments or --schemes" in capsys.readouterr().err
