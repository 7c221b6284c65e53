"""The streaming encoder and collector: the same bits as encode and decode, whatever the order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
from scheme_table import (
    CONSTRUCTED,
    EXACT,
    FLOATS,
    SAMPLED,
    Array,
    Case,
    gradients,
    larger_sets,
    messages,
    names,
    promised_sets,
    same_bits,
    subsets,
)

from fastgc import GradientCode, NotDecodableError, schemes

ALL = EXACT + SAMPLED
SEED = 77
LENGTH = 37


def orders(items: tuple[int, ...], most: int, seed: int = SEED) -> list[tuple[int, ...]]:
    """All permutations where there are at most `most`, else so many random ones, the reverse among them."""
    if len(items) <= 4 or (len(items) == 5 and most >= 120):
        return list(permutations(items))
    rng = np.random.default_rng(seed)
    return [items[::-1]] + [tuple(rng.permutation(items).tolist()) for _ in range(most - 1)]


# Encoder --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CONSTRUCTED + SAMPLED[::4], ids=names(CONSTRUCTED + SAMPLED[::4]))
def test_encoder_has_the_bits_of_encode_in_every_order(case: Case, dtype: np.dtype[Any]) -> None:
    scheme = case.scheme
    values = gradients(scheme.partitions, LENGTH, dtype, SEED)
    sent = messages(scheme, values)
    buffer = np.empty(LENGTH, dtype)
    for worker in sorted({0, scheme.workers // 2, scheme.workers - 1}):
        encoder = scheme.encoder(worker, LENGTH, dtype)
        for order in orders(scheme.assignment[worker], 24):
            for partition in order:
                buffer[:] = values[partition]  # one buffer for all: an encoder that keeps a reference is found out
                encoder.add(partition, buffer)
            buffer[:] = np.nan
            assert same_bits(encoder.message(), sent[worker]), f"worker {worker}, order {order}, seed {SEED}"
            encoder.reset()


@pytest.mark.parametrize("case", CONSTRUCTED[::2], ids=names(CONSTRUCTED[::2]))
def test_every_worker_has_an_encoder(case: Case) -> None:
    scheme = case.scheme
    values = gradients(scheme.partitions, scheme.reduction + 1, np.float64, SEED)
    for worker, expected in enumerate(messages(scheme, values)):
        encoder = scheme.encoder(worker, values.shape[1], "float64")
        for partition in reversed(scheme.assignment[worker]):
            encoder.add(partition, values[partition])
        assert same_bits(encoder.message(), expected)


def test_encoder_says_what_is_not_there_and_keeps_nothing_bad() -> None:
    scheme = schemes.grouped(8, 4, 2)
    values = gradients(8, 6, np.float32, SEED)
    encoder = scheme.encoder(5, 6, np.float32)  # holds partitions 4 to 7
    encoder.add(6, values[6])
    bad: list[tuple[int, Any, type[Exception], str]] = [
        (3, values[3], ValueError, r"partition must be one of \[4, 5, 6, 7\], not 3"),
        (6, values[6], ValueError, "partition 6 was added already"),
        (4, values[4, :5], ValueError, r"gradient must have shape \(6,\), not \(5,\)"),
        (4, values[4:5], ValueError, r"gradient must have shape \(6,\), not \(1, 6\)"),
        (4, values[4].astype(np.float64), TypeError, "gradient must have element type float32, not float64"),
        (4, values[4].astype(int), TypeError, "gradient .*int64"),
    ]
    for partition, gradient, kind, pattern in bad:
        with pytest.raises(kind, match=pattern):
            encoder.add(partition, gradient)
    with pytest.raises(ValueError, match=r"partitions \[4, 5, 7\] have not been added"):
        encoder.message()
    for partition in (4, 7, 5):
        encoder.add(partition, values[partition])
    with pytest.raises(ValueError, match="partition 5 was added already"):
        encoder.add(5, values[5])
    assert same_bits(encoder.message(), scheme.encode(5, values[4:]))
    assert encoder.message() is encoder.message()


# Collector ------------------------------------------------------------------------------------------------------------


def collected(
    scheme: GradientCode, sent: list[Array], order: tuple[int, ...], length: int, *, ask_after: int = 1000
) -> Array:
    """The gradient from messages in this order; what the collector says on the way is checked against the scheme."""
    collector = scheme.collector(length, sent[0].dtype)
    heard: list[int] = []
    for i, worker in enumerate(order):
        collector.add(worker, sent[worker])
        heard.append(worker)
        if i < ask_after:
            assert collector.survivors == tuple(sorted(heard))
            assert collector.missing == tuple(w for w in range(scheme.workers) if w not in heard)
            assert collector.ready == scheme.is_decodable(heard)
    return collector.gradient()


@pytest.mark.parametrize("case", ALL, ids=names(ALL))
def test_collector_has_the_bits_of_decode_for_every_set_in_any_order(case: Case) -> None:
    """Messages beyond those needed come before the others, after them and in between."""
    scheme = case.scheme
    dtype = FLOATS[len(case.name) % 2]
    length = LENGTH if scheme.workers > 12 else 2 * scheme.reduction + 1
    sent = messages(scheme, gradients(scheme.partitions, length, dtype, SEED))
    rng = np.random.default_rng(SEED)
    most = 40 if scheme.workers > 12 else 1000
    for number, survivors in enumerate(promised_sets(scheme, most) + larger_sets(scheme, 25)):
        expected = scheme.decode({w: sent[w] for w in survivors}, length)
        order = tuple(rng.permutation(survivors).tolist())
        gradient = collected(scheme, sent, order, length, ask_after=1000 if number % 8 == 0 else 0)
        assert same_bits(gradient, expected), f"order {order}, seed {SEED}"


TINY = [case for case in EXACT if case.scheme.workers <= 5]


@pytest.mark.parametrize("case", TINY, ids=names(TINY))
def test_collector_in_every_order_of_every_subset(case: Case) -> None:
    scheme = case.scheme
    sent = messages(scheme, gradients(scheme.partitions, 7, np.float32, SEED))
    for survivors in subsets(scheme.workers):
        if scheme.is_decodable(survivors):
            expected = scheme.decode({w: sent[w] for w in survivors}, 7)
            for order in permutations(survivors):
                assert same_bits(collected(scheme, sent, order, 7, ask_after=0), expected), order


@pytest.mark.parametrize("groups", range(1, 9))
def test_collector_of_any_number_of_groups(groups: int) -> None:
    """Their results are added along a tree; the last message may come for any of them."""
    scheme = schemes.grouped(3 * groups, 3, 2)
    sent = messages(scheme, gradients(3 * groups, LENGTH, np.float32, SEED))
    rng = np.random.default_rng(SEED)
    for _ in range(40):
        order = tuple(rng.permutation(3 * groups).tolist())
        for count in range(2 * groups, 3 * groups + 1):
            heard = order[:count]
            if scheme.is_decodable(heard):
                expected = scheme.decode({w: sent[w] for w in heard}, LENGTH)
                assert same_bits(collected(scheme, sent, heard, LENGTH, ask_after=0), expected), f"{heard}, seed {SEED}"


@pytest.fixture
def scheme() -> GradientCode:
    return schemes.grouped(6, 3, 2)


@pytest.fixture
def sent(scheme: GradientCode) -> list[Array]:
    return messages(scheme, gradients(6, 8, np.float64, SEED))


def test_too_few_messages_are_an_error_and_more_may_come(scheme: GradientCode, sent: list[Array]) -> None:
    collector = scheme.collector(8, np.float64)
    out = np.full(8, np.nan)
    for worker in (4, 0, 5):
        collector.add(worker, sent[worker])
    with pytest.raises(NotDecodableError, match=r"survivors \[0, 4, 5\].*missing are \[1, 2, 3\]") as caught:
        collector.gradient(out=out)
    assert (caught.value.survivors, caught.value.missing) == ((0, 4, 5), (1, 2, 3))
    assert np.isnan(out).all()
    collector.add(2, sent[2])
    assert collector.ready
    assert collector.gradient(out=out) is out
    assert same_bits(out, scheme.decode({w: sent[w] for w in (0, 2, 4, 5)}, 8))


def test_the_set_is_fixed_once_the_gradient_is_taken(scheme: GradientCode, sent: list[Array]) -> None:
    collector = scheme.collector(8, np.float64)
    for worker in (0, 1, 3, 4):
        collector.add(worker, sent[worker])
    first = collector.gradient()
    with pytest.raises(ValueError, match="worker 5 comes after the gradient was taken"):
        collector.add(5, sent[5])
    assert collector.survivors == (0, 1, 3, 4)
    again = collector.gradient()
    assert again is not first
    assert same_bits(again, first)
    collector.reset()
    assert (collector.survivors, collector.missing, collector.ready) == ((), tuple(range(6)), False)
    with pytest.raises(NotDecodableError):
        collector.gradient()
    for worker in (5, 4, 2, 1, 0):
        collector.add(worker, 2 * sent[worker])
    second = collector.gradient()
    assert same_bits(second, scheme.decode({w: 2 * sent[w] for w in (0, 1, 2, 4, 5)}, 8))
    first_again = scheme.decode({w: sent[w] for w in (0, 1, 3, 4)}, 8)
    assert same_bits(first, first_again)  # what was returned is not the collector's own memory


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_results_do_not_change_when_the_collector_is_used_again(groups: int) -> None:
    scheme = schemes.grouped(2 * groups, 2, 1)
    collector = scheme.collector(5, np.float32)
    results = []
    for step in range(4):
        sent = messages(scheme, gradients(2 * groups, 5, np.float32, step))
        for worker in range(step % 2, 2 * groups, 2):
            collector.add(worker, sent[worker])
        results.append(collector.gradient())
        assert same_bits(results[-1], scheme.decode({w: sent[w] for w in range(step % 2, 2 * groups, 2)}, 5))
        collector.reset()
    kept = [r.copy() for r in results]
    for worker in range(2 * groups):
        collector.add(worker, np.full(5, 9.0, np.float32))
    collector.gradient()
    assert all(same_bits(a, b) for a, b in zip(results, kept, strict=True))


BAD: list[tuple[str, int, Any, type[Exception], str]] = [
    ("unknown worker", 6, np.ones(4), ValueError, "worker .*at most 5, not 6"),
    ("negative worker", -1, np.ones(4), ValueError, "worker .*not -1"),
    ("worker twice", 3, np.ones(4), ValueError, "worker 3 was added already"),
    ("too long", 0, np.ones(5), ValueError, r"message must have shape \(4,\), not \(5,\)"),
    ("2-D", 0, np.ones((1, 4)), ValueError, r"message must have shape \(4,\), not \(1, 4\)"),
    ("another type", 0, np.ones(4, np.float32), TypeError, "message must have element type float64, not float32"),
    ("integers", 0, np.ones(4, int), TypeError, "message .*int64"),
    ("a list", 0, [1.0] * 4, TypeError, "message: expected an array of NumPy, .* got list"),
]


@pytest.mark.parametrize(("worker", "message", "kind", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_messages_are_not_kept(
    scheme: GradientCode, sent: list[Array], worker: int, message: Any, kind: type[Exception], pattern: str
) -> None:
    collector = scheme.collector(8, np.float64)
    collector.add(3, sent[3])
    with pytest.raises(kind, match=pattern):
        collector.add(worker, message)
    assert collector.survivors == (3,)
    for w in (0, 1, 4):
        collector.add(w, sent[w])
    assert same_bits(collector.gradient(), scheme.decode({w: sent[w] for w in (0, 1, 3, 4)}, 8))


@pytest.mark.parametrize("workers", [3, 6, 9])
def test_bad_out_is_refused_and_untouched(workers: int) -> None:
    """With one group, two and three."""
    scheme = schemes.grouped(workers, 3, 2)
    memory = np.arange(8.0 * workers)
    kept = memory.copy()
    collector = scheme.collector(8, np.float64)
    for worker in range(workers):
        collector.add(worker, memory[4 * worker : 4 * worker + 4])
    outs: list[tuple[Any, type[Exception], str]] = [
        (memory[2:10], ValueError, "out.*overlap"),
        (np.zeros(7), ValueError, "out.*7"),
        (np.zeros(8, np.float32), TypeError, "out.*float32"),
        (np.zeros(16)[::2], ValueError, "out.*(contiguous|next)"),
    ]
    frozen = np.zeros(8)
    frozen.setflags(write=False)
    outs.append((frozen, ValueError, "out.*(read-only|writ)"))
    for out, kind, pattern in outs:
        before = np.copy(out)
        with pytest.raises(kind, match=pattern):
            collector.gradient(out=out)
        assert same_bits(np.ascontiguousarray(out), before)
    assert same_bits(memory, kept)
    assert same_bits(
        collector.gradient(), scheme.decode({w: memory[4 * w : 4 * w + 4] for w in range(workers)}, 8)
    )  # a refused out leaves the collector usable


def test_ignoring_stragglers_waits_for_all_but_them() -> None:
    scheme = schemes.ignore_stragglers(5, 2)
    sent = messages(scheme, gradients(5, 9, np.float64, SEED))
    for survivors in combinations(range(5), 3):
        collector = scheme.collector(9, np.float64)
        for count, worker in enumerate(survivors, start=1):
            assert not collector.ready
            collector.add(worker, sent[worker])
            assert collector.ready == (count == 3)
        assert same_bits(collector.gradient(), scheme.decode({w: sent[w] for w in survivors}, 9))


def test_messages_are_decoded_once_whatever_comes_before_the_gradient_is_taken() -> None:
    """No pattern of too few or too many survivors on the way is ever weighed: one look-up a group."""
    scheme = schemes.grouped(30, 3, 2)
    sent = messages(scheme, gradients(30, 8, np.float64, SEED))
    collector = scheme.collector(8, np.float64)
    for worker in range(30):
        collector.add(worker, sent[worker])
    assert scheme.patterns.hits + scheme.patterns.misses == 0
    collector.gradient()
    assert scheme.patterns.hits + scheme.patterns.misses == 10


def test_bad_arguments() -> None:
    scheme = schemes.uncoded(3)
    bad: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: scheme.collector(-1, np.float32), ValueError, "length .*not -1"),
        (lambda: scheme.collector(4, np.int64), TypeError, "dtype .*int64"),
        (lambda: scheme.encoder(3, 4, np.float32), ValueError, "worker .*not 3"),
        (lambda: scheme.encoder(0, 0, np.float32), ValueError, "length .*not 0"),
        (lambda: scheme.encoder(0, 2.5, np.float32), TypeError, "length .*not 2.5"),  # type: ignore[arg-type]
    ]
    for call, kind, pattern in bad:
        with pytest.raises(kind, match=pattern):
            call()


def test_weights_that_the_element_type_cannot_hold() -> None:
    """A weight of 1e40 is not finite in float32."""
    scheme = schemes.from_coefficients([[0], [1]], [[[1e-40]], [[1.0]]])
    collector = scheme.collector(3, np.float32)
    for worker in range(2):
        collector.add(worker, np.ones(3, np.float32))
    out = np.full(3, 7.0, np.float32)
    with pytest.raises(ValueError, match="float32"):
        collector.gradient(out)
    assert (out == 7).all()
