"""What each way to the kernels costs against calling them from NumPy: ``python -m bench.bridges``.

Every bridge does the same `lincomb` on the same memory, in turns with the call on NumPy arrays in the same process:
short rows show what a call costs beyond it, long ones whether anything is copied. Writes JSON and a table.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import environment
from bench.timing import Call, Effort, Repeated, measure
from fastgc import kernels, native

Array = npt.NDArray[Any]
SHORT, LONG = 10**3, 10**7
FLOAT32, FLOAT64 = 1, 2  # of fastgc.h


@dataclass(frozen=True)
class Problem:
    """What all bridges compute: ``coefficients @ inputs``, in float32."""

    coefficients: Array
    inputs: Array
    out: Array
    threads: int


# A bridge makes a call, and a function that says what the last call computed; ImportError where it is not there.
Bridge = Callable[[Problem], tuple[Call, Callable[[Any], Array]]]


def aligned(shape: tuple[int, int]) -> Array:
    """Rows that begin at whole cache lines, as JAX wants them to take them without a copy."""
    row = -(-shape[1] // 16) * 16
    room = np.empty(shape[0] * row + 16, np.float32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + shape[0] * row].reshape(shape[0], row)[:, : shape[1]]


def numpy_new(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """The kernel from NumPy, with a new result."""
    call = partial(kernels.lincomb, problem.coefficients, list(problem.inputs), threads=problem.threads)
    return call, np.asarray


def numpy_out(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """The kernel from NumPy, into an array that is there."""
    p = problem
    return partial(kernels.lincomb, p.coefficients, list(p.inputs), list(p.out), threads=p.threads), np.stack


def torch_new(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """`kernels.lincomb` on tensors, with a new result."""
    torch = importlib.import_module("torch")
    rows = [torch.from_numpy(row) for row in problem.inputs]
    return partial(kernels.lincomb, problem.coefficients, rows, threads=problem.threads), np.asarray


def torch_out(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """`kernels.lincomb` on tensors, into tensors that are there."""
    torch = importlib.import_module("torch")
    rows, out = ([torch.from_numpy(row) for row in array] for array in (problem.inputs, problem.out))
    return partial(kernels.lincomb, problem.coefficients, rows, out, threads=problem.threads), np.stack


def operator_new(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """The operator `fastgc.torch.lincomb`, with a new result; on as many threads as PyTorch is told to use."""
    torch, ours = importlib.import_module("torch"), importlib.import_module("fastgc.torch")
    rows = [torch.from_numpy(row) for row in problem.inputs]
    return partial(ours.lincomb, torch.from_numpy(problem.coefficients), rows), np.asarray


def operator_out(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """The operator that writes into tensors that are there."""
    torch, ours = importlib.import_module("torch"), importlib.import_module("fastgc.torch")
    rows, out = ([torch.from_numpy(row) for row in array] for array in (problem.inputs, problem.out))
    return partial(ours.lincomb, torch.from_numpy(problem.coefficients), rows, out), np.stack


def jax_new(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """`kernels.lincomb` on JAX's arrays, which are immutable, so that the result is always new."""
    jax = importlib.import_module("jax")
    rows = [jax.device_put(row, may_alias=True) for row in problem.inputs]
    return partial(kernels.lincomb, problem.coefficients, rows, threads=problem.threads), np.asarray


