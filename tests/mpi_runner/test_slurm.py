"""Training as Slurm jobs: the script, its shell code with stand-ins for Slurm, and a Slurm on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from runner_support import LIMIT, ROWS, SEED, Train, progress, wait_for
from slurm_support import NODES, Slurm, local_slurm

from mpi_runner.cli import main
from mpi_runner.config import UsageError
from mpi_runner.flights import Flights
from mpi_runner.slurm import script
from mpi_runner.slurm.commands import ID, LOG, SCRIPT, without
from mpi_runner.slurm.script import Job, write

COMMAND = [sys.executable, "-m", "mpi_runner", "slurm"]
TRAIN = ["--scheme", "cyclic_repetition", "--stragglers", "1", "--workers", "2"]


def slurm(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )


# The script ----------------------------------------------------------------------------------------------------------


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_what_is_asked_of_slurm() -> None:
    job = Job(9, 3, "night", "batch", "lab", "low", "avx2&ssd", "1-12", "8G", 2, 60, 5, ("--gres=gpu:1", "--exclusive"))
    assert directives(job.directives(Path("/home/a b"), Path("/runs/100%/job.log"))) == [
        "job-name=night",
        "nodes=3",
        "ntasks=9",
        "cpus-per-task=2",
        "mem=8G",
        "time=1-12",
        "partition=batch",
        "account=lab",
        "qos=low",
        "constraint=avx2&ssd",
        'chdir="/home/a b"',
        "output=/runs/100%%/job.log",
        "open-mode=append",
        "signal=B:TERM@60",
        "requeue",
        "gres=gpu:1",
        "exclusive",
    ]
    few = directives(Job(9, 9, "x", requeues=0).directives(Path("/"), Path("/log")))
    assert "no-requeue" in few
    assert not [line for line in few if line.partition("=")[0] in ("partition", "account", "qos", "time", "mem")]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"nodes": 0}, "--nodes must be from 1 to 9, the number of ranks, not 0"),
    ({"nodes": 10}, "--nodes must be from 1 to 9, the number of ranks, not 10"),
    ({"cores": 0}, "--cores-per-rank must be from 1"),
    ({"notice": 0}, "--notice must be from 1 to 65535, not 0"),
    ({"notice": 70000}, "--notice must be from 1 to 65535, not 70000"),
    ({"requeues": -1}, "--requeues must be from 0"),
    ({"time": "soon"}, "--time must be minutes, hours:minutes:seconds or days-hours:minutes, not 'soon'"),
    ({"time": "1:00\n#SBATCH --uid=0"}, "--time must be"),
    ({"memory": "8 GB"}, "--memory must be a number, with K, M, G or T, not '8 GB'"),
    ({"partition": "a b"}, "--partition must be one word, not 'a b'"),
    ({"account": "x\n#SBATCH"}, "--account must be one word"),
    ({"name": ""}, "--job-name must be one word, not ''"),
    ({"extra": ("gres=gpu:1",)}, "--sbatch must be an option in one word"),
    ({"extra": ("--comment=a b",)}, "--sbatch must be an option in one word"),
]


@pytest.mark.parametrize(
    ("given", "message"), BAD, ids=[next(iter(given)) + str(i) for i, (given, _) in enumerate(BAD)]
)
def test_what_slurm_would_refuse_is_refused_before(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Job(**{"ranks": 9, "nodes": 3, "name": "x", **given})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["30", "30:00", "2:00:00", "1-0", "1-12:30", "1-12:30:15", "UNLIMITED"])
def test_times_that_sbatch_takes(text: str) -> None:
    assert f"time={text}" in directives(Job(2, 1, "x", time=text).directives(Path("/"), Path("/log")))


def test_a_path_that_mpirun_could_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="install the package without blanks"):
        script._unbroken(Path("/home/a b/agent.sh"))


def test_an_option_is_taken_out_with_its_value() -> None:
    assert without(["--a", "1", "--run", "x", "--b"], "--run") == ["--a", "1", "--b"]
    assert without(["--run=x", "--runner", "y"], "--run") == ["--runner", "y"]


def test_the_command_prints_or_writes_the_script(tmp_path: Path) -> None:
    given = ["--nodes", "2", "--time", "1:00:00", "--setup", "module load gcc", "--python", "/opt/python"]
    train = ["--", "train", *TRAIN, "--run", str(tmp_path / "a run"), "--delay", "fixed:0.1:1"]
    printed = slurm(*given, "--dry-run", *train)
    assert printed.returncode == 0, printed.stderr
    assert "ntasks=3" in directives(printed.stdout)
    assert "\nmodule load gcc\n" in printed.stdout
    assert (
        f"\n/opt/python -u -m mpi_runner train \\\n    --run '{tmp_path}/a run' \\\n    --resume-if-begun"
        in printed.stdout
    )
    assert not (tmp_path / "a run").exists()
    assert subprocess.run(["bash", "-n"], input=printed.stdout, text=True, check=False).returncode == 0
    written = slurm(*given, "--write", str(tmp_path / "file"), *train)
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "file").read_text() == printed.stdout


REFUSED = [
    ([], "give a training command after --"),
    (["--", "compare", "--schemes", "uncoded"], "give a training command after --"),
    (["--", "train", "--resume", "runs/x"], "give --run and the options that the run began with"),
    (["--", "train", "--scheme", "nonesuch"], "--scheme must be one of"),
    (["--nodes", "4", "--", "train", *TRAIN], "--nodes must be from 1 to 3, the number of ranks, not 4"),
    (["--write", "/nowhere/file", "--", "train", *TRAIN], "--write: cannot write /nowhere/file"),
    (["--", "train", *TRAIN], "sbatch was not found"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_submitted_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["slurm", *arguments]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


# Its shell code, with stand-ins --------------------------------------------------------------------------------------


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A folder with commands of Slurm that write down how they are called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, answer in (("scontrol", ""), ("scancel", ""), ("squeue", 'echo "$STATE"')):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{answer}\n')
        (folder / name).chmod(0o755)
    return folder


def begin(stand_ins: Path, job: Job, command: str, **environment: str) -> subprocess.Popen[str]:
    text = write(job, ["sh", "-c", command], stand_ins, stand_ins / "log", ["set -u"])
    return subprocess.Popen(
        ["bash", "-c", text],
        env={"PATH": f"{stand_ins}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def calls(stand_ins: Path) -> list[str]:
    path = stand_ins.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("status", "state", "restarts", "again"),
    [
        (0, "RUNNING", None, False),
        (143, "RUNNING", None, True),
        (3, "RUNNING", "4", True),
        (3, "RUNNING", "5", False),
        (143, "COMPLETING", None, False),  # cancelled, or Slurm queues it again itself
        (143, "", None, False),
        (1, "RUNNING", None, False),
        (2, "RUNNING", None, False),
        (130, "RUNNING", None, False),
    ],
)
def test_when_a_job_queues_again(status: int, state: str, restarts: str | None, again: bool, stand_ins: Path) -> None:
    counted = {} if restarts is None else {"SLURM_RESTART_COUNT": restarts}
    process = begin(stand_ins, Job(3, 1, "x", requeues=5), f"exit {status}", STATE=state, **counted)
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == status
    assert ("scontrol requeue 12" in calls(stand_ins)) is again
    assert ("queues again" in output) is again
    assert ("5 times are enough" in errors) is (restarts == "5")


def test_the_runner_gets_one_signal_and_its_time(stand_ins: Path) -> None:
    command = "trap 'echo signal' TERM; echo ready; for i in 1 2 3 4 5 6 7 8; do sleep 0.1; done; exit 143"
    process = begin(stand_ins, Job(3, 1, "x"), command, STATE="RUNNING")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=LIMIT)
    assert output.count("signal") == 1
    assert process.returncode == 143
    assert "scontrol requeue 12" in calls(stand_ins)


@pytest.mark.parametrize(("task", "told"), [("0", ["scancel --batch --signal=TERM 12"]), ("1", [])])
def test_the_daemon_does_not_hear_of_a_preemption(task: str, told: list[str], stand_ins: Path) -> None:
    daemon = stand_ins / "prted"
    daemon.write_text("#!/bin/sh\ntrap 'echo dead; exit 9' TERM\necho up $1\nsleep 0.5\nexit 7\n")
    daemon.chmod(0o755)
    agent = subprocess.Popen(
        ["sh", str(script.HERE / "agent.sh"), "word"],
        env={"PATH": f"{stand_ins}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_PROCID": task},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == "up word\n"
    os.killpg(agent.pid, signal.SIGTERM)  # all of the task, as Slurm does it
    output, _ = agent.communicate(timeout=LIMIT)
    assert output == ""
    assert agent.returncode == 7
    assert calls(stand_ins) == told


# A Slurm on this machine ---------------------------------------------------------------------------------------------

ITERATIONS = 20


@pytest.fixture
def local(data: Flights, tmp_path: Path) -> Iterator[Slurm]:
    """A Slurm with three nodes; nothing of it may be left."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    with local_slurm(folder) as up:
        yield up
    assert not up.processes()


