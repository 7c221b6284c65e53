"""Workers' messages and the master's sum, of gradients that are pytrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from fastgc import _checks
from fastgc.gradient_code import GradientCode
from fastgc.jax import _calls
from fastgc.jax._combine import Row, Stretch, Table, combine
from fastgc.layout import Layout

__all__ = ["decode", "encode"]

Shape = tuple[int, ...]


def encode(
    code: GradientCode,
    worker: int,
    gradients: Any,
    *,
    stacked: bool = False,
    dtype: npt.DTypeLike | None = None,
    threads: int | None = None,
) -> jax.Array:
    """The message of a worker, from gradients that are pytrees, read where they lie.

    Parameters
    ----------
    code : GradientCode
    worker : int
    gradients : sequence of pytrees of arrays, or array of shape (len(code.assignment[worker]), length)
        One gradient for each partition of ``code.assignment[worker]``, in that order, all of the same structure, shapes
        and element type. Its numbers are those of its leaves, one after the other, each in C order.
    stacked : bool
        The gradients are one pytree, whose leaves have an axis of partitions in front, as ``jax.vmap`` makes them.
    dtype : dtype, optional
        Of the message; as in `lincomb`.
    threads : int, optional
        As in `lincomb`.

    Returns
    -------
    array of shape (code.message_length(length),)
        With the bits of ``code.encode`` on the same numbers.

    Raises
    ------
    TypeError, ValueError
        A wrong worker, number of gradients, structure, shape or element type.
    NotImplementedError
        On anything but a CPU or an NVIDIA GPU.
    ImportError
        A program for a GPU where there is no compiler for its kernels; the message says what to install.
    """
    coefficients = code.coefficients(worker)
    d, m = coefficients.shape
    in_one = stacked or isinstance(gradients, jax.Array | np.ndarray)
    if in_one:
        leaves = [_calls.array("gradients", leaf) for leaf in jax.tree.leaves(gradients)]
        for t, leaf in enumerate(leaves):
            if leaf.ndim == 0 or leaf.shape[0] != d:
                raise ValueError(
                    f"gradients must have {d} in the first axis of every leaf, one a partition of worker {worker}; "
                    f"leaf {t} has shape {leaf.shape}"
                )
        shapes = tuple(leaf.shape[1:] for leaf in leaves)
    else:
        leaves, shapes = _trees(gradients, d, worker)
    kind = _one_type("gradients", leaves)
    length = sum(leaf.size for leaf in leaves) // d
    (message,) = combine(
        _calls.coefficients_for(kind, coefficients.reshape(-1)),
        leaves,
        _encoding(d, m, shapes, in_one),
        ((code.message_length(length),),),
        _calls.result_type("gradients", kind, dtype),
        _calls.thread_limit(threads),
    )
    return message


def decode(
    code: GradientCode,
    messages: Mapping[int, Any],
    like: Any,
    *,
    dtype: npt.DTypeLike | None = None,
    approximate: bool | str = False,
    threads: int | None = None,
) -> Any:
    """The sum of all partitions' gradients from the messages of the survivors, as a pytree.

    Who has answered is known when a program is traced: the keys of `messages`. Another set of as many survivors of each
    group runs the program compiled for the first, unless the call is inside ``jax.jit``, which traces it anew.

    Parameters
    ----------
    code : GradientCode
    messages : mapping from worker to array of shape (code.message_length(length),)
        All of one element type.
    like : int, or pytree of arrays or ``jax.ShapeDtypeStruct``
        The length of a gradient, or its structure, shapes and element type, such as the model's parameters.
    dtype : dtype, optional
        Of the sum: by default the type of `like`, or the messages' own for a length; as in `lincomb`.
    approximate : bool or str
        As in `GradientCode.decode`.
    threads : int, optional
        As in `lincomb`.

    Returns
    -------
    array of shape (like,), or pytree of arrays
        With the bits of ``code.decode`` on the same messages.

    Raises
    ------
    NotDecodableError
        The survivors do not determine the sum.
    TypeError, ValueError
        A wrong worker, length, shape or element type.
    NotImplementedError
        On anything but a CPU or an NVIDIA GPU.
    ImportError
        A program for a GPU where there is no compiler for its kernels; the message says what to install.
    """
    if not isinstance(messages, Mapping):
        raise TypeError(f"messages must be a mapping from worker to array, not {type(messages).__name__}")
    present = sorted(_checks.members("messages", messages, code.workers))
    whole = not isinstance(like, bool) and isinstance(like, int | np.integer)
    leaves, structure = jax.tree.flatten(None if whole else like)
    shapes = ((_checks.integer("like", like, 1),),) if whole else tuple(tuple(leaf.shape) for leaf in leaves)
    length = sum(map(prod, shapes))
    found = code.group_weights(present, approximate)
    groups = {group: index for index, (group, _, _) in enumerate(found)}
    used = [worker for worker in present if code.place(worker)[0] in groups]
    used.sort(key=lambda worker: groups[code.place(worker)[0]])
    arrays = [_calls.array(f"messages[{worker}]", messages[worker]) for worker in used]
    for worker, array in zip(used, arrays, strict=True):
        if array.shape != (code.message_length(length),):
            raise ValueError(f"messages[{worker}] must have shape ({code.message_length(length)},), not {array.shape}")
    kind = _one_type("messages", arrays)
    if dtype is None and not whole:
        dtype = jax.dtypes.canonicalize_dtype(_one_type("like", leaves))  # NumPy's float64 are JAX's float32
    sums = combine(
        _calls.coefficients_for(kind, np.concatenate([weights.T.reshape(-1) for _, _, weights in found])),
        arrays,
        _decoding(code.reduction, tuple(weights.shape[1] for _, _, weights in found), shapes),
        shapes,
        _calls.result_type("messages", kind, dtype),
        _calls.thread_limit(threads),
    )
    return sums[0] if whole else jax.tree.unflatten(structure, sums)


def _trees(gradients: Any, d: int, worker: int) -> tuple[list[jax.Array], tuple[Shape, ...]]:
    """The leaves of all gradients, and the shapes of those of one."""
    if not isinstance(gradients, Sequence):
        raise TypeError(f"gradients must be a sequence of pytrees, not {type(gradients).__name__}")
    if len(gradients) != d:
        raise ValueError(f"gradients must be {d}, one a partition of worker {worker}, not {len(gradients)}")
    leaves: list[jax.Array] = []
    first = jax.tree.structure(gradients[0])
    shapes: tuple[Shape, ...] = ()
    for j, tree in enumerate(gradients):
        own, structure = jax.tree.flatten(tree)
        if structure != first:
            raise ValueError(f"gradients[{j}] must have the structure of gradients[0], {first}, not {structure}")
        arrays = [_calls.array(f"gradients[{j}]", leaf) for leaf in own]
        if j == 0:
            shapes = tuple(tuple(array.shape) for array in arrays)
        elif tuple(tuple(array.shape) for array in arrays) != shapes:
            raise ValueError(
                f"gradients[{j}] must have the shapes of gradients[0], {list(shapes)}, "
                f"not {[tuple(array.shape) for array in arrays]}"
            )
        leaves += arrays
    return leaves, shapes


def _one_type(name: str, leaves: Sequence[Any]) -> np.dtype[Any]:
    """The element type of all leaves."""
    if not leaves:
        raise ValueError(f"{name} must have at least one array")
    kinds = {np.dtype(leaf.dtype) for leaf in leaves}
    if len(kinds) > 1:
        raise TypeError(f"{name} must have one element type, not {', '.join(sorted(map(str, kinds)))}")
    return _checks.element_type(name, kinds.pop())


@lru_cache(maxsize=256)
def _encoding(d: int, m: int, shapes: tuple[Shape, ...], stacked: bool) -> Table:
    """The table of a message: coefficient ``j * m + u`` is that of block u of gradient j."""
    sizes = [prod(shape) for shape in shapes]

    def row(j: int, u: int, tensor: int, start: int) -> Row:
        if stacked:
            return Row(tensor, j * sizes[tensor] + start, j * m + u)
        return Row(j * len(shapes) + tensor, start, j * m + u)

    return Table(
        tuple(
            Stretch(
                end - begin,
                (Row(0, begin, 0),),
                (tuple(row(j, u, *part) for j in range(d) for u, part in enumerate(parts)),),
            )
            for begin, end, parts in Layout(shapes).stretches(m)
        )
    )


@lru_cache(maxsize=256)
def _decoding(m: int, counts: tuple[int, ...], shapes: tuple[Shape, ...]) -> Table:
    """The table of a sum: coefficient ``q * m + u`` is the weight of message q, counted over all groups, in block u."""
    ends = np.cumsum(counts).tolist()
    groups = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return Table(
        tuple(
            Stretch(
                end - begin,
                tuple(Row(tensor, start, u) for u, (tensor, start) in enumerate(parts)),
                tuple(tuple(Row(q, begin, q * m) for q in group) for group in groups),
            )
            for begin, end, parts in Layout(shapes).stretches(m)
        )
    )
