"""The library of XLA's custom calls: where it is, and why it cannot be used here. Nothing of JAX is imported."""

from __future__ import annotations

import ctypes
import re
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from fastgc import native

__all__ = ["OLDEST", "library", "problem"]

OLDEST = (0, 6)
"""The first release of JAX that has all that is used, and the last for Python 3.10."""

_FILE = native.file_name("fastgc_xla")


def _path() -> Path:
    return Path(__file__).with_name("lib") / _FILE


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The library, loaded. Ask `problem` first."""
    return ctypes.CDLL(str(_path()))


def _offered() -> tuple[int, int]:
    """The version of XLA's interface that the installed jaxlib has, by the header that comes with it."""
    spec = find_spec("jaxlib")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        try:
            text = (Path(folder) / "include/xla/ffi/api/c_api.h").read_text(encoding="utf-8")
        except OSError:
            continue
        numbers = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", text))
        return int(numbers["MAJOR"]), int(numbers["MINOR"])
    return (0, 0)


def problem() -> str | None:
    """Why `fastgc.jax` cannot be used here, in one line; None where it can."""
    if find_spec("jax") is None or find_spec("jaxlib") is None:
        return "JAX is not installed: pip install jax"
    try:
        installed = version("jax")
    except PackageNotFoundError:
        installed = "0"
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) < OLDEST:
        return f"JAX {installed} is too old: {'.'.join(map(str, OLDEST))} or newer is needed"
    if not _path().exists():
        return (
            "this build of fastgc has no library of XLA's custom calls, which is made where jaxlib is at hand: "
            "FASTGC_WITH_JAX=1 pip install --no-binary fast-gradient-coding fast-gradient-coding"
        )
    # XLA takes libraries of its own or an older minor version. One that it refuses would take its whole CPU backend
    # along, if that starts later: so it is never shown one.
    built = divmod(library().fastgc_xla_version(), 1000)
    offered = _offered()
    if built[0] != offered[0] or built > offered:
        return (
            f"fastgc was built for version {built[0]}.{built[1]} of XLA's foreign function interface, and the "
            f"installed jaxlib has {offered[0]}.{offered[1]}: update jaxlib, or install fastgc from source with it"
        )
    return None
