"""A scheme is data: what is loaded has the same bits, and what is not a scheme is refused."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scheme_table import EXACT, SAMPLED, Case, gradients, larger_sets, messages, names, promised_sets, same_bits

from fastgc import GradientCode, schemes
from fastgc.gradient_code import with_others

ALL = EXACT + SAMPLED
PUBLIC = ("name", "workers", "partitions", "load", "stragglers", "reduction", "assignment", "exact", "fingerprint")


def reloaded(scheme: GradientCode) -> GradientCode:
    stream = io.BytesIO()
    scheme.save(stream)
    stream.seek(0)
    return schemes.load(stream)


@pytest.mark.parametrize("case", ALL, ids=names(ALL))
def test_a_loaded_scheme_has_the_same_bits(case: Case) -> None:
    scheme, loaded = case.fresh(), reloaded(case.scheme)
    for attribute in PUBLIC:
        assert getattr(loaded, attribute) == getattr(scheme, attribute), attribute
    for worker in range(scheme.workers):
        assert same_bits(loaded.coefficients(worker), scheme.coefficients(worker))
    values = gradients(scheme.partitions, 2 * scheme.reduction + 1, np.float64, 3)
    sent = messages(scheme, values)
    for survivors in promised_sets(scheme, 20) + larger_sets(scheme, 5):
        assert same_bits(loaded.decoding_weights(survivors), scheme.decoding_weights(survivors))
        given = {w: sent[w] for w in survivors}
        assert same_bits(loaded.decode(given, values.shape[1]), scheme.decode(given, values.shape[1]))
        assert loaded.condition_number(survivors) == scheme.condition_number(survivors)
    few = tuple(range(scheme.workers - scheme.stragglers - 1))
    assert loaded.is_decodable(few) == scheme.is_decodable(few)


def test_inexact_schemes_are_kept_too() -> None:
    scheme = schemes.ignore_stragglers(7, 3)
    loaded = reloaded(scheme)
    assert not loaded.exact
    assert loaded.fingerprint == scheme.fingerprint
    assert same_bits(loaded.decoding_weights([0, 4, 5]), scheme.decoding_weights([0, 4, 5]))


def test_all_reductions_of_a_scheme_are_kept() -> None:
    scheme = schemes.adaptive(6, 3)
    loaded = reloaded(scheme)
    assert loaded.reductions == scheme.reductions == (1, 2, 3)
    for m in scheme.reductions:
        one, two = loaded.with_reduction(m), scheme.with_reduction(m)
        assert (one.name, one.fingerprint) == (two.name, two.fingerprint)
    # A change under any of them makes another scheme, and so does the lack of one.
    others = (schemes.adaptive(6, 3, code="cauchy"), schemes.grouped(6, 3, 1))
    assert len({scheme.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert pickle.loads(pickle.dumps(scheme)).fingerprint == scheme.fingerprint


def test_reductions_that_do_not_belong_together_are_refused() -> None:
    for one, two in ((schemes.grouped(6, 3, 1), schemes.grouped(6, 2, 2)), (schemes.grouped(6, 3, 1),) * 2):
        with pytest.raises(ValueError, match="must be a saved scheme"):
            reloaded(with_others("mixed", one, [two]))


def test_fingerprints_tell_schemes_apart() -> None:
    prints = [case.scheme.fingerprint for case in ALL if not case.name.startswith("from_coefficients")]
    prints += [schemes.grouped(8, 4, 2, code="gaussian", seed=seed).fingerprint for seed in (1, 2)]
    prints += [schemes.ignore_stragglers(5, s).fingerprint for s in (0, 1)]
    assert all(len(p) == 64 and set(p) <= set("0123456789abcdef") for p in prints)
    # The same data made in two ways has one fingerprint: repetition is a grouped scheme with one block, and Ye and
    # Abbe's scheme for a single worker is uncoded.
    groups: dict[str, list[str]] = {}
    for case in ALL:
        groups.setdefault(case.scheme.fingerprint, []).append(case.name)
    for same in groups.values():
        shapes = {(c.scheme.assignment, c.scheme.stragglers, c.scheme.reduction) for c in ALL if c.name in same}
        assert len(shapes) == 1, same
    assert schemes.uncoded(4).fingerprint == schemes.fractional_repetition(4, 0).fingerprint
    assert schemes.grouped(8, 4, 2).fingerprint == schemes.grouped(8, 4, 2, code="optimized", seed=9).fingerprint


def test_one_bit_of_a_coefficient_changes_the_fingerprint() -> None:
    scheme = schemes.cyclic_repetition(5, 2)
    coefficients = [scheme.coefficients(w).copy() for w in range(5)]
    first = schemes.from_coefficients(scheme.assignment, coefficients, stragglers=2).fingerprint
    coefficients[3][1, 0] = np.nextafter(coefficients[3][1, 0], np.inf)
    assert schemes.from_coefficients(scheme.assignment, coefficients, stragglers=2).fingerprint != first


@pytest.mark.parametrize("ending", ["", ".npz", ".scheme"])
@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_used_as_they_are(tmp_path: Path, ending: str, kind: Any) -> None:
    path = tmp_path / f"scheme{ending}"
    scheme = schemes.grouped(6, 3, 2)
    scheme.save(kind(path))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert schemes.load(kind(path)).fingerprint == scheme.fingerprint


def test_no_pickle_is_written(tmp_path: Path) -> None:
    path = tmp_path / "scheme.npz"
    for case in ALL[::10]:
        case.scheme.save(path)
        with np.load(path, allow_pickle=False) as archive:
            assert all(archive[name].dtype != object for name in archive.files)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "scheme.npz"
    schemes.polynomial_gaussian(5, 1, 2).save(path)
    return path


def arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_a_truncated_file_is_refused_wherever_it_ends(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"file must be a saved scheme: .*scheme\.npz"):
            schemes.load(saved)


def test_flipped_bits_are_refused_or_do_not_matter(saved: Path) -> None:
    """Some bytes of a zip (dates, attributes) carry nothing; any other damage is found."""
    content = bytearray(saved.read_bytes())
    expected = schemes.load(saved)
    refused = 0
    positions = range(0, len(content), 5)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        saved.write_bytes(damaged)
        try:
            loaded = schemes.load(saved)
        except ValueError as error:
            assert "file must be a saved scheme" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert loaded.fingerprint == expected.fingerprint, position
    assert refused > 0.4 * len(positions)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    foreign = [b"", b"text\n", b"\x93NUMPY garbage", b"PK\x03\x04 garbage", pickle.dumps({"format": 1})]
    for content in foreign:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file must be a saved scheme"):
            schemes.load(path)
    with open(path, "wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(ValueError, match="file must be a saved scheme"):
        schemes.load(path)
    with open(path, "wb") as stream:
        np.savez(stream, a=np.zeros(3))
    with pytest.raises(ValueError, match="file must be a saved scheme"):
        schemes.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("format.npy", "no array")
    with pytest.raises(ValueError, match="file must be a saved scheme"):
        schemes.load(path)


class Trap:
    """Raises if it is ever unpickled."""

    def __reduce__(self) -> Any:
        return _sprung, ()


def _sprung() -> None:
    raise AssertionError("a pickle was loaded")


def test_pickles_inside_are_not_loaded(saved: Path) -> None:
    arrays = arrays_of(saved)
    for name in arrays:
        with open(saved, "wb") as stream:
            np.savez(stream, **{**arrays, name: np.array([Trap()], dtype=object)})
        with pytest.raises(ValueError, match="file must be a saved scheme"):
            schemes.load(saved)


def test_every_array_is_needed_and_every_change_is_found(saved: Path) -> None:
    arrays = arrays_of(saved)
    for name, array in arrays.items():
        changed: list[Any] = [None, np.zeros(0, array.dtype)]
        if name != "name":  # any text is a name
            changed += [np.concatenate([array.ravel(), array.ravel()[:1]]), -array.astype(np.float64) - 1]
            changed += [np.where(np.arange(array.size).reshape(array.shape) == 0, array + 1, array)]
        if array.dtype == np.float64:
            changed += [np.where(np.arange(array.size).reshape(array.shape) == 1, np.nan, array), array.T]
        for number, value in enumerate(changed):
            tampered = {n: a for n, a in {**arrays, name: value}.items() if a is not None}
            with open(saved, "wb") as stream:
                np.savez(stream, **tampered)
            if name == "name" and number:
                assert schemes.load(saved).name == ""
                continue
            with pytest.raises(ValueError, match="file must be a saved scheme"):
                schemes.load(saved)


def test_another_format_is_named(saved: Path) -> None:
    arrays = arrays_of(saved)
    with open(saved, "wb") as stream:
        np.savez(stream, **{**arrays, "format": np.int64(2)})
    with pytest.raises(ValueError, match="format 2 is not 1"):
        schemes.load(saved)


def test_a_file_that_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        schemes.load(tmp_path / "nothing")
    with pytest.raises(OSError):
        schemes.uncoded(2).save(tmp_path / "no" / "folder")


def test_a_scheme_can_be_copied_and_sent_to_other_processes() -> None:
    scheme = schemes.grouped(8, 4, 2)
    scheme.decoding_weights(range(8))
    for twin in (copy.deepcopy(scheme), pickle.loads(pickle.dumps(scheme))):
        assert (twin.fingerprint, twin.name, twin.patterns.size) == (scheme.fingerprint, scheme.name, 0)
