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
# What launches carry. More than 4 KB is for CUDA 12.1 or newer, which allows 32; with tables of 17 KB in its argument,
# 64 rows of 64 inputs took 1.45 times as long on an H200 as with coefficients in memory.
ARGUMENT_BYTES = {"Call": 4096, "LargeCall": 8192, "Items": 4096, "Piece": 32752, "Inversion": 56}
TABLE_BYTES = {name: ARGUMENT_BYTES[name] - 32 for name in ("Call", "LargeCall")}  # for tables: sizeof(Call::own)
ITEMS_BYTES = ARGUMENT_BYTES["Items"] - 64  # sizeof(Items::own)
LINE = 16  # bytes that a thread moves at once
THREADS = 256  # a block; two of them share a multiprocessor's registers, 128 each

ROWS = (1, 4, 8, 16)  # missing rows cost arithmetic, of which there is plenty where memory is the limit


# Compared by identity, as `choose` and `kernels` make each once: a launch looks its kernel up in a tenth of the time.
@dataclass(frozen=True, eq=False)
class Kernel:
    """An instance of a template. ``name`` is that of its entry point, ``body`` the instance."""

    name: str
    body: str
    argument: str
    threads: int = THREADS
    blocks: int = 2  # that share a multiprocessor at least: bounds the registers
    shared: int = 0  # bytes of shared memory
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

    def layers(self, rows: int) -> int:
        """Layers of tiles that so many rows take."""
        return -(-rows // self.rows)


@functools.cache
def lincomb(inputs: str, out: str, rows: int, argument: str = "Call") -> Lincomb:
    """The kernel with tiles of so many rows, one of `rows_of`, for a `Call`, a `LargeCall` or for `Items`."""
    (kind, size, _), (result, out_size, _) = ELEMENTS[inputs], ELEMENTS[out]
    each = LINE // min(size, out_size)  # a thread makes whole lines of the narrower type
    name = f"{'lincomb' if argument == 'Call' else argument.lower()}_{inputs}_{out}_{rows}"
    body = f"lincomb<{kind}, {result}, {rows}, {each}, {THREADS}>"
    return Lincomb(name, body, argument, rows=rows, columns=each * THREADS)


def rows_of(inputs: str, out: str) -> tuple[int, ...]:
    """Rows of the tiles that there are for these element types: 16 only where their sums fit the registers."""
    return ROWS if inputs == out == "float32" else ROWS[:-1]


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
    """The kernel for so many rows made of ``count`` inputs: for `Items` where no `Call` has room for its tables."""
    sizes = rows_of(inputs, out)
    tile = next((size for size in sizes if rows <= size), sizes[-1])
    room = table_bytes(inputs, count, rows, -(-rows // tile) * tile)
    fitting = next((call for call, most in TABLE_BYTES.items() if room <= most), "Items")
    return lincomb(inputs, out, tile, fitting if argument == "Call" else argument)


def share(tiles: int, layers: int, at_once: int) -> int:
    """Blocks for so many tiles, in each of so many layers: as many as run at once, or fewer, of nearly equal shares.

    csrc/xla_cuda.cpp does the same where the device is not known before a program runs.
    """
    rounds = -(-tiles * layers // max(1, at_once))
    return -(-tiles // rounds)


# Numbers that a lane holds of its row, at least k of them, and blocks of that kernel that share a multiprocessor: as
# many as leave it the registers it needs. Larger patterns are worked on by a block each, in the device's memory.
INVERSION_WIDTHS = {2: 8, 4: 8, 6: 8, 8: 8, 12: 8, 16: 7, 24: 5, 32: 4, 48: 6, 64: 6}
INVERSION_THREADS = 128  # or 64 where these are all for one pattern: its warps wait for each other
SHARED_BYTES = 48 * 1024  # that every device gives a block without being asked
ROOMS = 256  # patterns that have room in the device's memory at once: about as many blocks as a device runs


@dataclass(frozen=True, eq=False)
class Inversion(Kernel):
    """A kernel for `decoding_weights`, with ``lanes`` for each pattern of at most ``width`` rows; 0 for any number."""

    width: int = 0
    lanes: int = THREADS

    @property
    def groups(self) -> int:
        """Patterns that a block works on at once."""
        return self.threads // self.lanes


@functools.cache
def inversion(width: int) -> Inversion:
    """The kernel of that width, one of `INVERSION_WIDTHS` or 0."""
    if width == 0:
        body = f"large_decoding_weights<{THREADS}>"
        return Inversion("decoding_weights_any", body, "Inversion", barriers=True)
    lanes = 1 << (width - 1).bit_length()
    threads = INVERSION_THREADS if lanes <= 32 else lanes
    body, blocks = f"decoding_weights<{lanes}, {width}>", INVERSION_WIDTHS[width]
    name, room = f"decoding_weights_{width}", 8 * (-(-width * (width + 3) // 16) * 16 + 2)  # Inverse::room
    shared = threads // lanes * room
    return Inversion(name, body, "Inversion", threads, blocks, shared, barriers=True, width=width, lanes=lanes)


def choose_inversion(k: int) -> Inversion:
    """The kernel for patterns of k rows."""
    return inversion(next((width for width in INVERSION_WIDTHS if k <= width), 0))


def inversion_numbers(k: int) -> int:
    """Numbers in the device's memory that a block needs for a pattern of any k: see LargeInverse."""
    return 2 * k * k + 3 * k


PIECE = Kernel("write_piece", f"write_piece<{THREADS}>", "Piece")


def kernels() -> Iterator[Kernel]:
    """Every kernel that a call may choose."""
    for inputs, out in PAIRS:
        for rows in rows_of(inputs, out):
            for argument in ("Call", "LargeCall", "Items"):
                yield lincomb(inputs, out, rows, argument)
    yield PIECE
    for width in (*INVERSION_WIDTHS, 0):
        yield inversion(width)


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
