"""The measurement of what checking messages costs runs, and its report says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import verification_cost


def test_a_short_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification_cost, "CASES", ((8, 4, 2, 1),))
    assert verification_cost.main(["--lengths", "5000", "--seconds", "0.01", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"cpu", "commit", "date"} <= set(results["header"])
    first = results["cells"][0]
    assert (first["length"], first["spare"], first["threads"]) == (5000, 1, 1)
    assert 0 < first["decode"]["seconds"] < 1
    report = (tmp_path / "report.md").read_text()
    assert capsys.readouterr().out == report
    assert f"| 5,000 | [4, 2], 8 workers | 1 | 1 | {first['decode']['seconds'] * 1e6:.0f} |" in report


def test_nonsense_is_refused() -> None:
    for words in (["--lengths", "0"], ["--seconds", "0"]):
        with pytest.raises(SystemExit):
            verification_cost.main(words)
