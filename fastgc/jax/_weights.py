"""`decoding_weights` as a JAX primitive, for survivors that a program finds out as it runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import ffi
from jax.extend.core import Primitive
from jax.interpreters import batching

from fastgc import _checks
from fastgc.jax import _calls, _cuda

__all__ = ["decoding_weights"]

# Operand: patterns (…, k) in int32. Result: weights (…, k, k) of `dtype`. The generator by its numbers, row by row.
_primitive = Primitive("fastgc_decoding_weights")


def decoding_weights(
    generator: npt.ArrayLike,
    patterns: Any,
    *,
    dtype: npt.DTypeLike | None = None,
    threads: int | None = None,
) -> jax.Array:
    """Inverses of selected rows of a generator: A with ``A @ generator[pattern] = I``, for many patterns at once.

    Patterns may be traced, so that one compiled program decodes from whoever has answered.

    Parameters
    ----------
    generator : array_like of real numbers, shape (n, k)
        With k <= n; all entries finite. Known when the program is traced.
    patterns : array_like of int, shape (B, k) or (k,)
        Each row names k different rows of the generator. Columns of A are in the order in which it names them.
    dtype : {float32, float64}, optional
        Of the result, which is computed in float64 and rounded once: by default JAX's own, float32 unless
        ``jax_enable_x64`` is set. Rounding changes no bit of what `lincomb` makes of rows in other types than float64.
    threads : int, optional
        As in `lincomb`.

    Returns
    -------
    array of shape (B, k, k), or (k, k) for a single pattern
        With the bits of `fastgc.kernels.decoding_weights`, rounded.

    Raises
    ------
    TypeError
        Patterns that are not integers, a generator that is not known numbers.
    ValueError
        Wrong shapes, k > n, entries that are not finite.
    jax.errors.JaxRuntimeError
        When the program runs on a CPU: a row out of range or named twice, or rows that are dependent, or so nearly
        that only `fastgc.kernels.decoding_weights` could tell (a condition number of some 10¹⁰). On a GPU, which
        nothing waits for, the weights of such a pattern are NaN.
    NotImplementedError, ImportError
        As in `lincomb`.

    Notes
    -----
    Works under ``jax.jit`` and ``jax.vmap``. Nothing depends on it that could be differentiated.
    """
    if isinstance(generator, jax.core.Tracer):
        raise TypeError("generator must be known when the program is traced, not a traced array")
    numbers = _checks.real_numbers("generator", generator)
    if numbers.ndim != 2 or not 0 < numbers.shape[1] <= numbers.shape[0]:
        raise ValueError(f"generator must have shape (n, k) with 0 < k <= n, not {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError("generator must be finite")
    rows = _calls.array("patterns", patterns)
    if not jnp.issubdtype(rows.dtype, jnp.integer):
        raise TypeError(f"patterns must be integers, not {rows.dtype}")
    k = numbers.shape[1]
    if rows.ndim not in (1, 2) or rows.shape[-1] != k or rows.size == 0:
        raise ValueError(f"patterns must have shape (B, {k}) or ({k},) for k = {k}, not {rows.shape}")
    kind = np.dtype(jax.dtypes.canonicalize_dtype(np.float64 if dtype is None else dtype))
    if kind not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, not {kind}")
    found: jax.Array = _compiled(
        rows.astype(np.int32), generator=tuple(numbers.reshape(-1).tolist()), dtype=kind,
        threads=_calls.thread_limit(threads),
    )  # fmt: skip
    return found


def _bind(patterns: Any, **parameters: Any) -> Any:
    return _primitive.bind(patterns, **parameters)


def _abstract(patterns: Any, *, dtype: np.dtype[Any], **_: Any) -> Any:
    return patterns.update(shape=(*patterns.shape, patterns.shape[-1]), dtype=dtype, weak_type=False)


def _lower(context: Any, patterns: Any, *, generator: tuple[float, ...], threads: int, **_: Any) -> Any:
    return ffi.ffi_lowering(_calls.DECODING_WEIGHTS)(
        context, patterns, generator=np.array(generator), columns=np.int64(context.avals_in[0].shape[-1]),
        threads=np.int64(threads),
    )  # fmt: skip


def _batch(operands: Any, axes: Any, **parameters: Any) -> Any:
    return _bind(jnp.moveaxis(operands[0], axes[0], 0), **parameters), 0


_compiled = jax.jit(_bind, static_argnames=("generator", "dtype", "threads"), inline=True)

_primitive.def_abstract_eval(_abstract)
_primitive.def_impl(_compiled)
batching.primitive_batchers[_primitive] = _batch
_calls.lower(_primitive, _lower, _cuda.decoding_weights)
