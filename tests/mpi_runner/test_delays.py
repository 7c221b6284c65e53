"""Delays: specifications, and draws that depend on (seed, worker, iteration) alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpi_runner import delays

PINNED = {
    (0, 0, 0): 0.7698132801148031,
    (1, 0, 0): 0.9093882589165577,
    (0, 1, 0): 0.12254324881343892,
    (0, 0, 1): 0.11915560527358193,
    (1, 7, 59): 0.21969509317855562,
    (18446744073709551615, 23, 100000): 0.7860712247106924,
}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", delays.Delay(delays.NoDelay())),
        ("fixed:0.5:2", delays.Delay(delays.Fixed(0.5, 2))),
        ("fixed:0:0", delays.Delay(delays.Fixed(0.0, 0))),
        ("fixed:1e-3:12", delays.Delay(delays.Fixed(0.001, 12))),
        ("slow:0.1:4,0,2", delays.Delay(delays.Slow(0.1, (0, 2, 4)))),
        ("exponential:0.02", delays.Delay(delays.Exponential(0.02))),
        ("exponential:0.02:0.01", delays.Delay(delays.Exponential(0.02, 0.01))),
        ("uneven:0.02:0.01:1,0.5", delays.Delay(delays.Uneven(0.02, 0.01, (1.0, 0.5)))),
        ("exponential:-0.0", delays.Delay(delays.Exponential(0.0))),
        ("pareto:0.01:1.5", delays.Delay(delays.Pareto(0.01, 1.5))),
        ("markov:0.1:0.05:0.2", delays.Delay(delays.Markov(0.1, 0.05, 0.2))),
        ("replay:/runs/a:b+c", delays.Delay(delays.Replay("/runs/a:b+c"))),
        ("none+send:pareto:1:3", delays.Delay(delays.NoDelay(), delays.Pareto(1.0, 3.0))),
        ("fixed:1:2+send:none", delays.Delay(delays.Fixed(1.0, 2))),
        ("slow:1:0+send:replay:/r", delays.Delay(delays.Slow(1.0, (0,)), delays.Replay("/r"))),
        (
            "none@2:exponential:1+send:slow:1:0@30:replay:/a@b",
            delays.Delay(
                delays.NoDelay(),
                later=(
                    (2, delays.Delay(delays.Exponential(1.0), delays.Slow(1.0, (0,)))),
                    (30, delays.Delay(delays.Replay("/a@b"))),
                ),
            ),
        ),
    ],
)
def test_parse_and_back(spec: str, expected: delays.Delay) -> None:
    assert delays.parse(spec) == expected
    assert delays.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "None",
        "none:",
        "pareto:1",
        "pareto:1:1",
        "pareto:1:nan",
        "slow:1:",
        "slow:1:1,1",
        "slow:1:-1",
        "slow:1:0;1",
        "uneven:1:1",
        "uneven:1:1:1,0",
        "uneven:1:1:1,-2",
        "uneven:1:1:",
        "markov:1:0.5",
        "none@1:none",
        "none@9:none@9:none",
        "none@9:",
        "@9:none",
        "none@-9:none",
        "markov:1:0:0.5",
        "markov:1:0.5:1.5",
        "replay:",
        "replay",
        "none+send:",
        "none+send:fixed",
        "send:none",
        "none+send:none+send:none",
        "fixed",
        "fixed:1",
        "fixed:1:2:3",
        "fixed:-1:2",
        "fixed:nan:2",
        "fixed:inf:2",
        "fixed:1:2.0",
        "fixed:1:-2",
        "fixed:1:",
        "fixed:1:²",
        "exponential",
        "exponential:",
        "exponential:-1",
        "exponential:nan",
        "exponential:1:inf",
        "exponential:1:2:3",
        "exponential:x",
    ],
)
def test_bad_specification_says_what_and_what_is_allowed(spec: str) -> None:
    with pytest.raises(ValueError, match="is not one of none") as caught:
        delays.parse(spec)
    message = str(caught.value)
    assert repr(spec) in message
    assert "fixed:SECONDS:COUNT" in message
    assert "exponential:MEAN[:SHIFT]" in message
    assert "\n" not in message


def test_draws_are_pinned() -> None:
    """The stream is part of the format: recorded runs are replayed with it."""
    drawn = [delays.unit_draw(seed, worker, iteration) for seed, worker, iteration in PINNED]
    assert drawn == list(PINNED.values())


def test_draws_are_uniform_and_distinct() -> None:
    draws = np.array([delays.unit_draw(7, worker, iteration) for worker in range(40) for iteration in range(100)])
    assert len(set(draws)) == draws.size
    assert draws.min() > 0
    assert draws.max() < 1
    # Kolmogorov-Smirnov by hand: 1.95/√N is exceeded with probability 0.001.
    distance = np.abs(np.sort(draws) - (np.arange(draws.size) + 0.5) / draws.size).max()
    assert distance < 1.95 / math.sqrt(draws.size)


@pytest.mark.parametrize(("seed", "worker", "iteration"), [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_draws_refuse_what_is_out_of_range(seed: int, worker: int, iteration: int) -> None:
    with pytest.raises(ValueError, match=r"must be between 0 and 2\*\*64 - 1"):
        delays.unit_draw(seed, worker, iteration)


def test_none() -> None:
    delay = delays.parse("none")
    delay.check(1)
    assert delay.compute_seconds(1, 0, 0, 4, 8) == 0


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_fixed_delays_the_smallest_draws(count: int) -> None:
    delay = delays.parse(f"fixed:0.25:{count}")
    workers = 8
    delay.check(workers)
    chosen = set()
    for iteration in range(20):
        slow = {worker for worker in range(workers) if delay.compute_seconds(3, worker, iteration, 4, workers) > 0}
        order = sorted(range(workers), key=lambda worker: delays.unit_draw(3, worker, iteration))
        assert slow == set(order[:count])
        assert all(delay.compute_seconds(3, worker, iteration, 1, workers) == 0.25 for worker in slow)
        chosen.add(frozenset(slow))
    assert len(chosen) > 1 or count in (0, workers)


def test_fixed_needs_that_many_workers() -> None:
    with pytest.raises(ValueError, match=r"fixed:1.0:5: 5 delayed workers asked for, there are 4"):
        delays.parse("fixed:1:5").check(4)


def test_exponential_scales_one_draw_with_the_load() -> None:
    delay = delays.parse("exponential:0.02:0.01")
    for worker in range(5):
        unit = -math.log(delays.unit_draw(11, worker, 2))
        for load in (1, 2, 6):
            assert delay.compute_seconds(11, worker, 2, load, 5) == pytest.approx(
                load * (0.01 + 0.02 * unit), rel=1e-15
            )


def test_exponential_mean() -> None:
    delay = delays.parse("exponential:0.5")
    seconds = [delay.compute_seconds(5, worker, iteration, 1, 20) for worker in range(20) for iteration in range(200)]
    # The mean of N exponentials has standard deviation mean/√N: four of them.
    assert np.mean(seconds) == pytest.approx(0.5, rel=4 / math.sqrt(len(seconds)))


def test_uneven_workers_take_their_share_of_the_same_draw() -> None:
    even, uneven = delays.parse("exponential:0.02:0.01"), delays.parse("uneven:0.02:0.01:1,4,0.5")
    for worker, speed in enumerate((1.0, 4.0, 0.5)):
        expected = even.compute_seconds(3, worker, 7, 2, 3) / speed
        assert uneven.compute_seconds(3, worker, 7, 2, 3) == pytest.approx(expected, rel=1e-15)
    uneven.check(3)
    with pytest.raises(ValueError, match="3 speeds for 4 workers"):
        uneven.check(4)


EVERY = ["fixed:0.25:3", "slow:0.1:1,5", "exponential:0.02:0.01", "pareto:0.01:2", "markov:0.1:0.2:0.3"]
GRID = [(worker, iteration) for iteration in range(30) for worker in range(8)]


@pytest.mark.parametrize("spec", EVERY)
def test_schemes_differ_in_the_scaling_alone(spec: str) -> None:
    """Computing takes the load times as long, sending the share of the gradient's length; the draws stay the same."""
    delay = delays.parse(f"{spec}+send:{spec}")
    for worker, iteration in GRID:
        once = delay.compute_seconds(3, worker, iteration, 1, 8)
        sent = delay.send_seconds(3, worker, iteration, 1.0, 8)
        for load, share in ((2, 0.5), (3, 1 / 3), (7, 0.25)):
            scaled = (
                delay.compute_seconds(3, worker, iteration, load, 8),
                delay.send_seconds(3, worker, iteration, share, 8),
            )
            assert scaled == ((once, sent) if spec.startswith("fixed") else (load * once, share * sent))


