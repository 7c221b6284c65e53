"""Encoding and decoding are exact: every scheme, every survivor set it promises and every other that can be decoded."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scheme_table import (
    CONSTRUCTED,
    EXACT,
    FLOATS,
    GIVEN,
    SAMPLED,
    Array,
    Case,
    Sets,
    amplification,
    encoding,
    gradients,
    larger_sets,
    messages,
    names,
    plain_sum,
    promised_sets,
    residual,
    same_bits,
    scale,
    subsets,
    weights_bound,
)

from fastgc import GradientCode, NotDecodableError, codes, kernels, linalg, schemes

ALL = EXACT + SAMPLED
SEED = 20200514
NoteBound = Callable[[str, float], None]


def sets_of(case: Case) -> Sets:
    """All promised sets up to 12 workers, else 200 of them; and some with fewer missing."""
    most = 1000 if case.scheme.workers <= 12 else 200
    return promised_sets(case.scheme, most) + larger_sets(case.scheme, 25)


def decode_error(scheme: GradientCode, sent: list[Array], survivors: tuple[int, ...], expected: Array) -> float:
    decoded = scheme.decode({w: sent[w] for w in survivors}, len(expected))
    return float(np.abs(decoded - expected).max())


def check_exact(scheme: GradientCode, sets: Sets, lengths: list[int], dtype: np.dtype[Any], note: NoteBound) -> None:
    values = gradients(scheme.partitions, max(lengths), dtype, SEED)
    total = plain_sum(values)
    bounds = [scheme.error_bound(survivors, dtype) for survivors in sets]
    for length in lengths:
        part = values[:, :length]
        sent = messages(scheme, part)
        size = scale(part)
        for survivors, bound in zip(sets, bounds, strict=True):
            used = decode_error(scheme, sent, survivors, total[:length]) / (bound * size)
            note(f"decoding, {dtype}", used)
            assert used <= 1, f"survivors {survivors}, length {length}, seed {SEED}: {used:.3g} of the bound"


# Exactness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL, ids=names(ALL))
def test_weights_solve_the_decoding_equations(case: Case, note_bound: NoteBound) -> None:
    scheme = case.scheme
    whole = encoding(scheme)
    for survivors in sets_of(case):
        amplified = amplification(scheme, survivors, whole)
        used = residual(scheme, survivors, whole) / weights_bound(scheme, amplified)
        note_bound("weights", used)
        assert used <= 1, f"survivors {survivors}: {used:.3g} of the bound at amplification {amplified:.3g}"
        assert scheme.amplification(survivors) == pytest.approx(amplified, rel=1e-12)
        assert amplified > 1 - 1e-12  # the weights have to give 1 from what is at most that


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", ALL, ids=names(ALL))
def test_every_promised_set_decodes(case: Case, dtype: np.dtype[Any], note_bound: NoteBound) -> None:
    m = case.scheme.reduction
    lengths = sorted({1, m - 1, m, m + 1, 257} - {0})
    check_exact(case.scheme, sets_of(case), lengths, dtype, note_bound)


EVERY_LENGTH = CONSTRUCTED + GIVEN[:3] + GIVEN[-1:]
# All remainders by all vectors and blocks of rows, and a seventh of those beyond; the soak has every one.
LENGTHS = [*range(1, 200), *range(200, 1001, 7)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", EVERY_LENGTH, ids=names(EVERY_LENGTH))
def test_lengths_decode_at_the_best_and_the_worst_set(case: Case, dtype: np.dtype[Any], note_bound: NoteBound) -> None:
    scheme = case.scheme
    ranked = sorted(promised_sets(scheme), key=scheme.amplification)
    check_exact(scheme, sorted({ranked[0], ranked[-1]}), LENGTHS, dtype, note_bound)


@pytest.mark.soak
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", ALL, ids=names(ALL))
def test_every_length_decodes_at_every_set(case: Case, dtype: np.dtype[Any], note_bound: NoteBound) -> None:
    check_exact(case.scheme, sets_of(case), list(range(1, 1001)), dtype, note_bound)


# Beyond the promise ---------------------------------------------------------------------------------------------------

SMALL = [case for case in EXACT if case.scheme.workers <= 10]


def decodable_by_rank(whole: Array) -> dict[tuple[int, ...], bool]:
    """For every set of workers whether the rows of the whole encoding matrix span the sum's, by `linalg.rank`."""
    workers, partitions, m = whole.shape
    matrix = whole.reshape(workers, -1)
    wanted = np.tile(np.eye(m), (1, partitions)) * np.linalg.norm(matrix, axis=1).max() / np.sqrt(partitions)
    answer = {(): False}
    for size in range(1, workers + 1):
        sets = list(itertools.combinations(range(workers), size))
        rows = matrix[np.array(sets)]
        extended = np.concatenate([rows, np.broadcast_to(wanted, (len(sets), *wanted.shape))], axis=1)
        answer.update(zip(sets, (linalg.rank(extended) == linalg.rank(rows)).tolist(), strict=True))
    return answer


