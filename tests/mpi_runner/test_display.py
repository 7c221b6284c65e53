"""The tables: whole numbers at 80 columns, and a dash where there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mpi_runner.display import comparison

RUN = {
    "scheme": "grouped(24, load=12, reduction=6, code=cauchy)",
    "data": "flights",
    "measure": "auc",
    "test_auc": 0.77123,
    "final_loss": 0.454466,
    "mean_seconds": 1.2345678,
    "median_seconds": 0.0306,
    "p95_seconds": 0.2,
    "bytes_received": 123_456_789,
    "total_seconds": 1234.56,
}


@pytest.mark.parametrize("count", [1, 3])
def test_no_number_is_cut_at_80_columns(count: int) -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(comparison([RUN] * count))
    text = out.getvalue()
    for cell in ("0.7712", "0.45447", "1234.6", "30.6", "200.0", "123.5"):
        assert text.count(cell) >= count
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_figures_that_are_missing_are_dashes() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(comparison([RUN | {"final_loss": None, "test_auc": None}]))
    assert out.getvalue().count("–") == 2
