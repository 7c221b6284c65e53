"""The command ``report``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_runner.config import UsageError
from mpi_runner.reading import read_run, runs_in

if TYPE_CHECKING:
    from mpi_runner.report.groups import Section

PAGE = "report.html"


def add(commands: Any) -> None:
    """Add ``report`` to the command line."""
    parser = commands.add_parser("report", help="one page that explains runs", description=_report.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders that hold some")
    parser.add_argument(
        "--out", metavar="FILE", help=f"the page (default: {PAGE} in RUN; here, where there are several)"
    )
    parser.add_argument("--baseline", metavar="SCHEME", help="what times are compared with (default: the first)")
    parser.add_argument("--figures", metavar="DIR", help="write the plots as SVG and PNG files too")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="first iterations that count to no time")
    parser.add_argument(
        "--together", action="store_true", help="one section for all runs, whatever delays, workers and data they had"
    )
    parser.set_defaults(run_command=_report)


def _report(options: argparse.Namespace) -> int:
    """Make one HTML page of runs, of those that are over and of those that still go on: it opens without a network."""
    if options.skip < 0:
        raise UsageError(f"--skip must be at least 0, not {options.skip}")
    from mpi_runner.report.groups import sections

    given = [Path(run) for run in options.runs]
    folders = list(dict.fromkeys(run for path in given for run in runs_in(path)))
    out = Path(options.out) if options.out else (given[0] if len(given) == 1 else Path()) / PAGE
    figures = Path(options.figures) if options.figures else None
    runs = [read_run(folder) for folder in folders]
    found = sections(runs, baseline=options.baseline, skip=options.skip, together=options.together)
    for path in write(found, out, figures):
        print(os.fspath(path))
    return 0


def write(found: Sequence[Section], out: Path, figures: Path | None = None) -> list[Path]:
    """Write the page of some runs; returns the files.

    Parameters
    ----------
    found : sequence of Section
        See `mpi_runner.report.groups.sections`.
    out : Path
        Of the page.
    figures : Path, optional
        A folder for the plots as files.
    """
    from mpi_runner.report import page

    content = page.render(found)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(content, "utf-8")
        return [out, *(page.save_figures(found, figures) if figures else [])]
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {error.strerror}") from None
