"""A hostile rank: ten thousand messages that are corrupted, cut, too long, replayed or foreign. None is used.

Where work is in parts, the hostile rank sends each of its own parts again as well, and calls the last one of several.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runner_support import LIMIT, ROWS, SEED, single_model

from mpi_runner import flights
from mpi_runner.launch import find_mpirun

MESSAGES, WORKERS, ITERATIONS = 10_000, 4, 40

# Worker 2 sends, beside its own messages, bad ones to its master all the time, and to the other workers in the master's
# name. It counts those to the master, whose job it is to count them too.
HOSTILE = """
import sys
import numpy as np
from mpi4py import MPI
from fastgc import schemes
from mpi_runner import cli, wire, worker
from mpi_runner.wire import Wire

MESSAGES, EACH, NUMBER = {messages}, 40, 2
generator = np.random.default_rng({seed})


class Hostile(worker.Worker):
    sent, earlier = 0, None

    def _send(self, answer, iteration, spent=wire.NOTHING):
        if self._number != NUMBER or answer.kind == wire.BYE:
            return super()._send(answer, iteration, spent)
        self._attack(iteration)
        if answer.kind == wire.RESULT and len(self._order) > 1 and self.sent < MESSAGES:
            super()._send(answer._replace(kind=wire.PART), iteration, spent)  # of several, while it is the last
            Hostile.sent += 1
        super()._send(answer, iteration, spent)
        if answer.kind in (wire.RESULT, wire.PART):
            self.earlier = answer.outbox.buffer.copy()
            if answer.kind == wire.PART and self.sent < MESSAGES:
                super()._send(answer, iteration, spent)
                Hostile.sent += 1

    def _attack(self, iteration):
        for _ in range(min(EACH if iteration < {last} else MESSAGES, MESSAGES - self.sent)):
            message = self._bad(iteration)
            self._comm.Send(message, dest=worker.MASTER, tag=wire.TAG_RESULT)
            Hostile.sent += 1
            if self.sent % 100 == 0:
                self._comm.Isend(message[: wire.HEADER.size].copy(), dest=1, tag=wire.TAG_MODEL)
                self._comm.Isend(message[: wire.HEADER.size].copy(), dest=1, tag=wire.TAG_CONTROL)

    def _bad(self, iteration):
        layout, large = self._wire, self.sent % 20 == 0
        message = np.frombuffer(generator.bytes(layout.sizes[wire.RESULT]), np.uint8).copy() if large else (
            np.frombuffer(generator.bytes(200), np.uint8).copy())
        if large:
            message = layout.seal(message, wire.RESULT, iteration, worker=self._number)
            change = generator.integers(5)
            if change == 0:
                message[generator.integers(len(message))] ^= 1 << generator.integers(8)
            elif change == 1:
                message = message[: generator.integers(len(message))]
            elif change == 2:
                message = np.append(message, np.zeros(generator.integers(1, 100), np.uint8))
            elif change == 3 and self.earlier is not None:
                return self.earlier.copy()
            else:
                message = Wire(self._scheme, layout.length, "float32", layout.codec.name, 1).seal(
                    message, wire.RESULT, iteration, worker=self._number
                )
            return message
        change = generator.integers(6)
        if change == 0:  # noise, long enough or not
            return message[: generator.integers(200)]
        if change == 1:  # someone else's
            return layout.seal(message, wire.READY, iteration, worker=1).copy()
        if change == 2:  # what it was asked for long ago
            return layout.seal(message, wire.READY, iteration - 1, worker=self._number).copy()
        if change == 3:  # what only the master sends
            return layout.seal(message, wire.STOP, iteration, worker=self._number).copy()
        if change == 4:  # a goodbye before its time
            return layout.seal(message, wire.BYE, iteration, worker=self._number).copy()
        message = layout.seal(message, wire.READY, iteration, worker=self._number).copy()
        message[generator.integers(wire.HEADER.size)] ^= 1 << generator.integers(8)
        return message


from mpi_runner import session
session.Worker = Hostile
number = MPI.COMM_WORLD.Get_rank() - 1
status = cli.main(sys.argv[1:])
if number == NUMBER:
    print("sent", Hostile.sent, flush=True)
sys.exit(status)
"""


@pytest.mark.parametrize("parts", [1, 3])
def test_no_hostile_message_is_used_and_all_are_counted(data: flights.Flights, tmp_path: Path, parts: int) -> None:
    folder, program = tmp_path / "run", tmp_path / "hostile.py"
    program.write_text(HOSTILE.format(messages=MESSAGES, seed=SEED, last=ITERATIONS - 10))
    command = [find_mpirun(), "--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none", "-n", str(WORKERS + 1)]
    command += [sys.executable, str(program), "train", "--scheme", "grouped", "--load", "2", "--reduction", "2"]
    command += ["--workers", str(WORKERS), "--rows", str(ROWS), "--seed", str(SEED), "--run", str(folder)]
    command += ["--iterations", str(ITERATIONS), "--hang-deadline", str(LIMIT), "--parts", str(parts)]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, check=False, env={**os.environ, **root}
    )
    assert done.returncode == 0, done.stderr
    assert f"sent {MESSAGES}" in done.stdout
    summary = json.loads((folder / "summary.json").read_text())
    messages = summary["messages"]
    assert messages["rejected"] == MESSAGES, f"seed {SEED}"
    assert summary["lost_workers"] == []
    # A scheme without stragglers waits for worker 2 in every iteration: its own messages were all used, and no others.
    with (folder / "arrivals.csv").open(newline="") as file:
        used = [int(row["iteration"]) for row in csv.DictReader(file) if row["worker"] == "2"]
    assert used == [iteration for iteration in range(1, ITERATIONS + 1) for _ in range(parts)]
    assert messages["models"] == WORKERS * ITERATIONS
    assert messages["used"] == messages["models"] * parts
    assert messages["parts"] == messages["models"] * (parts - 1)
    assert 1 <= done.stderr.count("warning: dropped a message of worker 2") <= 10
    single = single_model(folder, data, ITERATIONS)
    model = np.load(folder / "model.npy", allow_pickle=False)
    assert np.linalg.norm(model - single) <= 1e-5 * np.linalg.norm(single)
