"""When the master takes a gradient, and which; deadlines and wrong messages in training over MPI."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runner_support import Train, script, single_model

from fastgc import GradientCode, schemes
from mpi_runner import flights, wire
from mpi_runner.deadlines import Deadline
from mpi_runner.gathering import Gathering
from mpi_runner.launch import find_mpirun, survives_faults

LENGTH, SEED = 50, 11
FLOAT = np.dtype(np.float32)


class Master:
    """What a master does with messages: no MPI, and no waiting."""

    def __init__(self, scheme: GradientCode, **options: Any) -> None:
        self.scheme = scheme
        self.gathering = Gathering(scheme, LENGTH, FLOAT, **options)
        rng = np.random.default_rng(SEED)
        self.gradients = rng.standard_normal((scheme.partitions, LENGTH)).astype(np.float32)
        self.statistics = np.stack([rng.random(scheme.partitions), np.full(scheme.partitions, 3.0)], axis=1)
        self.left = set(range(scheme.workers))

    def hear(self, *workers: int, sign: float = 1.0) -> bool:
        for worker in workers:
            held = list(self.scheme.assignment[worker])
            coded = np.float32(sign) * self.scheme.encode(worker, self.gradients[held])
            statistics = self.scheme.encode(worker, self.statistics[held])
            assert len(statistics) == self.scheme.message_length(wire.STATISTICS)
            self.gathering.add(worker, coded, statistics)
        return self.ready

    @property
    def ready(self) -> bool:
        return self.gathering.ready(lambda: self.left)


def test_without_more_ado_the_first_decodable_set_is_taken() -> None:
    master = Master(schemes.grouped(8, 4, 2))
    assert not master.hear(0, 1, 4)
    assert master.hear(5)
    taken = master.gathering.take()
    assert taken is not None
    assert taken.gradient == pytest.approx(master.gradients.sum(axis=0), abs=1e-4)
    assert (taken.survivors, taken.error, taken.corrupt) == ((0, 1, 4, 5), 0.0, ())
    assert (taken.loss, taken.examples) == pytest.approx((master.statistics[:, 0].sum(), 24.0))


def test_past_the_deadline_the_gradient_is_estimated_once_an_exact_one_was_there() -> None:
    scheme = schemes.grouped(8, 4, 2)
    assert Master(scheme).gathering.seconds_left == np.inf
    master = Master(scheme, deadline=Deadline("0.02"))
    assert master.gathering.seconds_left <= 0.02 or master.gathering.seconds_left == np.inf  # on a slow machine
    time.sleep(0.03)
    assert master.gathering.seconds_left == np.inf  # who waits for more must not look all the time
    assert not master.hear(0, 1, 4)  # nobody knows yet how many examples there are
    assert not master.gathering.suffices({0, 1, 4})
    assert master.hear(5)
    assert master.gathering.take() is not None
    master.gathering.begin(None)
    assert not master.hear(0, 1, 4)
    assert master.gathering.suffices({0, 1, 4})
    time.sleep(0.03)
    assert master.ready
    taken = master.gathering.take()
    assert taken is not None
    expected = scheme.decode(
        {w: scheme.encode(w, master.gradients[list(scheme.assignment[w])]) for w in (0, 1, 4)}, LENGTH, approximate=True
    )
    assert np.array_equal(taken.gradient, expected)
    assert taken.error == scheme.approximation_error([0, 1, 4]) == pytest.approx(2.0)
    assert taken.examples == 24
    assert np.isnan(taken.loss)
    master.gathering.begin(None)
    time.sleep(0.03)
    assert not master.ready  # nobody at all


def test_what_is_prescribed_is_taken_as_it_was() -> None:
    master = Master(schemes.grouped(8, 4, 2), deadline=Deadline("1000"))
    master.hear(0, 1, 4, 5)
    assert master.gathering.take() is not None
    master.gathering.begin(frozenset({0, 4, 5}))
    assert not master.hear(4, 5)
    assert not master.gathering.suffices({1, 4, 5})
    assert master.hear(0)
    taken = master.gathering.take()
    assert taken is not None
    assert taken.error == pytest.approx(2.0)
    unaware = Master(schemes.grouped(8, 4, 2))
    unaware.gathering.begin(frozenset({0, 4, 5}))
    assert not unaware.gathering.suffices(range(8))
    assert "number of examples is not known" in str(unaware.gathering.obstacle)


def test_inexact_schemes_say_how_far_off_they_are() -> None:
    scheme = schemes.bibd(7, 3, 2)
    master = Master(scheme, deadline=Deadline("0.01"))
    assert not master.hear(0, 1, 2)
    time.sleep(0.02)
    assert master.ready
    taken = master.gathering.take()
    assert taken is not None
    assert taken.error == scheme.approximation_error([0, 1, 2]) > 1
    assert taken.loss / taken.examples == pytest.approx(master.statistics[:, 0].mean() / 3, rel=0.5)


def test_verifying_waits_for_one_more_where_there_is_one() -> None:
    master = Master(schemes.grouped(8, 4, 2), verify=True)
    assert not master.hear(0, 1, 2, 4, 5)
    master.left = {0, 1, 2, 4, 5}
    assert master.ready  # nobody else can come
    master.left = set(range(8))
    assert master.hear(7)
    taken = master.gathering.take()
    assert taken is not None
    assert (taken.corrupt, taken.survivors) == ((), (0, 1, 2, 4, 5, 7))


def test_a_wrong_message_is_left_out_once_it_can_be_told() -> None:
    master = Master(schemes.grouped(8, 4, 2), verify=True)
    master.hear(3, sign=-1.0)
    assert master.hear(0, 1, 4, 5, 6)
    assert master.gathering.take() is None
    assert not master.ready
    assert master.gathering.suffices(range(8))
    assert not master.gathering.suffices(master.gathering.survivors)
    assert "cannot be told" in str(master.gathering.contradiction)
    assert master.hear(2)
    taken = master.gathering.take()
    assert taken is not None
    assert (taken.corrupt, taken.survivors) == ((3,), (0, 1, 2, 4, 5, 6))
    assert taken.gradient == pytest.approx(master.gradients.sum(axis=0), abs=1e-4)
    assert (taken.loss, taken.examples) == pytest.approx((master.statistics[:, 0].sum(), 24.0))


def test_gradients_that_cancel_later_are_no_alarm() -> None:
    """Near the optimum messages are small beside their terms, whose rounding stays."""
    master = Master(schemes.grouped(4, 4, 1), verify=True)
    master.hear(0, 1)
    assert master.gathering.take() is not None
    master.gathering.begin(None)
    master.gradients -= master.gradients.mean(axis=0)
    master.hear(0, 1, 2, 3)
    taken = master.gathering.take()
    assert taken is not None
    assert taken.corrupt == ()


# Over MPI -------------------------------------------------------------------------------------------------------------

STRAGGLING = ("--scheme", "fractional_repetition", "--stragglers", "1", "--workers", "4", "--iterations", "6")


def test_training_goes_on_at_the_deadline(train: Train) -> None:
    """Two of four workers are slow, and a group's at that."""
    run = train(*STRAGGLING, "--delay", "slow:0.6:2,3", "--deadline", "quantile:0.4:3", "--optimizer", "gd")
    assert run.status == 0, run.errors
    rows = run.table("iterations.csv")
    scheme = schemes.load(run.folder / "scheme.npz")
    for row in rows:
        survivors = [int(worker) for worker in row["survivors"].split()]
        error = scheme.approximation_error(survivors)
        assert float(row["approximation_error"]) == pytest.approx(error)
        assert row["approximate"] == str(int(error > 0))
    assert rows[0]["approximate"] == "0"
    late = [row for row in rows if row["approximate"] == "1"]
    assert len(late) >= 2
    assert max(float(row["seconds"]) for row in late) < 1.1 < float(rows[0]["seconds"])
    assert {row["approximation_error"] for row in late} == {"1.4142135623730951"}  # a group of two partitions
    assert run.summary["test_auc"] > 0.5
    assert run.summary["approximate_iterations"] == len(late)


