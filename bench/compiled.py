"""Small C++ files of the measurements, compiled on first use into ``build/bench``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / "build" / "bench"
FLAGS = ("-std=c++17", "-O3", "-Wno-psabi", "-fPIC", "-shared", "-pthread")


def compiler() -> list[str]:
    """The command of the C++ compiler: ``CXX``, or ``c++``."""
    return shlex.split(os.environ.get("CXX", "c++"))


def compiled(source: Path, *options: str, headers: Sequence[Path] = ()) -> ctypes.CDLL:
    """The library of one source; compiled again where it, one of `headers` or an option has changed."""
    command, linked = [*compiler(), *FLAGS], [str(source), *options]
    content = b"".join(file.read_bytes() for file in (source, *headers))
    key = hashlib.sha256(content + " ".join([*command, *options]).encode()).hexdigest()[:16]
    target = CACHE / f"{source.stem}-{key}.so"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, *linked, "-o", str(partial)], check=True)
        partial.replace(target)  # at once: another process may be building the same file
    return ctypes.CDLL(str(target))
