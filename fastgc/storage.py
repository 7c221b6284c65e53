"""A scheme as plain data: what it consists of, its fingerprint, and its file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastgc.approximate import METHODS, EstimatingDecoder
from fastgc.codes import LinearCode
from fastgc.decoders import Decoder, LinearDecoder, ScaledSum

FORMAT = 1


@dataclass(frozen=True)
class Group:
    """Workers that are decoded together, and the number of their decoder."""

    workers: tuple[int, ...]
    decoder: int


@dataclass(frozen=True)
class SchemeData:
    """All of a scheme: who holds what, what is sent, how each group is decoded."""

    name: str
    assignment: tuple[tuple[int, ...], ...]
    coefficients: tuple[npt.NDArray[np.float64], ...]
    groups: tuple[Group, ...]
    decoders: tuple[Decoder, ...]
    stragglers: int
    reduction: int
    exact: bool
    others: tuple[SchemeData, ...] = ()
    """The same assignment under other reductions; these have no others."""


def _ragged(name: str, rows: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[Any]]:
    return {
        name: np.array([v for row in rows for v in row], dtype=np.int64),
        f"{name}_sizes": np.array([len(row) for row in rows], dtype=np.int64),
    }


def _rows(arrays: dict[str, npt.NDArray[Any]], name: str) -> list[tuple[int, ...]]:
    ends = np.cumsum(arrays[f"{name}_sizes"])
    if len(ends) == 0 or ends[-1] != len(arrays[name]):
        raise ValueError(f"{name} and its sizes disagree")
    return [tuple(int(v) for v in part) for part in np.split(arrays[name], ends[:-1])]


def _to_arrays(data: SchemeData) -> dict[str, npt.NDArray[Any]]:
    arrays = {
        "format": np.int64(FORMAT),
        "name": np.frombuffer(data.name.encode(), dtype=np.uint8),
        **_ragged("assignment", data.assignment),
        "coefficients": np.concatenate(data.coefficients),
        **_ragged("groups", [group.workers for group in data.groups]),
        "group_decoder": np.array([group.decoder for group in data.groups], dtype=np.int64),
        "promise": np.array([data.stragglers, data.reduction, data.exact], dtype=np.int64),
        "tolerated": np.array([decoder.tolerated for decoder in data.decoders], dtype=np.int64),
    }
    for i, decoder in enumerate(data.decoders):
        if isinstance(decoder, LinearDecoder):
            arrays[f"decoder{i}_generator"] = decoder.code.generator
            if decoder.target is not None:
                arrays[f"decoder{i}_target"] = decoder.target
        elif isinstance(decoder, EstimatingDecoder):
            arrays[f"decoder{i}_encoding"] = decoder.encoding
            arrays[f"decoder{i}_method"] = np.int64(METHODS.index(decoder.method))
            arrays[f"decoder{i}_step"] = np.float64(decoder.step)
            if decoder.recovered is not None:
                arrays[f"decoder{i}_recovered"] = decoder.recovered
        else:
            arrays[f"decoder{i}_sum"] = np.int64(decoder.workers)
    for i, other in enumerate(data.others):
        arrays |= {f"{_other(i)}{name}": array for name, array in _to_arrays(other).items()}
    return {name: np.asarray(array) for name, array in arrays.items()}


def _other(number: int) -> str:
    return f"other{number}_"


def _from_arrays(arrays: dict[str, npt.NDArray[Any]]) -> SchemeData:
    if int(arrays["format"]) != FORMAT:
        raise ValueError(f"format {int(arrays['format'])} is not {FORMAT}, the one this version reads")
    name = arrays["name"].astype(np.uint8).tobytes().decode()
    assignment = tuple(_rows(arrays, "assignment"))
    coefficients = np.array(arrays["coefficients"], dtype=np.float64)
    stragglers, reduction, exact = (int(v) for v in arrays["promise"])
    ends = np.cumsum([len(held) for held in assignment])
    if coefficients.shape != (ends[-1], reduction):
        raise ValueError(f"coefficients have shape {coefficients.shape}, not {(int(ends[-1]), reduction)}")
    if not np.isfinite(coefficients).all():
        raise ValueError("coefficients are not all finite")
    decoders: list[Decoder] = []
    for i, tolerated in enumerate(int(v) for v in arrays["tolerated"]):
        if f"decoder{i}_sum" in arrays:
            decoders.append(ScaledSum(int(arrays[f"decoder{i}_sum"]), tolerated))
        elif f"decoder{i}_encoding" in arrays:
            decoders.append(_estimating(arrays, f"decoder{i}", tolerated))
        else:
            code = LinearCode(arrays[f"decoder{i}_generator"], name=f"{name}, code {i}")
            decoders.append(LinearDecoder(code, tolerated, arrays.get(f"decoder{i}_target")))
    groups = tuple(
        Group(workers, int(decoder))
        for workers, decoder in zip(_rows(arrays, "groups"), arrays["group_decoder"], strict=True)
    )
    if sorted(w for group in groups for w in group.workers) != list(range(len(assignment))):
        raise ValueError("groups do not hold every worker once")
    if any(len(group.workers) != decoders[group.decoder].workers for group in groups):
        raise ValueError("groups and their codes differ in size")
    return SchemeData(
        name, assignment, freeze(np.split(coefficients, ends[:-1])), groups, tuple(decoders), stragglers, reduction,
        bool(exact), _others(arrays, assignment, reduction),
    )  # fmt: skip


def _others(
    arrays: dict[str, npt.NDArray[Any]], assignment: tuple[tuple[int, ...], ...], reduction: int
) -> tuple[SchemeData, ...]:
    found: list[SchemeData] = []
    while own := {name.removeprefix(p): a for name, a in arrays.items() if name.startswith(p := _other(len(found)))}:
        found.append(_from_arrays(own))
    if any(other.assignment != assignment or other.others for other in found):
        raise ValueError("schemes of one assignment have several")
    if len({reduction, *(other.reduction for other in found)}) <= len(found):
        raise ValueError("a reduction is there twice")
    return tuple(found)


def _estimating(arrays: dict[str, npt.NDArray[Any]], name: str, tolerated: int) -> EstimatingDecoder:
    encoding, step = arrays[f"{name}_encoding"].astype(np.float64), float(arrays[f"{name}_step"])
    recovered = arrays.get(f"{name}_recovered")
    method = int(arrays[f"{name}_method"])
    if encoding.ndim != 2 or (recovered is not None and recovered.shape != (len(encoding) + 1,)):
        raise ValueError(f"{name} has arrays of shapes that do not belong together")
    if not (np.isfinite(encoding).all() and np.isfinite(step) and 0 <= method < len(METHODS)):
        raise ValueError(f"{name} has numbers that are none")
    if METHODS[method] == "unbiased" and recovered is None:
        raise ValueError(f"{name} lacks what its method needs")
    (own,) = freeze([encoding])
    return EstimatingDecoder(own, tolerated, METHODS[method], step, recovered)


def freeze(arrays: Sequence[npt.NDArray[np.float64]]) -> tuple[npt.NDArray[np.float64], ...]:
    """Contiguous read-only copies."""
    frozen = tuple(np.array(array, dtype=np.float64, order="C") for array in arrays)
    for array in frozen:
        array.setflags(write=False)
    return frozen


def fingerprint(data: SchemeData) -> str:
    """SHA-256 over the bytes of everything but the names."""
    digest = sha256()
    for name, array in sorted(_to_arrays(data).items()):
        if name.rpartition("_")[2] != "name":
            little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
            digest.update(f"{name} {little.dtype.str} {little.shape};".encode())
            digest.update(little.tobytes())
    return digest.hexdigest()


def save(data: SchemeData, file: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write ``.npz``: plain arrays and the fingerprint."""
    arrays: dict[str, Any] = dict(_to_arrays(data))
    arrays["fingerprint"] = np.frombuffer(bytes.fromhex(fingerprint(data)), dtype=np.uint8)
    if isinstance(file, (str, os.PathLike)):
        with open(file, "wb") as stream:  # np.savez would add .npz to a path that has another ending
            np.savez(stream, **arrays)
    else:
        np.savez(file, **arrays)


def load(file: str | os.PathLike[str] | IO[bytes]) -> SchemeData:
    """Read what `save` wrote; ValueError for anything else."""
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream:  # an OSError is the caller's
            content = BytesIO(stream.read())
    else:
        content = BytesIO(file.read())
    try:
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        expected = arrays.pop("fingerprint").astype(np.uint8).tobytes().hex()
        data = _from_arrays(arrays)
    except Exception as error:  # a damaged zip raises nearly anything: NotImplementedError, zlib.error, MemoryError …
        raise ValueError(f"file must be a saved scheme: {file} is not ({error})") from None
    if fingerprint(data) != expected:
        raise ValueError(f"file must be a saved scheme: {file} is damaged (its fingerprint differs)")
    return data
