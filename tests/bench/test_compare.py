"""The comparison measures what it says: it is run on two tiny cells, and its parts are tried one by one."""

# ruff: noqa: E402
from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for needed in ("matplotlib", "rich", "threadpoolctl"):
    pytest.importorskip(needed, reason=f"{needed} is not installed; the extra [bench] brings it")

from bench import limits, report
from bench.cases import Arena, Case, Problem, element_type
from bench.compiled import compiler
from bench.contestants import Contestant, NotApplicable, Unavailable, contestants
from bench.environment import set_threads
from bench.lincomb import measure_case, verified
from bench.records import OURS, Record, Results, Timing, merge
from bench.timing import Effort, Repeated, Samples, measure
from fastgc import kernels

ROOT = Path(__file__).parents[2]
TINY = Effort(seconds=0.001, sample_seconds=1e-5, fewest=7, most=7, settle=0)

needs_compiler = pytest.mark.skipif(
    shutil.which(compiler()[0]) is None, reason=f"no C++ compiler {compiler()[0]!r} to build the limits"
)


def problem(p: int = 2, q: int = 3, length: int = 1000, *, name: str = "f32", accumulate: bool = False) -> Problem:
    return Problem(Case(name, 1, p, q, length, accumulate), Arena(element_type(name)))


def product(found: Problem) -> Any:
    return found.coefficients @ found.inputs.astype(found.element.arithmetic)


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "bench.compare", "--suites", "lincomb", "--types", "f32", "--threads", "1"]
    command += ["--contestants", "fastgc,NumPy,SciPy,NumKong"]
    cells = ["--only", "2x3x1000", "--only", "4x4x5e3", "--seconds-per-cell", "0.01", "--out", str(out)]
    # A variable that makes OpenBLAS slow: the comparison must not be led astray by it.
    environment = {**os.environ, "OPENBLAS_CORETYPE": "Prescott", "MPLBACKEND": "agg"}
    subprocess.run([*command, *cells], check=True, cwd=ROOT, env=environment, timeout=120, stdout=subprocess.DEVNULL)
    return out


