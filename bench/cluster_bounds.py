"""What links and delays of the emulated cluster allow, whatever the scheme: ``python -m bench.cluster_bounds``.

For every load and reduction: the mean time of an iteration if nothing but the model's way down, the injected delay and
the message's way up took any time, and all workers began together. Schemes are those of groups of d workers of which
any m are enough, and those in which any n − s of all n are, under which a worker holds d = s + m partitions: by Ye and
Abbe's converse none with such a promise can hold less. Nothing is run, and no root is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.cluster_schemes import SETTINGS, WORKERS, on_link
from mpi_runner import delays, wire
from mpi_runner.cluster import profiles

LENGTH = 243_485
REPETITION_LOAD = 3
MODEL_BYTES = {"float32": 4, "bfloat16": 2}

Array = npt.NDArray[Any]


def alone(
    load: int, reduction: int, groups: Sequence[Array], enough: int, down: float, rates: tuple[float, float]
) -> float:
    """Mean seconds of an iteration.

    Parameters
    ----------
    load, reduction : int
    groups : sequence of ndarray, shape (iterations, workers of the group)
        Seconds that a worker takes for one partition.
    enough : int
        Messages that a group is decoded from.
    down : float
        Seconds of the model's way.
    rates : tuple of float
        Bits a second of the master's link and of a worker's.
    """
    message = wire.HEADER.size + 4 * -(-LENGTH // reduction) + 8 * -(-wire.STATISTICS // reduction)
    last = load * np.max([np.sort(group, axis=1)[:, enough - 1] for group in groups], axis=0)
    first = load * np.min([group.min(axis=1) for group in groups], axis=0)
    ends = np.maximum(last + on_link(message, 1, *rates), first + on_link(message, enough * len(groups), *rates))
    return down + float(ends.mean())


def bounds(setting: int, model_bytes: int, iterations: int) -> Iterator[tuple[str, int, int, float]]:
    """Kind, load, reduction and seconds of every scheme."""
    head, worker = (profiles.load()[name] for name in SETTINGS[setting])
    rates = profiles.rate(head.bandwidth), profiles.rate(worker.bandwidth)
    delay = delays.parse(worker.straggling)
    unit = np.array([[delay.compute_seconds(0, i, t, 1, WORKERS) for i in range(WORKERS)] for t in range(iterations)])
    down = on_link(LENGTH * model_bytes, WORKERS, *rates)
    for load in range(1, WORKERS + 1):
        for reduction in range(1, load + 1):
            if WORKERS % load == 0:
                groups = np.split(unit, WORKERS // load, axis=1)
                yield "groups", load, reduction, alone(load, reduction, groups, reduction, down, rates)
            if load == WORKERS:
                continue  # the same again
            enough = WORKERS - (load - reduction)
            yield f"any {enough} of {WORKERS}", load, reduction, alone(load, reduction, [unit], enough, down, rates)


def main(command: Sequence[str] | None = None) -> int:
    """Print the best schemes, uncoded training and repetition."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster_bounds", description=__doc__)
    parser.add_argument("--setting", type=int, choices=SETTINGS, default=2)
    parser.add_argument("--model-dtype", choices=MODEL_BYTES, default="float32", help="of the model's way down")
    parser.add_argument("--iterations", type=int, default=5000, help="that the mean is over (default: 5000)")
    options = parser.parse_args(command)
    found = list(bounds(options.setting, MODEL_BYTES[options.model_dtype], options.iterations))
    known = {(kind, load, reduction): seconds for kind, load, reduction, seconds in found}
    uncoded, repetition = known["groups", 1, 1], known["groups", REPETITION_LOAD, 1]
    print("| scheme | d | m | ms alone | of uncoded | of repetition |\n|---|---|---|---|---|---|")
    shown = sorted(found, key=lambda it: it[3])[:6] + [
        ("groups", REPETITION_LOAD, 1, repetition),
        ("groups", 1, 1, uncoded),
    ]
    for kind, load, reduction, seconds in shown:
        ratios = f"{seconds / uncoded:.3f} | {seconds / repetition:.3f}"
        print(f"| {kind} | {load} | {reduction} | {seconds * 1e3:.1f} | {ratios} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
