"""The page of stability shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from bench import code_stability

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_shows_what_was_measured() -> None:
    """Every row of its tables is one of the report's, and the report is that of the data."""
    folder = ROOT / "bench" / "results" / "stability"
    report = (folder / "report.md").read_text("utf-8")
    assert code_stability.markdown(json.loads((folder / "results.json").read_text("utf-8"))) == report
    page = (ROOT / "docs" / "stability.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) > 40
    assert set(rows) <= set(report.splitlines())
