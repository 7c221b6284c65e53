"""Waiting: soon noticed, and cheap while nothing comes."""

from __future__ import annotations

import json
import subprocess
import sys

WAIT = """
import json, sys, time
import numpy as np
from mpi4py import MPI
from mpi_runner.transport import Poller

SECONDS = 2.0
poller = Poller(spin=sys.argv[1] == "spin")
buffer = np.zeros(8, np.uint8)
request = MPI.COMM_SELF.Irecv(buffer, source=0, tag=1)  # nobody sends
start, burnt, looks = time.perf_counter(), time.process_time(), 0

def there():
    global looks
    looks += 1
    return request.Test() or time.perf_counter() - start > SECONDS

poller.until(there)
print(json.dumps({"waited": time.perf_counter() - start, "cpu": time.process_time() - burnt, "looks": looks}))
request.Cancel()
request.Wait()
"""


def wait(how: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", WAIT, how], capture_output=True, text=True, timeout=60, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def test_an_idle_rank_takes_at_most_5_percent_of_a_core() -> None:
    seen = wait("backoff")
    assert seen["cpu"] <= 0.05 * seen["waited"]
    assert seen["looks"] >= 2.0 / 1e-3 / 4  # every millisecond at the latest, with room for a busy machine


def test_spinning_looks_all_the_time() -> None:
    assert wait("spin")["looks"] > 20 * wait("backoff")["looks"]
