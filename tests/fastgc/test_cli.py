"""The command line, as a process: text, JSON, and one line with exit status 2 for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fastgc
from fastgc import _xla, cli, codes, kernels, stability


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastgc", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_info() -> None:
    result = run("info")
    assert (result.returncode, result.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["fastgc"] == fastgc.__version__
    assert rows["NumPy"] == np.__version__
    assert rows["backends"] == ", ".join(kernels.backends())
    assert rows["fastgc.jax"] == (_xla.problem() or "works")
    assert int(rows["threads"]) >= 1
    starts = {line.index(rows[line.split("  ", 1)[0]], 15) for line in result.stdout.splitlines()}
    assert len(starts) == 1  # aligned


def test_info_as_json() -> None:
    result = run("info", "--json", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    assert set(values) == {
        "version", "build", "backends", "missing", "isa", "isas", "threads", "jax", "include", "library", "numpy",
        "python",
    }  # fmt: skip
    assert values["threads"] == 1
    assert values["missing"] == kernels.missing_backends()
    if "cpp" in values["backends"]:
        assert values["isa"] in values["isas"]
        assert "portable" in values["isas"]
        assert set(values["build"]) == {"compiler", "flags"}
        assert "-ffp-contract=off" in values["build"]["flags"]
        assert values["library"] == fastgc.get_library()
        assert values["include"] == fastgc.get_include()


@pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing")
def test_config() -> None:
    result = run("config", "--cflags", "--libs")
    assert (result.returncode, result.stderr) == (0, "")
    folder = os.path.dirname(fastgc.get_library())
    assert result.stdout.split() == [f"-I{fastgc.get_include()}", f"-L{folder}", f"-Wl,-rpath,{folder}", "-lfastgc"]
    for option, name in (("--cmakedir", "fastgc-config.cmake"), ("--pkgconfigdir", "fastgc.pc"), ("--prefix", "lib")):
        assert os.path.exists(os.path.join(run("config", option).stdout.strip(), name))
    assert run("config", "--library").stdout.strip() == fastgc.get_library()


@pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing")
def test_info_knows_the_forced_instruction_set() -> None:
    assert json.loads(run("info", "--json", FASTGC_ISA="portable").stdout)["isa"] == "portable"
    result = run("info", FASTGC_ISA="quantum")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "FASTGC_ISA" in result.stderr
    assert "quantum" in result.stderr
    assert result.stderr.count("\n") == 1


THREADS = """
import ctypes, fastgc
from fastgc import cli, kernels
print(cli.info()["threads"])
if "cpp" in kernels.backends():
    print(ctypes.CDLL(fastgc.get_library()).fastgc_max_threads())
    kernels._threads.core = None
print(kernels.get_num_threads())
"""


@pytest.mark.parametrize(
    ("asked", "most"),
    [("1", 1), ("2", 2), (" 2 ", 2), ("2,4", 2), *((other, 10000) for other in ("10000", "", "0", "-1", "x", "2x"))],
)
def test_threads_are_as_many_as_was_asked_for(asked: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the compiled kernels, the library for C and the other kernels read it."""
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=60, check=True)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert {int(count) for count in done.stdout.split()} == {min(most, usable)}


def test_codes() -> None:
    result = run("codes")
    assert (result.returncode, result.stderr) == (0, "")
    header, *lines = result.stdout.splitlines()
    assert header.split("  ")[0] == "code"
    assert len(lines) == len(stability.examples())
    assert len({line.index("[", header.index("[n, k]")) for line in [header, *lines]}) == 1  # aligned
    assert len({len(line) for line in [header, *lines]}) == 1
    assert len(header) <= 122
    (line,) = [line for line in lines if line.startswith("cauchy(4, 2)")]
    assert line.split()[2:8] == ["[4,", "2]", "3", "yes", "2.4", "2.4"]


def test_codes_as_json() -> None:
    result = run("codes", "--json")
    assert result.returncode == 0, result.stderr
    table = json.loads(result.stdout)
    assert {row["family"] for row in table} == {
        *codes.FAMILIES, "repetition", "parity", "hamming", "reed_muller", "product",
    }  # fmt: skip
    by_code = {row["code"]: row for row in table}
    assert by_code["hamming(3)"]["distance"] == 3
    assert not by_code["hamming(3)"]["mds"]
    for row in table:
        assert row["stragglers"] == row["distance"] - 1
        assert row["mds"] == (row["distance"] == row["n"] - row["k"] + 1)
        assert row["condition"] >= 1
        assert row["median_condition"] <= row["condition"]
        for name, worst in row["errors"].items():
            assert row["median_errors"][name] <= worst
    assert by_code["reed_muller(1, 3)"]["condition"] == pytest.approx(3.73, abs=0.01)


def test_codes_of_every_size() -> None:
    result = run("codes", "--up-to", "4", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    table = json.loads(result.stdout)
    sizes = {(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3)}
    for family in (*codes.FAMILIES, "polynomial"):
        assert {(row["n"], row["k"]) for row in table if row["family"] == family} == sizes
    assert {(row["n"], row["k"]) for row in table if row["family"] == "cyclic_repetition"} == {(2, 1), (3, 1)}


WRONG = [
    ((), "COMMAND"),
    (("plant",), "'plant'"),
    (("info", "--yaml"), "--yaml"),
    (("config",), "--cflags"),
    (("config", "--flags"), "--flags"),
    (("codes", "8"), "8"),
    (("codes", "--up-to", "17"), "17"),
    (("codes", "--up-to", "many"), "many"),
    (("info", "--json=yes"), "yes"),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG, ids=[" ".join(w[0]) or "nothing" for w in WRONG])
def test_wrong_arguments_end_with_status_2_and_one_line(
    arguments: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process; a wrong instruction set, above, ends one of its own."""
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments])
    assert caught.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1
    assert errors.startswith("python -m fastgc")
    assert named in errors


@pytest.mark.parametrize("arguments", [("--help",), ("info", "--help"), ("codes", "--help")])
def test_help(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: python -m fastgc" in result.stdout


def test_a_reader_that_stops_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgc", "codes", "--up-to", "2", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


def test_main_returns_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out.startswith("fastgc")
    with pytest.raises(SystemExit) as caught:
        cli.main(["nothing"])
    assert caught.value.code == 2
