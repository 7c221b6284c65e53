"""A reduction that is chosen as a run goes on against every fixed one: ``python -m bench.adaptive_reduction``.

Eight workers of load 4 on this machine, with injected delays of computing, and of sending in proportion to a message's
length; settings differ in both, and in the last they change half-way. In each, every fixed reduction and ``auto`` train
the same small model under the same seeds, all once in an order drawn anew, then all again: 8 minutes. Writes JSON, and
a report in Markdown that ``--report results.json`` makes again from it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import environment
from mpi_runner.intervals import BLOCK, Interval, interval, resampled_means

WORKERS, LOAD = 8, 4
AUTO = "auto"
CONTESTANTS = (*map(str, range(1, LOAD + 1)), AUTO)
WARM_UP = 1  # iterations dropped: connections are made in the first
WITHIN = 1.05
"""`auto` is to take at most so much of the best fixed reduction's time where conditions stay."""
OUT = Path("bench/results/adaptive")


class Setting(NamedTuple):
    """Delays, by iterations in all."""

    name: str
    delay: str
    """With CHANGE for the iteration that begins the second half."""

    @property
    def changes(self) -> bool:
        """Whether conditions are others in the second half."""
        return "CHANGE" in self.delay


SETTINGS = (
    Setting("thin links", "exponential:0.001:0.002+send:exponential:0:0.1"),
    Setting("slow computing", "exponential:0.01:0.002+send:exponential:0:0.02"),
    Setting("balanced", "exponential:0.005:0.002+send:exponential:0:0.06"),
    Setting(
        "links collapse, computing evens out",
        "exponential:0.01:0.002+send:exponential:0:0.015@CHANGE:exponential:0.001:0.004+send:exponential:0:0.2",
    ),
    Setting(
        "links collapse",
        "exponential:0.01:0.002+send:exponential:0:0.01@CHANGE:exponential:0.01:0.002+send:exponential:0:0.3",
    ),
)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes
    ----------
    setting : str
    repeat : int
    reduction : str
    load_average : float
        Of the machine, over the minute before.
    seconds : list of float
        Of each iteration that counts.
    reductions : list of int
        Of each iteration that counts.
    switches : list of str
    """

    setting: str
    repeat: int
    reduction: str
    load_average: float
    seconds: list[float]
    reductions: list[int]
    switches: list[str]


def measure(settings: Sequence[Setting], repeats: int, iterations: int, options: Sequence[str]) -> Iterator[Run]:
    """Do the runs: in each repeat all settings, in each of them all contestants."""
    order = np.random.Generator(np.random.Philox(key=0))
    with tempfile.TemporaryDirectory(prefix="adaptive-") as folder:
        for repeat in range(repeats):
            for setting in settings:
                for reduction in order.permutation(CONTESTANTS).tolist():
                    run = Path(folder) / f"{setting.name}-{repeat}-{reduction}"
                    change = WARM_UP + iterations // 2 + 1
                    words = ["--scheme", "grouped", "--load", str(LOAD), "--reduction", reduction]
                    words += ["--workers", str(WORKERS), "--iterations", str(WARM_UP + iterations)]
                    words += ["--model", "softmax", "--data", "digits", "--seed", str(repeat), "--run", str(run)]
                    words += ["--delay", setting.delay.replace("CHANGE", str(change)), "--quiet", *options]
                    load = os.getloadavg()[0]
                    command = [sys.executable, "-m", "mpi_runner", "train", *words]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode != 0:
                        raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
                    yield _read(run, setting.name, repeat, reduction, load)


def _read(run: Path, setting: str, repeat: int, reduction: str, load: float) -> Run:
    rows = _rows(run / "iterations.csv")[WARM_UP:]
    switches = [
        f"{row['iteration']}: {row['before']} to {row['after']}, {row['reason']}"
        for row in (_rows(run / "switches.csv") if (run / "switches.csv").exists() else [])
    ]
    seconds = [round(float(row["seconds"]), 6) for row in rows]
    return Run(setting, repeat, reduction, load, seconds, [int(row["reduction"]) for row in rows], switches)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Comparison:
    """The runs of a setting, resampled: repeats are drawn, and blocks of iterations within them, the same for all
    contestants, which met the same delays."""

    def __init__(self, runs: Sequence[Run]) -> None:
        repeats = sorted({run.repeat for run in runs})
        # An interrupted measurement may lack runs of its last repeat: that is left out for all.
        whole = [repeat for repeat in repeats if sum(run.repeat == repeat for run in runs) == len(CONTESTANTS)]
        self.runs = [run for run in runs if run.repeat in whole]
        blocks = min(len(run.seconds) for run in runs) // BLOCK
        times = {
            name: [run.seconds[: blocks * BLOCK] for run in self.runs if run.reduction == name] for name in CONTESTANTS
        }
        self._means = {name: float(np.mean(seconds)) for name, seconds in times.items()}
        self._resampled = {name: resampled_means(seconds, BLOCK) for name, seconds in times.items()}

    @property
    def best(self) -> str:
        """The fixed reduction with the least mean time."""
        return min(CONTESTANTS[:-1], key=lambda name: self._means[name])

    def seconds(self, name: str) -> Interval:
        """The mean time of an iteration."""
        return interval(self._means[name], self._resampled[name])

    def ratio(self, name: str, other: str) -> Interval:
        """The mean time of an iteration over another's."""
        return interval(self._means[name] / self._means[other], self._resampled[name] / self._resampled[other])


