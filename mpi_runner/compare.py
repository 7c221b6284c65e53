"""Several schemes under the same seeds, one run after the other."""

from __future__ import annotations

import csv
from pathlib import Path

from fastgc import GradientCode
from mpi_runner import launch
from mpi_runner.config import TrainConfig, arguments, claim
from mpi_runner.display import Display, Follower, comparison, console

COLUMNS = (
    "scheme", "run", "measure", "score", "final_loss", "mean_seconds", "median_seconds", "p95_seconds", "total_seconds",
    "bytes_received", "bytes_sent",
)  # fmt: skip


def compare(configs: list[TrainConfig], made: list[GradientCode], folder: Path) -> int:
    """Run each, then print the table and write it as ``compare.csv``; the exit status of the first run that failed."""
    summaries = []
    for config, scheme in zip(configs, made, strict=True):
        claim(config)
        with Display(config, scheme) as display:
            follower = Follower(config.run, display)
            status = launch.run(config.workers + 1, Path(config.run), arguments(config), follower.look)
        figures = follower.figures() if status == 0 else None
        if figures is None:
            return status
        summaries.append(figures | {"run": config.run, "score": figures[f"test_{figures['measure']}"]})
    with (folder / "compare.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(summaries)
    console().print(comparison(summaries))
    return 0
