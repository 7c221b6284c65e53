"""What is gained where workers are slow and not dead: ``python -m bench.slow_workers parts`` and ``… uneven``.

``parts`` trains with work in 1, 2 and 4 parts, where workers take times of their own in every iteration, or some are
slow for good. ``uneven`` trains on workers of different speed, with equal shares and with shares by speed, given and
measured. Computing times are injected by sleeping, and the model is small: what is measured is waiting. All contestants
train once under a seed, in an order drawn anew, then all again under the next. Writes JSON and Markdown.
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
from fastgc import schemes
from mpi_runner import delays
from mpi_runner.intervals import interval, resampled_means

WORKERS, WARM_UP = 8, 3  # iterations dropped: connections are made in the first
COMMON = ["--workers", str(WORKERS), "--model", "softmax", "--data", "digits", "--rows", "2000", "--quiet"]
GROUPED = ["--scheme", "grouped", "--load", "4", "--reduction", "2"]
GAUSSIAN = ["--stragglers", "2", "--reduction", "2"]
SPEEDS = "1,1,1,1,2,2,4,4"


class Comparison(NamedTuple):
    """What is compared with what, the baseline first, under which delays."""

    contestants: dict[str, list[str]]
    delays: dict[str, str]


COMPARISONS = {
    "parts": Comparison(
        {
            f"{scheme}, {parts} part{'s' * (parts > 1)}": [*words, "--parts", str(parts)]
            for scheme, words in (
                ("grouped [4, 2]", GROUPED),
                ("repetition, s = 1", ["--scheme", "fractional_repetition", "--stragglers", "1"]),
            )
            for parts in (1, 2, 4)
        },
        {
            "shifted exponential: 40 ms + Exp(40 ms) for 1/8 of the data": "exponential:0.04:0.04",
            "two of eight workers three times as slow, and Exp(10 ms)": "uneven:0.01:0.04:1,1,1,0.33,1,1,1,0.33",
        },
    ),
    "uneven": Comparison(
        {
            "equal shares, grouped [4, 2]": GROUPED,
            "shares by speed, grouped [4, 2]": [*GROUPED, "--speeds", SPEEDS],
            "shares by measured speed, grouped [4, 2]": [*GROUPED, "--speeds", "measured"],
            "equal shares, polynomial_gaussian s = m = 2": ["--scheme", "polynomial_gaussian", *GAUSSIAN],
            "shares by speed, heterogeneous s = m = 2": ["--scheme", "heterogeneous", *GAUSSIAN, "--speeds", SPEEDS],
            "shares by measured speed, heterogeneous s = m = 2": [
                "--scheme", "heterogeneous", *GAUSSIAN, "--speeds", "measured",
            ],
        },
        {f"speeds {SPEEDS}; 40 ms + Exp(8 ms) for 1/8 of the data at speed 1": f"uneven:0.008:0.04:{SPEEDS}"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run: seconds of the iterations that count, and figures of all of them."""

    delay: str
    contestant: str
    seed: int
    load_average: float
    seconds: list[float]
    megabytes: float
    unfinished: float
    alone_seconds: float


def measure(comparison: Comparison, repeats: int, iterations: int) -> Iterator[Run]:
    """Do the runs, all contestants and delays once before any a second time."""
    order = np.random.Generator(np.random.Philox(key=0))
    pairs = [(delay, name) for delay in comparison.delays for name in comparison.contestants]
    with tempfile.TemporaryDirectory(prefix="slow-workers-") as folder:
        for seed in range(repeats):
            for place in order.permutation(len(pairs)).tolist():
                delay, name = pairs[place]
                run = Path(folder) / f"{seed}-{place}"
                words = [*comparison.contestants[name], *COMMON, "--delay", comparison.delays[delay]]
                words += ["--iterations", str(WARM_UP + iterations), "--seed", str(seed), "--run", str(run)]
                load = os.getloadavg()[0]
                subprocess.run([sys.executable, "-m", "mpi_runner", "train", *words], check=True)
                yield Run(delay, name, seed, load, *_read(run, iterations))


def _read(run: Path, iterations: int) -> tuple[list[float], float, float, float]:
    """Iteration times; megabytes received an iteration; the share of messages used from workers that did not finish;
    and the mean time of an iteration if nothing but the delays took any."""
    with (run / "iterations.csv").open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)][WARM_UP:]
    with (run / "arrivals.csv").open(newline="") as file:
        used = [row for row in csv.DictReader(file) if row["outcome"] == "used"]
    finished = {(row["iteration"], row["worker"]) for row in used if row["more"] == "0"}
    unfinished = sum((row["iteration"], row["worker"]) not in finished for row in used) / len(used)
    received = json.loads((run / "summary.json").read_text())["bytes_received"]
    return seconds, received / 1e6 / (WARM_UP + iterations), unfinished, _alone(run, iterations)


