"""Distributed training with coded gradients over MPI: one master, N workers, nobody waits for a straggler."""

from mpi_runner.library import ArrayData, Data, Result, TrainingError, train
from mpi_runner.models import Model, Partition

__all__ = ["ArrayData", "Data", "Model", "Partition", "Result", "TrainingError", "train"]
