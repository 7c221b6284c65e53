"""Waiting: soon noticed, and cheap while nothing comes. What it takes of a core is in `bench.runner_overhead`."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI

from mpi_runner import transport
from mpi_runner.transport import LONGEST, SHARE, SHORTEST, UNRUNG, Poller

LOOK = 10e-6  # seconds that a look takes, of the clock below


class Clock:
    """Time that passes while one sleeps or looks, and not otherwise: other processes have no part in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(transport, "time", clock)
    return clock


def looks(poller: Poller, clock: Clock, seconds: float) -> int:
    """How often is looked for something that is there after `seconds`, of the clock."""
    count, begun = 0, clock.now

    def there() -> bool:
        nonlocal count
        count += 1
        clock.now += LOOK
        return clock.now - begun >= seconds

    poller.until(there)
    return count


@pytest.mark.parametrize("seconds", [1e-3, 0.01, 0.1, 2.0, 60.0])
def test_an_idle_rank_looks_for_few_percent_of_its_time_and_notices_soon(seconds: float, clock: Clock) -> None:
    count = looks(Poller(), clock, seconds)
    assert clock.now - seconds <= max(SHARE * seconds, SHORTEST) + LOOK  # noticed in proportion to what was waited,
    assert clock.now - seconds <= LONGEST + LOOK  # and within a millisecond
    assert max(clock.sleeps) <= LONGEST
    # From the tenth millisecond on there are a thousand looks a second, and before it as many as its logarithm takes.
    assert count <= 1.02 * seconds / LONGEST + np.log(LONGEST / SHORTEST) / SHARE + 60
    if seconds >= 2:
        assert count * LOOK <= 0.02 * seconds


def test_one_that_heard_something_looks_often_again(clock: Clock) -> None:
    poller = Poller()
    looks(poller, clock, 1.0)
    for restarted in (False, True):
        if restarted:
            poller.restart()
        poller.pause()
        assert clock.sleeps[-1] == pytest.approx(SHORTEST if restarted else LONGEST)


class FakeBell:
    """A bell that is rung at a time of the clock's."""

    def __init__(self, clock: Clock, rung: float) -> None:
        self._clock = clock
        self._rung = rung

    def wait(self, seconds: float) -> bool:
        heard = self._clock.now <= self._rung <= self._clock.now + seconds
        self._clock.sleep(self._rung - self._clock.now if heard else seconds)
        return heard


@pytest.mark.parametrize("seconds", [1e-3, 0.01, 0.1, 2.0, 60.0])
@pytest.mark.parametrize("rung", [True, False])
def test_a_bell_wakes_at_once_and_is_not_relied_on(seconds: float, rung: bool, clock: Clock) -> None:
    count = looks(Poller(bell=FakeBell(clock, seconds if rung else np.inf)), clock, seconds)
    assert clock.now - seconds <= (0 if rung else UNRUNG) + 2 * LOOK
    assert count <= seconds / UNRUNG + 2
    assert max(clock.sleeps) <= UNRUNG


def test_no_pause_is_longer_than_it_may_be(clock: Clock) -> None:
    for poller in (Poller(), Poller(bell=FakeBell(clock, np.inf))):
        looks(poller, clock, 1.0)
        poller.pause(1e-4)
        assert clock.sleeps[-1] == 1e-4


def test_spinning_looks_all_the_time(clock: Clock) -> None:
    assert looks(Poller(spin=True), clock, 1.0) == pytest.approx(1.0 / LOOK, abs=2)
    assert not clock.sleeps


def test_a_wait_for_mpi_ends_when_the_message_is_there() -> None:
    buffer, poller = np.zeros(8, np.uint8), Poller()
    receive = MPI.COMM_SELF.Irecv(buffer, source=0, tag=1)
    send = MPI.COMM_SELF.Isend(np.arange(8, dtype=np.uint8), dest=0, tag=1)
    transport.wait(receive, poller)
    transport.wait(send, poller)
    assert buffer.tolist() == list(range(8))
