"""Linear combinations of rows that lie in many arrays, as a JAX primitive: linear in the arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import ffi
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from fastgc.jax import _calls, _cuda

__all__ = ["Row", "Rows", "Stretch", "Table", "combine"]


class Row(NamedTuple):
    """Consecutive elements of an array, from `start` of its elements in C order.

    The coefficient of an input in an output is number ``output.coefficient + input.coefficient`` of the coefficients.
    """

    array: int
    start: int
    coefficient: int


Rows = tuple[Row, ...]


class Stretch(NamedTuple):
    """Outputs of a length, each the sum over groups, by the tree of `fastgc.kernels.decode`, of their combinations."""

    length: int
    outputs: Rows
    groups: tuple[Rows, ...]


class Table:
    """Stretches that together write every element of every output, and read every element of every input, once.

    Compared by identity, so that looking up a compiled program does not take as long as running it.
    """

    def __init__(self, stretches: tuple[Stretch, ...]) -> None:
        self.stretches = stretches

    def in_order(self, transposed: bool) -> tuple[Stretch, ...]:
        """The stretches; transposed: inputs are outputs, and each group's are made apart."""
        if not transposed:
            return self.stretches
        return tuple(Stretch(s.length, group, (s.outputs,)) for s in self.stretches for group in s.groups)

    def numbers(self, transposed: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
        """As the custom call reads them."""
        numbers: list[int] = []
        for length, outputs, groups in self.in_order(transposed):
            numbers += [length, len(outputs), len(groups)]
            for row in outputs:
                numbers += row
            for group in groups:
                numbers.append(len(group))
                for row in group:
                    numbers += row
        return np.array(numbers, np.int64)


# Operands: the coefficients, and the arrays, of any shape, behind an axis of `batch` where that is not None and they
# are not shared. Results: arrays of `shapes` and `dtype`, all behind that axis.
_primitive = Primitive("fastgc_combine")
_primitive.multiple_results = True


def combine(
    coefficients: jax.Array | npt.NDArray[Any],
    arrays: list[jax.Array],
    table: Table,
    shapes: tuple[tuple[int, ...], ...],
    dtype: np.dtype[Any],
    threads: int,
) -> list[jax.Array]:
    """The outputs of a table.

    Parameters
    ----------
    coefficients : array, 1-D
        In the type computed in. Not differentiated.
    arrays : list of array
        Of one element type.
    table : Table
    shapes : tuple of shapes
        Of the outputs.
    dtype : dtype
        Of the outputs.
    threads : int
        0 for no limit.
    """
    found: list[jax.Array] = _compiled(
        coefficients, *arrays, table=table, shapes=shapes, dtype=dtype, threads=threads,
        transposed=False, batch=None, shared=(False,) * len(arrays),
    )  # fmt: skip
    return found


def _bind(*operands: Any, **parameters: Any) -> Any:
    return _primitive.bind(*_calls.varying_alike(operands), **parameters)


def _abstract(coefficients: Any, *arrays: Any, shapes: Any, dtype: Any, batch: int | None, **_: Any) -> Any:
    front = () if batch is None else (batch,)
    own = coefficients.update(weak_type=False, dtype=dtype)
    return [own.update(shape=(*front, *shape)) for shape in shapes]


def _lower(
    context: Any, *operands: Any, table: Table, transposed: bool, batch: int | None, shared: Any, threads: int, **_: Any
) -> Any:
    return ffi.ffi_lowering(_calls.COMBINE)(
        context, *operands, table=table.numbers(transposed), batch=np.int64(1 if batch is None else batch),
        shared=np.array(shared, np.int64), threads=np.int64(threads),
    )  # fmt: skip


def _jvp(primals: Any, tangents: Any, **parameters: Any) -> Any:
    coefficients, *_ = primals
    of_coefficients, *of_arrays = tangents
    if type(of_coefficients) is not ad.Zero:
        raise NotImplementedError("fastgc.jax: encoding and decoding are not differentiated in their coefficients")
    directions = [ad.instantiate_zeros(tangent) for tangent in of_arrays]
    return _bind(*primals, **parameters), _bind(coefficients, *directions, **parameters)


def _transpose(cotangents: Any, coefficients: Any, *arrays: Any, transposed: bool, shapes: Any, dtype: Any,
               batch: int | None, shared: Any, **parameters: Any) -> Any:  # fmt: skip
    wanted = [array.aval if ad.is_undefined_primal(array) else None for array in arrays]
    avals = [array.aval if ad.is_undefined_primal(array) else jax.typeof(array) for array in arrays]
    given = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    items = [a.shape if batch is None or own else a.shape[1:] for a, own in zip(avals, shared, strict=True)]
    found = _bind(
        coefficients, *given, transposed=not transposed, shapes=tuple(items), dtype=avals[0].dtype, batch=batch,
        shared=(False,) * len(given), **parameters,
    )  # fmt: skip
    sums = [f.sum(0) if batch is not None and own else f for f, own in zip(found, shared, strict=True)]
    return [None, *(own if aval is not None else None for own, aval in zip(sums, wanted, strict=True))]


def _batch(operands: Any, axes: Any, *, batch: int | None, shared: Any, **parameters: Any) -> Any:
    coefficients, *arrays = operands
    of_coefficients, *of_arrays = axes
    if of_coefficients is not None:
        raise NotImplementedError("fastgc.jax: encoding and decoding are not mapped over their coefficients")
    size = next(a.shape[axis] for a, axis in zip(arrays, of_arrays, strict=True) if axis is not None)
    moved, still = [], []
    for array, axis, own in zip(arrays, of_arrays, shared, strict=True):
        alone = batch is None or own  # without the axis of the batch so far
        still.append(axis is None and alone)
        if still[-1]:
            moved.append(array)
            continue
        x = array[None] if axis is None else jnp.moveaxis(array, axis, 0)
        if batch is not None:
            x = x[:, None] if alone else x
            x = jnp.broadcast_to(x, (size, batch, *x.shape[2:])).reshape(size * batch, *x.shape[2:])
        moved.append(x)
    found = _bind(
        coefficients, *moved, batch=size * (batch or 1), shared=tuple(still), **parameters
    )  # fmt: skip
    if batch is not None:
        found = [f.reshape(size, batch, *f.shape[1:]) for f in found]
    return found, [0] * len(found)


# A jitted function is called faster than a primitive; inside another one it leaves no trace.
_STATIC = ("table", "shapes", "dtype", "threads", "transposed", "batch", "shared")
_compiled = jax.jit(_bind, static_argnames=_STATIC, inline=True)

_primitive.def_abstract_eval(_abstract)
_primitive.def_impl(_compiled)
ad.primitive_jvps[_primitive] = _jvp
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batch
_calls.lower(_primitive, _lower, _cuda.combine)
