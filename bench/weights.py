"""Measures finding decoding weights: many patterns at once, and those of one set, met first, anew, or known already."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import combinations
from time import perf_counter

import numpy as np

from bench.cases import Array
from bench.end_to_end import least_squares
from bench.environment import set_threads
from bench.lincomb import compare
from bench.records import OURS, Record, Timing
from bench.timing import Effort, Repeated, SelfTimed, measure
from fastgc import kernels, schemes
from fastgc.decoders import LinearDecoder
from fastgc.gradient_code import GradientCode

SIZES = range(2, 17)
PATTERNS = 2000
MET_FIRST, NEW, KNOWN = "weights of a set met first", "weights of a new pattern", "weights of a known pattern"
SETS = 200  # that a scheme meets one after the other
SCHEMES: dict[str, Callable[[], GradientCode]] = {
    "cyclic repetition (30, 3)": lambda: schemes.cyclic_repetition(30, 3),
    "grouped [10,5], 10 workers": lambda: schemes.grouped(10, 10, 5),
}


def run(effort: Effort) -> Iterator[Record]:
    """All measurements of decoding weights, on one thread: matrices are small."""
    set_threads(1)
    for k in SIZES:
        yield batched(k, PATTERNS, effort)
    for name, make in SCHEMES.items():
        for suite in (MET_FIRST, NEW, KNOWN):
            yield single(suite, name, make(), effort)


def random_patterns(k: int, count: int) -> tuple[Array, Array]:
    """A [2k, k] Gaussian generator, and `count` of its patterns."""
    random = np.random.default_rng(k)
    generator = random.standard_normal((2 * k, k))
    return generator, np.sort(np.argsort(random.random((count, 2 * k)), axis=1)[:, :k], axis=1)


def batched(k: int, count: int, effort: Effort) -> Record:
    """Inverses for `count` random patterns of a [2k, k] Gaussian code; a peer is given the selected rows."""
    generator, patterns = random_patterns(k, count)
    stack = generator[patterns]
    record = Record("batched weights", {"k": k, "patterns": count, "threads": 1})

    def residual(weights: Array) -> float:
        """Largest entry of A G - I over the largest of |A| |G|: a pattern's condition is no error of a solver."""
        size = (np.abs(weights) @ np.abs(stack)).max(axis=(1, 2))
        return float(np.max(np.abs(weights @ stack - np.eye(k)).max(axis=(1, 2)) / size))

    calls: dict[str, Callable[[], Array]] = {
        OURS: lambda: kernels.decoding_weights(generator, patterns),
        "NumPy inv": lambda: np.linalg.inv(stack),
    }
    return _measured(record, calls, {name: residual(call()) for name, call in calls.items()}, 100 * k, effort)


def single(suite: str, scheme: str, code: GradientCode, effort: Effort) -> Record:
    """Weights of one survivor set as a master asks for them, against solving anew as earlier implementations do."""
    survivors = tuple(range(code.stragglers, code.workers))
    solve = least_squares(code, survivors)
    expected = solve()
    record = Record(suite, {"scheme": scheme, "threads": 1})

    calls: dict[str, Callable[[], Array]] = {
        OURS: lambda: code.decoding_weights(survivors),
        "NumPy least squares": solve,
    }
    decoder = code.decoder(0)
    if len(code.groups) == 1 and isinstance(decoder, LinearDecoder):
        rows = decoder.code.generator[list(survivors)]
        target = np.eye(code.reduction) if decoder.target is None else decoder.target
        calls["NumPy least squares on the code"] = lambda: np.linalg.lstsq(rows.T, target.T, rcond=None)[0].T
    scale = np.abs(expected).max()
    errors = {name: float(np.abs(call() - expected).max() / scale) for name, call in calls.items()}
    return _measured(record, calls, errors, 1e5, effort, SelfTimed(_asking(suite, code)))


def _asking(suite: str, code: GradientCode) -> Callable[[int], float]:
    """Times a scheme that is asked for the weights of one set after the other, and around."""
    everybody = list(combinations(range(code.workers), code.workers - code.stragglers))
    another, *sets = [everybody[i] for i in np.random.default_rng(0).permutation(len(everybody))[: SETS + 1]]
    for survivors in sets:
        code.decoding_weights(survivors)
    if suite == NEW:
        code.patterns.maxsize = 1  # each drives the one before it out

    def timer(repetitions: int) -> float:
        seconds = 0.0
        for first in range(0, repetitions, SETS):
            # Copies remember nothing, neither sets nor what rank they have.
            weights = (copy.copy(code) if suite == MET_FIRST else code).decoding_weights
            weights(another)  # what all sets share is made with the first
            some = sets[: repetitions - first]
            begin = perf_counter()
            for survivors in some:
                weights(survivors)
            seconds += perf_counter() - begin
        return seconds / repetitions

    return timer


def _measured(
    record: Record,
    calls: dict[str, Callable[[], Array]],
    errors: dict[str, float],
    roundings: float,
    effort: Effort,
    ours: SelfTimed | None = None,
) -> Record:
    """Time those whose error is at most so many roundings; ours not by its call, where something else is given."""
    allowed = roundings * float(np.finfo(np.float64).eps)
    for name in list(calls):
        if not errors[name] <= allowed:
            record.skipped[name] = f"wrong: error {errors[name]:.2g} where {allowed:.2g} is allowed"
            del calls[name]
    contestants: dict[str, Repeated | SelfTimed] = {name: Repeated(call) for name, call in calls.items()}
    if ours is not None:
        contestants[OURS] = ours
    samples = measure(contestants, effort, threads=1, keep=list(calls))
    record.timings = [Timing(name, name == OURS, **samples.summary(name), error=errors[name]) for name in calls]
    compare(record, samples)
    return record
