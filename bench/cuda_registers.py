"""Registers and spills of every CUDA kernel on every architecture, from the assembler's report; no GPU is needed.

    python -m bench.cuda_registers    # compiles all kernels for all architectures and writes bench/results/cuda/

Needs CuPy and NVRTC (``pip install cupy-cuda13x nvidia-cuda-nvrtc``). The tests compile by the functions here.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from fastgc.kernels import _cuda_tiles as tiles

ARCHITECTURES = (75, 80, 86, 90, 100)
RECORD = Path(__file__).parent / "results" / "cuda" / "registers.json"
# What CuPy compiles with on a device (cupy/cuda/compiler.py), -ftz=true included, but not -default-device: fastgc.jax
# compiles without it.
OPTIONS = ("--std=c++17", "-ftz=true")

_REPORT = re.compile(
    r"entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def version() -> str:
    """NVRTC's version."""
    from cupy.cuda import nvrtc

    return ".".join(map(str, nvrtc.getVersion()))


def digest() -> str:
    """A hash of all that is compiled but comments and white space, by which a record is known to be of this source."""
    code = re.sub(r"//[^\n]*", "", tiles.program(tiles.kernels()))
    return hashlib.sha256(" ".join(code.split()).encode()).hexdigest()


def assemble(text: str, architecture: int) -> tuple[str, str]:
    """Compile for an architecture; the assembler's report and the PTX. RuntimeError with the log if it fails."""
    from cupy.cuda import nvrtc

    handle = nvrtc.createProgram(text, "kernels.cu", [], [])
    try:
        nvrtc.compileProgram(handle, (f"-arch=sm_{architecture}", "--ptxas-options=-v", *OPTIONS))
        return nvrtc.getProgramLog(handle), nvrtc.getPTX(handle).decode()
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"sm_{architecture}: {error}: {nvrtc.getProgramLog(handle)}") from None
    finally:
        nvrtc.destroyProgram(handle)


def reported(log: str) -> dict[str, dict[str, int]]:
    """Of each kernel: ``registers``, and bytes of ``stack`` and of ``spills``, stored and loaded."""
    return {
        name: {"registers": int(registers), "stack": int(stack), "spills": int(stored) + int(loaded)}
        for name, _, stack, stored, loaded, registers in _REPORT.findall(log)
    }


def record() -> dict[str, Any]:
    """All kernels on all architectures."""
    found = {}
    for architecture in ARCHITECTURES:
        found[f"sm_{architecture}"] = reported(assemble(tiles.program(tiles.kernels()), architecture)[0])
        print(f"sm_{architecture}: {len(found[f'sm_{architecture}'])} kernels", file=sys.stderr)
    return {"source": digest(), "nvrtc": version(), "kernels": found}


def table(values: dict[str, Any]) -> str:
    """The record in Markdown."""
    names = list(values["kernels"])
    lines = [
        "# Registers of the CUDA kernels",
        "",
        f"By `python -m bench.cuda_registers` with NVRTC {values['nvrtc']}. No kernel spills or has a stack frame.",
        "`lincomb_IN_OUT_R` makes tiles of R rows, `items_IN_OUT_R` those of many items, with coefficients in memory;",
        "`decoding_weights_N` is for up to N rows a pattern. At most 128 registers let two blocks of 256 threads share",
        "a multiprocessor.",
        "",
        "| kernel | shared memory | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for kernel in tiles.kernels():
        counts = [str(values["kernels"][name][kernel.name]["registers"]) for name in names]
        lines.append(f"| `{kernel.name}` | {kernel.shared} | " + " | ".join(counts) + " |")
    return "\n".join(lines) + "\n"


def spilling(values: dict[str, Any]) -> list[tuple[str, str]]:
    """What spills, or keeps something in memory for want of registers."""
    return [
        (architecture, name)
        for architecture, kernels in values["kernels"].items()
        for name, use in kernels.items()
        if use["spills"] or use["stack"]
    ]


def main() -> int:
    """Write the record and its table; 1 if anything spills."""
    values = record()
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(values, indent=1) + "\n")
    RECORD.with_suffix(".md").write_text(table(values))
    print(f"wrote {RECORD} and {RECORD.with_suffix('.md').name}")
    for architecture, name in spilling(values):
        print(f"{architecture}: {name} spills", file=sys.stderr)
    return bool(spilling(values))


if __name__ == "__main__":
    sys.exit(main())
