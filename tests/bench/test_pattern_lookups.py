"""The measurement of look-ups runs, with fastgc.hpp's cache, and its table has every line."""

from __future__ import annotations

import re
import shutil

import pytest

from bench import pattern_lookups
from bench.compiled import compiler
from fastgc import kernels

pytestmark = [
    pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing"),
    pytest.mark.skipif(shutil.which(compiler()[0]) is None, reason=f"no C++ compiler {compiler()[0]!r}"),
]


def test_a_short_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert pattern_lookups.main(["--quick", "--seconds", "0.01"]) == 0
    _, _, _, _, _, *lines = capsys.readouterr().out.splitlines()
    whats = [re.sub(r"on \d+ threads", "on THREADS", line.split(" | ")[1]) for line in lines]
    assert {"held", "not held", "held, at random among all 70", "all 70 found ahead, on THREADS"} <= set(whats)
    times = [re.findall(r"([\d.e+]+) (?:s|ms|µs|ns) \[", line) for line in lines]
    assert all(times)
    assert all(float(number) > 0 for line in times for number in line)


def test_nonsense_is_refused() -> None:
    with pytest.raises(SystemExit):
        pattern_lookups.main(["--seconds", "0"])


def test_a_loop_that_failed_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="failed"):
        pattern_lookups.checked(-1.0)
