"""What checking messages costs a decoding: ``python -m bench.verification_cost``.

``decode(..., verify=True)`` against ``decode`` of the same messages, in turns, for one and for several survivors of a
group to spare. Writes JSON and a table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import environment
from bench.timing import Effort, Repeated, measure
from fastgc import schemes

CASES = (
    (8, 4, 2, 1),
    (8, 8, 4, 1),
    (12, 6, 3, 1),
    (24, 4, 2, 1),
    (8, 4, 2, 2),
    (8, 8, 4, 2),
    (8, 8, 4, 4),
    (8, 4, 1, 3),
)
"""Workers, load, reduction, and survivors of a group beyond the reduction."""


def measured(lengths: Sequence[int], threads: Sequence[int], effort: Effort) -> Iterator[dict[str, Any]]:
    """Each case: medians in seconds, and the ratio with its interval of 95 %."""
    for length in lengths:
        for workers, load, reduction, spare in CASES:
            scheme = schemes.grouped(workers, load, reduction)
            gradients = np.random.default_rng(0).standard_normal((load, length)).astype(np.float32)
            survivors = [w for w in range(workers) if w % load < reduction + spare]
            messages = {w: scheme.encode(w, gradients) for w in survivors}
            plain, verified = scheme.decode(messages, length), scheme.decode(messages, length, verify=True)
            if not np.array_equal(verified.gradient, plain):
                raise RuntimeError(f"{scheme.name} has other bits with verify=True")
            contestants = {
                "decode": Repeated(partial(scheme.decode, messages, length)),
                "verify": Repeated(partial(scheme.decode, messages, length, verify=True)),
            }
            for count in threads:
                environment.set_threads(count)
                samples = measure(contestants, effort, threads=count, keep=contestants)
                yield {
                    "workers": workers,
                    "load": load,
                    "reduction": reduction,
                    "spare": spare,
                    "length": length,
                    "threads": count,
                    "decode": samples.summary("decode"),
                    "verify": samples.summary("verify"),
                    "ratio": samples.ratio("verify", "decode"),
                }


def markdown(header: dict[str, Any], cells: Sequence[dict[str, Any]]) -> str:
    """The report."""
    lines = [
        "# What checking messages costs",
        f"{header['cpus']} CPUs ({header['cpu']}), commit {header['commit']}, {header['date']}.\n"
        "float32, results in fresh memory; medians, and of the ratio the interval of 95 %.",
        "| length | scheme | to spare | threads | decode, µs | with verify, µs | ratio |" + "\n" + "|---" * 7 + "|",
    ]
    for cell in cells:
        ratio, low, high = cell["ratio"]
        scheme = f"[{cell['load']}, {cell['reduction']}], {cell['workers']} workers"
        times = f"{cell['decode']['seconds'] * 1e6:.0f} | {cell['verify']['seconds'] * 1e6:.0f}"
        lines[-1] += (
            f"\n| {cell['length']:,} | {scheme} | {cell['spare']} | {cell['threads']} | {times} "
            f"| {ratio:.2f} [{low:.2f}, {high:.2f}] |"
        )
    return "\n\n".join(lines) + "\n"


def main(command: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.verification_cost", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[10**6, 10**7], help="(default: 10⁶ and 10⁷)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a cell (default: 0.5)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/verification"), metavar="DIR")
    options = parser.parse_args(command)
    if min(options.lengths) < 1 or not options.seconds > 0:
        parser.error("lengths and seconds must be positive")
    threads = sorted({1, environment.cpus()})
    cells = list(measured(options.lengths, threads, Effort(seconds=options.seconds)))
    header = environment.machine()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps({"header": header, "cells": cells}, indent=1) + "\n", "utf-8")
    report = markdown(header, cells)
    (options.out / "report.md").write_text(report, "utf-8")
    print(report, end="")
    return 0


if __name__ == "__main__":
    environment.ensure_clean()
    sys.exit(main())
