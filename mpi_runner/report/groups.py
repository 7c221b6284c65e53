"""Runs as contestants: what differs in its seed alone is one, and all meet the same delays in a section."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mpi_runner.config import UsageError
from mpi_runner.intervals import Interval, interval, resampled_means
from mpi_runner.reading import Run

STEPS = ("send", "wait", "receive", "decode", "update")
"""What an iteration of the master consists of: columns of ``iterations.csv``."""
BETWEEN = "between"
"""Evaluation, checkpoints and records: from the end of an iteration to the start of the next."""
QUANTILES = (0.5, 0.95, 0.99)
SETTING = ("delay", "workers", "model", "data")
"""Options that say what the contestants of a section are up against."""
OWN = ("scheme", "options")
SELDOM = ("seed", "run", "iterations", "checkpoint_every", "evaluate_every", "survivors_from", "hang_deadline")
"""Options that make no contestant: how long a run is, and where it is written."""

Array = npt.NDArray[Any]


class Group:
    """Runs that differ in their seed alone.

    Parameters
    ----------
    label, family : str
        What it is called, and the name of its scheme without its parameters.
    runs : sequence of Run
        By seed; those without an iteration count to no figure.
    skip : int
        Iterations at the beginning of each run that count to no time.
    """

    def __init__(self, label: str, family: str, runs: Sequence[Run], skip: int) -> None:
        self.label = label
        self.family = family
        self.runs = list(runs)
        self._skip = skip

    @cached_property
    def seconds(self) -> list[Array]:
        """Iteration times of each run that has any."""
        found = [run.iterations["seconds"].to_numpy()[self._skip :] for run in self.runs]
        return [seconds for seconds in found if len(seconds)]

    @cached_property
    def _resampled(self) -> Array:
        return resampled_means([list(seconds) for seconds in self.seconds])

    @cached_property
    def mean(self) -> Interval | None:
        """Seconds of an iteration: the mean of the runs' means."""
        if not self.seconds:
            return None
        return interval(self._mean, self._resampled)

    @property
    def _mean(self) -> float:
        return float(np.mean([seconds.mean() for seconds in self.seconds]))

    def ratio(self, baseline: Group) -> Interval | None:
        """The mean over another group's."""
        if not self.seconds or not baseline.seconds:
            return None
        if self is baseline:
            return Interval(1.0, 1.0, 1.0)
        return interval(self._mean / baseline._mean, self._resampled / baseline._resampled)

    @cached_property
    def quantiles(self) -> dict[float, float]:
        """p50, p95 and p99 of all iteration times, NaN without any."""
        if not self.seconds:
            return dict.fromkeys(QUANTILES, math.nan)
        return dict(zip(QUANTILES, np.quantile(np.concatenate(self.seconds), QUANTILES).tolist(), strict=True))

    @cached_property
    def steps(self) -> dict[str, float]:
        """The master's seconds an iteration, by `STEPS` and `BETWEEN`."""
        tables = [run.iterations.iloc[self._skip :] for run in self.runs if len(run.iterations) > self._skip]
        found = {step: _mean([table[step].mean() for table in tables]) for step in STEPS}
        return found | {BETWEEN: _mean([value for table in tables if (value := _between(table)) is not None])}

    def per_iteration(self, column: str) -> float:
        """The mean of a column of ``iterations.csv`` over the iterations of each run, then over runs."""
        return _mean([run.iterations[column].mean() for run in self.runs if len(run.iterations)])

    @property
    def final_loss(self) -> float:
        """The mean of the last losses of its complete runs, of all where there are none."""
        return _mean([float(run.iterations["loss"].iloc[-1]) for run in self._ended])

    @property
    def score(self) -> float:
        """The mean of what complete runs' models score on the test rows."""
        scores = [run.summary[f"test_{run.summary['measure']}"] for run in self.runs if run.summary]
        return _mean([score for score in scores if score is not None])

    def seconds_to(self, loss: float) -> float:
        """The mean over runs of the time until the loss is at most so much; NaN where some run does not get there."""
        found = []
        for run in self._ended:
            there = run.iterations["loss"].to_numpy() <= loss
            found.append(float(run.iterations["start"].to_numpy()[there.argmax()]) if there.any() else math.nan)
        return float(np.mean(found)) if found else math.nan

    @property
    def _ended(self) -> list[Run]:
        begun = [run for run in self.runs if len(run.iterations)]
        return [run for run in begun if run.complete] or begun

    @property
    def iterations(self) -> int:
        """Done, in all its runs."""
        return sum(len(run.iterations) for run in self.runs)

    @property
    def unused(self) -> float:
        """The share of the workers' messages that were not used: late, abandoned, or not waited for."""
        outcomes = [outcome for run in self.runs for outcome in run.arrivals["outcome"]]
        return 1 - outcomes.count("used") / len(outcomes) if outcomes else math.nan

    @property
    def reductions(self) -> list[int]:
        """Those of its iterations' messages."""
        return sorted({int(m) for run in self.runs for m in run.iterations["reduction"].unique()})

    @property
    def lost_workers(self) -> int:
        """In all its runs."""
        return sum(len(run.faults) for run in self.runs)


