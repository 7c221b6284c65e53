"""The machine's limits: bytes a second for a mix of streams, and floating-point operations a second in registers.

The measuring loops are in limits.cpp, which is compiled on first use into ``build/bench``: plain and non-temporal
stores cannot be told apart from Python.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.compiled import compiled

SOURCE = Path(__file__).with_name("limits.cpp")
Array = npt.NDArray[Any]


@functools.cache
def _library() -> ctypes.CDLL:
    library = compiled(SOURCE, "-ffp-contract=fast")
    size, pointer = ctypes.c_ssize_t, ctypes.c_void_p
    library.fastgc_bench_stream.restype = ctypes.c_double
    library.fastgc_bench_stream.argtypes = [
        pointer, size, pointer, size, size, size, ctypes.c_int, ctypes.c_int, ctypes.c_int64
    ]  # fmt: skip
    library.fastgc_bench_fma.restype = ctypes.c_double
    library.fastgc_bench_fma.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    return library


def vector_bytes() -> int:
    """Width of the vectors that the measuring loops use here."""
    return int(_library().fastgc_bench_vector())


@dataclass(frozen=True)
class Access:
    """A way to walk through many streams: how much of one is taken before the next, and how results are stored."""

    name: str
    block: int
    nontemporal: bool


def accesses(*, writes: bool) -> list[Access]:
    """The ways that are tried; the fastest is the limit.

    Streams abreast (512 bytes of each in turn) or a page of each in turn, which asks less of the hardware's
    prefetchers where there are more streams than they follow.
    """
    stores = (False, True) if writes and _library().fastgc_bench_nontemporal() else (False,)
    return [
        Access(f"{name}, {'non-temporal' if nontemporal else 'plain'} stores" if writes else name, block, nontemporal)
        for nontemporal in stores
        for name, block in (("abreast", 512), ("by pages", 4096))
    ]


class Mix:
    """Moves the bytes of given rows: each input is read once, each output overwritten once with rubbish."""

    def __init__(self, reads: Sequence[Array] | Array, writes: Sequence[Array] | Array, threads: int) -> None:
        rows = [*reads, *writes]
        self._alive = (reads, writes)
        self._length = min(row.nbytes for row in rows)
        self._reads = np.array([row.ctypes.data for row in reads], dtype=np.uintp)
        self._writes = np.array([row.ctypes.data for row in writes], dtype=np.uintp)
        self._threads = threads
        self.bytes = self._length * len(rows)

    def seconds(self, access: Access, passes: int = 1) -> float:
        """Seconds of one pass, the mean over `passes`."""
        return float(
            _library().fastgc_bench_stream(
                self._reads.ctypes.data,
                len(self._reads),
                self._writes.ctypes.data,
                len(self._writes),
                self._length,
                access.block,
                access.nontemporal,
                self._threads,
                passes,
            )
        )

    def accesses(self) -> list[Access]:
        """The ways to move these rows."""
        return accesses(writes=len(self._writes) > 0)


def passes_for(seconds: float, wanted: float) -> int:
    """How many passes of `seconds` each last `wanted` seconds; at least one."""
    return max(1, min(1_000_000, round(wanted / max(seconds, 1e-8))))


def bandwidth(reads: int, writes: int, footprint: int, threads: int, *, tries: int = 10) -> float:
    """Bytes a second for so many streams that together take `footprint` bytes: the best of all ways and tries."""
    length = footprint // (reads + writes) // 64 * 64
    rows = np.ones((reads + writes, length), dtype=np.uint8)  # zeros would all be read from one page of the kernel's
    mix = Mix(rows[:reads], rows[reads:], threads)
    best = math.inf
    for access in mix.accesses():
        passes = passes_for(min(mix.seconds(access) for _ in range(2)), TRY_SECONDS)
        best = min(best, min(mix.seconds(access, passes) for _ in range(tries)))
    return float(mix.bytes / best)


class Peak:
    """Multiply-adds in registers, on operands of one type."""

    def __init__(self, *, double: bool, threads: int) -> None:
        self._arguments = (double, threads)
        self._rounds = 10_000
        a_round = 24 * vector_bytes() / (8 if double else 4) * threads  # 12 vectors of multiply-adds a thread
        self._rounds = max(1000, int(TRY_SECONDS * max(self.rate() for _ in range(3)) / a_round))

    def rate(self) -> float:
        """Floating-point operations a second, a multiply-add counting as two, over a millisecond."""
        return float(_library().fastgc_bench_fma(*self._arguments, self._rounds))


TRY_SECONDS = 1e-3  # shorter than a scheduler's time slice, so that some tries are not interrupted


def peak(*, double: bool, threads: int, tries: int = 50) -> float:
    """Floating-point operations a second, a multiply-add counting as two: the best of many short tries."""
    work = Peak(double=double, threads=threads)
    return max(work.rate() for _ in range(tries))


KERNELS = {"read": (1, 0), "copy": (1, 1), "triad": (2, 1)}
"""The customary mixes: read streams, write streams."""
FOOTPRINTS = {"16 KiB": 1 << 14, "256 KiB": 1 << 18, "8 MiB": 1 << 23, "256 MiB": 1 << 28}
"""Bytes a thread: they fit the first, second and third level of today's caches, and none."""


def survey(threads: Sequence[int], footprints: Sequence[str] = tuple(FOOTPRINTS)) -> Iterator[dict[str, Any]]:
    """Bandwidth of the customary mixes at each footprint, and the peak for each type."""
    for count in threads:
        for footprint in footprints:
            for name, (reads, writes) in KERNELS.items():
                rate = bandwidth(reads, writes, count * FOOTPRINTS[footprint], count)
                yield {"what": name, "footprint": footprint, "threads": count, "rate": rate, "unit": "B/s"}
        for type_name, double in (("f32", False), ("f64", True)):
            rate = peak(double=double, threads=count)
            yield {"what": f"FMA {type_name}", "footprint": "", "threads": count, "rate": rate, "unit": "FLOP/s"}