def try_to_submit(local: Slurm, run: Path, train: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    words = [
        *TRAIN,
        "--rows",
        str(ROWS),
        "--seed",
        str(SEED),
        "--iterations",
        str(ITERATIONS),
        "--run",
        str(run),
        *train,
    ]
    return slurm("--nodes", str(NODES), *options, "--", "train", *words, environment=local.environment)


def submit(local: Slurm, run: Path, train: Sequence[str], *options: str) -> str:
    """The number of a job."""
    done = try_to_submit(local, run, train, *options)
    assert done.returncode == 0, done.stderr
    job = (run / ID).read_text().strip()
    assert done.stdout == f"job {job}: {run / SCRIPT}, prints to {run / LOG}\n"
    return job


def await_state(local: Slurm, job: str, state: str, run: Path) -> None:
    try:
        wait_for(lambda: local.state(job) == state, LIMIT)
    except AssertionError:
        log = (run / LOG).read_text() if (run / LOG).exists() else "nothing"
        pytest.fail(f"job {job} is {local.state(job)}, not {state}; it printed: {log[-2000:]}")


def ranks(local: Slurm) -> dict[int, tuple[psutil.Process, str]]:
    """The processes of the job by rank, with their nodes."""
    found = {}
    for process in local.processes():
        with contextlib.suppress(psutil.Error, KeyError):
            environment = process.environ()
            if "mpi_runner" in process.cmdline():
                found[int(environment["OMPI_COMM_WORLD_RANK"])] = (process, environment["SLURMD_NODENAME"])
    return found


def urgent_job(local: Slurm) -> str:
    """The number of a job that needs all nodes at once, and preempts whatever is there."""
    options = ("--partition=high", f"--nodes={NODES}", "--exclusive", "--output=/dev/null", "--wrap=true")
    return local.run("sbatch", "--parsable", *options)


def test_a_preempted_job_ends_with_the_model_of_an_undisturbed_run(local: Slurm, train: Train, tmp_path: Path) -> None:
    whole = train(*TRAIN, "--iterations", str(ITERATIONS))
    assert whole.status == 0, whole.errors
    undisturbed = tmp_path / "undisturbed"
    whole.folder.rename(undisturbed)
    run = tmp_path / "run"
    given = ["--delay", "slow:0.5:0,1", "--survivors-from", str(undisturbed), "--checkpoint-every", "0"]
    job = submit(local, run, given)
    wait_for(lambda: progress(run) >= 2, LIMIT)
    assert {rank: node for rank, (_, node) in ranks(local).items()} == {0: "n1", 1: "n2", 2: "n3"}
    await_state(local, urgent_job(local), "COMPLETED", run)
    await_state(local, job, "PENDING", run)
    assert f"has job {job} in the queue" in try_to_submit(local, run, given).stderr
    done = progress(run)
    assert 2 <= done < ITERATIONS
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"iteration-{done:09}.npz"]
    assert json.loads((run / "outcome.json").read_text())["status"] == 128 + signal.SIGTERM
    local.go_on(job)
    await_state(local, job, "COMPLETED", run)
    assert (run / "model.npy").read_bytes() == (undisturbed / "model.npy").read_bytes()
    assert progress(run) == ITERATIONS
    assert "Restarts=1" in local.run("scontrol", "show", "job", job)


