"""The encoding of the flights, against what plain Python says of small tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flights_support import Tables, make_archive, make_tables

from mpi_runner import flight_features

BLOCKS = 26


def as_keys(tables: Tables) -> tuple[list[list[tuple[Any, ...]]], list[int]]:
    """Say in plain Python what each flight's 26 categories are, missing values as None."""
    weather = {(row.origin, row.time_hour): row for row in tables[1].itertuples()}
    model = {row.tailnum: known(row.model) for row in tables[2].itertuples()}
    keys, labels = [], []
    for row in tables[0].itertuples():
        if np.isnan(row.arr_delay):
            continue
        sky = weather.get((row.origin, row.time_hour))
        look = {
            name: None if sky is None else known(getattr(sky, name))
            for name in ("precip", "visib", "wind_speed", "wind_dir", "temp", "pressure")
        }
        if look["wind_speed"] is not None:
            look["wind_speed"] = round(look["wind_speed"] / 1.15078)
        date = pd.Timestamp(int(row.year), int(row.month), int(row.day))
        carrier = known(row.carrier)
        value = {
            "month": row.month,
            "weekday": date.day_name(),
            "quarter": (row.hour, row.minute // 15),
            "origin": row.origin,
            "dest": row.dest,
            "carrier": carrier,
            "flight": (carrier, row.flight),
            "tailnum": known(row.tailnum),
            "model": model.get(row.tailnum),
            "weather": tuple(
                place(look[name], edges)
                for name, edges in (
                    ("precip", flight_features._PRECIPITATION),
                    ("visib", flight_features._VISIBILITY),
                    ("wind_speed", flight_features._WIND),
                )
            ),
            "pressure": place(look["pressure"], flight_features._PRESSURE),
            "temperature": place(look["temp"], flight_features._TEMPERATURE),
            "direction": None if look["wind_dir"] is None else int(look["wind_dir"] % 360 // 45),
            "day": (row.month, row.day),
            "hour": row.hour,
        }
        names = [(name,) for name in flight_features._COLUMNS] + list(flight_features._CROSSES)
        keys.append([tuple(value[part] for part in parts) for parts in names])
        labels.append(1 if row.arr_delay >= 15 else -1)
    return keys, labels


def known(value: Any) -> Any:
    return None if value is None or value != value else value


def place(value: float | None, edges: Any) -> int | None:
    return None if value is None else sum(value > edge for edge in edges)


@pytest.mark.parametrize("rows", [1, 2, 40, 900])
@pytest.mark.parametrize("seed", [1, 2])
def test_columns_are_the_categories(seed: int, rows: int) -> None:
    """Two flights share a column exactly where they share the category, missing values included."""
    tables = make_tables(seed, rows)
    tables[0].loc[0, "arr_delay"] = 15.0
    keys, expected = as_keys(tables)
    indices, labels, blocks = flight_features.encode(*tables)
    assert indices.shape == (len(keys), BLOCKS)
    assert indices.dtype == np.int32
    assert labels.tolist() == expected
    start = 0
    for block, size in enumerate(blocks.values()):
        columns = indices[:, block]
        assert set(columns.tolist()) == set(range(start, start + size)), "every column of a block is used"
        pairs = {(key[block], int(column)) for key, column in zip(keys, columns, strict=True)}
        assert len(pairs) == size
        assert len({key for key, _ in pairs}) == size
        start += size


def test_encoding_does_not_depend_on_the_order_of_flights() -> None:
    tables = make_tables(3, 300)
    indices, labels, blocks = flight_features.encode(*tables)
    order = np.random.default_rng(9).permutation(300)
    kept = np.flatnonzero(tables[0]["arr_delay"].notna().to_numpy()[order])
    position = np.cumsum(tables[0]["arr_delay"].notna().to_numpy()) - 1
    again, labels_again, blocks_again = flight_features.encode(tables[0].iloc[order], *tables[1:])
    np.testing.assert_array_equal(again, indices[position[order[kept]]])
    np.testing.assert_array_equal(labels_again, labels[position[order[kept]]])
    assert blocks_again == blocks


def test_leaks_are_never_features() -> None:
    tables = make_tables(4, 200)
    indices = flight_features.encode(*tables)[0]
    for name in ("dep_time", "dep_delay", "arr_time", "air_time"):
        tables[0][name] = 0.0
    np.testing.assert_array_equal(flight_features.encode(*tables)[0], indices)


def test_encoding_does_not_depend_on_hash_seeds(tmp_path: Path) -> None:
    make_archive(make_tables(5, 200), tmp_path / "archive.tar.gz")
    digests = set()
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", ENCODE, str(tmp_path / "archive.tar.gz")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


ENCODE = """
import hashlib, sys
from pathlib import Path
from mpi_runner import flight_features, flights
from mpi_runner.archives import Archive
flights.ARCHIVE = Archive("fastgc-made-up", "1.0", "")
indices, labels, blocks = flight_features.encode(*flights._read_tables(Path(sys.argv[1])))
print(hashlib.sha256(indices.tobytes() + labels.tobytes()).hexdigest(), blocks)
"""