@needs_compiler
def test_a_run_leaves_json_a_report_and_plots(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    plots = {f"{kind}-f32-1t.png" for kind in ("roofline", "speedup", "limit")}
    assert names == {"results.json", "report.md"} | plots
    text = (folder / "report.md").read_text()
    assert "f32 1t 2 × 3 × 1e+03" in text
    assert "best peer" in text
    for name in ("fastgc numba", "fastgc portable"):
        assert f"| {name} | f32 | 1 | " in text
    (at_the_limit,) = [line for line in text.splitlines() if line.startswith("| f32, at the limit | 1 |")]
    # No smaller than the speed-up itself, but for that being the median over rounds, and this a ratio of medians.
    ours = next(line for line in text.splitlines() if line.startswith("| f32 | 1 |"))
    for most, reached in zip(at_the_limit.split("|")[3:6], ours.split("|")[3:6], strict=True):
        assert float(most.strip(" ×")) >= 0.8 * float(reached.strip(" ×"))


@needs_compiler
def test_the_json_says_where_with_what_and_how_fast(folder: Path) -> None:
    data = json.loads((folder / "results.json").read_text())
    assert (data["format"], data["version"]) == ("fastgc-bench", 1)
    assert {"cpu", "compiler", "commit", "date", "versions", "blas", "options", "finished"} <= set(data["header"])
    openblas = [lib for lib in data["header"]["blas"] if lib.get("internal_api") == "openblas"]
    assert openblas
    assert all(lib["architecture"] != "Prescott" for lib in openblas)
    assert [(r["case"]["p"], r["case"]["q"], r["case"]["length"]) for r in data["records"]] == [
        (2, 3, 1000),
        (4, 4, 5000),
    ]
    for record in data["records"]:
        assert record["bytes"] == 4 * record["case"]["length"] * (record["case"]["p"] + record["case"]["q"])
        assert record["limit"] > 0
        assert record["peak"] > 0
        assert record["interval"][0] <= record["speedup"] <= record["interval"][1]
        found = [dict(zip(data["timing_fields"], timing, strict=False)) for timing in record["timings"]]
        timings = {timing["name"]: timing for timing in found}
        assert {OURS, "NumPy", "SciPy BLAS"} <= set(timings)
        assert record["best_peer"] in timings
        for timing in timings.values():
            assert 0 < timing["fastest"] <= timing["q1"] <= timing["seconds"] <= timing["q3"]
            assert 0 <= timing["error"] < 1e-5


@needs_compiler
def test_report_makes_tables_and_plots_from_the_file_alone(folder: Path, tmp_path: Path) -> None:
    assert report.main([str(folder / "results.json"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == (folder / "report.md").read_text()
    assert len(list(tmp_path.glob("*.png"))) == 3


# Cases and verification -----------------------------------------------------------------------------------------------


def test_bytes_count_each_input_once_and_each_output_once_or_twice() -> None:
    assert Case("f64", 1, 2, 3, 10).bytes == 8 * (3 + 2) * 10
    assert Case("f64", 1, 2, 3, 10, accumulate=True).bytes == 8 * (3 + 2 + 2) * 10
    assert Case("f16", 1, 2, 3, 10).bytes == 2 * (3 + 2) * 10
    assert Case("f32", 1, 2, 3, 10).flops == 2 * 2 * 3 * 10


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", ["f32", "f16"])
def test_every_contestant_is_right_or_says_why_it_is_absent(name: str, accumulate: bool) -> None:
    case = problem(name=name, accumulate=accumulate)
    right = 0
    for contestant in contestants():
        with contextlib.suppress(Unavailable, NotApplicable):
            verified(case, contestant.prepare(case))
            right += 1
    assert right or accumulate


def test_no_contestant_has_more_threads_than_the_case() -> None:
    """Seen by the time of all CPUs: no more than the clock's, whatever else the machine does."""
    case = problem(16, 16, 300_000)
    for contestant in contestants():
        try:
            call = contestant.prepare(case)
            verified(case, call)
        except (Unavailable, NotApplicable):
            continue
        before = kernels.get_num_threads()
        set_threads(1)
        assert kernels.get_num_threads() == 1
        try:
            call()
            time.sleep(0.02)  # threads of the call before set_threads may still look for work
            busy, clock = time.process_time(), time.perf_counter()
            while time.perf_counter() - clock < 0.2:
                call()
            share = (time.process_time() - busy) / (time.perf_counter() - clock)
        finally:
            set_threads(before)
        assert share < 1.2, contestant.name


@pytest.mark.parametrize("place", [(0, 0), (1, 999), (1, 960)])
@pytest.mark.parametrize("damage", [np.nan, 1e-3])
def test_verification_finds_a_single_wrong_element_at_the_ends(place: tuple[int, int], damage: float) -> None:
    case = problem()

    def wrong() -> None:
        case.outputs[:] = product(case)
        case.outputs[place] += damage

    with pytest.raises(Unavailable, match="wrong: error"):
        verified(case, wrong)


def test_verification_finds_outputs_that_were_not_written() -> None:
    case = problem()
    with pytest.raises(Unavailable, match="wrong: error nan"):
        verified(case, lambda: None)


@needs_compiler
def test_a_wrong_contestant_is_not_timed() -> None:
    case = problem(length=100)
    right = Contestant("right", lambda found: lambda: found.outputs.__setitem__(..., product(found)))
    ours = Contestant(OURS, right.prepare, ours=True)
    wrong = Contestant("wrong", lambda found: lambda: found.outputs.__setitem__(..., 0.5 * product(found)))
    record = measure_case(case, [ours, right, wrong], TINY)
    assert [timing.name for timing in record.timings] == [OURS, "right"]
    assert record.skipped["wrong"].startswith("wrong: error")
    assert record.best_peer == "right"


# Limits ---------------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_limits_are_those_of_a_machine(threads: int) -> None:
    read = limits.bandwidth(1, 0, 1 << 16, threads, tries=3)
    copy = limits.bandwidth(1, 1, 1 << 16, threads, tries=3)
    assert 1e8 < copy < 2 * 1e12
    assert 1e8 < read < 2 * 1e12
    # Loads are at least as fast as stores; the factor is for neighbours who take the core during one and not the other.
    assert copy < 4 * read
    single, double = (limits.peak(double=d, threads=threads, tries=5) for d in (False, True))
    assert 1e8 < double < 4 * single


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_a_mix_writes_all_outputs_and_no_input(threads: int) -> None:
    inputs = np.random.default_rng(0).integers(1, 255, (3, 10_007), dtype=np.uint8)
    before = inputs.copy()
    for access in limits.accesses(writes=True):
        outputs = np.zeros((4, 10_007), np.uint8)
        assert limits.Mix(inputs, outputs[1:3], threads).seconds(access) > 0
        assert (inputs == before).all()
        assert not outputs[[0, 3]].any()
        # All but the ends, for which the time is scaled.
        assert (outputs[1:3] != 0).mean() > 0.9


# Timing and records ---------------------------------------------------------------------------------------------------


def test_a_hopeless_contestant_is_given_up_and_a_kept_one_is_not() -> None:
    def slow() -> None:
        for _ in range(2000):
            pass

    calls = {"fast": Repeated(lambda: None), "slow": Repeated(slow), "ours": Repeated(slow)}
    samples = measure(calls, TINY, threads=1, rivals=["fast", "slow"], keep=["ours"])
    assert [samples.finished(name) for name in calls] == [True, False, True]
    ratio, low, high = samples.ratio("ours", to="fast")
    assert 1 < low <= ratio <= high


def test_a_ratio_is_taken_within_rounds() -> None:
    noise = np.random.default_rng(0).uniform(1, 10, 21)
    samples = Samples({"peer": list(3 * noise), "ours": list(noise)}, 21)
    assert samples.ratio("peer", to="ours") == pytest.approx((3, 3, 3))


def test_processes_are_merged_by_case(tmp_path: Path) -> None:
    def run(speedup: float) -> Results:
        timings = [Timing("fastgc", True, 1.0, 0.9, 1.1, 0.8, 7, 0.0), Timing("NumPy", False, speedup, 1, 1, 1, 7, 0.0)]
        interval = [speedup - 0.1, speedup + 0.1]
        case = {"p": 1, "q": 1}
        record = Record("lincomb", case, timings, {}, "NumPy", speedup, interval, [speedup], limit=0.5, peak=0.25)
        return Results({"cpu": "a"}, [{"what": "read", "footprint": "", "threads": 1, "rate": speedup}], [record])

    merged = merge([run(1.0), run(2.0), run(4.0)])
    (record,) = merged.records
    assert record.speedup == pytest.approx(2)
    assert record.interval == pytest.approx([0.9, 4.1])
    assert record.processes == [1, 2, 4]
    assert record.of_limit == 0.5
    assert [limit["rate"] for limit in merged.limits] == [4]
    merged.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").records == merged.records


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"format": "another"}')
    with pytest.raises(ValueError, match="no fastgc-bench file"):
        Results.load(path)
