"""Delays recorded by an earlier run: its directory read as a trace of how long each worker took."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from fastgc import schemes

COMPLETE = ("used", "late")
"""Outcomes of messages whose worker did all of its work; who abandoned it took longer than was recorded."""


class ReplayError(Exception):
    """A directory that is no run, or has nothing to replay; the message is one line."""


@dataclass(frozen=True)
class Trace:
    """What each worker took in each iteration of a recorded run.

    Computing: the seconds of computing and of injected delay, for 1/n of the data with n workers. Sending:
    the seconds on the way, down and up, that is all between the model's being sent and the message's arrival but the
    worker's own, scaled from the message's length to the gradient's.

    A worker that had not answered when an iteration ended took longer than anybody knows: it is given the time until
    then for its computing, and none for sending. An iteration beyond the recorded ones is taken from the start again.

    Attributes
    ----------
    workers, iterations : int
    """

    workers: int
    iterations: int
    _computing: dict[tuple[int, int], float]
    _sending: dict[tuple[int, int], float]
    _censored: tuple[tuple[float, ...], ...]  # by iteration and worker

    def computing(self, worker: int, iteration: int) -> float:
        """Return the seconds a unit of work, which is 1/n of the data."""
        key = (worker, iteration % self.iterations)
        return self._computing.get(key, self._censored[key[1]][worker])

    def sending(self, worker: int, iteration: int) -> float:
        """Return the seconds a message of the gradient's length."""
        return self._sending.get((worker, iteration % self.iterations), 0.0)

    @classmethod
    def read(cls, folder: str) -> Trace:
        """Read a run directory; ReplayError where it is none."""
        path = Path(folder)
        try:
            facts = json.loads((path / "config.json").read_text("utf-8"))
            reduction, parts = int(facts["scheme"]["reduction"]), int(facts["config"]["parts"])
            scheme = schemes.load(path / "scheme.npz")
            loads = [len(partitions) * scheme.workers / scheme.partitions for partitions in scheme.assignment]
            waits = {int(row["iteration"]) - 1: _until_ready(row) for row in _rows(path / "iterations.csv")}
            arrivals = list(_rows(path / "arrivals.csv"))
            iterations = len(waits)
            if iterations == 0:
                raise ReplayError(f"{folder} has no iterations to replay")
            computing, sending = {}, {}
            done: dict[tuple[int, int], int] = {}  # parts of the work
            for row in arrivals:
                worker, iteration = int(row["worker"]), int(row["iteration"]) - 1
                if row["outcome"] not in COMPLETE or iteration not in waits:
                    continue
                own = float(row["compute"]) + float(row["delay"])
                total = float(row["arrived"]) - float(row["sent"])
                on_the_way = max(0.0, total - own - float(row["encode"]))
                done[worker, iteration] = done.get((worker, iteration), 0) + 1
                computing[worker, iteration] = own / (loads[worker] * done[worker, iteration] / parts)
                sending[worker, iteration] = on_the_way * int(row.get("reduction") or reduction)
            censored = tuple(tuple(waits[iteration] / load for load in loads) for iteration in range(iterations))
        except OSError as error:
            raise ReplayError(f"{folder} is not a run: {error.strerror}: {error.filename}") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ReplayError(f"{folder} is not a run that can be replayed: {error!r}") from None
        return cls(len(loads), iterations, computing, sending, censored)


def _until_ready(iteration: dict[str, str]) -> float:
    """The seconds until enough workers had answered."""
    return float(iteration["seconds"]) - float(iteration["decode"]) - float(iteration["update"])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
