"""Checkpoints: what is written comes back, and nothing that is damaged or foreign is used."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from runner_support import LIMIT, Start, Train, left, progress, wait_for

from fastgc import schemes
from mpi_runner import checkpoint, cli
from mpi_runner.checkpoint import Checkpoint, CheckpointError, newest, read, write
from mpi_runner.config import CHANGEABLE, TrainConfig, UsageError, changed
from mpi_runner.optimizers import OPTIMIZERS

SCHEME = schemes.grouped(4, 2, 1, code=None)
CONFIG = TrainConfig("grouped", 4, 10, "runs/x", {"load": 2, "reduction": 1}, hang_deadline=2.5)


def made(iteration: int, run: str = "this") -> Checkpoint:
    generator = np.random.default_rng(iteration)
    state = {"model": generator.standard_normal(101).astype(np.float32), "t": np.array(1.25 + iteration)}
    return Checkpoint(run, iteration, 0.1 + iteration, CONFIG, SCHEME, state)


def same(given: Checkpoint, expected: Checkpoint) -> None:
    assert (given.run, given.iteration, given.elapsed) == (expected.run, expected.iteration, expected.elapsed)
    assert given.config == expected.config
    assert given.scheme.fingerprint == expected.scheme.fingerprint
    assert set(given.state) == set(expected.state)
    for name, array in expected.state.items():
        assert given.state[name].dtype == array.dtype
        assert given.state[name].tobytes() == array.tobytes()


def test_what_is_written_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    for iteration in (0, 5, 999_999_999):
        same(read(write(tmp_path, made(iteration))), made(iteration))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "iteration-000000005.npz",
        "iteration-999999999.npz",
    ]
    same(newest(tmp_path, "this"), made(999_999_999))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_goes_on_as_if_never_stopped(name: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    gradients = generator.standard_normal((20, 33)).astype(np.float32)
    through = OPTIMIZERS[name](np.zeros(33, np.float32), 0.1)
    for gradient in gradients:
        through.update(gradient.copy())
    first = OPTIMIZERS[name](np.zeros(33, np.float32), 0.1)
    for gradient in gradients[:11]:
        first.update(gradient.copy())
    state = read(write(tmp_path, made(11)._replace(state=first.state()))).state
    second = OPTIMIZERS[name](np.zeros(33, np.float32), 0.1)
    second.restore(state)
    for gradient in gradients[11:]:
        second.update(gradient.copy())
    assert second.model.tobytes() == through.model.tobytes()
    assert second.parameters.tobytes() == through.parameters.tobytes()


def test_no_file_holds_a_pickle(tmp_path: Path) -> None:
    with np.load(write(tmp_path, made(3)), allow_pickle=False) as content:
        assert all(content[name].dtype.hasobject is False for name in content.files)


def test_any_cut_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, made(7))
    content = path.read_bytes()
    for size in [0, 1, *range(100, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
            read(path)


def test_a_changed_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """Some bytes of a zip file, times of its members say, mean nothing to anyone."""
    path = write(tmp_path, made(7))
    content = bytearray(path.read_bytes())
    refused = 0
    for position in range(0, len(content), 7):
        content[position] ^= 0x20
        path.write_bytes(content)
        content[position] ^= 0x20
        try:
            same(read(path), made(7))
        except CheckpointError:
            refused += 1
    assert refused > 0.8 * len(range(0, len(content), 7))


def refused_config(path: Path) -> None:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    facts = json.loads(arrays["facts"].tobytes())
    facts["config"]["colour"] = "blue"
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez(path, **arrays)


def refused_format(path: Path) -> None:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    arrays["facts"] = np.frombuffer(json.dumps({"format": 99}).encode(), np.uint8)
    np.savez(path, **arrays)


def foreign(path: Path) -> None:
    shutil.copy(write(path.parent.parent / "b", made(20, "other")), path)


class Evil:
    def __reduce__(self) -> Any:
        return (os._exit, (66,))


def pickled(path: Path) -> None:
    np.savez(path, facts=np.array([Evil()], dtype=object))  # type: ignore[arg-type]


BAD: list[tuple[str, Any, str]] = [
    ("truncated", lambda path: os.truncate(path, path.stat().st_size // 2), "damaged or no checkpoint"),
    ("empty", lambda path: os.truncate(path, 0), "damaged or no checkpoint"),
    ("another file", lambda path: path.write_text("a,b\n"), "damaged or no checkpoint"),
    ("another archive", lambda path: np.savez(path, model=np.zeros(3)), "damaged or no checkpoint"),
    ("a pickle", pickled, "damaged or no checkpoint"),
    ("another version's", refused_format, "it has format 99, not 1"),
    ("options of another version", refused_config, "options unknown here: colour"),
    (
        "another run's",
        lambda path: shutil.copy(write(path.parent.parent / "b", made(20, "other")), path),
        "another run",
    ),
    ("renamed", lambda path: shutil.copy(path.with_name("iteration-000000010.npz"), path), "it is of iteration 10"),
]


@pytest.mark.parametrize(("damage", "reason"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_one_is_refused_with_its_reason_and_the_one_before_used(damage: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path, made(10))
    path = write(tmp_path, made(20))
    damage(path)
    with pytest.warns(RuntimeWarning, match=rf"refused checkpoint iteration-000000020.npz: .*{reason}"):
        same(newest(tmp_path, "this"), made(10))
    path.with_name("iteration-000000010.npz").unlink()
    with pytest.raises(UsageError, match=f"no checkpoint that can be used: .*{reason}") as caught:
        newest(tmp_path, "this")
    assert "\n" not in str(caught.value)


def test_an_interrupted_write_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, made(10))

    def fail(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, made(20))
    same(newest(tmp_path, "this"), made(10))


def test_what_may_change_while_a_run_goes_on() -> None:
    assert changed(CONFIG, {"iterations": 50, "load": 2, "scheme": "grouped"}).iterations == 50
    for given in ({"load": 4}, {"seed": 1}, {"dtype": "float64"}, {"workers": 8}, {"code": "gaussian"}):
        (name,) = given
        with pytest.raises(UsageError, match=rf"--resume: --{name} was .*; only --iterations, ") as caught:
            changed(CONFIG, given)
        assert "\n" not in str(caught.value)
    assert "seed" not in CHANGEABLE


# Runs ----------------------------------------------------------------------------------------------------------------

TRAIN = ["--scheme", "grouped", "--load", "3", "--reduction", "2", "--workers", "3", "--delay", "exponential:0.01"]
ITERATIONS = "40"


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    train: Train, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(*TRAIN, "--iterations", ITERATIONS)
    assert whole.status == 0, whole.errors
    first, folder = tmp_path / "first", tmp_path / "run"
    folder.rename(first)
    # The second run is interrupted, and killed outright after it was resumed.
    process = start(*TRAIN, "--iterations", ITERATIONS, "--survivors-from", str(first), "--checkpoint-every", "5")
    wait_for(lambda: progress(folder) >= 8, LIMIT)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert not left(family)
    interrupted = progress(folder)
    assert (folder / "checkpoints" / f"iteration-{interrupted:09}.npz").exists()
    os.truncate(folder / "checkpoints" / f"iteration-{interrupted:09}.npz", 1000)
    command = [sys.executable, "-m", "mpi_runner", "train", "--resume", str(folder)]
    again = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: progress(folder) >= interrupted + 12, LIMIT)
    family = psutil.Process(again.pid).children(recursive=True)
    again.kill()
    _, errors = again.communicate(timeout=30)
    assert f"refused checkpoint iteration-{interrupted:09}.npz: it is damaged" in errors
    assert not left(family, 15)
    last = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert last.returncode == 0, last.stderr
    assert (folder / "model.npy").read_bytes() == (first / "model.npy").read_bytes()
    for name in ("iteration", "loss", "survivors"):
        column = [[row[name] for row in rows(path)] for path in (first, folder)]
        assert column[0] == column[1]
    assert {row["outcome"] for row in rows(folder, "arrivals.csv")} <= {"used", "unused", "late", "abandoned"}

    # What cannot be resumed, or followed.
    for arguments, message in (
        (["--resume", str(folder)], "has done 40 iterations; ask for more by --iterations"),
        (["--resume", str(folder), "--seed", "3"], "--resume: --seed was 7, not 3"),
        (["--resume", str(tmp_path / "none")], "holds no run that has begun"),
        (["--resume", str(folder), "--iterations", "41"], "has no iteration 41"),
        (["--scheme", "uncoded", "--workers", "4", "--run", str(tmp_path / "b"), "--survivors-from", str(first)],
         "is of another scheme than uncoded(4)"),
    ):  # fmt: skip
        assert cli.main(["train", *arguments]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert (folder / "model.npy").read_bytes() == (first / "model.npy").read_bytes()


def rows(folder: Path, name: str = "iterations.csv") -> list[dict[str, str]]:

    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))
