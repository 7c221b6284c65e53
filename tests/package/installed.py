"""Installs a wheel into a fresh virtual environment, and runs the tests of the core there, without a compiler.

    python tests/package/installed.py dist/fast_gradient_coding-*.whl

The environment is made of the package index; PATH has the environment's programs alone. Exit status: pytest's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS_NEED = ["pytest>=8.0", "hypothesis>=6.100", "ml_dtypes>=0.4"]


class Environment:
    """A virtual environment with a wheel in it."""

    def __init__(self, folder: Path, wheel: Path, requirements: Sequence[str] | None = None) -> None:
        """With what the wheel requires and `requirements`, from the package index; None: with nothing else."""
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        self.packages = next(folder.glob("lib/python*/site-packages"))
        self.package = self.packages / "fastgc"
        install = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet", str(wheel)]
        options = ["--no-deps", "--no-index"] if requirements is None else requirements
        # A source tree on PYTHONPATH would be taken for the installed package.
        subprocess.run([*install, *options], env={**os.environ, "PYTHONPATH": ""}, check=True)

    def lend(self, packages: Sequence[str]) -> None:
        """Lets it import some packages of this interpreter's: links, so that no other comes along."""
        for name in packages:
            for directory in map(Path, sys.path):
                for found in [directory / name, directory / f"{name}.py", directory / f"{name}.libs"]:
                    link = self.packages / found.name
                    if directory.name == "site-packages" and found.exists() and not link.exists():
                        link.symlink_to(found)

    def run(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A Python process with the environment's programs alone on its PATH, in its own folder."""
        kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.packages.parent,
            env={**kept, "PATH": str(self.bin), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def tests(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Pytest, on a copy of the tests beside which no source of the package lies."""
        copy = self.packages.parent / "tree"
        if not copy.exists():
            for folder in ("tests", "bench"):  # some tests use functions of the latter
                shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", copy)
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(copy), "-c", str(copy / "pyproject.toml")]
        return self.run("-m", "pytest", *options, *(str(copy / a) if a.startswith("tests") else a for a in arguments))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    with tempfile.TemporaryDirectory() as folder:
        environment = Environment(Path(folder) / "environment", wheel.resolve(), TESTS_NEED)
        compilers = [name for name in ("cc", "gcc", "g++", "clang", "c++") if (environment.bin / name).exists()]
        assert not compilers, compilers
        print(environment.run("-m", "fastgc", "info").stdout)
        result = environment.tests("tests/fastgc", "-m", "not soak")
        print(result.stdout, result.stderr, sep="\n")
        return result.returncode


if __name__ == "__main__":
    sys.exit(main())