@dataclass(frozen=True)
class Section:
    """Groups that met the same.

    Attributes
    ----------
    title : str
        What they met.
    groups : list of Group
    baseline : Group
        What times are compared with.
    """

    title: str
    groups: list[Group]
    baseline: Group

    @cached_property
    def best(self) -> list[Group]:
        """Of each family the group with the least mean time; families in the order of their first group."""
        return [self.fastest_of(family) for family in dict.fromkeys(group.family for group in self.groups)]

    def fastest_of(self, family: str) -> Group:
        """The group of a family with the least mean time."""
        return _fastest([group for group in self.groups if group.family == family])

    @cached_property
    def common_loss(self) -> float:
        """The least loss that every run has come down to, NaN where losses are not recorded."""
        return max((float(run.iterations["loss"].min()) for run in self.runs if len(run.iterations)), default=math.nan)

    @property
    def measure(self) -> str:
        """What is measured on the test rows."""
        for run in self.runs:
            if run.summary:
                return str(run.summary["measure"])
        return "score"

    @property
    def runs(self) -> list[Run]:
        """Of all groups."""
        return [run for group in self.groups for run in group.runs]


def sections(
    runs: Sequence[Run], *, baseline: str | None = None, skip: int = 0, together: bool = False
) -> list[Section]:
    """Sort runs into sections and groups.

    Parameters
    ----------
    runs : sequence of Run
    baseline : str, optional
        A group's label, or a family, of which the fastest is taken; by default the family of the first group.
    skip : int
        Iterations at the beginning of each run that count to no time.
    together : bool
        Whether to put all runs into one section, whatever they were up against.

    Raises
    ------
    UsageError
        No group of some section has this label or family.
    """
    settings: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        key = () if together else tuple(str(run.config.get(name)) for name in SETTING)
        settings.setdefault(key, []).append(run)
    varied = [i for i in range(len(SETTING)) if len({key[i : i + 1] for key in settings}) > 1]
    found = []
    for key, members in settings.items():
        title = ", ".join(f"{SETTING[i]} {key[i]}" for i in varied)
        groups = _groups(members, skip)
        found.append(Section(title, groups, _baseline(groups, baseline)))
    return found


def _groups(runs: Sequence[Run], skip: int) -> list[Group]:
    considered = [{name: v for name, v in run.config.items() if name not in SELDOM} for run in runs]
    names = list(dict.fromkeys(name for options in considered for name in options if name not in OWN))
    told = [name for name in names if len({str(options.get(name)) for options in considered}) > 1]
    members: dict[str, list[Run]] = {}
    families: dict[str, str] = {}
    for run in runs:
        config = run.config
        label = str(config["scheme"])
        families_name = label.partition("(")[0]
        if config.get("options"):
            label += f"({', '.join(f'{name}={value}' for name, value in config['options'].items())})"
        label = ", ".join([label, *(f"{name.replace('_', '-')} {config.get(name)}" for name in told)])
        members.setdefault(label, []).append(run)
        families[label] = families_name
    return [
        Group(label, families[label], sorted(of_label, key=lambda run: int(run.config.get("seed", 0))), skip)
        for label, of_label in members.items()
    ]


def _baseline(groups: Sequence[Group], wanted: str | None) -> Group:
    if wanted is None:
        wanted = groups[0].family
    chosen = [group for group in groups if group.label == wanted] or [g for g in groups if g.family == wanted]
    if not chosen:
        raise UsageError(f"--baseline must be one of {'; '.join(group.label for group in groups)}, not {wanted!r}")
    return _fastest(chosen)


def _fastest(groups: Sequence[Group]) -> Group:
    return min(groups, key=lambda group: group._mean if group.seconds else math.inf)


def _between(table: Any) -> float | None:
    starts = table["start"].to_numpy()
    if len(starts) < 2:
        return None
    ends = starts + table["seconds"].to_numpy()
    return float(np.mean(starts[1:] - ends[:-1]))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def answer_seconds(run: Run) -> Array:
    """How long each worker took for the model that it was working on in each iteration.

    Returns
    -------
    ndarray
        (workers, iterations). A worker that was still busy with an older model has that one's time; an abandoned one's
        time is until the worker said so, the least that it can have taken. NaN for a worker that is lost, or has never
        answered again.
    """
    workers = int(run.config["workers"])
    starts = run.iterations["start"].to_numpy()
    found = np.full((workers, len(starts)), np.nan)
    sent, arrived, worker = (run.arrivals[name].to_numpy() for name in ("sent", "arrived", "worker"))
    # The iterations under way while the worker was at it: the one it was sent in, and those begun before it answered.
    first = np.maximum(np.searchsorted(starts, sent, side="right") - 1, 0)
    last = np.searchsorted(starts, arrived, side="left")
    for i in range(len(worker)):
        if 0 <= worker[i] < workers:
            found[worker[i], first[i] : last[i]] = arrived[i] - sent[i]
    return found
