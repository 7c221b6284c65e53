"""Measures how far off the estimates of the approximate schemes are: prints the table of docs/schemes.md.

python docs/approximation_error.py               # about a minute on one core
python docs/approximation_error.py --samples 50  # rougher
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import comb, inf
from typing import NamedTuple

import numpy as np

from fastgc import GradientCode, schemes
from fastgc.approximate_schemes import block_probabilities, second_eigenvalue

MISSING = (3, 6, 12, 18, 24)
N, LOAD = 30, 6


class Row(NamedTuple):
    """A scheme and an estimate, and what its paper says of the mean squared error with r of n survivors.

    `sign` is ``=`` for an expected error and ``≤`` for a bound.
    """

    label: str
    make: Callable[[int], GradientCode]
    method: str
    sign: str
    theory: Callable[[GradientCode, int], float]


def one_step_regular(scheme: GradientCode, r: int) -> float:
    """Of a scheme all of whose workers hold, and partitions are held by, equally many."""
    n, k, d = scheme.workers, scheme.partitions, scheme.load
    return k * (k - d) * (n - r) / (r * d * (n - 1))


def erasure_head(scheme: GradientCode, r: int) -> float:
    """n C(n - d, r) / C(n, r)."""
    return scheme.workers * comb(scheme.workers - LOAD, r) / comb(scheme.workers, r)


def bernoulli(scheme: GradientCode, r: int) -> float:
    """k (k - d) / (r d), over the code."""
    return scheme.partitions * (scheme.partitions - LOAD) / (r * LOAD)


def stochastic_block(scheme: GradientCode, r: int) -> float:
    """Over code and survivors, with two blocks of which a worker holds three quarters and one quarter of its load."""
    n = scheme.workers
    p, q = block_probabilities(n, LOAD, 2, 0.75)
    spread = r * (p * (1 - p) + q * (1 - q)) / 2
    return n * (n / (r * LOAD)) ** 2 * (spread + (p - q) ** 2 * r / 4 * (n - r) / (n - 1))


def expander(scheme: GradientCode, r: int) -> float:
    """(λ / d)² n s / (n - s)."""
    adjacency = np.zeros((scheme.workers, scheme.partitions))
    for worker, held in enumerate(scheme.assignment):
        adjacency[worker, list(held)] = scheme.coefficients(worker)[:, 0]
    return second_eigenvalue(adjacency) ** 2 * scheme.workers * (scheme.workers - r) / r


def bibd(scheme: GradientCode, r: int) -> float:
    """n - d² r / (d - λ + λ r) with λ = 1."""
    return scheme.workers - LOAD**2 * r / (LOAD - 1 + r)


def at_most(theory: Callable[[GradientCode, int], float]) -> Callable[[GradientCode, int], float]:
    """As a bound on the least error, which is never above that of nothing."""
    return lambda scheme, r: min(theory(scheme, r), scheme.partitions)


ROWS = [
    Row("`erasure_head(30, 6)`", lambda _: schemes.erasure_head(N, LOAD, 0), "optimal", "=", erasure_head),
    Row("", lambda _: schemes.erasure_head(N, LOAD, 0), "one_step", "=", one_step_regular),
    Row("`bernoulli(30, 6)`", lambda s: schemes.bernoulli(N, LOAD, 0, seed=s), "optimal", "≤", at_most(bernoulli)),
    Row("", lambda s: schemes.bernoulli(N, LOAD, 0, seed=s), "one_step", "=", bernoulli),
    Row(
        "`stochastic_block(30, 6)`",
        lambda s: schemes.stochastic_block(N, LOAD, 0, seed=s),
        "optimal",
        "≤",
        at_most(stochastic_block),
    ),
    Row("", lambda s: schemes.stochastic_block(N, LOAD, 0, seed=s), "one_step", "=", stochastic_block),
    Row("`expander(30, 6)`", lambda _: schemes.expander(N, LOAD, 0), "optimal", "≤", at_most(expander)),
    Row("", lambda _: schemes.expander(N, LOAD, 0), "one_step", "=", one_step_regular),
    Row("`bibd(31, 6)`", lambda _: schemes.bibd(N + 1, LOAD, 0), "optimal", "=", bibd),
    Row("", lambda _: schemes.bibd(N + 1, LOAD, 0), "one_step", "=", one_step_regular),
]


def measured(row: Row, missing: int, samples: int) -> tuple[float, float, float]:
    """Mean and largest squared error over random survivors, and what theory says, each over the partitions."""
    rng = np.random.default_rng(missing)
    errors, theory = [], inf
    scheme = row.make(0)
    random = scheme.fingerprint != row.make(1).fingerprint  # of a random code, the mean is over the code too
    for seed in range(samples):
        scheme = row.make(seed) if random else scheme
        count = scheme.workers - missing
        errors.append(scheme.approximation_error(rng.permutation(scheme.workers)[:count].tolist(), row.method) ** 2)
        theory = row.theory(scheme, count)
    return float(np.mean(errors)) / scheme.partitions, max(errors) / scheme.partitions, theory / scheme.partitions


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000, help="survivor sets of each number (default: 1000)")
    samples = parser.parse_args().samples
    print(f"| scheme | estimate | {' | '.join(f'{missing} missing' for missing in MISSING)} |")
    print("|---|---|" + "---|" * len(MISSING))
    for row in ROWS:
        cells = []
        for missing in MISSING:
            mean, largest, theory = measured(row, missing, samples)
            cells.append(f"{mean:.3f} ({row.sign} {theory:.3f}), {largest:.2f}")
        print(f"| {row.label} | {row.method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
