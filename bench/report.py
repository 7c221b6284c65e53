"""``python -m bench.report results.json``: the tables and plots of a measurement, made from its file alone.

Nothing here measures; nothing that measures prints.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import plots
from bench.records import Record, Results, geometric_mean

JSON = "results.json"
MARKDOWN = "report.md"
LOSS = 0.95
"""Cells with a speed-up below this are listed."""


def write(results: Results, folder: Path) -> None:
    """Write the report and the plots into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(results, folder)
    (folder / MARKDOWN).write_text(markdown(results, drawn), encoding="utf-8")


def markdown(results: Results, drawn: Sequence[str] = ()) -> str:
    """The whole report: header, summary, losses, limits, plots, and a table of every suite."""
    parts = [
        "# fastgc against its peers and the machine",
        _header(results.header),
        _summary_tables(results),
        _half_types(results),
        _short_rows(results),
        _losses(results),
        _limits(results),
        *(f"![{name.rpartition('.')[0]}]({name})" for name in drawn),
        _skipped(results),
    ]
    for title, suites in (
        ("Encode and decode", ("encode", "decode")),
        (
            "Decoding weights",
            (
                "batched weights",
                *(f"weights of a {what}" for what in ("set met first", "new pattern", "known pattern")),
            ),
        ),
        ("Every cell of the grid", ("lincomb",)),
    ):
        if records := results.suite(*suites):
            parts.append(f"## {title}\n\n{_records_table(records)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(results: Results) -> str:
    """What a terminal is shown: the header, means and losses."""
    return "\n\n".join(part for part in (_header(results.header), _summary_tables(results), _losses(results)) if part)


# Parts ----------------------------------------------------------------------------------------------------------------


def _header(header: dict[str, Any]) -> str:
    blas = "; ".join(
        " ".join(str(part) for part in (lib["library"], lib.get("version"), lib.get("architecture")) if part)
        for lib in header["blas"]
        if lib.get("internal_api") == "openblas"
    )
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    rows = [
        ("CPU", f"{header['cpu']}, {header['cpus']} in use, {header['memory_gib']} GiB"),
        ("Caches", ", ".join(f"{name} {size}" for name, size in header["caches"].items())),
        ("System", header["system"]),
        ("Compiler", header["compiler"]),
        ("Python", f"{header['python']}; {versions}"),
        ("OpenBLAS", blas),
        ("fastgc", ", ".join(f"{key}: {value}" for key, value in header["fastgc"].items())),
        ("Commit", header["commit"]),
        ("Date", f"{header['date']} to {header.get('finished')}, {header.get('processes', 1)} process(es)"),
    ]
    return table(("", ""), [(name, str(value)) for name, value in rows])


def _summary_tables(results: Results) -> str:
    compared = [record for record in results.suite("lincomb") if record.speedup]
    parts = []
    if compared:
        lengths = sorted({record.case["length"] for record in compared})
        rows = []
        for type_name, threads in dict.fromkeys((r.case["type"], r.case["threads"]) for r in compared):
            group = [r for r in compared if (r.case["type"], r.case["threads"]) == (type_name, threads)]
            by_length = [[r for r in group if r.case["length"] == length] for length in lengths]
            speedups = (geometric_mean(_speedups(records)) for records in by_length)
            below = sum(speedup < LOSS for speedup in _speedups(group))
            fastest = geometric_mean(speedup for record in group if (speedup := record.undisturbed_speedup))
            means = (_times(geometric_mean(_speedups(group))), _times(fastest))
            rows.append((type_name, threads, *map(_times, speedups), *means, f"{below} of {len(group)}"))
            most = (_times(geometric_mean(_possible_speedups(records))) for records in (*by_length, group))
            rows.append((f"{type_name}, at the limit", threads, *most, "", ""))
        heads = (
            *("type", "threads"),
            *(f"L = {length:.0e}" for length in lengths),
            *("all", "all, fastest samples", f"below {LOSS}×"),
        )
        parts.append(
            f"## Speed-up over the best peer of each cell, geometric means\n\n{table(heads, rows)}\n\n"
            "*At the limit*: what it would be if ours took as long as the machine needs to move the bytes, or to do\n"
            "the arithmetic, whichever takes longer; or as long as it does, where that is less."
        )
        parts.append(f"## Fraction of the machine's limit, geometric means\n\n{_fractions(compared)}")
        parts.append(f"## fastgc's other backends and instruction sets\n\n{_others(compared, lengths)}")
    return "\n\n".join(parts)


def _others(records: Sequence[Record], lengths: Sequence[int]) -> str:
    found: dict[tuple[str, str, int], dict[int, list[float]]] = {}
    for record in records:
        ours, case = record.our_timing, record.case
        for timing in record.timings:
            if ours and timing.ours and timing is not ours:
                ratios = found.setdefault((timing.name, case["type"], case["threads"]), {})
                ratios.setdefault(case["length"], []).append(ours.seconds / timing.seconds)
    rows = [
        (*key, *(f"{geometric_mean(ratios[length]):.2f}" if length in ratios else "" for length in lengths))
        for key, ratios in sorted(found.items())
    ]
    heads = ("", "type", "threads", *(f"L = {length:.0e}" for length in lengths))
    return f"{table(heads, rows)}\n\nTheir speed over that of what a user gets without choosing, geometric means."


def _memory_bound(case: dict[str, Any]) -> bool:
    return max(case["p"], case["q"]) <= 8 and bool(case["length"] >= 10**6)


REGIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "P, Q ≤ 8, L ≥ 10⁶": _memory_bound,
    "P, Q ≤ 8, L < 10⁶": lambda c: max(c["p"], c["q"]) <= 8 and c["length"] < 10**6,
    "P ≤ 4, Q = 64, L ≥ 10⁶": lambda c: c["p"] <= 4 and c["q"] == 64 and c["length"] >= 10**6,
    "P = Q = 16 and 32, L ≥ 10⁶": lambda c: c["p"] == c["q"] and c["p"] in (16, 32) and c["length"] >= 10**6,
    "P = Q = 64, L ≥ 10⁵": lambda c: c["p"] == c["q"] == 64 and c["length"] >= 10**5,
}
"""Regions of the grid in which one thing is the limit."""


