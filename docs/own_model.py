"""A model of one's own, trained with coded gradients: `mpirun -n 5 python own_model.py`."""

import numpy as np

import mpi_runner
from fastgc import schemes


class PoissonRegression:
    """Counts whose expectation is exp⟨x, w⟩."""

    def __init__(self, features):
        self.features = features

    def initial(self):
        return np.zeros(self.features)

    def partial_gradient(self, parameters, partition):  # the sum over the examples, no mean, no L2
        rates = np.exp(partition.inputs @ parameters)
        return partition.inputs.T @ (rates - partition.labels)

    def evaluate(self, parameters, partition):
        rates = np.exp(partition.inputs @ parameters)
        return {"squared error": float(np.mean((rates - partition.labels) ** 2))}


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    inputs = rng.random((2000, 8))
    labels = rng.poisson(np.exp(inputs @ np.linspace(-1, 1, 8)))
    data = mpi_runner.ArrayData(inputs[:1600], labels[:1600], inputs[1600:], labels[1600:])
    scheme = schemes.grouped(4, load=4, reduction=2)  # any 2 of the 4 workers may straggle
    result = mpi_runner.train(
        PoissonRegression(8), data, scheme, iterations=300, step=0.2, run="runs/poisson", delay="fixed:0.01:1"
    )
    if result is not None:  # the master
        print(result.model.round(1))
