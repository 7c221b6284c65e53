"""The library without Python: where it is, that it computes what the kernels do, and how it refuses."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastgc
from fastgc import codes, kernels, linalg, native

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing")

Array = npt.NDArray[Any]
TYPES = {np.dtype(np.float32): 1, np.dtype(np.float64): 2, np.dtype(np.float16): 3, np.dtype(ml_dtypes.bfloat16): 4}
F32, F64, F16, BF16 = TYPES
PAIRS = [(F32, F32), (F64, F64), (F16, F16), (BF16, BF16), (F16, F32), (BF16, F32), (F32, F16), (F32, BF16)]
OK, INVALID, NOT_DECODABLE = 0, 1, 2
I64 = ctypes.c_int64


class Group(ctypes.Structure):
    _fields_ = (("weights", ctypes.c_void_p), ("messages", ctypes.c_void_p), ("count", I64))


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = ctypes.CDLL(fastgc.get_library())
    for name in ("version", "error_message", "instruction_set", "available_instruction_set"):
        getattr(library, f"fastgc_{name}").restype = ctypes.c_char_p
    library.fastgc_message_length.restype = I64
    return library


def error(library: ctypes.CDLL) -> str:
    return str(library.fastgc_error_message().decode())


def address(array: Array | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def addresses(rows: Any) -> Any:
    return (ctypes.c_void_p * len(rows))(*(row.ctypes.data for row in rows))


def lincomb(library: ctypes.CDLL, c: Array, inputs: Any, out: Any, accumulate: bool = False, threads: int = 0) -> int:
    return int(
        library.fastgc_lincomb(
            TYPES[c.dtype], address(c), I64(c.shape[0]), I64(c.shape[1]), TYPES[inputs[0].dtype], addresses(inputs),
            TYPES[out[0].dtype], addresses(out), I64(len(inputs[0])), int(accumulate), threads,
        )
    )  # fmt: skip


def weights_of(library: ctypes.CDLL, generator: Array, patterns: Array, out: Array) -> int:
    n, k = generator.shape
    return int(
        library.fastgc_decoding_weights(
            address(generator), I64(n), I64(k), address(patterns), I64(len(patterns)), address(out), 0
        )
    )


def least_norm(library: ctypes.CDLL, generator: Array, patterns: Array, target: Array | None, out: Array) -> int:
    n, k = generator.shape
    batch, q = patterns.shape
    m = k if target is None else len(target)
    return int(
        library.fastgc_least_norm_weights(
            address(generator), I64(n), I64(k), address(patterns), I64(batch), I64(q), address(target), I64(m),
            address(out), 0,
        )
    )  # fmt: skip


# What it is -----------------------------------------------------------------------------------------------------------


def test_the_library_is_of_the_header_s_version(library: ctypes.CDLL) -> None:
    header = (Path(fastgc.get_include()) / "fastgc.h").read_text(encoding="utf-8")
    (version,) = re.findall(r"#define FASTGC_ABI_VERSION (\d+)", header)
    assert library.fastgc_abi_version() == int(version)
    if fastgc.__version__ != "0+unknown":
        assert library.fastgc_version().decode() == fastgc.__version__


def test_the_library_exports_what_the_header_declares(library: ctypes.CDLL) -> None:
    header = (Path(fastgc.get_include()) / "fastgc.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"FASTGC_API [^(;]*\b(fastgc_\w+)\(", header))
    assert len(declared) == 21
    assert all(hasattr(library, name) for name in declared)


def test_it_knows_the_instruction_sets(library: ctypes.CDLL) -> None:
    from fastgc import _core

    names = [name.decode() for name in iter_names(library)]
    assert names == list(_core.isas())
    assert library.fastgc_instruction_set().decode() == _core.isa()
    assert 1 <= library.fastgc_max_threads() <= (os.cpu_count() or 1)
    assert library.fastgc_available_instruction_set(-1) is None


def iter_names(library: ctypes.CDLL) -> Iterator[bytes]:
    for number in itertools.count():
        name = library.fastgc_available_instruction_set(number)
        if name is None:
            return
        yield name


def test_an_unknown_instruction_set_is_a_status(tmp_path: Path) -> None:
    program = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]);"
        "library.fastgc_error_message.restype = library.fastgc_instruction_set.restype = ctypes.c_char_p;"
        "print(library.fastgc_instruction_set(), library.fastgc_error_message().decode())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, fastgc.get_library()],
        env={**os.environ, "FASTGC_ISA": "quantum"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.startswith("None FASTGC_ISA=quantum: no such instruction set")


def test_what_has_not_been_built_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "_PACKAGE", tmp_path)
    for find in (native.get_include, native.get_library, native.get_prefix, native.get_cuda_sources):
        with pytest.raises(FileNotFoundError, match="has not been built"):
            find()


# The same bits as from Python -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.name)
def test_lincomb(library: ctypes.CDLL, source: np.dtype[Any], target: np.dtype[Any], accumulate: bool) -> None:
    rng = np.random.default_rng(1)
    for p, q, length in [(1, 1, 1), (2, 4, 1003), (7, 3, 64), (8, 64, 5000)]:
        coefficients = rng.standard_normal((p, q))
        inputs = rng.standard_normal((q, length)).astype(source)
        start = rng.standard_normal((p, length)).astype(target)
        expected = kernels.lincomb(coefficients, inputs, start.copy(), accumulate=accumulate)
        for kind in (np.float64, np.float32):
            c = coefficients.astype(kind)
            out = start.copy()
            assert lincomb(library, c, inputs, out, accumulate) == OK, error(library)
            wanted = expected if kind is np.float64 else kernels.lincomb(c, inputs, start.copy(), accumulate=accumulate)
            assert out.tobytes() == wanted.tobytes()
        wide_in, wide_out = np.zeros((q, length + 3), source), np.zeros((p, length + 5), target)
        wide_in[:, :length], wide_out[:, :length] = inputs, start
        status = library.fastgc_lincomb_strided(
            TYPES[F64], address(coefficients), I64(p), I64(q), TYPES[source], address(wide_in),
            I64(wide_in.strides[0]), TYPES[target], address(wide_out), I64(wide_out.strides[0]), I64(length),
            int(accumulate), 1,
        )  # fmt: skip
        assert status == OK, error(library)
        assert wide_out[:, :length].tobytes() == expected.tobytes()
        assert not wide_out[:, length:].any()


@pytest.mark.parametrize("length", [1, 7, 1000])
def test_encode_and_decode(library: ctypes.CDLL, length: int) -> None:
    gc = fastgc.schemes.grouped(8, load=4, reduction=2)
    gradients = np.random.default_rng(2).standard_normal((8, length)).astype(np.float32)
    size = library.fastgc_message_length(I64(length), I64(2))
    assert size == gc.message_length(length)
    messages = np.full((8, size), np.nan, np.float32)
    for worker in range(8):
        held = gradients[list(gc.assignment[worker])]
        c = np.ascontiguousarray(gc.coefficients(worker))
        status = library.fastgc_encode(
            TYPES[F64], address(c), I64(4), I64(2), TYPES[F32], addresses(held), I64(length), TYPES[F32],
            address(messages[worker]), 0, 0,
        )  # fmt: skip
        assert status == OK, error(library)
        assert messages[worker].tobytes() == gc.encode(worker, held).tobytes()

    survivors = (0, 3, 5, 6)  # two of each group
    groups = (Group * 2)()
    kept = []
    for g, members in enumerate([(0, 3), (5, 6)]):
        weights = np.ascontiguousarray(gc.decoding_weights(survivors)[:, [survivors.index(i) for i in members]])
        rows = (ctypes.c_void_p * 2)(*(messages[i].ctypes.data for i in members))
        kept += [weights, rows]
        groups[g] = Group(weights.ctypes.data, ctypes.cast(rows, ctypes.c_void_p), 2)
    out = np.full(length, np.nan, np.float32)
    status = library.fastgc_decode(groups, I64(2), I64(2), TYPES[F32], I64(length), TYPES[F32], address(out), 0)
    assert status == OK, error(library)
    assert out.tobytes() == gc.decode({i: messages[i] for i in survivors}, length).tobytes()


def test_weights(library: ctypes.CDLL) -> None:
    generator = codes.gaussian(7, 3, seed=1).generator
    patterns = np.array(list(itertools.permutations(range(7), 3)))
    out = np.full((len(patterns), 3, 3), np.nan)
    assert weights_of(library, generator, patterns, out) == OK, error(library)
    assert out.tobytes() == kernels.decoding_weights(generator, patterns).tobytes()
    patterns = np.array(list(itertools.combinations(range(7), 5)))
    target = np.random.default_rng(3).standard_normal((2, 3))
    for wanted in (target, None):
        out = np.full((len(patterns), 3 if wanted is None else 2, 5), np.nan)
        assert least_norm(library, generator, patterns, wanted, out) == OK, error(library)
        same = kernels.least_norm_weights(generator, patterns, np.eye(3) if wanted is None else wanted)
        assert out.tobytes() == same.tobytes()


def test_rank_is_decided_as_in_python(library: ctypes.CDLL) -> None:
    """Matrices around the limit: the smallest singular value is 10^-18 to 10^-10 of the largest."""
    rng = np.random.default_rng(4)
    seen = set()
    for k, q in [(1, 1), (2, 2), (3, 3), (5, 5), (8, 8), (3, 5), (6, 9)]:
        for exponent in np.linspace(-18, -10, 33):
            left = np.linalg.qr(rng.standard_normal((q, k)))[0]
            right = np.linalg.qr(rng.standard_normal((k, k)))[0]
            values = np.ones(k)
            values[-1] = 10.0**exponent if k > 1 else 1.0
            generator = np.ascontiguousarray(left * values @ right * 10.0 ** rng.integers(-100, 100, k))
            scaled = generator / np.linalg.norm(generator, axis=0)
            singular = np.linalg.svd(scaled, compute_uv=False)
            limit = 64 * q * np.finfo(float).eps
            if 0.9 < singular[-1] / singular[0] / limit < 1.1:
                continue  # where both would be right
            patterns = np.arange(q)[None]
            out = np.full((1, k, q), np.nan)
            status = least_norm(library, generator, patterns, None, out)
            decodable = linalg.rank(generator) == k
            assert status == (OK if decodable else NOT_DECODABLE), (k, q, exponent, error(library))
            assert np.isfinite(out).all() == decodable
            seen.add(decodable)
    assert seen == {True, False}


# Refusals -------------------------------------------------------------------------------------------------------------


def test_singular_patterns_are_a_status(library: ctypes.CDLL) -> None:
    generator = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    out = np.full((2, 2, 2), 7.0)
    assert weights_of(library, generator, np.array([[0, 2], [0, 1]]), out) == NOT_DECODABLE
    assert "patterns[1]" in error(library)
    assert (out == 7).all()
    huge = np.diag([1e-310, 1.0])
    assert weights_of(library, huge, np.array([[0, 1]]), out) == INVALID
    assert "overflow" in error(library)


BEYOND, ONES, INPUTS = np.array([[1, 1e39]]), np.ones((2, 2)), np.ones((2, 8), np.float32)


def refusals() -> dict[str, tuple[str, Any]]:

    def change(**changed: Any) -> Any:
        def call(library: ctypes.CDLL, out: Array) -> int:
            given = {
                "ctype": 2, "c": address(ONES), "P": 1, "Q": 2, "itype": 1, "inputs": addresses(INPUTS), "otype": 1,
                "out": addresses(out), "length": 8, "threads": 0, **changed,
            }  # fmt: skip
            outputs = given["out"](out) if callable(given["out"]) else given["out"]
            return int(
                library.fastgc_lincomb(
                    given["ctype"], given["c"], I64(given["P"]), I64(given["Q"]), given["itype"], given["inputs"],
                    given["otype"], outputs, I64(given["length"]), 0, given["threads"],
                )
            )  # fmt: skip

        return call

    def weights(**changed: Any) -> Any:
        def call(library: ctypes.CDLL, out: Array) -> int:
            generator = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 1.0]])
            generator[0, 0] = changed.get("first", 1.0)
            patterns = np.array([changed.get("pattern", [0, 1])])
            result = np.empty((1, 2, 2)) if changed.get("result", True) else None
            return int(
                library.fastgc_decoding_weights(
                    address(generator), I64(changed.get("n", 3)), I64(changed.get("k", 2)), address(patterns),
                    I64(changed.get("batch", 1)), address(result), 0,
                )
            )  # fmt: skip

        return call

    odd = (ctypes.c_void_p * 2)(INPUTS.ctypes.data, INPUTS.ctypes.data + 1)
    null = (ctypes.c_void_p * 2)(INPUTS.ctypes.data, None)
    return {
        "P": ("P: expected a positive number, got 0", change(P=0)),
        "Q": ("Q: expected a positive number, got -1", change(Q=-1)),
        "length": ("length: expected a positive number, got 0", change(length=0)),
        "huge": ("P: expected a positive number, got 9223372036854775807", change(P=2**63 - 1)),
        "coefficient type": ("coefficient_type: expected FASTGC_FLOAT32 or FASTGC_FLOAT64, got 3", change(ctype=3)),
        "input type": ("input_type: expected a fastgc_type, got 9", change(itype=9)),
        "output type": ("output_type: float32 inputs cannot go out as float64", change(otype=2)),
        "no coefficients": ("coefficients: is a null pointer", change(c=None)),
        "no inputs": ("inputs: is a null pointer", change(inputs=None)),
        "a null input": ("inputs[1]: is a null pointer", change(inputs=null)),
        "unaligned": ("inputs[1]: elements must be aligned to their size, 4 bytes", change(inputs=odd)),
        "not finite": (
            "coefficients[0, 1]: expected a number finite in float32",
            change(c=address(BEYOND)),
        ),
        "threads": ("threads: expected a positive number, or 0 for no limit, got -2", change(threads=-2)),
        "overlap": (
            "outputs: overlaps inputs[0] in memory",
            change(inputs=addresses(INPUTS), out=lambda _: addresses(INPUTS[:1])),
        ),
        "overlapping outputs": (
            "outputs: rows overlap each other in memory",
            change(P=2, c=address(ONES), out=lambda out: (ctypes.c_void_p * 2)(*[out.ctypes.data] * 2)),
        ),
        "k": ("k: expected at most n, which is 1, got 2", weights(n=1)),
        "batch": ("batch: expected a positive number, got 0", weights(batch=0)),
        "pattern": ("patterns[0]: row 3 is not among the generator's 3 rows", weights(pattern=[0, 3])),
        "twice": ("patterns[0]: row 1 is named twice", weights(pattern=[1, 1])),
        "generator": ("generator[0, 0]: expected a number finite in float64, got nan", weights(first=np.nan)),
        "no weights": ("weights: is a null pointer", weights(result=False)),
    }


@pytest.mark.parametrize("case", refusals())
def test_bad_arguments_are_refused(library: ctypes.CDLL, case: str) -> None:
    expected, call = refusals()[case]
    out = np.full((1, 8), 7, np.float32)
    assert call(library, out) == INVALID
    assert error(library).startswith(expected)
    assert "\n" not in error(library)
    assert (out == 7).all()
