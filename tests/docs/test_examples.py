"""The coded round trip prints the same numbers in every library and language."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastgc import _xla, kernels

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
LIBRARIES = {path.stem.removeprefix("round_trip_"): path for path in sorted(EXAMPLES.glob("round_trip_*.py"))}


def printed(*command: str | Path) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def expected() -> str:
    return printed(sys.executable, LIBRARIES["numpy"])


def test_the_decoded_gradient_is_the_sum(expected: str) -> None:
    rows = dict(line.split(": ") for line in expected.splitlines())
    assert [name for name in rows if name.startswith("message")] == [f"message {i}" for i in range(4)]
    assert len(rows["decoded"].split()) == 10
    assert rows["decoded"] == rows["sum"]


@pytest.mark.skipif("cuda" in kernels.backends(), reason="there is a CUDA device")
def test_cupy_goes_as_far_as_it_can() -> None:
    result = subprocess.run([sys.executable, str(LIBRARIES["cupy"])], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("a CUDA device is needed from here on: ")
    assert line.endswith(kernels.missing_backends()["cuda"])


@pytest.mark.skipif("cuda" not in kernels.backends(), reason="there is no CUDA device")
def test_cupy_prints_the_same(expected: str) -> None:
    assert printed(sys.executable, LIBRARIES["cupy"]) == expected


@pytest.mark.parametrize("library", sorted(LIBRARIES.keys() - {"numpy", "cupy"}))
def test_every_library_prints_the_same(library: str, expected: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if library == "jax" and (reason := _xla.problem()) is not None:
        pytest.skip(f"fastgc.jax: {reason}")
    assert printed(sys.executable, LIBRARIES[library]) == expected
