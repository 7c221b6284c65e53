"""Training over MPI, started as a user starts it: the model, the records, and what straggling workers may not do."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from runner_support import LIMIT, ROWS, SEED, Start, Train, progress, ranks, wait_for

from fastgc import schemes
from mpi_runner import flights, images, problems, read_run
from mpi_runner.cache import DataError
from mpi_runner.config import TrainConfig
from mpi_runner.launch import find_mpirun
from mpi_runner.models import LogisticRegression
from mpi_runner.optimizers import OPTIMIZERS, train_single
from mpi_runner.peers import OUTCOMES
from mpi_runner.randomness import Sampler
from mpi_runner.wire import HEADER

ITERATIONS = 50
RUNS: list[tuple[list[str], str, str]] = [
    (["--scheme", "uncoded", "--workers", "1"], "none", "float32"),
    (["--scheme", "fractional_repetition", "--workers", "2", "--stragglers", "1"], "fixed:0.03:1", "float32"),
    (["--scheme", "cyclic_repetition", "--workers", "3", "--stragglers", "1"], "exponential:0.002:0.001", "float64"),
    (["--scheme", "polynomial", "--workers", "5", "--stragglers", "1", "--reduction", "2"], "fixed:0.02:1", "float32"),
    (["--scheme", "grouped", "--workers", "6", "--load", "3", "--reduction", "2"], "exponential:0.005", "float64"),
    (["--scheme", "grouped", "--workers", "7", "--load", "4", "--reduction", "2", "--uneven"], "none", "float32"),
]


@pytest.mark.parametrize(("scheme", "delay", "dtype"), RUNS, ids=[" ".join(r[0][1:]) for r in RUNS])
def test_a_run_gives_the_single_process_model_and_true_records(
    scheme: list[str], delay: str, dtype: str, train: Train, data: flights.Flights
) -> None:
    run = train(*scheme, "--delay", delay, "--dtype", dtype, "--iterations", str(ITERATIONS))
    assert run.status == 0, run.errors
    assert run.errors == ""

    # The model, and the loss of every iteration.
    made = schemes.load(run.folder / "scheme.npz")
    model = LogisticRegression(data.features, dtype)
    parts = [data.load_train(p, made.partitions, dtype) for p in range(made.partitions)]
    l2, optimizer = run.summary["l2"], OPTIMIZERS["nesterov"](model.initial(), run.summary["step"])
    losses: list[float] = []
    squares: list[float] = []

    def note(_iteration: int, loss: float, _model: object) -> None:
        losses.append(loss + 0.5 * l2 * squares[-1])
        squares.append(float(np.dot(optimizer.parameters.astype(np.float64), optimizer.parameters)))

    squares.append(0.0)
    single = train_single(model, parts, optimizer, ITERATIONS, l2, note)
    allowed = 1e-5 if dtype == "float32" else 1e-9
    assert run.model.dtype == dtype
    assert np.linalg.norm(run.model - single) <= allowed * np.linalg.norm(single)
    rows = run.table("iterations.csv")
    assert [int(row["iteration"]) for row in rows] == list(range(1, ITERATIONS + 1))
    np.testing.assert_allclose([float(row["loss"]) for row in rows], losses, rtol=allowed)
    assert run.summary["test_auc"] == pytest.approx(model.evaluate(run.model, data.load_test(dtype))["auc"], abs=1e-12)

    # Every message once; the survivors of an iteration are those whose messages for it were used.
    arrivals = run.table("arrivals.csv")
    assert max(Counter((row["worker"], row["iteration"]) for row in arrivals).values()) == 1
    assert {row["outcome"] for row in arrivals} <= {"used", "late", "abandoned"}
    used: dict[str, list[int]] = {}
    for row in arrivals:
        if row["outcome"] == "used":
            used.setdefault(row["iteration"], []).append(int(row["worker"]))
    for row in rows:
        survivors = [int(worker) for worker in row["survivors"].split()]
        assert survivors == sorted(used[row["iteration"]])
        assert made.is_decodable(survivors)
    messages = run.summary["messages"]
    outcomes = Counter(row["outcome"] for row in arrivals)
    assert outcomes == Counter({name: messages[name] for name in OUTCOMES if messages[name]})
    assert messages["models"] == len(arrivals) + messages["unanswered"]
    model_bytes = HEADER.size + data.features * np.dtype(dtype).itemsize
    # Models, and the notices of iterations that are over.
    assert (run.summary["bytes_sent"] - messages["models"] * model_bytes) % HEADER.size == 0
    assert sum(int(row["bytes_sent"]) for row in rows) <= run.summary["bytes_sent"]
    counted = sum(int(row["bytes"]) for row in arrivals)
    assert run.summary["bytes_received"] == counted + HEADER.size * made.workers  # and every worker's first message
    message = HEADER.size + -(-made.message_length(data.features) * np.dtype(dtype).itemsize // 8) * 8
    message += 8 * made.message_length(2)
    assert {int(row["bytes"]) for row in arrivals if row["outcome"] == "used"} == {message}


def test_ignoring_stragglers_trains_on_whoever_answers(train: Train) -> None:
    run = train("--scheme", "ignore_stragglers", "--workers", "4", "--stragglers", "1", "--iterations", "30",
                "--delay", "fixed:0.05:1", "--evaluate-every", "10")  # fmt: skip
    assert run.status == 0, run.errors
    rows = run.table("iterations.csv")
    assert float(rows[-1]["loss"]) < 0.9 * float(rows[0]["loss"])
    assert all(len(row["survivors"].split()) >= 3 for row in rows)
    assert [row["iteration"] for row in rows if row["score"]] == ["10", "20", "30"]


def test_plain_lines_and_a_table_where_there_is_no_terminal(train: Train) -> None:
    run = train("--scheme", "uncoded", "--workers", "2", "--iterations", "20")
    assert run.status == 0, run.errors
    assert "\x1b" not in run.output
    lines = run.output.splitlines()
    assert lines[0].startswith("uncoded(2) · 20 iterations · delay none · ")
    assert [line.split()[1] for line in lines if line.startswith("iteration")] == [f"{i}/20" for i in range(2, 21, 2)]
    assert any("uncoded(2)" in line and f"{run.summary['test_auc']:.4f}" in line for line in lines)


def test_the_same_run_in_a_job_that_someone_else_started(train: Train) -> None:
    mpirun = (find_mpirun(), "--oversubscribe", "--bind-to", "none", "-n", "4")
    run = train("--scheme", "cyclic_repetition", "--workers", "3", "--stragglers", "1", "--iterations", "10",
                before=mpirun)  # fmt: skip
    assert run.status == 0, run.errors
    assert run.output.count("iteration 10/10") == 1
    assert run.output.count("cyclic_repetition(3, 1") == 2  # the title and the table, by one rank
    assert len(run.table("iterations.csv")) == 10


def test_a_job_of_the_wrong_size_is_refused(train: Train) -> None:
    mpirun = (find_mpirun(), "--oversubscribe", "--bind-to", "none", "-n", "3")
    run = train("--scheme", "uncoded", "--workers", "3", before=mpirun)
    assert run.status == 2
    assert run.errors.count("error: --workers 3 needs 4 MPI ranks") == 1
    assert "Traceback" not in run.errors
    assert not (run.folder / "iterations.csv").exists()


# Stragglers, and the end of things -----------------------------------------------------------------------------------


def test_a_stopped_worker_holds_nobody_back_and_goes_on_with_the_newest_model(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("--scheme", "fractional_repetition", "--workers", "4", "--stragglers", "1", "--iterations", "150",
                    "--delay", "exponential:0.02")  # fmt: skip
    try:
        wait_for(lambda: progress(folder) >= 5, LIMIT)
        straggler = ranks(psutil.Process(process.pid))[4]
        earliest = progress(folder)
        straggler.send_signal(signal.SIGSTOP)
        stopped = progress(folder)
        wait_for(lambda: progress(folder) >= stopped + 40, LIMIT)
        straggler.send_signal(signal.SIGCONT)
        output, errors = process.communicate(timeout=LIMIT)
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 0, output + errors
    with (folder / "arrivals.csv").open(newline="") as file:
        heard = [int(row["iteration"]) for row in csv.DictReader(file) if row["worker"] == "3"]
    gap, before = max((b - a, a) for a, b in itertools.pairwise(heard))
    assert gap >= 35  # what it missed it skipped: one old message, then the newest model
    assert earliest - 5 <= before <= stopped + 5
    assert heard == sorted(set(heard))
    assert len([i for i in heard if i > before + gap]) >= 10


def test_a_fixed_delay_is_served_whole_under_any_load(train: Train) -> None:
    """And by each of the stragglers: coded schemes meet the same as uncoded ones."""
    run = train("--scheme", "grouped", "--workers", "4", "--load", "4", "--reduction", "2", "--iterations", "20",
                "--delay", "fixed:0.4:1")  # fmt: skip
    assert run.status == 0, run.errors
    rows = [row for row in run.table("arrivals.csv") if float(row["delay"]) > 0]
    assert len(rows) >= 3
    for row in rows:
        assert float(row["delay"]) >= 0.4
        assert float(row["arrived"]) - float(row["sent"]) >= 0.4


def test_a_worker_that_never_stops_does_not_keep_the_model_back(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("--scheme", "fractional_repetition", "--workers", "4", "--stragglers", "1", "--iterations", "60",
                    "--delay", "exponential:0.02")  # fmt: skip
    try:
        wait_for(lambda: progress(folder) >= 5, LIMIT)
        family = psutil.Process(process.pid).children(recursive=True)
        ranks(psutil.Process(process.pid))[4].send_signal(signal.SIGSTOP)
        wait_for(lambda: (folder / "summary.json").exists(), LIMIT)  # the model is written before anyone is waited for
        assert np.isfinite(np.load(folder / "model.npy")).all()
        output, errors = process.communicate(timeout=40)
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 0, output + errors
    assert "worker 3" in errors
    assert "unstopped" in errors
    assert any(line.split()[:1] == ["fractional_repetition(4,"] for line in output.splitlines()[1:])  # the table
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_reader_that_goes_away_ends_the_run(start: Start, tmp_path: Path) -> None:
    process = start("--scheme", "uncoded", "--workers", "2", "--iterations", "2000", "--delay", "fixed:0.01:1")
    wait_for(lambda: progress(tmp_path / "run") >= 3, LIMIT)
    family = psutil.Process(process.pid).children(recursive=True)
    assert process.stdout is not None
    process.stdout.close()  # as `| head -1` does
    process.wait(60)
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive


def test_a_killed_launcher_takes_its_job_along(start: Start, tmp_path: Path) -> None:
    process = start("--scheme", "uncoded", "--workers", "2", "--iterations", "100000", "--delay", "fixed:0.01:1")
    wait_for(lambda: progress(tmp_path / "run") >= 3, LIMIT)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_no_process(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    process = start("--scheme", "uncoded", "--workers", "1", "--iterations", "100000", "--delay", "fixed:0.05:1")
    wait_for(lambda: progress(tmp_path / "run") >= 3, LIMIT)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3  # mpirun, the master and the worker
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert progress(tmp_path / "run") >= 3


FAILING = """
import sys
from mpi4py import MPI
from mpi_runner import cli, session

