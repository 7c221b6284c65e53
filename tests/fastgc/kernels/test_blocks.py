"""encode and decode: blocks cut at a gradient's end, and the tree over groups."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_support import CPU_BACKENDS, DTYPES, GUARD, VARIANTS, gamma, same_bits
from ml_dtypes import bfloat16

from fastgc import kernels
from fastgc.kernels import _numba, reference

variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
backends = pytest.mark.parametrize("backend", CPU_BACKENDS)


def guarded_vector(length, dtype, fill=np.nan):
    buffer = np.full(length + 12, GUARD, dtype)
    view = buffer[5 : 5 + length]
    view[...] = fill
    return view, buffer


def guards_hold(buffer):
    return (buffer[:5] == GUARD).all() and (buffer[-7:] == GUARD).all()


def padded_blocks(gradient, m):
    """The blocks with zeros for what is absent, in longdouble: the definition, as the page of mathematics writes it."""
    block = -(-len(gradient) // m)
    full = np.zeros(m * block, np.longdouble)
    full[: len(gradient)] = gradient
    return full.reshape(m, block)


def encoded(c, g, dtype):
    """The exact message, and the sum of its terms' magnitudes."""
    rounded = c.astype(dtype).astype(np.longdouble)
    blocks = [padded_blocks(row, c.shape[1]) for row in g]
    return tuple(sum(of(r) @ of(b) for r, b in zip(rounded, blocks, strict=True)) for of in (np.positive, np.abs))


