"""The measurement of compressed messages runs, and its report says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import compressed_messages, compression_report
from fastgc import schemes
from mpi_runner import flights
from mpi_runner.cache import DataError


def test_a_short_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        flights.prepare(100, compressed_messages.SEED)
    except DataError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(compressed_messages, "SEEDS", 5)
    monkeypatch.setattr(compressed_messages, "SIZES", ((4, 4, 2),))
    monkeypatch.setattr(compressed_messages, "MODES", (("float32", False), ("int8", False), ("int8", True)))
    options = ["--rows", "100", "--iterations", "2", "--out", str(tmp_path)]
    assert compressed_messages.main([*options, "--suites", "decode", "training"]) == 0
    assert compressed_messages.main([*options, "--suites", "bias"]) == 0  # the others stay
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"decode", "training", "bias"}
    assert all({"cpu", "commit", "date", "rows"} <= set(suite["header"]) for suite in results.values())
    for cell in results["decode"]["found"]:
        errors = [cell["errors"][name]["worst"] for name in compressed_messages.MESSAGES]
        assert sorted(errors) == errors, cell  # float32, float16, bfloat16, int8
        assert all(0 < each["median"] <= each["worst"] for each in cell["errors"].values())
    for cell in results["bias"]["found"]:
        assert len(cell["of_sum"]) == 2
        assert all(value >= 0 for value in cell["of_sum"])  # 0 at first: half integers, which float32 adds exactly
    report = (tmp_path / "report.md").read_text()
    assert capsys.readouterr().out.endswith(report)
    cell = results["training"]["found"][0]
    assert f"| {cell['family']} | {cell['size']} | {cell['workers']} | {cell['auc']:.4f} |" in report
    assert {"decode.png", "bias.png"} <= {path.name for path in tmp_path.iterdir()}


def test_survivor_sets_are_as_few_as_decode() -> None:
    for scheme in (schemes.grouped(8, 4, 2), schemes.fractional_repetition(8, 3), schemes.cyclic_repetition(8, 4)):
        drawn = compressed_messages.random_sets(scheme, 30, 3)
        assert len(set(drawn)) > 3
        for chosen in (*drawn, *compressed_messages.survivor_sets(scheme)):
            assert scheme.is_decodable(chosen)
            assert not any(scheme.is_decodable(set(chosen) - {worker}) for worker in chosen)
        amplifications = [scheme.amplification(s) for s in compressed_messages.ordered_by_amplification(scheme)]
        assert amplifications == sorted(amplifications)


def test_small_numbers_are_written_shortly() -> None:
    assert [compression_report._number(value) for value in (1.234e-5, 0.0123, 0.5, 1234.0)] == [
        "1.2e-05", "0.0123", "0.5", "1.2e+03",
    ]  # fmt: skip


def test_nonsense_is_refused() -> None:
    for words in (["--rows", "11"], ["--iterations", "0"], ["--suites", "none"]):
        with pytest.raises(SystemExit):
            compressed_messages.main(words)


def test_the_page_shows_the_committed_figures() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "compression.md").read_text("utf-8")
    report = (root / "bench" / "results" / "compression" / "report.md").read_text("utf-8")
    results = json.loads((root / "bench" / "results" / "compression" / "results.json").read_text("utf-8"))
    assert set(results) == set(compressed_messages.SUITES)
    assert report == compression_report.markdown(results)
    measured = page[page.index("## What it does to a decoded gradient") :]
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert len(rows) > 50
    assert [row for row in rows if row not in report.splitlines()] == []
