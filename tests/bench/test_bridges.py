"""The measurement of the bridges runs, checks what they compute, and says what was not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import bridges


def absent(problem: bridges.Problem) -> tuple[bridges.Call, object]:
    raise ImportError("no such thing")


def wrong(problem: bridges.Problem) -> tuple[bridges.Call, object]:
    return lambda: np.zeros_like(problem.out), np.asarray


def some(monkeypatch: pytest.MonkeyPatch, **more: object) -> None:
    chosen = {name: bridges.BRIDGES[name] for name in ("NumPy", "NumPy, out")}
    monkeypatch.setattr(bridges, "BRIDGES", {**chosen, "PyTorch": bridges.BRIDGES["PyTorch"], **more})


def test_a_short_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    some(monkeypatch, Absent=(absent, "NumPy"))
    arguments = ["--lengths", "100", "1001", "--shape", "2", "3", "--seconds", "0.01", "--out", str(tmp_path)]
    assert bridges.main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"cpu", "commit", "date"} <= set(results["header"])
    assert [(c["bridge"], c["length"]) for c in results["cells"]] == [
        (name, length) for length in (100, 1001) for name in ("NumPy", "NumPy, out", "PyTorch", "Absent")
    ]
    torch, missing = results["cells"][2], results["cells"][3]
    assert 0 < torch["seconds"] < 1
    assert torch["overhead"] == sorted(torch["overhead"])
    assert missing["missing"] == "no such thing"
    report = (tmp_path / "report.md").read_text()
    assert capsys.readouterr().out == report
    assert f"| PyTorch | 100 | 1 | {torch['seconds'] * 1e6:,.2f} | NumPy |" in report
    assert "| Absent | 1,001 | 1 | not measured: no such thing |" in report


def test_wrong_results_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some(monkeypatch, Wrong=(wrong, "NumPy"))
    with pytest.raises(RuntimeError, match="Wrong has other bits than NumPy at 50 elements"):
        bridges.main(["--lengths", "50", "--seconds", "0.01", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_nonsense_is_refused() -> None:
    for words in (["--lengths", "0"], ["--seconds", "0"], ["--shape", "0", "3"], ["--threads", "0"]):
        with pytest.raises(SystemExit):
            bridges.main(words)


def test_every_bridge_is_against_one_that_is_there() -> None:
    for _, against in bridges.BRIDGES.values():
        assert against == "" or bridges.BRIDGES[against][1] == ""
