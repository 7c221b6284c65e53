"""What looking survivor patterns up takes, from C++ and from Python: ``python -m bench.pattern_lookups``.

The cache of libfastgc by its header for C++, against `fastgc.patterns` and against finding weights anew, in turns:
patterns that are held, in and out of the CPU's caches, one that is not, and all of a code found at once. Prints a
table.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

import fastgc
from bench import environment
from bench.compiled import compiled
from bench.timing import Effort, Repeated, Samples, SelfTimed, measure
from fastgc import GradientCode, codes, kernels, schemes

CODES = ((4, 2), (8, 4), (16, 8), (20, 10))
FEW = 64  # patterns that stay in the CPU's caches
TOGETHER = 20_000  # look-ups of each of several threads: they take 100 times as long as starting one
CPP, NEW = "C++", "C++, found anew"
PYTHON = "Python"

I64, POINTER, DOUBLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double


def library() -> ctypes.CDLL:
    """The measuring loops, linked with the package's library."""
    file, headers = Path(fastgc.get_library()), Path(fastgc.get_include())
    options = [f"-I{headers}", str(file), f"-Wl,-rpath,{file.parent}"]
    loops = compiled(
        Path(__file__).with_suffix(".cpp"), *options, headers=[headers / "fastgc.h", headers / "fastgc.hpp"]
    )
    loops.fastgc_bench_cache.argtypes, loops.fastgc_bench_cache.restype = [POINTER, I64, I64, I64], POINTER
    loops.fastgc_bench_drop.argtypes, loops.fastgc_bench_drop.restype = [POINTER], None
    for name, arguments in {
        "look_up": [POINTER, POINTER, I64, I64, I64, I64, ctypes.c_int, POINTER],
        "solve": [POINTER, I64, I64, POINTER, I64, I64, POINTER],
        "precompute": [POINTER, I64, I64, I64, ctypes.c_int],
    }.items():
        function = getattr(loops, f"fastgc_bench_{name}")
        function.argtypes, function.restype = arguments, DOUBLE
    return loops


def checked(seconds: float) -> float:
    """What a loop returned, if it did not fail."""
    if seconds < 0:
        raise RuntimeError("a measuring loop failed")
    return seconds


class Cache:
    """libfastgc's cache over a generator, and patterns to look up in it, one after the other and around."""

    def __init__(self, loops: ctypes.CDLL, generator: npt.NDArray[Any], capacity: int, sets: npt.NDArray[Any]) -> None:
        self._loops, self._generator = loops, generator
        self._n, self._k = generator.shape
        self._sets = sets
        self._masks = np.bitwise_or.reduce(np.uint64(1) << sets.astype(np.uint64), axis=1)
        self._next = 0
        self._handle = loops.fastgc_bench_cache(generator.ctypes.data, self._n, self._k, capacity)
        if not self._handle:
            raise RuntimeError("no cache could be made")

    def __del__(self) -> None:
        self._loops.fastgc_bench_drop(self._handle)

    def seconds(self, repetitions: int, threads: int = 1) -> float:
        """Of a look-up; those of the next call go on where these end."""
        weights = np.full((self._k, self._k), np.nan)
        taken = self._loops.fastgc_bench_look_up(
            self._handle, self._masks.ctypes.data, len(self._masks), self._next, repetitions, self._k, threads,
            weights.ctypes.data,
        )  # fmt: skip
        last = (self._next + repetitions - 1) % len(self._masks)
        self._next = (last + 1) % len(self._masks)
        if weights.tobytes() != kernels.decoding_weights(self._generator, self._sets[last]).tobytes():
            raise RuntimeError("the cache has other weights than the kernels")
        return checked(taken)


def python_look_ups(scheme: GradientCode, sets: npt.NDArray[Any]) -> SelfTimed:
    """Look-ups in Python's cache, by the mask as well."""
    turns = itertools.cycle([scheme.key(0, tuple(survivors)) for survivors in sets.tolist()])
    weights = scheme.patterns.weights

    def timer(repetitions: int) -> float:
        keys = list(itertools.islice(turns, repetitions))
        begin = perf_counter()
        for key in keys:
            weights(key)
        return (perf_counter() - begin) / repetitions

    return SelfTimed(timer)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    code: str
    what: str
    samples: Samples


