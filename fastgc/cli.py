"""The command line: ``python -m fastgc info`` and ``python -m fastgc codes``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

import fastgc
from fastgc import codes, kernels
from fastgc.codes import LinearCode


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """One line and exit status 2, without the usage: `--help` prints that."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m fastgc", description="Gradient coding: what is installed, and what there is.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, does in (
        ("info", "show version, kernels, instruction sets and threads"),
        ("codes", "show the families of linear codes, their distances and conditioning"),
    ):
        command = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
        command.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


# info -----------------------------------------------------------------------------------------------------------------


def _threads() -> int:
    """Threads that a large call may use: OMP_NUM_THREADS, else the CPUs; at most those this process may run on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(int(asked), usable) if asked.isdecimal() and int(asked) > 0 else usable


def info() -> dict[str, Any]:
    """What is installed and what this machine offers.

    Returns
    -------
    dict
        ``version``, ``backends`` (the default first), ``isa`` (the instruction set in use; None without the compiled
        kernels), ``isas`` (those that work here, slowest first), ``threads``, ``numpy``, ``python``.

    Raises
    ------
    ValueError
        ``FASTGC_ISA`` names an instruction set that does not work here.
    """
    isa: str | None = None
    isas: list[str] = []
    if "cpp" in kernels.backends():
        from fastgc import _core

        isa, isas = _core.isa(), list(_core.isas())
    return {
        "version": fastgc.__version__,
        "backends": list(kernels.backends()),
        "isa": isa,
        "isas": isas,
        "threads": _threads(),
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def _info_text(values: dict[str, Any]) -> str:
    rows = [
        ("fastgc", values["version"]),
        ("backends", ", ".join(values["backends"]) or "none"),
        ("instruction set", values["isa"] or "none: the compiled kernels are missing"),
        ("available", ", ".join(values["isas"]) or "none"),
        ("threads", str(values["threads"])),
        ("NumPy", values["numpy"]),
        ("Python", values["python"]),
    ]
    return _aligned(rows)


# codes ----------------------------------------------------------------------------------------------------------------


def _examples() -> list[tuple[str, LinearCode]]:
    sizes = ((4, 2), (8, 4), (12, 6))
    families = [(name, make(n, k)) for name, make in codes.FAMILIES.items() for n, k in sizes]
    return [
        *families,
        *[("repetition", codes.repetition(n)) for n in (2, 4)],
        *[("parity", codes.parity(k)) for k in (3, 7)],
        *[("hamming", codes.hamming(r)) for r in (3, 4)],
        *[("reed_muller", codes.reed_muller(r, m)) for r, m in ((1, 3), (1, 4), (2, 4))],
        ("product", codes.product(codes.parity(2), codes.parity(2))),
        ("product", codes.product(codes.repetition(2), codes.cauchy(4, 2))),
    ]


def code_table() -> list[dict[str, Any]]:
    """A few codes of each family.

    Returns
    -------
    list of dict
        ``family``, ``code``, ``n``, ``k``, ``distance``, ``stragglers`` (one less), ``mds`` and ``condition``, the
        worst over all decodable sets of k rows.
    """
    return [
        {
            "family": family,
            "code": code.name,
            "n": code.n,
            "k": code.k,
            "distance": code.distance,
            "stragglers": code.distance - 1,
            "mds": code.is_mds,
            "condition": code.worst_condition_number(),
        }
        for family, code in _examples()
    ]


def _codes_text(table: list[dict[str, Any]]) -> str:
    rows = [("code", "[n, k]", "distance", "MDS", "worst condition")]
    for row in table:
        mds = "yes" if row["mds"] else "no"
        size = f"[{row['n']}, {row['k']}]"
        rows.append((row["code"], size, str(row["distance"]), mds, f"{row['condition']:.3g}"))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status, 2 (with a one-line message) for wrong arguments or environment.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "info":
            values = info()
            print(json.dumps(values, indent=2) if options.json else _info_text(values))
        else:
            table = code_table()
            print(json.dumps(table, indent=2) if options.json else _codes_text(table))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        parser.error(str(error))
    return 0
