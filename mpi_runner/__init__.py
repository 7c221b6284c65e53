"""Distributed training with coded gradients over MPI: one master, N workers, nobody waits for a straggler."""

import sys

if sys.platform == "win32":
    raise ImportError("mpi_runner does not run on Windows, whose processes know no signals; fastgc does")

from mpi_runner.library import ArrayData, Data, Result, TrainingError, train
from mpi_runner.models import Model, Partition
from mpi_runner.reading import Run, read_run

__all__ = ["ArrayData", "Data", "Model", "Partition", "Result", "Run", "TrainingError", "read_run", "train"]
