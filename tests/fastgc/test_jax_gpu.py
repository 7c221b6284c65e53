"""`fastgc.jax` on a GPU: the CPU's bits inside ``jit``, in graphs, on every device. Only by ``make test-gpu``.

What can be tested without a GPU is in ``kernels/test_jax_cuda.py``.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fastgc import _xla, kernels, schemes
from fastgc.kernels import _cuda_tiles as tiles

if (_problem := _xla.problem()) is not None:
    pytest.skip(f"fastgc.jax: {_problem}", allow_module_level=True)

import jax
import jax.numpy as jnp

import fastgc.jax


def _gpus() -> list[Any]:
    try:
        return list(jax.devices("cuda"))
    except RuntimeError:
        return []


pytestmark = [pytest.mark.gpu, pytest.mark.skipif("not _gpus()", reason="JAX has no CUDA device")]


@pytest.fixture(autouse=True)
def _doubles() -> Any:
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


def numbers(*shape: int, kind: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(kind)


def put(array: Any, device: int = 0) -> Any:
    return jax.device_put(array, _gpus()[device])


def check(got: Any, wanted: Any, *case: Any) -> None:
    assert {device.platform for device in got.devices()} == {"gpu"}, case
    got = np.asarray(got)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), case
    assert got.tobytes() == wanted.tobytes(), case


@pytest.mark.parametrize("pair", tiles.PAIRS, ids="-".join)
@pytest.mark.parametrize(("P", "Q"), [(1, 1), (1, 8), (4, 4), (8, 9), (9, 3), (33, 40), (66, 17), (2, 400)])
def test_lincomb_has_the_bits_of_the_cpu(P: int, Q: int, pair: tuple[str, str]) -> None:
    given, result = (jnp.dtype(name) for name in pair)
    columns = tiles.choose(*pair, P, Q, "Items").columns
    product = jax.jit(lambda c, x: fastgc.jax.lincomb(c, x, dtype=result))
    onto = jax.jit(lambda c, x, i: fastgc.jax.lincomb(c, x, i, dtype=result), donate_argnums=2)
    for length in (1, 33, columns, columns + 9, 300_007):
        c, x = numbers(P, Q, kind=np.float64), numbers(Q, length, kind=given)
        before = numbers(P, length, kind=result, seed=1)
        out = before.copy()
        check(product(c, put(x)), kernels.lincomb(c, x, np.empty_like(out)), length)
        check(onto(c, put(x), put(before)), kernels.lincomb(c, x, out, accumulate=True), length)


@pytest.mark.parametrize("name", tiles.ELEMENTS)
def test_round_trips_of_trees(name: str) -> None:
    kind = jnp.dtype(name)
    for code in (schemes.grouped(8, load=4, reduction=2), schemes.grouped(6, load=1, reduction=1)):
        leaves = [[numbers(100, 70, kind=kind, seed=j), numbers(11, kind=kind, seed=j)] for j in range(code.partitions)]
        flat = [np.concatenate([leaf.reshape(-1) for leaf in own]) for own in leaves]
        messages = {}
        for worker in range(code.stragglers, code.workers):
            held = code.assignment[worker]
            messages[worker] = jax.jit(lambda g, w=worker, c=code: fastgc.jax.encode(c, w, g))(
                put([leaves[j] for j in held])
            )
            check(messages[worker], code.encode(worker, [flat[j] for j in held]), code.name)
        total = jax.jit(lambda m, c=code: fastgc.jax.decode(c, m, 7011))(messages)
        check(total, code.decode({w: np.asarray(own) for w, own in messages.items()}, 7011), code.name)


def test_vmap_and_derivatives() -> None:
    for axes in ((0, 0), (None, 0), (0, None), (None, 1)):
        c, x = numbers(2, 3), numbers(3, 10_000)
        shape_c = c if axes[0] is None else np.stack([c * (k + 1) for k in range(4)]).astype(np.float32)
        shape_x = x if axes[1] is None else np.stack([x * (k + 1) for k in range(4)], axes[1]).astype(np.float32)
        wanted = [
            kernels.lincomb(
                c if axes[0] is None else shape_c[k], x if axes[1] is None else np.take(shape_x, k, axes[1])
            )
            for k in range(4)
        ]
        check(jax.jit(jax.vmap(fastgc.jax.lincomb, in_axes=axes))(shape_c, put(shape_x)), np.stack(wanted), axes)
    of_x = jax.jit(jax.grad(lambda x: fastgc.jax.lincomb(c, x).sum()))(put(x))
    check(of_x, kernels.lincomb(c.T, np.ones((2, 10_000), np.float32)))


@pytest.mark.parametrize("k", [1, 5, 8, 9, 17, 54, 55])
def test_decoding_weights(k: int) -> None:
    generator = numbers(k + 4, k, kind=np.float64)
    patterns = np.array([np.random.default_rng(b).permutation(k + 4)[:k] for b in range(1001)])
    wanted = kernels.decoding_weights(generator, patterns)
    found = jax.jit(lambda p: fastgc.jax.decoding_weights(generator, p, dtype=np.float64))(put(patterns))
    check(found, wanted)


def test_weights_that_a_cpu_refuses_are_nan() -> None:
    generator = np.vstack([numbers(4, 3, kind=np.float64), np.ones((2, 3))])
    patterns = put(np.array([[0, 1, 2], [0, 0, 1], [4, 5, 1], [0, 1, 6], [-1, 1, 2]]))
    found = np.asarray(jax.jit(lambda p: fastgc.jax.decoding_weights(generator, p))(patterns))
    assert np.isnan(found).all((1, 2)).tolist() == [False, True, True, True, True]


def test_calls_in_a_loop_of_the_program() -> None:
    """A program's body is what XLA makes a graph of, and replays."""
    c, x = numbers(4, 4) / 4, numbers(4, 100_003)
    looped = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, x: jnp.negative(fastgc.jax.lincomb(c, x)), x))
    wanted = x
    for _ in range(20):
        wanted = -kernels.lincomb(c, wanted)
    there = put(x)
    for _ in range(5):
        check(looped(there), wanted)


def test_one_program_serves_all_survivors() -> None:
    generator = schemes.grouped(4, load=4, reduction=2).decoder(0).code.generator
    messages = numbers(4, 100_000, kind=np.float64)
    traced = jax.jit(lambda rows, m: fastgc.jax.lincomb(fastgc.jax.decoding_weights(generator, rows), m[rows]))
    for survivors in itertools.combinations(range(4), 2):
        weights = kernels.decoding_weights(generator, np.array(survivors))
        check(traced(np.array(survivors), put(messages)), kernels.lincomb(weights, messages[list(survivors)]))


def test_every_device_has_its_kernels() -> None:
    c, x = numbers(2, 3), numbers(3, 5000)
    call = jax.jit(lambda x: fastgc.jax.lincomb(c, x))
    for device in range(len(_gpus())):
        check(call(put(x, device)), kernels.lincomb(c, x), device)
