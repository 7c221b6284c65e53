"""Runs with compressed messages: their bits, what they owe when they go on, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runner_support import LIMIT, ROWS, SEED, Train

from bench.compressed_training import Channel
from bench.compressed_training import train as simulated
from fastgc import compression, schemes
from mpi_runner import flights, wire
from mpi_runner.launch import find_mpirun
from mpi_runner.models import LogisticRegression
from mpi_runner.optimizers import Nesterov

SCHEME = ["--scheme", "grouped", "--load", "4", "--reduction", "2", "--workers", "4"]
INT8 = ["--message-dtype", "int8", "--error-feedback"]


def survivors(folder: Path) -> list[tuple[int, ...]]:
    lines = (folder / "iterations.csv").read_text().splitlines()
    column = lines[0].split(",").index("survivors")
    return [tuple(map(int, line.split(",")[column].split())) for line in lines[1:]]


def in_one_process(folder: Path, data: flights.Flights, forget: int | None = None, feedback: bool = True) -> Any:
    """The model of a run with these survivors, whose workers forget what they owe before an iteration."""
    summary = json.loads((folder / "summary.json").read_text())
    scheme = schemes.load(folder / "scheme.npz")
    model = LogisticRegression(data.features)
    parts = [data.load_train(partition, scheme.partitions) for partition in range(scheme.partitions)]
    optimizer = Nesterov(model.initial(), summary["step"])
    return simulated(
        model, parts, scheme, optimizer, summary["l2"], survivors(folder), "int8", feedback,
        forget=lambda iteration: iteration == forget,
    )  # fmt: skip


def test_a_run_has_the_bits_of_one_process_whoever_was_used(train: Train, data: flights.Flights) -> None:
    run = train(*SCHEME, *INT8, "--iterations", "14", "--delay", "exponential:0.03")
    assert run.status == 0, run.errors
    sets = survivors(run.folder)
    assert len(set(sets)) >= 3
    np.testing.assert_array_equal(run.model, in_one_process(run.folder, data))
    assert not np.array_equal(run.model, in_one_process(run.folder, data, feedback=False))
    # 243,485 numbers in two blocks: one byte each, a scale for 32 of them, and the coded statistics.
    length = -(-data.features // 2)
    size = wire.HEADER.size + -(-(length + -(-length // 32)) // 8) * 8 + 8
    assert {int(row["bytes"]) for row in run.table("arrivals.csv") if row["outcome"] == "used"} == {size}
    models = run.summary["messages"]["models"]
    body = -(-4 * data.features // 8) * 8 + 8
    assert (run.summary["bytes_sent"] - models * (wire.HEADER.size + body)) % wire.HEADER.size == 0

    # Others are slow now, and messages come that are not used: the bits are the same.
    first = run.folder.rename(run.folder.with_name("first"))
    again = train(*SCHEME, *INT8, "--iterations", "14", "--delay", "exponential:0.002", "--survivors-from", str(first))
    assert again.status == 0, again.errors
    assert again.summary["messages"]["unused"] > 0
    np.testing.assert_array_equal(again.model, run_model := np.load(first / "model.npy"))

    # A run that goes on owes nothing for what was before.
    command = [sys.executable, "-m", "mpi_runner", "train", "--resume", str(first), "--iterations", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    resumed = np.load(first / "model.npy")
    assert not np.array_equal(resumed, run_model)
    np.testing.assert_array_equal(resumed, in_one_process(first, data, forget=14))
    assert not np.array_equal(resumed, in_one_process(first, data))


# Worker 1 sends, before each of its own, messages that are right but for their scales: no worker writes these. In one
# iteration its gradient is not finite.
HOSTILE = """
import sys
import numpy as np
from mpi4py import MPI
from mpi_runner import cli, session, wire, worker