@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_every_subset_decodes_exactly_where_the_rank_says_so(case: Case, note_bound: NoteBound) -> None:
    scheme = case.scheme
    whole = encoding(scheme)
    expected = decodable_by_rank(whole)
    length, dtype = 2 * scheme.reduction + 1, FLOATS[1]
    values = gradients(scheme.partitions, length, dtype, SEED)
    total, size, sent = plain_sum(values), scale(values), messages(scheme, values)
    everyone = set(range(scheme.workers))
    out = np.full(length, np.nan)
    for survivors in subsets(scheme.workers):
        assert scheme.is_decodable(survivors) == expected[survivors], survivors
        given = {w: sent[w] for w in survivors}
        if expected[survivors]:
            used = decode_error(scheme, sent, survivors, total) / (scheme.error_bound(survivors, dtype) * size)
            note_bound("decoding, any subset", used)
            assert used <= 1, f"survivors {survivors}, seed {SEED}: {used:.3g} of the bound"
        else:
            with pytest.raises(NotDecodableError) as caught:
                scheme.decode(given, length, out=out)
            assert caught.value.survivors == survivors
            assert caught.value.missing == tuple(sorted(everyone - set(survivors)))
            assert np.isnan(out).all()
            assert scheme.condition_number(survivors) == scheme.amplification(survivors) == np.inf
            with pytest.raises(NotDecodableError):
                scheme.decoding_weights(survivors)


# The promise of uneven groups is that of the smallest by definition, and may be exceeded.
ENUMERATED = [case for case in EXACT if "uneven" not in case.name and case.scheme.stragglers + 1 < case.scheme.workers]


@pytest.mark.parametrize("case", ENUMERATED, ids=names(ENUMERATED))
def test_one_more_straggler_could_not_be_promised(case: Case) -> None:
    scheme = case.scheme
    size = scheme.workers - scheme.stragglers - 1
    assert not all(scheme.is_decodable(s) for s in itertools.combinations(range(scheme.workers), size))


# Least norm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EXACT, ids=names(EXACT))
def test_extra_survivors_give_the_least_norm_weights(case: Case) -> None:
    scheme = case.scheme
    whole = encoding(scheme)
    matrix = whole.reshape(scheme.workers, -1)
    wanted = np.tile(np.eye(scheme.reduction), (1, scheme.partitions))
    for survivors in promised_sets(scheme, 20) + larger_sets(scheme, 12):
        weights = scheme.decoding_weights(survivors)
        rows = matrix[list(survivors)]
        columns = np.linalg.norm(rows, axis=0)  # scaling the equations leaves the solution
        columns[columns == 0] = 1.0
        left, values, right = np.linalg.svd(rows / columns, full_matrices=False)
        kept = linalg.rank(rows)
        pseudo = (wanted / columns) @ right[:kept].T / values[:kept] @ left[:, :kept].T
        # A least-norm solution moves by the condition number times the matrix's rounding (not its square).
        tolerance = 64 * sum(rows.shape) * np.finfo(float).eps * values[0] / values[kept - 1]
        assert np.abs(weights - pseudo).max() <= tolerance * np.abs(pseudo).max(), survivors
        norms = np.linalg.norm(weights, axis=1)
        for dropped in survivors:
            fewer = tuple(w for w in survivors if w != dropped)
            if scheme.is_decodable(fewer):
                assert (norms <= np.linalg.norm(scheme.decoding_weights(fewer), axis=1) * (1 + tolerance)).all()


