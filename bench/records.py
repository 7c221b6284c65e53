"""What a run of `bench.compare` leaves behind: measured records, and the JSON file that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "fastgc-bench"
VERSION = 1
OURS = "fastgc"
"""The contestant that the others are compared with: what a user calls, with nothing chosen."""


@dataclass
class Timing:
    """A contestant's time for one call: median, quartiles and least of so many samples, and its verified error.

    Fewer than seven samples mean that it was so slow that it was given up. `faults` are page faults of a call.
    """

    name: str
    ours: bool
    seconds: float
    q1: float
    q3: float
    fastest: float
    samples: int
    error: float | None = None
    faults: int | None = None


TIMING_FIELDS = [field.name for field in fields(Timing)]


@dataclass
class Record:
    """One case, all who took part, and how ours compares with the fastest peer.

    Attributes
    ----------
    suite : str
    case : dict
        What tells the case from others of the suite.
    timings : list of Timing
    skipped : dict
        Reasons, by name, of contestants that should have taken part.
    best_peer : str or None
    speedup : float or None
        The best peer's time over ours, the median over the rounds; over several processes the geometric mean.
    interval : list of two floats, or None
        95 % interval of `speedup`; over several processes, the smallest that holds the intervals of all.
    processes : list of floats
        `speedup` of each process.
    bytes, flops : int or None
        That the case needs by the counting rule.
    limit : float or None
        Seconds that the fastest way to move the same streams takes, measured in the same rounds.
    limit_access : str or None
        Which way that was.
    peak : float or None
        Seconds that the operations take in registers, measured in the same rounds.
    disturbed : float or None
        Fraction of the samples during which the kernel took a core away for another process.
    """

    suite: str
    case: dict[str, Any]
    timings: list[Timing] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    best_peer: str | None = None
    speedup: float | None = None
    interval: list[float] | None = None
    processes: list[float] = field(default_factory=list)
    bytes: int | None = None
    flops: int | None = None
    limit: float | None = None
    limit_access: str | None = None
    peak: float | None = None
    disturbed: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Tells records apart, over processes."""
        return (self.suite, *self.case.items())

    def timing(self, name: str) -> Timing | None:
        """The timing of that name, if it took part."""
        return next((timing for timing in self.timings if timing.name == name), None)

    @property
    def our_timing(self) -> Timing | None:
        """That of fastgc as a user calls it."""
        return self.timing(OURS)

    @property
    def undisturbed_speedup(self) -> float | None:
        """The same from the fastest samples alone: what the median would be with nobody else on the machine."""
        ours, peers = self.our_timing, [timing.fastest for timing in self.timings if not timing.ours]
        return min(peers) / ours.fastest if ours and peers else None

    @property
    def roof(self) -> float | None:
        """Least seconds that this machine needs: the larger of moving the bytes and of the arithmetic."""
        known = [seconds for seconds in (self.limit, self.peak) if seconds]
        return max(known) if known else None

    @property
    def possible_speedup(self) -> float | None:
        """The best peer's time over what the machine needs, or over ours where that is less."""
        ours, roof, peer = self.our_timing, self.roof, self.timing(self.best_peer or "")
        return peer.seconds / min(roof, ours.seconds) if ours and roof and peer else None

    @property
    def of_limit(self) -> float | None:
        """Fraction of the machine's limit that ours reaches."""
        ours, roof = self.our_timing, self.roof
        return roof / ours.seconds if ours and roof else None


@dataclass
class Results:
    """A header that says where and with what, the limits of the machine, and the records."""

    header: dict[str, Any]
    limits: list[dict[str, Any]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def suite(self, *names: str) -> list[Record]:
        """The records of these suites."""
        return [record for record in self.records if record.suite in names]

    def save(self, path: Path) -> None:
        """Write as JSON, a record a line, numbers to five digits; timings are lists of `timing_fields`."""
        lines = ",\n".join(json.dumps(_packed(record), ensure_ascii=False) for record in self.records)
        head = {
            "format": FORMAT,
            "version": VERSION,
            "header": self.header,
            "limits": _rounded(self.limits),
            "timing_fields": TIMING_FIELDS,
        }
        text = json.dumps(head, indent=1)[:-2] + f',\n "records": [\n{lines}\n]}}\n'
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote. ValueError for anything else."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ValueError(f"{path} is no {FORMAT} file of version {VERSION}")
        records = [
            Record(**{**record, "timings": [Timing(*timing) for timing in record["timings"]]})
            for record in data["records"]
        ]
        return cls(data["header"], data["limits"], records)


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers; NaN of none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def merge(runs: Sequence[Results]) -> Results:
    """One result from the same measurement in several processes."""
    by_key: dict[tuple[Any, ...], list[Record]] = {}
    for run in runs:
        for record in run.records:
            by_key.setdefault(record.key, []).append(record)
    limits: dict[tuple[Any, ...], dict[str, Any]] = {}
    for limit in (limit for run in runs for limit in run.limits):
        key = (limit["what"], limit["footprint"], limit["threads"])
        if key not in limits or limits[key]["rate"] < limit["rate"]:
            limits[key] = limit
    header = {**runs[0].header, "processes": len(runs), "finished": runs[-1].header.get("finished")}
    return Results(header, list(limits.values()), [_merged(records) for records in by_key.values()])


def _merged(records: Sequence[Record]) -> Record:
    first = records[0]
    if len(records) == 1:
        return first

    def median(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    timings = []
    for name in dict.fromkeys(timing.name for record in records for timing in record.timings):
        found = [timing for record in records if (timing := record.timing(name))]
        timings.append(
            Timing(
                name,
                found[0].ours,
                seconds=float(np.median([timing.seconds for timing in found])),
                q1=float(np.median([timing.q1 for timing in found])),
                q3=float(np.median([timing.q3 for timing in found])),
                fastest=min(timing.fastest for timing in found),
                samples=sum(timing.samples for timing in found),
                error=max((timing.error for timing in found if timing.error is not None), default=None),
                faults=found[0].faults,
            )
        )
    processes = [record.speedup for record in records if record.speedup is not None]
    intervals = [record.interval for record in records if record.interval is not None]
    peers = [timing for timing in timings if not timing.ours]
    return Record(
        suite=first.suite,
        case=first.case,
        timings=timings,
        skipped={name: reason for record in records for name, reason in record.skipped.items()},
        best_peer=min(peers, key=lambda timing: timing.seconds).name if peers else None,
        speedup=geometric_mean(processes) if processes else None,
        interval=[min(low for low, _ in intervals), max(high for _, high in intervals)] if intervals else None,
        processes=processes,
        bytes=first.bytes,
        flops=first.flops,
        limit=median(record.limit for record in records),
        limit_access=first.limit_access,
        peak=median(record.peak for record in records),
        disturbed=median(record.disturbed for record in records),
    )


def _packed(record: Record) -> dict[str, Any]:
    timings = [[*astuple(timing)[: None if timing.faults is not None else -1]] for timing in record.timings]
    packed: dict[str, Any] = _rounded({**_brief(asdict(record)), "timings": timings})
    return packed


def _brief(value: Any) -> Any:
    """Without what is None or empty: the defaults of the data classes."""
    if isinstance(value, dict):
        return {k: _brief(v) for k, v in value.items() if k == "timings" or not _absent(v)}
    return [_brief(v) for v in value] if isinstance(value, list) else value


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, (dict, list)) and not value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
