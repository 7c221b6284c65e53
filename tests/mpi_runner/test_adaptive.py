"""The choice of the reduction: the replay, what it learns from, and choices on clusters in numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cluster_model import ClusterModel, away, exponential, pareto

from fastgc import schemes
from mpi_runner.adaptive import Cost, ReductionPolicy, Replay, completed

SCHEME = schemes.adaptive(8, 4)
N, D, T = 8, 4, 240
HALF = T // 2
MB = 1e6


def exponential_times(mean: float, shift: float, seed: int = 0) -> Any:
    return exponential(T, N, D, mean, shift, seed)


def then(before: Any, after: Any) -> Any:
    return np.concatenate([before[:HALF], after[HALF:]])


def changing(before: float, after: float) -> Any:
    return lambda t: before if t < HALF else after


# The replay -----------------------------------------------------------------------------------------------------------


def test_without_stragglers_an_iteration_is_the_sum_of_its_parts() -> None:
    replay = Replay([range(4), range(4, 8)], load=4)
    times = replay.seconds(np.full((6, 8), 0.1), Cost(0.02, 1e-9), {1: 10**8, 2: 5 * 10**7}, 0, 0.001)
    for m, size in ((1, 10**8), (2, 5 * 10**7)):
        np.testing.assert_allclose(times[m], 0.1 + 0.02 + 1e-9 * size + 0.001)


@pytest.mark.parametrize("spare", [0, 1, 5])
def test_an_iteration_waits_for_the_slowest_group(spare: int) -> None:
    own = np.array([[1.0, 2.0, 3.0, 4.0, 1.5, 2.5, 3.5, 4.5]])
    replay = Replay([range(4), range(4, 8)], load=10**6)
    times = replay.seconds(own, Cost(0.0, 0.0), dict.fromkeys((1, 2, 3, 4), 0), spare, 0.0)
    for m, seconds in times.items():
        # The first of the replayed iterations is the warm-up; the abandoned work of it has cost next to nothing.
        assert seconds[-1] == pytest.approx([1.5, 2.5, 3.5, 4.5][min(m + spare, 4) - 1], abs=1e-5)


def test_abandoned_work_ends_with_its_partition_and_a_message_under_way_is_sent() -> None:
    # Worker 0 is done at 1. Worker 1 finds that out at the end of its second partition of 0.8, at 1.6, and begins the
    # next then. Worker 2 has computed at 0.9 and sends until 1.9.
    own = np.array([[0.0, 3.2, 0.9]])
    cost, sizes = Cost(0.0, 1.0), {1: 1}
    replay = Replay([range(3)], load=4)
    replay.WARM_UP = 0
    np.testing.assert_allclose(replay.seconds(own, cost, sizes, 0, 0.0)[1], [1.0])
    second = np.array([[0.0, 3.2, 0.9], [9.0, 0.1, 0.2]])
    # After 1: worker 1 at 1.6 + 0.1 + 1, worker 2 at 1.9 + 0.2 + 1.
    np.testing.assert_allclose(replay.seconds(second, cost, sizes, 0, 0.0)[1], [1.0, 1.7])


# Times that are only known to be longer -------------------------------------------------------------------------------


def test_known_times_stay_and_others_become_longer_ones() -> None:
    own = np.array([[1.0, np.nan], [5.0, 2.0], [3.0, 7.0], [6.0, 4.0]])
    censored = np.array([[False, False], [False, True], [True, False], [True, True]])
    made = completed(own, censored)
    assert np.isfinite(made).all()
    known = np.isfinite(own) & ~censored
    np.testing.assert_array_equal(made[known], own[known])
    assert (made[censored] > own[censored]).all()
    assert made[2, 0] in (5.0, made[3, 0])  # of its own worker's, the longest of which was put in for another
    assert not completed(np.full((2, 2), np.nan), np.zeros((2, 2), bool)).any()


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_means_and_tails_are_found_from_the_first_answers_of_each_group(kept: int) -> None:
    true = 0.05 + np.random.default_rng(kept).exponential(0.1, size=(2000, 4))
    over = np.sort(true, axis=1)[:, kept - 1 : kept]
    made = completed(np.minimum(true, over), true > over)
    for order in range(4):  # the mean of each order statistic, those that were never seen included
        found, wanted = np.sort(made, axis=1)[:, order].mean(), np.sort(true, axis=1)[:, order].mean()
        assert found == pytest.approx(wanted, rel=0.12), order


# Choices --------------------------------------------------------------------------------------------------------------

STEADY = {
    "thin links": ClusterModel(SCHEME, exponential_times(0.002, 0.002), 12 * MB, 12 * MB),
    "thin on the way up alone": ClusterModel(SCHEME, exponential_times(0.004, 0.002), 12 * MB, 1e12),
    "slow computing": ClusterModel(SCHEME, exponential_times(0.02, 0.005), 100 * MB, 100 * MB),
    "balanced": ClusterModel(SCHEME, exponential_times(0.01, 0.01), 40 * MB, 40 * MB),
    "two away": ClusterModel(SCHEME, away(T, N, 0.02, 0.3, 2), 40 * MB, 40 * MB),
    "a heavy tail": ClusterModel(SCHEME, pareto(T, N, D, 0.01, 1.5), 50 * MB, 50 * MB),
    "always the same slow ones": ClusterModel(
        SCHEME, 0.05 + 0.2 * np.isin(np.arange(N), (1, 5)) * np.ones((T, 1)), 20 * MB, 20 * MB
    ),
    "a master's thin link": ClusterModel(SCHEME, exponential_times(0.005, 0.005), 100 * MB, 100 * MB, 100 * MB),
    "a master's link that all share": ClusterModel(
        SCHEME, exponential_times(0.02, 0.005), 200 * MB, 200 * MB, 200 * MB
    ),
}


@pytest.mark.parametrize("name", STEADY)
def test_the_best_reduction_is_found_and_kept(name: str) -> None:
    cluster = STEADY[name]
    fixed = {m: float(cluster.run(m).seconds.mean()) for m in SCHEME.reductions}
    trained = cluster.run(cluster.policy())
    assert trained.seconds.mean() <= 1.05 * min(fixed.values()), (fixed, trained.switches)
    assert len(trained.switches) <= 10  # no flapping
    late = trained.reductions[HALF:]
    best = min(fixed, key=lambda m: fixed[m])
    close = [m for m in fixed if fixed[m] <= 1.05 * fixed[best]]
    assert np.isin(late, close).mean() > 0.9


CHANGES = {
    "links collapse": ClusterModel(
        SCHEME, exponential_times(0.01, 0.005), changing(200 * MB, 10 * MB), changing(200 * MB, 10 * MB)
    ),
    "links recover": ClusterModel(
        SCHEME, exponential_times(0.01, 0.005), changing(10 * MB, 200 * MB), changing(10 * MB, 200 * MB)
    ),
    "the way up collapses": ClusterModel(SCHEME, exponential_times(0.01, 0.005), changing(200 * MB, 10 * MB), 1e12),
    "computing becomes slow": ClusterModel(
        SCHEME, then(exponential_times(0.001, 0.005), exponential_times(0.03, 0.005)), 30 * MB, 100 * MB
    ),
    "computing becomes even": ClusterModel(
        SCHEME, then(exponential_times(0.03, 0.005), exponential_times(0.001, 0.005)), 30 * MB, 100 * MB
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_followed_and_no_fixed_reduction_is_as_good(name: str) -> None:
    cluster = CHANGES[name]
    fixed = {m: cluster.run(m).seconds for m in SCHEME.reductions}
    trained = cluster.run(cluster.policy())
    assert trained.seconds.mean() < min(seconds.mean() for seconds in fixed.values()), trained.switches
    after = {m: float(seconds[HALF:].mean()) for m, seconds in fixed.items()}
    close = [m for m in after if after[m] <= 1.06 * min(after.values())]
    assert np.isin(trained.reductions[HALF + 40 :], close).mean() > 0.8, (after, trained.switches)


@pytest.mark.parametrize("seed", range(8))
def test_regret_is_bounded_on_random_clusters(seed: int) -> None:
    generator = np.random.default_rng([seed, 77])
    scheme = schemes.adaptive(*[(6, 3), (8, 4), (12, 6), (10, 5)][seed % 4])
    own = exponential(150, scheme.workers, scheme.load, *generator.uniform(0.001, 0.02, 2), seed)
    up, down = 10 ** generator.uniform(6.8, 8.3, 2)
    cluster = ClusterModel(scheme, own, float(up), float(max(up, down)))
    fixed = [float(cluster.run(m).seconds.mean()) for m in scheme.reductions]
    trained = cluster.run(cluster.policy())
    assert trained.seconds.mean() <= 1.12 * min(fixed), (fixed, trained.switches)
    assert len(trained.switches) <= 12


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_the_reduction_is_never_above_the_live_workers_of_a_group(seed: int, spare: int) -> None:
    generator = np.random.default_rng([seed, 3])
    lost = generator.permutation(N)[:5]
    dead = {int(w): int(t) for w, t in zip(lost, generator.integers(5, T // 2, 5), strict=True)}
    dead = {w: t for w, t in dead.items() if w not in (0, 4)}  # somebody is left in each group
    cluster = ClusterModel(SCHEME, exponential_times(0.002, 0.002, seed), 12 * MB, 12 * MB, dead=dead)
    trained = cluster.run(cluster.policy(spare))
    for t, m in enumerate(trained.reductions):
        live = [sum(t < dead.get(w, T) for w in group.workers) for group in SCHEME.groups]
        assert m <= max(1, min(live) - spare)
    assert trained.reductions.max() > trained.reductions[-1]


def test_a_switch_says_what_was_predicted_and_switches_are_a_chain() -> None:
    cluster = CHANGES["links collapse"]
    trained = cluster.run(cluster.policy())
    assert trained.switches
    for switch in trained.switches:
        assert trained.reductions[switch.iteration] == switch.after != switch.before
        assert trained.reductions[switch.iteration - 1] == switch.before
        assert switch.predicted_after < switch.predicted_before
    assert all(one.after == two.before for one, two in pairwise(trained.switches))


def test_what_bytes_cost_is_found_from_two_sizes() -> None:
    up = 10 * MB
    cluster = ClusterModel(SCHEME, exponential_times(0.004, 0.002), up, 1e12)
    policy = cluster.policy()
    cluster.run(policy, last=25)
    likely, least, most = policy.costs()
    assert likely.a_byte == pytest.approx(1 / up, rel=0.1)
    assert least.a_byte <= likely.a_byte <= most.a_byte
    assert most.a_byte - least.a_byte < 0.1 * likely.a_byte


@pytest.mark.parametrize(("name", "at"), [("balanced", 1), ("two away", 4), ("balanced", 9), ("two away", 31)])
def test_a_policy_goes_on_from_its_state(name: str, at: int) -> None:
    cluster = STEADY[name]
    policy = cluster.policy()
    cluster.run(policy, last=at)
    state = {key: value.copy() for key, value in policy.state().items()}
    assert all(value.dtype != object for value in state.values())
    again = cluster.policy()
    again.restore(state)
    assert again.reduction == policy.reduction
    on, other = cluster.run(policy, first=at, last=at + 60), cluster.run(again, first=at, last=at + 60)
    np.testing.assert_array_equal(on.reductions, other.reductions)
    np.testing.assert_array_equal([s[:5] for s in on.switches], [s[:5] for s in other.switches])


def test_one_iteration_begun_anew_counts_once() -> None:
    policy = ReductionPolicy(SCHEME, {m: 100 // m for m in SCHEME.reductions}, 100)
    policy.begin(0)
    policy.begin(0)
    switch = policy.force(1, "too few")
    assert (switch.iteration, switch.after) == (0, 1)
    policy.begin(0)
    assert len(policy.state()["rows"]) == 1
