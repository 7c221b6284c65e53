"""The script of a Slurm job that trains, and queues again after a preemption."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from mpi_runner.config import UsageError

HERE = Path(__file__).parent
TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}|UNLIMITED|INFINITE")
"""Minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on: what sbatch takes."""
MEMORY = re.compile(r"\d+[KMGT]?")
WORD = re.compile(r"[^\s'\"\\#]+")
DEFAULT_NOTICE, DEFAULT_REQUEUES = 120, 100


class _Script(Template):
    delimiter = "@"  # the dollars are the shell's


@dataclass(frozen=True)
class Job:
    """What is asked of Slurm.

    Attributes
    ----------
    ranks : int
        MPI ranks, the master's included.
    nodes : int
        They are spread over so many; the first one has the master.
    name : str
        As ``squeue`` shows it.
    partition, account, qos, constraint : str, optional
    time : str, optional
        At most so long, each time that the job starts.
    memory : str, optional
        Of a node.
    cores : int
        Of a rank.
    notice : int
        Seconds before the end of its time at which the job is told.
    requeues : int
        It queues again at most so often.
    extra : tuple of str
        More options of sbatch, as they are.
    """

    ranks: int
    nodes: int
    name: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    memory: str | None = None
    cores: int = 1
    notice: int = DEFAULT_NOTICE
    requeues: int = DEFAULT_REQUEUES
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= self.ranks:
            raise UsageError(f"--nodes must be from 1 to {self.ranks}, the number of ranks, not {self.nodes}")
        for name, value, least, most in (
            ("cores-per-rank", self.cores, 1, 65535),
            ("notice", self.notice, 1, 65535),  # sbatch takes no more
            ("requeues", self.requeues, 0, 10**6),
        ):
            if not least <= value <= most:
                raise UsageError(f"--{name} must be from {least} to {most}, not {value}")
        for name, text, form, allowed in (
            ("job-name", self.name, WORD, "one word"),
            ("partition", self.partition, WORD, "one word"),
            ("account", self.account, WORD, "one word"),
            ("qos", self.qos, WORD, "one word"),
            ("constraint", self.constraint, WORD, "one word"),
            ("time", self.time, TIME, "minutes, hours:minutes:seconds or days-hours:minutes"),
            ("memory", self.memory, MEMORY, "a number, with K, M, G or T"),
        ):
            if text is not None and not form.fullmatch(text):
                raise UsageError(f"--{name} must be {allowed}, not {text!r}")
        for text in self.extra:
            if not (text.startswith("-") and WORD.fullmatch(text)):
                raise UsageError(f"--sbatch must be an option in one word, such as --sbatch=--gres=gpu:1, not {text!r}")

    def directives(self, folder: Path, log: Path) -> str:
        """The lines that sbatch reads: the job runs in `folder` and prints to `log`."""
        values = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks": self.ranks,
            "cpus-per-task": self.cores,
            "mem": self.memory,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "chdir": folder,
            "output": str(log).replace("%", "%%"),
            "open-mode": "append",
            "signal": f"B:TERM@{self.notice}",
        }
        lines = [f"#SBATCH --{name}={_quoted(str(value))}" for name, value in values.items() if value is not None]
        lines.append("#SBATCH --requeue" if self.requeues else "#SBATCH --no-requeue")
        return "\n".join(lines + [f"#SBATCH {text}" for text in self.extra])


def write(job: Job, command: Sequence[str], folder: Path, log: Path, setup: Sequence[str] = ()) -> str:
    """The script of a job.

    Parameters
    ----------
    job : Job
    command : sequence of str
        What trains, and goes on with the run where it has begun.
    folder, log : Path
        The folder that it runs in, and the file that gets its output.
    setup : sequence of str
        Shell commands before it.

    Returns
    -------
    str
        For sbatch.
    """
    template = _Script((HERE / "job.sbatch").read_text())
    return template.substitute(
        directives=job.directives(folder, log),
        setup="".join(f"\n{line}" for line in setup) + ("\n" if setup else ""),
        agent=shlex.quote(f"sh {_unbroken(HERE / 'agent.sh')}"),
        command=_wrapped(command),
        requeues=job.requeues,
    )


def _quoted(text: str) -> str:
    return text if WORD.fullmatch(text) else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unbroken(path: Path) -> str:
    """PRRTE cuts the agent's command at blanks, and knows no quotes."""
    if " " in str(path):
        raise UsageError(f"slurm: mpirun cannot start its daemons by {str(path)!r}: install the package without blanks")
    return str(path)


def _wrapped(command: Sequence[str]) -> str:
    """A command with one option a line, for people."""
    lines: list[str] = []
    for word in command:
        if not lines or word.startswith("--"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n    ".join(lines)
