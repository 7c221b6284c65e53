"""Training from a script: the example of the documentation under mpirun, and what `train` refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runner_support import script
from scipy import sparse

import mpi_runner
from fastgc import schemes
from mpi_runner import ArrayData, Partition
from mpi_runner.launch import find_mpirun, survives_faults
from mpi_runner.models import LogisticRegression
from mpi_runner.optimizers import GradientDescent, Nesterov, train_single
from mpi_runner.randomness import Sampler

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "own_model.py"


def example() -> dict[str, Any]:
    """The example's names, without a run."""
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLE.read_text(), str(EXAMPLE), "exec"), namespace)
    return namespace


def test_the_example_trains_the_single_process_model(tmp_path: Path) -> None:
    done = script(EXAMPLE.read_text(), ranks=5, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    printed = done.stdout.strip().splitlines()[-1]

    model = example()["PoissonRegression"](8)
    rng = np.random.default_rng(0)
    inputs = rng.random((2000, 8))
    labels = rng.poisson(np.exp(inputs @ np.linspace(-1, 1, 8)))
    data = ArrayData(inputs[:1600], labels[:1600], inputs[1600:], labels[1600:])
    parts = [data.load_train(partition, 4) for partition in range(4)]
    expected = train_single(model, parts, Nesterov(model.initial(), 0.2), 300, 0.0)
    found = np.load(tmp_path / "runs" / "poisson" / "model.npy")
    assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected)
    np.testing.assert_allclose(expected, np.linspace(-1, 1, 8), atol=0.25)  # it has learnt what made the counts
    assert printed == str(found.round(1))
    summary = json.loads((tmp_path / "runs" / "poisson" / "summary.json").read_text())
    assert (summary["model"], summary["data"]) == ("PoissonRegression", "ArrayData")
    assert summary["measure"] == "squared error"
    assert summary["final_loss"] is None  # the model gives no loss
    assert summary["train_rows"] == 1600


def test_the_adapter_of_the_example_is_about_twenty_lines() -> None:
    found = re.search(r"^class .*?(?=^if __name__)", EXAMPLE.read_text(), flags=re.M | re.S)
    assert found is not None
    assert len(found.group().strip().splitlines()) <= 20


def test_the_page_shows_the_example() -> None:
    assert f"```py\n{EXAMPLE.read_text()}```" in (ROOT / "docs" / "runner.md").read_text()


OWN = """
import numpy as np
import mpi_runner
from fastgc import schemes
from mpi_runner.models import LogisticRegression
from mpi_runner.optimizers import GradientDescent

rng = np.random.default_rng(3)
inputs, labels = rng.random((60, 5)), np.where(rng.random(60) < 0.5, 1.0, -1.0)

class Mine:
    def load_train(self, partition, partitions):
        return mpi_runner.Partition(inputs[partition::partitions], labels[partition::partitions])
    def load_test(self):
        return mpi_runner.Partition(inputs, labels)

def train(run, iterations, resume=False, step=0.5):
    result = mpi_runner.train(
        LogisticRegression(5, np.float64), Mine(), schemes.cyclic_repetition(3, 1), iterations=iterations, step=step,
        run=run, l2=0.01, optimizer=GradientDescent, batch=30, seed=4, resume=resume,
    )
    if result is not None:
        assert set(result.figures) >= {"test_auc", "final_loss"}
        np.save(f"{run}.npy", result.model)

train("whole", 20)
train("parts", 8)
try:
    train("parts", 20, resume=True, step=0.25)
except mpi_runner.TrainingError as error:
    print("refused:", error, flush=True)
train("parts", 20, resume=True)
"""


def test_runs_in_one_script_with_data_and_optimiser_of_ones_own_whole_and_resumed(tmp_path: Path) -> None:
    done = script(OWN, ranks=4, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: resume: --step was 0.5, not 0.25") == 1  # by the master, the others say less
    assert done.stdout.count("refused: ") == 4
    whole, parts = np.load(tmp_path / "whole.npy"), np.load(tmp_path / "parts.npy")
    rng = np.random.default_rng(3)
    inputs, labels = rng.random((60, 5)), np.where(rng.random(60) < 0.5, 1.0, -1.0)
    model = LogisticRegression(5, np.float64)
    data = [Partition(inputs[p::3], labels[p::3]) for p in range(3)]
    optimizer = GradientDescent(model.initial(), 0.5)
    expected = train_single(model, data, optimizer, 20, 0.01, sampler=Sampler(4, 3, 30))
    for found in (whole, parts):
        assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected)


FAILING = """
import numpy as np
import mpi_runner
from fastgc import schemes

class Model:
    def initial(self):
        return np.zeros(3)
    def partial_gradient(self, parameters, partition):
        {body}
    def evaluate(self, parameters, partition):
        return {{"x": 0.0}}

data = mpi_runner.ArrayData(np.ones((12, 3)), np.ones(12), np.ones((2, 3)), np.ones(2))
mpi_runner.train(Model(), data, schemes.uncoded({workers}), iterations=5, step=0.1, run="run")
"""


