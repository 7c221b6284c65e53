"""Several schemes under the same seeds and delays: run by run, resumed where it stopped, and a report at the end."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mpi_runner import launch, processes
from mpi_runner.checkpoint import Checkpoint
from mpi_runner.config import CONFIG, TrainConfig, UsageError, arguments, check_directory
from mpi_runner.display import Display, Follower, console, figure, measure_name
from mpi_runner.experiments import Experiment
from mpi_runner.intervals import Interval
from mpi_runner.reading import Run, read_run
from mpi_runner.records import read_facts, read_outcome, read_processes
from mpi_runner.report import commands as report
from mpi_runner.report.groups import Group, Section, sections
from mpi_runner.resuming import Standing, begin, clear, ready

COLUMNS = (
    "scheme", "delay", "seed", "run", "measure", "score", "final_loss", "mean_seconds", "median_seconds", "p95_seconds",
    "total_seconds", "bytes_received", "bytes_sent",
)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A run of an experiment that is not there yet."""

    config: TrainConfig
    resumed: Checkpoint | None


def plan(
    experiment: Experiment, folder: Path, make: Callable[[str, dict[str, Any], str, int, str], TrainConfig]
) -> tuple[list[TrainConfig], list[Planned]]:
    """The runs of an experiment in their order, and those of them that are still to be done.

    Parameters
    ----------
    experiment : Experiment
    folder : Path
        Of the run directories.
    make : callable
        Makes a configuration from a scheme's name and options, a delay, a seed and a run directory.

    Raises
    ------
    UsageError
        Something cannot be run, or a directory holds a run that was told something else, or is going on.
    """
    configs = []
    for seed, delay, scheme in experiment.interleaved():
        name, options = experiment.schemes[scheme]
        words = [f"{scheme:02}", name, *(f"{key.replace('_', '')}{value}" for key, value in options.items())]
        words += [f"delay{delay}"] if len(experiment.delays) > 1 else []
        words += [f"seed{experiment.seeds[seed]}"] if len(experiment.seeds) > 1 else []
        run = folder / "-".join(words).replace("/", "_")
        configs.append(make(name, options, experiment.delays[delay], experiment.seeds[seed], str(run)))
    for config in configs:
        ready(config, resume=False)
    if len({config.run for config in configs}) < len(configs):
        raise UsageError("a scheme is there twice with the same options")
    return configs, [planned for config in configs if (planned := _planned(config)) is not None]


def _planned(config: TrainConfig) -> Planned | None:
    """What is to be done for a run; None where it is complete."""
    folder = Path(config.run)
    if not (folder / CONFIG).exists():
        check_directory(folder)
        return Planned(config, None)
    told = TrainConfig(**read_facts(folder)["config"])
    for name, value in config.as_dict().items():
        if name != "run" and getattr(told, name) != value:
            raise UsageError(
                f"--run: {config.run} holds a run whose {name} was {getattr(told, name)}, not {value}; choose another "
                "directory"
            )
    outcome, ranks = read_outcome(folder), read_processes(folder)
    if outcome is not None and outcome["status"] == 0:
        return None
    if ranks and processes.find(ranks[0]) is not None:
        raise UsageError(f"--run: the run in {config.run} is still going on")
    try:
        return Planned(config, ready(config, resume=True)[1])
    except UsageError:  # no checkpoint, or one of the very end: it is done again
        return Planned(config, None)


def compare(
    experiment: Experiment, configs: Sequence[TrainConfig], planned: Sequence[Planned], folder: Path, quiet: bool
) -> int:
    """Do what is left to do, then print the table, and write it as ``compare.csv`` and the report as ``report.html``.

    Returns
    -------
    int
        0, or the exit status of the first run that failed: the same command goes on from there.
    """
    screen = console(quiet)
    if len(planned) < len(configs):
        screen.print(f"{len(configs) - len(planned)} of {len(configs)} runs are there already")
    for run in planned:
        status = _do(run, quiet)
        if status != 0:
            return status
    runs = [read_run(path) for path in sorted(Path(config.run) for config in configs)]
    _write_table(runs, folder / "compare.csv")
    found = sections(runs, baseline=experiment.baseline, skip=experiment.skip)
    for section in found:
        screen.print(table(section))
    page = folder / report.PAGE
    report.write(found, page)
    screen.print(f"report: {os.fspath(page)}", soft_wrap=True, markup=False)
    return 0


def _do(planned: Planned, quiet: bool) -> int:
    config, resumed = planned.config, planned.resumed
    if resumed is None:
        clear(config, Standing.NEW)
    begin(config, resumed)
    scheme = ready(config, resume=False)[0]
    words = arguments(config) + (["--resume", config.run] if resumed else [])
    with Display(config, scheme.name, quiet) as display:
        follower = Follower(config.run, display)
        status = launch.run(config.workers + 1, Path(config.run), words, follower.look)
    return status if status != 0 or follower.figures() is not None else launch.EXIT_FAILED


def _write_table(runs: Sequence[Run], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for run in runs:
            figures = run.summary or {}
            own = {"run": os.fspath(run.path), "delay": run.config["delay"], "seed": run.config["seed"]}
            writer.writerow(figures | own | {"score": figures.get(f"test_{figures.get('measure')}")})


def table(section: Section) -> Table:
    """The contestants of a section, the fastest of a family in bold where it has several; 80 columns are enough."""
    made = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1), title=section.title or None, title_justify="left",
        caption=f"ratio: of mean times to {section.baseline.label}; 95 % intervals", caption_justify="left",
    )  # fmt: skip
    made.add_column("scheme", overflow="fold")
    for name in (measure_name(section.measure), "loss", "mean ms", "p95", "MB in", "ratio"):
        made.add_column(name, justify="right", no_wrap=True)
    for group in section.groups:
        several = sum(other.family == group.family for other in section.groups) > 1
        made.add_row(*_cells(section, group), style="bold" if several and group in section.best else None)
    return made


def _cells(section: Section, group: Group) -> list[str]:
    ratio = group.ratio(section.baseline)
    return [
        group.label.replace("[", r"\["),
        figure(group.score, 1, 4),
        figure(group.final_loss, 1, 5),
        _interval(group.mean, 1000, 1),
        figure(group.quantiles[0.95], 1000, 1),
        figure(group.per_iteration("bytes_received"), 1e-6, 2),
        "1" if group is section.baseline else _interval(ratio, 1, 2),
    ]


def _interval(interval: Interval | None, unit: float, digits: int) -> str:
    if interval is None:
        return "–"
    value, low, high = (figure(part, unit, digits) for part in interval)
    return f"{value}\n\\[{low}, {high}]"
