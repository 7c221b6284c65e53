"""Tables of `bench.cluster_schemes`, from its results file alone: ``python -m bench.cluster_report results.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpi_runner.intervals import BLOCK, Interval, interval, resampled_means

UNCODED, REPETITION = "uncoded", "repetition d=3 s=2"
SETTING, TARGETS = 2, {UNCODED: 0.65, REPETITION: 0.80}
"""In this setting the best coded scheme is to take at most so much of the time of these, the whole interval below."""
JSON, MARKDOWN = "results.json", "report.md"


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes
    ----------
    setting, repeat : int
    scheme : str
    load_average : float
        Of the machine, over the minute before.
    seconds : list of float
        Of each iteration that counts.
    figures : dict
        Of the run as a whole.
    """

    setting: int
    repeat: int
    scheme: str
    load_average: float
    seconds: list[float]
    figures: dict[str, Any]


class Setting:
    """The runs of one setting, resampled: repeats are drawn, and blocks of iterations within them, the same for all
    schemes, which met the same stragglers."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.schemes = list(dict.fromkeys(run.scheme for run in sorted(runs, key=lambda run: _order(run.scheme))))
        repeats = sorted({run.repeat for run in runs})
        # An interrupted measurement may lack runs of its last repeat: that is left out for all.
        self.repeats = [r for r in repeats if sum(run.repeat == r for run in runs) == len(self.schemes)]
        blocks = min(len(run.seconds) for run in runs) // BLOCK
        self._times = {
            scheme: [self._seconds(scheme, repeat)[: blocks * BLOCK] for repeat in self.repeats]
            for scheme in self.schemes
        }
        self._resampled = {scheme: resampled_means(times, BLOCK) for scheme, times in self._times.items()}

    def _seconds(self, scheme: str, repeat: int) -> list[float]:
        (run,) = [run for run in self.runs if (run.scheme, run.repeat) == (scheme, repeat)]
        return run.seconds

    def seconds(self, scheme: str) -> Interval:
        """The mean time of an iteration."""
        return interval(float(np.mean(self._times[scheme])), self._resampled[scheme])

    def ratio(self, scheme: str, other: str) -> Interval:
        """The mean time of an iteration over another scheme's."""
        value = float(np.mean(self._times[scheme]) / np.mean(self._times[other]))
        return interval(value, self._resampled[scheme] / self._resampled[other])

    def figure(self, scheme: str, name: str) -> float:
        """The mean of a figure over the repeats."""
        return float(np.mean([run.figures[name] for run in self.runs if run.scheme == scheme]))


def _order(scheme: str) -> tuple[bool, bool, str]:
    return scheme != UNCODED, scheme != REPETITION, scheme


def write(header: dict[str, Any], runs: Sequence[Run], folder: Path) -> None:
    """Write the results and the report into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"header": header, "runs": [asdict(run) for run in runs]}
    (folder / JSON).write_text(json.dumps(_rounded(content)) + "\n", "utf-8")
    (folder / MARKDOWN).write_text(markdown(header, runs), "utf-8")


def _rounded(content: Any) -> Any:
    """Times to the microsecond: what a clock tells beyond that makes the file three times as long."""
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return round(content, 6) if isinstance(content, float) else content


def markdown(header: dict[str, Any], runs: Sequence[Run]) -> str:
    """The whole report."""
    given = f" with `{' '.join(header['options'])}`" if header["options"] else ""
    loads = [run.load_average for run in runs]
    parts = [
        "# Schemes on an emulated cluster",
        f"A master and 12 workers on {header['cpus']} CPUs ({header['cpu']}), commit {header['commit']},\n"
        f"{header['date']}. "
        f"l = 243,485 in float32{given}; {header['repeats']} repeats of {header['iterations']} iterations, the first "
        f"{header['warm_up']} of each run dropped. Delays are\n"
        f"injected into computing, the same in every scheme. Links let {header['burst']} pass at once after a pause.\n"
        f"Intervals are of 95 %, by a bootstrap over repeats and blocks of {BLOCK} iterations.\n"
        f"Load average before a run: {min(loads):.1f} to {max(loads):.1f}.\n"
        "*Alone* is what links and delays alone take where all workers begin every iteration together: the model's\n"
        "way down, the delay and the message's way up, until the first decodable set is there. Where the master's\n"
        "link is the narrow one, less is possible: workers that are still busy are sent no model.\n"
        "*Worker* and *way* are means over the messages used: the worker's computing, encoding and delay, and the rest "
        "between sending\nthe model and having the message.",
    ]
    for number in dict.fromkeys(run.setting for run in runs):
        facts = header["settings"][str(number)]
        setting = Setting([run for run in runs if run.setting == number])
        parts.append(
            f"## Setting {number}: master {facts['head']}, workers {facts['workers']}, delay `{facts['delay']}`\n\n"
            + _table(setting)
        )
        if number == SETTING:
            parts.append(_verdict(setting))
    return "\n\n".join(parts) + "\n"


def _table(setting: Setting) -> str:
    lines = [
        "| scheme | ms an iteration | of uncoded | of repetition | alone ms | worker ms | way ms | MB in | MB out |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scheme in setting.schemes:
        time = setting.seconds(scheme)
        cells = [scheme, f"{time.value * 1e3:.1f} [{time.low * 1e3:.1f}, {time.high * 1e3:.1f}]"]
        for other in (UNCODED, REPETITION):
            ratio = setting.ratio(scheme, other)
            cells.append("1" if scheme == other else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")
        cells += [
            f"{setting.figure(scheme, name) * 1e3:.1f}" for name in ("alone_seconds", "worker_seconds", "way_seconds")
        ]
        cells += [f"{setting.figure(scheme, name) / 1e6:.0f}" for name in ("bytes_received", "bytes_sent")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdict(setting: Setting) -> str:
    coded = [scheme for scheme in setting.schemes if scheme not in TARGETS]
    best = min(coded, key=lambda scheme: setting.seconds(scheme).value)
    sentences = []
    for other, most in TARGETS.items():
        ratio = setting.ratio(best, other)
        reached = (
            "reached"
            if ratio.high <= most
            else "reached, not by the whole interval"
            if ratio.value <= most
            else "missed"
        )
        sentences.append(
            f"{(1 - ratio.value) * 100:.0f} % below {other} ([{(1 - ratio.high) * 100:.0f}, "
            f"{(1 - ratio.low) * 100:.0f}]; target {(1 - most) * 100:.0f} %: {reached})"
        )
    return f"Best coded: {best}, {' and '.join(sentences)}."


def main(command: Sequence[str]) -> int:
    """Print the report of a results file."""
    if len(command) != 1:
        print("usage: python -m bench.cluster_report results.json", file=sys.stderr)
        return 2
    content = json.loads(Path(command[0]).read_text("utf-8"))
    print(markdown(content["header"], [Run(**run) for run in content["runs"]]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
