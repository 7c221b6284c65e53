"""Measures how many workers each scheme is usable with: prints the tables of docs/schemes.md.

python docs/usable_workers.py            # about 3 minutes on one core
python docs/usable_workers.py --most 16  # a shorter scan
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastgc import GradientCode, codes, schemes

PAIRS = ((1, 1), (2, 1), (3, 1), (5, 1), (2, 2), (3, 3), (4, 4))
SAMPLES = 200


def usable(make: Callable[[int], Any], numbers: Iterable[int]) -> tuple[int, int]:
    """The last number up to which `make` accepts all: without a warning, and at all; 0 for none."""
    quiet = accepted = 0
    warned = False
    for number in numbers:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            try:
                make(number)
            except ValueError:
                break
        warned = warned or bool(caught)
        accepted = number
        quiet = quiet if warned else number
    return quiet, accepted


def worst_amplification(scheme: GradientCode) -> float:
    """Over sets of ``workers - stragglers``: those with neighbours missing, and a fixed sample."""
    n, s = scheme.workers, scheme.stragglers
    rng = np.random.default_rng(0)
    sets = {tuple(sorted((first + i) % n for i in range(n - s))) for first in range(n)}
    sets |= {tuple(sorted(rng.permutation(n)[: n - s].tolist())) for _ in range(SAMPLES)}
    return max(scheme.amplification(survivors) for survivors in sets)


def row(label: str, make: Callable[[int], Any], numbers: list[int], most: int) -> None:
    """One line of the first table."""

    def shown(number: int) -> str:
        return f"{number} (all tried)" if number == numbers[-1] else str(number)

    def amplification(workers: int) -> str:
        if workers > most or workers > accepted:
            return "–"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                return f"{worst_amplification(make(workers)):.2g}"
            except ValueError:
                return "–"

    quiet, accepted = usable(make, numbers)
    cells = [label, shown(quiet), shown(accepted), *(amplification(workers) for workers in (13, 25))]
    print("| " + " | ".join(cells) + " |", flush=True)


def workers_table(most: int) -> None:
    """Schemes over all workers."""
    print("| scheme | usable n without warning | usable n at all | amplification, n = 13 | n = 25 |")
    print("|---|---|---|---|---|")
    for s in (1, 2, 3, 5):
        row(
            f"`cyclic_repetition(n, {s})`",
            lambda n, s=s: schemes.cyclic_repetition(n, s),  # type: ignore[misc]
            list(range(s + 1, most + 1)),
            most,
        )
    for s in (2, 4, 6, 8):
        row(
            f"`cyclic_mds(n, {s})`",
            lambda n, s=s: schemes.cyclic_mds(n, s),  # type: ignore[misc]
            list(range(s + 1, most + 1, 2)),
            most,
        )
    for constructor in (schemes.polynomial, schemes.polynomial_gaussian):
        for s, m in PAIRS:
            row(
                f"`{constructor.__name__}(n, {s}, {m})`",
                lambda n, c=constructor, s=s, m=m: c(n, s, m),  # type: ignore[misc]
                list(range(s + m, most + 1)),
                most,
            )


def loads_table(most: int) -> None:
    """The families of the grouped framework, whose limit is one on the load."""
    columns = [f"{what}: {name}" for what in ("m = d/2", "m = d − 2") for name in ("without warning", "at all")]
    print(f"| family | {' | '.join(columns)} |")
    print("|---|---|---|---|---|")
    for family in codes.FAMILIES:
        cells = [f"`{family}`"]
        for numbers, below in ((list(range(2, most + 1, 2)), None), (list(range(3, most + 1)), 2)):

            def scheme(d: int, family: str = family, below: int | None = below) -> GradientCode:
                return schemes.grouped(d, d, d // 2 if below is None else d - below, code=family)

            cells += [f"{v} (all tried)" if v == numbers[-1] else str(v) for v in usable(scheme, numbers)]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="How many workers each scheme is usable with.")
    parser.add_argument("--most", type=int, default=40, help="try numbers up to this one (default: 40)")
    most = parser.parse_args().most
    if most < 10:
        parser.error(f"--most must be at least 10, not {most}")
    workers_table(most)
    print()
    loads_table(most)


if __name__ == "__main__":
    main()