@pytest.mark.parametrize("spec", ["fixed:0.25:3", "exponential:0.02", "pareto:0.01:2", "markov:0.1:0.2:0.3"])
def test_computing_and_sending_are_drawn_apart(spec: str) -> None:
    delay = delays.parse(f"{spec}+send:{spec}")
    computing = [delay.compute_seconds(3, worker, iteration, 1, 8) for worker, iteration in GRID]
    sending = [delay.send_seconds(3, worker, iteration, 1.0, 8) for worker, iteration in GRID]
    assert computing != sending
    # Uncorrelated: of N pairs the coefficient has standard deviation 1/√N. Ranks, since a Pareto tail has no variance.
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (computing, sending)]
    if spec.startswith(("exponential", "pareto")):
        assert abs(np.corrcoef(ranks)[0, 1]) < 4 / math.sqrt(len(GRID))


@pytest.mark.parametrize("spec", EVERY)
def test_draws_do_not_depend_on_what_was_asked_before(spec: str) -> None:
    forward = [delays.parse(spec).compute_seconds(9, worker, iteration, 2, 8) for worker, iteration in GRID]
    backward = [delays.parse(spec).compute_seconds(9, worker, iteration, 2, 8) for worker, iteration in reversed(GRID)]
    assert forward == backward[::-1]


