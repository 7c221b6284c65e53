"""lincomb: every backend and instruction set against longdouble, and against each other bit for bit."""

from __future__ import annotations

import os
import secrets

import numpy as np
import pytest
from kernel_support import (
    CPU_BACKENDS,
    DTYPES,
    VARIANTS,
    Variant,
    gamma,
    guarded,
    guards_hold,
    lengths,
    misaligned,
    products,
    same_bits,
)

from fastgc import kernels
from fastgc.kernels import _numba, reference

variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
backends = pytest.mark.parametrize("backend", CPU_BACKENDS)


def check(variant: Variant, c, x, wanted, out_before, accumulate: bool, offset: int, threads: int | None, dtype):
    """Run one case, of which `wanted` has the `products`; returns the result after checking guards and the bound."""
    (P, Q), length = c.shape, x.shape[1]
    out, buffer = guarded(P, length, dtype, out_before if accumulate else np.nan, offset)
    inputs = x.copy()
    result = variant.lincomb(c, x, out, accumulate=accumulate, threads=threads)
    case = f"{variant.name}, {P}x{Q}, length {length}, offset {offset}, accumulate {accumulate}, threads {threads}"
    assert result is out
    assert guards_hold(buffer, length, offset), case
    assert same_bits(x, inputs), case
    exact, magnitude = wanted
    if accumulate:
        exact, magnitude = exact + out_before, magnitude + np.abs(out_before)
    roundings = Q if variant.fused else 2 * Q
    assert (np.abs(out - exact) <= gamma(roundings, dtype) * magnitude).all(), case
    return out


@dtypes
@pytest.mark.parametrize("Q", [1, 2, 3, 4, 5, 8, 17])
@pytest.mark.parametrize("P", [1, 2, 3, 4, 5, 6, 7, 8, 9, 18])
def test_values_and_bits(P, Q, dtype):
    rng = np.random.default_rng([P, Q])
    for length in lengths(dtype):
        c = rng.standard_normal((P, Q))
        x = rng.standard_normal((Q, length)).astype(dtype)
        before = rng.standard_normal((P, length)).astype(dtype)
        wanted = products(c, x, dtype)
        for accumulate in (False, True):
            fused = []
            for variant in VARIANTS:
                for offset in (0, 1, 3):
                    out = check(variant, c, misaligned(x, offset), wanted, before, accumulate, offset, 1, dtype)
                    if variant.fused:
                        fused.append(out)
            assert all(same_bits(fused[0], other) for other in fused), (length, accumulate)


@dtypes
@pytest.mark.parametrize(("P", "Q", "length"), [(1, 3, 400_009), (4, 4, 200_003), (9, 17, 50_021), (3, 40, 30_011)])
def test_threads_change_no_bit(P, Q, length, dtype, monkeypatch):
    monkeypatch.setattr(_numba, "GRAIN", 100_000)
    rng = np.random.default_rng(length)
    c = rng.standard_normal((P, Q))
    x = rng.standard_normal((Q, length)).astype(dtype)
    before = rng.standard_normal((P, length)).astype(dtype)
    wanted = products(c, x, dtype)
    for accumulate in (False, True):
        fused = []
        for variant in VARIANTS:
            one, two, free = (check(variant, c, x, wanted, before, accumulate, 0, n, dtype) for n in (1, 2, None))
            assert same_bits(one, two), variant.name
            assert same_bits(one, free), variant.name
            if variant.fused:
                fused.append(one)
        assert all(same_bits(fused[0], other) for other in fused)


