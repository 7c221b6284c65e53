"""Make the table of optimised codes: ``python -m bench.optimize_codes --rounds 2``.

Searches with every cyclic symmetry for every size, takes codes in closed form (harmonic; conference matrices) and codes
from codes (punctured, shortened, dual) into account, ends with steps that need no symmetry, and writes
``fastgc/optimized_codes.npz``. Every draw has a seed of its own, made of n, k, the symmetry's order and the round, so
`--rounds` and `--first` choose what is tried; what is in the table already stays where nothing better is found
(``--afresh`` begins with nothing). A round takes about 6 minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from fastgc import _optimized, _optimizing
from fastgc._optimizing import Array, Patterns

TABLE = Path(_optimized.__file__).with_name("optimized_codes.npz")
DRAWS, KEPT = 150, 10
BEYOND = ((17, 8), (17, 9), (18, 9))
"""Sizes beyond the table whose codes are punctured and shortened into it."""


@cache
def every_set(n: int, k: int) -> Patterns:
    """All sets of k rows."""
    return _optimizing.no_symmetry(n, k).representatives()


def worst(generator: Array) -> float:
    """The worst condition number of all sets."""
    rows, k = generator.shape
    patterns = every_set(rows, k)
    parts = np.array_split(patterns, len(patterns) // 8192 + 1)
    return float(np.exp(max(_optimizing.log_conditions(generator, part).max() for part in parts)))


class Table:
    """The best code of every size so far, and how it came about."""

    def __init__(self, afresh: bool) -> None:
        self.best: dict[tuple[int, int], tuple[float, Array, str]] = {}
        if not afresh and TABLE.exists():
            with np.load(TABLE, allow_pickle=False) as stored:
                origins = stored["origins"].tolist()
            for size, origin in zip(_optimized.entries(), origins, strict=True):
                self.offer(_optimized.generator(*size)[0], origin)

    def offer(self, generator: Array, origin: str) -> bool:
        """Take a code if it is better; equal ones would only make the table depend on the last bit."""
        rows, k = generator.shape
        found = worst(generator)
        if (rows, k) in self.best and found > self.best[rows, k][0] * (1 - 1e-6):
            return False
        self.best[rows, k] = found, generator, origin
        print(f"[{rows}, {k}] {found:.4f} {origin}", flush=True)
        return True

    def derived(self) -> Iterator[tuple[Array, str]]:
        """Codes from codes, longer ones first."""
        for n, k in sorted(self.best, reverse=True):
            _, generator, _ = self.best[n, k]
            if k >= n / 2:
                yield _optimizing.dual(generator), f"dual of [{n}, {k}]"
            if k < n - 1:
                yield min((_optimizing.punctured(generator, r) for r in _ends(n)), key=worst), f"punctured [{n}, {k}]"
            if k > 2:
                yield min((_optimizing.shortened(generator, r) for r in _ends(n)), key=worst), f"shortened [{n}, {k}]"

    def write(self) -> None:
        """As one array of all generators, in the order of `_optimized.entries`."""
        chosen = [self.best[size] for size in _optimized.entries()]
        generators = np.concatenate([generator.ravel() for _, generator, _ in chosen])
        np.savez(TABLE, generators=generators, origins=np.array([origin for _, _, origin in chosen]))


def _ends(n: int) -> tuple[int, ...]:
    """Rows to try without: orbits lie one after the other, and a fixed row is the last."""
    return (0, n // 2, n - 1)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--afresh", action="store_true", help="forget the table")
    options = parser.parse_args()
    table = Table(options.afresh)
    for n, k in _optimized.entries():
        table.offer(_optimizing.harmonic(n, k), "harmonic")
    for q in (5, 13, 17):
        table.offer(_optimizing.conference(q), f"conference matrix of {q + 1}")
    for number in range(options.first, options.first + options.rounds):
        for n, k in _optimized.entries():
            for order in range(2 if n < 14 else 3, n + 1):
                if n % order <= 1:
                    random = np.random.default_rng([n, k, order, number])
                    found = _optimizing.search(n, k, order, random, DRAWS, KEPT)
                    if found is not None:
                        table.offer(found, f"orbits of {order}, round {number}")
    for _ in range(3):
        sizes = {*_optimized.entries(), *BEYOND}
        improved = [table.offer(g, origin) for g, origin in table.derived() if g.shape in sizes]
        if not any(improved):
            break
    for n, k in _optimized.entries():
        _, generator, origin = table.best[n, k]
        free = _optimizing.no_symmetry(n, k)
        leveled = _optimizing.level(free, generator, every_set(n, k), 10, radius=0.005)
        table.offer(free.generator(leveled), origin if origin.endswith("leveled") else f"{origin}, leveled")
    table.write()


if __name__ == "__main__":
    main()
