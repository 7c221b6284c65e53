"""`lincomb` as a JAX primitive: bilinear in coefficients and inputs, with the rules for derivatives and batches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import ffi
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from fastgc.jax import _calls, _cuda

__all__ = ["lincomb"]

# Operands: coefficients (P, Q) or (B, P, Q), inputs (Q, L) or (B, Q, L), and perhaps what the result starts from, of
# its shape (P, L) or (B, P, L). Coefficients have a batch only where inputs have. `dtype` is that of the result.
_primitive = Primitive("fastgc_lincomb")


def lincomb(
    coefficients: npt.ArrayLike | jax.Array,
    inputs: Any,
    initial: jax.Array | None = None,
    *,
    dtype: npt.DTypeLike | None = None,
    threads: int | None = None,
) -> jax.Array:
    """Linear combinations of rows: ``result[p] = sum over q of coefficients[p, q] * inputs[q]``.

    Parameters
    ----------
    coefficients : array_like of real numbers, shape (P, Q)
        May be traced. Rounded once to the type computed in: float64 for rows in float64, else float32.
    inputs : array of shape (Q, L), or sequence of Q arrays of shape (L,)
        float32, float64, float16 or bfloat16. A sequence is stacked first, which is a copy.
    initial : array of shape (P, L), optional
        What the result starts from, of its element type: ``fma(c[p,0], x_0, initial)``. XLA lets the result take its
        memory where it is not used again, and where it is donated, if it is an argument of a jitted function.
    dtype : dtype, optional
        Of the result: the inputs' own by default, else float32 for inputs in float16 or bfloat16, and either of these
        for inputs in float32.
    threads : int, optional
        Use at most this many of XLA's threads. Small calls use one in any case. Of no effect on a GPU.

    Returns
    -------
    array of shape (P, L)
        With the bits of `fastgc.kernels.lincomb`.

    Raises
    ------
    TypeError
        Another element type, or something that is no array of real numbers.
    ValueError
        Shapes that do not match, empty ones, or coefficients that are not finite.
    jax.errors.JaxRuntimeError
        Traced coefficients that turn out not to be finite, on a CPU. On a GPU, which nothing waits for, they go their
        way, as what is not finite in the inputs does.
    NotImplementedError
        On anything but a CPU or an NVIDIA GPU.
    ImportError
        A program for a GPU where there is no compiler for its kernels; the message says what to install.

    Notes
    -----
    Derivatives are taken in both modes and to any order, in `coefficients`, `inputs` and `initial`; that in the
    coefficients is a product of XLA's. ``jax.vmap`` makes one call of many: over coefficients alone they become more
    rows, over inputs along their columns more columns, and else items that XLA's threads share.
    """
    rows = _calls.array("inputs", inputs)
    kind = _calls.result_type("inputs", rows.dtype, None)
    result = _calls.result_type("inputs", kind, dtype)
    matrix = _calls.coefficients_for(kind, coefficients)
    if rows.ndim != 2 or matrix.ndim != 2 or matrix.shape[1] != rows.shape[0] or 0 in (*matrix.shape, *rows.shape):
        raise ValueError(
            "coefficients and inputs must have shapes (P, Q) and (Q, L), none empty, "
            f"not {matrix.shape} and {rows.shape}"
        )
    operands: list[Any] = [matrix, rows]
    if initial is not None:
        start = _calls.array("initial", initial)
        if start.shape != (matrix.shape[0], rows.shape[1]):
            raise ValueError(f"initial must have shape {(matrix.shape[0], rows.shape[1])}, not {start.shape}")
        if start.dtype != result:
            raise TypeError(f"initial must have element type {result}, not {start.dtype}")
        operands.append(start)
    found: jax.Array = _compiled(*operands, dtype=result, threads=_calls.thread_limit(threads))
    return found


def _bind(*operands: Any, dtype: np.dtype[Any], threads: int) -> Any:
    return _primitive.bind(*_calls.varying_alike(operands), dtype=dtype, threads=threads)


def _abstract(coefficients: Any, inputs: Any, *initial: Any, dtype: np.dtype[Any], threads: int) -> Any:
    shape = (*inputs.shape[:-2], coefficients.shape[-2], inputs.shape[-1])
    return inputs.update(shape=shape, dtype=dtype, weak_type=False)


def _lower(context: Any, *operands: Any, dtype: np.dtype[Any], threads: int) -> Any:
    aliases = {2: 0} if len(operands) == 3 else None
    return ffi.ffi_lowering(_calls.LINCOMB, operand_output_aliases=aliases)(
        context, *operands, threads=np.int64(threads)
    )


def _jvp(primals: Any, tangents: Any, *, dtype: np.dtype[Any], threads: int) -> Any:
    coefficients, inputs, *_ = primals
    of_coefficients, of_inputs, *of_initial = tangents
    terms = [t for t in of_initial if type(t) is not ad.Zero]
    if type(of_inputs) is not ad.Zero:
        terms = [_bind(coefficients, of_inputs, *terms, dtype=dtype, threads=threads)]
    if type(of_coefficients) is not ad.Zero:
        terms = [_bind(of_coefficients, inputs, *terms, dtype=dtype, threads=threads)]
    return _bind(*primals, dtype=dtype, threads=threads), terms[0]


def _transpose(cotangent: Any, *operands: Any, dtype: np.dtype[Any], threads: int) -> Any:
    wanted = [operand.aval if ad.is_undefined_primal(operand) else None for operand in operands]
    if type(cotangent) is ad.Zero:
        return [aval and ad.Zero(aval) for aval in wanted]
    coefficients, inputs, *_ = operands
    found: list[Any] = [None, None, cotangent][: len(operands)]
    if wanted[1] is not None:
        found[1] = _bind(jnp.swapaxes(coefficients, -1, -2), cotangent, dtype=wanted[1].dtype, threads=threads)
    if wanted[0] is not None:
        axes = "bpl,bql->pq" if len(wanted[0].shape) < inputs.ndim else "...pl,...ql->...pq"
        kind = wanted[0].dtype
        highest = jax.lax.Precision.HIGHEST
        found[0] = jnp.einsum(axes, cotangent.astype(kind), inputs.astype(kind), precision=highest)
    return [own if aval is not None else None for own, aval in zip(found, wanted, strict=True)]


def _batch(operands: Any, axes: Any, *, dtype: np.dtype[Any], threads: int) -> Any:
    coefficients, inputs, *initial = operands
    of_coefficients, of_inputs, *of_initial = axes
    size = next(o.shape[axis] for o, axis in zip(operands, axes, strict=True) if axis is not None)

    def bind(*arrays: Any) -> Any:
        return _bind(*arrays, dtype=dtype, threads=threads)

    def placed(array: Any, axis: int | None, to: int) -> Any:
        """With the batch at axis `to`."""
        if axis is None:
            return jnp.broadcast_to(jnp.expand_dims(array, to), (*array.shape[:to], size, *array.shape[to:]))
        return jnp.moveaxis(array, axis, to)

    if of_inputs is None and of_coefficients is not None:  # more rows
        c = jnp.moveaxis(coefficients, of_coefficients, -3)
        P, Q = c.shape[-2:]
        front = inputs.ndim - 2
        starts = [placed(i, a, front) for i, a in zip(initial, of_initial, strict=True)]
        starts = [start.reshape(*start.shape[:front], size * P, -1) for start in starts]
        out = bind(c.reshape(*c.shape[:-3], size * P, Q), inputs, *starts)
        return out.reshape(*out.shape[:front], size, P, -1), front
    if of_coefficients is None and inputs.ndim == 3 and of_inputs in (1, 2) and coefficients.ndim == 2:  # more columns
        starts = [placed(i, a, of_inputs) for i, a in zip(initial, of_initial, strict=True)]
        starts = [start.reshape(start.shape[0], -1) for start in starts]
        out = bind(coefficients, inputs.reshape(inputs.shape[0], -1), *starts)
        return out.reshape(out.shape[0], *inputs.shape[1:]), of_inputs

    x = placed(inputs, of_inputs, 0)
    c = coefficients
    if of_coefficients is not None or c.ndim == 3:
        c = placed(c, of_coefficients, 0)
        if c.ndim < x.ndim:
            c = jnp.broadcast_to(c[:, None], (*x.shape[:2], *c.shape[1:]))
        c = c.reshape(-1, *c.shape[-2:])
    starts = [placed(i, a, 0) for i, a in zip(initial, of_initial, strict=True)]
    out = bind(c, *(array.reshape(-1, *array.shape[-2:]) for array in (x, *starts)))
    return out.reshape(*x.shape[:-2], *out.shape[-2:]), 0


# A jitted function is called faster than a primitive; inside another one it leaves no trace.
_compiled = jax.jit(_bind, static_argnames=("dtype", "threads"), inline=True)

_primitive.def_abstract_eval(_abstract)
_primitive.def_impl(_compiled)
ad.primitive_jvps[_primitive] = _jvp
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batch
_calls.lower(_primitive, _lower, _cuda.lincomb)
