"""Compressed messages: one rounding a number at any magnitude, nothing that does not fit, and nothing lost for good."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastgc import CorruptMessageError, Noise, compression, schemes
from fastgc.compression import BLOCK, CHUNK, CODECS, Codec, ErrorFeedback, codec

SEED = 20240611
SOURCES = [np.float32, np.float64]
LENGTHS = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 1001]
NARROW = ["float16", "bfloat16", "int8"]


def values(length: int) -> Iterator[tuple[str, Any]]:
    """Rows of many kinds, in float64: any magnitude that float32 has, subnormal numbers, zeros, and a wide mixture."""
    rng = np.random.default_rng(SEED)
    for power in [-149, -148, -140, -127, -126, -100, -60, -14, -1, 0, 1, 15, 60, 126]:
        yield f"uniform, 2**{power}", rng.uniform(-1, 1, length) * 2.0**power
        yield f"powers of two, 2**{power}", rng.choice([-1.0, 1.0], length) * 2.0**power
    yield "zeros", np.zeros(length)
    yield "one number", np.eye(1, length, length // 2)[0] * 3.7e-5
    yield "sparse", rng.standard_normal(length) * (rng.random(length) < 0.05)
    yield "of very different sizes", rng.standard_normal(length) * np.exp2(rng.integers(-149, 120, length))
    yield "the largest", np.full(length, 127 * 2.0**120)
    yield "halfway", (rng.integers(-63, 63, length) + 0.5) * 2.0**-5
    yield "just above half a scale", np.full(length, 127.0 / 64 * (1 + 2.0**-23))


def floors(name: str, row: Any) -> Any:
    """The largest error of each number: half of the distance between two that can be written."""
    size = np.abs(row)
    if name == "int8":
        blocks = -(-len(row) // BLOCK)
        largest = np.zeros(blocks * BLOCK)
        largest[: len(row)] = size
        return np.repeat(largest.reshape(blocks, BLOCK).max(axis=1) / 127, BLOCK)[: len(row)]
    if name == "float16":  # with its scale it is subnormal 2**28 below the top, which is within 2 of the largest
        return np.maximum(2.0**-11 * size, 2.0**-25 * 2.0**-14 * size.max())
    return {"bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 0.0}[name] * size


@pytest.mark.parametrize("source", SOURCES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("name", CODECS)
def test_one_rounding_at_any_magnitude(name: str, source: type) -> None:
    made = codec(name)
    for length in LENGTHS:
        for what, wide in values(length):
            row = wide.astype(source)
            kept = row.copy()
            data = made.compress(row)
            np.testing.assert_array_equal(row, kept)
            assert (data.dtype, data.shape) == (np.uint8, (made.size(length),))
            given = made.decompress(data, length, np.full(length, np.nan, source))
            error = np.abs(given.astype(np.longdouble) - row)
            # float64 is rounded to float32 first. No step is smaller than that of the type or of the scales.
            least = {"int8": 2.0**-127, "float16": 2.0**-145, "bfloat16": 2.0**-134}.get(name, 2.0**-150)
            twice = 1 + (2.0**-20 if source is np.float64 else 0)
            allowed = np.maximum(floors(name, row.astype(np.float64)) * twice, 0 if name == "float64" else least)
            assert (error <= allowed).all(), (what, length, SEED)
            np.testing.assert_array_equal(given[row == 0], 0)


@pytest.mark.parametrize("source", SOURCES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("name", CODECS)
def test_what_is_left_out_is_a_number_itself(name: str, source: type) -> None:
    made = codec(name)
    for length in LENGTHS:
        for what, wide in values(length):
            row = wide.astype(source)
            given = made.decompress(made.compress(row), length, np.empty(length, source))
            rest = row - given
            exact = row.astype(np.longdouble) - given
            np.testing.assert_array_equal(rest.astype(np.longdouble), exact, err_msg=f"{what}, {length}, {SEED}")
            # What came through once comes through unchanged.
            again = made.decompress(made.compress(given), length, np.empty(length, source))
            np.testing.assert_array_equal(again, given, err_msg=what)


def reference_int8(row: Any) -> tuple[Any, Any]:
    """Numbers and exponents, one block after the other, in float64."""
    numbers, exponents = [], []
    for start in range(0, len(row), BLOCK):
        block = row[start : start + BLOCK].astype(np.float32).astype(np.float64)
        exponent = -126
        while np.abs(block).max() > 127 * 2.0**exponent:
            exponent += 1
        exponents.append(exponent)
        numbers += np.rint(block / 2.0**exponent).astype(int).tolist()
    return np.array(numbers), np.array(exponents)


def test_int8_is_what_the_table_says() -> None:
    made = codec("int8")
    for length in LENGTHS:
        for what, wide in values(length):
            row = wide.astype(np.float32)
            data = made.compress(row)
            numbers, exponents = reference_int8(row)
            np.testing.assert_array_equal(data[:length].view(np.int8), numbers, err_msg=what)
            np.testing.assert_array_equal(data[length:].view(np.int8), exponents, err_msg=what)


@pytest.mark.parametrize("source", SOURCES, ids=lambda t: t.__name__)
def test_float16_is_what_numpy_makes_of_scaled_numbers(source: type) -> None:
    made = codec("float16")
    for length in LENGTHS:
        for what, wide in values(length):
            row = wide.astype(source)
            data = made.compress(row)
            exponent = int(data[-2:].view(np.int16)[0])
            scaled = (row.astype(np.float64) * 2.0**exponent).astype(np.float16)
            np.testing.assert_array_equal(data[:-2].view(np.float16), scaled, err_msg=what)
            if row.any():
                assert 2**14 <= np.abs(scaled).max() <= 2**15 or exponent == 120, what  # 2**15: rounded up


def test_messages_longer_than_a_chunk() -> None:
    rng = np.random.default_rng(SEED)
    made = codec("int8")
    row = rng.standard_normal(CHUNK + BLOCK + 5).astype(np.float32)
    data = made.compress(row)
    first, rest = made.compress(row[:CHUNK]), made.compress(row[CHUNK:])
    np.testing.assert_array_equal(data[: len(row)], np.concatenate([first[:CHUNK], rest[: len(row) - CHUNK]]))
    np.testing.assert_array_equal(data[len(row) :], np.concatenate([first[CHUNK:], rest[len(row) - CHUNK :]]))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_fit(name: str, bad: float) -> None:
    made = codec(name)
    for length in (1, BLOCK + 2, CHUNK + 1):
        for place in {0, length // 2, length - 1}:
            row = np.ones(length, np.float32)
            row[place] = bad
            with pytest.raises(OverflowError, match=f"^message has numbers that {name} cannot hold"):
                made.compress(row)


def test_what_is_too_large_does_not_fit() -> None:
    largest = np.array([np.finfo(np.float32).max, 1.0], np.float32)
    fits = dict.fromkeys(("bfloat16", "float16"), 0.99 * largest) | {"int8": largest * 0.49, "float32": largest}
    for name, row in fits.items():
        assert np.isfinite(codec(name).decompress(codec(name).compress(row), 2)).all()
        too_large = [1.5 * largest.astype(np.float64), np.array([-1e300, 0.0])]
        too_large += [largest] if name != "float32" else []
        for wide in too_large:
            with pytest.raises(OverflowError):
                codec(name).compress(wide)


@pytest.mark.parametrize("name", CODECS)
def test_no_bytes_of_int8_are_read_as_infinity(name: str) -> None:
    """And whatever bytes come, reading them is refused or gives numbers of the right type."""
    rng = np.random.default_rng(SEED)
    made, length, read = codec(name), 100, 0
    for _ in range(200):
        data = rng.integers(0, 256, made.size(length), dtype=np.uint8)
        if name == "int8" and rng.random() < 0.5:
            data[length:] = rng.integers(-126, 121, made.size(length) - length).astype(np.int8).view(np.uint8)
        out = np.full(length, 7.0, np.float32)
        try:
            with np.errstate(all="ignore"):
                made.decompress(data, length, out)
        except ValueError:
            with pytest.raises(ValueError, match=f"^data must have {name} scales from"):
                made.check(data, length)
            assert (out == 7).all()
            continue
        read += 1
        if name == "int8":
            assert np.isfinite(out).all()
    assert read > 0 or name == "float16"


def test_sizes() -> None:
    sizes = {name: [codec(name).size(length) for length in (1, 32, 33, 100)] for name in CODECS}
    assert sizes == {
        "float32": [4, 128, 132, 400],
        "float64": [8, 256, 264, 800],
        "float16": [4, 66, 68, 202],
        "bfloat16": [2, 64, 66, 200],
        "int8": [2, 33, 35, 104],
    }


def test_numbers_are_a_view_where_there_is_no_scale() -> None:
    row = np.array([1.0, -2.0, 0.5], np.float32)
    for name in CODECS:
        data = codec(name).compress(row)
        numbers = codec(name).numbers(data)
        if name in ("float16", "int8"):
            assert numbers is None
        else:
            assert numbers is not None
            assert np.shares_memory(numbers, data)
            np.testing.assert_array_equal(numbers.astype(np.float32), row)


ROW, DATA = np.ones(40, np.float32), np.zeros(42, np.uint8)
INT8 = codec("int8")
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: codec("int4"), ValueError, "name must be one of float32, float64, float16, bfloat16, int8, not 'int4'"),
    (lambda: INT8.compress([1.0]), TypeError, "message must be a NumPy array, not list"),
    (lambda: INT8.compress(np.ones(3, np.int32)), TypeError, "message must be float32 or float64, not int32"),
    (lambda: INT8.compress(np.ones((2, 2))), ValueError, "message must be 1-D, contiguous and not empty, not of shape"),
    (lambda: INT8.compress(np.ones(0)), ValueError, "message must be 1-D, contiguous and not empty, not of shape"),
    (lambda: INT8.compress(np.ones(6)[::2]), ValueError, "message must be 1-D, contiguous and not empty"),
    (lambda: INT8.compress(ROW, DATA[1:]), ValueError, r"out must be contiguous and of shape \(42,\), not \(41,\)"),
    (lambda: INT8.compress(ROW, ROW), TypeError, "out must be a NumPy array of uint8, not float32"),
    (lambda: INT8.decompress(DATA, 41), ValueError, r"data must be contiguous and of shape \(43,\), not \(42,\)"),
    (lambda: INT8.decompress(DATA.view(np.int8), 40), TypeError, "data must be a NumPy array of uint8, not int8"),
    (lambda: INT8.decompress(DATA, 0), ValueError, "length must be an integer of at least 1, not 0"),
    (lambda: INT8.decompress(DATA, 40, np.ones(39)), ValueError, r"out must have shape \(40,\), not \(39,\)"),
    (lambda: INT8.decompress(DATA, 40, np.ones(40, int)), TypeError, "out must be float32 or float64, not int64"),
    (lambda: ErrorFeedback(INT8, 0, np.float32), ValueError, "length must be an integer of at least 1, not 0"),
    (lambda: ErrorFeedback(INT8, 3, np.float16), TypeError, "dtype must be float32 or float64, not float16"),
    (lambda: ErrorFeedback(INT8, 3, np.float32).compress(ROW), ValueError, r"message must be float32 of shape \(3,\)"),
    (lambda: ErrorFeedback(INT8, 40, np.float64).compress(ROW), ValueError, "message must be float64 of shape"),
]


@pytest.mark.parametrize(("make", "error", "pattern"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(make: Any, error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=f"^{pattern}") as caught:
        make()
    assert "\n" not in str(caught.value)


# Error feedback -------------------------------------------------------------------------------------------------------


def rows(count: int, length: int, dtype: Any) -> Any:
    return np.random.default_rng(SEED).standard_normal((count, length)).astype(dtype) * 1e-3


@pytest.mark.parametrize("dtype", SOURCES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("name", NARROW)
def test_nothing_is_lost_of_the_messages_that_are_used(name: str, dtype: type) -> None:
    """What was used, and what is still owed, are what was to be sent, but for the roundings of the additions."""
    length, count = 101, 200
    made, used = codec(name), np.random.default_rng(3).random(200) < 0.6
    feedback = ErrorFeedback(made, length, dtype)
    total = np.zeros(length, np.longdouble)
    true, rounding = total.copy(), total.copy()
    for row, taken in zip(rows(count, length, dtype), used, strict=True):
        before = feedback.residual.copy()
        sent = made.decompress(feedback.compress(row), length, np.empty(length, dtype))
        np.testing.assert_array_equal(feedback.residual, before)  # until it is known
        feedback.settle(bool(taken))
        if taken:
            rounding += np.spacing(np.abs(row + before)) / 2
            total += sent
            true += row
        else:
            np.testing.assert_array_equal(feedback.residual, before)
    difference = np.abs(total + feedback.residual - true)
    assert (difference <= rounding).all(), SEED
    # Without feedback the errors add up.
    plain = sum(made.decompress(made.compress(row), length, np.empty(length, dtype)).astype(np.longdouble)
                for row, taken in zip(rows(count, length, dtype), used, strict=True) if taken)  # fmt: skip
    assert np.abs(plain - true).max() > 3 * np.abs(total - true).max()


@pytest.mark.parametrize("name", NARROW)
def test_conservation_is_exact_where_additions_are(name: str) -> None:
    """Multiples of 2**-20 below 8, added a thousand times: float64 holds every sum."""
    rng = np.random.default_rng(SEED)
    made, feedback = codec(name), ErrorFeedback(codec(name), 50, np.float64)
    true, total = np.zeros(50), np.zeros(50)
    for _ in range(1000):
        row = rng.integers(-(2**23), 2**23, 50) * 2.0**-20
        total += made.decompress(feedback.compress(row), 50, np.empty(50))
        feedback.settle(True)
        true += row
    np.testing.assert_array_equal(total + feedback.residual, true)


def test_what_is_not_settled_was_not_used() -> None:
    made, row = codec("int8"), rows(3, 40, np.float32)
    one, other = (ErrorFeedback(made, 40, np.float32) for _ in range(2))
    for feedback in (one, other):
        feedback.compress(row[0])
        feedback.settle(True)
        feedback.settle(True)  # said again
    owed = one.residual.copy()
    assert owed.any()
    one.compress(row[1])
    one.settle(False)
    one.settle(True)  # too late
    other.compress(row[1])  # and nothing is said
    for feedback in (one, other):
        np.testing.assert_array_equal(feedback.residual, owed)
    np.testing.assert_array_equal(one.compress(row[2]), other.compress(row[2]))
    np.testing.assert_array_equal(one.compress(row[2]), made.compress(row[2] + owed))
    one.reset()
    assert not one.residual.any()


def test_the_residual_is_kept_where_a_message_does_not_fit() -> None:
    feedback = ErrorFeedback(codec("int8"), 40, np.float32)
    feedback.compress(rows(1, 40, np.float32)[0])
    feedback.settle(True)
    owed = feedback.residual.copy()
    for bad in (np.nan, np.inf, 3e38):
        with pytest.raises(OverflowError):
            feedback.compress(np.full(40, bad, np.float32))
        feedback.settle(True)
        np.testing.assert_array_equal(feedback.residual, owed)
    with pytest.raises(ValueError, match="read-only"):
        feedback.residual[0] = 1


def test_units_are_reached_and_not_exceeded() -> None:
    rng = np.random.default_rng(SEED)
    for name in NARROW:
        made: Codec = codec(name)
        worst = 0.0
        for _ in range(2000):
            row = np.concatenate([[1.0 + rng.random()], rng.uniform(-1, 1, BLOCK - 1)]).astype(np.float32)
            error = np.abs(made.decompress(made.compress(row), BLOCK) - row).max()
            worst = max(worst, float(error / np.abs(row).max()))
        assert 0.7 * made.unit < worst <= made.unit, name


def test_every_codec_has_a_name_and_says_what_it_is() -> None:
    assert [codec(name).name for name in CODECS] == list(CODECS)
    assert set(compression.__all__) == {"BLOCK", "CODECS", "Codec", "ErrorFeedback", "codec"}


# With verification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fed_back", [False, True], ids=["plain", "feedback"])
@pytest.mark.parametrize("name", NARROW)
def test_rounding_is_no_alarm_and_a_wrong_message_is(name: str, fed_back: bool) -> None:
    scheme, length, made = schemes.grouped(8, 4, 2), 3001, codec(name)
    rng = np.random.default_rng(SEED)
    feedback = [ErrorFeedback(made, scheme.message_length(length), np.float32) for _ in range(8)]
    rounding, magnitude = made.unit * ((2 + made.unit) if fed_back else 1), 0.0
    for iteration in range(20):
        gradients = (rng.standard_normal((8, length)) * 0.9**iteration).astype(np.float32)
        received = {}
        for worker, message in enumerate(scheme.encode_all(gradients)):
            data = feedback[worker].compress(message) if fed_back else made.compress(message)
            received[worker] = made.decompress(data, len(message))
            feedback[worker].settle(True)
        magnitude = max(magnitude, *(float(np.abs(message).max()) for message in received.values()))
        noise = Noise(magnitude=magnitude, rounding=rounding)
        assert scheme.decode(received, length, verify=noise).corrupt == (), (iteration, SEED)
        received[5] = -received[5]
        assert scheme.decode(received, length, verify=noise).corrupt == (5,), (iteration, SEED)
    with pytest.raises(CorruptMessageError):  # as if nothing had been rounded
        scheme.decode({worker: received[worker] for worker in (0, 1, 2, 4, 6, 7)}, length, verify=True)
