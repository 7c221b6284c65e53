"""The plots of a report, by Matplotlib: for the page, whose style sheet colours them, and as files for papers.

On the page a colour is a variable of the style sheet, so that one drawing serves light and dark. Drawings are small,
and wide screens have several beside each other: text stays readable where the page is as wide as a phone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mpi_runner.reading import Run
from mpi_runner.report.groups import BETWEEN, QUANTILES, STEPS, Group, Section, answer_seconds

WIDTH, HEIGHT = 4.4, 2.9  # inches
MOST_POINTS = 600  # of a curve: more than a plot has pixels
MOST_COLUMNS = 400  # of a heat map
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

Array = npt.NDArray[Any]
Draw = Callable[[Figure, "Theme"], None]


@dataclass(frozen=True)
class Theme:
    """Colours of a drawing.

    Attributes
    ----------
    series : tuple of str
        Of groups; Okabe and Ito's, which colour-blind readers tell apart.
    ink, muted, grid : str
    legend : bool
        Whether the drawing says which group is which; on the page the page does.
    """

    series: tuple[str, ...]
    ink: str
    muted: str
    grid: str
    legend: bool

    def line(self, number: int) -> dict[str, Any]:
        """Colour and dashes of a group; from the eighth on dashes tell them apart."""
        dashes = DASHES[number // len(self.series) % len(DASHES)]
        return {"color": self.series[number % len(self.series)], "linestyle": dashes, "linewidth": 1.6}


PAPER = Theme(
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"), "#000000", "#666666", "#dddddd", True
)
# Stand-ins that no drawing has otherwise; `_themed` puts the variables of the style sheet in their place.
PAGE = Theme(tuple(f"#fe01{i:02x}" for i in range(7)), "#fd0101", "#fd0102", "#fd0103", False)
VARIABLES = {colour: f"var(--c{i})" for i, colour in enumerate(PAGE.series)} | {
    PAGE.ink: "var(--ink)",
    PAGE.muted: "var(--muted)",
    PAGE.grid: "var(--grid)",
}


@dataclass(frozen=True)
class Chart:
    """A plot that can be drawn in any theme.

    Attributes
    ----------
    name : str
        Of its file.
    title, note : str
        What it shows, and how to read it.
    draw : callable
    height : float
        In inches.
    """

    name: str
    title: str
    note: str
    draw: Draw
    height: float = HEIGHT

    def svg(self, identity: str) -> str:
        """For the page, where no id may be there twice; `identity` is this drawing's own."""
        out = io.StringIO()
        with matplotlib.rc_context(_style(PAGE, "none")):
            self._figure(PAGE).savefig(out, format="svg", transparent=True, metadata={"Date": None})
        return _themed(out.getvalue(), identity, self.title)

    def save(self, folder: Path, prefix: str) -> list[Path]:
        """As SVG and PNG files, for papers."""
        files = []
        with matplotlib.rc_context(_style(PAPER, "path")):
            figure = self._figure(PAPER)
            for ending in ("svg", "png"):
                files.append(folder / f"{prefix}{self.name}.{ending}")
                figure.savefig(
                    files[-1], dpi=300, bbox_inches="tight", metadata={"Date": None} if ending == "svg" else {}
                )
        return files

    def _figure(self, theme: Theme) -> Figure:
        figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
        self.draw(figure, theme)
        return figure


