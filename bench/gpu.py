"""The CUDA kernels against the device's limit and CuPy's matmul: ``python -m bench.gpu``. Never run so far.

Every case is checked against the bits of the CPU's kernel before it is timed. Times are of the device, by events around
calls that follow each other on one stream, the median of several rounds. GB/s count every input row read once and every
output row written once; the limit is the device's own copy of as many bytes, which are read and written likewise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastgc import kernels

SHAPES = ((1, 1), (1, 2), (1, 8), (2, 2), (4, 4), (8, 8), (4, 16), (1, 64), (16, 16), (32, 32), (64, 64))
TYPES = ("float32", "float64", "float16", "bfloat16")


def dtype(name: str) -> np.dtype[Any]:
    """An element type by its name."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def seconds(cupy: Any, call: Callable[[], object], rounds: int = 15) -> float:
    """Time of a call on the device: the median over rounds of enough calls to take 2 ms."""

    def elapsed(calls: int) -> float:
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3 / calls

    elapsed(3)
    calls = max(1, min(1000, round(2e-3 / elapsed(3))))
    return statistics.median(elapsed(calls) for _ in range(rounds))


def measured(cupy: Any, rows: int, count: int, length: int, name: str) -> dict[str, Any]:
    """One case: GB/s of ours, of CuPy's matmul where it has the type, and of a copy."""
    rng = np.random.default_rng(0)
    kind = dtype(name)
    c = rng.standard_normal((rows, count))
    x = cupy.empty((count, length), kind)
    x.view(f"u{kind.itemsize}")[...] = cupy.asarray(
        rng.standard_normal((count, length), np.float32).astype(kind).view(f"u{kind.itemsize}")
    )
    out = cupy.empty((rows, length), kind)
    moved = (rows + count) * length * kind.itemsize
    kernels.lincomb(c, x, out)
    sample = slice(0, min(length, 4096))
    wanted = kernels.lincomb(c, np.ascontiguousarray(cupy.asnumpy(x[:, sample])))
    if np.ascontiguousarray(cupy.asnumpy(out[:, sample])).tobytes() != wanted.tobytes():
        raise RuntimeError(f"{rows} x {count} of {name}: other bits than the CPU's")
    source, target = (cupy.empty(moved // 2, cupy.uint8) for _ in range(2))
    result: dict[str, Any] = {"P": rows, "Q": count, "length": length, "type": name}
    result["fastgc"] = moved / seconds(cupy, lambda: kernels.lincomb(c, x, out)) / 1e9
    result["copy"] = moved / seconds(cupy, lambda: cupy.copyto(target, source)) / 1e9
    result["matmul"] = None
    if name != "bfloat16":
        matrix = cupy.asarray(c, dtype=kind)
        result["matmul"] = moved / seconds(cupy, lambda: cupy.matmul(matrix, x, out=out)) / 1e9
    return result


def table(records: list[dict[str, Any]], device: str) -> str:
    """The records in Markdown."""
    lines = [
        f"# CUDA kernels on {device}",
        "",
        "By `python -m bench.gpu`; GB/s of bytes that must move. `matmul` is CuPy's, by cuBLAS.",
        "",
        "| type | P × Q | L | fastgc | matmul | copy | fastgc / copy |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        peer = "–" if r["matmul"] is None else f"{r['matmul']:.0f}"
        share = r["fastgc"] / r["copy"]
        shape = f"{r['P']} × {r['Q']}"
        lines.append(
            f"| {r['type']} | {shape} | {r['length']} | {r['fastgc']:.0f} | {peer} | {r['copy']:.0f} | {share:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, and write JSON and a table; 1 with the reason where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[10**4, 10**6, 10**7])
    parser.add_argument("--out", type=Path, default=Path("bench/results/cuda"))
    options = parser.parse_args()
    missing = kernels.missing_backends().get("cuda")
    if missing is not None:
        print(f"no CUDA backend here: {missing}", file=sys.stderr)
        return 1
    import cupy

    device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    free = cupy.cuda.runtime.memGetInfo()[0]
    records = []
    for length in options.lengths:
        for name in TYPES:
            for rows, count in SHAPES:
                if 3 * (rows + count) * length * dtype(name).itemsize > free:
                    continue
                records.append(measured(cupy, rows, count, length, name))
                print(records[-1], file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "lincomb.json").write_text(json.dumps({"device": device, "records": records}, indent=1) + "\n")
    (options.out / "lincomb.md").write_text(table(records, device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