class Measured:
    """The measurements of a [n, k] Gaussian code."""

    def __init__(self, loops: ctypes.CDLL, n: int, k: int, effort: Effort, threads: int) -> None:
        code = codes.gaussian(n, k, seed=0)
        self._loops, self._effort, self._threads = loops, effort, threads
        self._name, self._scheme, self._generator = (
            f"[{n}, {k}], {k} × {k}",
            schemes.grouped(n, code=code),
            code.generator,
        )
        self._every = np.array(list(itertools.combinations(range(n), k)))
        np.random.default_rng(0).shuffle(self._every)

    def _row(self, what: str, contestants: dict[str, Repeated | SelfTimed], threads: int = 1) -> Row:
        return Row(self._name, what, measure(contestants, self._effort, threads=threads, keep=contestants))

    def few(self) -> Iterator[Row]:
        """Look-ups of few patterns, in the CPU's caches."""
        some = np.ascontiguousarray(self._every[:FEW])
        held = Cache(self._loops, self._generator, FEW, some)
        held.seconds(len(some))
        python = python_look_ups(self._scheme, some)
        python.timer(len(some))
        new = SelfTimed(partial(self._solve, some))
        yield self._row("held", {CPP: SelfTimed(held.seconds), PYTHON: python, NEW: new})
        if self._threads > 1:
            together = SelfTimed(lambda _: held.seconds(TOGETHER, self._threads))
            yield self._row(f"held, on {self._threads} threads at once", {CPP: together}, self._threads)
        missing = Cache(self._loops, self._generator, 1, some[:2])  # each drops the other
        yield self._row("not held", {CPP: SelfTimed(missing.seconds), NEW: new})

    def _solve(self, sets: npt.NDArray[Any], repetitions: int) -> float:
        n, k = self._generator.shape
        out = np.empty((k, k))
        return checked(
            self._loops.fastgc_bench_solve(
                self._generator.ctypes.data, n, k, sets.ctypes.data, len(sets), repetitions, out.ctypes.data
            )
        )

    def all(self) -> Iterator[Row]:
        """All patterns: looked up at random, and found ahead of need."""
        count, patterns = len(self._every), self._scheme.patterns
        full = Cache(self._loops, self._generator, count, self._every)
        full.seconds(count)
        patterns.precompute(self._every)
        python = python_look_ups(self._scheme, self._every)
        yield self._row(f"held, at random among all {count:,}", {CPP: SelfTimed(full.seconds), PYTHON: python})
        del full

        def again() -> None:
            patterns.clear()
            patterns.precompute(self._every)

        for threads in sorted({1, self._threads}):
            environment.set_threads(threads)
            ours = SelfTimed(partial(self._precompute, threads))
            found = f"all {count:,} found ahead, on {threads} threads"
            yield self._row(found, {CPP: ours, PYTHON: Repeated(again)}, threads)

    def _precompute(self, threads: int, repetitions: int) -> float:
        (n, k), count = self._generator.shape, len(self._every)
        call = partial(self._loops.fastgc_bench_precompute, self._generator.ctypes.data, n, k, count, threads)
        return sum(checked(call()) for _ in range(repetitions)) / repetitions


def time_of(summary: dict[str, Any]) -> str:
    """Median and quartiles, in a unit that suits them."""
    unit, name = next(
        (u, s) for u, s in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")) if summary["seconds"] >= u
    )
    median, low, high = (summary[key] / unit for key in ("seconds", "q1", "q3"))
    return f"{median:.3g} {name} [{low:.3g}, {high:.3g}]"


def table(found: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = ["| code, weights | pattern | C++ | Python | C++, found anew |", "|---" * 5 + "|"]
    for row in found:
        times = row.samples
        cells = [time_of(times.summary(name)) if name in times.seconds else "" for name in (CPP, PYTHON, NEW)]
        lines.append(f"| {row.code} | {row.what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(command: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.pattern_lookups", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a line (default: 1)")
    parser.add_argument("--quick", action="store_true", help="small codes alone")
    options = parser.parse_args(command)
    if not options.seconds > 0:
        parser.error("seconds must be positive")
    machine = environment.machine()
    print(f"{machine['cpus']} CPUs ({machine['cpu']}), commit {machine['commit']}, {machine['date']}")
    print("Medians and quartiles of one look-up, or of all patterns of a code.\n")
    loops, effort, threads = library(), Effort(seconds=options.seconds), environment.cpus()
    found: list[Row] = []
    for n, k in CODES[:2] if options.quick else CODES:
        measured = Measured(loops, n, k, effort, threads)
        found += measured.few()
    found += measured.all()
    print(table(found))
    return 0


if __name__ == "__main__":
    environment.ensure_clean()
    sys.exit(main())
