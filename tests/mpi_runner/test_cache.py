"""Files of the cache folder: whole or absent, believed only if their hashes are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpi_runner import cache


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.write(path, b"new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"file": b"old"}


FACTS = {"format": 1, "source": "here"}


def test_what_was_stored_is_held_until_anything_of_it_changes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    assert not cache.holds(folder, FACTS)
    cache.store(folder, {"a": np.arange(3), "b": np.ones((2, 2))}, {**FACTS, "rows": 3})
    assert cache.holds(folder, FACTS)
    assert not cache.holds(folder, {**FACTS, "format": 2})
    assert not cache.holds(folder, {**FACTS, "another": 1})
    good = (folder / "b.npy").read_bytes()
    (folder / "b.npy").write_bytes(good[:-1] + b"x")
    assert not cache.holds(folder, FACTS)
    (folder / "b.npy").write_bytes(good)
    assert cache.holds(folder, FACTS)
    meta = json.loads((folder / "meta.json").read_text())
    for damaged in ([], {**meta, "sha256": []}, {**meta, "sha256": {"c.npy": "0"}}, {"format": 1}):
        (folder / "meta.json").write_text(json.dumps(damaged))
        assert not cache.holds(folder, FACTS)