class Hostile(worker.Worker):
    sent = 0

    def _compute(self, coder, iteration, part, spent):
        done, spent = super()._compute(coder, iteration, part, spent)
        if done and self._number == 1 and iteration == 3:
            coder.coded[5] = np.inf
        return done, spent

    def _send(self, answer, iteration, spent=wire.NOTHING):
        if self._number == 1 and answer.kind == wire.RESULT:
            for exponent in (-128, -127, 121, 127):
                message = answer.outbox.buffer.copy()
                self._wire.gradient(message)[-1 - 7 * Hostile.sent] = exponent % 256
                message = self._wire.seal(message, answer.kind, iteration, worker=1, spent=spent)
                self._comm.Send(message, dest=worker.MASTER, tag=wire.TAG_RESULT)
                Hostile.sent += 1
        super()._send(answer, iteration, spent)


session.Worker = Hostile
number = MPI.COMM_WORLD.Get_rank() - 1
status = cli.main(sys.argv[1:])
if number == 1:
    print("sent", Hostile.sent, flush=True)
sys.exit(status)
"""


def test_hostile_scales_and_overflows_are_counted_and_not_used(data: flights.Flights, tmp_path: Path) -> None:
    folder, program = tmp_path / "run", tmp_path / "hostile.py"
    program.write_text(HOSTILE)
    command = [find_mpirun(), "--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none", "-n", "5"]
    command += [sys.executable, str(program), "train", *SCHEME, *INT8, "--iterations", "6", "--rows", str(ROWS)]
    # The others are slow, so that worker 1 is heard in every iteration unless the machine lets it wait for long.
    command += ["--seed", str(SEED), "--run", str(folder), "--delay", "slow:0.2:0,2,3"]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, check=False, env={**os.environ, **root}
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    (sent,) = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("sent "))
    assert sent - 4 <= summary["messages"]["rejected"] <= sent  # those of the last model may come after the end
    with (folder / "arrivals.csv").open(newline="") as file:
        outcomes = {(row["iteration"], row["worker"]): row["outcome"] for row in csv.DictReader(file)}
    assert outcomes["4", "1"] in ("overflow", "late", "abandoned")
    assert summary["messages"]["overflow"] == list(outcomes.values()).count("overflow") <= 1
    assert 1 not in survivors(folder)[3]
    assert "dropped a message of worker 1: data must have int8 scales from 2**-126 to 2**120" in done.stderr
    assert summary["lost_workers"] == []
    np.testing.assert_array_equal(np.load(folder / "model.npy"), in_one_process(folder, data))


# Accumulated errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8"])
def test_errors_cancel_under_fixed_survivors_and_add_up_where_they_change(name: str) -> None:
    """Of 100 decoded sums of the same gradients: rounding alone misses the same each time, feedback no more than once,
    and with other survivors in each something in between."""
    scheme, count, length = schemes.grouped(8, 8, 4), 100, 2000
    rng = np.random.default_rng(SEED)
    gradients = rng.standard_normal((8, length)).astype(np.float32)
    true = gradients.sum(axis=0, dtype=np.float64)
    fixed = [(0, 2, 5, 7)] * count
    random = [tuple(sorted(rng.permutation(8)[:4].tolist())) for _ in range(count)]

    def missed(sets: list[tuple[int, ...]], feedback: bool) -> float:
        channel = Channel(scheme, length, np.float64, name, feedback)
        wide = gradients.astype(np.float64)
        return float(np.linalg.norm(sum(channel.decoded(wide, heard) - true for heard in sets)))

    weights = np.abs(scheme.decoding_weights(fixed[0])).sum(axis=1).max()
    largest = max(np.abs(scheme.encode(worker, gradients)).max() for worker in fixed[0])
    once = weights * compression.codec(name).unit * (largest * 1.02) * np.sqrt(length)
    assert missed(fixed, True) <= once, SEED
    assert missed(fixed, False) > 30 * missed(fixed, True)
    assert 3 * missed(fixed, True) < missed(random, True)
