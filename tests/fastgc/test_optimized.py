"""Optimised codes: every entry of the table certified over all sets; closed forms; search, cache and certificates."""

from __future__ import annotations

from math import comb, sqrt, tan
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fastgc import _optimized, _optimizing, codes, linalg, schemes

# Worst condition numbers to stay below.
TARGETS = {
    (4, 2): 2.42, (6, 3): 5.9, (8, 4): 14, (10, 5): 41, (12, 6): 170, (12, 8): 135, (9, 6): 16, (10, 8): 10.2,
    (16, 4): 310, (16, 12): 1250,
}  # fmt: skip


@pytest.mark.parametrize("n", range(1, 17))
def test_every_set_of_every_entry_is_well_conditioned(n: int) -> None:
    for k in range(1, n + 1):
        code = codes.optimized(n, k)
        worst = code.worst_condition_number()
        assert comb(n, k) <= codes.MOST_SUBSETS  # so that all sets were looked at
        assert np.mean(np.linalg.norm(code.generator, axis=1) ** 2) == pytest.approx(1)
        assert worst <= codes.cauchy(n, k).worst_condition_number() * (1 + 1e-9), (n, k)
        assert worst <= TARGETS.get((n, k), np.inf), (n, k)
        if 8 <= n <= 12 and 3 <= k <= n - 3:
            some = [codes.gaussian(n, k, seed=seed).worst_condition_number() for seed in range(15)]
            assert worst <= np.median(some) / 25, (n, k)


@pytest.mark.parametrize("n", range(2, 17))
def test_closed_forms(n: int) -> None:
    assert codes.optimized(n, 1).worst_condition_number() == pytest.approx(1)
    assert codes.optimized(n, n).worst_condition_number() == pytest.approx(1)
    if n > 2:
        assert codes.optimized(n, 2).worst_condition_number() == pytest.approx(1 / tan(np.pi / 2 / n))
        assert codes.optimized(n, n - 1).worst_condition_number() == pytest.approx(sqrt(n))


def test_the_default_of_grouped() -> None:
    default = schemes.grouped(12, 6, 3)
    assert default.fingerprint == schemes.grouped(12, code=codes.optimized(6, 3)).fingerprint
    assert "code=optimized" in default.name


# Constructions --------------------------------------------------------------------------------------------------------


def worst(generator: npt.NDArray[np.float64]) -> float:
    return codes.from_generator(generator).worst_condition_number()


@pytest.mark.parametrize(("n", "k"), [(7, 3), (8, 4), (9, 6), (12, 5)])
def test_harmonic_codes_are_mds(n: int, k: int) -> None:
    patterns = _optimizing.no_symmetry(n, k).representatives()
    assert (linalg.rank(_optimizing.harmonic(n, k)[patterns]) == k).all()


@pytest.mark.parametrize("q", [5, 13])
def test_rows_of_a_conference_code_are_equiangular(q: int) -> None:
    generator = _optimizing.conference(q)
    gram = generator @ generator.T
    off = np.abs(gram[~np.eye(q + 1, dtype=bool)])
    assert np.allclose(np.diag(gram), 1)
    assert np.allclose(off, 1 / sqrt(q))


def test_codes_from_codes_are_no_worse() -> None:
    generator = codes.gaussian(8, 4, seed=3).generator
    for row in range(8):
        assert worst(_optimizing.shortened(generator, row)) <= worst(generator) * (1 + 1e-9)
        assert worst(_optimizing.punctured(generator, row)) <= worst(generator) * (1 + 1e-9)


def test_complementary_sets_of_a_dual_have_the_same_smallest_singular_value() -> None:
    orthonormal = np.linalg.qr(codes.gaussian(7, 3, seed=1).generator)[0]
    other = np.linalg.qr(_optimizing.dual(orthonormal))[0]
    assert np.abs(orthonormal.T @ other).max() < 1e-12
    for rows in _optimizing.no_symmetry(7, 3).representatives():
        rest = np.setdiff1d(np.arange(7), rows)
        values = [np.linalg.svd(m, compute_uv=False)[-1] for m in (orthonormal[rows], other[rest])]
        assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize(("n", "k", "order"), [(8, 4, 4), (9, 3, 4), (6, 3, 3)])
def test_representatives_stand_for_all_sets(n: int, k: int, order: int) -> None:
    random = np.random.default_rng(5)
    for _ in range(5):
        symmetry, vectors = _optimizing.draw(n, k, order, random)
        generator = symmetry.generator(vectors)
        few = np.sort(_optimizing.log_conditions(generator, symmetry.representatives()))
        every = np.sort(_optimizing.log_conditions(generator, _optimizing.no_symmetry(n, k).representatives()))
        kept = every < 20  # beyond, rounding decides
        assert np.allclose(np.unique(few[few < 20].round(6)), np.unique(every[kept].round(6)), atol=2e-6), "seed 5"


@pytest.mark.parametrize("figure", [_optimizing._frobenius, _optimizing._spectral])
def test_gradients_are_those_of_finite_differences(figure) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(2)
    rows, direction = random.standard_normal((4, 4)), random.standard_normal((4, 4))
    only = np.arange(4)[None]
    step = 1e-6
    up, down = (figure(rows + sign * step * direction, only)[0][0] for sign in (1, -1))
    assert np.sum(figure(rows, only)[1][0] * direction) == pytest.approx((up - down) / (2 * step), rel=1e-6)


def test_a_search_finds_the_icosahedron() -> None:
    found = _optimizing.search(6, 3, 3, np.random.default_rng(0), draws=30, kept=4)
    assert found is not None
    assert worst(found) == pytest.approx(worst(_optimizing.conference(5)), rel=1e-4)


# Beyond the table -----------------------------------------------------------------------------------------------------


def test_a_search_is_kept_and_a_damaged_file_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGC_CACHE", str(tmp_path))
    monkeypatch.setattr(_optimized, "DRAWS", 2)
    monkeypatch.setattr(_optimized, "KEPT", 2)
    code = codes.optimized(18, 3)
    assert code.certificate is not None
    assert code.certificate == (pytest.approx(code.worst_condition_number()), comb(18, 3), True)
    (file,) = tmp_path.iterdir()
    kept = file.read_bytes()
    assert codes.optimized(18, 3).generator.tobytes() == code.generator.tobytes()
    for damaged in (b"", kept[: len(kept) // 2], b"x" * len(kept)):
        file.write_bytes(damaged)
        assert codes.optimized(18, 3).generator.tobytes() == code.generator.tobytes()
        assert file.read_bytes() == kept


def test_long_codes_are_harmonic_and_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGC_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("a folder that cannot be made")
    code = codes.optimized(40, 20)
    assert np.array_equal(code.generator, _optimizing.harmonic(40, 20))
    assert code.certificate is not None
    assert not code.certificate.exhaustive
