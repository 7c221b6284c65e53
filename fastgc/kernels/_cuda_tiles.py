"""The CUDA kernels: which there are, which one a call takes, and their source. Nothing here needs CUDA.

A kernel is a template of ``csrc/cuda/`` with its parameters chosen here and nowhere else: the backend compiles what
a call needs, the tests compile all of them, for devices and for the host.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastgc.native import get_cuda_sources

# Element types by NumPy's names: in C++, bytes, bytes of the type computed in.
ELEMENTS = {
    "float32": ("float", 4, 4),
    "float64": ("double", 8, 8),
    "float16": ("fastgc::Float16", 2, 4),
    "bfloat16": ("fastgc::BFloat16", 2, 4),
}
PAIRS = (
    ("float32", "float32"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("float64", "float64"),
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
)
ARGUMENT_BYTES = 4096  # what a launch may carry on every device
TABLE_BYTES = ARGUMENT_BYTES - 48  # of it for the tables of a call: sizeof(Call::own)
ITEMS_BYTES = ARGUMENT_BYTES - 64  # or of many items: sizeof(Items::own)
PIECE_BYTES = ARGUMENT_BYTES - 16
LINE = 16  # bytes that a thread moves at once
THREADS = 256  # a block; two of them share a multiprocessor's registers, 128 each

DIRECT_ROWS = (1, 4, 8)  # missing rows cost arithmetic, of which there is plenty where memory is the limit
TILED_ROWS = (32, 64)
STAGE_BYTES = 8 * 1024  # of inputs in shared memory: with two blocks enough is on its way from memory


# Compared by identity, as `choose` and `kernels` make each once: a launch looks its kernel up in a tenth of the time.
@dataclass(frozen=True, eq=False)
class Kernel:
    """An instance of a template. ``name`` is that of its entry point, ``body`` the instance."""

    name: str
    body: str
    argument: str
    threads: int = THREADS
    blocks: int = 2  # that share a multiprocessor at least: bounds the registers
    shared: int = 0  # bytes of shared memory, where they do not depend on the call
    barriers: bool = False  # whether threads wait for each other

    @property
    def entry(self) -> str:
        """The entry point in C++."""
        return (
            f'extern "C" __global__ void __launch_bounds__({self.threads}, {self.blocks}) {self.name}('
            f"const __grid_constant__ fastgc::{self.argument} argument) {{ fastgc::{self.body}(argument); }}\n"
        )


@dataclass(frozen=True, eq=False)
class Lincomb(Kernel):
    """A kernel for `lincomb`. A block makes tiles of ``rows`` by ``columns``."""

    rows: int = 0
    columns: int = 0
    direct: bool = True


@functools.cache
def lincomb(inputs: str, out: str, rows: int, argument: str = "Call") -> Lincomb:
    """The kernel with tiles of so many rows, one of `DIRECT_ROWS` or `TILED_ROWS`, for a `Call` or for `Items`."""
    (kind, size, wide), (result, out_size, _) = ELEMENTS[inputs], ELEMENTS[out]
    name = f"{'lincomb' if argument == 'Call' else 'items'}_{inputs}_{out}_{rows}"
    if rows in DIRECT_ROWS:
        each = LINE // min(size, out_size)
        body = f"lincomb_direct<{kind}, {result}, {rows}, {each}, {THREADS}>"
        return Lincomb(name, body, argument, rows=rows, columns=each * THREADS)
    columns = THREADS // (rows // 8) * (LINE // wide)  # a thread makes 8 rows of a line
    depth = STAGE_BYTES // wide // columns
    body = f"lincomb_tiled<{kind}, {result}, {rows}, {columns}, {depth}, {THREADS}>"
    shared = depth * (columns + rows) * wide
    return Lincomb(name, body, argument, shared=shared, barriers=True, rows=rows, columns=columns, direct=False)


def table_bytes(inputs: str, count: int, rows: int, stride: int) -> int:
    """Bytes of a call's tables: addresses of inputs and outputs, then coefficients of ``stride`` rows an input."""
    return coefficients_at(count, rows) + count * stride * ELEMENTS[inputs][2]


