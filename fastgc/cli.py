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
from fastgc import kernels
from fastgc.stability import LONGEST, Subject, every, examples, table


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
        ("codes", "show the families of linear codes, their distances, conditioning and errors over all survivor sets"),
    ):
        command = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
        command.add_argument("--json", action="store_true", help="print JSON instead of text")
        if name == "codes":
            command.add_argument(
                "--up-to",
                type=int,
                choices=range(2, LONGEST + 1),
                metavar="D",
                help="measure every family and prior scheme at every load d up to D (2 to 16) and reduction m < d, "
                "instead of a few codes; 16 takes some minutes",
            )
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
        ``version``, ``backends`` (the default first), ``missing`` (why the others do not work, by name), ``isa`` (the
        instruction set in use; None without the compiled kernels), ``isas`` (those that work here, slowest first),
        ``threads``, ``numpy``, ``python``.

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
        "missing": kernels.missing_backends(),
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
        *((f"no {name}", reason) for name, reason in values["missing"].items()),
        ("instruction set", values["isa"] or "none: the compiled kernels are missing"),
        ("available", ", ".join(values["isas"]) or "none"),
        ("threads", str(values["threads"])),
        ("NumPy", values["numpy"]),
        ("Python", values["python"]),
    ]
    return _aligned(rows)


# codes ----------------------------------------------------------------------------------------------------------------

_HEAD = "[n, k]    distance  MDS  worst condition  median   error: float32  bfloat16  float16"


def _print_codes(subjects: Sequence[Subject]) -> None:
    """Line by line, as each is measured."""

    def number(value: float | None, width: int) -> str:
        return ("overflow" if value is None else f"{value:.2g}").rjust(width)

    width = max(len(subject.row["code"]) for subject in subjects)
    print(f"{'code'.ljust(width)}  {_HEAD}")
    for row in table(subjects):
        size = f"[{row['n']}, {row['k']}]"
        errors = row["errors"]
        bfloat16 = number(errors["bfloat16"], 10) if "bfloat16" in errors else "–".rjust(10)
        print(
            f"{row['code'].ljust(width)}  {size:<8}  {row['distance']:>8}  {'yes' if row['mds'] else 'no':<3}"
            f"{number(row['condition'], 17)}{number(row['median_condition'], 8)}{number(errors['float32'], 17)}"
            f"{bfloat16}{number(errors['float16'], 9)}",
            flush=True,
        )


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
            subjects = every(options.up_to) if options.up_to else examples()
            if options.json:
                print(json.dumps(list(table(subjects)), indent=2))
            else:
                _print_codes(subjects)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        parser.error(str(error))
    return 0
