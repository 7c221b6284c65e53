"""Where and with what a measurement runs: made sure of before it, and written down with it."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import limits
from bench.compiled import compiler
from fastgc import kernels

MISLEADING = (
    # They make OpenBLAS take another kernel, or block for another cache, than it would choose by itself.
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    # They bound the threads of some contestants and not of others.
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    # It takes the choice of instruction set from the library under test.
    "FASTGC_ISA",
)


def ensure_clean() -> None:
    """Start this process anew without the variables that mislead a contestant: libraries read them when loaded."""
    if any(name in os.environ for name in MISLEADING):
        environment = {name: value for name, value in os.environ.items() if name not in MISLEADING}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Give every library that is loaded by now so many threads."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=count)
    kernels.set_num_threads(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
    if numba := sys.modules.get("numba"):
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def machine() -> dict[str, Any]:
    """The machine, the commit and the time."""
    return {
        "cpu": _cpu(),
        "cpus": cpus(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": now(),
        "versions": {
            name: version
            for name in (
                "fast-gradient-coding", "numpy", "scipy", "numba", "torch", "numkong", "ml-dtypes", "mpi4py", "openmpi",
            )
            if (version := _version(name))
        },
    }  # fmt: skip


def header(options: dict[str, Any]) -> dict[str, Any]:
    """What a reader needs to know to judge the kernels' numbers, or to measure them again."""
    return {
        **machine(),
        "caches": _caches(),
        "compiler": _output(*compiler(), "--version"),
        "fastgc": _kernels(),
        "limits_vector_bytes": limits.vector_bytes(),
        "options": options,
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        info: dict[str, Any] = importlib.import_module("cpuinfo").get_cpu_info()
    except ImportError:
        return platform.processor()
    name = info.get("brand_raw", platform.processor())
    numbers = [f"{key} {info[key]}" for key in ("family", "model", "stepping") if key in info]
    return f"{name} ({', '.join(numbers)})" if numbers else str(name)


def _caches() -> dict[str, str]:
    """Sizes of a core's caches, as Linux tells them."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with contextlib.suppress(OSError):
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            found[f"L{level} {kind.lower()}"] = size
    return found


def _output(*command: str) -> str | None:
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return text.strip().partition("\n")[0]


def _commit() -> str | None:
    git = ("git", "-C", str(Path(__file__).parent))
    commit = _output(*git, "rev-parse", "HEAD")
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no", "--", "..")
    return f"{commit} with changes" if commit and changed else commit


def _kernels() -> dict[str, Any]:
    from fastgc import kernels

    described: dict[str, Any] = {"backends": list(kernels.backends())}
    if "cpp" in kernels.backends():
        from fastgc import _core

        described |= {"isa": _core.isa(), "isas": list(_core.isas())}
    return described


def libraries() -> list[dict[str, Any]]:
    """The BLAS and OpenMP libraries that are loaded by now, with the kernel that OpenBLAS chose for this CPU."""
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    found = [
        {"library": Path(str(info["filepath"])).name, **{key: info[key] for key in keys if info.get(key)}}
        for info in threadpool_info()
    ]
    if torch := sys.modules.get("torch"):
        found.append({"library": "torch", "capability": torch.backends.cpu.get_cpu_capability()})
    return found
