"""Self-checking: no wrong message above the floor is missed, no clean one is accused, and offenders are named."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scheme_table import Array, encoding, gradients, messages, same_bits, scale

import fastgc
from fastgc import CorruptMessageError, GradientCode, Noise, NotDecodableError, Verified, codes, linalg, schemes
from fastgc.verification import BLOCK

SEED = 20261124
SCHEMES = [
    schemes.grouped(8, 4, 2),
    schemes.grouped(7, 7, 3),
    schemes.grouped(12, 6, 3),
    schemes.grouped(10, 5, 1, code="gaussian"),
    schemes.grouped(16, code=codes.reed_muller(1, 3)),
    schemes.grouped(7, code=codes.hamming(3)),
    schemes.grouped(11, 4, 2, uneven=True),
    schemes.fractional_repetition(8, 3),
    schemes.cyclic_repetition(8, 3),
    schemes.cyclic_mds(9, 4),
    schemes.polynomial_gaussian(8, 3, 2),
    schemes.from_coefficients(
        [(0, 1), (1, 2), (0, 2), (0, 1, 2)], [[[0.5], [1]], [[1], [-1]], [[0.5], [1]], [[1]] * 3]
    ),
]
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
KINDS = ("element", "small element", "message", "nan", "infinity", "sign", "stale", "zero", "scaled")


def random_survivors(scheme: GradientCode, rng: np.random.Generator) -> list[int]:
    """Decodable, with somebody to spare in some group."""
    while True:
        count = int(rng.integers(scheme.workers - scheme.stragglers, scheme.workers + 1))
        survivors = sorted(rng.permutation(scheme.workers)[:count].tolist())
        if scheme.is_decodable(survivors) and any(d for d, _ in scheme.verifiable(survivors).groups):
            return survivors


def corrupted(message: Array, stale: Array, kind: str, least: float, rng: np.random.Generator) -> Array:
    """A wrong message: `least` is how far off an element must be to be seen for certain."""
    wide = message.astype(np.float64)
    place = int(rng.integers(len(wide)))
    if kind == "element":
        wide[place] += rng.choice([-1, 1]) * least * 10.0 ** rng.uniform(0.5, 6)
    elif kind == "small element":
        wide[place] += rng.choice([-1, 1]) * least * 1.1
    elif kind == "message":
        wide = np.abs(wide).max() * rng.standard_normal(len(wide))
    elif kind in ("nan", "infinity"):
        wide[place] = np.nan if kind == "nan" else rng.choice([-np.inf, np.inf])
    elif kind == "sign":
        wide = -wide
    elif kind == "stale":
        wide = stale.astype(np.float64)
    elif kind == "zero":
        wide[:] = 0
    else:
        wide *= rng.choice([0.5, 1.5, 2.0, 128.0])
    with np.errstate(over="ignore"):
        return wide.astype(message.dtype)


class Runs:
    """Messages of two iterations of a scheme, of many lengths, made once."""

    def __init__(self, scheme: GradientCode, dtype: np.dtype[Any], length: int, seed: int) -> None:
        self.scheme, self.length = scheme, length
        self.values = gradients(scheme.partitions, length, dtype, seed)
        self.sent = messages(scheme, self.values)
        self.stale = messages(scheme, gradients(scheme.partitions, length, dtype, seed + 1))
        self.noise = Noise(scale=scale(self.values))


def floors_of(scheme: GradientCode, survivors: list[int], dtype: np.dtype[Any], run: Runs) -> dict[int, float]:
    """The least error of an element of each worker's message that is noticed for certain."""
    largest = max(float(np.abs(run.sent[w].astype(np.float64)).max()) for w in survivors)
    floors = scheme.detection_floor(survivors, dtype)
    return {worker: floor * largest for worker, floor in floors.items()}


