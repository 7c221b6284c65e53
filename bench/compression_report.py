"""Tables and plots of compressed messages, from what `bench.compressed_messages` has measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bench.plots import BLACK, BLUE, GREEN, STYLE, VERMILION

COLOURS = {"float32": BLACK, "float16": GREEN, "bfloat16": BLUE, "int8": VERMILION}


def markdown(results: dict[str, Any]) -> str:
    """The tables of the suites that are there."""
    lines = ["# Compressed messages"]
    for suite, table in TABLES.items():
        if suite in results:
            header = results[suite]["header"]
            lines += table(results[suite]["found"])
            lines.append(f"{header['cpu']}, commit {header['commit']}, {header['date']}.")
    return "\n\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _modes(found: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Codecs, and whether with feedback."""
    return list(dict.fromkeys((f["message"], f["feedback"]) for f in found))


def _label(message: str, feedback: bool) -> str:
    return message + (" with feedback" if feedback else "")


def _number(value: float) -> str:
    return f"{value:.1e}" if value < 0.01 or value >= 100 else f"{value:.3g}"


def _formats_table(found: Sequence[dict[str, Any]]) -> list[str]:
    stochastic = {(f["block"], f["scale"]): f["flights"] for f in found if f["stochastic"]}
    rows = [
        [str(f["block"]), f["scale"], f"{f['bits']:.2f}"]
        + [_number(error) for error in (f["flights"], f["normal"], stochastic[f["block"], f["scale"]])]
        for f in found
        if not f["stochastic"]
    ]
    return [
        "## int8: blocks and scales",
        "Relative error of one message of [4, 2], of flights after 10 iterations and of normal numbers. The last "
        "column has stochastic rounding.",
        _table(["block", "scale", "bits a number", "flights", "normal", "flights, stochastic"], rows),
    ]


def _decode_table(found: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "## One decoded gradient",
        "‖decoded − sum‖₂ / ‖sum‖₂: worst and median survivor set of as few workers as decode.",
    ]
    for kind in dict.fromkeys(f["gradients"] for f in found):
        rows = [
            [f["family"], f["size"], str(f["workers"]), _number(f["amplification"])]
            + [f"{_number(e['worst'])}, {_number(e['median'])}" for e in f["errors"].values()]
            for f in found
            if f["gradients"] == kind
        ]
        head = ["code", "size", "workers", "worst amplification", *found[0]["errors"]]
        lines += [f"Gradients: {kind}.", _table(head, rows)]
    return lines


def _bias_table(found: Sequence[dict[str, Any]]) -> list[str]:
    count, modes = len(found[0]["of_sum"]), _modes(found)
    lines = [
        "## The sum of many decoded gradients",
        f"‖Σ decoded − Σ sums‖₂ / ‖Σ sums‖₂ over {count} iterations, 8 workers. Fixed: the same set, that of median or "
        "worst amplification; random: another in each iteration.",
    ]
    for kind in dict.fromkeys(f["gradients"] for f in found):
        here = [f for f in found if f["gradients"] == kind]
        rows = []
        for key in dict.fromkeys((f["family"], f["size"], f["survivors"]) for f in here):
            cells = {
                (f["message"], f["feedback"]): _number(f["of_sum"][-1])
                for f in here
                if (f["family"], f["size"], f["survivors"]) == key
            }
            rows.append([*key, *(cells.get(mode, "") for mode in modes)])
        head = ["code", "size", "survivors", *(_label(*mode) for mode in modes)]
        lines += [f"Gradients: {kind}.", _table(head, rows)]
    return lines


def _training_table(found: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "## Training on the flights",
        "Test AUC after training with random survivors, as few as decode, others in each iteration; in one process.",
        _auc_table(found),
    ]


def _worst_table(found: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "## Training with the worst survivors",
        "The same, where those of the worst amplification survive in every iteration.",
        _auc_table(found),
    ]


def _auc_table(found: Sequence[dict[str, Any]]) -> str:
    rows, modes = [], _modes(found)
    for key in dict.fromkeys((f["family"], f["size"], f["workers"]) for f in found):
        cells = {
            (f["message"], f["feedback"]): f"{f['auc']:.4f}"
            for f in found
            if (f["family"], f["size"], f["workers"]) == key
        }
        rows.append([*map(str, key), *(cells.get(mode, "") for mode in modes)])
    return _table(["code", "size", "workers", *(_label(*mode) for mode in modes)], rows)