def markdown(header: dict[str, Any], runs: Sequence[Run]) -> str:
    """The whole report."""
    loads = [run.load_average for run in runs]
    given = f" with `{' '.join(header['options'])}`" if header["options"] else ""
    parts = [
        "# A reduction chosen as the run goes on",
        f"A master and {WORKERS} workers of load {LOAD} on {header['cpus']} CPUs ({header['cpu']}), commit "
        f"{header['commit']},\n{header['date']}. Softmax regression on digits{given}; {header['repeats']} repeats of "
        f"{header['iterations']} iterations, the first {WARM_UP} of each\nrun dropped. Delays are injected, the same "
        "for all contestants; a sending delay is that of a message of the gradient's length.\nIntervals are of 95 %, "
        f"by a bootstrap over repeats and blocks of {BLOCK} iterations. Load average before a run: "
        f"{min(loads):.1f} to {max(loads):.1f}.",
    ]
    for name, delay in header["settings"].items():
        own = [run for run in runs if run.setting == name]
        if len({run.reduction for run in own}) == len(CONTESTANTS):
            parts.append(f"## {name.capitalize()}: `{delay}`\n\n{_table(Comparison(own), 'CHANGE' in delay)}")
    return "\n\n".join(parts) + "\n"


def _table(compared: Comparison, changes: bool) -> str:
    best = compared.best
    lines = ["| reduction | ms an iteration | of the best fixed | iterations under m = 1, 2, … |", "|---|---|---|---|"]
    for name in CONTESTANTS:
        time, ratio = compared.seconds(name), compared.ratio(name, best)
        used = [m for run in compared.runs if run.reduction == name for m in run.reductions]
        counted = ", ".join(str(used.count(m)) for m in range(1, LOAD + 1))
        share = "1" if name == best else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        cells = [name, f"{time.value * 1e3:.1f} [{time.low * 1e3:.1f}, {time.high * 1e3:.1f}]", share, counted]
        lines.append(f"| {' | '.join(cells)} |")
    ratio, limit = compared.ratio(AUTO, best), 1.0 if changes else WITHIN
    reached = (
        "reached" if ratio.high <= limit else "reached, not by the whole interval" if ratio.value <= limit else "missed"
    )
    target = "ahead of every fixed reduction" if changes else f"within {WITHIN - 1:.0%} of the best fixed reduction"
    switches = max((run for run in compared.runs if run.reduction == AUTO), key=lambda run: -run.repeat).switches
    return "\n".join(lines) + f"\n\nTarget, {target}: {reached}. Switches of the first repeat: {'; '.join(switches)}."


def main(command: Sequence[str] | None = None) -> int:
    """Measure and write; an interrupted measurement writes what it has."""
    parser = argparse.ArgumentParser(prog="python -m bench.adaptive_reduction", description=__doc__)
    names = [setting.name for setting in SETTINGS]
    parser.add_argument(
        "--settings", nargs="+", choices=names, default=names[:4], metavar="NAME",
        help=f"of {'; '.join(names)} (default: the first four)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=2, help="of every contestant in every setting (default: 2)")
    parser.add_argument("--iterations", type=int, default=120, help="measured in a run (default: 120)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="print the report of a results file, and measure none"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER, help="-- then more options for every run")
    options = parser.parse_args(command)
    if options.report is not None:
        content = json.loads(options.report.read_text("utf-8"))
        print(markdown(content["header"], [Run(**run) for run in content["runs"]]), end="")
        return 0
    words = options.options[1:] if options.options[:1] == ["--"] else options.options
    if options.repeats < 1 or options.iterations < 2 * BLOCK:
        parser.error(f"at least 1 repeat and {2 * BLOCK} iterations are needed")
    chosen = [setting for setting in SETTINGS if setting.name in options.settings]
    header = environment.machine() | {
        "repeats": options.repeats,
        "iterations": options.iterations,
        "options": words,
        "settings": {setting.name: setting.delay for setting in chosen},
    }
    runs: list[Run] = []
    try:
        for run in measure(chosen, options.repeats, options.iterations, words):
            runs.append(run)
            print(f"{run.setting} {run.repeat} {run.reduction}: {np.mean(run.seconds) * 1000:.1f} ms", flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    if runs:
        options.out.mkdir(parents=True, exist_ok=True)
        content = {"header": header, "runs": [asdict(run) for run in runs]}
        (options.out / "results.json").write_text(json.dumps(content) + "\n", "utf-8")
        (options.out / "report.md").write_text(markdown(header, runs), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
