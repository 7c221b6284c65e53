"""Tables of what ``python -m bench.gpu`` measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.report import table

PEERS = ("CuPy", "PyTorch")
Record = dict[str, Any]


def markdown(found: dict[str, Any]) -> str:
    """The records in Markdown."""
    header, limit = found["header"], found["limits"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts = [
        f"# CUDA kernels on {found['device']}",
        f"By `python -m bench.gpu`, commit {header['commit']}, {header['date']}; {versions}.\n"
        f"The device copies at {limit['copy'] / 1e9:.0f} GB/s, read and written, and makes\n"
        f"{limit['float32'] / 5e11:.1f} TFLOP/s of float32, {limit['float64'] / 5e11:.1f} of float64. The peers' "
        "products round the coefficients\nto the type of the rows.",
    ]
    sections = {"lincomb": _lincomb, "starts": _starts, "weights": _weights, "end to end": _end_to_end}
    parts += [section(found[suite]) for suite, section in sections.items() if found.get(suite)]
    return "\n\n".join(parts) + "\n"


def _lincomb(records: Sequence[Record]) -> str:
    means = []
    for name in dict.fromkeys(r["type"] for r in records):
        for length in dict.fromkeys(r["length"] for r in records):
            chosen = [r for r in records if (r["type"], r["length"]) == (name, length)]
            over = [o for r in chosen if (o := _speedup(r)) is not None]
            means.append((name, length, *_mean_and_least(over), *_mean_and_least([_of_floor(r) for r in chosen])))
    cases = [
        (
            r["type"],
            f"{r['P']} × {r['Q']}",
            r["length"],
            *_times(r, 1e-6),
            _over(r),
            f"{r['bytes'] / r['seconds']['fastgc'] / 1e9:.0f}",
            f"{_of_floor(r):.2f}",
            r["bound"],
        )
        for r in records
    ]
    return (
        "## lincomb\n\nOver the shapes below, geometric means and the least. The floor is a copy of as many bytes, or "
        "the\narithmetic.\n\n"
        + table(("type", "L", "over the best peer", "least", "of the floor", "least"), means)
        + "\n\n"
        + table(
            ("type", "P × Q", "L", *_heads("µs"), "over the best peer", "GB/s", "of the floor", "which is"),
            cases,
        )
    )


def _starts(records: Sequence[Record]) -> str:
    rows = [(f"{r['P']} × {r['Q']}", *_times(r, 1e-6), f"{r['graph'] * 1e6:.1f}") for r in records]
    return (
        "## Calls\n\nWhat the host needs to start a call on rows of 1000 float32, and the device to make one after the "
        "other\nin a graph.\n\n" + table(("P × Q", *_heads("µs"), "in a graph, µs"), rows)
    )


def _weights(records: Sequence[Record]) -> str:
    rows = [(r["k"], r["patterns"], *_times(r, 1e-3), _over(r)) for r in records]
    return "## Decoding weights\n\nUntil they are there. The peers invert rows that are selected already.\n\n" + table(
        ("k", "patterns", *_heads("ms"), "over the best peer"), rows
    )


def _end_to_end(records: Sequence[Record]) -> str:
    rows = [(r["suite"], r["scheme"], r["length"], *_times(r, 1e-6, ("fastgc", "PyTorch")), _over(r)) for r in records]
    heads = ("", "scheme", "L", "fastgc, µs", "PyTorch, µs", "over PyTorch")
    return "## End to end\n\nOf float32, on one stream; PyTorch's weights are known.\n\n" + table(heads, rows)


def _heads(unit: str) -> list[str]:
    return [f"{name}, {unit}" for name in ("fastgc", *PEERS)]


def _times(record: Record, unit: float, names: Sequence[str] = ("fastgc", *PEERS)) -> list[str]:
    seconds = record["seconds"]
    return [f"{seconds[name] / unit:.3g}" if name in seconds else "–" for name in names]


def _speedup(record: Record) -> float | None:
    """How often faster than the best peer; None without one."""
    peers = [record["seconds"][name] for name in PEERS if name in record["seconds"]]
    return min(peers) / record["seconds"]["fastgc"] if peers else None


def _over(record: Record) -> str:
    speedup = _speedup(record)
    return "–" if speedup is None else f"{speedup:.2f}"


def _of_floor(record: Record) -> float:
    return float(record["floor"] / record["seconds"]["fastgc"])


def _mean_and_least(values: Sequence[float]) -> tuple[str, str]:
    return (f"{statistics.geometric_mean(values):.2f}", f"{min(values):.2f}") if values else ("–", "–")
