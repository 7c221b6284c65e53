"""``python -m mpi_runner slurm``: a training run as a Slurm job."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpi_runner.config import CONFIG, TrainConfig, UsageError, check, check_directory
from mpi_runner.resuming import Standing, standing
from mpi_runner.slurm.script import DEFAULT_NOTICE, DEFAULT_REQUEUES, Job, write

SCRIPT, LOG, ID = "job.sbatch", "job.log", "job.id"
"""Of a run directory: what was submitted, what it has printed, and its number."""
MakeConfig = Callable[[Sequence[str]], TrainConfig]


def add(commands: Any, make_config: MakeConfig) -> None:
    """Add ``slurm`` to a parser's commands; `make_config` reads the words of a ``train`` command."""
    slurm = commands.add_parser("slurm", help="a run as a Slurm job that survives preemption", description=_run.__doc__)
    slurm.add_argument(
        "--nodes", type=int, metavar="N", help="spread the ranks over so many (default: one rank a node)"
    )
    slurm.add_argument("--partition", metavar="NAME")
    slurm.add_argument("--time", metavar="TIME", help="at most so long each time that the job starts, such as 2:00:00")
    slurm.add_argument("--account", metavar="NAME")
    slurm.add_argument("--qos", metavar="NAME")
    slurm.add_argument("--constraint", metavar="FEATURES", help="what the nodes must have")
    slurm.add_argument("--memory", metavar="SIZE", help="of a node, such as 8G")
    slurm.add_argument("--cores-per-rank", type=int, default=1, metavar="N", help="(default: 1)")
    slurm.add_argument("--job-name", metavar="NAME", help="(default: the scheme)")
    slurm.add_argument(
        "--notice",
        type=int,
        default=DEFAULT_NOTICE,
        metavar="SECONDS",
        help=f"write a checkpoint and queue again so long before the time is over (default: {DEFAULT_NOTICE})",
    )
    slurm.add_argument(
        "--requeues",
        type=int,
        default=DEFAULT_REQUEUES,
        metavar="N",
        help=f"queue again at most so often, 0 for never (default: {DEFAULT_REQUEUES})",
    )
    slurm.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="a line of shell before the run, such as 'module load gcc'; may be given again",
    )
    slurm.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="another option of sbatch; may be given again"
    )
    slurm.add_argument("--python", default=sys.executable, metavar="PATH", help="on the nodes (default: this one)")
    instead = slurm.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    instead.add_argument("--write", type=Path, metavar="FILE", help="write the script to FILE and submit nothing")
    slurm.add_argument("command", nargs=argparse.REMAINDER, help="-- train and its options")
    slurm.set_defaults(run_command=lambda options: _run(options, make_config))


def _run(options: argparse.Namespace, make_config: MakeConfig) -> int:
    """Write the script of a Slurm job that trains, and submit it. Preempted, out of time or short of workers, the job
    writes a checkpoint, queues again and goes on. The run directory must be on a file system that the nodes share."""
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if words[:1] != ["train"]:
        raise UsageError("slurm: give a training command after --, such as: -- train --scheme uncoded --workers 8")
    if any(word.partition("=")[0] == "--resume" for word in words):
        raise UsageError("slurm: give --run and the options that the run began with, and not --resume")
    config = make_config(words[1:])
    check(config)
    folder = Path(os.path.abspath(config.run))
    job = Job(
        ranks=config.workers + 1,
        nodes=config.workers + 1 if options.nodes is None else options.nodes,
        name=config.scheme if options.job_name is None else options.job_name,
        partition=options.partition,
        account=options.account,
        qos=options.qos,
        constraint=options.constraint,
        time=options.time,
        memory=options.memory,
        cores=options.cores_per_rank,
        notice=options.notice,
        requeues=options.requeues,
        extra=tuple(options.sbatch),
    )
    trained = [options.python, "-u", "-m", "mpi_runner", "train", "--run", str(folder), "--resume-if-begun"]
    script = write(job, [*trained, *without(words[1:], "--run")], Path.cwd(), folder / LOG, options.setup)
    if options.dry_run:
        print(script, end="")
        return 0
    if options.write is not None:
        _write(options.write, script)
        print(f"wrote {options.write}; submit it with: mkdir -p {folder} && sbatch {options.write}")
        return 0
    return _submit(config, folder, script)


def without(words: Sequence[str], option: str) -> list[str]:
    """A command without an option and its value."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def _write(path: Path, script: str) -> None:
    try:
        path.write_text(script)
    except OSError as error:
        raise UsageError(f"--write: cannot write {path}: {error.strerror or error}") from None


def _submit(config: TrainConfig, folder: Path, script: str) -> int:
    if shutil.which("sbatch") is None:
        raise UsageError("slurm: sbatch was not found: this is no machine to submit from; --dry-run prints the script")
    found = standing(config)
    if found is Standing.COMPLETE:
        raise UsageError(f"--run: {folder} is complete; choose another directory, or more --iterations")
    if found is Standing.NEW and not (folder / CONFIG).exists():
        check_directory(folder)
    if (job := _queued(folder)) is not None:
        raise UsageError(f"--run: {folder} has job {job} in the queue; scancel it, or choose another directory")
    (folder / SCRIPT).write_text(script)
    done = _slurm("sbatch", "--parsable", str(folder / SCRIPT))
    if done.returncode != 0:
        raise UsageError(f"slurm: sbatch refused the job: {' '.join(done.stderr.split())}")
    job = done.stdout.strip().partition(";")[0]
    (folder / ID).write_text(f"{job}\n")
    print(f"job {job}: {folder / SCRIPT}, prints to {folder / LOG}")
    return 0


def _queued(folder: Path) -> str | None:
    """The job of a run directory that is not over yet."""
    try:
        job = (folder / ID).read_text().strip()
    except FileNotFoundError:
        return None
    # Of a job that has ended squeue says nothing, or that the number is invalid.
    return job if _slurm("squeue", "--noheader", f"--jobs={job}", "--format=%A").stdout.strip() else None


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
