"""Looking at a run from outside of it, by what its directory holds: one that goes on, or one that is over."""

from __future__ import annotations

import platform
import time
from dataclasses import fields
from pathlib import Path

from mpi_runner import processes
from mpi_runner.config import TrainConfig
from mpi_runner.display import Display, Follower
from mpi_runner.launch import LOOK_SECONDS
from mpi_runner.reading import read_run
from mpi_runner.records import read_facts, read_outcome, read_processes


def watch(folder: Path) -> int:
    """Show a run until it is over; the exit status is 0 however that is.

    A master on another host that ends without a word is not noticed: Ctrl-C leaves.
    """
    facts = read_facts(folder)
    known = {field.name for field in fields(TrainConfig)}
    config = TrainConfig(**{name: value for name, value in facts["config"].items() if name in known})
    scheme = facts.get("scheme", {}).get("name", config.scheme)
    with Display(config, scheme) as display:
        follower = Follower(str(folder), display)
        follower.look()
        while not _over(folder):
            time.sleep(LOOK_SECONDS)
            follower.look()
        follower.look()
        if (figures := follower.figures()) is not None:
            display.summary(figures)
        display.stop()
        display.say(read_run(folder).status)
    return 0


def _over(folder: Path) -> bool:
    """Whether the run has ended, in order or not, as far as can be seen from here."""
    if read_outcome(folder) is not None:
        return True
    ranks = read_processes(folder)
    return bool(ranks) and ranks[0].host == platform.node() and processes.find(ranks[0]) is None
