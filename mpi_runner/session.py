"""One rank of a training run, from the arguments to the end: agree, load, work."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from mpi4py import MPI

from fastgc import GradientCode
from mpi_runner import checkpoint, delays, problems, wire
from mpi_runner.adaptive import ReductionPolicy
from mpi_runner.agreement import DisagreementError, disagreement
from mpi_runner.bells import Bells, install
from mpi_runner.cache import DataError
from mpi_runner.checkpoint import Checkpoint
from mpi_runner.config import TrainConfig, UsageError, build_scheme, check_settings, measures_speeds
from mpi_runner.deadlines import Deadline
from mpi_runner.faults import CannotDecode, HangDeadline
from mpi_runner.gathering import Gathering
from mpi_runner.launch import EXIT_FAILED, EXIT_LOST, LAUNCHED, SIGNALLED, signals_noted
from mpi_runner.master import Interrupted, Master
from mpi_runner.models import Vector, has_loss
from mpi_runner.problems import Problem
from mpi_runner.randomness import Sampler
from mpi_runner.records import RunRecords, read_survivors, summarize
from mpi_runner.resuming import begin, ready
from mpi_runner.speeds import measure
from mpi_runner.transport import (
    Poller,
    all_well,
    first_on_host_first,
    gather_identities,
    share_config,
    share_number,
    share_scheme,
)
from mpi_runner.wire import Wire
from mpi_runner.worker import MasterLost, Worker

if TYPE_CHECKING:
    from mpi_runner.display import Display

EXIT_USAGE = 2
FINALIZE_SECONDS = 5


def train(make_config: Callable[[], TrainConfig], resume: bool = False, quiet: bool = False) -> int:
    """Take part in a run as whichever rank this process is; returns its exit status.

    The configuration is made on the master, and sent to the others. With `resume` the run goes on from its newest
    checkpoint. An exception in one rank ends the whole job: the others would wait for it for ever.
    """
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        status = _take_part(MPI.COMM_WORLD, make_config, resume, quiet)
        _finalize()
        return status
    except MasterLost as error:
        complain(f"worker {MPI.COMM_WORLD.Get_rank() - 1} has lost its master: {error}")
        MPI.COMM_WORLD.Abort(EXIT_FAILED)
        raise
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(EXIT_FAILED)
        raise


def _take_part(comm: MPI.Intracomm, make_config: Callable[[], TrainConfig], resume: bool, quiet: bool) -> int:
    poller = Poller()
    config: TrainConfig | None = None
    scheme: GradientCode | None = None
    resumed: Checkpoint | None = None
    if comm.Get_rank() == 0:
        try:
            config = make_config()
            if comm.Get_size() != config.workers + 1:
                raise UsageError(
                    f"--workers {config.workers} needs {config.workers + 1} MPI ranks, a master's and the workers'; "
                    f"there are {comm.Get_size()}"
                )
            scheme, resumed = ready(config, resume)
            if LAUNCHED not in os.environ:  # else that is done
                begin(config, resumed)
        except UsageError as error:
            complain(error)
            scheme = None
    if not all_well(comm, comm.Get_rank() > 0 or scheme is not None, poller):
        return EXIT_USAGE
    config = share_config(comm, config, poller)
    scheme = share_scheme(comm, scheme, poller)
    poller = Poller(spin=config.poll == "spin")
    if not first_on_host_first(comm, partial(_data_there, config, True), partial(_data_there, config, False), poller):
        return EXIT_USAGE
    problem = problems.attach(config)
    speeds: list[float] | None = None
    # A run that goes on has the scheme that it was left with.
    master = comm.Get_rank() == 0
    if measures_speeds(config) and share_number(comm, int(resumed is None) if master else None, poller):
        speeds = measure(comm, config, problem, poller)
        rebuilt = _sharing(config, speeds) if master else None
        if not all_well(comm, rebuilt is not None or not master, poller):
            return EXIT_USAGE
        scheme = share_scheme(comm, rebuilt, poller)
    try:
        ending = take_part(comm, config, scheme, problem, poller, resumed, quiet, speeds)
    except DisagreementError:  # the rank that knows more has said so
        return EXIT_USAGE
    if ending is None:
        return 0
    if not ending.all_end:
        comm.Abort(ending.status)
    return ending.status


def _sharing(config: TrainConfig, speeds: list[float]) -> GradientCode | None:
    """The scheme for speeds that were measured, or None, and a complaint."""
    try:
        scheme = build_scheme(config, speeds)
        check_settings(config, scheme)
    except UsageError as error:
        complain(error)
        return None
    return scheme


class Ending(NamedTuple):
    """How a run has ended, for its master."""

    status: int
    """Exit status: 0, `EXIT_LOST`, or 128 + the number of the signal that ended it."""
    reason: str | None
    """Of another status than 0, in one line."""
    model: Vector
    figures: dict[str, Any]
    all_end: bool
    """Whether all workers have ended or are about to; MPI_Finalize would wait for others."""


def take_part(
    comm: MPI.Intracomm,
    config: TrainConfig,
    scheme: GradientCode,
    problem: Problem,
    poller: Poller,
    resumed: Checkpoint | None = None,
    quiet: bool = False,
    speeds: list[float] | None = None,
) -> Ending | None:
    """Do this rank's part of a run that all agree on; the workers return nothing.

    The master goes on from `resumed`, where that is given, and records `speeds`, where they were measured.

    Raises
    ------
    DisagreementError
        On every rank, before the first iteration.
    MasterLost
        On a worker; it is left to the caller to end it.
    """
    number = comm.Get_rank() - 1
    messages = scheme.in_parts(config.parts)
    sampler = Sampler(config.seed, messages.partitions, config.batch)
    own = messages.assignment[number * config.parts : (number + 1) * config.parts] if number >= 0 else ()
    partitions = {held: problem.load_train(held, messages.partitions) for part in own for held in part}
    complaint = disagreement(comm, messages, problem.model, partitions, sampler, poller, config.parts)
    if complaint is not None:
        complain(complaint)
    if not all_well(comm, complaint is None, poller):
        raise DisagreementError(complaint or "workers find different gradients of the same partition")
    layout = Wire(
        scheme,
        len(problem.model.initial()),
        config.model_dtype or config.dtype,
        config.message_dtype or config.dtype,
        share_number(comm, secrets.randbits(64) if number < 0 else None, poller),
        config.error_feedback,
        config.parts,
    )
    bells = None if config.poll == "spin" else install(comm, layout.sizes[wire.MODEL], poller)
    with nullcontext() if bells is None else closing(bells):
        if number < 0:
            return _lead(comm, config, scheme, layout, problem, poller, bells, resumed, quiet, speeds)
        gather_identities(comm, poller)
        delay = delays.parse(config.delay)
        Worker(comm, scheme, layout, problem.model, partitions, delay, config.seed, sampler, poller, bells).run()
    return None


def complain(error: Exception | str) -> None:
    """Say in one line what is wrong."""
    print(f"mpi_runner: error: {error}", file=sys.stderr, flush=True)


def _show_warning(message: Warning | str, *where: Any) -> None:
    print(f"mpi_runner: warning: {message}", file=sys.stderr, flush=True)


@contextmanager
def _warnings_noted(note: Callable[[str], None]) -> Iterator[None]:
    """Have warnings written down as well as shown."""
    shown = warnings.showwarning

    def note_and_show(message: Warning | str, *where: Any, **more: Any) -> None:
        note(f"warning: {message}")
        shown(message, *where, **more)

    warnings.showwarning = note_and_show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _data_there(config: TrainConfig, prepare: bool) -> bool:
    try:
        (problems.prepare if prepare else problems.attach)(config)
    except (DataError, ValueError) as error:
        complain(error)
        return False
    return True


def _lead(
    comm: MPI.Intracomm,
    config: TrainConfig,
    scheme: GradientCode,
    layout: Wire,
    problem: Problem,
    poller: Poller,
    bells: Bells | None,
    resumed: Checkpoint | None,
    quiet: bool,
    speeds: list[float] | None,
) -> Ending:
    model, optimizer = problem.model, problem.make_optimizer()
    test = problem.load_test()
    run = secrets.token_hex(16)
    if resumed is not None:
        optimizer.restore(resumed.state)
        run = resumed.run
    with (
        RunRecords(config, scheme, run, speeds) as records,
        _shown(config, scheme, quiet) as display,
        signals_noted() as received,
        _warnings_noted(records.log),
    ):
        identities = gather_identities(comm, poller)
        records.processes(identities)
        begun = "goes on" if resumed else "begins"
        records.log(f"{scheme.name} {begun} with {len(identities)} ranks on {len({i.host for i in identities})} hosts")

        def evaluate(iteration: int) -> float | None:
            if config.evaluate_every and iteration % config.evaluate_every == 0:
                return next(iter(model.evaluate(optimizer.model, test).values()))
            return None

        def after_step(iteration: int, loss: float, seconds: float, score: float | None) -> None:
            if display is not None:
                display.iteration(iteration, loss, seconds, score)
            if config.checkpoint_every and iteration % config.checkpoint_every == 0:
                save()

        def save() -> None:
            state = optimizer.state()
            chosen = policy.state() if policy is not None else resumed.policy if resumed is not None else {}
            content = Checkpoint(run, master.iterations, master.elapsed, config, scheme, state, chosen)
            checkpoint.write(records.folder, content)

        def interrupted() -> int | None:
            return received[0] if received else None

        deadline = HangDeadline(config.hang_deadline)
        gathering = Gathering(
            scheme.in_parts(config.parts),
            len(optimizer.parameters),
            optimizer.parameters.dtype,
            layout.rounding,
            None if config.deadline is None else Deadline(config.deadline, config.workers),
            config.verify,
        )
        policy = None
        if len(scheme.reductions) > 1 and config.survivors_from is None:
            sizes = {m: layout.size(wire.RESULT, m) for m in scheme.reductions}
            policy = ReductionPolicy(scheme, sizes, layout.sizes[wire.MODEL], spare=int(config.verify))
            if resumed is not None and resumed.policy:
                policy.restore(resumed.policy)
        master = Master(
            comm, scheme, layout, optimizer, problem.l2, records, poller, identities[1:], deadline, gathering,
            interrupted, has_loss(model), policy, bells,
        )  # fmt: skip
        recorded = None
        if config.survivors_from:
            recorded = read_survivors(Path(config.survivors_from), scheme, config.parts)
        status, reason = 0, None
        done = resumed.iteration if resumed else 0
        try:
            master.await_ready()
            master.run(
                config.iterations,
                evaluate,
                after_step,
                done=done,
                elapsed=resumed.elapsed if resumed else 0.0,
                recorded=recorded,
            )
        except CannotDecode as error:
            status, reason = EXIT_LOST, str(error)
        except Interrupted as error:
            status, reason = SIGNALLED + error.number, str(error)
        save()
        figures = master.figures()
        if reason is None:
            evaluation = model.evaluate(optimizer.model, test)
            figures = {
                "scheme": scheme.name,
                "model": config.model,
                "data": config.data,
                "measure": next(iter(evaluation)),
                **{f"test_{name}": value for name, value in evaluation.items()},
                **summarize(records.iteration_seconds(done)),
                **figures,
                "step": getattr(optimizer, "step", None),
                "l2": problem.l2,
                "train_rows": problem.train_rows,
            }
            records.model(np.asarray(optimizer.model))
            records.summary(figures)
            if display is not None:
                display.summary(figures)
        else:
            complain(reason)
        records.log(f"ends with status {status}" + (f": {reason}" if reason else ""))
        records.outcome(status, reason)
        all_end = master.stop()
        figures |= {"lost_workers": master.lost_workers}
        if reason is None:  # again: a worker may have been found lost only when it was told to stop
            records.summary(figures)
    return Ending(status, reason, optimizer.model, figures, all_end)


def _shown(config: TrainConfig, scheme: GradientCode, quiet: bool) -> AbstractContextManager[Display | None]:
    if LAUNCHED in os.environ:  # whoever started us shows the run, from what is recorded
        return nullcontext()
    from mpi_runner.display import Display  # no other rank draws, and Rich takes a fifteenth of a rank's start

    return Display(config, scheme.name, quiet)


def _finalize() -> None:
    """Leave MPI while the buffers that it may still hold are there. It waits for every rank: end that after a while."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(FINALIZE_SECONDS)
    MPI.Finalize()
    signal.alarm(0)
