"""Several schemes under the same seeds, one run after the other."""

from __future__ import annotations

import csv
from pathlib import Path

from fastgc import GradientCode
from mpi_runner import launch
from mpi_runner.config import TrainConfig
from mpi_runner.display import Display, Follower, comparison, console

COLUMNS = (
    "scheme", "run", "test_auc", "final_loss", "mean_seconds", "median_seconds", "p95_seconds", "total_seconds",
    "bytes_received", "bytes_sent",
)  # fmt: skip


def arguments(config: TrainConfig) -> list[str]:
    """The ``train`` command of a configuration."""
    command = ["train", "--scheme", config.scheme, "--run", config.run]
    values = {**config.options, **config.as_dict()}
    for name in ("scheme", "run", "options"):
        values.pop(name)
    for name, value in values.items():
        if value is True:
            command.append(f"--{name}")
        elif value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    return command


def compare(configs: list[TrainConfig], made: list[GradientCode], folder: Path) -> int:
    """Run each, then print the table and write it as ``compare.csv``; the exit status of the first run that failed."""
    summaries = []
    for config, scheme in zip(configs, made, strict=True):
        with Display(config, scheme) as display:
            follower = Follower(config.run, display)
            status = launch.run(config.workers + 1, arguments(config), follower.look)
        if status != 0:
            return status
        summaries.append(follower.figures() | {"run": config.run})
    with (folder / "compare.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(summaries)
    console().print(comparison(summaries))
    return 0
