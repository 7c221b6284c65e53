"""Survivor sets that are remembered: a set met before is what a new one is, and nothing else passes for it."""

from __future__ import annotations

import copy
import enum
import gc
import pickle
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scheme_table import (
    CONSTRUCTED,
    SAMPLED,
    Array,
    Case,
    gradients,
    larger_sets,
    messages,
    names,
    promised_sets,
    same_bits,
)

from fastgc import GradientCode, NotDecodableError, schemes
from fastgc.survivors import KEPT_SETS

SEED = 41
CASES = CONSTRUCTED[::3] + SAMPLED[::4]


def outcome(decode: Callable[[Array], Any], length: int, dtype: Any = np.float64) -> tuple[Any, ...]:
    """The bits of a result; or the error, who it says answered, and that nothing was written."""
    out = np.full(length, np.nan, dtype)
    try:
        assert decode(out) is out
    except (TypeError, ValueError) as error:
        assert np.isnan(out).all()
        named = (error.survivors, error.missing) if isinstance(error, NotDecodableError) else ()
        return type(error), str(error), named
    return (out.tobytes(),)


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_a_set_met_before_decodes_as_a_new_one(case: Case) -> None:
    """Bits, errors and look-ups, in any order of the messages, whatever else was met between."""
    rng = np.random.default_rng(SEED)
    scheme, length = case.fresh(), 2 * case.scheme.reduction + 1
    sent = messages(scheme, gradients(scheme.partitions, length, np.float64, SEED))
    sets = promised_sets(scheme, 12)[:12] + larger_sets(scheme, 6)
    sets += [tuple(sorted(rng.permutation(scheme.workers)[:size].tolist())) for size in range(scheme.workers)]
    first: dict[tuple[int, ...], tuple[Any, ...]] = {}
    for turn in range(3):
        for number in rng.permutation(len(sets)):
            survivors = sets[number]
            given = {int(w): sent[w] for w in rng.permutation(np.array(survivors, dtype=int))}
            before = scheme.patterns.hits + scheme.patterns.misses
            found = outcome(lambda out, given=given: scheme.decode(given, length, out=out), length)  # type: ignore[misc]
            asked = scheme.patterns.hits + scheme.patterns.misses - before
            assert asked == (len(scheme.groups) if len(found) == 1 else 0)
            assert (len(found) == 1) == scheme.is_decodable(survivors)
            assert first.setdefault(survivors, found) == found, f"{survivors}, seed {SEED}, turn {turn}"
    other = case.fresh()
    for survivors, found in first.items():
        given = {w: sent[w] for w in survivors}
        assert outcome(lambda out, given=given: other.decode(given, length, out=out), length) == found  # type: ignore[misc]


class Number(enum.IntEnum):
    ONE = 1


class Pairs(Mapping[Any, Any]):
    """A mapping whose keys are as they are given: also such that are equal, or cannot be hashed."""

    def __init__(self, *pairs: tuple[Any, Any]) -> None:
        self._pairs = pairs

    def __getitem__(self, key: Any) -> Any:
        return next(value for known, value in self._pairs if known == key)

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


def with_keys(*keys: Any) -> Callable[[list[Array]], Mapping[Any, Array]]:
    """Messages of workers 1, 2, 3, … under other keys."""
    return lambda sent: Pairs(*((key, sent[worker]) for worker, key in enumerate(keys, start=1)))


REFUSED: list[tuple[str, Callable[[list[Array]], Mapping[Any, Array]], type[Exception], str]] = [
    ("bool", with_keys(True, 2, 3), TypeError, r"messages\[0\] must be an integer .*, not True"),
    ("float", with_keys(1, 2, 3.0), TypeError, r"messages\[2\] must be an integer .*, not 3\.0"),
    ("NumPy's bool", with_keys(np.True_, 2, 3), TypeError, r"messages\[0\] must be an integer"),
    ("NumPy's float", with_keys(1, np.float64(2), 3), TypeError, r"messages\[1\] must be an integer"),
    ("complex", with_keys(1, 2 + 0j, 3), TypeError, r"messages\[1\] must be an integer .*, not \(2\+0j\)"),
    ("too large", with_keys(1, 2, 4), ValueError, r"messages\[2\] must be .* at most 3, not 4"),
    ("negative", with_keys(1, -2, 3), ValueError, r"messages\[1\] must be an integer of at least 0 .*, not -2"),
    ("text", with_keys(1, 2, "3"), TypeError, r"messages\[2\] must be an integer .*, not '3'"),
    ("no hash", with_keys(1, [2], 3), TypeError, r"messages\[1\] must be an integer .*, not \[2\]"),
    ("twice", lambda sent: Pairs(*((w, sent[w]) for w in (1, 2, 3, 2))), ValueError, "messages must not repeat: 2"),
    ("a list", lambda sent: sent[1:], TypeError, "messages must be a mapping .*, not list"),  # type: ignore[arg-type, return-value]
    ("none", lambda sent: {}, NotDecodableError, r"survivors \[\] do not determine"),
    ("too few", lambda sent: {1: sent[1]}, NotDecodableError, r"survivors \[1\] do not .* missing are \[0, 2, 3\]"),
]
TAKEN = [with_keys(np.int64(1), np.uint8(2), 3), with_keys(Number.ONE, 2, 3), with_keys(1, 2, 3)]


