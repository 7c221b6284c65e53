"""``python -m bench.compare``: fastgc against its peers and the machine's limits, measured in one process.

Writes results.json, report.md and plots into a folder. See bench/README.md.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import cases, end_to_end, environment, limits, lincomb, report, weights
from bench.cases import Case
from bench.contestants import contestants
from bench.records import Record, Results, merge
from bench.timing import Effort

SUITES = ("limits", "lincomb", "end-to-end", "weights")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.partition("\n")[0])
    add = found.add_argument
    add("--out", type=Path, default=Path("build/bench/results"), metavar="FOLDER", help="default: %(default)s")
    add("--suites", type=_names(SUITES), default=SUITES, help=f"of {','.join(SUITES)}; default: all")
    add("--types", type=_names(cases.NAMES), default=cases.NAMES, help=f"of {','.join(cases.NAMES)}; default: all")
    add("--threads", type=_integers, default=None, help="default: 1 and 2, as far as there are CPUs")
    add("--sizes", type=_integers, default=cases.SIZES, help="values of P and Q; default: 1,2,4,…,64")
    add("--lengths", type=_integers, default=cases.LENGTHS, help="values of L in the grid; default: 10³ … 10⁷")
    add("--only", type=_shape, action="append", metavar="PxQ[xL]", help="these cells of the grid; may be repeated")
    add("--accumulate", action="store_true", help="add to the outputs instead of replacing them, in the grid")
    add("--contestants", type=_strings, default=("",), help="of the grid: those whose names begin so; default: all")
    add("--quick", action="store_true", help="P, Q of 1, 4, 16, 64, lengths to 10⁶, a tenth of a second a cell")
    add("--seconds-per-cell", type=float, default=None, help=f"default: {Effort().seconds}; --quick: 0.1")
    add("--memory", type=float, default=2.0, metavar="GIB", help="largest inputs and outputs; default: %(default)s")
    add("--processes", type=int, default=1, help="repeat everything in so many processes, one after another")
    return found


def measured(options: argparse.Namespace) -> Iterator[Record]:
    """The records of all suites asked for, as they come."""
    effort = Effort(seconds=options.seconds_per_cell)
    memory = options.memory * 2**30
    types = [name for name in options.types if _known(name)]
    if "lincomb" in options.suites:
        yield from lincomb.run(chosen(options), contestants(options.contestants), effort)
    if "end-to-end" in options.suites:
        lengths = [length for length in end_to_end.LENGTHS if not options.quick or length <= 10**6]
        yield from end_to_end.run(types, lengths, memory, replace(effort, seconds=2 * effort.seconds))
    if "weights" in options.suites:
        yield from weights.run(effort)


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cells of the grid that the options ask for."""
    types = [name for name in options.types if _known(name)]
    rows = options.memory * 2**30
    everything = cases.grid(types, options.threads, options.sizes, options.lengths, rows)
    found = [replace(case, accumulate=options.accumulate) for case in everything]
    if not options.only:
        return found
    return [c for c in found if any(s in ((c.p, c.q), (c.p, c.q, c.length)) for s in options.only)]


def run(options: argparse.Namespace) -> Results:
    """Measure everything in this process."""
    described = {k: v for k, v in vars(options).items() if k not in ("out", "processes") and v is not None}
    results = Results(environment.header(described))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        if "limits" in options.suites:
            task = progress.add_task("limits of the machine", total=None)
            results.limits = list(limits.survey(options.threads))
            progress.remove_task(task)
        task = progress.add_task("", total=len(chosen(options)) if "lincomb" in options.suites else None)
        try:
            for record in measured(options):
                results.records.append(record)
                names = ", ".join(f"{name} {value}" for name, value in record.case.items())
                progress.update(task, description=f"{record.suite}: {names}")
                if record.suite == "lincomb":
                    progress.advance(task)
        except KeyboardInterrupt:  # what there is by now is worth keeping
            results.header["interrupted"] = True
    results.header |= {"blas": environment.libraries(), "finished": environment.now()}
    return results


def repeated(arguments: Sequence[str], processes: int) -> Results:
    """Measure everything in so many processes, and merge what they found."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(processes):
            out = Path(folder) / str(number)
            # The last of two equal options holds.
            command = [sys.executable, "-m", "bench.compare", *arguments, "--processes", "1", "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            runs.append(Results.load(out / report.JSON))
    return merge(runs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    if options.quick:
        options.sizes = tuple(n for n in options.sizes if n in (1, 4, 16, 64))
        options.lengths = tuple(n for n in options.lengths if n <= 10**6)
    if options.only:  # cells that are named are measured, whatever else is chosen
        options.sizes = tuple(sorted({*options.sizes, *(n for shape in options.only for n in shape[:2])}))
        options.lengths = tuple(sorted({*options.lengths, *(n for shape in options.only for n in shape[2:])}))
    options.seconds_per_cell = options.seconds_per_cell or (0.1 if options.quick else Effort().seconds)
    options.threads = options.threads or tuple(n for n in (1, 2) if n <= environment.cpus())
    results = repeated(arguments, options.processes) if options.processes > 1 else run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    results.save(options.out / report.JSON)
    results = Results.load(options.out / report.JSON)  # so that the file says all that the report does
    report.write(results, options.out)
    Console().print(report.summary(results), markup=False, highlight=False)
    return 0


def _known(name: str) -> bool:
    try:
        cases.element_type(name)
    except ImportError as error:
        warnings.warn(f"{name} is left out: {error}", stacklevel=2)
        return False
    return True


def _names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if wrong := [name for name in found if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(allowed)}")
        return found

    return names


def _strings(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(float(part)) for part in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a number below 1")
    return numbers


def _shape(text: str) -> tuple[int, ...]:
    numbers = tuple(int(float(part)) for part in text.lower().split("x"))
    if len(numbers) not in (2, 3) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not PxQ or PxQxL")
    return numbers


if __name__ == "__main__":
    environment.ensure_clean()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what `timeout` sends ends it like Ctrl-C
    sys.exit(main())
