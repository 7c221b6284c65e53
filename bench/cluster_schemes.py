"""Schemes against each other on an emulated cluster of 13 hosts: ``python -m bench.cluster_schemes``.

Three settings of links and compute times. In each, uncoded training, repetition and coded messages train the same model
under the same seeds, all once in an order drawn anew, then all again. Writes JSON, from which `bench.cluster_report`
makes the tables. Needs root on Linux.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import cluster_report, environment
from bench.cluster_report import REPETITION, UNCODED, Run
from fastgc import schemes
from mpi_runner import delays, launch
from mpi_runner.cluster import commands, links, profiles
from mpi_runner.cluster.hosts import Cluster
from mpi_runner.config import UsageError
from mpi_runner.intervals import BLOCK

WORKERS = 12
SCHEMES: dict[str, list[str]] = {
    UNCODED: ["uncoded"],
    REPETITION: ["fractional_repetition", "--stragglers", "2"],
    "d=4 m=2 s=2": ["grouped", "--load", "4", "--reduction", "2"],
    "d=6 m=4 s=2": ["grouped", "--load", "6", "--reduction", "4"],
    "d=6 m=3 s=3": ["grouped", "--load", "6", "--reduction", "3"],
}
SETTINGS = {1: ("even", "even"), 2: ("wide", "thin"), 3: ("wide", "thin-slow")}
"""Profiles of the head and of the workers, by number."""
TRAINING_ROWS = 1200  # 100 a partition: computing is by the injected delays, so that 13 hosts fit few cores
FRAME, PAYLOAD = 1514, 1448  # bytes of a full Ethernet frame, and of data in it under TCP with timestamps
WARM_UP = 5  # iterations dropped: connections are made in the first


def measure(settings: Sequence[int], repeats: int, iterations: int, options: Sequence[str]) -> Iterator[Run]:
    """Do the runs, a setting after the other, and all schemes once before any a second time."""
    known = profiles.load()
    order = np.random.Generator(np.random.Philox(key=0))
    with launch.signals_noted() as received, tempfile.TemporaryDirectory(prefix="cluster-schemes-") as folder:
        for setting in settings:
            head, worker = (known[name] for name in SETTINGS[setting])
            with Cluster(head, [worker] * WORKERS) as cluster:
                for repeat in range(repeats):
                    for scheme in order.permutation(list(SCHEMES)).tolist():
                        run = Path(folder) / f"{setting}-{repeat}-{scheme}"
                        words = ["train", "--scheme", *SCHEMES[scheme], "--workers", str(WORKERS), "--run", str(run)]
                        words += ["--iterations", str(WARM_UP + iterations), "--rows", str(TRAINING_ROWS)]
                        words += ["--seed", str(repeat), *options]
                        load = os.getloadavg()[0]
                        with (Path(folder) / "output").open("w+b") as output:
                            status = commands.execute(
                                cluster, commands.runner_command(words, worker), received=received, output=output
                            )
                            if received:
                                return
                            if status != 0:
                                output.seek(0)
                                raise RuntimeError(f"{' '.join(words)}: {output.read().decode()}")
                        seconds, figures = _read(run)
                        figures["alone_seconds"] = alone_seconds(run, head.bandwidth, worker.bandwidth)
                        yield Run(setting, repeat, scheme, load, seconds, figures)


def _read(run: Path) -> tuple[list[float], dict[str, Any]]:
    """Times of the iterations, and what they consist of."""
    summary = json.loads((run / "summary.json").read_text())
    with (run / "iterations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[WARM_UP:]
    with (run / "arrivals.csv").open(newline="") as file:
        used = [row for row in csv.DictReader(file) if row["outcome"] == "used" and int(row["iteration"]) > WARM_UP]
    own = np.array([sum(float(row[name]) for name in ("compute", "encode", "delay")) for row in used])
    there = np.array([float(row["arrived"]) - float(row["sent"]) for row in used])
    figures = {
        "final_loss": summary["final_loss"],
        "bytes_received": summary["bytes_received"],
        "bytes_sent": summary["bytes_sent"],
        "messages": summary["messages"],
        # Means over the messages used: the worker's own time, and that of the model's and the message's way.
        "worker_seconds": float(own.mean()),
        "way_seconds": float((there - own).mean()),
        "master_seconds": float(np.mean([float(row["decode"]) + float(row["update"]) for row in rows])),
    }
    return [float(row["seconds"]) for row in rows], figures


def alone_seconds(run: Path, head_rate: str, worker_rate: str) -> float:
    """The mean time of an iteration of a run if nothing but its links and its injected delays had taken any.

    All workers get the model at the same time, each sends after its delay, and the iteration is over with the first
    decodable set. A link is full from its first byte to its last, and lets a burst through at once.
    """
    scheme = schemes.load(run / "scheme.npz")
    config = json.loads((run / "config.json").read_text())["config"]
    parameters = np.load(run / "model.npy", allow_pickle=False)
    itemsize = 2 if config.get("model_dtype") == "bfloat16" else parameters.itemsize
    with (run / "arrivals.csv").open(newline="") as file:
        message = max(int(row["bytes"]) for row in csv.DictReader(file))
    delay = delays.parse(config["delay"])
    head, worker = profiles.rate(head_rate), profiles.rate(worker_rate)
    down = on_link(parameters.size * itemsize, scheme.workers, head, worker)
    total = 0.0
    for iteration in range(WARM_UP, config["iterations"]):
        slept = sorted(
            (delay.compute_seconds(config["seed"], i, iteration, len(held), scheme.workers), i)
            for i, held in enumerate(scheme.assignment)
        )
        needed = next(k for k in range(1, scheme.workers + 1) if scheme.is_decodable([i for _, i in slept[:k]]))
        last = slept[needed - 1][0] + on_link(message, 1, head, worker)
        together = slept[0][0] + on_link(message, needed, head, worker)
        total += down + max(last, together)
    return float(total / (config["iterations"] - WARM_UP))


def on_link(size: int, hosts: int, head: float, worker: float) -> float:
    """The seconds that so many bytes take between the head and each of so many workers."""
    framed = size * FRAME / PAYLOAD
    return 8 * max((framed - links.BURST_BYTES) / worker, (hosts * framed - links.BURST_BYTES) / head, 0.0)


def main(command: Sequence[str] | None = None) -> int:
    """Measure and write; an interrupted measurement writes what it has."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster_schemes", description=__doc__)
    parser.add_argument("--settings", type=int, nargs="+", choices=SETTINGS, default=[2, 1, 3])
    parser.add_argument("--repeats", type=int, default=5, help="of every scheme in every setting (default: 5)")
    parser.add_argument("--iterations", type=int, default=200, help="measured in a run (default: 200)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/cluster"), metavar="DIR")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="-- then more options for every run")
    options = parser.parse_args(command)
    words = options.options[1:] if options.options[:1] == ["--"] else options.options
    if options.repeats < 1 or options.iterations < BLOCK:
        parser.error(f"at least 1 repeat and {BLOCK} iterations are needed")
    header = environment.machine() | {
        "repeats": options.repeats,
        "iterations": options.iterations,
        "warm_up": WARM_UP,
        "options": words,
        "burst": f"{links.BURST_BYTES // 1024} KiB",
        "settings": {str(number): _described(number) for number in options.settings},
    }
    runs: list[Run] = []
    try:
        for run in measure(options.settings, options.repeats, options.iterations, words):
            runs.append(run)
            print(f"{run.setting} {run.repeat} {run.scheme}: {np.mean(run.seconds) * 1000:.1f} ms", flush=True)
    except UsageError as error:
        print(f"bench.cluster_schemes: error: {error}", file=sys.stderr)
        return 2
    if runs:
        cluster_report.write(header, runs, options.out)
    return 0


def _described(setting: int) -> dict[str, str]:
    head, worker = (profiles.load()[name] for name in SETTINGS[setting])
    return {"head": head.bandwidth, "workers": worker.bandwidth, "delay": worker.straggling}


if __name__ == "__main__":
    sys.exit(main())