def coefficients_at(count: int, rows: int) -> int:
    """Where the coefficients begin in the tables."""
    return -(-8 * (count + rows) // LINE) * LINE


def items_bytes(count: int, rows: int) -> int:
    """Bytes of the tables of `Items`, whose coefficients are elsewhere: an address and a distance for each row."""
    return 16 * (count + rows)


def choose(inputs: str, out: str, rows: int, count: int, argument: str = "Call") -> Lincomb:
    """The kernel for so many rows made of ``count`` inputs.

    Few rows are made in one pass, with everything in registers, if the argument holds their tables. More share their
    inputs through shared memory; beyond 64, blocks of 64 rows read the inputs again.
    """
    for direct in DIRECT_ROWS:
        of_call = table_bytes(inputs, count, rows, direct) <= TABLE_BYTES
        of_items = items_bytes(count, rows) <= ITEMS_BYTES
        if rows <= direct and (of_call if argument == "Call" else of_items):
            return lincomb(inputs, out, direct, argument)
    return lincomb(inputs, out, next((tiled for tiled in TILED_ROWS if rows <= tiled), TILED_ROWS[-1]), argument)


def share(tiles: int, layers: int, at_once: int) -> int:
    """Blocks for so many tiles, in each of so many layers: as many as run at once, or fewer, of nearly equal shares.

    csrc/xla_cuda.cpp does the same where the device is not known before a program runs.
    """
    rounds = -(-tiles * layers // max(1, at_once))
    return -(-tiles // rounds)


# Lanes for a pattern, and the largest k that takes so many. What does not fit shared memory is worked on by whole
# blocks in the device's memory.
INVERSION_LANES = {8: 8, 16: 16, 32: 54}
INVERSION_THREADS = 128
SHARED_BYTES = 48 * 1024  # that every device gives a block without being asked
ROOMS = 256  # patterns that have room in the device's memory at once: about as many blocks as a device runs


@dataclass(frozen=True, eq=False)
class Inversion(Kernel):
    """A kernel for `decoding_weights`, with so many ``lanes`` for each pattern."""

    lanes: int = 0


@functools.cache
def inversion(lanes: int) -> Inversion:
    """The kernel with so many lanes, one of `INVERSION_LANES` or `THREADS`."""
    threads = max(lanes, INVERSION_THREADS)
    body = f"decoding_weights<{lanes}, {threads}>"
    return Inversion(f"decoding_weights_{lanes}", body, "Inversion", threads=threads, barriers=True, lanes=lanes)


def inversion_bytes(k: int) -> int:
    """Bytes that the inversion of a pattern needs."""
    return 8 * (2 * k * k + 3 * k)


def choose_inversion(k: int) -> tuple[Inversion, int]:
    """The kernel for patterns of k rows, and the patterns that a block works on at once."""
    for lanes, largest in INVERSION_LANES.items():
        if k <= largest:
            return inversion(lanes), min(INVERSION_THREADS // lanes, SHARED_BYTES // inversion_bytes(k))
    return inversion(THREADS), 1


PIECE = Kernel("write_piece", f"write_piece<{THREADS}>", "Piece")


def kernels() -> Iterator[Kernel]:
    """Every kernel that a call may choose."""
    for inputs, out in PAIRS:
        for rows in DIRECT_ROWS + TILED_ROWS:
            yield lincomb(inputs, out, rows, "Call")
            yield lincomb(inputs, out, rows, "Items")
    yield PIECE
    for lanes in (*INVERSION_LANES, THREADS):
        yield inversion(lanes)


def program(chosen: Iterable[Kernel]) -> str:
    """What is compiled: the source and the entry points."""
    return source() + "".join(kernel.entry for kernel in chosen)


def folder() -> Path:
    """Where the sources are: in the source tree if there is one, else where the package carries them."""
    tree = Path(__file__).parents[2] / "csrc" / "cuda"
    return tree if tree.is_dir() else Path(get_cuda_sources())


@functools.cache
def source(file: str = "kernels.cuh", skip: tuple[str, ...] = ()) -> str:
    """A file with what it includes in place of its ``#include`` lines, each once.

    One text, because a cache of compiled kernels looks at no more than that. Files to `skip` stay included.
    """
    seen = set(skip)

    def text(name: str) -> str:
        if name in seen:
            return f'#include "{name}"\n' if name in skip else ""
        seen.add(name)
        lines = (folder() / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return re.sub(r'^#include "([^"]+)"\n', lambda match: text(match.group(1)), lines, flags=re.MULTILINE)

    return text(file)