@pytest.mark.parametrize(
    "case",
    [c for c in CONSTRUCTED if "cauchy [" in c.name or "gaussian [" in c.name or "fractional" in c.name],
    ids=str,
)
def test_all_survivors_are_used(case: Case) -> None:
    for survivors in larger_sets(case.scheme, 20):
        assert (case.scheme.decoding_weights(survivors) != 0).any(axis=0).all()


# The same bits --------------------------------------------------------------------------------------------------------

BIT_CASES = [*CONSTRUCTED[::3], *SAMPLED[::3]]


@pytest.mark.parametrize("case", BIT_CASES, ids=names(BIT_CASES))
def test_bits_do_not_depend_on_the_order_of_messages_or_names(case: Case) -> None:
    scheme = case.scheme
    rng = np.random.default_rng(SEED)
    values = gradients(scheme.partitions, 67, np.float32, SEED)
    sent = messages(scheme, values)
    for survivors in promised_sets(scheme, 8) + larger_sets(scheme, 8):
        decoded = scheme.decode({w: sent[w] for w in survivors}, 67)
        weights = scheme.decoding_weights(survivors)
        for _ in range(3):
            order = rng.permutation(survivors).tolist()
            assert same_bits(scheme.decode({w: sent[w] for w in order}, 67), decoded), f"seed {SEED}: {order}"
            assert same_bits(scheme.decoding_weights(order), weights), f"seed {SEED}: {order}"
        scheme.patterns.clear()
        assert same_bits(scheme.decode({w: sent[w] for w in survivors}, 67), decoded)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_inputs_are_read_and_out_is_used(dtype: np.dtype[Any]) -> None:
    scheme = schemes.grouped(8, 4, 2)
    values = gradients(8, 33, dtype, SEED)
    kept = values.copy()
    values.setflags(write=False)
    sent = messages(scheme, values)
    message = np.full(17, np.nan, dtype)
    assert scheme.encode(5, values[4:8], out=message) is message
    assert same_bits(message, sent[5])
    assert same_bits(scheme.encode(5, list(values[4:8])), sent[5])
    for array in sent:
        array.setflags(write=False)
    out = np.full(33, np.nan, dtype)
    given = dict(enumerate(sent))
    assert scheme.decode(given, 33, out=out) is out
    assert same_bits(out, scheme.decode(given, 33, dtype=dtype))
    assert same_bits(values, kept)


