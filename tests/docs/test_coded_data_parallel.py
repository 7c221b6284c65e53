"""The example of coded data parallelism: seven processes, one of which is slow."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "coded_data_parallel.py"
STEPS, DELAY, SLOW, WORKERS = 6, 0.25, 3, 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    file = tmp_path_factory.mktemp("coded") / "runs.json"
    options = {"steps": STEPS, "delay": DELAY, "slow": SLOW, "width": 64, "dtype": "float64", "json": file}
    command = [
        sys.executable,
        str(EXAMPLE),
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]
    # A session of its own, so that whatever happens no process of it is left.
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = started.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        pytest.fail(f"the example did not end:\n{started.communicate()[1][-2000:]}")
    assert started.returncode == 0, errors
    assert is_gone(started.pid), "processes of the example are left"
    found = {run["name"]: run for run in json.loads(file.read_text("utf-8"))}
    assert all(name in printed for name in found)
    return found


def is_gone(group: int) -> bool:
    """Whether a process group ends by itself: its server sees the end of the process that it worked for, and goes."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return False


def test_parameters_end_where_ddp_has_them(runs: dict[str, Any]) -> None:
    """Roundings of the sum are what differs: of order 1e-16 in a step, which six do not make a thousand times more."""
    reference = torch.tensor(runs["DDP"]["parameters"], dtype=torch.float64)
    for m in (1, 2):
        found = torch.tensor(runs[f"coded, m = {m}"]["parameters"], dtype=torch.float64)
        assert float((found - reference).abs().max()) <= 1e-12 * float(reference.abs().max())
    assert float(reference.std()) > 0.01


def test_nobody_waits_for_the_slow_worker(runs: dict[str, Any]) -> None:
    # A step that the measuring process began late looks shorter than it was; all of them together do not.
    assert sum(runs["DDP"]["seconds"]) >= (STEPS - 1) * DELAY
    for m in (1, 2):
        run = runs[f"coded, m = {m}"]
        assert len(run["seconds"]) == STEPS
        # On a machine with other work the others may take longer than the slow one sleeps, now and then.
        assert run["without_slow"] > STEPS // 2
        assert statistics.median(run["seconds"]) < statistics.median(runs["DDP"]["seconds"])


def test_m_divides_what_is_sent(runs: dict[str, Any]) -> None:
    length = len(runs["DDP"]["parameters"])
    for m in (1, 2):
        run = runs[f"coded, m = {m}"]
        assert run["message_bytes"] == 8 * -(-length // m)
        needed = WORKERS // (m + 1) * m  # messages that a step cannot do without
        assert STEPS * needed <= run["messages"] <= STEPS * WORKERS
