"""Long runs: resident memory stays what it was, and every message is accounted for by both of its ends."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from runner_support import script

from mpi_runner import wire

WORKERS, SAMPLES = 3, 1000
FLAT = 1.02
KINDS = (wire.RESULT, wire.PART, wire.READY, wire.BYE)

# Every rank notes its resident memory as it goes, and what it has sent and taken.
PROGRAM = """
import json
import numpy as np
import psutil
from mpi4py import MPI

import mpi_runner
from fastgc import schemes
from mpi_runner import session, wire, worker
from mpi_runner.optimizers import GradientDescent

ITERATIONS, SAMPLES, WORKERS = {iterations}, {samples}, {workers}
rank, here = MPI.COMM_WORLD.Get_rank(), psutil.Process()
resident, sent, models = [], dict.fromkeys(range(1, 9), 0), 0


def note(step):
    if step * SAMPLES // ITERATIONS != (step - 1) * SAMPLES // ITERATIONS:
        resident.append((step, here.memory_info().rss))


class Descent(GradientDescent):
    steps = 0

    def update(self, gradient):
        super().update(gradient)
        self.steps += 1
        note(self.steps)


class Counting(worker.Worker):
    def _send(self, answer, iteration, spent=wire.NOTHING):
        super()._send(answer, iteration, spent)
        sent[answer.kind] += 1

    def _next_model(self):
        global models
        iteration = super()._next_model()
        if iteration is not None:
            models += 1
            note(models)
        return iteration


class Quadratic:
    def initial(self):
        return np.zeros(9)

    def partial_gradient(self, parameters, partition):
        return (parameters - partition.inputs).sum(axis=0)

    def evaluate(self, parameters, partition):
        return {{"distance": float(np.linalg.norm(parameters - partition.inputs))}}


session.Worker = Counting
inputs = np.random.default_rng(0).random((12, 9))
data = mpi_runner.ArrayData(inputs, inputs[:, 0], inputs.mean(axis=0, keepdims=True), inputs[:1, 0])
mpi_runner.train(
    Quadratic(), data, schemes.grouped(WORKERS, WORKERS, 2), iterations=ITERATIONS, step=0.1, run="run",
    optimizer=Descent, delay="{delay}", checkpoint_every=ITERATIONS // 20, parts={parts},
)
with open(f"rank-{{rank}}.json", "w") as file:
    json.dump({{"resident": resident, "sent": sent, "models": models}}, file)
"""


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("iterations", "parts"),
    [(2_000, 1), (1_000, 3), *(pytest.param(100_000, n, marks=pytest.mark.soak) for n in (1, 3))],
)
def test_a_long_run_keeps_its_memory_and_loses_no_message(iterations: int, parts: int, tmp_path: Path) -> None:
    delay = "fixed:0.002:1" if parts == 1 else "markov:0.0005:0.3:0.3"  # slow, so that parts of its work are used
    text = PROGRAM.format(iterations=iterations, samples=SAMPLES, workers=WORKERS, parts=parts, delay=delay)
    done = script(text, WORKERS + 1, tmp_path, ["--with-ft", "ulfm"], seconds=3600)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(WORKERS + 1)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())

    grown = {}
    for rank, said in enumerate(ranks):
        steps, sizes = np.array(said["resident"]).T
        first = np.median(sizes[steps <= steps[-1] / 10])
        last = np.median(sizes[steps > steps[-1] * 9 / 10])
        grown[rank] = f"{first / 2**20:.1f} to {last / 2**20:.1f} MiB"
        assert last <= FLAT * first, f"rank {rank}: {grown[rank]}"
    print(f"resident memory in {iterations} iterations, first and last tenth, by rank: {grown}")

    # What workers say they have sent and taken is what the master says has come and gone. Models that it has no answer
    # to at the end are at most one a worker: they, and their answers, may have arrived by then, or not.
    counts = summary["messages"]
    sent = {kind: sum(said["sent"][str(kind)] for said in ranks[1:]) for kind in KINDS}
    assert sum(sum(said["sent"].values()) for said in ranks[1:]) == sum(sent.values())
    assert sent[wire.BYE] == WORKERS
    # Each says READY before its first model.
    answers = sent[wire.RESULT] + sent[wire.PART] + sent[wire.READY] - WORKERS
    taken = sum(said["models"] for said in ranks[1:])
    answered = counts["used"] + counts["late"] + counts["abandoned"]
    assert counts["models"] + counts["parts"] == answered + counts["unanswered"]
    assert (counts["parts"] > 0) == (parts > 1)
    assert counts["unanswered"] <= WORKERS
    assert answered <= answers <= taken + sent[wire.PART]
    assert taken <= counts["models"]
    assert counts["rejected"] == counts["rejected_by_workers"] == counts["unused"] == counts["overflow"] == 0
    assert counts["late"] + counts["abandoned"] > iterations / 100  # there were stragglers

    # None twice, and each survivor of an iteration by its message for it.
    used: dict[str, list[str]] = {}
    seen = set()
    for row in table(tmp_path / "run" / "arrivals.csv"):
        if row["outcome"] == "abandoned":  # that is no part's
            row["part"] = "none"
        assert (row["iteration"], row["worker"], row["part"]) not in seen
        seen.add((row["iteration"], row["worker"], row["part"]))
        if row["outcome"] == "used":
            used.setdefault(row["iteration"], []).append(f"{row['worker']}:{row['part']}")
    rows = table(tmp_path / "run" / "iterations.csv")
    assert [int(row["iteration"]) for row in rows] == list(range(1, iterations + 1))
    for row in rows:
        own = sorted(used.pop(row["iteration"]))
        assert row["survivors"].split() == sorted({message.partition(":")[0] for message in own})
        assert row["parts"].split() == (own if parts > 1 else [])
    assert not used
    assert summary["test_distance"] < 1e-6