TIMES = [pytest.param(400, id="some"), pytest.param(2500, id="all", marks=pytest.mark.soak)]
"""Corruptions, and as many clean decodings, of each of four element types: 10⁴ in the soak."""


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wrong_messages_are_seen_and_named_and_clean_ones_are_not_accused(dtype: np.dtype[Any], times: int) -> None:
    """Of every kind and scheme."""
    rng = np.random.default_rng(SEED)
    runs = [Runs(s, dtype, int(rng.integers(16, 400)), k) for s in SCHEMES for k in range(4)]
    seen = dict.fromkeys(KINDS, 0)
    named = 0
    for number in range(times):
        run = runs[number % len(runs)]
        scheme = run.scheme
        survivors = random_survivors(scheme, rng)
        where = f"{scheme.name}, survivors {survivors}, length {run.length}, case {number}, seed {SEED}"
        clean = {w: run.sent[w] for w in survivors}
        verified = scheme.decode(clean, run.length, verify=True)
        assert verified.corrupt == (), where
        assert verified.survivors == tuple(survivors), where
        assert same_bits(verified.gradient, scheme.decode(clean, run.length)), where

        counts = scheme.verifiable(survivors).groups
        floors = floors_of(scheme, survivors, dtype, run)
        group = int(rng.choice([g for g, (detectable, _) in enumerate(counts) if detectable]))
        liars = [w for w in survivors if scheme.place(w)[0] == group]
        liars = sorted(rng.permutation(liars)[: int(rng.integers(1, counts[group][0] + 1))].tolist())
        kind = str(rng.choice(KINDS))
        told = dict(clean)
        for worker in liars if kind != "small element" else liars[:1]:
            told[worker] = corrupted(clean[worker], run.stale[worker], kind, floors[worker], rng)
        if not visible(scheme, group, survivors, clean, told, floors):
            continue
        seen[kind] += 1
        liars = [w for w in liars if not same_bits(told[w], clean[w])]
        verified, suspects = attempt(scheme, told, run.length)
        if verified is None:
            assert set(suspects) <= set(survivors), where
            assert set(suspects) & set(liars), where
            continue
        assert verified.corrupt, f"{kind} of workers {liars} missed: {where}"
        if len(liars) <= counts[group][1]:
            assert set(verified.corrupt) <= set(liars), where
            left = [w for w in survivors if w not in verified.corrupt]
            assert same_bits(verified.gradient, scheme.decode({w: told[w] for w in left}, run.length)), where
            named += 1
    assert min(seen.values()) > times // 25, seen
    assert named > times // 4


def attempt(scheme: GradientCode, told: dict[int, Array], length: int) -> tuple[Verified | None, tuple[int, ...]]:
    """The verified gradient, or the suspects."""
    try:
        return scheme.decode(told, length, verify=True), ()
    except CorruptMessageError as error:
        return None, error.suspects


