"""A worker and a master that says several things at once, while the worker does not look."""

from __future__ import annotations

import json
from pathlib import Path

from runner_support import script

# Rank 1 is a worker that looks five times a second: all that the master says between two looks is there at once.
PROGRAM = """
import json, time
import numpy as np
from mpi4py import MPI
from fastgc import schemes
from mpi_runner import delays, wire
from mpi_runner.models import Partition
from mpi_runner.randomness import Sampler
from mpi_runner.transport import Poller
from mpi_runner.wire import Wire
from mpi_runner.worker import Worker

comm, scheme = MPI.COMM_WORLD, schemes.uncoded(1)
layout = Wire(scheme, 8, "float32", "float32")


class Rare(Poller):
    def pause(self):
        time.sleep(0.2)


class Counting:
    calls = 0

    def initial(self):
        return np.zeros(8, np.float32)

    def partial_gradient(self, parameters, partition):
        self.calls += 1
        return np.ones(8, np.float32)


def work():
    model, rows = Counting(), np.zeros((1, 1), np.float32)
    partitions = {0: Partition(rows, rows[0])}
    Worker(comm, scheme, layout, model, partitions, delays.parse("none"), 0, Sampler(0, 1), Rare()).run()
    comm.send(model.calls, dest=0, tag=9)


def say(kind, iteration):
    buffer = layout.model_buffer() if kind == wire.MODEL else layout.control_buffer()
    comm.Send(layout.seal(buffer, kind, iteration), dest=1,
              tag=wire.TAG_MODEL if kind == wire.MODEL else wire.TAG_CONTROL)


def heard():
    inbox, status = layout.result_buffer(), MPI.Status()
    comm.Recv(inbox, source=1, tag=wire.TAG_RESULT, status=status)
    header = layout.read(inbox[: status.Get_count(MPI.BYTE)], dict.fromkeys(layout.sizes))
    return header.kind, header.iteration


def lead(told):
    answers = [heard()]
    for kind, iteration, answered in told:
        say(getattr(wire, kind), iteration)
        if answered:
            answers.append(heard())
    print(json.dumps({"answers": answers, "calls": comm.recv(source=1, tag=9)}))


if comm.Get_rank() == 1:
    work()
else:
    lead(TOLD)
"""
RESULT, READY, BYE = 4, 5, 7


def answers(folder: Path, told: list[tuple[str, int, bool]]) -> tuple[list[tuple[int, int]], int]:
    """What the worker says, the first READY left out, and how many gradients it has computed."""
    done = script(PROGRAM.replace("TOLD", repr(told)), 2, folder, seconds=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    first, *others = map(tuple, said["answers"])
    assert first == (READY, -1)
    return others, said["calls"]


def test_work_that_is_over_is_not_begun(tmp_path: Path) -> None:
    """Where SKIP, and one for an earlier iteration before it, is there together with the model."""
    told = [
        ("MODEL", 0, True), ("SKIP", 0, False), ("SKIP", 1, False), ("MODEL", 1, True), ("MODEL", 2, True),
        ("STOP", 2, True),
    ]  # fmt: skip
    assert answers(tmp_path, told) == ([(RESULT, 0), (READY, 1), (RESULT, 2), (BYE, -1)], 2)


def test_a_model_that_comes_together_with_stop(tmp_path: Path) -> None:
    """It is not worked for, and the worker says goodbye."""
    assert answers(tmp_path, [("MODEL", 0, True), ("MODEL", 1, False), ("STOP", 1, True)]) == (
        [(RESULT, 0), (BYE, -1)],
        1,
    )
