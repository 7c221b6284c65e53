"""Training over MPI where workers send after parts of their work: what slow ones have done counts, and all is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runner_support import Run, Train, script, single_model
from test_gathering import LYING, table

from fastgc import schemes
from mpi_runner import flights
from mpi_runner.config import UsageError
from mpi_runner.launch import find_mpirun, survives_faults
from mpi_runner.records import named_parts, read_survivors
from mpi_runner.replay import Trace

FOUR = ("--scheme", "grouped", "--load", "4", "--reduction", "2", "--workers", "4", "--parts", "3")


def check_records(run: Run, parts: int) -> None:
    """Every message used is recorded once, in both tables."""
    used: dict[str, list[str]] = {}
    for row in run.table("arrivals.csv"):
        if row["outcome"] == "used":
            used.setdefault(row["iteration"], []).append(f"{row['worker']}:{row['part']}")
    scheme = schemes.load(run.folder / "scheme.npz").in_parts(parts)
    sets = read_survivors(run.folder, schemes.load(run.folder / "scheme.npz"), parts)
    for row in run.table("iterations.csv"):
        assert row["parts"].split() == sorted(used[row["iteration"]])
        assert row["survivors"].split() == sorted({pair.partition(":")[0] for pair in used[row["iteration"]]})
        chosen = sets[int(row["iteration"]) - 1].survivors
        assert named_parts(sorted(chosen), parts) == row["parts"]
        assert scheme.is_decodable(chosen)


def test_what_slow_workers_have_done_is_used_and_can_be_used_again(
    train: Train, data: flights.Flights, tmp_path: Path
) -> None:
    """Workers 1 and 3 take twice as long as the others, and never finish: one part of theirs, in the time of two of the
    others', is all that is needed."""
    run = train(*FOUR, "--iterations", "12", "--delay", "uneven:0:0.08:2,1,2,1")
    assert run.status == 0, run.errors
    check_records(run, 3)
    expected = single_model(run.folder, data, 12)
    assert np.linalg.norm(run.model - expected) <= 1e-5 * np.linalg.norm(expected)
    used = [row for row in run.table("arrivals.csv") if row["outcome"] == "used" and row["worker"] in "13"]
    assert len(used) > 6
    assert {row["more"] for row in used} == {"1"}
    messages = run.summary["messages"]
    answers = sum(messages[kind] for kind in ("used", "unused", "late", "abandoned", "overflow", "unanswered"))
    assert messages["models"] + messages["parts"] == answers
    kept = tmp_path / "first"
    run.folder.rename(kept)
    # The same messages give the same model, and with a checkpoint in the middle as well.
    begun = train(*FOUR, "--iterations", "5", "--survivors-from", str(kept))
    assert begun.status == 0, begun.errors
    again = train("--resume", str(begun.folder), "--iterations", "12", "--survivors-from", str(kept))
    assert again.status == 0, again.errors
    assert np.array_equal(again.model, np.load(kept / "model.npy"))
    with pytest.raises(UsageError, match="in 3 parts, and not 2"):
        read_survivors(kept, schemes.load(kept / "scheme.npz"), 2)
    # A trace of it has slow workers, too: their parts say how long all of it would have taken.
    trace = Trace.read(str(kept))
    fast, slow = (np.median([trace.computing(worker, i) for i in range(12)]) for worker in (0, 1))
    assert 0.02 <= fast < slow


def test_the_end_waits_for_no_one_in_particular(train: Train) -> None:
    """Two equally fast workers under repetition do half each: one alone would take 0.4 s."""
    options = ("--scheme", "fractional_repetition", "--stragglers", "1", "--workers", "2", "--iterations", "4")
    run = train(*options, "--parts", "4", "--delay", "slow:0.2:0,1")
    assert run.status == 0, run.errors
    check_records(run, 4)
    first = [row["parts"].split() for row in run.table("iterations.csv")]
    assert {"0:0", "1:3"} <= set(first[0])
    assert min(float(row["seconds"]) for row in run.table("iterations.csv")) < 0.4


def test_parts_go_with_narrow_messages_deadlines_and_checking(train: Train, data: flights.Flights) -> None:
    narrow = ("--message-dtype", "bfloat16", "--deadline", "60", "--verify", "--delay", "exponential:0.002")
    run = train(*FOUR, "--iterations", "8", *narrow)
    assert run.status == 0, run.errors
    check_records(run, 3)
    assert run.table("faults.csv") == []
    expected = single_model(run.folder, data, 8)
    assert np.linalg.norm(run.model - expected) <= 1e-2 * np.linalg.norm(expected)


def test_a_worker_whose_parts_are_wrong_is_left_out(tmp_path: Path) -> None:
    options = ["--with-ft", "ulfm"] if survives_faults(find_mpirun()) else []
    text = LYING.replace("{liars}", "{5}").replace("{lie}", "np.roll(gradient, 1)").replace("run=", "parts=2, run=")
    done = script(text, ranks=9, folder=tmp_path, options=options)
    assert done.returncode == 0, done.stderr
    (fault,) = table(tmp_path / "run" / "faults.csv")
    assert (fault["worker"], fault["kind"]) == ("5", "corrupt")
    rows = table(tmp_path / "run" / "iterations.csv")
    assert len(rows) == 30
    after = [row for row in rows if int(row["iteration"]) >= int(fault["iteration"])]
    assert after
    assert not [row for row in after if "5" in row["survivors"].split()]


BAD = [
    (("--parts", "0"), "--parts must be at least 1, not 0"),
    (("--parts", "1001"), "--parts must be at most 1000, not 1001"),
    (("--parts", "2", "--message-dtype", "int8", "--error-feedback"), "--error-feedback does not go with --parts 2"),
    (("--parts", "2", "--reduction", "auto"), "--parts must be 1 where the reduction is chosen anew, not 2"),
    (("--parts", "3", "--batch", "11"), "--batch must be at least 12, one a part of a partition, not 11"),
]


@pytest.mark.parametrize(("options", "pattern"), BAD)
def test_bad_input(train: Train, options: tuple[str, ...], pattern: str) -> None:
    run = train(*FOUR[:-2], "--iterations", "1", *options)
    assert run.status == 2
    assert pattern in run.errors
