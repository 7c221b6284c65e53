"""Gradient coding inside JAX programs: the C++ kernels as XLA custom calls, without a detour by Python.

All functions work under ``jax.jit``, ``jax.vmap``, ``jax.shard_map`` and in derivatives of any order, and have the bits
of their namesakes for NumPy arrays. They run on CPUs, and on NVIDIA GPUs by the CUDA kernels. Imported by
``import fastgc.jax``; needs JAX.

On a CPU work is done on XLA's own threads: ``threads`` bounds how many a call uses, ``OMP_NUM_THREADS`` does not.
"""

from __future__ import annotations

from fastgc import _xla

if (_problem := _xla.problem()) is not None:
    raise ImportError(f"fastgc.jax: {_problem}")

from fastgc.jax._coding import decode, encode
from fastgc.jax._lincomb import lincomb
from fastgc.jax._weights import decoding_weights

__all__ = ["decode", "decoding_weights", "encode", "lincomb"]