def _speed_table(found: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "## Speed",
        f"Medians on one thread, for a gradient of {found[0]['length']:,} numbers under [4, 2] with 8 workers: "
        "encoding a message, decoding four, and one message each way.",
        _table(["", "µs"], [[f["what"], f"{f['seconds'] * 1e6:.0f}"] for f in found]),
    ]


def _runs_table(found: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [f["family"], _label(f["message"], f["feedback"]), f"{f['test_auc']:.4f}", f"{f['bytes_received'] / 1e6:.0f}",
         f"{f['mean_seconds'] * 1000:.0f}"]
        for f in found
    ]  # fmt: skip
    return [
        "## Training over MPI",
        f"`python -m mpi_runner train {found[0]['options']} --code … --message-dtype … [--error-feedback]`.",
        _table(["code", "messages", "test AUC", "MB received", "mean ms"], rows),
    ]


TABLES = {
    "formats": _formats_table,
    "decode": _decode_table,
    "bias": _bias_table,
    "training": _training_table,
    "worst": _worst_table,
    "speed": _speed_table,
    "runs": _runs_table,
}
"""Of each suite."""


def draw(results: dict[str, Any], folder: Path) -> None:
    """The plots of the suites that are there."""
    with matplotlib.rc_context(STYLE):
        if "decode" in results:
            _save(_decode_plot(results["decode"]["found"]), folder / "decode.png")
        if "bias" in results:
            _save(_bias_plot(results["bias"]["found"]), folder / "bias.png")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=100, bbox_inches="tight")


def _decode_plot(found: Sequence[dict[str, Any]]) -> Figure:
    """Error against the worst amplification, a panel for each kind of gradients."""
    kinds = list(dict.fromkeys(f["gradients"] for f in found))
    markers = dict(zip(dict.fromkeys(f["family"] for f in found), "osvP*", strict=False))
    figure = Figure(figsize=(5.2 * len(kinds), 4.4), layout="constrained")
    for axis, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds), sharey=True)), kinds, strict=True):
        for name, colour in COLOURS.items():
            points = sorted(
                (f["amplification"], f["errors"][name]["worst"], f["family"]) for f in found if f["gradients"] == kind
            )
            axis.plot([p[0] for p in points], [p[1] for p in points], "-", color=colour, lw=0.8, alpha=0.5)
            for amplification, error, family in points:
                axis.plot(amplification, error, markers[family], color=colour, ms=5)
            axis.plot([], [], "o-", color=colour, label=name)
        axis.axhline(1, color="0.5", lw=0.8, ls=":")
        axis.set(
            xscale="log", yscale="log", title=f"Gradients: {kind}", xlabel="amplification of the worst survivor set"
        )
        axis.grid(color="0.92", lw=0.6)
    figure.axes[0].set_ylabel("relative error of the decoded sum, worst set")
    for family, marker in markers.items():
        figure.axes[0].plot([], [], marker, color="0.4", ls="none", label=family)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _bias_plot(found: Sequence[dict[str, Any]]) -> Figure:
    """Error of the sum so far against iterations: a row of panels a code, a column for fixed and random survivors."""
    size = [f["size"] for f in found if f["family"] == "optimized"][-1]
    chosen = [("optimized", size), ("vandermonde", size)]
    columns = ("fixed, median", "random")
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(len(chosen), len(columns), sharex=True, sharey="row")
    for row, (family, size) in zip(axes, chosen, strict=True):
        for axis, survivors in zip(row, columns, strict=True):
            for message, feedback in _modes(found):
                (sums,) = (
                    f["of_sum"] for f in found
                    if (f["gradients"], f["family"], f["size"], f["survivors"], f["message"], f["feedback"])
                    == ("flights", family, size, survivors, message, feedback)
                )  # fmt: skip
                axis.plot(
                    range(1, len(sums) + 1), sums, "--" if feedback else "-", color=COLOURS[message], lw=1.3,
                    label=_label(message, feedback),
                )  # fmt: skip
            axis.set(yscale="log", title=f"{family} {size}, survivors {survivors}")
            axis.grid(color="0.92", lw=0.6)
        row[0].set_ylabel("error of the sum so far")
    for axis in axes[-1]:
        axis.set_xlabel("iterations")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure
