"""Made-up flights: tables, and a stand-in for the real archive."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mpi_runner.archives import Archive

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def make_tables(seed: int, rows: int) -> Tables:
    """Return made-up tables with a value missing here and there wherever the real ones have some, and elsewhere."""
    rng = np.random.default_rng(seed)

    def pick(values: list[Any], count: int = rows) -> Any:
        return rng.choice(np.array(values, dtype=object), count)

    table = pd.DataFrame({"year": 2013, "month": rng.integers(1, 13, rows), "day": rng.integers(1, 29, rows)})
    table["hour"] = rng.integers(5, 24, rows)
    table["minute"] = rng.integers(0, 60, rows)
    table["carrier"] = pick(["UA", "AA", "B6", None])
    table["flight"] = rng.integers(1, 30, rows)
    table["tailnum"] = pick(["N1", "N2", "N3", "N4", None])
    table["origin"] = pick(["EWR", "JFK", "LGA"])
    table["dest"] = pick(["IAH", "MIA", "ORD", "SFO"])
    table["time_hour"] = [
        f"2013-{month:02d}-{day:02d}T{hour:02d}:00:00Z"
        for month, day, hour in zip(table["month"], table["day"], table["hour"], strict=True)
    ]
    table["arr_delay"] = np.where(rng.random(rows) < 0.1, np.nan, rng.integers(-30, 60, rows))
    for leak in ("dep_time", "dep_delay", "arr_time", "air_time"):
        table[leak] = rng.random(rows)

    observed = table[["origin", "time_hour"]].drop_duplicates().iloc[: rows * 3 // 4].reset_index(drop=True)
    count = len(observed)
    for name, top in (("precip", 0.05), ("visib", 10), ("wind_speed", 30), ("wind_dir", 360), ("temp", 100)):
        observed[name] = np.where(rng.random(count) < 0.1, np.nan, rng.random(count) * top)
    observed["pressure"] = np.where(rng.random(count) < 0.2, np.nan, 1000 + 35 * rng.random(count))
    planes = pd.DataFrame({"tailnum": ["N1", "N2", "N3"], "model": ["A320", None, "737"]})
    return table, observed, planes


def make_archive(tables: Tables, path: Path) -> Archive:
    path.parent.mkdir(parents=True, exist_ok=True)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("flights.csv", tables[0].to_csv(index=False, na_rep="NA"))
    members = {
        "flights.csv.zip": inner.getvalue(),
        "weather.csv": tables[1].to_csv(index=False, na_rep="NA").encode(),
        "planes.csv": tables[2].to_csv(index=False, na_rep="NA").encode(),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"fastgc-made-up-1.0/fastgc-made-up/data/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Archive("fastgc-made-up", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())
