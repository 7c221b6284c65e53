"""The one rank decision, and the solves that decoding weights come from."""

from __future__ import annotations

import numpy as np
import pytest

from fastgc import codes, linalg

SEED = 11
EPS = float(np.finfo(np.float64).eps)


def of_rank(rows: int, columns: int, rank: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))


SIZES = [(r, c) for r in (1, 2, 3, 5, 8, 13) for c in (1, 2, 4, 8, 12)]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_rank_of_products(rows: int, columns: int) -> None:
    for rank in range(min(rows, columns) + 1):
        for seed in range(SEED, SEED + 5):
            assert linalg.rank(of_rank(rows, columns, rank, seed)) == rank, f"seed {seed}"


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_rank_does_not_depend_on_the_scale_of_columns(rows: int, columns: int) -> None:
    rng = np.random.default_rng(SEED)
    for rank in range(1, min(rows, columns) + 1):
        matrix = of_rank(rows, columns, rank, SEED)
        assert linalg.rank(matrix * 10.0 ** rng.integers(-100, 100, columns)) == rank, f"seed {SEED}"


def test_rank_of_a_stack_is_that_of_each() -> None:
    stack = np.stack([of_rank(6, 4, rank, SEED) for rank in (4, 2, 0, 3, 1)]).reshape(5, 1, 6, 4)
    assert linalg.rank(stack).tolist() == [[4], [2], [0], [3], [1]]
    assert isinstance(linalg.rank(stack[0, 0]), int)


def test_rank_of_nothing_is_zero() -> None:
    assert linalg.rank(np.zeros((0, 3))) == linalg.rank(np.zeros((3, 0))) == linalg.rank(np.zeros((3, 4))) == 0
    assert linalg.rank(np.zeros((7, 0, 3))).tolist() == [0] * 7


@pytest.mark.parametrize("shape", [(3, 3), (8, 4), (4, 9)])
def test_rank_decides_at_the_stated_threshold(shape: tuple[int, int]) -> None:
    """A singular value just above 64 max(shape) eps of the largest counts, one just below does not."""
    threshold = 64 * max(shape) * EPS
    rng = np.random.default_rng(SEED)
    size = min(shape)
    # Columns that differ by a tiny orthogonal part: [a, a + t b, ...] has unit columns and a small singular value.
    left = np.linalg.qr(rng.standard_normal((shape[0], size)))[0] if shape[0] >= size else np.eye(shape[0])
    for factor, expected in ((4.0, size), (0.25, size - 1)):
        matrix = np.zeros(shape)
        matrix[:, :size] = left[:, :size]
        # The pair (a, a + t b) has singular values sqrt(2) and t / sqrt(2), to first order.
        matrix[:, 1] = matrix[:, 0] + factor * threshold * 2 * matrix[:, 1]
        matrix[:, size:] = matrix[:, :1]
        assert linalg.rank(matrix) == expected, f"{factor} of the threshold"


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 6), (6, 3), (8, 5)])
def test_spans(rows: int, columns: int) -> None:
    rng = np.random.default_rng(SEED)
    for rank in range(1, min(rows, columns) + 1):
        matrix = of_rank(rows, columns, rank, SEED)
        inside = rng.standard_normal((2, rows)) @ matrix
        outside = rng.standard_normal((2, columns))
        for size in (1e-100, 1e-8, 1.0, 1e8, 1e100):
            assert linalg.spans(matrix, inside * size)
            assert linalg.spans(matrix, outside * size) == (rank == columns)
        both = np.stack([matrix, np.zeros_like(matrix)])
        assert linalg.spans(both, inside).tolist() == [True, False]


def test_nothing_spans_only_nothing() -> None:
    assert linalg.spans(np.zeros((0, 3)), np.zeros((1, 3)))
    assert not linalg.spans(np.zeros((0, 3)), np.ones((1, 3)))


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_independent_columns_have_the_rank(rows: int, columns: int) -> None:
    for rank in range(1, min(rows, columns) + 1):
        matrix = of_rank(rows, columns, rank, SEED)
        chosen = linalg.independent_columns(matrix)
        assert len(chosen) == rank
        assert chosen == sorted(set(chosen))
        assert linalg.rank(matrix[:, chosen]) == rank


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_solve_rows_gives_the_least_norm(rows: int, columns: int) -> None:
    for rank in range(1, min(rows, columns) + 1):
        matrix = of_rank(rows, columns, rank, SEED)
        for target in (matrix[:1], np.random.default_rng(SEED).standard_normal((3, rows)) @ matrix):
            weights = linalg.solve_rows(matrix, target)
            pseudo = target @ np.linalg.pinv(matrix, rcond=1e-10)
            values = np.linalg.svd(matrix, compute_uv=False)
            tolerance = 64 * (rows + columns) * EPS * values[0] / values[rank - 1]
            assert weights.shape == (len(target), rows)
            # Backward stable: the equations hold to the size of what is multiplied, whatever the condition.
            miss = np.abs(weights @ matrix - target).max()
            assert miss <= 16 * (rows + columns) * EPS * (np.abs(weights) @ np.abs(matrix)).max()
            assert np.abs(weights - pseudo).max() <= tolerance * np.abs(pseudo).max(), f"rank {rank}, seed {SEED}"


def test_solve_rows_has_the_bits_of_a_pattern_alone() -> None:
    matrix = codes.gaussian(9, 4, seed=2).generator[[0, 2, 3, 5, 8]]
    first = linalg.solve_rows(matrix, np.eye(4))
    for _ in range(20):
        linalg.solve_rows(np.random.default_rng(SEED).standard_normal((7, 4)), np.eye(4))
        assert linalg.solve_rows(matrix.copy(), np.eye(4)).tobytes() == first.tobytes()