@pytest.mark.parametrize("met", [False, True], ids=["new", "met"])
@pytest.mark.parametrize(("given", "kind", "pattern"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_only_equals_a_worker_is_none(
    given: Callable[[list[Array]], Mapping[Any, Array]], kind: type[Exception], pattern: str, met: bool
) -> None:
    scheme = schemes.grouped(4, 4, 2)
    sent = messages(scheme, gradients(4, 6, np.float64, SEED))
    if met:
        for survivors in ((1, 2, 3), (0, 1, 2, 3), (1, 2)):
            scheme.decode({w: sent[w] for w in survivors}, 6)
    out = np.full(6, np.nan)
    for _ in range(2):
        before = scheme.patterns.hits, scheme.patterns.misses
        with pytest.raises(kind, match=pattern) as caught:
            scheme.decode(given(sent), 6, out=out)
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)
        assert np.isnan(out).all()
        assert (scheme.patterns.hits, scheme.patterns.misses) == before


@pytest.mark.parametrize("given", TAKEN, ids=["NumPy", "enum", "int"])
def test_what_is_an_integer_is_a_worker(given: Callable[[list[Array]], Mapping[Any, Array]]) -> None:
    scheme = schemes.grouped(4, 4, 2)
    sent = messages(scheme, gradients(4, 6, np.float64, SEED))
    first = scheme.decode(given(sent), 6)
    assert same_bits(first, scheme.decode({3: sent[3], 1: sent[1], 2: sent[2]}, 6))
    assert same_bits(first, scheme.decode(given(sent), 6))
    assert (scheme.patterns.hits, scheme.patterns.misses) == (2, 1)


@pytest.mark.parametrize("bad", [np.ones(4), np.ones(3, np.float32), np.ones((1, 3)), [1.0] * 3, None])
def test_messages_are_looked_at_whatever_is_known_of_their_workers(bad: Any) -> None:
    scheme, fresh = schemes.grouped(6, 3, 2), schemes.grouped(6, 3, 2)
    sent = messages(scheme, gradients(6, 6, np.float64, SEED))
    scheme.decode(dict(enumerate(sent)), 6)
    for worker in range(6):
        given = {**dict(enumerate(sent)), worker: bad}
        found = outcome(lambda out, given=given: scheme.decode(given, 6, out=out), 6)  # type: ignore[misc]
        assert found == outcome(lambda out, given=given: fresh.decode(given, 6, out=out), 6)  # type: ignore[misc]
        assert found[1].startswith("messages[")


def test_the_number_of_sets_remembered_is_bounded() -> None:
    """More sets than are kept, some of them known and forgotten again: memory stays, and so do the bits."""
    scheme = schemes.grouped(14, 14, 2)
    sent = messages(scheme, gradients(14, 5, np.float32, SEED))
    sets = list(combinations(range(14), 5))
    assert len(sets) > KEPT_SETS + 900

    def decode(survivors: tuple[int, ...]) -> bytes:
        return scheme.decode({w: sent[w] for w in survivors}, 5).tobytes()

    scheme.patterns.maxsize = 1
    first = [decode(survivors) for survivors in sets[:KEPT_SETS]]
    tracemalloc.start()
    try:
        for survivors in sets[KEPT_SETS:]:
            decode(survivors)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(scheme._sets._known) == KEPT_SETS
    assert grown < 2048 * KEPT_SETS  # those that went have made room
    assert [decode(survivors) for survivors in sets[:KEPT_SETS:7]] == first[::7]


@pytest.mark.parametrize(("groups", "kept"), [(1, 1024), (16, 1024), (17, 963), (150, 109)])
def test_of_many_workers_fewer_sets_are_remembered(groups: int, kept: int) -> None:
    sets = schemes.fractional_repetition(2 * groups, 1)._sets
    for missing in range(min(2 * groups, kept + 50)):
        sets.of("survivors", [worker for worker in range(2 * groups) if worker != missing])
    assert len(sets._known) == min(2 * groups, kept)


def test_sets_that_are_asked_about_are_not_remembered() -> None:
    """A master that asks after every arrival drives none of the sets out that it decodes."""
    scheme = schemes.grouped(8, 4, 2)
    assert sum(scheme.is_decodable(s) for size in range(9) for s in combinations(range(8), size)) == 121
    assert len(scheme._sets._known) == 0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda scheme: pickle.loads(pickle.dumps(scheme))])
def test_a_copy_remembers_for_itself(copied: Callable[[GradientCode], GradientCode]) -> None:
    scheme = schemes.grouped(6, 3, 2)
    sent = messages(scheme, gradients(6, 7, np.float32, SEED))
    given = {w: sent[w] for w in (0, 2, 4, 5)}
    expected = scheme.decode(given, 7)
    other = copied(scheme)
    assert (other.patterns.hits, other.patterns.misses, other.patterns.size) == (0, 0, 0)
    assert same_bits(other.decode(given, 7), expected)
    assert other._sets is not scheme._sets


def test_a_scheme_goes_with_its_last_reference() -> None:
    """Neither what it remembers nor its cache of patterns holds it in a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        scheme = schemes.grouped(6, 3, 2)
        sent = messages(scheme, gradients(6, 7, np.float32, SEED))
        scheme.decode(dict(enumerate(sent)), 7)
        collector = scheme.collector(7, np.float32)
        for worker, message in enumerate(sent):
            collector.add(worker, message)
        collector.gradient()
        seen = weakref.ref(scheme)
        sets = weakref.ref(scheme._sets)
        del scheme, collector
        assert seen() is None
        assert sets() is None
    finally:
        if enabled:
            gc.enable()
