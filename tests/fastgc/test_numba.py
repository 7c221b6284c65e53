"""fastgc.numba: the kernels inside code that Numba compiles."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numba
import numpy as np
import pytest
from numba.core.errors import TypingError

import fastgc.numba as fnb
from fastgc import kernels
from fastgc.kernels import numba_kernels, numba_library

BF16 = np.dtype(ml_dtypes.bfloat16)
LIBRARY = numba_library.cell.value
EITHER = pytest.mark.parametrize("kernels_used", ["library", "numba"], indirect=True)


@pytest.fixture
def kernels_used(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled code calls the library, or the kernels written in Numba: it asks the cell at every call."""
    if request.param == "library" and not LIBRARY:
        pytest.skip("libfastgc has not been built")
    numba_library.cell.value = LIBRARY if request.param == "library" else 0
    yield
    numba_library.cell.value = LIBRARY


@numba.njit(cache=True)
def combined(c, x, out, accumulate):
    fnb.lincomb(c, x, out, accumulate)


@numba.njit(cache=True)
def combined_float16(c, x, out, accumulate):
    fnb.lincomb(c, x, out, accumulate=accumulate, half="float16")


@numba.njit(cache=True)
def combined_bfloat16(c, x, out, accumulate):
    fnb.lincomb(c, x, out, accumulate, "bfloat16")


def same(a, b):
    return a.tobytes() == b.tobytes()


@EITHER
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lincomb_on_arrays_and_tuples(dtype, kernels_used):
    rng = np.random.default_rng(1)
    c = rng.standard_normal((2, 3))
    for length in (1, 1003):
        x, before = (rng.standard_normal((n, length)).astype(dtype) for n in (3, 2))
        wide = np.zeros((6, length + 2), dtype)
        wide[::2, 1:-1] = x
        for accumulate in (False, True):
            wanted = kernels.lincomb(c, x, before.copy(), accumulate=accumulate)
            # Every other signature takes two seconds to compile: float64 has what float32 leaves out.
            narrow = dtype == np.float32
            for inputs in (x, tuple(x)) if narrow else (wide[::2, 1:-1],):
                out = tuple(row.copy() for row in before) if narrow and isinstance(inputs, tuple) else before.copy()
                for call in (combined, fnb.lincomb):
                    for row, start in zip(out, before, strict=True):
                        row[:] = start
                    assert call(c, inputs, out, accumulate) is None
                    assert same(np.stack(out), wanted), (length, accumulate)


F16, F32 = np.dtype(np.float16), np.dtype(np.float32)
# Types of the half, the inputs and the result. Each takes three to five seconds to compile.
HALVES = [
    (F16, F16, F16),
    (BF16, F32, BF16),
    *(pytest.param(*types, marks=pytest.mark.soak) for types in [(F16, F16, F32), (BF16, BF16, BF16)]),
]


@EITHER
@pytest.mark.parametrize(("half", "kind", "result"), HALVES, ids=str)
def test_half_types_by_their_bits(half, kind, result, kernels_used):
    call = combined_float16 if half == F16 else combined_bfloat16
    rng = np.random.default_rng(2)
    c = rng.standard_normal((2, 3))
    x = rng.standard_normal((3, 1003), np.float32)
    before = rng.standard_normal((2, 1003), np.float32).astype(result)
    for accumulate in (False, True):
        inputs, out, again = x.astype(kind), before.copy(), before.copy()
        wanted = kernels.lincomb(c, inputs, before.copy(), accumulate=accumulate)
        seen = [a.view(np.uint16) if a.dtype == half else a for a in (inputs, out, again)]
        call(c, seen[0], seen[1], accumulate)
        assert same(out, wanted), accumulate
        fnb.lincomb(c, seen[0], seen[2], accumulate, half=half.name)
        assert same(again, wanted)


