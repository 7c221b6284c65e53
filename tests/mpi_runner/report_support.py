"""Run directories as the runner writes them, from a simulated cluster: many iterations in no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastgc import GradientCode
from mpi_runner.config import TrainConfig, build_scheme
from mpi_runner.processes import Identity
from mpi_runner.records import RunRecords, summarize

BYTES = 1_000_000  # of a gradient

SCHEMES: list[tuple[str, dict[str, Any]]] = [
    ("uncoded", {}),
    ("fractional_repetition", {"stragglers": 2}),
    ("grouped", {"load": 4, "reduction": 2}),
    ("grouped", {"load": 6, "reduction": 3}),
    ("polynomial", {"stragglers": 2, "reduction": 2}),
]


def write_run(folder: Path, config: TrainConfig, *, end: bool = True, lose: int | None = None) -> None:
    """Write the directory of a simulated run.

    Workers take 3 ms a partition and an exponential time as long again on average, and send at 100 MB/s. A worker that
    is not waited for gives up half-way and takes the newest model.

    Parameters
    ----------
    folder : Path
    config : TrainConfig
    end : bool
        Whether the run comes to its end.
    lose : int, optional
        A worker that dies after a third of the iterations.
    """
    config = replace(config, run=str(folder))
    scheme = build_scheme(config)
    with RunRecords(config, scheme, f"{config.seed}") as records:
        records.processes([Identity(f"host{i}", 100 + i, 1.79e9) for i in range(config.workers + 1)])
        records.log(f"{scheme.name} begins")
        seconds = _simulate(records, config, scheme, lose)
        if end:
            records.summary(
                {
                    "scheme": scheme.name, "model": config.model, "data": config.data, "measure": "auc",
                    "test_auc": 0.77, "final_loss": 0.5, "total_seconds": sum(seconds), **summarize(seconds),
                    "bytes_received": 1, "bytes_sent": 1, "iterations": config.iterations,
                }
            )  # fmt: skip
            records.outcome(0, None)


def _simulate(records: RunRecords, config: TrainConfig, scheme: GradientCode, lose: int | None) -> list[float]:
    rng = np.random.default_rng([config.seed, 5])
    workers = config.workers
    size = BYTES // scheme.reduction
    now, seconds = 0.0, []
    sent = np.zeros(workers)  # when each was given its model
    answers = np.full(workers, np.inf)  # when each will have answered
    model = np.full(workers, -1)  # of which iteration; −1 for none
    alive = np.ones(workers, bool)
    for iteration in range(config.iterations):
        start = now
        times = 0.003 * (1 + rng.exponential(size=workers)) * scheme.load + size / 1e8
        times[(iteration // 40) % workers] *= 2.5  # each has a bad time
        if lose is not None and iteration == config.iterations // 3:
            alive[lose], answers[lose] = False, np.inf
            records.fault(
                {"seconds": start, "iteration": iteration + 1, "worker": lose, "host": f"host{lose + 1}",
                 "pid": 101 + lose, "kind": "died", "reason": "MPI_ERR_PROC_FAILED"}
            )  # fmt: skip
        for worker in np.flatnonzero(alive & (model < 0)):
            sent[worker], answers[worker], model[worker] = start + 0.001, start + 0.001 + times[worker], iteration
        survivors: list[int] = []
        received = 0
        while len(survivors) < workers - scheme.stragglers:  # enough by the scheme's promise
            worker = int(answers.argmin())
            now = max(now, float(answers[worker]))
            used = model[worker] == iteration
            row = {
                "iteration": int(model[worker]) + 1, "worker": worker, "sent": sent[worker], "arrived": now,
                "compute": 0.5 * (now - sent[worker]), "encode": 0.0002, "delay": 0.0,
                "bytes": size if used else 64, "outcome": "used" if used else "abandoned",
                "reduction": scheme.reduction, "part": 0, "more": 0,
            }  # fmt: skip
            records.arrival(row)
            received += int(row["bytes"])
            if used:
                survivors.append(worker)
                answers[worker], model[worker] = np.inf, -1
            else:
                sent[worker], answers[worker], model[worker] = now, now + times[worker], iteration
        now += 0.0006
        behind = model >= 0
        answers[behind & alive] = np.minimum(answers, now + 0.004)[behind & alive]  # told that it is over
        spent = now - start
        seconds.append(spent)
        records.iteration(
            {
                "iteration": iteration + 1, "start": start, "seconds": spent, "send": 0.001, "receive": 0.0008,
                "wait": spent - 0.0024, "decode": 0.0004, "update": 0.0002,
                "loss": 0.4 + 0.3 / (1 + 0.05 * iteration) + 0.0005 * rng.standard_normal(),
                "survivors": " ".join(map(str, sorted(survivors))), "parts": "", "approximate": 0,
                "approximation_error": 0.0,
                "bytes_received": received, "bytes_sent": BYTES * workers,
                "reduction": scheme.reduction,
                "score": 0.77 - 0.2 / (1 + 0.05 * iteration) if (iteration + 1) % 100 == 0 else "",
            }
        )  # fmt: skip
        now += 0.0003
    return seconds


def comparison(folder: Path, iterations: int, workers: int = 12) -> list[Path]:
    """Ten runs: five schemes, two seeds."""
    found = []
    for seed in (1, 2):
        for number, (name, options) in enumerate(SCHEMES):
            found.append(folder / f"{seed}-{number}-{name}")
            config = TrainConfig(name, workers, iterations, "", options, seed=seed, delay="exponential:0.003:0.003")
            write_run(found[-1], config, lose=7 if (seed, number) == (1, 2) else None)
    return found
