"""The picture of a run that goes on: who is at work, lost or behind, and the rest of it at 80 columns."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from report_support import write_run
from rich.console import Console

from mpi_runner.cli import main
from mpi_runner.config import TrainConfig
from mpi_runner.live import ANSWERED, BEHIND, LOST, WORKING, Live
from mpi_runner.records import ARRIVALS, FAULTS, ITERATIONS, Tail


def iteration(number: int) -> dict[str, str]:
    return {"iteration": str(number), "start": str(number - 1.0), "seconds": "0.9", "loss": "0.5", "score": "",
            "bytes_received": "1000000", "bytes_sent": "2000000"}  # fmt: skip


def arrival(worker: int, number: int, arrived: float, outcome: str = "used") -> dict[str, str]:
    return {"worker": str(worker), "iteration": str(number), "sent": "0", "arrived": str(arrived), "outcome": outcome}


def test_states_of_workers() -> None:
    live = Live("run", 5, 10)
    assert [live.state(w) for w in range(5)] == [WORKING] * 5
    live.iterations([iteration(1)])
    live.arrivals([arrival(0, 1, 0.5), arrival(1, 2, 1.2), arrival(2, 1, 1.3, "late")])
    live.faults([{"worker": "4"}])
    assert [live.state(w) for w in range(5)] == [WORKING, ANSWERED, WORKING, BEHIND, LOST]
    live.iterations([iteration(2)])  # without the worker that was late for the first
    assert live.state(2) == BEHIND


def test_the_reduction_is_shown_where_it_changes() -> None:
    live = Live("run", 4, 10)
    for number, reduction, shown in ((1, "2", False), (2, "2", False), (3, "4", True), (4, "4", True)):
        live.iterations([iteration(number) | {"reduction": reduction}])
        out = io.StringIO()
        Console(file=out, width=120).print(live)
        assert (f"reduction {reduction}" in out.getvalue()) == shown


@pytest.mark.parametrize("workers", [4, 12, 200])
def test_it_fits_80_columns(tmp_path: Path, workers: int) -> None:
    write_run(tmp_path / "run", TrainConfig("uncoded", workers, 20, ""))
    live = Live("uncoded", workers, 40)
    for name, take in ((ITERATIONS, live.iterations), (ARRIVALS, live.arrivals), (FAULTS, live.faults)):
        take(Tail(tmp_path / "run" / name).new_rows())
    out = io.StringIO()
    Console(file=out, width=80).print(live)
    text = out.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "20/40" in text
    assert "left" in text
    assert "ms an iteration" in text
    assert text.count(WORKING.glyph) == workers


def test_watching_a_run_that_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", TrainConfig("uncoded", 3, 20, ""))
    assert main(["watch", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "iteration 20/20" in said
    assert "complete, 20 iterations" in said
    assert main(["watch", str(tmp_path / "none")]) == 2