@pytest.mark.soak
def test_a_cancelled_job_stays_away_and_goes_on_when_submitted_again(local: Slurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(local, run, ["--delay", "slow:0.5:0,1"])
    wait_for(lambda: progress(run) >= 2, LIMIT)
    local.run("scancel", job)
    await_state(local, job, "CANCELLED", run)
    wait_for(lambda: not local.processes(), LIMIT)
    done = progress(run)
    assert 2 <= done < ITERATIONS
    time.sleep(3)
    assert local.state(job) == "CANCELLED"
    again = submit(local, run, ["--delay", "none"])
    await_state(local, again, "COMPLETED", run)
    assert progress(run) == ITERATIONS
    refused = try_to_submit(local, run, ["--delay", "none"])
    assert refused.returncode == 2
    assert "is complete; choose another directory" in refused.stderr


@pytest.mark.soak
def test_a_job_that_loses_too_many_workers_queues_again(local: Slurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(local, run, ["--delay", "slow:0.5:0,1"])
    wait_for(lambda: progress(run) >= 2, LIMIT)
    for rank, (process, _) in ranks(local).items():
        if rank > 0:
            process.kill()
    wait_for(lambda: "ended with 3, queues again" in (run / LOG).read_text(), LIMIT)
    await_state(local, job, "PENDING", run)
    local.go_on(job)
    await_state(local, job, "COMPLETED", run)
    assert progress(run) == ITERATIONS


@pytest.mark.soak
def test_a_job_killed_without_notice_goes_on_from_its_last_checkpoint(local: Slurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(local, run, ["--delay", "slow:0.5:0,1", "--checkpoint-every", "2"])
    wait_for(lambda: progress(run) >= 3, LIMIT)
    for process in local.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait_for(lambda: local.state(job) not in ("RUNNING", "COMPLETING"), LIMIT)
    job = submit(local, run, ["--delay", "none"])
    await_state(local, job, "COMPLETED", run)
    assert progress(run) == ITERATIONS
    assert (run / LOG).read_text().count("iteration 20/20") == 1


@pytest.mark.soak
def test_a_job_out_of_time_queues_again(local: Slurm, tmp_path: Path) -> None:
    """Slurm counts in minutes and looks twice a minute: it gives notice in the last 31 seconds."""
    run = tmp_path / "run"
    job = submit(local, run, ["--delay", "slow:1:0,1", "--iterations", "200"], "--time", "1", "--notice", "1")
    wait_for(lambda: progress(run) >= 1, LIMIT)
    wait_for(lambda: "ended with 143, queues again" in (run / LOG).read_text(), LIMIT)
    await_state(local, job, "PENDING", run)
    assert 0 < progress(run) < 200
    local.run("scancel", job)
