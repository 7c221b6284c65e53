"""The largest eigenvalue against the dense one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from mpi_runner.smoothness import largest_eigenvalue


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 8), (40, 20)])
def test_it_is_the_square_of_the_largest_singular_value(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    matrix = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.6)
    matrix[0, 0] = 1.0
    expected = np.linalg.norm(matrix, 2) ** 2
    assert largest_eigenvalue(matrix) == pytest.approx(expected, rel=1e-6)
    assert largest_eigenvalue(sparse.csr_array(matrix)) == pytest.approx(expected, rel=1e-6)
