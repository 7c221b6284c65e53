"""Plots of a measurement: rooflines, and heat maps over P × Q. Colours are told apart by colour-blind readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from bench.records import Record, Results

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}
# Okabe and Ito's colours.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
OURS_COLOUR, PEER_COLOUR = BLUE, ORANGE
LIMIT_LINES = {"16 KiB": ":", "256 KiB": "-.", "8 MiB": "--", "256 MiB": "-"}


def draw(results: Results, folder: Path) -> list[str]:
    """Draw what the results allow, and give back the names of the files."""
    drawn = []
    cells = [record for record in results.suite("lincomb") if record.speedup]
    with matplotlib.rc_context(STYLE):
        figures: dict[str, Figure] = {}
        for type_name, threads in dict.fromkeys((r.case["type"], r.case["threads"]) for r in cells):
            group = [r for r in cells if (r.case["type"], r.case["threads"]) == (type_name, threads)]
            label = f"{type_name}, {threads} thread" + ("s" if threads > 1 else "")
            tag = f"{type_name}-{threads}t"
            figures[f"roofline-{tag}.png"] = _roofline(group, results.limits, label)
            figures[f"speedup-{tag}.png"] = _heat_map(
                group, f"Speed-up over the best peer: {label}", _speedup, diverging=True
            )
            figures[f"limit-{tag}.png"] = _heat_map(
                group, f"Fraction of the machine's limit: {label}", lambda r: r.of_limit or math.nan, diverging=False
            )
        for suite in ("encode", "decode"):
            if records := [record for record in results.suite(suite) if record.speedup]:
                figures[f"{suite}.png"] = _end_to_end(suite, records)
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=100, bbox_inches="tight")
            drawn.append(name)
    return drawn


def _speedup(record: Record) -> float:
    return record.speedup or math.nan


# Roofline -------------------------------------------------------------------------------------------------------------


def _roofline(records: Sequence[Record], limits: Sequence[dict[str, Any]], label: str) -> Figure:
    """GFLOP/s against operations a byte, a panel a length, under the limits of the survey."""
    lengths = sorted({record.case["length"] for record in records})
    figure = Figure(figsize=(2.7 * len(lengths) + 0.6, 3.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(lengths), sharey=True))
    intensities = [record.flops / record.bytes for record in records if record.flops and record.bytes]
    span = np.geomspace(min(intensities) / 1.5, max(intensities) * 1.5, 100)
    roofs = _roofs(limits, records[0].case)
    for axis, length in zip(axes, lengths, strict=True):
        for footprint, values in roofs.items():
            axis.plot(
                span, values(span), LIMIT_LINES[footprint], color="0.45", lw=1, label=f"limit at {footprint} a thread"
            )
        here = [record for record in records if record.case["length"] == length]
        for name, colour, marker in (("best peer", PEER_COLOUR, "x"), ("fastgc", OURS_COLOUR, "o")):
            points = [
                (record.flops / record.bytes, record.flops / timing.seconds / 1e9)
                for record in here
                if (timing := record.our_timing if name == "fastgc" else record.timing(record.best_peer or ""))
                and record.flops
                and record.bytes
            ]
            axis.plot(*zip(*points, strict=True), marker, color=colour, ms=4, mew=1.2, alpha=0.8, label=name)
        axis.set(xscale="log", yscale="log", title=f"L = {_power(length)}", xlabel="FLOP / byte")
        axis.grid(color="0.92", lw=0.6)
    axes[0].set_ylabel("GFLOP/s")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(f"Roofline: {label}", fontsize=11)
    return figure


def _roofs(limits: Sequence[dict[str, Any]], case: dict[str, Any]) -> dict[str, Callable[[Any], Any]]:
    """By footprint, the attainable GFLOP/s as a function of FLOP a byte: the fastest mix, and the peak."""
    here = [limit for limit in limits if limit["threads"] == case["threads"]]
    single = "FMA f64" if case["type"] == "f64" else "FMA f32"
    peaks = [limit["rate"] for limit in here if limit["what"] == single]
    if not peaks:
        return {}

    def roof(bandwidth: float) -> Callable[[Any], Any]:
        return lambda intensity: np.minimum(intensity * bandwidth, peaks[0]) / 1e9

    found = {}
    for footprint in LIMIT_LINES:
        rates = [limit["rate"] for limit in here if limit["footprint"] == footprint]
        if rates:
            found[footprint] = roof(max(rates))
    return found


# Heat maps ------------------------------------------------------------------------------------------------------------


def _heat_map(records: Sequence[Record], title: str, value: Callable[[Record], float], *, diverging: bool) -> Figure:
    """A panel for each length, P down and Q across, every cell with its number."""
    lengths = sorted({record.case["length"] for record in records})
    ps, qs = (sorted({record.case[axis] for record in records}) for axis in ("p", "q"))
    width = 0.42 * len(qs) + 0.5
    figure = Figure(figsize=(width * len(lengths) + 1.2, 0.36 * len(ps) + 1.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(lengths), sharey=True))
    for axis, length in zip(axes, lengths, strict=True):
        numbers = np.full((len(ps), len(qs)), math.nan)
        for record in records:
            if record.case["length"] == length:
                numbers[ps.index(record.case["p"]), qs.index(record.case["q"])] = value(record)
        if diverging:
            image = axis.imshow(np.log2(numbers), cmap="PuOr", norm=TwoSlopeNorm(0, -2, 2), aspect="auto")
        else:
            image = axis.imshow(numbers, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axis.set_facecolor("0.9")
        for (row, column), number in np.ndenumerate(numbers):
            if not math.isnan(number):
                dark = abs(np.log2(number)) > 1.3 if diverging else number < 0.45
                text = f"{number:.1f}" if number >= 9.95 else f"{number:.2f}"
                axis.text(
                    column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black",
                    fontweight="bold" if diverging and number < 0.95 else "normal",
                )  # fmt: skip
        axis.set(title=f"L = {_power(length)}", xlabel="Q")
        axis.set_xticks(range(len(qs)), [str(q) for q in qs])
        axis.set_yticks(range(len(ps)), [str(p) for p in ps])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel("P")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01, extend="both" if diverging else "max")
    if diverging:
        bar.set_ticks([-2, -1, 0, 1, 2], labels=["¼×", "½×", "1×", "2×", "4×"])
    bar.outline.set_visible(False)
    figure.suptitle(title + ("; bold: below 0.95" if diverging else ""), fontsize=11)
    return figure


# Encode and decode ----------------------------------------------------------------------------------------------------


def _end_to_end(suite: str, records: Sequence[Record]) -> Figure:
    """Speed-up over each peer, a panel a scheme, against the length; outputs used again."""
    records = [record for record in records if record.case["outputs"] == "reused"]
    schemes = list(dict.fromkeys(record.case["scheme"] for record in records))
    types = list(dict.fromkeys(record.case["type"] for record in records))
    figure = Figure(figsize=(2.5 * len(schemes) + 0.5, 2.3 * len(types) + 0.8), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(types), len(schemes), sharey=True, sharex=True, squeeze=False))
    for row, type_name in enumerate(types):
        for column, scheme in enumerate(schemes):
            axis = axes[row, column]
            here = [r for r in records if r.case["scheme"] == scheme and r.case["type"] == type_name]
            names = dict.fromkeys(timing.name for record in here for timing in record.timings if not timing.ours)
            colours = {"NumPy": ORANGE, "PyTorch": VERMILION, "NumPy least squares": GREEN}
            for name in names:
                points = [
                    (record.case["length"], peer.seconds / ours.seconds)
                    for record in here
                    if (peer := record.timing(name)) and (ours := record.our_timing)
                ]
                colour = colours.get(name, SKY)
                axis.plot(*zip(*points, strict=True), "o-", color=colour, ms=4, lw=1.2, label=name)
            axis.axhline(1, color="0.4", lw=0.8, ls="--")
            axis.set(xscale="log", yscale="log", ylim=(0.1, 40))
            axis.grid(color="0.92", lw=0.6)
            if row == 0:
                axis.set_title(scheme)
            if row == len(types) - 1:
                axis.set_xlabel("gradient length")
        axes[row, 0].set_ylabel(f"{type_name}: speed-up")
    for axis in axes.flat:
        axis.yaxis.set_major_locator(matplotlib.ticker.FixedLocator([0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32]))
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}×")
        axis.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    handles, names_ = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names_, loc="outside lower center", ncols=max(1, len(names_)), frameon=False)
    figure.suptitle(f"{suite.capitalize()}: speed-up of fastgc over each peer, outputs used again", fontsize=11)
    return figure


def _power(number: int) -> str:
    exponent = round(math.log10(number))
    return f"$10^{exponent}$" if number == 10**exponent else f"{number:,}"
