"""The CUDA kernels against the device's limits, cuBLAS and PyTorch: ``python -m bench.gpu``.

Every case is checked against the bits of the CPU's kernel before it is timed. Contestants take turns; a time is the
median of several rounds, between events around calls that follow each other on one stream, so that of a short call is
what the host needs to start it. GB/s count every input row read once and every output row written once. The floor of a
case is the longer of two times: the device's own copy of as many bytes, which are read and written likewise, and the
arithmetic at the rate of fused multiply-adds measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import gpu_report
from bench.end_to_end import LENGTHS as WHOLE_LENGTHS
from bench.end_to_end import SCHEMES
from bench.environment import machine
from fastgc import kernels
from fastgc.gradient_code import GradientCode
from fastgc.kernels import _cuda_tiles as tiles

SHAPES = (
    (1, 1), (1, 2), (1, 8), (2, 2), (4, 4), (8, 8), (4, 16), (1, 64), (4, 64), (16, 16), (32, 32), (64, 64)
)  # fmt: skip
LENGTHS = (10**4, 10**6, 10**7)
SIZES = (2, 3, 4, 5, 8, 10, 12, 16, 32, 64)  # of decoding weights
PATTERNS = 100_000
SHORT = 1000  # elements of a short row
TYPES = tuple(tiles.ELEMENTS)
ROUNDS = 11
Calls = dict[str, Callable[[], object]]
Record = dict[str, Any]

# Eight chains a thread, so that none waits for itself.
_FMA = """
extern "C" __global__ void fma_peak(T* out, int steps) {
    T a[8];
    const T b = T(0.5) + T(threadIdx.x) * T(1e-9), c = T(0.25);
    for (int i = 0; i < 8; ++i) a[i] = T(i);
    for (int s = 0; s < steps; ++s)
        for (int i = 0; i < 8; ++i) a[i] = a[i] * b + c;
    T sum = 0;
    for (int i = 0; i < 8; ++i) sum += a[i];
    if (sum == T(-1)) out[threadIdx.x] = sum;
}
"""


def dtype(name: str) -> np.dtype[Any]:
    """An element type by its name."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def times(cupy: Any, calls: Calls) -> dict[str, float]:
    """Seconds of each call on the device: the median over rounds of enough calls to take 2 ms."""
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()

    def elapsed(call: Callable[[], object], count: int) -> float:
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3 / count

    for call in calls.values():
        elapsed(call, 3)
    counts = {name: max(1, min(1000, round(2e-3 / elapsed(call, 3)))) for name, call in calls.items()}
    rounds = [{name: elapsed(call, counts[name]) for name, call in calls.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(each[name] for each in rounds) for name in calls}


def waits(cupy: Any, calls: Calls) -> dict[str, float]:
    """Seconds until the result of each call is there, the median over rounds."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            cupy.cuda.Device().synchronize()
            begin = time.perf_counter()
            call()
            cupy.cuda.Device().synchronize()
            found[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def numbers(cupy: Any, shape: tuple[int, ...], kind: np.dtype[Any], seed: int = 0) -> Any:
    """Normal numbers in the device's memory. CuPy makes no bfloat16: its bits are cut off float32's."""
    random = cupy.random.default_rng(seed)
    if kind.name == "float64":
        return random.standard_normal(shape)
    array = cupy.empty(shape, kind)
    for row in array.reshape(-1, shape[-1]):
        wide = random.standard_normal(shape[-1], np.float32)
        if kind.name == "bfloat16":
            row.view(np.uint16)[...] = (wide.view(np.uint32) >> 16).astype(np.uint16)
        else:
            row[...] = wide
    return array


def host(cupy: Any, array: Any) -> np.ndarray[Any, Any]:
    """A copy in the host's memory."""
    bits = array.view(f"u{array.dtype.itemsize}")
    return np.ascontiguousarray(cupy.asnumpy(bits)).view(array.dtype)


def tensor(array: Any) -> Any:
    """The same memory for PyTorch; None without it, or where it has no CUDA."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def products(cupy: Any, matrix: np.ndarray[Any, Any], x: Any, out: Any) -> Calls:
    """The peers' matrix products, which round the coefficients to the type of the rows."""
    calls: Calls = {}
    if x.dtype.name != "bfloat16":
        own = cupy.asarray(matrix, dtype=x.dtype)
        calls["CuPy"] = lambda: cupy.matmul(own, x, out=out)
    if (inputs := tensor(x)) is not None:
        import torch

        coefficients, target = torch.as_tensor(matrix, dtype=inputs.dtype, device="cuda"), tensor(out)
        calls["PyTorch"] = lambda: torch.mm(coefficients, inputs, out=target)
    return calls


def limits(cupy: Any) -> dict[str, float]:
    """Bytes a second of a large copy, read and written, and multiply-adds a second in each type computed in."""
    source, target = (cupy.empty(2**30, cupy.uint8) for _ in range(2))
    found = {"copy": 2**31 / times(cupy, {"copy": lambda: cupy.copyto(target, source)})["copy"]}
    blocks, steps = 32 * cupy.cuda.Device().attributes["MultiProcessorCount"], 4096
    for wide, kind in (("float32", "float"), ("float64", "double")):
        kernel = cupy.RawKernel(f"typedef {kind} T;{_FMA}", "fma_peak", options=("--std=c++17",))
        arguments = (blocks,), (256,), (cupy.empty(256, wide), np.int32(steps))
        found[wide] = blocks * 256 * 8 * steps / times(cupy, {"fma": partial(kernel, *arguments)})["fma"]
    return found


def lincomb(cupy: Any, limit: dict[str, float], rows: int, count: int, length: int, name: str) -> Record:
    """A combination of rows against the peers' products and the floor."""
    kind = dtype(name)
    moved = (rows + count) * length * kind.itemsize
    matrix = np.random.default_rng(rows).standard_normal((rows, count))
    x, out = numbers(cupy, (count, length), kind), cupy.empty((rows, length), kind)
    kernels.lincomb(matrix, x, out)
    for part in (slice(0, 4099), slice(length - 4099, length)):
        if host(cupy, out[:, part]).tobytes() != kernels.lincomb(matrix, host(cupy, x[:, part])).tobytes():
            raise RuntimeError(f"{rows} x {count} x {length} of {name}: other bits than the CPU's")
    source, target = (cupy.empty(moved // 2, cupy.uint8) for _ in range(2))
    calls: Calls = {
        "fastgc": lambda: kernels.lincomb(matrix, x, out),
        "copy": lambda: cupy.copyto(target, source),
        **products(cupy, matrix, x, out),
    }
    seconds = times(cupy, calls)
    arithmetic = rows * count * length / limit["float64" if tiles.ELEMENTS[name][2] == 8 else "float32"]
    bound = "copy" if seconds["copy"] > arithmetic else "arithmetic"
    shape = {"P": rows, "Q": count, "length": length, "type": name, "bytes": moved}
    return {**shape, "seconds": seconds, "floor": max(seconds["copy"], arithmetic), "bound": bound}


def lincombs(cupy: Any, limit: dict[str, float], lengths: Sequence[int], names: Sequence[str]) -> Iterator[Record]:
    """All combinations that fit the memory."""
    for length in lengths:
        for name in names:
            for rows, count in SHAPES:
                if 3 * (rows + count) * length * dtype(name).itemsize < cupy.cuda.runtime.memGetInfo()[0]:
                    yield lincomb(cupy, limit, rows, count, length, name)
                    cupy.get_default_memory_pool().free_all_blocks()


def start(cupy: Any, rows: int, count: int) -> Record:
    """What the host needs to start a call on short rows, and the device to make one after the other in a graph."""
    matrix = np.random.default_rng(0).standard_normal((rows, count))
    x, out = numbers(cupy, (count, SHORT), np.dtype(np.float32)), cupy.empty((rows, SHORT), np.float32)
    calls = {"fastgc": lambda: kernels.lincomb(matrix, x, out), **products(cupy, matrix, x, out)}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()
            cupy.cuda.Device().synchronize()
            begin = time.perf_counter()
            for _ in range(100):
                call()
            found[name].append((time.perf_counter() - begin) / 100)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for _ in range(100):
            calls["fastgc"]()
        graph = stream.end_capture()
        replayed = times(cupy, {"graph": lambda: graph.launch(stream)})["graph"] / 100
    seconds = {name: statistics.median(each) for name, each in found.items()}
    return {"P": rows, "Q": count, "graph": replayed, "seconds": seconds}


def weights(cupy: Any, k: int) -> Record:
    """Decoding weights of many patterns, ready to be used, against inverses of the rows already selected."""
    random = np.random.default_rng(k)
    count = PATTERNS if k <= 16 else PATTERNS // 10
    generator = random.standard_normal((2 * k, k))
    patterns = np.argsort(random.random((count, 2 * k)), axis=1)[:, :k].astype(np.int64)
    there, chosen = cupy.asarray(generator), cupy.asarray(patterns)
    found = host(cupy, kernels.decoding_weights(there, chosen, backend="cuda"))
    if found.tobytes() != kernels.decoding_weights(generator, patterns).tobytes():
        raise RuntimeError(f"k = {k}: other bits than the CPU's")
    stack = there[chosen]
    calls: Calls = {
        "fastgc": lambda: kernels.decoding_weights(there, chosen, backend="cuda"),
        "CuPy": lambda: cupy.linalg.inv(stack),
    }
    if (own := tensor(stack)) is not None:
        calls["PyTorch"] = lambda: own.inverse()
    return {"k": k, "patterns": count, "seconds": waits(cupy, calls)}


def encode(cupy: Any, code: GradientCode, length: int) -> dict[str, float]:
    """Times of a worker's encode of float32, and of PyTorch's product over all blocks of the gradients."""
    gradients = numbers(cupy, (code.load, length), np.dtype(np.float32))
    message = cupy.empty(code.message_length(length), np.float32)
    calls: Calls = {"fastgc": lambda: code.encode(0, gradients, message)}
    if (rows := tensor(gradients)) is not None:
        import torch

        c = torch.as_tensor(code.coefficients(0).reshape(1, -1), dtype=torch.float32, device="cuda")
        blocks, target = rows.view(code.load * code.reduction, -1), tensor(message).view(1, -1)
        calls["PyTorch"] = lambda: torch.mm(c, blocks, out=target)
    return times(cupy, calls)


def decode(cupy: Any, code: GradientCode, length: int) -> dict[str, float]:
    """Times of a master's decode of float32, and of PyTorch's product of all messages with weights that are known."""
    survivors = range(code.stragglers, code.workers)
    sent = numbers(cupy, (len(survivors), code.message_length(length)), np.dtype(np.float32))
    messages: Any = dict(zip(survivors, sent, strict=True))
    total = cupy.empty(length, np.float32)
    calls: Calls = {"fastgc": lambda: code.decode(messages, length, out=total)}
    if (rows := tensor(sent)) is not None:
        import torch

        c = torch.as_tensor(code.decoding_weights(survivors), dtype=torch.float32, device="cuda")
        target = tensor(total).view(code.reduction, -1)
        calls["PyTorch"] = lambda: torch.mm(c, rows, out=target)
    return times(cupy, calls)


def end_to_end(cupy: Any) -> Iterator[Record]:
    """Encode and decode under every scheme, of lengths that every reduction divides."""
    for scheme, make in SCHEMES.items():
        code = make()
        for length in (length // 12 * 12 for length in WHOLE_LENGTHS):
            for suite, run in (("encode", encode), ("decode", decode)):
                yield {"suite": suite, "scheme": scheme, "length": length, "seconds": run(cupy, code, length)}
                cupy.get_default_memory_pool().free_all_blocks()


def main() -> int:
    """Measure, and write JSON and tables; 1 with the reason where there is no GPU."""
    suites = ("lincomb", "starts", "weights", "end to end")
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--suites", nargs="+", choices=suites, default=list(suites))
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--out", type=Path, default=Path("bench/results/cuda"))
    options = parser.parse_args()
    missing = kernels.missing_backends().get("cuda")
    if missing is not None:
        print(f"no CUDA backend here: {missing}", file=sys.stderr)
        return 1
    import cupy

    limit = limits(cupy)
    measured: dict[str, Callable[[], Iterator[Record]]] = {
        "lincomb": lambda: lincombs(cupy, limit, options.lengths, options.types),
        "starts": lambda: (start(cupy, *shape) for shape in ((1, 1), (4, 4), (8, 8), (16, 16), (64, 64))),
        "weights": lambda: (weights(cupy, k) for k in SIZES),
        "end to end": lambda: end_to_end(cupy),
    }
    found: dict[str, Any] = {
        "header": machine(),
        "device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
        "versions": {"CUDA": ".".join(map(str, cupy.cuda.nvrtc.getVersion())), "CuPy": cupy.__version__},
        "limits": limit,
    }
    if tensor(cupy.empty(1)) is not None:
        found["versions"]["PyTorch"] = importlib.import_module("torch").__version__
    options.out.mkdir(parents=True, exist_ok=True)
    for suite in options.suites:
        found[suite] = []
        for record in measured[suite]():
            print(suite, record, file=sys.stderr)
            found[suite].append(record)
        (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "gpu.md").write_text(gpu_report.markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
