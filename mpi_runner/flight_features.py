"""The encoding of the flights: 15 one-hot columns and 11 of their crosses, 26 ones a row.

Known before departure but for the weather, which is the observed one. What is known only after the flight
(``dep_time dep_delay arr_time arr_delay air_time``) is never a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["encode"]

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
