"""What the custom calls share: their registration with XLA, the element types, and what becomes of coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import ffi
from jax.interpreters import mlir

from fastgc import _checks, _xla
from fastgc.jax import _cuda

LINCOMB = "fastgc_lincomb"
COMBINE = "fastgc_combine"
DECODING_WEIGHTS = "fastgc_decoding_weights"

for _name in (LINCOMB, COMBINE, DECODING_WEIGHTS):
    _handler = getattr(_xla.library(), _name.replace("fastgc_", "fastgc_xla_"))
    ffi.register_ffi_target(_name, ffi.pycapsule(_handler), platform="cpu")

_STAGES = {name: getattr(_xla.library(), f"fastgc_xla_cuda_{name}") for name in ("initialize", "execute")}
ffi.register_ffi_target(
    _cuda.CALL, {name: ffi.pycapsule(handler) for name, handler in _STAGES.items()}, platform="CUDA"
)


def lower(primitive: Any, on_cpu: Any, on_cuda: Any) -> None:
    """Make a primitive a custom call on CPUs and NVIDIA GPUs, and an error elsewhere."""

    def elsewhere(context: Any, *operands: Any, **parameters: Any) -> NoReturn:
        platforms = ", ".join(context.module_context.platforms)
        raise NotImplementedError(
            f"fastgc.jax computes on CPUs and NVIDIA GPUs only, and this program is for {platforms}: run it under "
            "jax.default_device(jax.devices('cpu')[0])"
        )

    mlir.register_lowering(primitive, elsewhere)
    mlir.register_lowering(primitive, on_cpu, platform="cpu")
    mlir.register_lowering(primitive, on_cuda, platform="cuda")


def thread_limit(threads: int | None) -> int:
    """The limit as the custom calls take it: 0 for none."""
    return 0 if threads is None else min(_checks.integer("threads", threads, 1), 1 << 20)


def result_type(name: str, given: Any, dtype: npt.DTypeLike | None) -> np.dtype[Any]:
    """The element type of the result for rows of a type."""
    kind: np.dtype[Any] = _checks.element_type(name, given)
    if dtype is None:
        return kind
    wanted: np.dtype[Any] = _checks.element_type("dtype", dtype)
    if not _checks.converts(kind, wanted):
        raise TypeError(f"dtype must be an element type that {kind} is combined into, not {wanted}")
    return wanted


def array(name: str, value: Any) -> jax.Array:
    """A JAX array, traced or not, as it is, and anything else as one."""
    if isinstance(value, jax.Array):
        return value
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be arrays of numbers, not {type(value).__name__} ({error})") from None


def coefficients_for(kind: np.dtype[Any], coefficients: Any) -> jax.Array | npt.NDArray[Any]:
    """Coefficients in the type that rows of a type are combined in, rounded once.

    NumPy's where they are known: a compiled program takes them faster than JAX makes an array of them.
    """
    compute = _checks.compute_type(kind)
    if isinstance(coefficients, jax.Array):
        if not jnp.issubdtype(coefficients.dtype, jnp.floating) and not jnp.issubdtype(coefficients.dtype, jnp.integer):
            raise TypeError(f"coefficients must be real numbers, not {coefficients.dtype}")
        return coefficients if coefficients.dtype == compute else coefficients.astype(compute)
    numbers = _checks.real_numbers("coefficients", coefficients)
    with np.errstate(over="ignore"):
        rounded = numbers.astype(compute)
    if not np.isfinite(rounded).all():
        where = tuple(np.argwhere(~np.isfinite(rounded))[0].tolist())
        raise ValueError(f"coefficients{list(where)} must be finite in {compute}, not {numbers[where]}")
    return rounded


def varying_alike(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Arrays that differ between devices in the same axes of a mesh, as operands of one call inside ``shard_map``."""
    axes = [_axes(jax.typeof(array)) for array in arrays]
    every = frozenset().union(*axes)
    return [_varying(array, every - own) if every - own else array for array, own in zip(arrays, axes, strict=True)]


def _axes(aval: Any) -> frozenset[Any]:
    kind = getattr(aval, "mat", None)  # since JAX 0.10
    found: frozenset[Any] = aval.vma if kind is None else kind.varying
    return found


def _varying(array: jax.Array, axes: frozenset[Any]) -> jax.Array:
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, tuple(axes), to="varying")
    return jax.lax.pvary(array, tuple(axes))  # its name before JAX 0.8
