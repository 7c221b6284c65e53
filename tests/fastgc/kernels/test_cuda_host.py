"""The CUDA kernels compiled for the host: the bits of the CPU's kernels over the table of shapes.

What runs is the backend but for CuPy: its checks, the launches it makes, and the kernels' source, with memory that is
checked (``cuda_host.py``).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cuda_host import Host, calls, library
from kernel_support import guarded, misaligned, same_bits
from test_lincomb import BAD as BAD_LINCOMB
from test_lincomb import good

from fastgc import kernels, linalg
from fastgc.kernels import _cuda_calls, _cuda_launches
from fastgc.kernels import _cuda_tiles as tiles

BF16 = np.dtype(ml_dtypes.bfloat16)
TYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": BF16}
# P and Q that meet every tile, exact or with rows and stages that are not full, and tables in arguments or not.
SHAPES = [
    (1, 1),
    (1, 2),
    (1, 7),
    (2, 3),
    (3, 5),
    (4, 4),
    (5, 2),
    (8, 9),
    (9, 3),
    (16, 31),
    (17, 20),
    (33, 40),
    (66, 17),
    (2, 400),
    (33, 300),
]
pairs = pytest.mark.parametrize("pair", tiles.PAIRS, ids="-".join)


def numbers(rng, shape, dtype):
    return rng.standard_normal(shape, np.float32).astype(dtype)


def lengths(kernel, many):
    """Around a line, a warp's and a block's columns, and more tiles than blocks at once."""
    wide = kernel.columns
    if many:
        return [wide + 9]
    return [1, 7, 8, 33, wide - 1, wide, wide + 9, 4 * wide + 5]


@pairs
@pytest.mark.parametrize(("P", "Q"), SHAPES)
def test_lincomb_has_the_bits_of_the_cpu(P, Q, pair):
    rng = np.random.default_rng([P, Q])
    kind, result = (TYPES[name] for name in pair)
    kernel = tiles.choose(*pair, P, Q)
    run, device = calls(reverse=bool(P % 2))
    offsets = {1: (0, 1), 2: (3, 3), 3: (2, 5)}
    for number, length in enumerate(lengths(kernel, Q > 100)):
        c = rng.standard_normal((P, Q))
        x, before = numbers(rng, (Q, length), kind), numbers(rng, (P, length), result)
        for accumulate in (False, True):
            # Rows aligned to lines, all off by as much, or each by another distance.
            at, out_at = offsets.get((number + accumulate) % 4, (0, 0))
            inputs = misaligned(x, at)
            out, buffer = guarded(P, length, result, before if accumulate else np.nan, out_at)
            whole = buffer.copy()
            device.allow()
            assert run.lincomb(c, inputs, out, accumulate=accumulate) is out
            assert device.launched[-1] == kernel.name
            case = (length, at, out_at, accumulate)
            wanted = kernels.lincomb(
                c, x, before.copy() if accumulate else np.empty_like(before), accumulate=accumulate
            )
            assert same_bits(out.copy(), wanted), case
            assert same_bits(inputs, x), case
            whole[:, out_at : out_at + length] = wanted
            assert same_bits(buffer, whole), case  # nothing beside the rows is written


@pairs
def test_aligned_rows_are_read_by_lines(pair, monkeypatch):
    """Where all rows begin a line at the same column, or there is a column where they do, the head is found."""
    found = []
    monkeypatch.setattr(
        _cuda_launches, "_head", lambda rows, head=_cuda_launches._head: found.append(head(rows)) or found[-1]
    )
    run, device = calls()
    kind, result = (TYPES[name] for name in pair)
    raw_in, raw_out = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint8)
    first_in, first_out = -raw_in.ctypes.data % 64, -raw_out.ctypes.data % 64
    each = 16 // min(np.dtype(kind).itemsize, np.dtype(result).itemsize)
    for before in range(each):
        for after in (0, 1):
            shift_in = first_in + (each - before) * np.dtype(kind).itemsize
            shift_out = first_out + (each - before + after) * np.dtype(result).itemsize
            x = raw_in[shift_in:].view(np.uint8)[: 5000 * np.dtype(kind).itemsize].view(kind)
            out = raw_out[shift_out:][: 5000 * np.dtype(result).itemsize].view(result)
            device.allow()
            run.lincomb([[1.0]], [x], [out])
            assert found[-1] == (before if after == 0 else -1) or (before == 0 and found[-1] in (0, -1))


def test_rows_by_stride_and_in_any_order():
    rng = np.random.default_rng(1)
    run, device = calls()
    c, x = rng.standard_normal((3, 4)), rng.standard_normal((4, 75))
    wanted = kernels.lincomb(c, x)
    wide = np.zeros((8, 150))
    wide[::2, ::2] = x
    layouts = {
        "list": list(x),
        "tuple": tuple(x),
        "stride": wide[::2, ::2],
        "backwards": x[::-1].copy()[::-1],
        "elements backwards": x[:, ::-1].copy()[:, ::-1],
        "fortran": np.asfortranarray(x),
        "columns": [np.repeat(row, 3)[::3] for row in x],
    }
    for name, inputs in layouts.items():
        device.allow()
        assert same_bits(run.lincomb(c, inputs), wanted), name
    interleaved = np.full((6, 75), np.nan)
    device.allow()
    run.lincomb(c, x, interleaved[::-2])
    assert same_bits(interleaved[::-2].copy(), wanted)
    assert np.isnan(interleaved[::2]).all()
    device.allow()
    assert same_bits(run.lincomb(c, np.broadcast_to(x[0], x.shape)), kernels.lincomb(c, [x[0]] * 4))


def test_rows_are_judged_by_their_ends_as_one_by_one():
    """Bounds, distances, alignment and overlaps of ranges are those of the same addresses in a list."""
    rng = np.random.default_rng(8)
    forms = [_cuda_launches.spaced(first, count, step) for first in (4096, 4100) for count in (1, 2, 5)
             for step in (-96, -48, -40, 0, 4, 36, 40, 48, 64)]  # fmt: skip
    lists = [rng.permutation(list(form)).tolist() for form in forms]
    for form, mixed in zip(forms, lists, strict=True):
        ours, theirs = (_cuda_launches.Rows(addresses, 10, "float32") for addresses in (form, mixed))
        assert (ours.bounds(), ours.distance() >= 40) == (theirs.bounds(), theirs.distance() >= 40)
        assert ours.offset() == theirs.offset() == (form[0] % 16 if len({a % 16 for a in form}) == 1 else -1)
        assert [ours.row(p).offset() for p in range(len(form))] == [a % 16 for a in form]
        for other in forms:
            rows = _cuda_launches.Rows([a + 200 for a in other], 10, "float32")
            alone = all(abs(a - b) >= 40 for i, a in enumerate(form) for b in form[:i])
            apart = all(abs(a - b) >= 40 for a in form for b in rows.addresses)
            for out in (ours, theirs):
                try:
                    _cuda_calls.Calls._refuse_overlap(out, "inputs", rows)
                    found = ""
                except ValueError as error:
                    found = str(error)
                assert found.startswith("" if alone and apart else "out: overlaps" if alone else "out: rows overlap")
                assert bool(found) == (not (alone and apart))


@pytest.mark.parametrize("half", [np.dtype(np.float16), BF16], ids=str)
def test_every_half_widens_and_every_float_rounds(half):
    run, device = calls()
    values = np.arange(65536, dtype=np.uint16).view(half)
    device.allow()
    wide = run.lincomb([[1]], values[None], np.empty((1, 65536), np.float32))[0]
    wanted = values.astype(np.float32)
    number = ~np.isnan(wanted)
    assert same_bits(wide[number], wanted[number])
    assert np.isnan(wide[~number]).all()
    every = np.sort(wanted[np.isfinite(wanted)])
    middle = ((every[1:] + every[:-1].astype(np.float64)) / 2).astype(np.float32)
    largest = np.float32(ml_dtypes.finfo(half).max)
    more = [np.inf, -np.inf, largest, -largest, 65519.99, 65520, 65536, 3.4e38, 2.0**-25, 1e-40, -1e-45, -0.0]
    x = np.concatenate([every, middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf), np.float32(more)])
    device.allow()
    out = run.lincomb([[1]], x[None], np.empty((1, len(x)), half))[0]
    with np.errstate(over="ignore"):
        assert same_bits(out, x.astype(half))
    device.allow()
    assert np.isnan(run.lincomb([[np.nan_to_num(1.0)]], np.float32([[np.nan]]), np.empty((1, 1), half))).all()


def test_zeros_keep_their_signs():
    """A chain begins with a product, not with +0 to which one is added."""
    x = np.array([[-0.0, 0.0, 1e-30, -1e-30]], np.float32)
    run, device = calls()
    for c in ([[1.0]], [[-1.0]], [[1e-30]], [[-1e-30]]):
        device.allow()
        out = run.lincomb(c, x)
        assert same_bits(out, kernels.lincomb(c, x)), c
        assert np.signbit(out).tolist() == np.signbit(np.float32(c[0][0]) * x).tolist()


@pytest.mark.parametrize("pair", [p for p in tiles.PAIRS if p[0] == p[1] or "float32" in p], ids="-".join)
def test_encode_and_decode(pair):
    rng = np.random.default_rng(4)
    kind, result = (TYPES[name] for name in pair)
    run, device = calls()
    for d, m, length in [(1, 1, 7), (3, 2, 101), (4, 3, 1000), (2, 5, 3), (3, 4, 9001)]:
        c, g = rng.standard_normal((d, m)), numbers(rng, (d, length), kind)
        before = numbers(rng, -(-length // m), result)
        for accumulate in (False, True):
            device.allow()
            out = run.encode(c, g, before.copy(), accumulate=accumulate)
            assert same_bits(out, kernels.encode(c, g, before.copy(), accumulate=accumulate)), (d, m, length)
    for counts, m, length in [([3], 2, 101), ([2, 1], 2, 50), ([2, 1, 3], 3, 1001), ([1, 2, 3, 4, 5], 1, 77),
                              ([4] * 6, 4, 2003), ([1] * 9, 9, 40)]:  # fmt: skip
        block = -(-length // m)
        weights = [rng.standard_normal((m, q)) for q in counts]
        messages = [numbers(rng, (q, block), kind) for q in counts]
        device.allow()
        out = run.decode(weights, messages, length, np.empty(length, result))
        assert same_bits(out, kernels.decode(weights, messages, length, np.empty(length, result))), (counts, m, length)


@pytest.mark.parametrize("k", [*range(1, 10), 11, 12, 15, 16, 17, 24, 31, 32, 33, 48, 54, 64, 65])
def test_decoding_weights_have_the_bits_of_the_cpu(k):
    rng = np.random.default_rng(k)
    gaussian = rng.standard_normal((k + 4, k))
    generators = {
        "gaussian": gaussian,
        "ties": rng.choice([-1.0, 1.0], (k + 4, k)),
        "sparse": rng.choice([-1.0, 0.0, 1.0], (k + 4, k)),
        "columns": gaussian * 10.0 ** rng.integers(-60, 60, k),
        "repeated": np.vstack([gaussian[:k], gaussian[[0] * 4] * [[1.0], [-2.0], [0.5], [0.0]]]),
    }
    for number, (name, generator) in enumerate(generators.items()):
        count = 21 if k < 30 else 5  # no multiple of the patterns of a block
        patterns = np.array([rng.permutation(k + 4)[:k] for _ in range(count)])
        if number == 0:
            patterns = patterns[linalg.rank(generator[patterns]) == k]
        run, device = calls(reverse=bool(number % 2), at_once=2)
        device.allow()
        weights, doubtful = run.decoding_weights(generator, patterns)
        wanted, sought = kernels._backend(None).decoding_weights(generator, patterns)
        assert doubtful == sought, name
        assert same_bits(weights, wanted), name
    device.allow()
    assert same_bits(run.decoding_weights(gaussian, np.arange(k))[0], kernels.decoding_weights(gaussian, np.arange(k)))


def test_patterns_on_the_device_are_checked_there():
    generator = np.random.default_rng(2).standard_normal((6, 3))
    patterns = np.array([[0, 1, 2], [3, 4, 6], [0, -1, 2], [1, 1, 2]])
    run, device = calls()
    device.allow()
    weights, flags = run.invert(generator, patterns)
    assert flags.tolist() == [0, 1, 1, 1]
    assert np.isnan(weights[1:3]).all()
    with pytest.raises(ValueError, match=r"patterns\[1\].*row 6.*6 rows"):
        run.decoding_weights(generator, patterns)
    for bad, message in (
        ((generator.T, patterns), r"generator.*C order|generator.*k <= n"),
        ((generator[:2], patterns), r"generator.*\(2, 3\)"),
        ((generator, patterns[:, :2].copy()), r"patterns.*k = 3"),
        ((generator, np.asfortranarray(patterns)), r"patterns.*C order"),
        ((generator[0], patterns), r"generator.*2 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            run.invert(*bad)
    with pytest.raises(TypeError, match=r"patterns.*int64.*int32"):
        run.invert(generator, patterns.astype(np.int32))
    device.allow()
    weights, flags = run.invert(generator, patterns[:0])
    assert weights.shape == (0, 3, 3)
    assert device.launched == []


@pytest.mark.parametrize("k", [5, 16, 40, 66])
def test_a_row_that_is_not_there_makes_only_its_pattern_singular(k):
    """Whichever lane reads it."""
    generator = np.random.default_rng(k).standard_normal((k + 4, k))
    patterns = np.tile(np.arange(k), (7, 1))
    patterns[1, 0], patterns[3, k - 1], patterns[4, k // 2] = -1, k + 4, 1 << 40
    run, device = calls(reverse=bool(k % 3))
    device.allow()
    weights, flags = run.invert(generator, patterns)
    assert flags.tolist() == [0, 1, 0, 1, 1, 0, 0]
    assert same_bits(weights[::2][[0, 1, 3]], kernels.decoding_weights(generator, patterns[[0, 2, 6]]))
    assert np.isnan(weights[[1, 3, 4]]).all()


OTHERS = ("byte order", "out unaligned", "backend", "backend type", "bytes", "longdouble", "text")


@pytest.mark.parametrize("name", [name for name in BAD_LINCOMB if name not in OTHERS])
def test_bad_input(name):
    change, error, message = BAD_LINCOMB[name]
    arguments = {"out": np.full((2, 8), 7.0), **good(), **change}
    if name == "accumulate alone":
        arguments["out"] = None
    out = arguments["out"]
    before = None if out is None else [np.array(row) for row in out]
    run, device = calls()
    with pytest.raises(error, match=message) as caught:
        run.lincomb(**arguments)
    assert "\n" not in str(caught.value)
    assert device.launched == []
    if before is not None:
        assert all(np.array_equal(a, b) for a, b in zip(before, out, strict=True))


def test_bad_input_to_encode_decode_and_what_is_missing():
    run, _ = calls()
    x = np.ones((3, 8), np.float32)
    for call, error, message in [
        (lambda: run.encode([[1.0]], x), ValueError, r"coefficients.*3 rows"),
        (lambda: run.encode([[1.0]] * 3, x, np.ones(7, np.float32)), ValueError, r"out.*length 8.*7"),
        (lambda: run.encode([[1.0]] * 3, x, accumulate=True), ValueError, r"out.*accumulate"),
        (lambda: run.encode([[1e39]] * 3, x), ValueError, r"coefficients\[0, 0\].*float32"),
        (lambda: run.decode([], [], 8), ValueError, r"weights.*at least one"),
        (lambda: run.decode([np.ones((1, 3))], [], 8), ValueError, r"messages.*1 groups"),
        (lambda: run.decode([np.ones((1, 3))], [x], 0), ValueError, r"length.*positive"),
        (lambda: run.decode([np.ones((1, 3))], [x], 9), ValueError, r"messages\[0\].*length 9.*8"),
        (lambda: run.decode([np.ones((2, 2))], [x], 16), ValueError, r"weights\[0\].*\(2, 3\)"),
        (lambda: run.decode([np.ones((1, 3))] * 2, [x, x.astype(float)], 8), TypeError, r"messages\[1\].*float64"),
        (lambda: run.decode([np.ones((1, 3))], [x], 8, x[0]), ValueError, r"out.*messages\[0\] row 0"),
        (lambda: run.decode([np.ones((1, 3))], [x], 8, np.ones(8)), TypeError, r"out.*float32.*float64"),
        (lambda: run.least_norm_weights(x, [0], x), ValueError, r"backend.*least_norm_weights"),
        (lambda: run.positions(3), ValueError, r"backend.*positions"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_blocks_have_equal_shares():
    shapes = []

    class Recorder(Host):
        def launch(self, kernel, work, argument):
            shapes.append((kernel.name, work.grid(self.at_once)))
            super().launch(kernel, work, argument)

    run = _cuda_calls.Calls(Recorder(at_once=4))
    run.lincomb([[1.0]], np.ones((1, 9 * 1024), np.float32))
    assert shapes.pop() == ("lincomb_float32_float32_1", (1, 3, 1))  # 9 tiles, 3 rounds of at most 4
    run.lincomb(np.ones((20, 1)), np.ones((1, 5 * 1024), np.float32))
    assert shapes.pop() == ("lincomb_float32_float32_16", (2, 2, 1))  # 5 tiles by 2 layers in 3 rounds


# The device itself ----------------------------------------------------------------------------------------------------


def test_the_host_notices_what_a_gpu_would_not_forgive(monkeypatch):
    library()
    run, device = calls()
    x = np.ones((2, 3000), np.float32)
    # The inputs are not shown to the device, so reading them is an error.
    device.view = lambda value, view=device.view: (view(value), device.allow())[0]
    with pytest.raises(AssertionError, match=r"a (read|write) .* not the launch's"):
        run.lincomb([[1.0, 1.0]], x)
    # Rows off a line are said to be on one.
    monkeypatch.setattr(_cuda_launches, "_head", lambda rows: 0)
    run, device = calls()
    with pytest.raises(AssertionError, match="not aligned to its 16 bytes"):
        run.lincomb([[1.0, 1.0]], misaligned(x, 1))
