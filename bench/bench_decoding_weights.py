"""Regressions of finding decoding weights: batches of patterns, a new one, a known one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.environment import set_threads
from bench.weights import SCHEMES, random_patterns
from fastgc import kernels


@pytest.mark.parametrize("k", [2, 4, 5, 8, 12, 16])
@pytest.mark.parametrize("count", [1, 2000])
@pytest.mark.parametrize("backend", [name for name in kernels.backends() if name != "cuda"])
def bench_batched_weights(benchmark: Any, k: int, count: int, backend: str) -> None:
    """Inverses for many patterns of a [2k, k] code."""
    generator, patterns = random_patterns(k, count)
    benchmark.group = f"batched weights k={k} patterns={count}"
    weights = benchmark(kernels.decoding_weights, generator, patterns, backend=backend)
    np.testing.assert_allclose(weights @ generator[patterns], np.broadcast_to(np.eye(k), weights.shape), atol=1e-6)


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("scheme", SCHEMES)
def bench_weights(benchmark: Any, scheme: str, known: bool) -> None:
    """Weights of one survivor set, as a master asks for them."""
    set_threads(1)  # matrices are small, and the threads of a BLAS only get in each other's way
    code = SCHEMES[scheme]()
    survivors = tuple(range(code.stragglers, code.workers))

    def new() -> Any:
        code.patterns.clear()
        return code.decoding_weights(survivors)

    benchmark.group = f"weights {scheme}"
    benchmark((lambda: code.decoding_weights(survivors)) if known else new)
