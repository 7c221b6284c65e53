"""The CUDA kernels against the device's limits, cuBLAS and PyTorch: ``python -m bench.gpu``.

Every case is checked against the bits of the CPU's kernel before it is timed. Contestants take turns; a time is the
median of several rounds, between events around calls that follow each other on one stream, so that of a short call is
what the host needs to start it. GB/s count every input row read once and every output row written once. The floor of a
case is the longer of two times: the device's own copy of as many bytes, which are read and written likewise, and the
arithmetic at the rate of fused multiply-adds measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.end_to_end import SCHEMES
from bench.environment import machine
from fastgc import kernels
from fastgc.kernels import _cuda_tiles as tiles

SHAPES = (
    (1, 1), (1, 2), (1, 8), (2, 2), (4, 4), (8, 8), (4, 16), (1, 64), (4, 64), (16, 16), (32, 32), (64, 64)
)  # fmt: skip
LENGTHS = (10**4, 10**6, 10**7)
SIZES = (2, 3, 4, 5, 8, 10, 12, 16, 32, 64)  # of decoding weights
PATTERNS = 100_000
TYPES = tuple(tiles.ELEMENTS)
ROUNDS = 11
Calls = dict[str, Callable[[], object]]
Record = dict[str, Any]
PEERS = ("CuPy", "PyTorch")

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
        out = cupy.empty(256, wide)
        seconds = times(cupy, {"fma": lambda k=kernel, o=out: k((blocks,), (256,), (o, np.int32(steps)))})["fma"]
        found[wide] = blocks * 256 * 8 * steps / seconds
    return found


def lincomb(cupy: Any, limit: dict[str, float], lengths: Sequence[int], names: Sequence[str]) -> Iterator[Record]:
    """Combinations of rows against the peers' products and the floor."""
    free = cupy.cuda.runtime.memGetInfo()[0]
    for length in lengths:
        for name in names:
            kind = dtype(name)
            for rows, count in SHAPES:
                moved = (rows + count) * length * kind.itemsize
                if 3 * moved > free:
                    continue
                matrix = np.random.default_rng(rows).standard_normal((rows, count))
                x, out = numbers(cupy, (count, length), kind), cupy.empty((rows, length), kind)
                kernels.lincomb(matrix, x, out)
                for sample in (slice(0, 4099), slice(length - 4099, length)):
                    if (
                        host(cupy, out[:, sample]).tobytes()
                        != kernels.lincomb(matrix, host(cupy, x[:, sample])).tobytes()
                    ):
                        raise RuntimeError(f"{rows} x {count} x {length} of {name}: other bits than the CPU's")
                source, target = (cupy.empty(moved // 2, cupy.uint8) for _ in range(2))
                seconds = times(
                    cupy,
                    {
                        "fastgc": lambda: kernels.lincomb(matrix, x, out),
                        "copy": lambda: cupy.copyto(target, source),
                        **products(cupy, matrix, x, out),
                    },
                )
                wide = tiles.ELEMENTS[name][2] == 8
                fused = rows * count * length / limit["float64" if wide else "float32"]
                yield {
                    "P": rows, "Q": count, "length": length, "type": name, "bytes": moved, "seconds": seconds,
                    "floor": max(seconds["copy"], fused), "bound": "copy" if seconds["copy"] > fused else "arithmetic",
                }  # fmt: skip
                del x, out, source, target
                cupy.get_default_memory_pool().free_all_blocks()


def weights(cupy: Any) -> Iterator[Record]:
    """Decoding weights of many patterns, ready to be used, against inverses of the rows already selected."""
    for k in SIZES:
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
        yield {"k": k, "patterns": count, "seconds": waits(cupy, calls)}


def end_to_end(cupy: Any, lengths: Sequence[int]) -> Iterator[Record]:
    """A worker's encode and a master's decode of float32, against matrix products of PyTorch on the same rows."""
    for scheme, make in SCHEMES.items():
        code = make()
        m = code.reduction
        for length in (length // 12 * 12 for length in lengths):
            gradients = numbers(cupy, (code.load, length), np.dtype(np.float32))
            message = cupy.empty(code.message_length(length), np.float32)
            copied: Calls = {}
            if (rows := tensor(gradients)) is not None:
                import torch

                c = torch.as_tensor(code.coefficients(0).reshape(1, -1), dtype=torch.float32, device="cuda")
                cut, target = rows.view(code.load * m, -1), tensor(message).view(1, -1)
                copied["PyTorch"] = lambda: torch.mm(c, cut, out=target)
            calls: Calls = {"fastgc": lambda: code.encode(0, gradients, message), **copied}
            yield {"suite": "encode", "scheme": scheme, "length": length, "seconds": times(cupy, calls)}
            survivors = range(code.stragglers, code.workers)
            sent = numbers(cupy, (len(survivors), code.message_length(length)), np.dtype(np.float32))
            messages = dict(zip(survivors, sent, strict=True))
            total = cupy.empty(length, np.float32)
            calls = {"fastgc": lambda: code.decode(messages, length, total)}
            if (rows := tensor(sent)) is not None:
                import torch

                c = torch.as_tensor(code.decoding_weights(survivors), dtype=torch.float32, device="cuda")
                target = tensor(total).view(m, -1)
                calls["PyTorch"] = lambda: torch.mm(c, rows, out=target)
            yield {"suite": "decode", "scheme": scheme, "length": length, "seconds": times(cupy, calls)}


def starts(cupy: Any) -> Iterator[Record]:
    """What the host needs to start a call on short rows, and the device to finish it, replayed in a graph."""
    for rows, count in ((1, 1), (4, 4), (8, 8), (16, 16), (64, 64)):
        matrix = np.random.default_rng(0).standard_normal((rows, count))
        x, out = numbers(cupy, (count, 1000), np.dtype(np.float32)), cupy.empty((rows, 1000), np.float32)
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
                kernels.lincomb(matrix, x, out)
            graph = stream.end_capture()
            replayed = times(cupy, {"graph": lambda: graph.launch(stream)})["graph"] / 100
        yield {
            "P": rows, "Q": count, "graph": replayed,
            "seconds": {name: statistics.median(seconds) for name, seconds in found.items()},
        }  # fmt: skip


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _over(record: Record) -> str:
    """How often faster than the best peer."""
    peers = [record["seconds"][name] for name in PEERS if name in record["seconds"]]
    return f"{min(peers) / record['seconds']['fastgc']:.2f}" if peers else "–"


def _columns(record: Record, unit: float = 1e-6) -> list[str]:
    return [
        f"{record['seconds'][name] / unit:.1f}" if name in record["seconds"] else "–" for name in ("fastgc", *PEERS)
    ]


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.geometric_mean(values):.2f}"


def report(found: dict[str, Any]) -> str:
    """The records in Markdown."""
    header, limit = found["header"], found["limits"]
    lines = [
        f"# CUDA kernels on {found['device']}",
        "",
        f"By `python -m bench.gpu`, commit {header['commit']}, {header['date']}; CUDA {found['cuda']}, "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + ".",
        f"The device copies at {limit['copy'] / 1e9:.0f} GB/s, read and written, and makes {limit['float32'] / 5e8:.0f} "
        f"GFLOP/s of float32, {limit['float64'] / 5e8:.0f} of float64. The peers' products of half types round the "
        "coefficients to them.",
        "",
    ]
    head = ("fastgc", *PEERS)
    if records := found["lincomb"]:
        lines += ["## lincomb", "", "Geometric means over the shapes. The floor is a copy of as many bytes, or the "
                  "arithmetic.", "", _row("type", "L", "over the best peer", "least", "of the floor", "least")]  # fmt: skip
        lines += ["|---" * 6 + "|"]
        for name in TYPES:
            for length in sorted({r["length"] for r in records}):
                chosen = [r for r in records if (r["type"], r["length"]) == (name, length)]
                over = [float(_over(r)) for r in chosen if _over(r) != "–"]
                of = [r["floor"] / r["seconds"]["fastgc"] for r in chosen]
                if chosen:
                    best = (_mean(over), f"{min(over):.2f}") if over else ("–", "–")
                    lines.append(_row(name, length, *best, _mean(of), f"{min(of):.2f}"))
        lines += ["", _row("type", "P × Q", "L", *(f"{name}, µs" for name in head), "over the best peer", "GB/s",
                           "of the floor", "which is")]  # fmt: skip
        lines += ["|---" * 10 + "|"]
        lines += [
            _row(r["type"], f"{r['P']} × {r['Q']}", r["length"], *_columns(r), _over(r),
                 f"{r['bytes'] / r['seconds']['fastgc'] / 1e9:.0f}", f"{r['floor'] / r['seconds']['fastgc']:.2f}",
                 r["bound"])
            for r in records
        ]  # fmt: skip
        lines.append("")
    if records := found["starts"]:
        lines += ["## Calls", "", "What the host needs to start a call on rows of 1000 float32, and the device to make "
                  "one after the other in a graph.", "",
                  _row("P × Q", *(f"{name}, µs" for name in head), "in a graph, µs"), "|---" * 5 + "|"]  # fmt: skip
        lines += [_row(f"{r['P']} × {r['Q']}", *_columns(r), f"{r['graph'] * 1e6:.1f}") for r in records] + [""]
    if records := found["weights"]:
        lines += ["## Decoding weights", "", "Until they are there. The peers invert rows that are selected already.",
                  "", _row("k", "patterns", *(f"{name}, ms" for name in head), "over the best peer"), "|---" * 6 + "|"]  # fmt: skip
        lines += [_row(r["k"], r["patterns"], *_columns(r, 1e-3), _over(r)) for r in records] + [""]
    if records := found["end to end"]:
        lines += ["## End to end", "", "Of float32; the peers' weights are known.", "",
                  _row("", "scheme", "L", *(f"{name}, µs" for name in ("fastgc", "PyTorch")), "over PyTorch"),
                  "|---" * 6 + "|"]  # fmt: skip
        for r in records:
            fastgc, _, torch = _columns(r)
            lines.append(_row(r["suite"], r["scheme"], r["length"], fastgc, torch, _over(r)))
    return "\n".join(lines).rstrip() + "\n"


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
        "lincomb": lambda: lincomb(cupy, limit, options.lengths, options.types),
        "starts": lambda: starts(cupy),
        "weights": lambda: weights(cupy),
        "end to end": lambda: end_to_end(cupy, options.lengths),
    }
    found: dict[str, Any] = {
        "header": machine(),
        "device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
        "cuda": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "versions": {name: version for name in ("cupy", "torch") if (version := _version(name))},
        "limits": limit,
    }
    for suite, run in measured.items():
        found[suite] = []
        for record in run() if suite in options.suites else ():
            print(suite, record, file=sys.stderr)
            found[suite].append(record)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "gpu.md").write_text(report(found))
    return 0


def _version(name: str) -> str:
    try:
        return str(__import__(name).__version__)
    except ImportError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