@pytest.mark.parametrize("done", [True, False])
def test_what_the_library_is_given(done):
    """It has the call's arguments, and what it refuses is done without it."""
    seen = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p,
        ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int,
    )  # fmt: skip
    def library(*given):
        seen.append(given)
        return 0 if done else 1

    c, x, out = np.float64([[1, 2, 3], [4, 5, 6]]), np.ones((3, 1003), np.float32), np.full((2, 1003), 7, np.float32)
    numba_library.cell.value = ctypes.cast(library, ctypes.c_void_p).value or 0
    try:
        combined(c, x, out, True)
    finally:
        numba_library.cell.value = LIBRARY
    ((coefficient_type, _, P, Q, kind, _, result, _, length, accumulate, threads),) = seen
    assert (coefficient_type, P, Q, kind, result, length, accumulate, threads) == (2, 2, 3, 1, 1, 1003, 1, 1)
    assert np.unique(out, axis=1).tolist() == ([[7], [7]] if done else [[13], [22]])


CACHED = """
import sys
import numpy as np
import numba
from fastgc import native

if sys.argv[1] == "without":
    def absent():
        raise FileNotFoundError("moved away")
    native.get_library = absent
import fastgc.numba as fnb
from fastgc.kernels import numba_library

@numba.njit(cache=True)
def step(c, x, out):
    fnb.lincomb(c, x, out)

out = np.empty((1, 9), np.float32)
step(np.float64([[1, 2]]), np.ones((2, 9), np.float32), out)
assert (out == 3).all(), out
print(bool(numba_library.cell.value), sum(step.stats.cache_hits.values()))
"""


@pytest.mark.skipif(not LIBRARY, reason="libfastgc has not been built")
def test_what_numba_keeps_works_in_processes_with_the_library_and_without(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(CACHED)
    for how, printed in (("with", "True 0"), ("without", "False 1"), ("with", "True 1")):
        run = subprocess.run([sys.executable, script, how], capture_output=True, text=True, timeout=120, check=False)
        assert (run.returncode, run.stdout.strip()) == (0, printed), run.stderr


@EITHER
def test_elements_that_are_not_aligned(kernels_used):
    """The library refuses them, and Numba's kernels do not."""
    room = np.zeros(8 * 9 + 1, np.uint8)
    x = room[1:].view(np.float64).reshape(1, 9)
    x[:] = np.arange(9)
    out = np.empty((1, 9))
    combined(np.full((1, 1), 2.0), x, out, False)
    assert out.tolist() == [[2.0 * i for i in range(9)]]


def test_conversions_by_bits_are_those_of_the_processor():
    """The arithmetic on bits that machines without instructions for float16 take."""
    every = np.arange(65536, dtype=np.uint16)

    @numba.njit
    def widened(halves, out):
        for i in range(len(halves)):
            out[i] = numba_kernels._widen_bits(halves[i])

    @numba.njit
    def narrowed(numbers, out):
        for i in range(len(numbers)):
            out[i] = numba_kernels._narrow_bits(numbers[i])

    wide = np.empty(65536, np.float32)
    widened(every, wide)
    wanted = every.view(np.float16).astype(np.float32)
    number = ~np.isnan(wanted)
    assert same(wide[number], wanted[number])
    assert np.isnan(wide[~number]).all()
    finite = np.sort(wanted[np.isfinite(wanted)])
    middle = ((finite[1:] + finite[:-1].astype(np.float64)) / 2).astype(np.float32)
    parts = [finite, middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)]
    values = np.concatenate([*parts, np.float32([65519.99, 65520, 3e38, np.inf, -np.inf, 1e-40, 2.0**-25])])
    out = np.empty(len(values), np.uint16)
    narrowed(values, out)
    with np.errstate(over="ignore"):
        assert same(out.view(np.float16), values.astype(np.float16))
    nan = np.array([0x7F800001, 0xFF800001, 0x7FC12345, 0xFFFFFFFF], np.uint32).view(np.float32)
    narrowed(nan, out)
    assert out[:4].tolist() == [0x7E00, 0xFE00, 0x7E09, 0xFFFF]