def of_section(section: Section) -> list[Chart]:
    """The plots in which a section's groups are laid over each other."""
    begun = [group for group in section.groups if group.seconds]
    if not begun:
        return []
    number = {id(group): i for i, group in enumerate(section.groups)}
    bars = 0.55 + 0.42 * len(begun)
    found = [
        Chart(
            "ratios", "Mean iteration time over the baseline's",
            f"Dots are ratios to {section.baseline.label}, bars 95 % intervals; left of 1 is faster.",
            lambda figure, theme: _ratios(figure, theme, section, begun, number), bars,
        ),
        Chart(
            "distribution", "Distribution of iteration times",
            "The share of iterations that took no longer; marks are p50, p95 and p99.",
            lambda figure, theme: _distribution(figure, theme, begun, number),
        ),
    ]  # fmt: skip
    if any(run.iterations["loss"].notna().any() for run in section.runs):
        found += [
            _curve("loss-time", "Training loss over time", "loss", "start", begun, number),
            _curve("loss-iterations", "Training loss over iterations", "loss", "iteration", begun, number),
        ]
    if any(len(points) for run in section.runs for points in [_scores(run)[0]]):
        measure = "AUC" if section.measure == "auc" else section.measure.replace("_", " ")
        found += [
            _curve("score-time", f"Test {measure} over time", measure, "start", begun, number),
            _curve("score-iterations", f"Test {measure} over iterations", measure, "iteration", begun, number),
        ]
    if adapted := [group for group in begun if len(group.reductions) > 1]:
        found.append(
            Chart(
                "reductions", "Reduction", "Of the messages of each iteration, where it is chosen as a run goes on.",
                lambda figure, theme: _reductions(figure, theme, adapted, number),
            )
        )  # fmt: skip
    found += [
        Chart(
            "master", "Where the master's time goes",
            "Means over iterations. Between: evaluation, checkpoints and records.",
            lambda figure, theme: _master(figure, theme, begun), bars + 0.35,
        ),
        Chart(
            "bytes", "Bytes an iteration",
            "What the master receives from all workers, and what it sends to them.",
            lambda figure, theme: _bytes(figure, theme, begun, number), bars + 0.35,
        ),
    ]  # fmt: skip
    return found


def heat_map(run: Run, limits: tuple[float, float]) -> Chart | None:
    """Who straggled when, in colours between two answer times; None for a run without iterations."""
    seconds = answer_seconds(run)
    if not np.isfinite(seconds).any():
        return None
    height = min(0.75 + 0.14 * len(seconds), 6.0)
    return Chart(
        "stragglers", "Who straggled when",
        "How long each worker took to answer the model it was working on. Blank: no answer, lost.",
        lambda figure, theme: _heat(figure, theme, seconds, limits), height,
    )  # fmt: skip


def heat_limits(runs: Sequence[Run]) -> tuple[float, float]:
    """Answer times between which runs are coloured alike: all but a hundredth at either end."""
    last = [run.arrivals[run.arrivals["more"] == 0] for run in runs]
    answers = [(table["arrived"] - table["sent"]).to_numpy() for table in last]
    times = np.concatenate([*answers, np.zeros(0)])
    times = times[times > 0]
    if not len(times):
        return 1e-3, 1.0
    low, high = np.quantile(times, [0.01, 0.99])
    return float(low), float(max(high, 1.2 * low))


# The drawings ---------------------------------------------------------------------------------------------------------


def _curve(name: str, title: str, what: str, against: str, groups: Sequence[Group], number: dict[int, int]) -> Chart:
    def draw(figure: Figure, theme: Theme) -> None:
        axis = figure.subplots()
        values: list[Array] = []
        for group in groups:
            for repeat, run in enumerate(group.runs):
                x, y = _losses(run, against) if what == "loss" else _scores(run, against)
                values.append(y)
                style = theme.line(number[id(group)])
                label = group.label if repeat == 0 else None
                marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(x) <= 12 else {}
                (line,) = axis.plot(*_thinned(x, y), **style, **marker, label=label)
                line.set_gid(f"series-{number[id(group)]}")
        axis.set(xlabel="seconds" if against == "start" else "iterations", ylabel=what)
        _span(axis, np.concatenate(values))
        _legend(axis, theme)

    note = "Time since the first model was sent." if against == "start" else "Steps taken before."
    return Chart(name, title, note, draw)


def _reductions(figure: Figure, theme: Theme, groups: Sequence[Group], number: dict[int, int]) -> None:
    axis = figure.subplots()
    for group in groups:
        for repeat, run in enumerate(group.runs):
            x, y = run.iterations["iteration"].to_numpy(), run.iterations["reduction"].to_numpy()
            last = np.append(y[1:] != y[:-1], True)  # of each stay
            first = np.append(True, last[:-1])
            ends = first | last  # the others add nothing to a staircase
            style = theme.line(number[id(group)])
            (line,) = axis.step(x[ends], y[ends], where="post", **style, label=group.label if repeat == 0 else None)
            line.set_gid(f"series-{number[id(group)]}")
    axis.set(xlabel="iterations", ylabel="reduction m")
    axis.set_yticks(sorted({m for group in groups for m in group.reductions}))
    _legend(axis, theme)


