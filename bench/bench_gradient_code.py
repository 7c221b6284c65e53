"""Regressions of encode and decode under whole schemes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.end_to_end import SCHEMES


@pytest.mark.parametrize("length", [10_000, 1_000_000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scheme", SCHEMES)
def bench_encode(benchmark: Any, scheme: str, dtype: str, length: int) -> None:
    """A worker's message, into an array that is used again."""
    code = SCHEMES[scheme]()
    gradients = np.ones((code.load, length), dtype)
    message = np.empty(code.message_length(length), dtype)
    benchmark.group = f"encode {dtype} {length}"
    benchmark(code.encode, 0, gradients, message)


@pytest.mark.parametrize("length", [100, 10_000, 1_000_000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scheme", SCHEMES)
def bench_decode(benchmark: Any, scheme: str, dtype: str, length: int) -> None:
    """A master's gradient from the fewest messages, by a known pattern; of 100 numbers: what a call itself costs."""
    code = SCHEMES[scheme]()
    survivors = range(code.stragglers, code.workers)
    messages = {worker: np.ones(code.message_length(length), dtype) for worker in survivors}
    gradient = np.empty(length, dtype)
    benchmark.group = f"decode {dtype} {length}"
    benchmark(code.decode, messages, length, out=gradient)
