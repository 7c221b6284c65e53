"""Images: what is cut, cached and refused, on made-up ones; and the real ones' known figures."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpi_runner import images
from mpi_runner.cache import DataError

TOTAL, TEST = 60, 12
PIXELS = np.random.default_rng(2).integers(0, 256, (TOTAL, 784), np.uint8)
LABELS = np.arange(TOTAL, dtype=np.uint8) % 10


@pytest.fixture(params=[True, False], ids=["drawn", "last"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and a set of made-up images, whose test images are drawn or the last."""
    monkeypatch.setenv("FASTGC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(images.SETS, "made-up", images.ImageSet(lambda _: (PIXELS, LABELS), "1", TEST, request.param))
    return tmp_path / "cache"


def rows(partition: Any) -> list[tuple[float, ...]]:
    inputs, labels = partition.inputs.tolist(), partition.labels.tolist()
    return sorted((*image, label) for image, label in zip(inputs, labels, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("partitions", [1, 3, 7, 48])
def test_partitions_cut_the_training_images(cache: Path, partitions: int, dtype: Any) -> None:
    data = images.prepare("made-up", seed=3)
    parts = [data.load_train(number, partitions, dtype) for number in range(partitions)]
    assert sum(part.count for part in parts) == data.train_rows == TOTAL - TEST
    assert max(part.count for part in parts) - min(part.count for part in parts) <= 1
    everything = sorted(row for part in [*parts, data.load_test(dtype)] for row in rows(part))
    scaled = PIXELS.astype(dtype) / dtype(255)
    assert everything == sorted((*image, label) for image, label in zip(scaled.tolist(), LABELS.tolist(), strict=True))
    assert parts[0].inputs.dtype == dtype
    assert parts[0].labels.dtype == np.int64


def test_rows_are_a_prefix_and_the_test_set_is_common(cache: Path) -> None:
    few, more, other = (images.prepare("made-up", count, seed) for count, seed in ((20, 1), (40, 1), (20, 2)))
    assert rows(few.load_train(0, 1)) == rows(more.load_train(0, 2))
    assert rows(few.load_train(0, 1)) != rows(other.load_train(0, 1))
    assert rows(few.load_test()) == rows(other.load_test())
    assert few == images.attach("made-up", 20, 1)


@pytest.mark.parametrize("name", ["pixels.npy", "labels.npy", "meta.json"])
def test_damaged_file_is_made_again(cache: Path, name: str) -> None:
    before = rows(images.prepare("made-up").load_test())
    path = cache / "made-up-encoded-1" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert rows(images.prepare("made-up").load_test()) == before
    assert path.read_bytes() == content


def test_out_of_range(cache: Path) -> None:
    with pytest.raises(DataError, match="are not prepared"):
        images.attach("made-up")
    data = images.prepare("made-up")
    for arguments, pattern in (
        (("cats",), "name must be one of digits, fashion-mnist, made-up, got 'cats'"),
        (("made-up", 0), "rows must be at least 1, got 0"),
        (("made-up", 49), "rows must be at most the 48 training rows, got 49"),
        (("made-up", None, -1), "seed must be between 0 and"),
    ):
        with pytest.raises(ValueError, match=pattern):
            images.prepare(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="partitions must be between 1 and the 48 training rows, got 49"):
        data.load_train(0, 49)
    with pytest.raises(ValueError, match="partition must be between 0 and 2, got 3"):
        data.load_train(3, 3)
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got float16"):
        data.load_test(np.float16)


# Clothes --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Made-up idx files in place of the published ones; nothing is installed, and apt-get is not there."""
    files = {}
    for kind, count in (("train", 5), ("t10k", 2)):
        files[f"{kind}-images-idx3-ubyte"] = bytes(16) + PIXELS[:count].tobytes()
        files[f"{kind}-labels-idx1-ubyte"] = bytes(8) + LABELS[:count].tobytes()
    ordered = {name: hashlib.sha256(files[name]).hexdigest() for name in images.FASHION}
    monkeypatch.setattr(images, "FASHION", ordered)
    monkeypatch.setattr(images, "INSTALLED", tmp_path / "usr" / "share")
    monkeypatch.setenv("FASTGC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()

    def missing(command: list[str], folder: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", command[0])

    monkeypatch.setattr(images, "_run", missing)
    return files


def put(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))


@pytest.mark.parametrize("where", ["usr/share", "cache/fashion-mnist"])
def test_idx_files_are_read_where_they_lie(where: str, clothes: dict[str, bytes], tmp_path: Path) -> None:
    put(clothes, tmp_path / where)
    pixels, labels = images._read_fashion(tmp_path / "cache")
    np.testing.assert_array_equal(pixels, np.concatenate([PIXELS[:5], PIXELS[:2]]))
    np.testing.assert_array_equal(labels, np.concatenate([LABELS[:5], LABELS[:2]]))


@pytest.mark.parametrize("damage", ["absent", "other", "cut", "no gzip"])
def test_wrong_idx_files_are_not_believed(damage: str, clothes: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "fashion-mnist"
    put(clothes, folder)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes({"other": gzip.compress(b"x" * 10), "cut": content[:-9], "no gzip": b"idx"}[damage])
    with pytest.raises(DataError, match=r"cannot fetch dataset-fashion-mnist with apt-get: .*by hand") as caught:
        images._read_fashion(tmp_path / "cache")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["fashion-mnist"]


def test_a_failing_package_manager_is_quoted(
    clothes: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(command: list[str], folder: Path) -> None:
        raise subprocess.CalledProcessError(100, command, stderr="W: a warning\nE: Unable to locate package\n")

    monkeypatch.setattr(images, "_run", refuse)
    with pytest.raises(DataError, match="with apt-get: E: Unable to locate package; put train-images"):
        images._read_fashion(tmp_path / "cache")


# The real ones --------------------------------------------------------------------------------------------------------


def test_the_real_digits() -> None:
    try:
        data = images.prepare("digits")
    except DataError as error:
        pytest.skip(str(error))
    whole, test = data.load_train(0, 1), data.load_test()
    assert (whole.count, test.count) == (4000, 1000)
    assert np.bincount(np.concatenate([whole.labels, test.labels])).tolist() == [500] * 10
    assert (whole.inputs.min(), whole.inputs.max()) == (0.0, 1.0)
    facts = data.describe()
    assert (facts["images"], facts["train_rows"], facts["test_rows"]) == (5000, 4000, 1000)
