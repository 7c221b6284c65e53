"""What encoding a pytree in JAX takes: ``python -m bench.jax_trees``.

A worker's gradients of a dense network, encoded where they lie by ``fastgc.jax.encode`` and, as a user might write it,
by concatenating their leaves: into `fastgc.jax.lincomb`, or into sums that XLA compiles itself. All in jitted
functions, in turns; prints a table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from bench import environment
from bench.timing import Effort, Repeated, measure
from fastgc import GradientCode, schemes


def contestants(code: GradientCode, widths: Sequence[int]) -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """Functions and what they are called with: ours first, and last NumPy's on gradients that are flat already."""
    import jax
    import jax.numpy as jnp

    import fastgc.jax

    random = np.random.default_rng(0)
    shapes = [shape for pair in pairwise(widths) for shape in (pair, pair[1:])]
    held = [
        [jnp.asarray(random.standard_normal(shape).astype(np.float32)) for shape in shapes]
        for _ in code.assignment[0]
    ]  # fmt: skip
    coefficients = code.coefficients(0).astype(np.float32)
    m = code.reduction

    def blocks(tree: Any) -> Any:
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in tree])
        return jnp.pad(flat, (0, -flat.size % m)).reshape(m, -1)

    def concatenated(held: Any) -> Any:
        rows = jnp.concatenate([blocks(tree) for tree in held])
        return fastgc.jax.lincomb(coefficients.reshape(1, -1), rows)[0]

    def summed(held: Any) -> Any:
        return sum(coefficients[j, u] * blocks(tree)[u] for j, tree in enumerate(held) for u in range(m))

    flat = [np.concatenate([np.asarray(leaf).reshape(-1) for leaf in tree]) for tree in held]
    return {
        "fastgc.jax.encode": (jax.jit(partial(fastgc.jax.encode, code, 0)), held),
        "concatenate, fastgc.jax.lincomb": (jax.jit(concatenated), held),
        "concatenate, sums of XLA's": (jax.jit(summed), held),
        "NumPy, flat already": (partial(code.encode, 0), flat),
    }


def ready(function: Callable[[Any], Any], argument: Any) -> Any:
    result = function(argument)
    return result if isinstance(result, np.ndarray) else result.block_until_ready()


def main(command: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.jax_trees", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 1024, 4096, 512], help="of the layers")
    parser.add_argument("--seconds", type=float, default=10, help="of all together (default: 10)")
    options = parser.parse_args(command)
    if len(options.widths) < 2 or min(options.widths) < 1 or not options.seconds > 0:
        parser.error("expected two widths or more, and positive numbers")
    code = schemes.grouped(4, load=4, reduction=2)
    found = contestants(code, options.widths)
    (name, ours), *_ = calls = [(name, partial(ready, *each)) for name, each in found.items()]
    wanted = np.asarray(calls[-1][1]())
    if not np.array_equal(ours(), wanted):
        raise RuntimeError(f"{name} has other bits than NumPy")
    for other, call in calls[1:]:
        if not np.allclose(call(), wanted, rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"{other} computes something else")
    samples = measure({n: Repeated(c) for n, c in calls}, Effort(seconds=options.seconds), threads=2, keep=found)
    header = environment.machine()
    print(f"{header['cpus']} CPUs ({header['cpu']}), commit {header['commit']}, {header['date']}; {code.name}, "
          f"{sum(leaf.size for leaf in found[name][1][0]):,} parameters")  # fmt: skip
    for other, _ in calls:
        summary = samples.summary(other)
        print(f"{other:<32} {summary['seconds'] * 1e3:9.2f} ms   {samples.ratio(other, name)[0]:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
