"""Training from a script of one's own: `train`, and data that lie in memory."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastgc import GradientCode
from mpi_runner.config import TrainConfig, UsageError, changed, check_settings
from mpi_runner.models import Model, Partition, Vector
from mpi_runner.optimizers import OPTIMIZERS, Optimizer
from mpi_runner.problems import Problem
from mpi_runner.randomness import share
from mpi_runner.resuming import begin, where_left

__all__ = ["ArrayData", "Data", "Result", "TrainingError", "train"]

TAG = 11  # of what the master says last


class Data(Protocol):
    """Where partitions come from. A rank loads its own, so nobody need hold all of them."""

    def load_train(self, partition: int, partitions: int) -> Partition:
        """Return partition number `partition` of `partitions`: the same on every rank."""

    def load_test(self) -> Partition:
        """Return the examples that the model is evaluated on."""


@dataclass(frozen=True)
class ArrayData:
    """Arrays in memory: partitions are nearly equal slices of the training rows.

    Attributes
    ----------
    inputs, test_inputs : array or scipy.sparse.csr_array
        A row an example.
    labels, test_labels : ndarray
        As many rows.
    """

    inputs: Any
    labels: NDArray[Any]
    test_inputs: Any
    test_labels: NDArray[Any]

    def __post_init__(self) -> None:
        for name, inputs, labels in (
            ("labels", self.inputs, self.labels),
            ("test_labels", self.test_inputs, self.test_labels),
        ):
            if inputs.shape[0] != labels.shape[0]:
                raise ValueError(f"{name} must have {inputs.shape[0]} rows, as the inputs, not {labels.shape[0]}")

    @property
    def train_rows(self) -> int:
        """Number of training rows."""
        return int(self.labels.shape[0])

    def load_train(self, partition: int, partitions: int) -> Partition:
        """Return a slice of the training rows."""
        rows = share(self.train_rows, partition, partitions)
        return Partition(self.inputs[rows.start : rows.stop], self.labels[rows.start : rows.stop])

    def load_test(self) -> Partition:
        """Return the test rows."""
        return Partition(self.test_inputs, self.test_labels)


class Result(NamedTuple):
    """What a run leaves its master with, besides the run directory."""

    model: Vector
    """The final parameters."""
    figures: dict[str, Any]
    """As in ``summary.json``."""


class TrainingError(Exception):
    """The run could not be completed; the message is one line."""


def train(
    model: Model,
    data: Data,
    scheme: GradientCode,
    *,
    iterations: int,
    step: float,
    run: str,
    optimizer: str | Callable[[Vector, float], Optimizer] = "nesterov",
    l2: float = 0.0,
    batch: int = 0,
    seed: int = 0,
    delay: str = "none",
    evaluate_every: int = 0,
    checkpoint_every: int = 100,
    resume: bool = False,
    hang_deadline: float | None = None,
    deadline: str | None = None,
    parts: int = 1,
    verify: bool = False,
    message_dtype: str | None = None,
    model_dtype: str | None = None,
    error_feedback: bool = False,
    poll: str = "backoff",
) -> Result | None:
    """Train a model with coded gradients, in a script that mpirun or srun has started on ``scheme.workers + 1`` ranks.

    Every rank makes the call, with the same arguments; rank 0 becomes the master and the others its workers.

    Parameters
    ----------
    model : Model
        Has ``initial()``, ``partial_gradient(parameters, partition)``, the *sum* of the examples' gradients, and
        ``evaluate(parameters, partition)``; with ``gradient_and_loss(parameters, partition)`` losses are recorded too.
        Its parameters are float32 or float64.
    data : Data
        Has ``load_train(partition, partitions)`` and ``load_test()``.
    scheme : GradientCode
        The master's is given to all.
    iterations : int
    step : float
    run : str
        The run directory, for the master alone; it must not hold a run, unless with `resume`.
    optimizer : str or callable
        A name of `mpi_runner.optimizers.OPTIMIZERS`, or what makes an optimiser from the initial parameters and `step`.
    l2 : float
        Weight of half the squared norm of the parameters.
    batch : int
        Examples in an iteration, drawn from all partitions; 0 for all.
    seed : int
        Of batches, of the partitions' seeds, and of delays.
    resume : bool
        Go on from the newest checkpoint in `run`, with the same arguments but for more iterations, and what does not
        change the model.
    delay, evaluate_every, checkpoint_every, hang_deadline, deadline, parts, verify, message_dtype, model_dtype,
    error_feedback, poll
        As the command line's.

    Returns
    -------
    Result or None
        On the master the result, on a worker None.

    Raises
    ------
    ValueError
        An argument is out of range; on every rank, before anything is sent.
    TrainingError
        On the master: too many workers were lost, or a signal came. On every rank: two workers find different
        gradients of the same partition, the job has the wrong number of ranks, or the run directory cannot be used.

    Notes
    -----
    An exception of the model, the data or the optimiser is printed and ends the whole job, since the other ranks would
    wait for ever.
    """
    dtype = model.initial().dtype
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"model.initial() must return float32 or float64, not {dtype}")
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)} or callable, not {optimizer!r}")
    make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    config = TrainConfig(
        scheme=scheme.name,
        workers=scheme.workers,
        iterations=iterations,
        run=run,
        model=type(model).__name__,
        data=type(data).__name__,
        batch=batch,
        delay=delay,
        seed=seed,
        optimizer=optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "own"),
        dtype=dtype.name,
        step=step,
        l2=l2,
        poll=poll,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        hang_deadline=hang_deadline,
        deadline=deadline,
        parts=parts,
        verify=verify,
        message_dtype=message_dtype,
        model_dtype=model_dtype,
        error_feedback=error_feedback,
    )
    try:
        check_settings(config, scheme)
    except UsageError as error:
        raise ValueError(str(error).removeprefix("--")) from None
    problem = Problem(
        model,
        data.load_train,
        data.load_test,
        getattr(data, "train_rows", None),
        l2,
        lambda: make(model.initial(), step),
    )
    return _run(config, scheme, problem, resume)


def _run(config: TrainConfig, scheme: GradientCode, problem: Problem, resume: bool) -> Result | None:
    from mpi4py import MPI  # initialises MPI: only now

    from mpi_runner import session
    from mpi_runner.agreement import DisagreementError
    from mpi_runner.launch import EXIT_FAILED
    from mpi_runner.transport import Poller, all_well, share_scheme

    comm, poller = MPI.COMM_WORLD, Poller(spin=config.poll == "spin")
    if comm.Get_size() != scheme.workers + 1:
        raise TrainingError(f"a scheme of {scheme.workers} workers needs {scheme.workers + 1} ranks; "
                            f"there are {comm.Get_size()}")  # fmt: skip
    master = comm.Get_rank() == 0
    refusal, resumed = None, None
    if master:
        try:
            scheme, resumed = where_left(scheme, config, resume)
            if resumed is not None:
                changed(resumed.config, {**config.as_dict(), "run": resumed.config.run})
            begin(config, resumed)
        except UsageError as error:
            refusal = str(error).removeprefix("--")
    if not all_well(comm, refusal is None, poller):
        raise TrainingError(refusal or "the master cannot use the run directory")
    try:
        scheme = share_scheme(comm, scheme if master else None, poller)
        ending = session.take_part(comm, config, scheme, problem, poller, resumed)
    except DisagreementError as error:
        raise TrainingError(str(error)) from None
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        comm.Abort(EXIT_FAILED)
        raise
    if ending is None:
        atexit.register(_end_together, None)
        return None
    atexit.register(_end_together, ending.figures["lost_workers"])
    if not ending.all_end:  # once the script is through
        atexit.register(comm.Abort, 0)
    if ending.reason is not None:
        raise TrainingError(ending.reason)
    return Result(ending.model, ending.figures)


def _end_together(lost: Collection[int] | None) -> None:
    """Once this rank's script is through: leave MPI, or, where a worker was lost, end without.

    MPI_Finalize sometimes waits for a rank that has died, for ever. Which were lost the master knows, and tells the
    others at its own end.
    """
    from mpi4py import MPI

    from mpi_runner.transport import Poller, wait

    comm, poller, some_lost = MPI.COMM_WORLD, Poller(), bytearray(1)
    try:
        if lost is None:
            wait(comm.Irecv(some_lost, source=0, tag=TAG), poller)
        else:
            some_lost[0] = bool(lost)
            for worker in set(range(comm.Get_size() - 1)) - set(lost):
                wait(comm.Isend(some_lost, dest=worker + 1, tag=TAG), poller)
    except MPI.Exception:  # one has died since
        some_lost[0] = True
    if some_lost[0]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(hasattr(sys, "last_value")))  # 1 after an exception that nobody has caught
