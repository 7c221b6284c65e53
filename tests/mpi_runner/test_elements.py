"""Narrow element types: one rounding a number at any magnitude, and nothing that does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from mpi_runner.elements import element_type, narrow, widen

SEED = 20240611
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


def round_trip(values: np.ndarray, name: str) -> np.ndarray | None:
    out = np.full(values.shape, 77, element_type(name))
    before = values.copy()
    exponent = narrow(values, out, np.empty_like(values))
    np.testing.assert_array_equal(values, before)
    if exponent is None:
        return None
    assert np.isfinite(out.astype(np.float64)).all()
    return widen(out, exponent, np.empty_like(values))


@pytest.mark.parametrize("source", [np.float32, np.float64], ids=lambda t: t.__name__)
@pytest.mark.parametrize("name", UNIT)
def test_one_rounding_at_any_magnitude(name: str, source: type) -> None:
    generator = np.random.default_rng(SEED)
    for power in [-100, -60, -14, -1, 0, 1, 15, 16, 60, 127]:
        values = (generator.uniform(-1, 1, 1001) * 2.0**power).astype(source)
        given = round_trip(values, name)
        assert given is not None
        # A float16 is subnormal below 2**-14, 2**28 below the top that the scale gives the largest number.
        floor = 2.0**-24 * 2.0 ** (power - 14) if name == "float16" else 0.0
        error = np.abs(given.astype(np.float64) - values)
        assert (error <= UNIT[name] * np.abs(values.astype(np.float64)) + floor).all(), f"2**{power}, seed {SEED}"


@pytest.mark.parametrize("name", UNIT)
def test_zeros_and_powers_of_two_are_exact(name: str) -> None:
    assert not np.any(round_trip(np.zeros(5, np.float32), name))
    values = np.array([1.0, -2.0, 0.5, 0.0, 8.0], np.float32)
    np.testing.assert_array_equal(round_trip(values, name), values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", UNIT)
def test_what_is_not_finite_does_not_fit(name: str, bad: float) -> None:
    assert round_trip(np.array([1.0, bad, 2.0]), name) is None


def test_what_rounds_to_infinity_does_not_fit() -> None:
    largest = np.finfo(np.float32).max
    assert round_trip(np.array([largest], np.float32), "bfloat16") is None
    assert round_trip(np.array([largest], np.float32), "float16") is None
    assert round_trip(np.array([2.0 * float(largest)]), "float32") is None
    assert round_trip(np.array([1e300]), "float16") is None
    assert round_trip(np.array([0.99 * largest], np.float32), "float16") is not None
    assert round_trip(np.array([0.99 * largest], np.float32), "bfloat16") is not None