def fail(*arguments):
    raise RuntimeError("made to fail")

if MPI.COMM_WORLD.Get_rank() == {rank}:
    session.{where} = fail
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("rank", "where"), [(0, "Master"), (2, "Worker"), (1, "share_scheme")])
def test_an_exception_in_one_rank_ends_all(
    rank: int, where: str, data: flights.Flights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    program = tmp_path / "failing.py"
    program.write_text(FAILING.format(rank=rank, where=where))
    command = [find_mpirun(), "--oversubscribe", "--bind-to", "none", "-n", "3", sys.executable, str(program)]
    command += ["train", "--scheme", "uncoded", "--workers", "2", "--rows", "1500", "--seed", str(SEED)]
    command += ["--run", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert done.stderr.count("RuntimeError: made to fail") == 1


# Other models ---------------------------------------------------------------------------------------------------------


def test_a_coded_pytorch_model_is_as_good_as_that_of_one_process(train: Train) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    try:
        images.prepare("digits", ROWS, SEED)
    except DataError as error:
        pytest.skip(str(error))
    run = train("--model", "mlp", "--scheme", "grouped", "--workers", "3", "--load", "3", "--reduction", "2",
                "--iterations", "40", "--delay", "fixed:0.02:1")  # fmt: skip
    assert run.status == 0, run.errors
    assert run.summary["test_accuracy"] > 0.75  # chance is 0.1
    config = TrainConfig(**read_run(run.folder).config)
    problem = problems.attach(config)
    parts = [problem.load_train(number, 3) for number in range(3)]
    sampler = Sampler(SEED, 3, config.batch)
    single = train_single(problem.model, parts, problem.make_optimizer(), 40, problem.l2, sampler=sampler)
    # The same steps but for roundings, which may turn a few of the 1,000 test images that lie between two classes.
    score = problem.model.evaluate(single, problem.load_test())["accuracy"]
    assert abs(run.summary["test_accuracy"] - score) <= 0.005
    assert 2 in {len(row["survivors"].split()) for row in run.table("iterations.csv")}
    (size,) = {int(row["bytes"]) for row in run.table("arrivals.csv") if row["outcome"] == "used"}
    assert size < 0.51 * single.nbytes  # half as long as the gradient


# PyTorch's import takes 2.5 s of every rank.
@pytest.mark.parametrize("model", ["softmax", *(pytest.param(name, marks=pytest.mark.soak) for name in ("mlp", "cnn"))])
def test_images_train_coded_and_uncoded_to_the_same_accuracy(model: str, tmp_path: Path) -> None:
    """Over MPI, with stragglers where the code lets them straggle, by the command that a user types."""
    if model != "softmax":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    try:
        images.prepare("digits", ROWS, SEED)
    except DataError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "mpi_runner", "compare", "--model", model, "--workers", "3", "--iterations", "40",
               "--rows", str(ROWS), "--seed", str(SEED), "--delay", "fixed:0.02:1", "--run", str(tmp_path / "runs"),
               "--schemes", "uncoded", "grouped:load=3,reduction=2"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    summaries = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*/summary.json"))]
    uncoded, coded = (summary["test_accuracy"] for summary in summaries)
    assert uncoded > (0.5 if model == "cnn" else 0.75)  # chance is 0.1
    # The same steps but for roundings, which may turn a few of the 1,000 test images that lie between two classes.
    assert abs(coded - uncoded) <= 0.005
    # Half as long, and from all three workers in both: the one that is away is heard later.
    assert summaries[1]["bytes_received"] < 0.6 * summaries[0]["bytes_received"]
