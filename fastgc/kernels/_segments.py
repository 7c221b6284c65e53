"""Encoding and decoding for any backend that has `lincomb`: blocks cut at a gradient's end.

The C++ core does the same in one pass over memory; here it is one call a stretch of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# coefficients, inputs, outputs, accumulate
Lincomb = Callable[[Array, Sequence[Array], Sequence[Array], bool], None]

JUDGED = 4096
"""Columns whose syndromes `decode_checked` judges together; as what follows, a constant of csrc/core.h."""
DYNAMIC_RANGE = 1024.0
"""Their messages count as no smaller than the largest anywhere divided by this."""
MARGIN = 2.0**-10
"""What is so much below a floor, as a share of its square, is doubtful too: the order of a sum decides nothing."""
UNDERFLOW = 2.0**-50
"""Syndromes smaller than this have squares that float32 may lose."""


def block_length(length: int, m: int) -> int:
    """Length of the blocks when a gradient is cut into `m`: the last ones may be short or empty."""
    return -(-length // m)


def segments(length: int, m: int) -> list[tuple[slice, int]]:
    """Stretches of a block's columns with the number of blocks that exist there."""
    block = block_length(length, m)
    full, remainder = divmod(length, block)
    both = [(slice(0, remainder), full + 1), (slice(remainder, block), full)]
    return [(columns, present) for columns, present in both if columns.start < columns.stop]


def encode(lincomb: Lincomb, coefficients: Array, gradients: Sequence[Array], out: Array, accumulate: bool) -> None:
    """``out`` = (or +=) the sum over j, u of ``coefficients[j, u]`` times block u of gradient j."""
    length, m = len(gradients[0]), coefficients.shape[1]
    block = block_length(length, m)
    for columns, present in segments(length, m):
        inputs = [g[u * block + columns.start : u * block + columns.stop] for g in gradients for u in range(present)]
        lincomb(coefficients[:, :present].reshape(1, -1), inputs, [out[columns]], accumulate)


def decode(
    lincomb: Lincomb, weights: Sequence[Array], messages: Sequence[Sequence[Array]], length: int, out: Array
) -> None:
    """``out`` = the groups' blocks, added up by the tree over the groups."""
    m = weights[0].shape[0]
    block = block_length(length, m)

    def group(g: int, result: Array) -> None:
        for columns, present in segments(length, m):
            blocks = [result[u * block + columns.start : u * block + columns.stop] for u in range(present)]
            lincomb(weights[g][:present], [message[columns] for message in messages[g]], blocks, False)

    def tree(lo: int, hi: int, result: Array) -> None:
        if hi - lo == 1:
            group(lo, result)
            return
        middle = (lo + hi) // 2
        tree(lo, middle, result)
        right = np.empty_like(result)
        tree(middle, hi, right)
        result += right

    tree(0, len(weights), out)


def doubtful(
    energies: Sequence[Array], sizes: Sequence[Array], floors: Array, least: float, squares_vanish: bool
) -> list[int]:
    """The stretches of columns where the sum of the squares of a group's syndromes is not known to be below its floor.

    Parameters
    ----------
    energies, sizes : sequence of array, shape (stretches,)
        Of each group that has syndromes, the sums, and a size that its messages' largest absolute value is not below.
    floors : array, shape (groups, 2)
        Relative to that size, and absolute.
    least : float
        A size that no messages count as below.
    squares_vanish : bool
        Squares are taken in float32.
    """
    found: set[int] = set()
    with np.errstate(over="ignore", invalid="ignore"):
        for energy, size, (relative, absolute) in zip(energies, sizes, floors, strict=True):
            floor = relative * np.maximum(size, max(least, size.max() / DYNAMIC_RANGE)) + absolute
            fine = (energy <= floor * floor * (1 - MARGIN)) & np.isfinite(energy)  # floors may be infinite too
            if squares_vanish:
                fine &= floor > UNDERFLOW
            found.update(np.flatnonzero(~fine).tolist())
    return sorted(found)