@pytest.mark.parametrize(("body", "workers", "said"), [
    ("raise OSError('disk on fire')", 2, "disk on fire"),
    ("return np.zeros(4)", 2, "partial_gradient of Model must return shape (3,), not (4,)"),
    ("return np.zeros(3)", 3, "a scheme of 3 workers needs 4 ranks; there are 3"),
])  # fmt: skip
def test_a_failing_model_and_a_job_of_the_wrong_size_end_the_job(
    body: str, workers: int, said: str, tmp_path: Path
) -> None:
    done = script(FAILING.format(body=body, workers=workers), ranks=3, folder=tmp_path)
    assert done.returncode != 0
    assert said in done.stderr


DYING = """
import os, signal
import numpy as np
from mpi4py import MPI
import mpi_runner
from fastgc import schemes

class Model:
    calls = 0
    def initial(self):
        return np.zeros(3)
    def partial_gradient(self, parameters, partition):
        self.calls += 1
        if self.calls == 30 and MPI.COMM_WORLD.Get_rank() == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return parameters * partition.count - 1.0
    def evaluate(self, parameters, partition):
        return {"x": float(parameters[0])}

data = mpi_runner.ArrayData(np.ones((12, 3)), np.ones(12), np.ones((2, 3)), np.ones(2))
result = mpi_runner.train(Model(), data, schemes.cyclic_repetition(3, 1), iterations=60, step=0.1, run="run")
if result is not None:
    print("the script goes on with", len(result.model), flush=True)
"""


def test_a_script_goes_on_when_a_worker_was_lost(tmp_path: Path) -> None:
    if not survives_faults(find_mpirun()):
        pytest.skip("this mpirun has no ULFM")
    done = script(DYING, ranks=4, folder=tmp_path, options=["--with-ft", "ulfm"])
    assert "the script goes on with 3" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert "Traceback" not in done.stderr


class Still:
    """A model that has nothing to learn."""

    def __init__(self, dtype: Any = np.float64) -> None:
        self.dtype = dtype

    def initial(self) -> Any:
        return np.zeros(2, self.dtype)

    def partial_gradient(self, parameters: Any, partition: Partition) -> Any:
        return np.zeros(2)

    def evaluate(self, parameters: Any, partition: Partition) -> dict[str, float]:
        return {"nothing": 0.0}


DATA = ArrayData(np.ones((8, 2)), np.ones(8), np.ones((2, 2)), np.ones(2))
BAD: list[tuple[dict[str, Any], str]] = [
    ({"iterations": 0}, "iterations must be at least 1, not 0"),
    ({"step": 0.0}, "step must be positive and finite, not 0.0"),
    ({"l2": -1.0}, "l2 must be finite and not negative, not -1.0"),
    ({"batch": 1}, "batch must be at least 4, one a partition, not 1"),
    ({"seed": -1}, "seed must be at least 0, not -1"),
    ({"delay": "often"}, "delay: .*often"),
    ({"optimizer": "magic"}, "optimizer must be one of nesterov, gd, momentum, adam or callable, not 'magic'"),
]


@pytest.mark.parametrize(("changes", "pattern"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_arguments(changes: dict[str, Any], pattern: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"iterations": 3, "step": 0.1, "run": str(tmp_path / "run"), **changes}
    with pytest.raises(ValueError, match=f"^{pattern}") as caught:
        mpi_runner.train(Still(), DATA, schemes.uncoded(4), **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_parameters_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must return float32 or float64, not int64"):
        mpi_runner.train(Still(np.int64), DATA, schemes.uncoded(4), iterations=3, step=0.1, run=str(tmp_path))


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("partitions", [1, 3, 8])
def test_arrays_are_cut_into_partitions(make: Any, partitions: int) -> None:
    inputs = np.arange(16.0).reshape(8, 2)
    data = ArrayData(make(inputs), np.arange(8), make(inputs[:2]), np.arange(2))
    parts = [data.load_train(partition, partitions) for partition in range(partitions)]
    rows = [part.inputs if make is np.asarray else part.inputs.toarray() for part in parts]
    np.testing.assert_array_equal(np.concatenate(rows), inputs)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), np.arange(8))
    assert data.train_rows == 8
    assert data.load_test().count == 2


def test_arrays_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="labels must have 8 rows, as the inputs, not 7"):
        ArrayData(np.ones((8, 2)), np.ones(7), np.ones((2, 2)), np.ones(2))
    with pytest.raises(ValueError, match="test_labels must have 2 rows, as the inputs, not 3"):
        ArrayData(np.ones((8, 2)), np.ones(8), np.ones((2, 2)), np.ones(3))
