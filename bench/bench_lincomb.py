"""Regressions of `kernels.lincomb`: shapes of encoding and decoding, in and out of cache, for each backend.

Run with ``make bench``; pytest-benchmark saves and compares (``--benchmark-autosave``, ``--benchmark-compare``).
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.cases import Arena, Case, Problem, element_type
from bench.contestants import Contestant, Unavailable, contestants
from bench.lincomb import verified

OURS = [contestant for contestant in contestants() if contestant.ours]
SHAPES = [(1, 2), (1, 8), (1, 64), (2, 4), (4, 4), (8, 8), (16, 16), (64, 64)]
LENGTHS = [1_000, 100_000, 1_000_000]


@pytest.fixture(scope="module", params=["f64", "f32", "f16", "bf16"])
def arena(request: pytest.FixtureRequest) -> Arena:
    """Rows of one type, for all cases."""
    try:
        return Arena(element_type(request.param))
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("contestant", OURS, ids=lambda contestant: contestant.name.replace(" ", "-"))
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("p", "q"), SHAPES)
def bench_lincomb(
    benchmark: Any, arena: Arena, contestant: Contestant, p: int, q: int, length: int, threads: int
) -> None:
    """One shape; verified before it is timed."""
    problem = Problem(Case(arena.element.name, threads, p, q, length), arena)
    try:
        call = contestant.prepare(problem)
        verified(problem, call)
    except Unavailable as reason:
        if str(reason).startswith("wrong"):
            raise
        pytest.skip(str(reason))
    benchmark.group = f"lincomb {arena.element.name} {p}x{q}x{length}"
    benchmark.extra_info["bytes"] = problem.case.bytes
    benchmark.extra_info["flops"] = problem.case.flops
    benchmark(call)