def check_encode(variant, c, g, wanted, before, accumulate, threads, dtype):
    """Run one case, of which `wanted` is `encoded`."""
    (d, m), length = c.shape, len(g[0])
    block = -(-length // m)
    out, buffer = guarded_vector(block, dtype, before if accumulate else np.nan)
    assert variant.encode(c, g, out, accumulate=accumulate, threads=threads) is out
    assert guards_hold(buffer), (variant.name, d, m, length)
    exact, magnitude = wanted
    if accumulate:
        exact, magnitude = exact + before, magnitude + np.abs(before)
    roundings = d * m * (1 if variant.fused else 2)
    assert (np.abs(out - exact) <= gamma(roundings, dtype) * magnitude).all(), (variant.name, d, m, length)
    return out


@dtypes
@pytest.mark.parametrize("m", range(1, 7))
def test_encode(m, dtype):
    rng = np.random.default_rng(m)
    for length in range(1, 71):
        for d in (1, 3):
            c = rng.standard_normal((d, m))
            g = rng.standard_normal((d, length)).astype(dtype)
            before = rng.standard_normal(-(-length // m)).astype(dtype)
            wanted = encoded(c, g, dtype)
            for accumulate in (False, True):
                results = [check_encode(v, c, g, wanted, before, accumulate, 1, dtype) for v in VARIANTS]
                fused = [r for r, v in zip(results, VARIANTS, strict=True) if v.fused]
                assert all(same_bits(fused[0], other) for other in fused)
        ours = reference.encode(c.astype(dtype), g.astype(np.longdouble))
        np.testing.assert_allclose(ours.astype(float), results[0] - before, rtol=0, atol=1e-4)


@dtypes
@variants
def test_encode_gradient_by_gradient(variant, dtype):
    rng = np.random.default_rng(2)
    for m, length in [(1, 50), (3, 1), (3, 100), (4, 1001)]:
        c = rng.standard_normal((4, m))
        g = rng.standard_normal((4, length)).astype(dtype)
        parts = variant.encode(c[:1], g[:1])
        for j in range(1, 4):
            variant.encode(c[j : j + 1], [g[j]], parts, accumulate=True)
        assert same_bits(parts, variant.encode(c, g))


def random_groups(rng, counts, m, length, dtype):
    block = -(-length // m)
    weights = [rng.standard_normal((m, q)) for q in counts]
    messages = [rng.standard_normal((q, block)).astype(dtype) for q in counts]
    return weights, messages


def streamed(variant, weights, messages, length, lo, hi):
    """What a master does that decodes each group as it completes."""
    if hi - lo == 1:
        return variant.decode([weights[lo]], [messages[lo]], length)
    mid = (lo + hi) // 2
    left = streamed(variant, weights, messages, length, lo, mid)
    right = streamed(variant, weights, messages, length, mid, hi)
    return variant.lincomb([[1, 1]], [left, right])[0]


def decoded(weights, messages, length, dtype):
    """The exact sum over groups, and that of its terms' magnitudes."""
    exact = magnitude = 0
    for w, x in zip(weights, messages, strict=True):
        rounded = w.astype(dtype).astype(np.longdouble)
        wide = x.astype(np.longdouble)
        exact = exact + (rounded @ wide).reshape(-1)[:length]
        magnitude = magnitude + (np.abs(rounded) @ np.abs(wide)).reshape(-1)[:length]
    return exact, magnitude


def check_decode(variant, weights, messages, wanted, length, threads, dtype):
    """Run one case, of which `wanted` is `decoded`."""
    m = len(weights[0])
    out, buffer = guarded_vector(length, dtype)
    assert variant.decode(weights, messages, length, out, threads=threads) is out
    case = (variant.name, [w.shape for w in weights], length)
    assert guards_hold(buffer), case
    exact, magnitude = wanted
    depth = (len(weights) - 1).bit_length()
    roundings = max(len(x) for x in messages) * (1 if variant.fused else 2) + depth
    assert (np.abs(out - exact) <= gamma(roundings, dtype) * magnitude).all(), case
    assert same_bits(out, streamed(variant, weights, messages, length, 0, len(weights))), (*case, m)
    return out


@dtypes
@pytest.mark.parametrize("m", range(1, 7))
def test_decode(m, dtype):
    rng = np.random.default_rng(m)
    for length in range(1, 71):
        groups = random_groups(rng, [m, m + 1, 1][: 1 + length % 3], m, length, dtype)
        wanted = decoded(*groups, length, dtype)
        results = [check_decode(v, *groups, wanted, length, 1, dtype) for v in VARIANTS]
        fused = [r for r, v in zip(results, VARIANTS, strict=True) if v.fused]
        assert all(same_bits(fused[0], other) for other in fused)
        ours = reference.decode(
            [w.astype(dtype) for w in groups[0]], [x.astype(np.longdouble) for x in groups[1]], length
        )
        np.testing.assert_allclose(ours.astype(float), results[0], rtol=0, atol=1e-4)


@dtypes
@pytest.mark.parametrize("m", [7, 9])
def test_decode_of_few_rows_beside_many(m, dtype):
    """A gradient that ends in its last block is decoded in two stretches, each cut as suits the one with more rows."""
    rng = np.random.default_rng(m)
    for length in (m * 600 - 350, m * 30_000 - 13):
        groups = random_groups(rng, [20], m, length, dtype)
        wanted = decoded(*groups, length, dtype)
        results = [check_decode(v, *groups, wanted, length, 1, dtype) for v in VARIANTS]
        fused = [r for r, v in zip(results, VARIANTS, strict=True) if v.fused]
        assert all(same_bits(fused[0], other) for other in fused)


@dtypes
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33])
def test_decode_adds_groups_by_the_tree(count, dtype):
    rng = np.random.default_rng(count)
    for m, length in [(1, 5), (2, 1001), (3, 100), (9, 1000)]:
        groups = random_groups(rng, [1 + g % 4 for g in range(count)], m, length, dtype)
        wanted = decoded(*groups, length, dtype)
        results = [check_decode(v, *groups, wanted, length, None, dtype) for v in VARIANTS]
        fused = [r for r, v in zip(results, VARIANTS, strict=True) if v.fused]
        assert all(same_bits(fused[0], other) for other in fused)


@dtypes
@variants
def test_threads_and_chunks_change_no_bit(variant, dtype, monkeypatch):
    monkeypatch.setattr(_numba, "GRAIN", 100_000)
    rng = np.random.default_rng(8)
    for counts, m, length in [([3, 2, 4, 2, 3], 2, 700_001), ([6], 3, 400_000), ([2] * 7, 4, 500_007)]:
        weights, messages = random_groups(rng, counts, m, length, dtype)
        wanted = decoded(weights, messages, length, dtype)
        one, two = (check_decode(variant, weights, messages, wanted, length, n, dtype) for n in (1, 2))
        assert same_bits(one, two)
    c = rng.standard_normal((3, 4))
    g = rng.standard_normal((3, 1_000_003)).astype(dtype)
    wanted = encoded(c, g, dtype)
    one, two = (check_encode(variant, c, g, wanted, None, False, n, dtype) for n in (1, 2))
    assert same_bits(one, two)


@variants
def test_decode_inverts_encode(variant):
    rng = np.random.default_rng(9)
    generator = rng.standard_normal((5, 3))
    gradients = rng.standard_normal((5, 100))
    survivors = [0, 2, 4]
    messages = [variant.encode(np.tile(generator[p], (5, 1)), gradients) for p in survivors]
    weights = kernels.decoding_weights(generator, survivors)
    np.testing.assert_allclose(variant.decode([weights], [messages], 100), gradients.sum(axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, bfloat16], ids=lambda t: t.__name__)
@variants
def test_decode_checked_judges_what_it_decodes(variant, kind):
    """By the sum of the squares of each group's syndromes over a stretch of columns."""
    rng = np.random.default_rng(10)
    wide = np.float64 if kind is np.float64 else np.float32
    for counts, m, spares, length in [
        ([3], 2, [1], 1), ([3], 2, [1], 101), ([4, 2, 3], 3, [2, 0, 1], 40_001), ([9], 3, [6], 70_000),
        ([2] * 5, 1, [1] * 5, 8192), ([5, 4], 4, [0, 3], 3 * 16_384 + 1), ([17], 8, [9], 100_003),
        ([1, 2], 2, [1, 2], 50_000),
    ]:  # fmt: skip
        block = -(-length // m)
        weights = [rng.standard_normal((m, q)) for q in counts]
        checks = [rng.standard_normal((p, q)) for p, q in zip(spares, counts, strict=True)]
        messages = [rng.standard_normal((q, block)).astype(kind) for q in counts]
        starts = range(0, block, kernels.JUDGED)
        lengths = np.zeros((len(counts), len(starts)))
        for g, (check, rows) in enumerate(zip(checks, messages, strict=True)):
            syndromes = check @ rows.astype(np.float64)
            lengths[g] = np.sqrt(np.add.reduceat(syndromes**2, starts, axis=1).sum(axis=0))
        plain = variant.decode(weights, messages, length, np.empty(length, wide))

        def doubtful(floors, *, case=(weights, checks, messages, length), plain=plain):
            found = []
            for threads in (1, 2):
                gradient, numbers = variant.decode_checked(*case, floors, threads=threads)
                assert same_bits(gradient, plain)
                found.append(numbers)
            assert found[0] == found[1]
            return found[0]

        for stretch in range(len(starts)):
            floors = np.stack([np.zeros(len(counts)), lengths[:, stretch]], axis=1) * (1 + 2e-3)
            found = set(doubtful(floors))
            over, nearly = ((lengths > floors[:, 1:] * f).any(axis=0) for f in (1, 1 - 1e-3))
            assert set(np.flatnonzero(over)) <= found <= set(np.flatnonzero(nearly))
            for group in np.flatnonzero(spares):
                less = floors + 1e9
                less[group] = floors[group] * (1 - 3e-3)
                assert stretch in doubtful(less)
        if any(spares):
            largest = [np.maximum.reduceat(np.abs(x.astype(np.float64)), starts, axis=1).max(axis=0) for x in messages]
            for group in np.flatnonzero(spares):
                relative = np.zeros((len(counts), 2))
                relative[:, 1] = 1e9
                relative[group] = (lengths[group] / largest[group]).min() * (1 - 1e-3), 0.0  # never above the true one
                assert doubtful(relative) == list(range(len(starts)))
            assert doubtful(np.tile([1e5, 0.0], (len(counts), 1))) == []


@variants
def test_floors_of_decode_checked(variant):
    """What they are relative to, and where squares in float32 vanish."""
    messages = np.ones((3, 3 * kernels.JUDGED), np.float32)
    messages[:, kernels.JUDGED : 2 * kernels.JUDGED] = 1e-6
    case = [np.ones((2, 3))], [[[1.0, 2.0, 3.0]]], [messages], 6 * kernels.JUDGED
    length = 6.0 * np.sqrt(kernels.JUDGED)
    for floors, least, expected in (
        ([[length * 1.001, 0.0]], 0.0, []),
        ([[length * 0.999, 0.0]], 0.0, [0, 2]),  # the middle one's messages count as 1 / DYNAMIC_RANGE
        ([[length / 2, 0.0]], 2.1, []),
        ([[0.0, length * 0.999]], 0.0, [0, 2]),
        ([[0.0, np.inf]], 0.0, []),
        ([[0.0, np.nan]], 0.0, [0, 1, 2]),
    ):
        assert variant.decode_checked(*case, floors, least)[1] == expected, (floors, least)
    for kind, expected in ((np.float32, [0]), (np.float64, [])):
        tiny = np.full((2, 10), 1e-30, kind)
        floors = [[0.0, 1e-20]]
        assert variant.decode_checked([np.ones((1, 2))], [[[1.0, -1.0]]], [tiny], 10, floors)[1] == expected


@variants
def test_nothing_hides_what_is_not_finite(variant):
    messages = np.ones((3, 10_000), np.float32)
    for bad in (np.nan, np.inf, -np.inf, 3e38):
        messages[1, 5000] = bad
        for floors in ([[1e9, 0.0]], [[0.0, 1e9]], [[0.0, np.inf]]):
            _, doubtful = variant.decode_checked([np.ones((2, 3))], [[[1.0, 2.0, 3.0]]], [messages], 20_000, floors)
            assert doubtful == [1]


def test_bad_checks():
    for name in CPU_BACKENDS:
        for checks, floors, least, error, message in (
            ([np.ones((1, 3))], [[1, 1]], 0.0, ValueError, r"checks\[0\].*\(1, 2\).*\(1, 3\)"),
            ([np.ones((1, 2))] * 2, [[1, 1]], 0.0, ValueError, r"checks.*1 matrices.*2"),
            (3, [[1, 1]], 0.0, TypeError, r"checks.*int"),
            ([[[np.nan, 1]]], [[1, 1]], 0.0, ValueError, r"checks\[0\]\[0, 0\].*nan"),
            ([np.ones((1, 2))], [[1, 1, 1]], 0.0, ValueError, r"floors.*\(1, 2\).*\(1, 3\)"),
            ([np.ones((1, 2))], [[1, 1]], -1.0, ValueError, r"least.*0.*-1"),
            ([np.ones((1, 2))], [[1, 1]], np.nan, ValueError, r"least.*nan"),
        ):
            with pytest.raises(error, match=message):
                kernels.decode_checked([np.ones((1, 2))], checks, [np.ones((2, 5))], 5, floors, least, backend=name)


vector = np.zeros(60)
g, w = np.ones((2, 10)), [np.ones((3, 2))]
BAD_ENCODE = {
    "d": ((np.ones((3, 3)), g), {}, ValueError, r"coefficients.*2 rows.*\(3, 3\)"),
    "NaN": (([[1, np.nan]] * 2, g), {}, ValueError, r"coefficients\[0, 1\].*nan"),
    "m of zero": ((np.ones((2, 0)), g), {}, ValueError, r"coefficients.*\(2, 0\)"),
    "dtype": ((np.ones((2, 3)), np.ones((2, 10), int)), {}, TypeError, r"gradients.*int64"),
    "lengths": ((np.ones((2, 3)), [np.ones(10), np.ones(9)]), {}, ValueError, r"gradients\[1\].*10.*9"),
    "empty": ((np.ones((2, 3)), np.ones((2, 0))), {}, ValueError, r"gradients.*length 0"),
    "out length": ((np.ones((2, 3)), g, np.zeros(3)), {}, ValueError, r"out.*4.*3"),
    "out rows": ((np.ones((2, 3)), g, np.zeros((1, 4))), {}, ValueError, r"out.*1-D.*\(1, 4\)"),
    "out type": ((np.ones((2, 3)), g, np.zeros(4, np.float32)), {}, TypeError, r"out.*float64.*float32"),
    "out list": ((np.ones((2, 3)), g, [0.0] * 4), {}, TypeError, r"out.*list"),
    "out stride": ((np.ones((2, 3)), g, np.zeros(8)[::2]), {}, ValueError, r"out.*contiguous"),
    "out overlaps": (
        (np.ones((2, 3)), [vector[:10], vector[20:30]], vector[27:31]),
        {},
        ValueError,
        r"out.*gradients row 1",
    ),
    "accumulate": ((np.ones((2, 3)), g), {"accumulate": True}, ValueError, r"out.*accumulate"),
    "threads": ((np.ones((2, 3)), g), {"threads": 0}, ValueError, r"threads.*0"),
}
BAD_DECODE = {
    "no groups": (([], [], 10), ValueError, r"weights.*at least one"),
    "groups": ((w, [np.ones((2, 4))] * 2, 10), ValueError, r"messages.*1 group.*2"),
    "weights are no sequence": ((3, [np.ones((2, 4))], 10), TypeError, r"weights.*int"),
    "messages are no sequence": ((w, None, 10), TypeError, r"messages.*NoneType"),
    "q": ((w, [np.ones((3, 4))], 10), ValueError, r"weights\[0\].*\(3, 3\).*\(3, 2\)"),
    "m": (([*w, np.ones((2, 2))], [np.ones((2, 4))] * 2, 10), ValueError, r"weights\[1\].*\(3, 2\).*\(2, 2\)"),
    "block": ((w, [np.ones((2, 5))], 10), ValueError, r"messages\[0\].*4.*5"),
    "block of one": (([*w, *w], [np.ones((2, 4)), np.ones((2, 3))], 10), ValueError, r"messages\[1\].*4.*3"),
    "length 0": ((w, [np.ones((2, 4))], 0), ValueError, r"length.*0"),
    "length -1": ((w, [np.ones((2, 4))], -1), ValueError, r"length.*-1"),
    "length float": ((w, [np.ones((2, 4))], 10.0), TypeError, r"length.*10\.0"),
    "length bool": (([np.ones((1, 2))], [np.ones((2, 1))], True), TypeError, r"length.*True"),
    "NaN": (([[[np.nan, 1]]], [np.ones((2, 4))], 4), ValueError, r"weights\[0\]\[0, 0\].*nan"),
    "mixed": (([*w, *w], [np.ones((2, 4)), np.ones((2, 4), np.float32)], 10), TypeError, r"messages\[1\].*float32"),
    "empty group": ((w, [[]], 10), ValueError, r"messages\[0\].*at least one"),
    "message": ((w, [[np.ones(4), [1.0] * 4]], 10), TypeError, r"messages\[0\]\[1\].*list"),
    "out length": ((w, [np.ones((2, 4))], 10, np.zeros(12)), ValueError, r"out.*10.*12"),
    "out overlaps": ((w, [[vector[:4], vector[30:34]]], 10, vector[21:31]), ValueError, r"out.*messages\[0\] row 1"),
}


def unchanged_after(function, error, message, arguments, keywords):
    out = arguments[-1] if len(arguments) > 2 and isinstance(arguments[-1], np.ndarray) else None
    before = None if out is None else out.copy()
    with pytest.raises(error, match=message):
        function(*arguments, **keywords)
    assert out is None or np.array_equal(out, before)


@backends
@pytest.mark.parametrize("name", BAD_ENCODE)
def test_bad_input_to_encode(name, backend):
    arguments, keywords, error, message = BAD_ENCODE[name]
    unchanged_after(kernels.encode, error, message, arguments, {"backend": backend, **keywords})


@backends
@pytest.mark.parametrize("name", BAD_DECODE)
def test_bad_input_to_decode(name, backend):
    arguments, error, message = BAD_DECODE[name]
    unchanged_after(kernels.decode, error, message, arguments, {"backend": backend})
