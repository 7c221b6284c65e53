"""The command line: ``python -m fastgc info``, ``codes`` and ``config``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import fastgc
from fastgc import _xla, kernels, native
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
        ("info", "show version, build, kernels and why some are missing, instruction sets, threads and paths"),
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
    config = commands.add_parser(
        "config",
        help="show what compilers of other languages need: options, folders, the library",
        description="Show what is asked for, for programs in C and other languages, in the order asked.",
    )
    for name, (does, _) in CONFIG.items():
        config.add_argument(f"--{name}", dest="wanted", action="append_const", const=name, help=does)
    return parser


# config ---------------------------------------------------------------------------------------------------------------


def _plain(path: str) -> str:
    """A path as shells and compilers of all platforms take it: with slashes, which shells do not take for escapes."""
    return Path(path).as_posix()


def _link() -> str:
    folder = _plain(os.path.dirname(native.get_library()))
    found = [] if sys.platform == "win32" else [f"-Wl,-rpath,{folder}"]  # Windows looks beside a program and on PATH
    return " ".join(shlex.quote(option) for option in (f"-L{folder}", *found, "-lfastgc"))


CONFIG: dict[str, tuple[str, Callable[[], str]]] = {
    "cflags": ("the compiler's options", lambda: shlex.quote(f"-I{_plain(native.get_include())}")),
    "libs": ("the linker's options", _link),
    "prefix": ("the folder for CMAKE_PREFIX_PATH", native.get_prefix),
    "cmakedir": ("the folder of CMake's configuration", lambda: native.get_path("lib", "cmake", "fastgc")),
    "pkgconfigdir": ("the folder for PKG_CONFIG_PATH", lambda: native.get_path("lib", "pkgconfig")),
    "library": ("the shared library", native.get_library),
}


def _print_config(wanted: Sequence[str] | None) -> None:
    if not wanted:
        raise ValueError(f"config: expected at least one of {', '.join(f'--{name}' for name in CONFIG)}")
    print(" ".join([CONFIG[name][1]() for name in wanted]))


# info -----------------------------------------------------------------------------------------------------------------


def _path(find: Callable[[], str]) -> str | None:
    try:
        return find()
    except FileNotFoundError:
        return None


def info() -> dict[str, Any]:
    """What is installed and what this machine offers.

    Returns
    -------
    dict
        ``version``, ``build`` (``compiler`` and ``flags``; None without the compiled kernels), ``backends`` (the
        default first), ``missing`` (why others do not work here), ``isa`` (the instruction set in use; None without the
        compiled kernels), ``isas`` (those that work here, slowest first), ``threads``, ``jax`` (why
        `fastgc.jax` cannot be used; None where it can), ``include`` and ``library`` (the folder of the C header and the
        library; None where they have not been built), ``numpy``, ``python``.

    Raises
    ------
    ValueError
        ``FASTGC_ISA`` names an instruction set that does not work here.
    """
    isa: str | None = None
    isas: list[str] = []
    build: dict[str, str] | None = None
    if "cpp" in kernels.backends():
        from fastgc import _core

        isa, isas, build = _core.isa(), list(_core.isas()), dict(_core.build)
    return {
        "version": fastgc.__version__,
        "build": build,
        "backends": list(kernels.backends()),
        "missing": kernels.missing_backends(),
        "isa": isa,
        "isas": isas,
        "threads": kernels.get_num_threads(),
        "jax": _xla.problem(),
        "include": _path(native.get_include),
        "library": _path(native.get_library),
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def _info_text(values: dict[str, Any]) -> str:
    build = values["build"] or {"compiler": "none", "flags": "none"}
    rows = [
        ("fastgc", values["version"]),
        ("compiler", build["compiler"]),
        ("flags", build["flags"]),
        ("backends", ", ".join(values["backends"]) or "none"),
        *((f"no {name}", why) for name, why in values["missing"].items()),
        ("instruction set", values["isa"] or "none: the compiled kernels are missing"),
        ("available", ", ".join(values["isas"]) or "none"),
        ("threads", str(values["threads"])),
        ("fastgc.jax", values["jax"] or "works"),
        ("include", values["include"] or "none: not built"),
        ("library", values["library"] or "none: not built"),
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
        elif options.command == "config":
            _print_config(options.wanted)
        else:
            subjects = every(options.up_to) if options.up_to else examples()
            if options.json:
                print(json.dumps(list(table(subjects)), indent=2))
            else:
                _print_codes(subjects)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    return 0
