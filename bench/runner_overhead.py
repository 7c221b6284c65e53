"""What the runner adds to a bare MPI exchange of the same bytes: ``python -m bench.runner_overhead``.

A gradient that takes no time is trained with, in turns with bare exchanges (`bench.exchange`). Writes JSON and a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import environment
from mpi_runner import launch

RATIOS = ("bare", "bare, working", "bare, MPI's own waits")
SENDING = "runner: sending and receiving alone"


def markdown(header: dict[str, Any], turns: Sequence[dict[str, Any]]) -> str:
    """The report: medians over the iterations of a turn, then over turns, with the least and the greatest of them."""
    loads = [turn["load_average"] for turn in turns]
    rows = {name: _medians(turns, name, "seconds") for name in ("runner", *RATIOS)}
    lines = [
        "# What the runner adds to bare MPI",
        f"{header['workers']} workers on {header['cpus']} CPUs ({header['cpu']}), commit {header['commit']}, "
        f"{header['date']}; l = {header['length']:,}, m = {header['reduction']},\n"
        f"{header['repeats']} repeats of {header['iterations']} iterations. "
        f"Load average before a turn: {min(loads):.1f} to {max(loads):.1f}, this job's ranks included.",
        "*Working*: workers draw, differentiate and encode as the runner's do. What that adds to the bare exchange is\n"
        "neither sending nor receiving, and is taken off the runner's time in the second line, in each repeat.",
        "| | ms | over bare |\n|---|---|---|",
    ]
    bare = rows["bare"]
    work = [working - alone for working, alone in zip(rows["bare, working"], bare, strict=True)]
    rows = {
        "runner": rows["runner"],
        SENDING: [ours - its for ours, its in zip(rows["runner"], work, strict=True)],
    } | rows
    for name, times in rows.items():
        ratios = [ours / theirs for ours, theirs in zip(times, bare, strict=True)]
        lines[-1] += f"\n| {name}: send to last message | {_spread(times, 1e3)} | {_spread(ratios, 1)} |"
    for name in ("decode", "update", "bookkeeping"):
        lines[-1] += f"\n| runner: {name} | {_spread(_medians(turns, 'runner', name), 1e3)} | |"
    lines.append("| CPU ms an iteration | master | workers together |\n|---|---|---|")
    for name in ("runner", *RATIOS):
        cpu = [_spread(_medians(turns, name, whose), 1e3) for whose in ("master_cpu", "workers_cpu")]
        lines[-1] += f"\n| {name} | {cpu[0]} | {cpu[1]} |"
    lines.append("The runner's CPU time has decoding, the update and bookkeeping in it.")
    idle = _spread(_medians(turns, "idle", "cpu_share"), 100)
    return (
        "\n\n".join([*lines, f"A worker that waits takes {idle} % of a core, the few steps between included."]) + "\n"
    )


def _medians(turns: Sequence[dict[str, Any]], contestant: str, figure: str) -> list[float]:
    values = [turn[figure] for turn in turns if turn["contestant"] == contestant]
    return [value if isinstance(value, float) else statistics.median(value) for value in values]


def _spread(values: Sequence[float], unit: float) -> str:
    low, middle, high = (unit * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main(command: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.runner_overhead", description=__doc__)
    parser.add_argument("--workers", type=int, default=24, help="a multiple of the reduction (default: 24)")
    parser.add_argument("--length", type=int, default=243_485, help="of the gradient (default: 243485)")
    parser.add_argument("--reduction", type=int, default=2, help="of messages (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant (default: 5)")
    parser.add_argument("--iterations", type=int, default=100, help="measured in a turn (default: 100)")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds that workers are left idle (default: 0.5)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/runner-overhead"), metavar="DIR")
    options = parser.parse_args(command)
    if min(options.workers, options.length, options.reduction, options.repeats) < 1 or options.iterations < 2:
        parser.error("all numbers must be at least 1, and --iterations 2")
    if options.workers % options.reduction:
        parser.error(f"--workers must be a multiple of --reduction {options.reduction}, not {options.workers}")
    names = ("workers", "length", "reduction", "repeats", "iterations")
    header = environment.machine() | {name: getattr(options, name) for name in names} | {"pause": options.pause}
    words, variables = launch.python_on(options.workers + 1)
    with tempfile.TemporaryDirectory(prefix="runner-overhead-") as folder:
        file = Path(folder) / "turns.json"
        words += ["-m", "bench.exchange", *(str(getattr(options, name)) for name in names), str(options.pause)]
        done = subprocess.run([*words, str(file)], env=variables | {launch.LAUNCHED: "1"}, check=False)
        if done.returncode != 0:
            return done.returncode
        turns = json.loads(file.read_text("utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps({"header": header, "turns": turns}) + "\n", "utf-8")
    report = markdown(header, turns)
    (options.out / "report.md").write_text(report, "utf-8")
    print(report, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