def _losses(run: Run, against: str) -> tuple[Array, Array]:
    """The loss at the parameters that an iteration starts with."""
    x = run.iterations["start"] if against == "start" else run.iterations["iteration"] - 1
    return x.to_numpy(dtype=np.float64), run.iterations["loss"].to_numpy()


def _scores(run: Run, against: str = "iteration") -> tuple[Array, Array]:
    """The scores after steps, and at the end."""
    table = run.iterations
    ends = (table["start"] + table["seconds"]).to_numpy() if against == "start" else table["iteration"].to_numpy()
    there = table["score"].notna().to_numpy()
    x, y = ends[there].tolist(), table["score"].to_numpy()[there].tolist()
    final: float | None = run.summary[f"test_{run.summary['measure']}"] if run.summary else None
    if final is not None and len(ends) and not there[-1]:
        x, y = [*x, float(ends[-1])], [*y, float(final)]
    return np.array(x, np.float64), np.array(y, np.float64)


def _span(axis: Axes, values: Array) -> None:
    """Leave out what is far off, as losses before the first steps may be."""
    values = values[np.isfinite(values)]
    if len(values) > 50:
        low, high = float(values.min()), float(np.quantile(values, 0.995))
        if high > low:
            axis.set_ylim(low - 0.04 * (high - low), high + 0.06 * (high - low))


def _distribution(figure: Figure, theme: Theme, groups: Sequence[Group], number: dict[int, int]) -> None:
    axis = figure.subplots()
    for group in groups:
        times = np.sort(np.concatenate(group.seconds)) * 1000
        style = theme.line(number[id(group)])
        shares = np.arange(1, len(times) + 1) / len(times)
        (line,) = axis.plot(*_thinned(times, shares), **style, label=group.label)
        marks = [group.quantiles[q] * 1000 for q in QUANTILES]
        (dots,) = axis.plot(marks, QUANTILES, "o", ms=3.5, color=style["color"])
        for artist in (line, dots):
            artist.set_gid(f"series-{number[id(group)]}")
    everything = np.concatenate([seconds for group in groups for seconds in group.seconds]) * 1000
    if everything.min() > 0 and everything.max() > 20 * np.median(everything):
        axis.set_xscale("log")
    for q in QUANTILES:
        axis.axhline(q, color=theme.grid, lw=0.6, zorder=0)
    axis.set(xlabel="ms an iteration", ylim=(0, 1.02), yticks=(0, 0.25, *QUANTILES[:2], 1))
    axis.set_yticklabels(["0", "25 %", "p50", "p95", ""])
    _legend(axis, theme)


def _ratios(figure: Figure, theme: Theme, section: Section, groups: Sequence[Group], number: dict[int, int]) -> None:
    axis = figure.subplots()
    for row, group in enumerate(groups):
        ratio = group.ratio(section.baseline)
        if ratio is None:
            continue
        colour = theme.line(number[id(group)])["color"]
        (bar,) = axis.plot([ratio.low, ratio.high], [row, row], "-", color=colour, lw=2.2, solid_capstyle="round")
        (dot,) = axis.plot([ratio.value], [row], "o", color=colour, ms=5)
        for artist in (bar, dot):
            artist.set_gid(f"series-{number[id(group)]}")
        _name(axis, row, group.label, f"{ratio.value:.2f}", theme)
    axis.axvline(1, color=theme.muted, lw=0.8, ls=(0, (3, 2)), zorder=0)
    _rows(axis, len(groups))


def _master(figure: Figure, theme: Theme, groups: Sequence[Group]) -> None:
    axis = figure.subplots()
    parts = {"wait": theme.grid} | dict(zip([s for s in (*STEPS, BETWEEN) if s != "wait"], theme.series, strict=False))
    for row, group in enumerate(groups):
        left = 0.0
        for part, colour in parts.items():
            value = group.steps[part] * 1000
            if math.isfinite(value):
                axis.barh(row, value, 0.34, left=left, color=colour, label=part if row == 0 else None)
                left += value
        _name(axis, row, group.label, f"{left:.1f} ms", theme)
    _rows(axis, len(groups))
    axis.set(xlabel="ms an iteration", xlim=(0, None))
    _key(figure, axis)


