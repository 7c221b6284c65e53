"""The cache folder: files that are whole or absent, and that are checked before they are believed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DataError", "cache_folder", "holds", "locked", "read_json", "sha256", "store", "write"]


class DataError(Exception):
    """The data cannot be had; the message is one line and says what to do."""


def cache_folder() -> Path:
    """Return ``$FASTGC_CACHE`` where that is set, else the user's cache folder for fastgc."""
    if chosen := os.environ.get("FASTGC_CACHE"):
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError as error:
            raise DataError(f"FASTGC_CACHE={chosen}: {error}") from None
    import platformdirs

    return Path(platformdirs.user_cache_dir("fastgc"))


@contextlib.contextmanager
def locked(name: str) -> Iterator[Path]:
    """Make the cache folder and hold a lock in it, one process a host at a time.

    Raises
    ------
    DataError
        The folder cannot be used; also for an OSError inside.
    """
    import filelock

    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f"{name}.lock"):
            yield cache
    except OSError as error:
        raise DataError(f"cannot use the cache folder {cache} (set FASTGC_CACHE to choose another): {error}") from error


def store(folder: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write arrays as ``NAME.npy`` and facts on them as ``meta.json``, with the hashes of the files."""
    folder.mkdir(exist_ok=True)
    hashes = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        hashes[f"{name}.npy"] = hashlib.sha256(buffer.getbuffer()).hexdigest()
        write(folder / f"{name}.npy", buffer.getbuffer())
    # Last: arrays without a meta.json that has their hashes count as absent.
    write(folder / "meta.json", json.dumps({**facts, "sha256": hashes}, indent=1).encode())


def holds(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a folder holds what `store` wrote with these facts among others, all files as they were."""
    try:
        meta = read_json(folder / "meta.json")
        return all(meta[name] == fact for name, fact in facts.items()) and all(
            sha256(folder / name) == expected for name, expected in meta["sha256"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds; ValueError if it holds none."""
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold an object")
    return value


def sha256(path: Path) -> str:
    """Return the hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is seen whole or not at all, even after a power cut."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