def _fractions(records: Sequence[Record]) -> str:
    groups = list(dict.fromkeys((r.case["type"], r.case["threads"]) for r in records))
    rows = []
    for region, inside in REGIONS.items():
        cells = []
        for group in groups:
            members = [r for r in records if (r.case["type"], r.case["threads"]) == group and inside(r.case)]
            found = [fraction for r in members if (fraction := r.of_limit)]
            cells.append(f"{geometric_mean(found):.2f} ({min(found):.2f})" if found else "")
        if any(cells):
            rows.append((region, *cells))
    text = table(("", *(f"{name}, {threads} thread(s)" for name, threads in groups)), rows)
    return f"{text}\n\nIn brackets the lowest."


def _half_types(results: Results) -> str:
    """How many times faster ours is on half types than on float32, where memory is the limit."""
    ours = {
        (case["type"], case["threads"], case["p"], case["q"], case["length"]): timing.seconds
        for record in results.suite("lincomb")
        if (timing := record.our_timing) and _memory_bound(case := record.case) and not case.get("accumulate")
    }
    rows = []
    for type_name, threads in dict.fromkeys(key[:2] for key in ours if key[0] in ("f16", "bf16")):
        ratios = [
            ours[("f32", *key[1:])] / seconds
            for key, seconds in ours.items()
            if key[:2] == (type_name, threads) and ("f32", *key[1:]) in ours
        ]
        if ratios:
            rows.append((type_name, threads, _times(geometric_mean(ratios)), _times(min(ratios)), len(ratios)))
    heads = ("type", "threads", "geometric mean", "lowest", "cells")
    return f"## Half types over our float32, P, Q ≤ 8, L ≥ 10⁶\n\n{table(heads, rows)}" if rows else ""


def _short_rows(results: Results) -> str:
    """Ours against NumPy alone where the cost of a call counts as much as the arithmetic."""
    ratios: dict[tuple[str, int], list[float]] = {}
    for record in results.suite("lincomb"):
        ours, numpy = record.our_timing, record.timing("NumPy")
        if record.case["length"] == 1000 and ours and numpy:
            ratios.setdefault((record.case["type"], record.case["threads"]), []).append(numpy.seconds / ours.seconds)
    rows = [
        (
            *key,
            _times(geometric_mean(found)),
            _times(min(found)),
            f"{sum(ratio < 1 for ratio in found)} of {len(found)}",
        )
        for key, found in ratios.items()
    ]
    heads = ("type", "threads", "geometric mean", "lowest", "below 1×")
    return f"## Over `np.matmul(C, X, out=Y)` at L = 10³\n\n{table(heads, rows)}" if rows else ""


def _losses(results: Results) -> str:
    compared = [record for record in results.records if record.speedup]
    lost = sorted((r for r in compared if (r.speedup or 1) < LOSS), key=lambda r: r.speedup or 1)
    if not compared:
        return ""
    if not lost:
        return f"No case is below {LOSS}× the best peer."
    sure = sum(1 for r in lost if r.interval and r.interval[1] < LOSS)
    rows = [
        (
            _case(record),
            record.best_peer,
            f"{record.speedup:.2f}",
            _interval(record),
            f"{record.undisturbed_speedup:.2f}",
            _percent(record.of_limit),
            _percent(record.disturbed),
        )
        for record in lost
    ]
    heads = ("case", "best peer", "speed-up", "95 %", "fastest samples", "of limit", "disturbed")
    return (
        f"## Below {LOSS}× the best peer\n\n{len(lost)} of {len(compared)} cases; in {sure} of them the whole interval "
        f"is below.\n\n{table(heads, rows)}"
    )