def test_a_run_with_estimates_can_be_repeated(train: Train, tmp_path: Path) -> None:
    first = train(*STRAGGLING, "--delay", "slow:0.4:2,3", "--deadline", "0.15")
    assert first.status == 0, first.errors
    kept = tmp_path / "first"
    first.folder.rename(kept)
    second = train(*STRAGGLING, "--deadline", "0.15", "--survivors-from", str(kept))
    assert second.status == 0, second.errors
    assert "1" in {row["approximate"] for row in second.table("iterations.csv")}
    assert np.array_equal(second.model, np.load(kept / "model.npy"))


LYING = """
import time
import numpy as np
from mpi4py import MPI
import mpi_runner
from fastgc import schemes
from mpi_runner.models import LogisticRegression

class Lying(LogisticRegression):
    calls = 0
    def gradient_and_loss(self, parameters, partition):
        gradient, loss = super().gradient_and_loss(parameters, partition)
        self.calls += 1
        if MPI.COMM_WORLD.Get_rank() - 1 not in {liars}:
            time.sleep(0.005)  # so that who lies is heard, in whatever order the machine starts them
        elif self.calls > 20:
            gradient = {lie}
        return gradient, loss

rng = np.random.default_rng(3)
inputs = rng.standard_normal((400, 6))
labels = np.where(inputs @ np.arange(6) + rng.standard_normal(400) > 0, 1.0, -1.0)
data = mpi_runner.ArrayData(inputs[:320], labels[:320], inputs, labels)
scheme = schemes.grouped(8, load=4, reduction=2)
try:
    result = mpi_runner.train(
        Lying(6, np.float64), data, scheme, iterations=30, step=0.01, run="run", l2=0.01, verify=True, optimizer="gd"
    )
except mpi_runner.TrainingError as error:
    print("refused:", error, flush=True)
"""