X = np.ones((3, 8))
LINE = np.zeros(40)
BAD = {
    "Q": (np.ones((2, 4)), X, np.zeros((2, 8)), r"coefficients.*3 columns.*\(2, 4\)"),
    "P": (np.ones((3, 3)), X, np.zeros((2, 8)), r"out.*3 rows.*2"),
    "length": (np.ones((2, 3)), X, np.zeros((2, 9)), r"out.*length 8.*9"),
    "empty": (np.ones((2, 3)), X[:, :0], np.zeros((2, 0)), r"inputs.*length 0"),
    "nothing": (np.ones((0, 3)), X, np.zeros((0, 8)), r"coefficients.*at least one.*\(0, 3\)"),
    "infinite": (np.array([[1.0, np.inf, 1.0]]), X, np.zeros((1, 8)), r"coefficients\[0, 1\].*finite"),
    "too large": (np.array([[1e39]]), X[:1].astype("f"), np.zeros((1, 8), "f"), r"coefficients\[0, 0\].*finite"),
    "lengths": (np.ones((2, 2)), (LINE[:8], LINE[:9]), (LINE[20:28], LINE[30:38]), r"inputs\[1\].*length 8.*9"),
    "strides": (np.ones((2, 3)), np.ones((3, 16))[:, ::2], np.zeros((2, 8)), r"inputs.*contiguous.*16"),
    "out is an input": (np.ones((1, 1)), (LINE[:8],), (LINE[7:15],), r"out.*inputs row 0"),
    "out overlaps": (
        np.ones((2, 3)),
        X,
        np.lib.stride_tricks.as_strided(LINE, (2, 8), (56, 8)),
        r"out.*overlap each other",
    ),
}


@EITHER
@pytest.mark.parametrize("name", BAD)
def test_bad_values(name, kernels_used):
    c, x, out, message = BAD[name]
    before = [np.array(row) for row in out]
    for call in (combined, fnb.lincomb):
        if name == "strides" and call is fnb.lincomb:
            continue  # copies such inputs, as fastgc.kernels does
        with pytest.raises(ValueError, match=message) as caught:
            call(c, x, out, False)
        assert "\n" not in str(caught.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, out, strict=True))


@pytest.mark.parametrize(
    ("c", "x", "out", "message"),
    [
        (np.ones((2, 3), int), X, X, r"coefficients.*float32 or float64.*int64"),
        (np.ones(3), X, X, r"coefficients.*2-D"),
        (np.ones((2, 3)), X.astype(int), X, r"inputs.*float32, float64 or uint16.*int64"),
        (np.ones((2, 3)), X[0], X, r"inputs.*2-D array or a tuple"),
        (np.ones((2, 3)), (X, X), X, r"inputs.*1-D arrays in the tuple"),
        (np.ones((2, 2)), (X[0], X[0].astype("f")), X, r"inputs.*one element type"),
        (np.ones((2, 3)), X, X.astype("f"), r"out.*element type of inputs"),
        (np.ones((2, 3)), X.astype(np.uint16), X.astype("f"), r"half.*'float16' or 'bfloat16'"),
    ],
)
def test_bad_types(c, x, out, message):
    with pytest.raises(TypingError, match=message):
        combined(c, x, out, False)


def test_half_that_is_none():
    with pytest.raises(ValueError, match=r"half.*'int8'"):
        fnb.lincomb(np.ones((1, 1)), X[:1], np.zeros((1, 8)), half="int8")


@numba.njit(cache=True)
def weights_of(generator, patterns):
    return fnb.decoding_weights(generator, patterns)


def test_decoding_weights():
    rng = np.random.default_rng(3)
    generator = rng.standard_normal((6, 3))
    patterns = np.array([[0, 1, 2], [5, 3, 1]])
    wanted = kernels.decoding_weights(generator, patterns)
    for call in (weights_of, fnb.decoding_weights):
        weights, doubtful = call(generator, patterns)
        assert same(weights, wanted)
        assert not doubtful.any()
        assert call(np.vstack([generator, generator[:1]]), np.array([[0, 6, 1]]))[1].tolist() == [True]
        for bad, message in (
            ((generator.T.copy(), patterns), r"generator.*\(3, 6\)"),
            ((generator, patterns[:, :2]), r"patterns.*\(B, 3\).*\(2, 2\)"),
            ((generator, patterns + 1), r"patterns\[1\].*row 6.*6 rows"),
            ((generator, np.array([[1, 1, 2]])), r"patterns\[0\].*row 1 is named twice"),
            ((generator * np.inf, patterns), r"generator\[0, 0\].*finite"),
        ):
            with pytest.raises(ValueError, match=message):
                call(*bad)
    with pytest.raises(TypingError, match=r"patterns.*int64.*int32"):
        weights_of(generator, patterns.astype(np.int32))
