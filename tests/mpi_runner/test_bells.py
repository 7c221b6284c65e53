"""Bells: who sleeps is woken, ringing too often or in vain loses nothing, and where they will not do nobody has one."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from runner_support import script

from mpi_runner.bells import Bells

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ranks have no bells")

SOON, LONG = 0.02, 30.0  # seconds

# Every rank says whether it has bells; where all have, the last one sleeps until the first has seen that it does.
PROGRAM = """
import json, time
from mpi4py import MPI
from mpi_runner.bells import install
from mpi_runner.transport import Poller

comm = MPI.COMM_WORLD
bells = install(comm, 1_000_000, Poller())
woken = None
if bells is not None and comm.Get_rank() == comm.Get_size() - 1:
    woken = bells.wait(30.0)
elif bells is not None and comm.Get_rank() == 0:
    time.sleep(0.2)
    bells.ring(comm.Get_size() - 1)
found = comm.gather((bells is not None, woken), root=0)
if comm.Get_rank() == 0:
    print(json.dumps(found))
"""


@pytest.fixture
def pair() -> Iterator[tuple[Bells, Bells]]:
    with closing(Bells("fastgc-test", 0, 2)) as first, closing(Bells("fastgc-test", 1, 2)) as second:
        yield first, second


def test_a_ring_wakes_at_once(pair: tuple[Bells, Bells]) -> None:
    first, second = pair
    timer = threading.Timer(0.1, first.ring, [1])
    timer.start()
    begun = time.perf_counter()
    assert second.wait(LONG)
    assert time.perf_counter() - begun < LONG / 2
    timer.join()


def test_a_ring_before_the_sleep_is_heard_and_many_are_one(pair: tuple[Bells, Bells]) -> None:
    first, second = pair
    for _ in range(10_000):  # more than fit, and nobody waits
        first.ring(1)
    assert second.wait(LONG)
    assert not second.wait(SOON)
    first.ring(1)
    assert second.wait(LONG)
    assert not first.wait(SOON)  # nobody else was woken


def test_ringing_who_is_gone_is_no_error_and_a_name_is_free_again(pair: tuple[Bells, Bells]) -> None:
    first, second = pair
    second.close()
    first.ring(1)
    with closing(Bells("fastgc-test", 1, 2)) as again:
        first.ring(1)
        assert again.wait(LONG)


def test_a_name_that_is_taken_is_an_error(pair: tuple[Bells, Bells]) -> None:
    with pytest.raises(OSError, match="in use"):
        Bells("fastgc-test", 1, 2)


@pytest.mark.parametrize("options", [(), ("--mca", "smsc", "^cma")], ids=["copied at once", "in pieces"])
def test_ranks_have_bells_where_messages_need_no_further_help(options: tuple[str, ...], tmp_path: Path) -> None:
    done = script(PROGRAM, 3, tmp_path, options, seconds=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if options:
        assert found == [[False, None]] * 3
    else:
        assert found == [[True, None], [True, None], [True, True]]