def lying(folder: Path, liars: str, lie: str) -> Any:
    options = ["--with-ft", "ulfm"] if survives_faults(find_mpirun()) else []
    return script(LYING.replace("{liars}", liars).replace("{lie}", lie), ranks=9, folder=folder, options=options)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_worker_that_lies_is_found_and_left_out(tmp_path: Path) -> None:
    done = lying(tmp_path, "{5}", "np.roll(gradient, 1)")
    assert done.returncode == 0, done.stderr
    (fault,) = table(tmp_path / "run" / "faults.csv")
    assert (fault["worker"], fault["kind"]) == ("5", "corrupt")
    rows = table(tmp_path / "run" / "iterations.csv")
    assert len(rows) == 30
    after = [row for row in rows if int(row["iteration"]) >= int(fault["iteration"])]
    assert after
    assert not [row for row in after if "5" in row["survivors"].split()]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["lost_workers"] == [5]
    # The lie has left no trace in the model: it is the honest workers' one.
    honest = lying_free_model()
    assert np.load(tmp_path / "run" / "model.npy") == pytest.approx(honest, rel=1e-9)


def lying_free_model() -> Any:
    from mpi_runner import ArrayData
    from mpi_runner.models import LogisticRegression
    from mpi_runner.optimizers import GradientDescent, train_single

    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((400, 6))
    labels = np.where(inputs @ np.arange(6) + rng.standard_normal(400) > 0, 1.0, -1.0)
    data = ArrayData(inputs[:320], labels[:320], inputs, labels)
    model = LogisticRegression(6, np.float64)
    parts = [data.load_train(partition, 8) for partition in range(8)]
    return train_single(model, parts, GradientDescent(model.initial(), 0.01), 30, 0.01)


def test_workers_that_cannot_be_told_end_the_run(tmp_path: Path) -> None:
    done = lying(tmp_path, "{4, 5}", "-gradient * (1 + self.calls % 7)")
    assert "refused: iteration" in done.stdout, done.stderr
    assert "contradict each other" in done.stdout
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["status"] == 3
    assert sorted((tmp_path / "run" / "checkpoints").iterdir())


def test_honest_workers_are_not_accused(train: Train, data: flights.Flights) -> None:
    for dtype, more in (("float32", ()), ("int8", ("--error-feedback",))):
        options = ("--scheme", "grouped", "--load", "4", "--reduction", "2", "--workers", "4", "--iterations", "25")
        run = train(*options, "--verify", "--message-dtype", dtype, *more, "--delay", "exponential:0.002")
        assert run.status == 0, run.errors
        assert run.table("faults.csv") == []
        assert {len(row["survivors"].split()) >= 3 for row in run.table("iterations.csv")} == {True}
        if dtype == "float32":
            expected = single_model(run.folder, data, 25)
            assert np.linalg.norm(run.model - expected) <= 1e-3 * np.linalg.norm(expected)
        run.folder.rename(run.folder.with_name(dtype))
