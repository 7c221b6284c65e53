"""How accurate every code is: ``python -m bench.code_stability``.

Condition numbers and measured errors over all survivor sets of every family and prior scheme at every [d, m] up to 16,
and what wider arithmetic would gain. Writes JSON, a table and a plot; takes about 5 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from bench import environment
from bench.plots import STYLE
from fastgc import codes, schemes, stability

SIZES = ((4, 2), (6, 3), (8, 4), (9, 6), (10, 5), (10, 8), (12, 6), (12, 8), (16, 4), (16, 8), (16, 12))
"""[d, m] of the tables; the plot has all."""
SEEDS = 200
FAMILIES = {
    "optimized": "optimized (the default)",
    "cauchy": "Cauchy",
    "chebyshev": "Chebyshev polynomials",
    "gaussian": "Gaussian, seed 0",
    "vandermonde": "Vandermonde, Ye–Abbe's points",
    "polynomial": "Ye–Abbe's polynomial scheme",
}
TYPES = ("float32", "bfloat16", "float16")


def gaussian_median(n: int, k: int) -> float:
    """Median over seeds of the worst condition number of a Gaussian code."""
    return float(np.median([codes.gaussian(n, k, seed=seed).worst_condition_number() for seed in range(SEEDS)]))


def wider(d: int, m: int) -> dict[str, float]:
    """Worst error of the default code with float32 messages: in float32, decoded in float64, encoded so as well."""
    gc = schemes.grouped(d, d, m)
    length = stability.BLOCK * m
    gradients = np.random.default_rng(0).standard_normal((d, length)).astype(np.float32)
    true = gradients.astype(np.longdouble).sum(axis=0)
    narrow = gc.encode_all(gradients)
    rounded_once = gc.encode_all(gradients.astype(np.float64)).astype(np.float32)
    worst = {"float32": 0.0, "decoded in float64": 0.0, "encoded in float64 too": 0.0}
    for survivors in combinations(range(d), m):
        for name, messages in (
            ("float32", narrow),
            ("decoded in float64", narrow.astype(np.float64)),
            ("encoded in float64 too", rounded_once.astype(np.float64)),
        ):
            decoded = gc.decode({worker: messages[worker] for worker in survivors}, length)
            error = float(np.abs(decoded - true).max() / np.abs(gradients).max(axis=1).sum(dtype=np.float64))
            worst[name] = max(worst[name], error)
    return worst


def _number(value: float | None) -> str:
    return "overflow" if value is None else f"{value:.2g}" if value < 1000 else f"{value:.1e}"


def markdown(results: dict[str, Any]) -> str:
    """The report."""
    header = results["header"]
    found = {(row["family"], row["n"], row["k"]): row for row in results["rows"]}
    lines = [
        "# Stability of codes",
        f"{header['cpu']}, commit {header['commit']}, {header['date']}.",
        "## Worst condition number over all sets of m of d workers",
        f"| [d, m] | optimized | Gaussian, median of {SEEDS} seeds | Vandermonde, Ye–Abbe's points "
        "| Gaussian over optimized |"
        "\n|---|---|---|---|---|",
    ]
    for d, m in SIZES:
        ours, ye_abbe = (found[family, d, m]["condition"] for family in ("optimized", "vandermonde"))
        gaussian = results["gaussian_medians"][f"{d},{m}"]
        cells = " | ".join(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in (ours, gaussian, ye_abbe))
        lines[-1] += f"\n| [{d}, {m}] | {cells} | {gaussian / ours:.0f} × |"
    for kind, title in (("errors", "Worst"), ("median_errors", "Median")):
        lines += [
            f"## {title} error over the same sets, for messages in {', '.join(TYPES)}",
            f"| [d, m] | {' | '.join(FAMILIES.values())} |\n|---|" + "---|" * len(FAMILIES),
        ]
        for d, m in SIZES:
            cells = " | ".join(
                ", ".join(_number(found[family, d, m][kind][dtype]) for dtype in TYPES) for family in FAMILIES
            )
            lines[-1] += f"\n| [{d}, {m}] | {cells} |"
    lines += [
        "## The default code in float32",
        "| d | " + " | ".join(str(d) for d in range(2, stability.LONGEST + 1)) + " |\n|---|" + "---|" * 15,
    ]
    worst = [
        max(found["optimized", d, m]["errors"]["float32"] for m in range(1, d)) for d in range(2, stability.LONGEST + 1)
    ]
    lines[-1] += "\n| worst error of any m | " + " | ".join(f"{value:.1e}" for value in worst) + " |"
    lines += [
        "## Tandon et al.'s cyclic repetition, 16 workers, m = 1",
        "| d = s + 1 | worst amplification | worst error: float32 | bfloat16 | float16 |\n|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        if row["family"] == "cyclic_repetition":
            cells = " | ".join(_number(row["errors"][dtype]) for dtype in TYPES)
            lines[-1] += f"\n| {row['n']} | {_number(row['condition'])} | {cells} |"
    lines += [
        "## What wider arithmetic gains: worst error of the default code, messages in float32",
        f"| [d, m] | {' | '.join(results['wider'][0]['errors'])} |\n|---|---|---|---|",
    ]
    for row in results["wider"]:
        lines[-1] += f"\n| [{row['d']}, {row['m']}] | {' | '.join(f'{v:.1e}' for v in row['errors'].values())} |"
    return "\n\n".join(lines) + "\n"


def draw(results: dict[str, Any], file: Path) -> None:
    """Worst errors of every [d, m]: a column for each family, a row for each element type of the messages."""
    longest = stability.LONGEST
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.1 * len(FAMILIES) + 1, 2.1 * len(TYPES) + 0.6), layout="constrained")
        axes = figure.subplots(len(TYPES), len(FAMILIES), sharex=True, sharey=True)
        scale = LogNorm(1e-8, 1)
        for family, column in zip(FAMILIES, axes.T, strict=True):
            for dtype, axis in zip(TYPES, column, strict=True):
                grid = np.full((longest + 1, longest + 1), math.nan)
                for row in results["rows"]:
                    if row["family"] == family:
                        value = row["errors"][dtype]
                        grid[row["k"], row["n"]] = np.inf if value is None else value
                drawn = axis.imshow(np.minimum(grid, 1e9), origin="lower", norm=scale, cmap="cividis")
                axis.set_xlim(1.5, longest + 0.5)
                axis.set_ylim(0.5, longest - 0.5)
                axis.set_xticks((4, 8, 12, 16))
                axis.set_yticks((1, 4, 8, 12))
            column[0].set_title(FAMILIES[family].replace(", ", ",\n").replace(" (", "\n(").replace("'s ", "'s\n"))
            column[-1].set_xlabel("load d")
        for dtype, row_of_axes in zip(TYPES, axes, strict=True):
            row_of_axes[0].set_ylabel(f"{dtype}\nreduction m")
        bar = figure.colorbar(drawn, ax=axes, extend="max", shrink=0.8)
        bar.set_label("worst error over all survivor sets")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=100)


def main(command: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.code_stability", description=__doc__)
    parser.add_argument("--draw", action="store_true", help="measure nothing: report and plot of what is there")
    parser.add_argument("--out", type=Path, default=Path("bench/results/stability"), metavar="DIR")
    parser.add_argument("--image", type=Path, default=Path("docs/images/stability.png"), metavar="FILE")
    options = parser.parse_args(command)
    stored = options.out / "results.json"
    if options.draw:
        results = json.loads(stored.read_text("utf-8"))
    else:
        warnings.simplefilter("ignore", RuntimeWarning)  # badly conditioned schemes are what is looked at
        results = {
            "header": environment.machine(),
            "rows": list(stability.table(stability.every(stability.LONGEST))),
            "gaussian_medians": {f"{d},{m}": gaussian_median(d, m) for d, m in SIZES},
            "wider": [{"d": d, "m": m, "errors": wider(d, m)} for d, m in SIZES],
        }
        options.out.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(json.dumps(row) for row in results["rows"])
        rest = {name: value for name, value in results.items() if name != "rows"}
        stored.write_text(json.dumps(rest, indent=1)[:-2] + f',\n "rows": [\n{rows}\n]}}\n', "utf-8")
    (options.out / "report.md").write_text(markdown(results), "utf-8")
    draw(results, options.image)
    print(options.out / "report.md", options.image, sep="\n")
    return 0


if __name__ == "__main__":
    environment.ensure_clean()
    sys.exit(main())
