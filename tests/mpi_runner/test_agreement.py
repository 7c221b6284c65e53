"""What two holders' gradients may differ by, and what the start of a run makes of a model that is not deterministic."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runner_support import script

from mpi_runner.agreement import difference

DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_roundings_pass_and_other_gradients_do_not(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    gradient = rng.standard_normal(1000).astype(dtype)
    assert difference(gradient, gradient.copy(), "workers 0 and 1", 0) is None
    rounded = np.nextafter(gradient, np.asarray(np.inf, dtype))
    assert difference(gradient, rounded, "workers 0 and 1", 0) is None
    one = gradient.copy()
    one[500] += dtype(0.01)
    complaint = difference(gradient, one, "workers 0 and 1", 7)
    assert complaint is not None
    assert complaint.startswith("workers 0 and 1 find different gradients of partition 7 (by 1.0e-02")
    assert "\n" not in complaint
    assert difference(np.zeros(3, dtype), np.zeros(3, dtype), "workers 0 and 1", 0) is None
    assert difference(np.zeros(3, dtype), np.full(3, np.nan, dtype), "workers 0 and 1", 0) is not None
    assert "not finite" in str(difference(np.array([1, np.nan], dtype), np.ones(2, dtype), "workers 0 and 1", 0))


MODEL = """
import numpy as np
import mpi_runner
from fastgc import schemes

class Model:
    calls = 0
    rng = np.random.default_rng({seed})
    def initial(self):
        return np.zeros(3)
    def partial_gradient(self, parameters, partition):
        self.calls += 1
        return {gradient}
    def evaluate(self, parameters, partition):
        return {{"size": float(abs(parameters).max())}}

data = mpi_runner.ArrayData(np.ones((12, 3)), np.ones(12), np.ones((2, 3)), np.ones(2))
result = mpi_runner.train(
    Model(), data, schemes.{scheme}, iterations=5, step=0.1, run="run"
)
print("trained" if result else "worked", flush=True)
"""
SUM = "partition.inputs.sum(axis=0)"
CASES: list[tuple[str, str, str, str, bool]] = [
    ("a generator of each rank's own", "None", f"{SUM} * self.rng.random()", "cyclic_repetition(3, 1)", False),
    ("one that starts alike", "7", f"{SUM} * self.rng.random()", "cyclic_repetition(3, 1)", False),
    ("state between calls", "7", f"{SUM} * self.calls", "cyclic_repetition(3, 1)", False),
    ("the partition's seed", "7", f"{SUM} * (partition.seed % 97)", "cyclic_repetition(3, 1)", True),
    ("nobody to disagree with", "None", f"{SUM} * self.rng.random()", "uncoded(3)", True),
]


@pytest.mark.parametrize(("seed", "gradient", "scheme", "agree"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_model_that_is_not_deterministic_is_refused(
    seed: str, gradient: str, scheme: str, agree: bool, tmp_path: Path
) -> None:
    done: subprocess.CompletedProcess[str] = script(
        MODEL.format(seed=seed, gradient=gradient, scheme=scheme), ranks=4, folder=tmp_path
    )
    assert (done.returncode == 0) == agree, done.stderr
    assert ("find different gradients of partition" in done.stderr) != agree
    assert ("trained" in done.stdout) == agree
    assert (tmp_path / "run" / "summary.json").exists() == agree
