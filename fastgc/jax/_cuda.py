"""The same calls on NVIDIA GPUs: the CUDA kernels, as launches that a program carries with it.

Everything but addresses and the number of blocks is known when a program is lowered. So a call becomes XLA operations
that bring its small operands into the order the kernels read them in, and one custom call whose attributes are the
kernels, compiled, and their launches (`fastgc.kernels._cuda_items`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import ffi
from jax.interpreters import mlir

from fastgc import _checks
from fastgc.kernels import _nvrtc
from fastgc.kernels._cuda_items import Notes, Recorded, address
from fastgc.kernels._cuda_launches import Rows, View, spaced

if TYPE_CHECKING:
    from fastgc.jax._combine import Row, Table

__all__ = ["CALL", "combine", "decoding_weights", "lincomb"]

CALL = "fastgc_cuda"


def _name(dtype: Any) -> str:
    return "bfloat16" if _checks.is_bfloat16(np.dtype(dtype)) else np.dtype(dtype).name


def _architecture() -> int:
    """That of the oldest GPU here, which all newer ones run; without one, that of the oldest GPUs of all."""
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        return _nvrtc.OLDEST_ARCHITECTURE
    return min(int(str(device.compute_capability).replace(".", "")) for device in devices)


def _call(notes: Notes, results: Sequence[Any], *operands: Any, aliases: dict[int, int] | None = None) -> list[Any]:
    """The custom call; its buffers are the operands, the results and, if there is need of it, room to work in."""
    room = [jax.ShapeDtypeStruct((notes.room,), np.uint8)] if notes.room else []
    attributes = notes.attributes(functools.partial(_nvrtc.compiled, architecture=_architecture()))
    shapes = [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in results]
    call = ffi.ffi_call(CALL, [*shapes, *room], input_output_aliases=aliases)
    return list(call(*operands, **attributes))[: len(results)]


def _lowered(context: Any, operands: Any, function: Callable[..., list[Any]]) -> Any:
    """What a function of arrays is lowered to; arrays of one device, whatever mesh it is part of."""
    own = [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in context.avals_in]
    results = [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in context.avals_out]
    context = context.replace(avals_in=own, avals_out=results)
    return mlir.lower_fun(function, multiple_results=True)(context, *operands)


def _placed(coefficients: Any, places: npt.NDArray[np.int64]) -> Any:
    """Coefficients, in one axis, in the places where kernels read them; after the last one come zero and one."""
    count = coefficients.shape[-1]
    if np.array_equal(places, np.arange(count)):
        return coefficients
    ends = jnp.broadcast_to(jnp.array([0, 1], coefficients.dtype), (*coefficients.shape[:-1], 2))
    return jnp.concatenate([coefficients, ends], -1).at[..., places].get(mode="promise_in_bounds")


def lincomb(context: Any, *operands: Any, dtype: np.dtype[Any], threads: int) -> Any:
    """Lowers the primitive of `fastgc.jax.lincomb`. The limit of threads is for CPUs."""
    coefficients, inputs, *initial = context.avals_in
    (Q, length), P = inputs.shape[-2:], coefficients.shape[-2]
    items = inputs.shape[0] if inputs.ndim == 3 else 1
    own = coefficients.ndim == 3
    out = 2 + len(initial)
    notes = Notes(workspace=out + 1)
    recorded = Recorded(0, P * Q, notes, items, own)

    def rows(buffer: int, count: int, kind: Any) -> Rows:
        size = length * np.dtype(kind).itemsize
        apart = [count * size if items > 1 else 0] * count
        return Rows(spaced(address(buffer), count, size), length, _name(kind), apart=apart)

    matrix = np.arange(P * Q).reshape(P, Q)
    recorded.lincomb(matrix, rows(1, Q, inputs.dtype), rows(out, P, dtype), accumulate=bool(initial))

    def run(c: Any, *arrays: Any) -> list[Any]:
        flat = c.reshape(items, P * Q) if own else c.reshape(P * Q)
        aliases = {2: 0} if initial else None
        return _call(notes, context.avals_out, _placed(flat, recorded.places), *arrays, aliases=aliases)

    return _lowered(context, operands, run)


def combine(
    context: Any, *operands: Any, table: Table, transposed: bool, batch: int | None, shared: Any, dtype: np.dtype[Any],
    **_: Any,
) -> Any:  # fmt: skip
    """Lowers the primitive of `fastgc.jax.encode` and `fastgc.jax.decode`."""
    coefficients, *arrays = context.avals_in
    results = context.avals_out
    items = 1 if batch is None else batch
    notes = Notes(workspace=1 + len(arrays) + len(results))
    recorded = Recorded(0, coefficients.shape[0], notes, items)

    def rows(first: int, avals: Sequence[Any], shares: Sequence[bool], length: int, given: Sequence[Row]) -> Rows:
        dtype = avals[given[0].array].dtype
        size = np.dtype(dtype).itemsize
        places = [address(first + row.array, row.start * size) for row in given]
        own = [items > 1 and not shares[row.array] for row in given]
        apart = [avals[row.array].size // items * size if each else 0 for row, each in zip(given, own, strict=True)]
        return Rows(places, length, _name(dtype), apart=apart)

    none = (False,) * len(results)
    for stretch in table.in_order(transposed):
        down = np.array([given.coefficient for given in stretch.outputs])
        groups = []
        for group in stretch.groups:
            across = np.array([given.coefficient for given in group])
            groups.append((down[:, None] + across, rows(1, arrays, shared, stretch.length, group)))
        recorded.stretch(rows(1 + len(arrays), results, none, stretch.length, stretch.outputs), groups)

    def run(c: Any, *given: Any) -> list[Any]:
        return _call(notes, results, _placed(c, recorded.places), *given)

    return _lowered(context, operands, run)


def _doubles() -> Any:
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def decoding_weights(
    context: Any, *operands: Any, generator: tuple[float, ...], dtype: np.dtype[Any], threads: int
) -> Any:
    """Lowers the primitive of `fastgc.jax.decoding_weights`: NaN where a CPU has an error, which needs no waiting."""
    (patterns,) = context.avals_in
    *front, k = patterns.shape
    matrix = np.array(generator).reshape(-1, k)
    count = patterns.size // k
    notes = Notes(workspace=4)
    recorded = Recorded(0, 0, notes)
    recorded.invert(
        View(address(0), matrix.shape, (), "float64", False, None),
        View(address(1), (count, k), (), "int64", False, None),
        View(address(2), (count, k, k), (), "float64", True, None),
        View(address(3), (count,), (), "uint8", True, None),
    )
    results = [jax.ShapeDtypeStruct((count, k, k), np.float64), jax.ShapeDtypeStruct((count,), np.uint8)]

    def run(rows: Any) -> list[Any]:
        weights, doubtful = _call(notes, results, jnp.asarray(matrix), rows.reshape(count, k).astype(np.int64))
        found = jnp.where((doubtful == 0)[:, None, None], weights, np.nan)
        return [found.reshape(*front, k, k).astype(dtype)]

    with _doubles():
        return _lowered(context, operands, run)
