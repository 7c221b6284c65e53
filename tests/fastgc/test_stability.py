"""Measured accuracy: what `measure` reports is what plain loops find."""

from __future__ import annotations

from itertools import combinations

import ml_dtypes
import numpy as np
import pytest

from fastgc import GradientCode, NotDecodableError, codes, schemes, stability


def test_errors_are_those_of_a_plain_loop() -> None:
    gc = schemes.grouped(5, code=codes.gaussian(5, 3))
    sets = list(combinations(range(5), 3))
    found = stability.measure(gc, sets, [np.float32, ml_dtypes.bfloat16], seed=7)
    length = 3 * stability.BLOCK
    gradients = np.random.default_rng(7).standard_normal((5, length)).astype(np.float32)
    scale = sum(float(np.abs(row).max()) for row in gradients)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        errors = []
        for survivors in sets:
            messages = {w: gc.encode(w, gradients, out=np.empty(stability.BLOCK, dtype)) for w in survivors}
            decoded = gc.decode(messages, length, dtype=np.float32)
            errors.append(float(np.abs(decoded - gradients.astype(np.longdouble).sum(axis=0)).max()) / scale)
        expected = (max(errors), float(np.median(errors)))
        assert found.errors[np.dtype(dtype).name] == pytest.approx(expected, rel=1e-12)
    assert found.sets == len(sets)
    assert found.condition[0] == pytest.approx(codes.gaussian(5, 3).worst_condition_number())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    "gc",
    [schemes.grouped(8, 4, 2), schemes.polynomial(6, 2, 2), schemes.cyclic_repetition(7, 2)],
    ids=lambda gc: gc.name,
)
def test_no_error_is_above_its_bound(gc: GradientCode, dtype: type) -> None:
    for survivors in combinations(range(gc.workers), gc.workers - gc.stragglers):
        found = stability.measure(gc, [survivors], [dtype])
        result = np.float64 if dtype is np.float64 else np.float32
        assert 0 < found.errors[np.dtype(dtype).name][0] <= gc.error_bound(survivors, dtype, result=result)


def test_overflow_is_infinite() -> None:
    code = codes.from_generator([[1e5, 0], [0, 1], [1, 1]])
    with np.errstate(all="ignore"):
        found = stability.measure(schemes.grouped(3, code=code), [(0, 1), (1, 2)], [np.float16])
    assert found.errors["float16"][0] == np.inf


def test_wrong_sets_are_refused() -> None:
    gc = schemes.grouped(4, 4, 2)
    with pytest.raises(ValueError, match="survivor_sets"):
        stability.measure(gc, [])
    with pytest.raises(NotDecodableError):
        stability.measure(gc, [(0,)])


def test_decodable_sets_are_those_of_full_rank() -> None:
    code = codes.hamming(3)
    decodable = [s for s in combinations(range(7), 4) if np.linalg.matrix_rank(code.generator[list(s)]) == 4]
    assert list(code.decodable_sets()) == decodable


@pytest.mark.parametrize("d", range(2, 13))
def test_the_default_code_keeps_float32(d: int) -> None:
    for m in range(1, d):
        found = stability.measure(schemes.grouped(d, d, m), combinations(range(d), m), [np.float32])
        assert found.errors["float32"][0] <= 1e-5, (d, m)