def visible(
    scheme: GradientCode,
    group: int,
    survivors: list[int],
    clean: dict[int, Array],
    told: dict[int, Array],
    floors: dict[int, float],
) -> bool:
    """Whether some column of the errors is far enough from every gradient's messages: found by projection."""
    members = [w for w in survivors if scheme.place(w)[0] == group]
    rows = encoding(scheme)[members].reshape(len(members), -1)
    left = np.linalg.svd(rows)[0][:, : linalg.rank(rows)]
    errors = np.stack([told[w].astype(np.float64) - clean[w].astype(np.float64) for w in members])
    if not np.isfinite(errors).all():
        return True
    distance = np.linalg.norm(errors - left @ (left.T @ errors), axis=0).max()
    shares = np.linalg.norm(np.eye(len(members)) - left @ left.T, axis=1)
    floor = min(floors[w] * share for w, share in zip(members, shares, strict=True) if np.isfinite(floors[w]))
    # What is told may be larger than what was sent, and the floor with it.
    growth = max(np.abs(told[w].astype(np.float64)).max() for w in members) / max(
        np.abs(clean[w].astype(np.float64)).max() for w in survivors
    )
    return bool(distance > floor * max(growth, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_floor_from_a_known_scale_never_accuses(dtype: np.dtype[Any]) -> None:
    """Also where gradients cancel nearly, in messages of a single element."""
    rng = np.random.default_rng(SEED)
    for scheme in SCHEMES:
        for length in (1, 2, 3, 7):
            for seed in range(12):
                values = gradients(scheme.partitions, length, np.float64, seed)
                values -= values.sum(axis=0) / len(values) * (1 - 1e-5)
                values = values.astype(dtype)
                sent = messages(scheme, values)
                survivors = random_survivors(scheme, rng)
                some = {w: sent[w] for w in survivors}
                noise = Noise(scale=scale(values.astype(np.float64)))
                assert scheme.decode(some, length, verify=noise).corrupt == (), (scheme.name, survivors, length, seed)


def test_what_lies_below_the_floor_hardly_matters() -> None:
    """An error that is not noticed spoils the gradient by at most the floor times the weights."""
    rng = np.random.default_rng(SEED)
    for scheme in SCHEMES[:4]:
        run = Runs(scheme, DTYPES[0], 200, 1)
        everyone = list(range(scheme.workers))
        floors = floors_of(scheme, everyone, DTYPES[0], run)
        for worker in everyone:
            told = {w: run.sent[w] for w in everyone}
            told[worker] = told[worker].copy()
            place = int(rng.integers(len(told[worker])))
            told[worker][place] += 0.01 * floors[worker]
            verified = scheme.decode(told, run.length, verify=True)
            exact = run.values.astype(np.float64).sum(axis=0)
            weight = np.abs(scheme.decoding_weights(everyone)).max()
            assert np.abs(verified.gradient - exact).max() < 2 * weight * floors[worker]


def test_the_numbers_are_those_of_the_punctured_code() -> None:
    for scheme in SCHEMES:
        whole = encoding(scheme)
        for missing in range(scheme.stragglers + 1):
            survivors = list(range(missing, scheme.workers))
            expected = []
            for group in scheme.groups:
                rows = whole[[w for w in group.workers if w in survivors]]
                expected.append(distance_by_rank(rows.reshape(len(rows), -1)) - 1)
            found = scheme.verifiable(survivors)
            assert [detectable for detectable, _ in found.groups] == expected, scheme.name
            assert [correctable for _, correctable in found.groups] == [d // 2 for d in expected]
            assert (found.detectable, found.correctable) == (min(expected), min(expected) // 2)
    assert schemes.uncoded(4).verifiable(range(4)).detectable == 0
    assert schemes.grouped(8, 4, 2).verifiable([0, 1]).groups == ((0, 0), (0, 0))


def distance_by_rank(rows: Array) -> int:
    """The fewest rows whose removal lowers the rank: then a word that is not zero is zero in all others."""
    whole = linalg.rank(rows)
    for removed in range(1, len(rows) + 1):
        for kept in combinations(range(len(rows)), len(rows) - removed):
            if not kept or linalg.rank(rows[list(kept)]) < whole:
                return removed
    raise AssertionError


# Long messages, one after the other -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("extra", [-1, 0, 1, 17])
def test_every_block_is_looked_at(dtype: np.dtype[Any], extra: int) -> None:
    scheme = schemes.grouped(8, 4, 2)
    length = 2 * (2 * BLOCK + extra) - 1
    run = Runs(scheme, dtype, length, 3)
    rng = np.random.default_rng(SEED)
    size = scheme.message_length(length)
    for place in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 2, size - 2, size - 1, int(rng.integers(size))):
        told = dict(enumerate(run.sent))
        told[5] = told[5].copy()
        told[5][place] *= 1.5
        verified = scheme.decode(told, length, verify=True)
        assert verified.corrupt == (5,), place
        assert same_bits(verified.gradient, scheme.decode({w: told[w] for w in told if w != 5}, length))


def test_blocks_of_very_different_size_are_judged_apart() -> None:
    scheme = schemes.grouped(4, 4, 1)
    values = gradients(4, 3 * BLOCK, np.dtype(np.float32), 1)
    values[:, :BLOCK] *= 256
    told = dict(enumerate(messages(scheme, values)))
    assert scheme.decode(told, 3 * BLOCK, verify=True).corrupt == ()
    told[2] = told[2].copy()
    told[2][2 * BLOCK + 5] += 0.5  # nothing beside the first block
    assert scheme.decode(told, 3 * BLOCK, verify=True).corrupt == (2,)


def test_sparse_gradients_are_no_alarm() -> None:
    scheme = schemes.grouped(8, 4, 2)
    rng = np.random.default_rng(SEED)
    values = rng.standard_normal((8, 5 * BLOCK)).astype(np.float32)
    values[:, rng.random(5 * BLOCK) < 0.999] = 0
    values[:, : 2 * BLOCK] = 0
    sent = dict(enumerate(messages(scheme, values)))
    assert scheme.decode(sent, 5 * BLOCK, verify=True).corrupt == ()
    zeros = dict(enumerate(messages(scheme, np.zeros_like(values))))
    assert scheme.decode(zeros, 5 * BLOCK, verify=True).corrupt == ()


@pytest.mark.parametrize("size", [1e-8, 1e-16, 1e-24, 1e-30])
def test_small_messages_are_judged_by_their_own_size(size: float) -> None:
    """Squares of their syndromes are less than float32 can hold."""
    scheme = schemes.grouped(4, 4, 2)
    gradients = np.random.default_rng(3).standard_normal((4, 20_000)).astype(np.float32) * np.float32(size)
    told = {w: scheme.encode(w, gradients) for w in range(4)}
    assert scheme.decode(told, 20_000, verify=True).corrupt == ()
    told[2] = told[2].copy()
    told[2][9_000] += np.float32(size)
    assert scheme.decode(told, 20_000, verify=True).corrupt == (2,)


def test_offenders_in_several_groups_and_of_several_kinds() -> None:
    scheme = schemes.grouped(12, 6, 2)
    run = Runs(scheme, DTYPES[0], 300, 2)
    told = dict(enumerate(run.sent))
    told[1] = told[1] * np.float32(1e30)
    told[4] = run.stale[4]
    told[7] = np.full_like(told[7], np.nan)
    told[8] = -told[8]
    assert scheme.verifiable(range(12)).groups == ((4, 2), (4, 2))
    verified = scheme.decode(told, 300, verify=True)
    assert verified.corrupt == (1, 4, 7, 8)
    assert same_bits(verified.gradient, scheme.decode({w: told[w] for w in (0, 2, 3, 5, 6, 9, 10, 11)}, 300))


def test_too_many_are_an_error_that_names_suspects() -> None:
    scheme = schemes.grouped(8, 4, 2)
    run = Runs(scheme, DTYPES[0], 100, 2)
    out = np.full(100, 7.0, np.float32)
    told = {w: run.sent[w] for w in (0, 1, 2, 4, 5, 6)}
    told[5] = run.stale[5]
    with pytest.raises(CorruptMessageError, match="cannot be told among workers") as caught:
        scheme.decode(told, 100, out=out, verify=True)
    assert caught.value.survivors == (0, 1, 2, 4, 5, 6)
    assert caught.value.suspects == (4, 5, 6)
    assert (out == 7).all()
    told[4], told[5] = np.full_like(told[4], np.inf), run.sent[5]
    assert scheme.decode(told, 100, verify=True).corrupt == (4,)
    told[5] = np.full_like(told[4], np.nan)
    with pytest.raises(CorruptMessageError, match="without them the others do not determine the sum") as caught:
        scheme.decode(told, 100, verify=True)
    assert caught.value.suspects == (4, 5)
    assert issubclass(CorruptMessageError, ValueError)


def test_without_spares_only_what_is_not_finite_shows() -> None:
    scheme = schemes.uncoded(3)
    told = {w: np.full(9, w, np.float32) for w in range(3)}
    assert scheme.decode(told, 9, verify=True).gradient.tolist() == [3.0] * 9
    told[1][4] = np.nan
    with pytest.raises(CorruptMessageError, match="are wrong, and without them") as caught:
        scheme.decode(told, 9, verify=True)
    assert caught.value.suspects == (1,)
    verified = scheme.decode(told, 9, approximate=True, verify=True)
    assert (verified.corrupt, verified.gradient.tolist()) == ((1,), [2.0] * 9)


# How it is asked for --------------------------------------------------------------------------------------------------


def test_results_go_where_they_should() -> None:
    scheme = schemes.grouped(8, 4, 2)
    for given, wanted in ((DTYPES[0], None), (DTYPES[2], DTYPES[0]), (DTYPES[3], None), (DTYPES[0], DTYPES[3])):
        run = Runs(scheme, given, 101, 2)
        told = dict(enumerate(run.sent))
        expected = scheme.decode(told, 101, dtype=wanted)
        out = np.empty(101, expected.dtype)
        verified = scheme.decode(told, 101, dtype=wanted, out=out, verify=True)
        assert verified.gradient is out
        assert same_bits(out, expected)
        assert same_bits(scheme.decode(told, 101, dtype=wanted, verify=True).gradient, expected)


def test_a_collector_leaves_offenders_out() -> None:
    scheme = schemes.grouped(8, 4, 2)
    run = Runs(scheme, DTYPES[0], 101, 2)
    collector = scheme.collector(101, np.float32)
    for worker in (0, 1, 2, 4, 5, 6):
        collector.add(worker, -run.sent[worker] if worker == 1 else run.sent[worker])
    with pytest.raises(CorruptMessageError):
        collector.gradient(verify=True)
    collector.add(3, run.sent[3])  # one more, and the liar is found
    verified = collector.gradient(verify=True)
    assert (verified.corrupt, collector.survivors) == ((1,), (0, 2, 3, 4, 5, 6))
    clean = scheme.decode({w: run.sent[w] for w in (0, 2, 3, 4, 5, 6)}, 101)
    assert same_bits(verified.gradient, clean)
    assert same_bits(collector.gradient(), clean)


def test_a_discarded_message_has_not_come() -> None:
    scheme = schemes.grouped(8, 4, 2)
    run = Runs(scheme, DTYPES[0], 101, 2)
    collector = scheme.collector(101, np.float32)
    for worker in (0, 1, 2, 4, 5):
        collector.add(worker, run.sent[worker])
    collector.discard(1)
    assert collector.ready
    collector.discard(2)
    assert (collector.ready, collector.survivors) == (False, (0, 4, 5))
    with pytest.raises(NotDecodableError):
        collector.gradient()
    collector.add(3, run.sent[3])
    assert same_bits(collector.gradient(), scheme.decode({w: run.sent[w] for w in (0, 3, 4, 5)}, 101))
    with pytest.raises(ValueError, match="worker must be one of"):
        collector.discard(7)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda s, m: s.decode({**m, 1: m[1][:-1]}, 9, verify=True), ValueError, r"messages\[1\] must have shape"),
    (lambda s, m: s.decode(m, 9, dtype=np.float64, verify=True), TypeError, "must have an element type that converts"),
    (lambda s, m: s.decode(m, 9, out=np.empty(8, np.float32), verify=True), ValueError, "out must have shape"),
    (lambda s, m: s.decode(m, 9, out=np.empty(9), verify=True), TypeError, "out must have element type float32"),
    (lambda s, m: s.decode(m, 9, out=np.empty(18, np.float32)[::2], verify=True), ValueError, "contiguous"),
    (lambda s, m: s.decode({0: m[0]}, 9, verify=True), NotDecodableError, "do not determine the sum"),
    (lambda s, m: s.detection_floor(m, "float32", noise=Noise(scale=1.0)), ValueError, "noise must leave scale alone"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_input(call: Any, kind: type[Exception], message: str) -> None:
    scheme = schemes.grouped(8, 4, 2)
    sent = dict(enumerate(messages(scheme, np.ones((8, 9), np.float32))))
    with pytest.raises(kind, match=message):
        call(scheme, sent)


def test_names_are_public() -> None:
    assert {"CorruptMessageError", "Noise", "Verified", "Verifiable"} <= set(fastgc.__all__)
