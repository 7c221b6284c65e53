"""The bound on the error is never below the error, in any element type; the probabilistic one is near it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import ceil, log2, sqrt
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scheme_table import (
    EXACT,
    SAMPLED,
    Array,
    Case,
    amplification,
    encoding,
    gradients,
    larger_sets,
    plain_sum,
    promised_sets,
    residual,
    scale,
)

from fastgc import GradientCode, rounding, schemes

ALL = EXACT + SAMPLED
SEED = 20200514
LENGTH = 257
BF16, F16, F32, F64 = (np.dtype(t) for t in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64))
# Of messages and of the result. Half messages are made of float32 gradients, as the runner makes them.
TYPES = [(F64, F64), (F32, F32), (F16, F32), (BF16, F32), (F16, F16), (BF16, BF16), (F32, F16), (F32, BF16)]


def decode_error(scheme: GradientCode, sent: list[Array], survivors: tuple[int, ...], values: Array, to: Any) -> float:
    """The largest error of a decoded element over the sum of the gradients' largest."""
    decoded = scheme.decode({w: sent[w] for w in survivors}, LENGTH, dtype=to).astype(np.longdouble)
    return float(np.abs(decoded - plain_sum(values)).max() / scale(values))


@pytest.mark.parametrize(("message", "result"), TYPES, ids=[f"{m}-{r}" for m, r in TYPES])
def test_the_bound_holds_everywhere(message: Any, result: Any, note_bound: Callable[[str, float], None]) -> None:
    ratios = []
    for case in ALL:
        scheme = case.scheme
        values = gradients(scheme.partitions, LENGTH, F64 if message == F64 else F32, SEED)
        sent = [
            scheme.encode(w, [values[j] for j in held], out=np.empty(scheme.message_length(LENGTH), message))
            for w, held in enumerate(scheme.assignment)
        ]
        for survivors in promised_sets(scheme, 5) + larger_sets(scheme, 1):
            error = decode_error(scheme, sent, survivors, values, result)
            rigorous = scheme.error_bound(survivors, message, result=result)
            likely = scheme.error_bound(survivors, message, result=result, probabilistic=True)
            note_bound(f"error_bound, {message} to {result}", error / rigorous)
            assert error <= rigorous, f"{case}, survivors {survivors}, seed {SEED}"
            assert error <= likely, f"{case}, survivors {survivors}, seed {SEED}"
            if error > 0:  # repetition may be exact
                ratios.append(likely / error)
    note_bound(f"probabilistic over 30 errors at the median, {message} to {result}", float(np.median(ratios)) / 30)
    assert np.median(ratios) <= 30


@pytest.mark.parametrize("case", EXACT[::4] + SAMPLED[::4], ids=str)
def test_the_bound_is_made_of_amplification_roundings_and_residual(case: Case) -> None:
    """Against what the documentation says, with amplification and residual computed apart."""
    scheme = case.scheme
    whole = encoding(scheme)
    for survivors in promised_sets(scheme, 3):
        amplified, missed = amplification(scheme, survivors, whole), residual(scheme, survivors, whole)
        in_group = Counter(scheme.place(w)[0] for w in survivors)
        steps = scheme.load * scheme.reduction + 1 + max(in_group.values()) + 1 + ceil(log2(len(scheme.groups)))
        for dtype, u in ((F32, 2.0**-24), (F64, 2.0**-53)):
            expected = steps * u * amplified + missed
            assert expected <= scheme.error_bound(survivors, dtype) <= 1.001 * expected + 64 * 2.0**-64 * amplified
        half = scheme.error_bound(survivors, BF16, result=F32)
        assert half == pytest.approx(2.0**-8 * amplified, rel=1e-3 + steps * 2.0**-15)
        assert half < scheme.error_bound(survivors, BF16)


def test_the_probabilistic_bound_grows_with_the_root_of_the_roundings() -> None:
    """Repetition's chains of n times longer messages, at the same amplification of 1."""
    bounds = {}
    for n in (4, 64):
        scheme = schemes.fractional_repetition(n, n - 1)
        for probabilistic in (False, True):
            bounds[n, probabilistic] = scheme.error_bound([0], F32, probabilistic=probabilistic)
    assert bounds[64, False] / bounds[4, False] == pytest.approx((64 + 3) / (4 + 3), rel=1e-3)
    assert bounds[64, True] / bounds[4, True] == pytest.approx(sqrt((64 + 3) / (4 + 3)), rel=1e-3)


def test_the_estimate_of_an_inexact_scheme_is_covered() -> None:
    scheme = schemes.ignore_stragglers(6, 2)
    values = gradients(6, LENGTH, F32, SEED)
    sent = [scheme.encode(w, values[w : w + 1]) for w in range(6)]
    for survivors in ((0, 1, 2, 3), (1, 2, 3, 4, 5), (4,)):
        assert decode_error(scheme, sent, survivors, values, F32) <= scheme.error_bound(survivors, F32)
    assert scheme.error_bound((0, 1, 2), F32) == pytest.approx(1, rel=1e-5)


def test_sets_that_do_not_decode_have_no_bound() -> None:
    scheme = schemes.grouped(8, 4, 2)
    assert scheme.error_bound([0, 1, 4], F32) == np.inf
    assert scheme.error_bound([], F32, probabilistic=True) == np.inf


BAD: list[tuple[str, Callable[[GradientCode], object], type[Exception], str]] = [
    ("not an element type", lambda s: s.error_bound([0, 1], np.int32), TypeError, "dtype must be float32.*not int32"),
    ("nonsense", lambda s: s.error_bound([0, 1], "real"), TypeError, "dtype must be .*not 'real'"),
    ("another result", lambda s: s.error_bound([0, 1], F64, result=F32), TypeError, "result .*float64.*float32"),
    ("unknown worker", lambda s: s.error_bound([0, 9], F32), ValueError, r"survivors\[1\].*not 9"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call: Callable[[GradientCode], object], kind: type[Exception], pattern: str) -> None:
    with pytest.raises(kind, match=pattern):
        call(schemes.grouped(4, 4, 2))


def test_units() -> None:
    assert [rounding.unit(t) for t in (F64, F32, F16, BF16)] == [2.0**-53, 2.0**-24, 2.0**-11, 2.0**-8]
