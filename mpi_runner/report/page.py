"""The report as one HTML file that needs nothing else: style, script and plots are in it."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpi_runner.display import CAPTIONS, measure_name
from mpi_runner.intervals import LEVEL, RESAMPLES, Interval
from mpi_runner.reading import Run
from mpi_runner.report import charts
from mpi_runner.report.groups import QUANTILES, Group, Section

HERE = Path(__file__).parent
MOST_LOG_LINES = 40


class Cell(NamedTuple):
    """A figure of a table: what it is called, its text, and the interval behind it."""

    name: str
    text: str
    interval: str = ""


def render(sections: Sequence[Section]) -> str:
    """Make the page.

    Everything that runs say of themselves is text to the page: the template escapes it, and the page allows no script
    but its own.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = ((HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    runs = [run for section in sections for run in section.runs]
    numbers = iter(range(10**6))
    return environment.get_template("page.html").render(
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        made=time.strftime("%Y-%m-%d %H:%M"),
        runs=len(runs),
        subject=_subject(runs),
        captions=list(dict.fromkeys(CAPTIONS[d] for run in runs if (d := run.config.get("data")) in CAPTIONS)),
        sections=[_section(section, numbers) for section in sections],
        level=f"{LEVEL:.0%}",
        resamples=RESAMPLES,
    )


def save_figures(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write the plots as SVG and PNG files; those of a second section have its number before their names."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i, section in enumerate(sections):
        prefix = f"{i + 1}-" if len(sections) > 1 else ""
        for chart in charts.of_section(section):
            files += chart.save(folder, prefix)
        limits = charts.heat_limits(section.runs)
        for number, run in enumerate(section.runs):
            if (heat := charts.heat_map(run, limits)) is not None:
                files += heat.save(folder, f"{prefix}run{number + 1}-")
    return files


def _subject(runs: Sequence[Run]) -> str:
    """What was trained where, as far as it is the same in all runs."""
    said = []
    for name in ("model", "data", "workers", "delay", "seed"):
        values = {str(run.config.get(name)) for run in runs}
        if len(values) == 1:
            said.append(f"{values.pop()} workers" if name == "workers" else f"{name} {values.pop()}")
    hosts = {run.facts["host"]["name"] for run in runs if "host" in run.facts}
    if len(hosts) == 1:
        said.append(f"master on {hosts.pop()}")
    return " · ".join(said)


def _section(section: Section, numbers: Iterator[int]) -> dict[str, Any]:
    best = section.best
    several = len(best) < len(section.groups)
    limits = charts.heat_limits(section.runs)
    return {
        "title": section.title,
        "headline": _headline(section),
        "groups": [
            {
                "label": group.label,
                "number": i,
                "colour": i % len(charts.PAGE.series),
                "dash": i // len(charts.PAGE.series) % len(charts.DASHES),
                "best": group in best and sum(other.family == group.family for other in section.groups) > 1,
                "baseline": group is section.baseline,
                "cells": _cells(section, group),
            }
            for i, group in enumerate(section.groups)
        ],
        "families": several,
        "charts": [
            {"title": chart.title, "note": chart.note, "svg": chart.svg(f"f{next(numbers)}")}
            for chart in charts.of_section(section)
        ],
        "runs": [_run(run, i, limits, numbers) for i, group in enumerate(section.groups) for run in group.runs],
    }


def _headline(section: Section) -> str:
    """The section in one sentence."""
    contestants = [group for group in section.best if group.mean is not None]
    if not contestants:
        return "No iteration has been done."
    if len(contestants) == 1:
        group = contestants[0]
        assert group.mean is not None
        return f"{group.label}: {group.mean.value * 1000:.1f} ms an iteration."
    fastest = min(contestants, key=lambda group: group.mean.value if group.mean else math.inf)
    ratio = fastest.ratio(section.baseline)
    if fastest is section.baseline or ratio is None:
        return f"The baseline, {section.baseline.label}, is the fastest."
    less, most, least = (100 * (1 - value) for value in ratio)
    sure = "" if ratio.high < 1 else ": no difference that these runs could show"
    return (
        f"{fastest.label} is the fastest: {less:.0f} % less time an iteration than {section.baseline.label} "
        f"[{least:.0f}, {most:.0f}]{sure}."
    )


def _cells(section: Section, group: Group) -> list[Cell]:
    measure = measure_name(section.measure)
    ratio = group.ratio(section.baseline)
    return [
        Cell("ms an iteration", *_interval(group.mean, 1000, 1)),
        Cell("ratio", *(("1", "") if group is section.baseline else _interval(ratio, 1, 3))),
        *(Cell(f"p{q * 100:.0f} ms", _number(group.quantiles[q] * 1000, 1)) for q in QUANTILES),
        Cell(f"test {measure}", _number(group.score, 4)),
        Cell("loss", _number(group.final_loss, 5)),
        Cell(f"s to loss {_number(section.common_loss, 4)}", _number(group.seconds_to(section.common_loss), 2)),
        Cell("MB in", _short(group.per_iteration("bytes_received") / 1e6)),
        Cell("MB out", _short(group.per_iteration("bytes_sent") / 1e6)),
        Cell("not used", _number(group.unused * 100, 0, " %")),
        Cell("lost", str(group.lost_workers)),
        Cell("runs", str(len(group.runs))),
        Cell("iterations", f"{group.iterations:,}"),
    ]


def _run(run: Run, number: int, limits: tuple[float, float], numbers: Iterator[int]) -> dict[str, Any]:
    heat = charts.heat_map(run, limits)
    config = {name: value for name, value in run.config.items() if value not in (None, {}, "")}
    told = config | {f"--{name}": value for name, value in config.pop("options", {}).items()}
    return {
        "name": run.path.name,
        "number": number,
        "colour": number % len(charts.PAGE.series),
        "dash": number // len(charts.PAGE.series) % len(charts.DASHES),
        "status": run.status,
        "complete": run.complete,
        "heat": heat and {"title": heat.title, "note": heat.note, "svg": heat.svg(f"f{next(numbers)}")},
        "told": told,
        "versions": run.facts.get("versions", {}),
        "hosts": _hosts(run),
        "workers": _workers(run),
        "faults": [
            {"when": f"{fault.seconds:.1f} s, iteration {fault.iteration}", "who": f"worker {fault.worker}",
             "where": f"{fault.host}, pid {fault.pid}", "how": f"{fault.kind}: {fault.reason}"}
            for fault in run.faults.itertuples()
        ],
        "switches": [
            {"when": f"iteration {row['iteration']}", "what": f"reduction {row['before']} → {row['after']}",
             "why": row["reason"],
             "predicted": f"{_number(row['predicted_before'] * 1000, 1)} → "
                          f"{_number(row['predicted_after'] * 1000, 1, ' ms')}"}
            for row in run.switches.to_dict("records")
        ],
        "log": run.log[-MOST_LOG_LINES:],
        "left_out": max(0, len(run.log) - MOST_LOG_LINES),
    }  # fmt: skip


def _hosts(run: Run) -> list[str]:
    counted: dict[str, int] = {}
    for host in run.processes["host"]:
        counted[str(host)] = counted.get(str(host), 0) + 1
    return [f"{host}: {ranks} rank{'s' if ranks > 1 else ''}" for host, ranks in counted.items()]


def _workers(run: Run) -> list[dict[str, str]]:
    """What became of each worker's messages."""
    rows = []
    lost = set(run.faults["worker"].tolist())
    for worker, table in run.arrivals.groupby("worker"):
        outcomes = table["outcome"].value_counts()
        answer = (table["arrived"] - table["sent"])[table["more"] == 0].median() * 1000
        rows.append(
            {
                "worker": str(worker),
                **{name: f"{outcomes.get(name, 0):,}" for name in ("used", "late", "abandoned")},
                "median answer": _number(float(answer), 1, " ms"),
                "MB sent": _number(float(table["bytes"].sum()) / 1e6, 1),
                "": "lost" if worker in lost else "",
            }
        )
    return rows


def _interval(interval: Interval | None, unit: float, digits: int) -> tuple[str, str]:
    if interval is None:
        return "–", ""
    value, low, high = (_number(number * unit, digits) for number in interval)
    return value, f"[{low}, {high}]"


def _short(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.3g}"


def _number(value: float, digits: int, unit: str = "") -> str:
    return "–" if not math.isfinite(value) else f"{value:,.{digits}f}{unit}"
