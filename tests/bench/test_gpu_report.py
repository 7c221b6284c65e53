"""The tables of the GPU benchmark, from records made up: what is a mean of what, and what is missing."""

from __future__ import annotations

from typing import Any

from bench.gpu_report import markdown

HEADER = {
    "header": {"commit": "c0ffee", "date": "2026-01-02"},
    "device": "a device",
    "versions": {"CUDA": "13.0"},
    "limits": {"copy": 4e12, "float32": 30e12, "float64": 15e12},
}


def record(length: int, **seconds: float) -> dict[str, Any]:
    case = {"P": 1, "Q": 2, "length": length, "type": "float32", "bytes": 12 * length, "floor": 1e-6, "bound": "copy"}
    return {**case, "seconds": seconds}


def rows(text: str, first: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {first} |")]


def test_means_and_least() -> None:
    records = [
        record(1000, fastgc=1e-6, CuPy=4e-6, PyTorch=8e-6),
        record(1000, fastgc=2e-6, CuPy=8e-6, PyTorch=2e-6),
        record(2000, fastgc=4e-6),
    ]
    text = markdown({**HEADER, "lincomb": records})
    mean, alone, *cases = rows(text, "float32")
    assert mean == ["float32", "1000", "2.00", "1.00", "0.71", "0.50"]  # 4 and 1; 1 and 1/2
    assert alone == ["float32", "2000", "–", "–", "0.25", "0.25"]
    assert cases[0] == ["float32", "1 × 2", "1000", "1", "4", "8", "4.00", "12", "1.00", "copy"]
    assert cases[2][3:7] == ["4", "–", "–", "–"]
    assert "4000 GB/s" in text
    assert "60.0 TFLOP/s of float32, 30.0 of float64" in text


def test_only_what_was_measured_has_a_section() -> None:
    call = {"P": 4, "Q": 4, "graph": 2e-6, "seconds": {"fastgc": 5e-6, "PyTorch": 8e-6}}
    text = markdown({**HEADER, "starts": [call], "weights": []})
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Calls"]
    assert rows(text, "4 × 4") == [["4 × 4", "5", "–", "8", "2.0"]]
    made = {"k": 3, "patterns": 10, "seconds": {"fastgc": 1e-3, "CuPy": 2e-3}}
    whole = {"suite": "encode", "scheme": "s", "length": 5, "seconds": {"fastgc": 1e-6, "PyTorch": 3e-6}}
    text = markdown({**HEADER, "weights": [made], "end to end": [whole]})
    assert rows(text, "3") == [["3", "10", "1", "2", "–", "2.00"]]
    assert rows(text, "encode") == [["encode", "s", "5", "1", "3", "3.00"]]