@dtypes
@pytest.mark.parametrize(
    ("P", "Q", "length", "stride"),
    [
        (1, 40, 70_001, 0),  # passes over inputs, chains at rest in the outputs
        (8, 20, 30_011, 0),
        (20, 70, 1_003, 0),  # panels of inputs, several passes
        (9, 12, 3_001, 4096),  # rows that share the sets of the cache: panels are copied
        (9, 40, 700, 1024),
        (48, 2, 171_001, 0),  # many rows from memory: likewise
        (1, 2, 8_400_003, 0),  # results past the caches, in whole lines
        (4, 3, 2_100_013, 0),
        (4, 12, 2_100_013, 0),  # of more than 8 MiB each
        (5, 1, 1_700_000, 4096),
    ],
)
def test_every_way_of_cutting(P, Q, length, stride, dtype):
    """The sizes at which the core cuts differently (core.cpp); with a stride, rows lie a multiple of it apart."""
    rng = np.random.default_rng(length)
    c = rng.standard_normal((P, Q))
    x = rng.standard_normal((Q, length), np.float32).astype(dtype)
    if stride:
        x = np.resize(x, (Q, -(-length // stride) * stride))[:, :length]
    fused = [variant for variant in VARIANTS if variant.fused]
    wanted, _ = guarded(P, length, dtype)
    _numba.lincomb(c, x, wanted)
    for variant in fused[:-1]:
        for offset, threads in [(0, None), (3, 1)]:
            out, buffer = guarded(P, length, dtype, np.nan, offset)
            variant.lincomb(c, misaligned(x, offset) if offset else x, out, threads=threads)
            assert guards_hold(buffer, length, offset)
            assert np.array_equal(out.view(f"u{out.itemsize}"), wanted.view(f"u{out.itemsize}"))
    sample = np.linspace(0, length - 1, 1000).astype(int)
    exact, magnitude = products(c, x[:, sample], dtype)
    assert (np.abs(wanted[:, sample] - exact) <= gamma(Q, dtype) * magnitude).all()


@dtypes
@variants
def test_passes_with_accumulate_have_the_bits_of_one(variant, dtype):
    rng = np.random.default_rng(5)
    for P, Q, length in [(1, 2, 33), (3, 7, 130), (9, 9, 257)]:
        c = rng.standard_normal((P, Q))
        x = rng.standard_normal((Q, length)).astype(dtype)
        whole = variant.lincomb(c, x)
        for cut in range(1, Q):
            parts = variant.lincomb(c[:, :cut], x[:cut])
            variant.lincomb(c[:, cut:], x[cut:], parts, accumulate=True)
            assert same_bits(whole, parts), (P, Q, cut)


@dtypes
@variants
def test_ones_give_the_plain_sum(variant, dtype):
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((2, 1001)).astype(dtype)
    assert same_bits(variant.lincomb([[1, 1]], [a, b])[0], a + b)


@dtypes
@variants
def test_same_numbers_in_any_memory(variant, dtype):
    rng = np.random.default_rng(7)
    c = rng.standard_normal((3, 4))
    x = rng.standard_normal((4, 75)).astype(dtype)
    wanted = variant.lincomb(c, x)
    wide = np.zeros((8, 150), dtype)
    wide[::2, ::2] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(dtype).reshape(x.shape)
    unaligned[...] = x
    assert not unaligned.flags.aligned
    layouts = {
        "list": list(x),
        "tuple": tuple(x),
        "row stride": wide[::2, ::2][:, :],
        "negative row stride": x[::-1].copy()[::-1],
        "negative stride": x[:, ::-1].copy()[:, ::-1],
        "fortran": np.asfortranarray(x),
        "column of each": [np.repeat(row, 3)[::3] for row in x],
        "unaligned": unaligned,
        "read-only": np.frombuffer(x.tobytes(), dtype).reshape(x.shape),
    }
    for name, inputs in layouts.items():
        assert same_bits(variant.lincomb(c, inputs), wanted), name
    same_row = np.broadcast_to(x[0], x.shape)
    assert same_bits(variant.lincomb(c, same_row), variant.lincomb(c, [x[0]] * 4))
    interleaved = np.full((6, 75), np.nan, dtype)
    variant.lincomb(c, x, interleaved[::-2])
    assert same_bits(interleaved[::-2].copy(), wanted)
    assert np.isnan(interleaved[::2]).all()
    rows = [np.empty(75, dtype) for _ in range(3)]
    assert variant.lincomb(c, x, rows) is rows
    assert same_bits(np.stack(rows), wanted)


@variants
def test_coefficients_are_rounded_once(variant):
    x = np.ones((1, 5), np.float32)
    assert variant.lincomb([[0.1]], x)[0, 0] == np.float32(0.1)
    for same in ([[1]], [[True]], [[np.float32(1)]], np.ones((1, 1), np.float16), np.ones((1, 2))[:, ::2]):
        assert (variant.lincomb(same, x) == 1).all()


@dtypes
@variants
def test_special_values_go_their_way(variant, dtype):
    x = np.array([[np.nan, np.inf, -np.inf, 0, -0.0] * 7, [1, 1, 1, 1, 1] * 7], dtype)
    out = variant.lincomb([[1, 0], [0, 1]], x)
    assert np.array_equal(out[0], x[0], equal_nan=True)
    assert np.isnan(out[1].reshape(-1, 5)[:, :3]).all()
    assert (out[1].reshape(-1, 5)[:, 3:] == 1).all()


def good(dtype=np.float64):
    rng = np.random.default_rng(0)
    return {"coefficients": rng.standard_normal((2, 3)), "inputs": rng.standard_normal((3, 8)).astype(dtype)}


def with_nan():
    c = np.ones((2, 3))
    c[1, 2] = np.nan
    return c


def read_only(shape):
    out = np.zeros(shape)
    out.flags.writeable = False
    return out


def unaligned_out():
    return np.zeros(2 * 8 * 8 + 1, np.uint8)[1:].view(np.float64).reshape(2, 8)


shared = np.zeros((6, 8))
line = np.zeros(40)

BAD = {
    "integers": ({"inputs": np.ones((3, 8), int)}, TypeError, r"inputs.*float32.*int64"),
    "half into double": ({"inputs": np.ones((3, 8), np.float16)}, TypeError, r"out.*float16.*float64"),
    "bytes": ({"inputs": np.ones((3, 8), "V2")}, TypeError, r"inputs.*float16 or bfloat16.*V2"),
    "longdouble": ({"inputs": np.ones((3, 8), np.longdouble)}, TypeError, r"inputs.*longdouble|inputs.*float128"),
    "complex": ({"inputs": np.ones((3, 8), complex)}, TypeError, r"inputs.*complex128"),
    "byte order": ({"inputs": np.ones((3, 8), ">f8")}, TypeError, r"inputs.*native byte order"),
    "mixed types": ({"inputs": [np.ones(8), np.ones(8, np.float32), np.ones(8)]}, TypeError, r"inputs\[1\].*float32"),
    "lists": ({"inputs": [[1.0] * 8] * 3}, TypeError, r"inputs\[0\].*list"),
    "number": ({"inputs": 3}, TypeError, r"inputs.*int"),
    "text": ({"inputs": "abc"}, TypeError, r"inputs.*str"),
    "vector": ({"inputs": np.ones(8)}, ValueError, r"inputs.*2 dimensions.*\(8,\)"),
    "cube": ({"inputs": np.ones((3, 8, 1))}, ValueError, r"inputs.*\(3, 8, 1\)"),
    "rows of two dimensions": ({"inputs": [np.ones((2, 4))] * 3}, ValueError, r"inputs\[0\].*\(2, 4\)"),
    "lengths": ({"inputs": [np.ones(8), np.ones(8), np.ones(9)]}, ValueError, r"inputs\[2\].*8.*9"),
    "no length": ({"inputs": np.ones((3, 0))}, ValueError, r"inputs.*length 0"),
    "no rows": ({"inputs": []}, ValueError, r"inputs.*at least one"),
    "no rows in an array": ({"inputs": np.ones((0, 8))}, ValueError, r"inputs.*at least one"),
    "Q": ({"coefficients": np.ones((2, 4))}, ValueError, r"coefficients.*3.*\(2, 4\)"),
    "P of zero": ({"coefficients": np.ones((0, 3))}, ValueError, r"coefficients.*\(0, 3\)"),
    "Q of zero": ({"coefficients": np.ones((2, 0))}, ValueError, r"coefficients.*\(2, 0\)"),
    "flat coefficients": ({"coefficients": np.ones(3)}, ValueError, r"coefficients.*\(3,\)"),
    "NaN": ({"coefficients": with_nan()}, ValueError, r"coefficients\[1, 2\].*nan"),
    "infinity": ({"coefficients": [[1, 2, np.inf]] * 2}, ValueError, r"coefficients\[0, 2\].*inf"),
    "complex coefficients": ({"coefficients": np.ones((2, 3), complex)}, TypeError, r"coefficients.*complex128"),
    "text coefficients": ({"coefficients": [["a"] * 3] * 2}, TypeError, r"coefficients.*real numbers"),
    "ragged coefficients": ({"coefficients": [[1, 2, 3], [1]]}, TypeError, r"coefficients.*real numbers"),
    "accumulate alone": ({"accumulate": True}, ValueError, r"out.*accumulate"),
    "out type": ({"out": np.zeros((2, 8), np.float32)}, TypeError, r"out.*float64.*float32"),
    "out of integers": ({"out": np.zeros((2, 8), int)}, TypeError, r"out.*int64"),
    "out a list of lists": ({"out": [[0.0] * 8] * 2}, TypeError, r"out\[0\].*list"),
    "out rows": ({"out": np.zeros((3, 8))}, ValueError, r"out.*2 rows.*3"),
    "out length": ({"out": np.zeros((2, 9))}, ValueError, r"out.*8.*9"),
    "out vector": ({"out": np.zeros(8)}, ValueError, r"out.*\(8,\)"),
    "out read-only": ({"out": read_only((2, 8))}, ValueError, r"out.*read-only"),
    "out strided": ({"out": np.zeros((2, 16))[:, ::2]}, ValueError, r"out.*contiguous.*\(?.*16"),
    "out unaligned": ({"out": unaligned_out()}, ValueError, r"out.*aligned"),
    "out is an input": ({"inputs": shared[:3], "out": shared[2:4]}, ValueError, r"out.*inputs row 2"),
    "out shifted": ({"inputs": [line[:8]] * 3, "out": [line[7:15], line[20:28]]}, ValueError, r"out.*inputs row 0"),
    "out rows overlap": ({"out": [line[:8], line[7:15]]}, ValueError, r"out.*overlap each other"),
    "out broadcast": ({"out": np.lib.stride_tricks.as_strided(line, (2, 8), (0, 8))}, ValueError, r"out.*overlap"),
    "threads 0": ({"threads": 0}, ValueError, r"threads.*0"),
    "threads -1": ({"threads": -1}, ValueError, r"threads.*-1"),
    "threads bool": ({"threads": True}, TypeError, r"threads.*True"),
    "threads 1.5": ({"threads": 1.5}, TypeError, r"threads.*1\.5"),
    "backend": ({"backend": "fortran"}, ValueError, r"backend.*numba.*fortran"),
    "backend type": ({"backend": ["cpp"]}, (ValueError, TypeError), r"backend.*cpp"),
}
if np.dtype(np.longdouble) == np.float64:  # on Windows: one type with two names
    del BAD["longdouble"]


@backends
@pytest.mark.skipif(np.dtype(np.longdouble) != np.float64, reason="longdouble is a type of its own here")
def test_longdouble_that_is_float64(backend):
    x = np.arange(24, dtype=np.longdouble).reshape(3, 8)
    out = kernels.lincomb([[1, 2, 3]], x, backend=backend)
    assert same_bits(out, kernels.lincomb([[1, 2, 3]], x.astype(np.float64), backend=backend))


@backends
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, backend):
    change, error, message = BAD[name]
    arguments = {"backend": backend, "out": np.full((2, 8), 7.0), **good(), **change}
    if name == "accumulate alone":
        arguments["out"] = None
    out = arguments["out"]
    before = None if out is None else [np.array(row) for row in out]
    with pytest.raises(error, match=message):
        kernels.lincomb(arguments.pop("coefficients"), arguments.pop("inputs"), arguments.pop("out"), **arguments)
    if before is not None:
        assert all(np.array_equal(a, b) for a, b in zip(before, out, strict=True))


@backends
def test_coefficient_too_large_for_float32(backend):
    x = np.ones((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"coefficients\[0, 0\].*float32.*1e\+39"):
        kernels.lincomb([[1e39]], x, backend=backend)
    assert kernels.lincomb([[1e39]], x.astype(np.float64), backend=backend)[0, 0] == 1e39


@backends
def test_result_is_fresh_or_the_one_given(backend):
    x = np.ones((3, 8), np.float32)
    out = kernels.lincomb(np.ones((2, 3)), x, backend=backend)
    assert out.dtype == np.float32
    assert out.shape == (2, 8)
    assert out.flags.c_contiguous
    assert kernels.lincomb(np.ones((2, 3)), x, out, backend=backend) is out


def test_against_the_reference_at_random():
    seed = int(os.environ.get("FASTGC_TEST_SEED", secrets.randbits(32)))
    print(f"FASTGC_TEST_SEED={seed}")
    rng = np.random.default_rng(seed)
    for _ in range(150):
        dtype = DTYPES[rng.integers(2)]
        P, Q = (int(v) for v in rng.integers(1, 25, 2))
        length = int(rng.integers(1, 3000))
        scale = 10.0 ** rng.uniform(-3, 3, (Q, 1))
        c = rng.standard_normal((P, Q))
        x = (rng.standard_normal((Q, length)) * scale).astype(dtype)
        before = rng.standard_normal((P, length)).astype(dtype)
        accumulate = bool(rng.integers(2))
        offset = int(rng.integers(8))
        wanted = products(c, x, dtype)
        results = [check(v, c, x, wanted, before, accumulate, offset, None, dtype) for v in VARIANTS]
        fused = [r for r, v in zip(results, VARIANTS, strict=True) if v.fused]
        assert all(same_bits(fused[0], other) for other in fused)
        wide = x.astype(np.longdouble)
        start = before.astype(np.longdouble) if accumulate else None
        ours = reference.lincomb(c.astype(dtype), wide, start, accumulate=accumulate)
        magnitude = wanted[1] + np.abs(before)
        assert (np.abs(ours - fused[0]) <= gamma(Q + 1, dtype) * magnitude).all()


def test_from_compiled_code():
    numba = pytest.importorskip("numba")
    from fastgc.kernels import numba_kernels

    @numba.njit
    def twice(c, x, out):
        numba_kernels.lincomb(c, x, out, False)
        numba_kernels.lincomb(c, x, out, True)

    rng = np.random.default_rng(1)
    c = rng.standard_normal((2, 3))
    for dtype in DTYPES:
        x = rng.standard_normal((3, 40)).astype(dtype)
        out = np.empty((2, 40), dtype)
        twice(c, x, out)
        wanted = kernels.lincomb(c, x, backend="numba")
        kernels.lincomb(c, x, wanted, accumulate=True, backend="numba")
        assert same_bits(out, wanted)
    with pytest.raises(ValueError, match="contiguous"):
        twice(c, np.ones((3, 80))[:, ::2], np.empty((2, 40)))
    with pytest.raises(ValueError, match="expected coefficients"):
        twice(c, np.ones((3, 41)), np.empty((2, 40)))


@variants
@pytest.mark.parametrize(
    ("p", "q"),
    [(1, 2), (1, 30), (2, 40), (3, 20), (3, 27), (4, 64), (5, 26), (6, 33), (7, 9), (7, 25), (8, 64)]
    + [(12, 17), (16, 16), (16, 33), (24, 16), (33, 40), (64, 64)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda t: t.__name__)
def test_size_and_place_of_rows_leave_the_bits_alone(variant, p, q, dtype):
    """How a call is cut depends on what it moves and on where rows lie."""
    length = 1 + (9 << 20) // ((p + q) * np.dtype(dtype).itemsize)  # more than 8 MiB: read from memory
    rng = np.random.default_rng(p * q)
    c = rng.standard_normal((p, q))
    x = rng.standard_normal((q, length)).astype(dtype)
    whole = variant.lincomb(c, x)
    pieces = [variant.lincomb(c, x[:, begin : begin + 999]) for begin in range(0, length, 999 * 7)]
    for piece, begin in zip(pieces, range(0, length, 999 * 7), strict=True):
        assert same_bits(piece, whole[:, begin : begin + 999]), (variant.name, p, q, begin)
    page = 4096 // np.dtype(dtype).itemsize
    short = 2 * page - 5
    far_x, far_out = np.empty((q, 2 * page), dtype)[:, :short], np.full((p, 2 * page), np.nan, dtype)
    far_x[:] = x[:, :short]
    assert variant.lincomb(c, far_x, far_out[:, :short]) is not None
    assert same_bits(far_out[:, :short], whole[:, :short]), (variant.name, p, q)
    assert np.isnan(far_out[:, short:]).all()