def _alone(run: Path, iterations: int) -> float:
    """All workers begin at once, with nothing left of an earlier iteration, and the last message that is needed ends
    it."""
    scheme = schemes.load(run / "scheme.npz")
    config = json.loads((run / "config.json").read_text())["config"]
    delay, parts = delays.parse(config["delay"]), config["parts"]
    messages, total = scheme.in_parts(parts), 0.0
    for iteration in range(WARM_UP, WARM_UP + iterations):
        done = []
        for worker, held in enumerate(scheme.assignment):
            load = len(held) * scheme.workers / scheme.partitions
            whole = delay.compute_seconds(config["seed"], worker, iteration, load, scheme.workers)
            order = enumerate(scheme.part_order(worker, parts), 1)
            done += [(turn / parts * whole, worker * parts + part) for turn, part in order]
        done.sort()
        total += next(
            time for last, (time, _) in enumerate(done, 1) if messages.is_decodable(n for _, n in done[:last])
        )
    return total / iterations


def report(header: dict[str, Any], comparison: Comparison, runs: Sequence[Run]) -> str:
    """Markdown: a table for each delay, the first contestant of those with the same scheme as the baseline."""
    said = [
        f"# Slow workers: {header['comparison']}",
        "",
        f"`python -m bench.slow_workers {header['comparison']} --repeats {header['repeats']} --iterations "
        f"{header['iterations']}`, {header['cpu']}, {header['cpus']} CPUs, {header['date']}, commit "
        f"{header['commit']}.",
        f"{WORKERS} workers and their master on this machine, computing times by sleeping, softmax regression on "
        f"digits; load average before a run {min(run.load_average for run in runs):.1f} to "
        f"{max(run.load_average for run in runs):.1f}. Means with 95 % intervals, over runs and blocks of iterations.",
    ]
    for delay in comparison.delays:
        said += ["", f"## {delay[0].upper()}{delay[1:]}", ""]
        said += [f"`--delay {comparison.delays[delay]}`", ""]
        said.append(
            "| | ms an iteration | time / baseline | delays alone, ms | / baseline | MB received | of workers that had "
            "more to do |"
        )
        said.append("|---|---|---|---|---|---|---|")
        baseline = None
        for name in comparison.contestants:
            own = [run for run in runs if (run.delay, run.contestant) == (delay, name)]
            if not own:
                continue
            means = resampled_means([run.seconds for run in own])
            mean = float(np.mean([np.mean(run.seconds) for run in own]))
            alone = float(np.mean([run.alone_seconds for run in own]))
            if baseline is None or name.endswith(" 1 part") or name.startswith("equal"):
                baseline = mean, means, alone
            time, ratio = interval(mean * 1e3, means * 1e3), interval(mean / baseline[0], means / baseline[1])
            said.append(
                f"| {name} | {time.value:.0f} ({time.low:.0f} … {time.high:.0f}) | {ratio.value:.2f} "
                f"({ratio.low:.2f} … {ratio.high:.2f}) | {alone * 1e3:.0f} | {alone / baseline[2]:.2f} | "
                f"{np.mean([run.megabytes for run in own]):.2f} | "
                f"{100 * np.mean([run.unfinished for run in own]):.0f} % |"
            )
    return "\n".join(said) + "\n"


def main(command: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.slow_workers", description=__doc__)
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--repeats", type=int, default=3, help="of everything (default: 3)")
    parser.add_argument("--iterations", type=int, default=30, help="measured in a run (default: 30)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/slow-workers"), metavar="DIR")
    options = parser.parse_args(command)
    if options.repeats < 1 or options.iterations < 10:
        parser.error("at least 1 repeat and 10 iterations are needed")
    comparison = COMPARISONS[options.comparison]
    header = environment.machine() | {
        "comparison": options.comparison,
        "repeats": options.repeats,
        "iterations": options.iterations,
        "warm_up": WARM_UP,
        "contestants": comparison.contestants,
        "delays": comparison.delays,
    }
    runs: list[Run] = []
    for run in measure(comparison, options.repeats, options.iterations):
        runs.append(run)
        print(f"{run.seed} {run.contestant}: {np.mean(run.seconds) * 1000:.1f} ms", flush=True)
    folder = options.out / options.comparison
    folder.mkdir(parents=True, exist_ok=True)
    content = {"header": header, "runs": [asdict(run) for run in runs]}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "report.md").write_text(report(header, comparison, runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
