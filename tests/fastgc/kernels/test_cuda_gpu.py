"""The CUDA backend on a GPU: the bits of the CPU, streams, graphs. Only by ``make test-gpu``."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_support import same_bits

from fastgc import kernels
from fastgc.kernels import _cuda_tiles as tiles

pytestmark = pytest.mark.gpu
SHAPES = [(1, 1), (1, 8), (2, 2), (4, 4), (5, 3), (8, 8), (9, 5), (33, 40), (66, 17), (80, 100), (2, 400)]


@pytest.fixture(scope="module")
def cupy(request):
    missing = kernels.missing_backends().get("cuda")
    if missing is not None and request.config.getoption("markexpr") != "gpu":
        pytest.skip(missing)
    assert missing is None, missing  # who asks for these tests wants to know that they have not run
    import cupy

    return cupy


def dtype(name):
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def on_device(cupy, rows, offset=0):
    """The same rows on the device, `offset` elements into a buffer."""
    buffer = cupy.zeros((rows.shape[0], rows.shape[1] + offset), rows.dtype)
    view = buffer[:, offset:]
    view.view(f"u{rows.itemsize}")[...] = cupy.asarray(np.ascontiguousarray(rows).view(f"u{rows.itemsize}"))
    return view


@pytest.mark.parametrize("pair", tiles.PAIRS, ids="-".join)
@pytest.mark.parametrize(("P", "Q"), SHAPES)
def test_lincomb_has_the_bits_of_the_cpu(cupy, P, Q, pair):
    rng = np.random.default_rng([P, Q])
    kind, result = map(dtype, pair)
    columns = tiles.choose(*pair, P, Q).columns
    for length in (1, 7, 33, columns - 1, columns, columns + 9, 5 * columns + 5, 300_007):
        c = rng.standard_normal((P, Q))
        x = rng.standard_normal((Q, length), np.float32).astype(kind)
        before = rng.standard_normal((P, length), np.float32).astype(result)
        for accumulate in (False, True):
            wanted = kernels.lincomb(c, x, before.copy(), accumulate=accumulate)
            for offset, out_offset in ((0, 0), (1, 1), (3, 2)):
                out = on_device(cupy, before, out_offset)
                assert kernels.lincomb(c, on_device(cupy, x, offset), out, accumulate=accumulate) is out
                assert same_bits(cupy.asnumpy(out), wanted), (length, accumulate, offset, out_offset)


@pytest.mark.parametrize("pair", tiles.PAIRS, ids="-".join)
def test_encode_and_decode(cupy, pair):
    rng = np.random.default_rng(4)
    kind, result = map(dtype, pair)
    for d, m, length in [(1, 1, 7), (3, 2, 101), (4, 3, 100_000)]:
        c, g = rng.standard_normal((d, m)), rng.standard_normal((d, length), np.float32).astype(kind)
        wanted = kernels.encode(c, g, np.empty(-(-length // m), result))
        out = kernels.encode(c, on_device(cupy, g), cupy.empty(len(wanted), result))
        assert same_bits(cupy.asnumpy(out), wanted)
    for counts, m, length in [([3], 2, 101), ([2, 1, 3], 3, 1001), ([4] * 6, 4, 200_003)]:
        weights = [rng.standard_normal((m, q)) for q in counts]
        messages = [rng.standard_normal((q, -(-length // m)), np.float32).astype(kind) for q in counts]
        wanted = kernels.decode(weights, messages, length, np.empty(length, result))
        there = [on_device(cupy, x) for x in messages]
        out = kernels.decode(weights, there, length, cupy.empty(length, result))
        assert same_bits(cupy.asnumpy(out), wanted)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 24, 25, 32, 33, 48, 49, 64, 65])
def test_decoding_weights(cupy, k):
    rng = np.random.default_rng(k)
    generator = rng.standard_normal((k + 4, k))
    patterns = np.array([rng.permutation(k + 4)[:k] for _ in range(1001)])
    wanted = kernels.decoding_weights(generator, patterns)
    weights = kernels.decoding_weights(generator, patterns, backend="cuda")
    assert same_bits(cupy.asnumpy(weights), wanted)


def test_work_goes_to_the_current_stream_and_nothing_waits(cupy):
    rng = np.random.default_rng(5)
    c, x = rng.standard_normal((4, 4)), rng.standard_normal((4, 4_000_000), np.float32)
    there, out = cupy.asarray(x), cupy.zeros((4, 4_000_000), np.float32)
    kernels.lincomb(c, there, out)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(500):
            kernels.lincomb(c, there, out)
        assert not stream.done  # 500 times 128 MB take longer than starting them
        result = cupy.asnumpy(out, stream=stream)
    stream.synchronize()
    assert same_bits(result, kernels.lincomb(c, x))


@pytest.mark.parametrize(("P", "Q"), [(2, 3), (33, 40)])
def test_a_graph_replays_a_call(cupy, P, Q):
    rng = np.random.default_rng(6)
    c, x = rng.standard_normal((P, Q)), rng.standard_normal((Q, 10_007), np.float32)
    there, out = cupy.asarray(x), cupy.zeros((P, 10_007), np.float32)
    weights, messages = [c[:2, :2], c[:2, :2]], [there[:2], there[:2]]
    sums = cupy.zeros(20_014, np.float32)

    def call():
        kernels.lincomb(c, there, out)
        kernels.decode(weights, messages, 20_014, sums)

    call()  # loads the kernels
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        call()
        graph = stream.end_capture()
    for _ in range(3):
        fresh = rng.standard_normal(x.shape, np.float32)
        there.set(fresh)
        out.fill(0)
        cupy.cuda.Device().synchronize()
        graph.launch(stream)
        cupy.empty((P, 10_007), np.float32).fill(7)  # what the pool lends out meanwhile is no memory of the graph
        stream.synchronize()
        assert same_bits(cupy.asnumpy(out), kernels.lincomb(c, fresh))
        wanted = kernels.decode(weights, [fresh[:2], fresh[:2]], 20_014)
        assert same_bits(cupy.asnumpy(sums), wanted)


def test_arrays_of_pytorch_keep_their_memory(cupy):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.randn(3, 1001).to(kind)
        wanted = kernels.lincomb([[1.0, 2.0, 3.0]], x)
        out = torch.empty(1, 1001, dtype=kind, device="cuda")
        assert kernels.lincomb([[1.0, 2.0, 3.0]], x.cuda(), out) is out
        assert torch.equal(out.cpu(), wanted)


def test_arrays_on_the_host_are_refused(cupy):
    with pytest.raises(TypeError, match="on the device"):
        kernels.lincomb([[1.0]], np.ones((1, 3)), backend="cuda")
    with pytest.raises(TypeError, match="expected an array of CuPy"):
        kernels.lincomb([[1.0]], cupy.ones((1, 3)), np.ones((1, 3)))
    with pytest.raises(TypeError, match=r"inputs\[1\]: expected an array of CuPy"):
        kernels.lincomb([[1.0, 1.0]], [cupy.ones(3), np.ones(3)])
    with pytest.raises(TypeError, match=r"messages\[1\]: expected an array of CuPy"):
        kernels.decode([[[1.0]]] * 2, [cupy.ones((1, 3)), np.ones((1, 3))], 3)
