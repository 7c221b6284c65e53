"""float16 and bfloat16, in and out: the bits of the float32 kernel, rounded once."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from kernel_support import CPU_BACKENDS, GUARD, VARIANTS, gamma, guarded, lengths, misaligned, same_bits

from fastgc import kernels, schemes
from fastgc.kernels import _numba, reference

BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
F32 = np.dtype(np.float32)
PAIRS = [(F16, F16), (F16, F32), (BF16, BF16), (BF16, F32), (F32, F16), (F32, BF16)]

halves = pytest.mark.parametrize("half", [F16, BF16], ids=str)
pairs = pytest.mark.parametrize(("kind", "result"), PAIRS, ids=lambda t: str(t))
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
backends = pytest.mark.parametrize("backend", CPU_BACKENDS)


def numbers(rng, shape, dtype):
    return rng.standard_normal(shape, np.float32).astype(dtype)


def wide(array):
    return np.ascontiguousarray(array).astype(np.float32)


def guards_are_whole(buffer, length, offset):
    guard = np.array(GUARD).astype(buffer.dtype)
    return (buffer[:, :offset] == guard).all() and (buffer[:, offset + length :] == guard).all()


@pairs
@pytest.mark.parametrize("Q", [1, 2, 3, 8, 19])
@pytest.mark.parametrize("P", [1, 2, 4, 7, 8, 9, 18])
def test_lincomb(P, Q, kind, result):
    rng = np.random.default_rng([P, Q])
    for length in [*lengths(np.float32)[::2], 3001]:
        c = rng.standard_normal((P, Q))
        x, before = numbers(rng, (Q, length), kind), numbers(rng, (P, length), result)
        for accumulate in (False, True):
            for variant, offset in zip([*VARIANTS, *VARIANTS], [0, 1, 3, 0, 5, 1, 3], strict=False):
                out, buffer = guarded(P, length, result, before if accumulate else np.nan, offset)
                inputs = misaligned(x, offset)
                assert variant.lincomb(c, inputs, out, accumulate=accumulate, threads=1) is out
                case = (variant.name, length, offset, accumulate)
                assert guards_are_whole(buffer, length, offset), case
                assert same_bits(inputs, x), case
                wanted = wide(before)
                variant.lincomb(c, wide(x), wanted, accumulate=accumulate)
                assert same_bits(out, wanted.astype(result)), case


@pairs
@variants
def test_error_is_that_of_float32_and_one_rounding(variant, kind, result):
    rng = np.random.default_rng(3)
    c, x = rng.standard_normal((3, 17)), numbers(rng, (17, 1003), kind)
    out = variant.lincomb(c, x, np.empty((3, 1003), result)).astype(np.longdouble)
    exact = reference.lincomb(c.astype(np.float32), x.astype(np.longdouble))
    magnitude = np.abs(c.astype(np.float32)).astype(np.longdouble) @ np.abs(x.astype(np.longdouble))
    chain = gamma(17 if variant.fused else 34, np.float32) * magnitude
    unit = 0.0 if result == F32 else float(ml_dtypes.finfo(result).eps) / 2
    assert (np.abs(out - exact) <= chain + unit * (np.abs(exact) + chain) + 2.0**-25).all()


@halves
@variants
def test_every_value_widens(variant, half):
    values = np.arange(65536, dtype=np.uint16).view(half)
    out = variant.lincomb([[1]], values[None], np.empty((1, 65536), F32))[0]
    wanted = values.astype(np.float32)
    number = ~np.isnan(wanted)
    assert same_bits(out[number], wanted[number])
    assert np.isnan(out[~number]).all()


@halves
@variants
def test_rounding_is_to_nearest_even(variant, half):
    every = np.arange(65536, dtype=np.uint16).view(half).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    middle = (every[1:] + every[:-1].astype(np.float64)) / 2  # exact in float32 but for the largest
    largest = np.float32(ml_dtypes.finfo(half).max)
    x = [
        every,
        middle,
        np.nextafter(middle.astype(np.float32), np.inf),
        np.nextafter(middle.astype(np.float32), -np.inf),
    ]
    x += [[np.inf, -np.inf, largest, -largest, 65519.99, 65520, 65536, 3.4e38, 2.0**-25, 1e-40, -1e-45]]
    values = np.concatenate([np.asarray(part, np.float32) for part in x])
    with np.errstate(over="ignore"):
        wanted = values.astype(half)
    assert same_bits(variant.lincomb([[1]], values[None], np.empty((1, len(values)), half))[0], wanted)


@pytest.mark.soak
@halves
def test_every_float32_is_rounded_alike(half):
    low = np.arange(1 << 22, dtype=np.uint32)
    alike = [variant for variant in VARIANTS if variant.fused]
    for high in range(1 << 10):
        values = (low + np.uint32(high << 22)).view(np.float32)[None]
        results = [variant.lincomb([[1]], values, np.empty(values.shape, half)) for variant in alike]
        assert all(same_bits(results[0], other) for other in results), high
        if half == BF16 and high % 4 == 0:  # the same numbers as sums of three, which are rounded in pairs
            parts, rest = [], values
            for _ in range(3):
                parts.append((rest.view(np.uint32) >> 16).astype(np.uint16).view(BF16)[0])
                rest = rest - parts[-1].astype(np.float32)
            sums = [variant.lincomb(np.ones((1, 3)), parts, np.empty(values.shape, half)) for variant in alike]
            assert all(same_bits(sums[0], other) for other in sums), high


@halves
def test_nan_has_the_same_bits_everywhere(half):
    bits = [0x7F800001, 0xFF800001, 0x7FC12345, 0xFFFFFFFF, 0x7F812345]
    values = np.array([bits], np.uint32).view(np.float32)
    results = [v.lincomb([[1]], values, np.empty((1, 5), half)) for v in VARIANTS if v.fused]
    assert np.isnan(results[0].astype(np.float32)).all()
    assert all(same_bits(results[0], other) for other in results)


@pairs
@variants
def test_encode_and_decode(variant, kind, result):
    rng = np.random.default_rng(4)
    for d, m, length in [(1, 1, 7), (3, 2, 101), (4, 3, 1000), (2, 5, 3), (3, 4, 90_001)]:
        c, g = rng.standard_normal((d, m)), numbers(rng, (d, length), kind)
        before = numbers(rng, -(-length // m), result)
        for accumulate in (False, True):
            out, wanted = before.copy(), wide(before)
            variant.encode(c, g, out, accumulate=accumulate)
            variant.encode(c, wide(g), wanted, accumulate=accumulate)
            assert same_bits(out, wanted.astype(result)), (d, m, length, accumulate)
    for counts, m, length in [([3], 2, 101), ([2, 1, 3], 3, 1001), ([1, 2, 3, 4, 5], 1, 77), ([4] * 6, 4, 200_003)]:
        block = -(-length // m)
        weights = [rng.standard_normal((m, q)) for q in counts]
        messages = [numbers(rng, (q, block), kind) for q in counts]
        out = variant.decode(weights, messages, length, np.empty(length, result))
        wanted = variant.decode(weights, [wide(x) for x in messages], length)
        assert same_bits(out, wanted.astype(result)), (counts, m, length)


@pairs
@pytest.mark.parametrize(("P", "Q", "length"), [(1, 3, 400_009), (4, 20, 50_021), (9, 40, 20_011)])
def test_threads_change_no_bit(P, Q, length, kind, result, monkeypatch):
    monkeypatch.setattr(_numba, "GRAIN", 100_000)
    rng = np.random.default_rng(length)
    c, x = rng.standard_normal((P, Q)), numbers(rng, (Q, length), kind)
    outs = [
        v.lincomb(c, x, np.empty((P, length), result), threads=n) for v in VARIANTS if v.fused for n in (1, 2, None)
    ]
    assert all(same_bits(outs[0], other) for other in outs)


@pytest.mark.parametrize(("kind", "result"), [pair for pair in PAIRS if pair[1] != F32], ids=lambda t: str(t))
@pytest.mark.parametrize("odd", [0, 1])
@variants
def test_what_passes_the_caches_has_the_bits_of_what_does_not(variant, odd, kind, result):
    rng = np.random.default_rng(6)
    for counts, m in [([4], 2), ([7], 1), ([3], 4), ([1], 8), ([2, 2], 2), ([1, 2, 3], 3)]:
        column = sum(counts) * np.dtype(kind).itemsize + m * np.dtype(result).itemsize
        block = 27_000_000 // column // 64 * 64 + odd  # more than a cache; odd rows agree nowhere on a line
        weights = [rng.standard_normal((m, q)) for q in counts]
        messages = [numbers(rng, (q, block), kind) for q in counts]
        out = variant.decode(weights, messages, m * block, np.empty(m * block, result)).reshape(m, block)
        for begin in (0, block // 2 - 13, block - 300):
            some = [x[:, begin : begin + 300] for x in messages]
            wanted = variant.decode(weights, some, m * 300, np.empty(m * 300, result)).reshape(m, 300)
            assert same_bits(out[:, begin : begin + 300], wanted), (counts, m, begin)


@halves
@variants
def test_same_type_by_default_and_in_any_memory(variant, half):
    rng = np.random.default_rng(5)
    c, x = rng.standard_normal((2, 3)), numbers(rng, (3, 50), half)
    wanted = variant.lincomb(c, x)
    assert wanted.dtype == half
    raw = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(half).reshape(x.shape)
    unaligned[...] = x
    for inputs in (list(x), np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], unaligned):
        assert same_bits(variant.lincomb(c, inputs), wanted)
    assert variant.encode(c[:1].T @ [[1.0]], x[:2][:1].repeat(3, 0)).dtype == half
    assert variant.decode([c], [x], 99).dtype == half


@backends
@pytest.mark.parametrize(
    ("kind", "result"), [(F16, BF16), (BF16, F16), (F16, np.float64), (np.float64, F16), (BF16, np.int16), (F32, "f8")]
)
def test_types_that_do_not_go_together(kind, result, backend):
    x, out = np.ones((2, 5), kind), np.full((1, 5), 7, result)
    for call in (
        lambda: kernels.lincomb([[1, 1]], x, out, backend=backend),
        lambda: kernels.encode([[1], [1]], x, out[0], backend=backend),
        lambda: kernels.decode([[[1, 1]]], [x], 5, out[0], backend=backend),
    ):
        with pytest.raises(TypeError, match=r"out.*dtype"):
            call()
    assert (out == 7).all()


@backends
def test_coefficient_too_large(backend):
    with pytest.raises(ValueError, match=r"coefficients\[0, 0\].*float32.*1e\+39"):
        kernels.lincomb([[1e39]], np.ones((1, 3), F16), backend=backend)
    assert np.isinf(kernels.lincomb([[1e38]], np.ones((1, 3), F16), backend=backend)).all()


@halves
def test_gradient_codes(half):
    rng = np.random.default_rng(6)
    gc = schemes.grouped(9, 3, 2)
    length = 101
    gradients = numbers(rng, (9, length), half)
    messages = {w: gc.encode(w, gradients[list(gc.assignment[w])]) for w in range(9) if w not in (1, 5, 6)}
    assert all(message.dtype == half for message in messages.values())
    narrow, full = gc.decode(messages, length), gc.decode(messages, length, dtype=np.float32)
    assert narrow.dtype == half
    assert full.dtype == F32
    assert same_bits(full.astype(half), narrow)
    unit = float(ml_dtypes.finfo(half).eps) / 2
    size = gc.amplification(list(messages)) * np.abs(wide(gradients)).max(1).sum()
    assert np.abs(full - wide(gradients).sum(0)).max() <= 1.1 * unit * size
    with pytest.raises(TypeError, match=r"messages.*float64"):
        gc.decode(messages, length, dtype=np.float64)
    with pytest.raises(TypeError, match=r"out.*float32"):
        gc.decode(messages, length, dtype=np.float32, out=np.empty(length, half))

    for worker in messages:
        encoder = gc.encoder(worker, length, half)
        for partition in reversed(gc.assignment[worker]):
            encoder.add(partition, gradients[partition])
        assert same_bits(encoder.message(), messages[worker])
    collector = gc.collector(length, half)
    for worker in reversed(list(messages)):
        collector.add(worker, messages[worker])
    assert same_bits(collector.gradient(np.empty(length, F32)), full)
    collector.reset()
    for worker, message in messages.items():
        collector.add(worker, message)
    assert same_bits(collector.gradient(), narrow)


def test_bfloat16_is_not_imported():
    code = (
        "import sys, numpy, fastgc; fastgc.kernels.lincomb([[1]], numpy.ones((1, 3), 'e'));"
        "print('ml_dtypes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