def jax_compiled(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """`fastgc.jax.lincomb` in a jitted function."""
    ours = importlib.import_module("fastgc.jax")
    jax = importlib.import_module("jax")
    function = jax.jit(partial(ours.lincomb, problem.coefficients, threads=problem.threads))
    return partial(_ready, function, jax.numpy.asarray(problem.inputs)), np.asarray


def jax_call(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """`fastgc.jax.lincomb` called from Python."""
    ours = importlib.import_module("fastgc.jax")
    rows = importlib.import_module("jax").numpy.asarray(problem.inputs)
    call = partial(ours.lincomb, problem.coefficients, threads=problem.threads)
    return partial(_ready, call, rows), np.asarray


def _ready(call: Callable[[Any], Any], rows: Any) -> Any:
    return call(rows).block_until_ready()


def dlpack_out(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """`kernels.lincomb` on arrays of a library that only DLPack tells about: array-api-strict."""
    strict = importlib.import_module("array_api_strict")
    rows, out = ([strict.from_dlpack(row) for row in array] for array in (problem.inputs, problem.out))
    call = partial(kernels.lincomb, problem.coefficients, rows, out, threads=problem.threads)
    return call, lambda made: np.stack([np.from_dlpack(row) for row in made])


def numba_compiled(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """`fastgc.numba.lincomb` in a jitted function, called from Python: one thread."""
    _one_thread(problem)
    numba, ours = importlib.import_module("numba"), importlib.import_module("fastgc.numba")

    @numba.njit  # type: ignore[untyped-decorator, unused-ignore]
    def compiled(coefficients: Array, inputs: Array, out: Array) -> None:
        ours.lincomb(coefficients, inputs, out)

    p = problem
    return partial(_then, partial(compiled, p.coefficients, p.inputs, p.out), p.out), np.asarray


def numba_out(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """The kernels written in Numba, which stand in where there are no compiled ones: one thread."""
    _one_thread(problem)
    compiled = importlib.import_module("fastgc.kernels.numba_kernels").lincomb
    p = problem
    return partial(_then, partial(compiled, p.coefficients, p.inputs, p.out, False), p.out), np.asarray


def c_out(problem: Problem) -> tuple[Call, Callable[[Any], Array]]:
    """``fastgc_lincomb`` of the C interface. ctypes, by which it is called here, is most of a short call."""
    try:
        library = ctypes.CDLL(native.get_library())
    except (FileNotFoundError, OSError) as error:
        raise ImportError(str(error)) from None
    p, (count, width) = problem, problem.coefficients.shape
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    rows, out = ((pointer * len(array))(*[row.ctypes.data for row in array]) for array in (p.inputs, p.out))
    library.fastgc_lincomb.argtypes = [ctypes.c_int, pointer, number, number, ctypes.c_int, pointer, ctypes.c_int,
                                       pointer, number, ctypes.c_int, ctypes.c_int]  # fmt: skip
    coefficients, length = p.coefficients.ctypes.data, p.inputs.shape[1]
    arguments = (FLOAT64, coefficients, count, width, FLOAT32, rows, FLOAT32, out, length, 0, p.threads)

    def call() -> Array:
        if library.fastgc_lincomb(*arguments) != 0:
            raise RuntimeError("fastgc_lincomb failed")
        return p.out

    return call, np.asarray


def _one_thread(problem: Problem) -> None:
    if problem.threads > 1:
        raise ImportError("one thread only")


def _then(call: Call, result: Array) -> Array:
    call()
    return result


BRIDGES: dict[str, tuple[Bridge, str]] = {
    "NumPy": (numpy_new, ""),
    "NumPy, out": (numpy_out, ""),
    "PyTorch": (torch_new, "NumPy"),
    "PyTorch, out": (torch_out, "NumPy, out"),
    "fastgc.torch": (operator_new, "NumPy"),
    "fastgc.torch, out": (operator_out, "NumPy, out"),
    "JAX": (jax_new, "NumPy"),
    "fastgc.jax": (jax_call, "NumPy"),
    "fastgc.jax, jitted": (jax_compiled, "NumPy"),
    "DLPack (array-api-strict), out": (dlpack_out, "NumPy, out"),
    "fastgc.numba, jitted, out": (numba_compiled, "NumPy, out"),
    "Numba's own kernels, out": (numba_out, "NumPy, out"),
    "C by ctypes, out": (c_out, "NumPy, out"),
}
"""Each with the one that it is measured against: both make a new result, or neither does."""


def measured(length: int, shape: tuple[int, int], threads: int, effort: Effort) -> list[dict[str, Any]]:
    """One record for each bridge: its times, and beyond or against those of NumPy."""
    rng = np.random.default_rng(0)
    problem = Problem(rng.standard_normal(shape), aligned((shape[1], length)), aligned((shape[0], length)), threads)
    for row in problem.inputs:
        row[...] = rng.standard_normal(length, np.float32)
    problem.out[...] = np.nan
    wanted = kernels.lincomb(problem.coefficients, problem.inputs)
    calls: dict[str, Repeated] = {}
    missing: dict[str, str] = {}
    for name, (bridge, _) in BRIDGES.items():
        try:
            call, read = bridge(problem)
        except ImportError as error:
            missing[name] = str(error)
            continue
        if not np.array_equal(read(call()), wanted):
            raise RuntimeError(f"{name} has other bits than NumPy at {length} elements")
        calls[name] = Repeated(call)
    environment.set_threads(threads)
    samples = measure(calls, effort, threads=threads, keep=calls)
    records = []
    for name, (_, against) in BRIDGES.items():
        record: dict[str, Any] = {"bridge": name, "against": against, "length": length, "threads": threads}
        if name in missing:
            record["missing"] = missing[name]
        else:
            record |= samples.summary(name)
            if against:
                record["ratio"] = samples.ratio(name, against)
                differences = np.array(samples.seconds[name]) - np.array(samples.seconds[against])
                record["overhead"] = [float(q) for q in np.quantile(differences, (0.25, 0.5, 0.75))]
        records.append(record)
    return records


def markdown(header: dict[str, Any], shape: tuple[int, int], cells: Sequence[dict[str, Any]]) -> str:
    """The report."""
    lines = [
        "# What each way to the kernels costs",
        f"{header['cpus']} CPUs ({header['cpu']}), commit {header['commit']}, {header['date']}.\n"
        f"`lincomb` of {shape[1]} rows to {shape[0]}, in float32; medians, in brackets the quartiles of what a call "
        f"takes beyond the one it is against, and the interval of 95 % of the ratio.",
        "| bridge | length | threads | µs | against | beyond it, µs | ratio |" + "\n" + "|---" * 7 + "|",
    ]
    for cell in cells:
        at = f"\n| {cell['bridge']} | {cell['length']:,} | {cell['threads']} "
        if "missing" in cell:
            lines[-1] += f"{at}| not measured: {cell['missing']} | | | |"
        elif not cell["against"]:
            lines[-1] += f"{at}| {cell['seconds'] * 1e6:,.2f} | | | |"
        else:
            low, middle, high = (1e6 * value for value in cell["overhead"])
            ratio, bottom, top = cell["ratio"]
            lines[-1] += (
                f"{at}| {cell['seconds'] * 1e6:,.2f} | {cell['against']} | {middle:,.2f} [{low:,.2f}, {high:,.2f}] "
                f"| {ratio:.3f} [{bottom:.3f}, {top:.3f}] |"
            )
    return "\n\n".join(lines) + "\n"


def main(command: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.bridges", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[SHORT, LONG], help="(default: 10³ and 10⁷)")
    parser.add_argument("--shape", type=int, nargs=2, default=(2, 4), metavar=("P", "Q"), help="(default: 2 4)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="(default: 1)")
    parser.add_argument("--seconds", type=float, default=10, help="of all bridges together, a cell (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/bridges"), metavar="DIR")
    options = parser.parse_args(command)
    if min(*options.lengths, *options.shape, *options.threads) < 1 or not options.seconds > 0:
        parser.error("lengths, shape, threads and seconds must be positive")
    shape = (options.shape[0], options.shape[1])
    effort = Effort(seconds=options.seconds)
    cells = [
        cell
        for threads in options.threads
        for length in options.lengths
        for cell in measured(length, shape, threads, effort)
    ]
    header = environment.machine()
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"header": header, "shape": shape, "cells": cells}
    (options.out / "results.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    report = markdown(header, shape, cells)
    (options.out / "report.md").write_text(report, "utf-8")
    print(report, end="")
    return 0


if __name__ == "__main__":
    environment.ensure_clean()
    sys.exit(main())