def _limits(results: Results) -> str:
    if not results.limits:
        return ""
    threads = sorted({limit["threads"] for limit in results.limits})
    kinds = dict.fromkeys((limit["what"], limit["footprint"], limit["unit"]) for limit in results.limits)
    rate = {(limit["what"], limit["footprint"], limit["threads"]): limit["rate"] for limit in results.limits}
    rows = [
        (what, footprint, f"G{unit}", *(f"{rate[what, footprint, n] / 1e9:.1f}" for n in threads))
        for what, footprint, unit in kinds
    ]
    heads = ("", "footprint", "unit", *(f"{n} thread(s)" for n in threads))
    return f"## The machine's limits\n\n{table(heads, rows)}"


def _skipped(results: Results) -> str:
    # Of reasons that name numbers, one stands for all.
    reasons: dict[tuple[str, str], list[str]] = {}
    for record in results.records:
        for name, reason in record.skipped.items():
            kind = re.sub(r"[\d,.]+", "#", reason)
            reasons.setdefault((name, kind), []).append(reason)
    rows = [(name, Counter(found).most_common(1)[0][0], len(found)) for (name, _), found in sorted(reasons.items())]
    return f"## Not measured\n\n{table(('contestant', 'reason (one of them)', 'cases'), rows)}" if rows else ""


def _records_table(records: Sequence[Record]) -> str:
    moves, counts = any(record.bytes for record in records), any(record.flops for record in records)
    rates = ("GB/s",) * moves + ("GFLOP/s",) * counts + ("of limit",) * moves
    heads = ("case", "time", *rates, "best peer", "its time", "speed-up")
    rows = []
    for record in records:
        ours = record.our_timing
        peer = record.timing(record.best_peer) if record.best_peer else None
        seconds = ours.seconds if ours else None
        numbers = (_rate(record.bytes, seconds),) * moves + (_rate(record.flops, seconds),) * counts
        others: tuple[object, ...] = ()
        if record.suite != "lincomb":
            others = (ours.faults if ours and ours.faults is not None else "", _over_each_peer(record))
        rows.append(
            (
                _case(record),
                _time(seconds),
                *numbers,
                *(_percent(record.of_limit),) * moves,
                record.best_peer or "",
                _time(peer.seconds if peer else None),
                f"{record.speedup:.2f}" if record.speedup else "",
                _interval(record),
                f"{ours.error:.1e}" if ours and ours.error is not None else "",
                *others,
            )
        )
    others = ("page faults", "speed-up over each peer") if records[0].suite != "lincomb" else ()
    return table((*heads, "95 %", "error", *others), rows)


# Cells ----------------------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _speedups(records: Iterable[Record]) -> list[float]:
    return [record.speedup for record in records if record.speedup]


def _possible_speedups(records: Iterable[Record]) -> list[float]:
    return [speedup for record in records if (speedup := record.possible_speedup)]


def _case(record: Record) -> str:
    case = dict(record.case)
    if record.suite == "lincomb":
        text = f"{case['type']} {case['threads']}t {case['p']} × {case['q']} × {case['length']:.0e}"
        return text + (" accumulate" if case.get("accumulate") else "")
    words = [f"{name} {value:,}" if isinstance(value, int) else str(value) for name, value in case.items()]
    return ", ".join([record.suite, *words])


def _over_each_peer(record: Record) -> str:
    ours = record.our_timing
    peers = [timing for timing in record.timings if not timing.ours]
    return ", ".join(f"{peer.name} {peer.seconds / ours.seconds:.1f}" for peer in peers) if ours else ""


def _interval(record: Record) -> str:
    return f"{record.interval[0]:.2f}–{record.interval[1]:.2f}" if record.interval else ""


def _percent(fraction: float | None) -> str:
    return "" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.0f} %"


def _times(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}×"


def _rate(amount: int | None, seconds: float | None) -> str:
    return f"{amount / seconds / 1e9:.1f}" if amount and seconds else ""


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    unit, size = next((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 0.0)) if seconds >= s)
    return f"{seconds / (size or 1e-9):.3g} {unit}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="a results.json of bench.compare")
    parser.add_argument("--out", type=Path, help="folder for the report and plots; default: that of the file")
    options = parser.parse_args(arguments)
    write(Results.load(options.file), options.out or options.file.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