def test_message_length_is_rounded_up() -> None:
    scheme = schemes.grouped(8, 8, 3)
    for length in range(1, 100):
        assert scheme.message_length(length) == -(-length // 3) == len(scheme.encode(0, np.zeros((8, length))))


PROGRAM = """
import hashlib, sys
import numpy as np
from fastgc import kernels, schemes
made = [schemes.grouped(12, 4, 2), schemes.polynomial_gaussian(6, 2, 2), schemes.uncoded(5), schemes.grouped(10, 10, 4)]
for scheme in made:
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(3)
        length = 150_001
        values = rng.standard_normal((scheme.partitions, length)).astype(dtype)
        sent = {w: scheme.encode(w, [values[j] for j in held]) for w, held in enumerate(scheme.assignment)}
        heard = {w: sent[w] for w in range(scheme.stragglers, scheme.workers)}
        collector = scheme.collector(length, dtype)
        for w in reversed(heard):
            collector.add(w, heard[w])
        decoded = scheme.decode(heard, length)
        assert decoded.tobytes() == collector.gradient().tobytes()
        for array in (*sent.values(), decoded):
            print(hashlib.sha256(array.tobytes()).hexdigest())
"""


def bits_of_a_process(**environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "FASTGC_ISA"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return hashlib.sha256(result.stdout.encode()).hexdigest()


def test_bits_do_not_depend_on_threads() -> None:
    bits = {threads: bits_of_a_process(OMP_NUM_THREADS=threads) for threads in ("1", "2", "3")}
    assert len(set(bits.values())) == 1, bits


@pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing")
def test_bits_do_not_depend_on_the_instruction_set() -> None:
    from fastgc import _core

    fused = [isa for isa in _core.isas() if _core.fused(isa)]
    bits = {isa: bits_of_a_process(FASTGC_ISA=isa) for isa in fused}
    assert len(set(bits.values())) <= 1, bits


# Attributes, and what is said about a set -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL, ids=names(ALL))
def test_attributes_fit_together(case: Case) -> None:
    scheme = case.scheme
    assert scheme.exact
    assert len(scheme.assignment) == scheme.workers
    assert scheme.load == max(map(len, scheme.assignment))
    assert sorted({j for held in scheme.assignment for j in held}) == list(range(scheme.partitions))
    assert all(list(held) == sorted(set(held)) for held in scheme.assignment)
    assert 0 <= scheme.stragglers < scheme.workers
    for worker, held in enumerate(scheme.assignment):
        coefficients = scheme.coefficients(worker)
        assert coefficients.shape == (len(held), scheme.reduction)
        assert coefficients.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            coefficients[0, 0] = 1.0
    # Ye and Abbe's converse, for schemes in which all partitions have equally many holders.
    holders = np.bincount([j for held in scheme.assignment for j in held])
    assert holders.min() >= scheme.stragglers + scheme.reduction or scheme.reduction == 1 or " irregular" in case.name
    assert holders.min() >= scheme.stragglers + 1


def test_condition_number_is_the_largest_over_groups() -> None:
    code = codes.gaussian(4, 2, seed=5)
    scheme = schemes.grouped(8, code=code)
    for survivors in promised_sets(scheme):
        expected = max(np.linalg.cond(code.generator[[w - g for w in survivors if g <= w < g + 4]]) for g in (0, 4))
        assert scheme.condition_number(survivors) == pytest.approx(expected, rel=1e-9)


def test_condition_number_of_other_schemes_is_the_amplification() -> None:
    for scheme in (schemes.polynomial(6, 2, 2), schemes.cyclic_mds(5, 2), schemes.cyclic_repetition(5, 2)):
        for survivors in promised_sets(scheme):
            assert scheme.condition_number(survivors) == scheme.amplification(survivors)


def test_survivors_may_be_any_iterable() -> None:
    scheme = schemes.grouped(8, 4, 2)
    survivors = [0, 1, 2, 4, 5]
    for ask in (scheme.is_decodable, scheme.condition_number, scheme.amplification, scheme.decoding_weights):
        assert np.array_equal(ask(iter(survivors)), ask(survivors))


def test_amplification_of_repetition_is_one() -> None:
    scheme = schemes.fractional_repetition(9, 2)
    for survivors in promised_sets(scheme):
        assert scheme.amplification(survivors) == pytest.approx(1, rel=1e-15)


def test_the_error_can_be_pickled() -> None:
    with pytest.raises(NotDecodableError) as caught:
        schemes.grouped(6, 3, 2).decoding_weights([0, 1, 3])
    error = pickle.loads(pickle.dumps(caught.value))
    assert (str(error), error.survivors, error.missing) == (str(caught.value), (0, 1, 3), (2, 4, 5))
    assert "[0, 1, 3]" in str(error)
    assert "[4, 5]" in str(error)


# Ignoring stragglers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ignore_stragglers_scales_the_survivors_sum(dtype: np.dtype[Any]) -> None:
    scheme = schemes.ignore_stragglers(6, 2)
    assert not scheme.exact
    values = gradients(6, 19, dtype, SEED)
    sent = messages(scheme, values)
    for survivors in subsets(6):
        assert scheme.is_decodable(survivors) == bool(survivors)
        if not survivors:
            with pytest.raises(NotDecodableError):
                scheme.decode({}, 19)
            continue
        decoded = scheme.decode({w: sent[w] for w in survivors}, 19)
        expected = plain_sum(values[list(survivors)]) * 6 / len(survivors)
        # One coefficient rounding, one a survivor in the sum; messages are the gradients themselves.
        bound = (len(survivors) + 1) * np.finfo(dtype).eps / 2 * 6 / len(survivors) * scale(values[list(survivors)])
        assert np.abs(decoded - expected).max() <= bound


# Bad input ------------------------------------------------------------------------------------------------------------

SCHEME = schemes.grouped(6, 3, 2)
G = np.ones((3, 8))
M = {w: np.ones(4) for w in range(6)}


def read_only(length: int) -> Array:
    array = np.zeros(length)
    array.setflags(write=False)
    return array


BAD: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("worker too large", lambda: SCHEME.encode(6, G), ValueError, "worker .*at most 5, not 6"),
    ("worker negative", lambda: SCHEME.encode(-1, G), ValueError, "worker .*not -1"),
    ("worker not an integer", lambda: SCHEME.encode(0.5, G), TypeError, "worker .*not 0.5"),  # type: ignore[arg-type]
    ("worker a bool", lambda: SCHEME.coefficients(True), TypeError, "worker .*not True"),
    ("too few gradients", lambda: SCHEME.encode(0, G[:2]), ValueError, "gradients must be 3.*not 2"),
    ("too many gradients", lambda: SCHEME.encode(0, np.ones((4, 8))), ValueError, "gradients must be 3.*not 4"),
    ("unequal gradients", lambda: SCHEME.encode(0, [np.ones(8), np.ones(8), np.ones(7)]), ValueError, r"gradients.*7"),
    ("integer gradients", lambda: SCHEME.encode(0, G.astype(int)), TypeError, "gradients.*int64"),
    ("mixed gradients", lambda: SCHEME.encode(0, [G[0], G[1], G[2].astype("f4")]), TypeError, "gradients.*float"),
    ("3-D gradients", lambda: SCHEME.encode(0, np.ones((3, 2, 4))), ValueError, r"gradients"),
    ("zero length gradients", lambda: SCHEME.encode(0, np.ones((3, 0))), ValueError, "gradients"),
    ("encode out too short", lambda: SCHEME.encode(0, G, out=np.zeros(3)), ValueError, "out.*3"),
    ("encode out another type", lambda: SCHEME.encode(0, G, out=np.zeros(4, "f4")), TypeError, "out.*float32"),
    ("encode out read-only", lambda: SCHEME.encode(0, G, out=read_only(4)), ValueError, "out.*(read-only|writ)"),
    ("encode out strided", lambda: SCHEME.encode(0, G, out=np.zeros(8)[::2]), ValueError, "out.*(contiguous|next)"),
    ("encode out overlaps", lambda: SCHEME.encode(0, G, out=G[1, 2:6]), ValueError, "out.*overlap"),
    ("encode out a list", lambda: SCHEME.encode(0, G, out=[0.0] * 4), TypeError, "out"),  # type: ignore[arg-type]
    ("unknown worker's message", lambda: SCHEME.decode({**M, 6: M[0]}, 8), ValueError, r"messages.*not 6"),
    ("worker as text", lambda: SCHEME.decode({**M, "a": M[0]}, 8), TypeError, "messages.*'a'"),  # type: ignore[dict-item]
    ("zero length", lambda: SCHEME.decode(M, 0), ValueError, "length .*not 0"),
    ("negative length", lambda: SCHEME.message_length(-3), ValueError, "length .*not -3"),
    ("length not an integer", lambda: SCHEME.decode(M, 8.0), TypeError, "length .*not 8.0"),  # type: ignore[arg-type]
    ("wrong length", lambda: SCHEME.decode(M, 10), ValueError, r"messages\[0\] must have shape \(5,\), not \(4,\)"),
    ("2-D message", lambda: SCHEME.decode({**M, 2: np.ones((1, 4))}, 8), ValueError, r"messages\[2\].*\(1, 4\)"),
    ("integer message", lambda: SCHEME.decode({**M, 0: np.ones(4, int)}, 8), TypeError, r"messages\[0\].*int64"),
    ("mixed messages", lambda: SCHEME.decode({**M, 3: np.ones(4, "f4")}, 8), TypeError, r"messages\[3\].*float32"),
    ("another dtype", lambda: SCHEME.decode(M, 8, dtype=np.float32), TypeError, r"messages\[0\].*float64"),
    ("no such dtype", lambda: SCHEME.decode(M, 8, dtype=np.int8), TypeError, "dtype .*int8"),
    ("nonsense dtype", lambda: SCHEME.decode(M, 8, dtype="real"), TypeError, "dtype .*'real'"),
    ("message a list", lambda: SCHEME.decode({**M, 1: [1.0] * 4}, 8), TypeError, r"messages\[1\].*list"),  # type: ignore[dict-item]
    ("decode out too long", lambda: SCHEME.decode(M, 8, out=np.zeros(9)), ValueError, "out.*9"),
    ("decode out another type", lambda: SCHEME.decode(M, 8, out=np.zeros(8, "f4")), TypeError, "out.*float32"),
    ("decode out read-only", lambda: SCHEME.decode(M, 8, out=read_only(8)), ValueError, "out.*(read-only|writ)"),
    ("decode out strided", lambda: SCHEME.decode(M, 8, out=np.zeros(16)[::2]), ValueError, "out.*(contiguous|next)"),
    ("too few survivors", lambda: SCHEME.decode({0: M[0], 3: M[3]}, 8), NotDecodableError, r"survivors \[0, 3\]"),
    ("no survivors", lambda: SCHEME.decode({}, 8), NotDecodableError, r"survivors \[\]"),
    ("survivor twice", lambda: SCHEME.decoding_weights([0, 1, 3, 3]), ValueError, "survivors must not repeat: 3"),
    ("unknown survivor", lambda: SCHEME.is_decodable([0, 9]), ValueError, r"survivors\[1\].*not 9"),
    ("survivors a number", lambda: SCHEME.amplification(3), TypeError, "survivors.*3"),  # type: ignore[arg-type]
    ("collector of no length", lambda: SCHEME.collector(0, np.float32), ValueError, "length .*not 0"),
    ("encoder out too long", lambda: SCHEME.encoder(0, 4, "f8", np.ones(3)), ValueError, r"out .*\(2,\), not \(3,\)"),
    ("encoder out another type", lambda: SCHEME.encoder(0, 4, "f8", np.ones(2, "f4")), TypeError, "out .*float32"),
    ("encoder out read-only", lambda: SCHEME.encoder(0, 4, "f8", read_only(2)), ValueError, "out .*writeable"),
    ("encoder out strided", lambda: SCHEME.encoder(0, 4, "f8", np.ones(4)[::2]), ValueError, "out .*contiguous"),
    ("encoder of integers", lambda: SCHEME.encoder(0, 4, np.int32), TypeError, "dtype .*int32"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    before = G.copy(), {w: m.copy() for w, m in M.items()}
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert same_bits(G, before[0])
    assert all(same_bits(M[w], before[1][w]) for w in M)


def test_out_that_overlaps_a_message_is_refused() -> None:
    memory = np.arange(40.0)
    kept = memory.copy()
    given = {w: memory[4 * w : 4 * w + 4] for w in range(6)}
    with pytest.raises(ValueError, match=r"out.*overlap"):
        SCHEME.decode(given, 8, out=memory[20:28])
    assert same_bits(memory, kept)
    assert SCHEME.decode(given, 8, out=memory[24:32]) is not None  # side by side is no overlap


@pytest.mark.parametrize(
    "bad",
    [{0: np.ones(4), 1: np.ones(5), 3: np.ones(4), 4: np.ones(4)}, {0: np.ones(4), 7: np.ones(4)}, {0: np.ones(4)}],
    ids=["length", "worker", "survivors"],
)
def test_an_error_leaves_out_untouched(bad: dict[int, Array]) -> None:
    out = np.full(8, np.nan)
    with pytest.raises(ValueError):
        SCHEME.decode(bad, 8, out=out)
    assert np.isnan(out).all()
    message = np.full(4, np.nan)
    with pytest.raises(ValueError):
        SCHEME.encode(0, [np.ones(8), np.ones(8), np.ones(9)], out=message)
    assert np.isnan(message).all()