def _bytes(figure: Figure, theme: Theme, groups: Sequence[Group], number: dict[int, int]) -> None:
    axis = figure.subplots()
    for row, group in enumerate(groups):
        received, sent = (group.per_iteration(f"bytes_{way}") / 1e6 for way in ("received", "sent"))
        for place, value, way in ((-0.1, received, "received"), (0.12, sent, "sent")):
            colour = theme.series[0] if way == "received" else theme.series[4]
            axis.barh(row + place, value, 0.2, color=colour, label=way if row == 0 else None)
        _name(axis, row, group.label, f"{received:.3g} + {sent:.3g} MB", theme)
    _rows(axis, len(groups))
    axis.set(xlabel="MB an iteration", xlim=(0, None))
    _key(figure, axis)


def _heat(figure: Figure, theme: Theme, seconds: Array, limits: tuple[float, float]) -> None:
    axis = figure.subplots()
    workers, iterations = seconds.shape
    width = math.ceil(iterations / MOST_COLUMNS)
    padded = np.full((workers, math.ceil(iterations / width) * width), np.nan)
    padded[:, :iterations] = seconds
    cut = padded.reshape(workers, -1, width)
    heard = np.isfinite(cut).sum(axis=2)
    means = np.divide(np.nansum(cut, axis=2), heard, out=np.full(heard.shape, np.nan), where=heard > 0)
    shown = axis.imshow(
        np.clip(means, *limits) * 1000, aspect="auto", cmap="viridis", interpolation="none",
        norm=LogNorm(limits[0] * 1000, limits[1] * 1000), extent=(0.5, padded.shape[1] + 0.5, workers - 0.5, -0.5),
    )  # fmt: skip
    axis.set(xlabel="iteration", ylabel="worker", xlim=(0.5, iterations + 0.5))
    for side in axis.spines.values():
        side.set_visible(False)
    axis.grid(False)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(workers, 12)))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    bar = figure.colorbar(shown, ax=axis, pad=0.015, aspect=14, fraction=0.06)
    bar.outline.set_visible(False)
    ticks = np.geomspace(*limits, 3 if workers > 4 else 2) * 1000
    bar.set_ticks(ticks.tolist())
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g} ms"))


def _name(axis: Axes, row: int, label: str, value: str, theme: Theme) -> None:
    """A row's label above its bar, where it may be as long as the drawing is wide."""
    most = 46
    short = label if len(label) <= most else label[: most - 1] + "…"
    over = axis.get_yaxis_transform()
    axis.text(0, row - 0.24, short, transform=over, va="bottom", ha="left", fontsize=8)
    axis.text(1, row - 0.24, value, transform=over, va="bottom", ha="right", fontsize=8, color=theme.muted)


def _rows(axis: Axes, rows: int) -> None:
    axis.set(ylim=(rows - 0.6, -0.85), yticks=[])
    axis.spines["left"].set_visible(False)
    axis.grid(axis="y", visible=False)


def _key(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=8, handlelength=1,
        columnspacing=1.1, handletextpad=0.5,
    )  # fmt: skip


def _legend(axis: Axes, theme: Theme) -> None:
    if theme.legend:
        axis.legend(frameon=False, fontsize=7)


def _thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """At most `MOST_POINTS` of a curve, the first and the last among them."""
    if len(x) <= MOST_POINTS:
        return x, y
    chosen = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return x[chosen], y[chosen]


# From Matplotlib's SVG to the page's ----------------------------------------------------------------------------------


def _style(theme: Theme, fonts: str) -> Any:
    return {
        "text.parse_math": False,  # labels are anyone's text: a dollar sign is no formula
        "svg.fonttype": fonts,
        "svg.hashsalt": "mpi_runner",
        "font.family": "sans-serif",
        "font.size": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.muted,
        "axes.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "axes.grid": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.5,
        "axes.axisbelow": True,
        "path.simplify_threshold": 0.3,
    }


def _themed(svg: str, identity: str, title: str) -> str:
    """The SVG element alone, with variables for colours, ids of its own, and classes for the groups' parts."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub("|".join(VARIABLES), lambda colour: VARIABLES[colour[0]], svg)
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', svg))

    def renamed(found: re.Match[str]) -> str:
        name = found[1]
        if name.startswith("series-"):
            return f' class="{name}"'
        return f' id="{identity}-{name}"' if name in used else ""

    svg = re.sub(r' id="([^"]*)"', renamed, svg)
    return re.sub(r'(url\(#|href="#)([\w-]+)', rf"\g<1>{identity}-\2", svg)