def test_slow_names_the_same_workers_in_every_iteration() -> None:
    delay = delays.parse("slow:0.1:1,5")
    delay.check(6)
    assert {w for w, i in GRID if delay.compute_seconds(3, w, i, 1, 8) > 0} == {1, 5}
    with pytest.raises(ValueError, match=r"slow:0.1:1,5: there is no worker 5 among 5, counted from 0"):
        delay.check(5)


def test_a_change_counts_from_its_iteration_on() -> None:
    before, after = "exponential:0.5:1+send:fixed:2:1", "fixed:3:4+send:exponential:0:7"
    changing = delays.parse(f"{before}@3:{after}")
    for iteration in range(5):
        now = delays.parse(before if iteration < 2 else after)
        assert changing.at(iteration) == now
        for worker in range(4):
            key = (9, worker, iteration)
            assert changing.compute_seconds(*key, 3, 4) == now.compute_seconds(*key, 3, 4)
            assert changing.send_seconds(*key, 0.5, 4) == now.send_seconds(*key, 0.5, 4)
    with pytest.raises(ValueError, match="4 delayed workers asked for, there are 3"):
        changing.check(3)


def test_pareto_has_its_tail() -> None:
    delay = delays.parse("pareto:0.5:2")
    seconds = np.array([delay.compute_seconds(5, worker, i, 1, 20) for worker in range(20) for i in range(200)])
    assert seconds.min() >= 0.5
    for longer in (0.7, 1.0, 2.0):
        expected = (0.5 / longer) ** 2
        deviation = math.sqrt(expected * (1 - expected) / seconds.size)
        assert np.mean(seconds > longer) == pytest.approx(expected, abs=4 * deviation)


@pytest.mark.parametrize(("enter", "leave"), [(0.05, 0.2), (0.9, 0.8), (0.3, 0.7), (1.0, 1.0), (0.2, 1.0)])
def test_markov_is_the_chain_it_says(enter: float, leave: float) -> None:
    """The state found backwards is that of the chain run forwards, and it changes as often as it should."""
    kind = delays.Markov(1.0, enter, leave)
    moves = np.zeros((2, 2))
    started = 0
    for worker in range(60):
        states = [kind.slow(4, worker, iteration) for iteration in range(50)]
        started += states[0]
        state = states[0]
        for iteration in range(1, 50):
            u = delays.unit_draw(4, worker, iteration)
            moves[int(state)] += (not states[iteration], states[iteration])
            state = u < 1 - leave if state else u < enter
            assert state == states[iteration]
    for row, chance in ((0, enter), (1, 1 - leave)):
        visits = moves[row].sum()
        assert moves[row, 1] / visits == pytest.approx(
            chance, abs=4 * math.sqrt(chance * (1 - chance) / visits) + 1e-12
        )
    share = enter / (enter + leave)
    assert started / 60 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 60))


def test_speed_is_the_hosts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(delays.SPEED, raising=False)
    assert delays.own_speed() == 1.0
    monkeypatch.setenv(delays.SPEED, "0.25")
    assert delays.own_speed() == 0.25
