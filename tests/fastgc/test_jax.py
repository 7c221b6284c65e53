"""The kernels inside JAX programs: NumPy's bits under every transformation, derivatives, and no detour by the host."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fastgc
from fastgc import NotDecodableError, _xla, kernels, schemes

if (_problem := _xla.problem()) is not None:
    pytest.skip(f"fastgc.jax: {_problem}", allow_module_level=True)

import jax
import jax.numpy as jnp
import ml_dtypes
from jax.test_util import check_grads

import fastgc.jax

SINGLE, DOUBLE, HALF, BRAIN = map(np.dtype, (np.float32, np.float64, np.float16, ml_dtypes.bfloat16))
PAIRS = [
    (SINGLE, SINGLE), (SINGLE, HALF), (SINGLE, BRAIN), (DOUBLE, DOUBLE), (HALF, HALF), (HALF, SINGLE), (BRAIN, BRAIN),
    (BRAIN, SINGLE),
]  # fmt: skip


@contextmanager
def _doubles() -> Iterator[None]:
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


@pytest.fixture
def doubles() -> Iterator[None]:
    with _doubles():
        yield


def numbers(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def same(got: Any, wanted: Any) -> bool:
    got, wanted = np.asarray(got), np.asarray(wanted)
    return got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes()


# lincomb --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "result"), PAIRS, ids=lambda kind: kind.name)
@pytest.mark.usefixtures("doubles")
def test_lincomb_has_numpys_bits(given: Any, result: Any) -> None:
    for P, Q, L in [(1, 1, 1), (3, 17, 1003), (8, 8, 64)]:
        coefficients, inputs = numbers(P, Q, dtype=np.float64), numbers(Q, L, dtype=given)
        before = numbers(P, L, dtype=result, seed=1)
        out = np.empty((P, L), result)
        assert same(fastgc.jax.lincomb(coefficients, inputs, dtype=result), kernels.lincomb(coefficients, inputs, out))
        wanted = kernels.lincomb(coefficients, inputs, before.copy(), accumulate=True)
        traced = jax.jit(lambda c, x, i, kind=result: fastgc.jax.lincomb(c, x, i, dtype=kind))
        assert same(traced(coefficients, inputs, before), wanted), (P, Q, L)


@pytest.mark.parametrize("threads", [None, 1, 2, 3])
def test_the_bits_do_not_depend_on_threads(threads: int | None) -> None:
    coefficients, inputs = numbers(3, 5), numbers(5, 400_003)
    assert same(fastgc.jax.lincomb(coefficients, inputs, threads=threads), kernels.lincomb(coefficients, inputs))


@pytest.mark.parametrize("length", [1000, 600_000])  # on the calling thread, and on XLA's
def test_denormal_numbers_are_kept_where_xla_flushes_them(length: int) -> None:
    inputs = numbers(2, length) * np.float32(1e-39)
    assert not np.asarray(jax.jit(lambda x: x * 1.5)(inputs)).any()
    wanted = kernels.lincomb([[0.3, -0.7]], inputs)
    assert np.count_nonzero(wanted) > length / 2
    assert same(fastgc.jax.lincomb([[0.3, -0.7]], inputs), wanted)
    assert not np.asarray(jax.jit(lambda x: x * 1.5)(inputs)).any()  # and XLA goes on as before


def test_one_thread_is_one_thread() -> None:
    coefficients, inputs = numbers(4, 4), jnp.asarray(numbers(4, 1_000_000))
    call = jax.jit(lambda x: fastgc.jax.lincomb(coefficients, x, threads=1))
    call(inputs).block_until_ready()

    def busy() -> float:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(5):
            call(inputs).block_until_ready()
        return (time.process_time() - cpu) / (time.perf_counter() - wall)

    assert min(busy() for _ in range(3)) < 1.4


def test_the_result_takes_the_place_of_a_donated_array() -> None:
    coefficients, inputs = numbers(2, 3), numbers(3, 4096)
    initial = jnp.array(numbers(2, 4096, seed=1))  # of its own memory
    wanted = kernels.lincomb(coefficients, inputs, np.array(initial), accumulate=True)
    place = initial.unsafe_buffer_pointer()
    got = jax.jit(fastgc.jax.lincomb, donate_argnums=2)(coefficients, inputs, initial)
    assert got.unsafe_buffer_pointer() == place
    assert initial.is_deleted()
    assert same(got, wanted)


def test_an_array_that_is_used_again_is_left_alone() -> None:
    coefficients, inputs, initial = numbers(2, 3), numbers(3, 100), jnp.asarray(numbers(2, 100, seed=1))
    before = np.array(initial)
    jax.jit(fastgc.jax.lincomb)(coefficients, inputs, initial)
    assert same(initial, before)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.usefixtures("doubles")
def test_derivatives_of_lincomb(order: int) -> None:
    c, x, i = (numbers(*shape, dtype=np.float64) for shape in [(3, 4), (4, 6), (3, 6)])
    check_grads(fastgc.jax.lincomb, (c, x), order, modes=["fwd", "rev"])
    check_grads(jax.jit(fastgc.jax.lincomb), (c, x, i), order, modes=["fwd", "rev"])


@pytest.mark.parametrize(("given", "result"), [p for p in PAIRS if DOUBLE not in p], ids=lambda kind: kind.name)
def test_derivatives_have_the_types_of_what_they_are_taken_in(given: Any, result: Any) -> None:
    c, x = jnp.asarray(numbers(3, 4)), jnp.asarray(numbers(4, 6)).astype(given)
    of_c, of_x = jax.grad(lambda c, x: fastgc.jax.lincomb(c, x, dtype=result).astype(np.float32).sum(), argnums=(0, 1))(
        c, x
    )
    assert (of_c.dtype, of_x.dtype) == (np.float32, given)
    assert same(of_x, kernels.lincomb(c.T, np.ones((3, 6), result), np.empty((4, 6), given)))
    np.testing.assert_allclose(of_c, np.tile(np.asarray(x, np.float32).sum(1), (3, 1)), rtol=1e-5)


@pytest.mark.usefixtures("doubles")
def test_derivatives_of_a_composition() -> None:
    c, x = numbers(3, 4, dtype=np.float64), numbers(4, 5, dtype=np.float64)

    def composed(c: Any, x: Any) -> Any:
        squares = jnp.sin(fastgc.jax.lincomb(c, x)) ** 2
        return fastgc.jax.lincomb(c.T, squares, x).sum()

    hessian = jax.jit(jax.hessian(composed, argnums=1))(c, x)
    plain = jax.hessian(lambda x: ((c.T @ jnp.sin(c @ x) ** 2) + x).sum())(x)
    np.testing.assert_allclose(hessian, plain, atol=1e-12)


AXES: list[tuple[int | None, ...]] = [
    *[axes for axes in itertools.product((None, 0, 1, 2), repeat=2) if axes != (None, None)],
    (0, 0, 0), (None, 1, 0), (None, 2, None), (1, None, 2), (0, 1, None), (None, None, 1), (None, 0, 2),
    (2, None, None),
]  # fmt: skip


def test_vmap_has_the_bits_of_a_loop() -> None:
    for axes in AXES:
        arrays = [numbers(*shape) for shape in [(2, 3), (3, 7), (2, 7)]][: len(axes)]
        items = [
            [a if axis is None else a * np.float32(k + 1) for k in range(4)]
            for a, axis in zip(arrays, axes, strict=True)
        ]
        stacked = [item[0] if axis is None else np.stack(item, axis) for item, axis in zip(items, axes, strict=True)]
        mapped = jax.vmap(fastgc.jax.lincomb, in_axes=axes)
        wanted = np.stack([fastgc.jax.lincomb(*own) for own in zip(*items, strict=True)])
        assert same(jax.jit(mapped)(*stacked), wanted), axes
        program = str(jax.make_jaxpr(mapped)(*stacked))
        assert program.count("fastgc_lincomb") == 1, axes
        assert "scan" not in program, axes


@pytest.mark.usefixtures("doubles")
def test_vmap_of_vmap_and_of_derivatives() -> None:
    c, x = numbers(2, 3, 4, dtype=np.float64), numbers(2, 5, 4, 6, dtype=np.float64)
    nested = jax.vmap(jax.vmap(fastgc.jax.lincomb, in_axes=(None, 0)))
    assert same(nested(c, x), np.stack([[kernels.lincomb(c[i], x[i, j]) for j in range(5)] for i in range(2)]))
    check_grads(jax.jit(nested), (c, x), 1, modes=["fwd", "rev"])
    crossed = jax.vmap(jax.vmap(fastgc.jax.lincomb, in_axes=(0, None)), in_axes=(None, 0))
    assert same(crossed(c, x[0]), np.stack([[kernels.lincomb(c[i], x[0, j]) for i in range(2)] for j in range(5)]))
    check_grads(jax.jit(crossed), (c, x[0]), 1, modes=["fwd", "rev"])
    each = jax.vmap(jax.grad(lambda c, x: (fastgc.jax.lincomb(c, x) ** 2).sum()), in_axes=(None, 0))(c[0], x[0])
    np.testing.assert_allclose(each, [2 * (c[0] @ x[0, j]) @ x[0, j].T for j in range(5)], rtol=1e-12)


def test_a_large_batch_of_small_calls_is_shared_by_threads() -> None:
    c, x = numbers(700, 2, 3), numbers(700, 3, 500)
    assert same(
        jax.vmap(fastgc.jax.lincomb)(c, x), np.stack([kernels.lincomb(a, b) for a, b in zip(c, x, strict=True)])
    )


def test_calls_at_the_same_time_wait_for_nobody() -> None:
    c, x = numbers(3, 4), jnp.asarray(numbers(4, 300_000))
    wanted = kernels.lincomb(c, np.asarray(x))
    call = jax.jit(lambda x: fastgc.jax.lincomb(c, x))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: call(x), range(64), timeout=60))
    assert all(same(result, wanted) for result in found)


def test_programs_call_the_kernels_and_not_the_host() -> None:
    code = schemes.grouped(4, load=4, reduction=2)
    calls: dict[str, tuple[Callable[..., Any], Any]] = {
        "fastgc_lincomb": (lambda x: fastgc.jax.lincomb(numbers(2, 4), x), numbers(4, 10)),
        "fastgc_combine": (lambda g: fastgc.jax.encode(code, 1, g), numbers(4, 11)),
        "fastgc_decoding_weights": (
            lambda p: fastgc.jax.decoding_weights(numbers(4, 2), p), np.arange(2, dtype=np.int32)
        ),
    }  # fmt: skip
    for name, (function, argument) in calls.items():
        lowered = jax.jit(function).lower(argument)
        for text in (lowered.as_text(), lowered.compile().as_text()):
            assert name in text
            assert "callback" not in text
        assert lowered.as_text().count("custom_call") == 1


BAD_LINCOMB: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fastgc.jax.lincomb(np.ones((2, 3)), numbers(4, 5)), ValueError, r"\(2, 3\) and \(4, 5\)"),
    (lambda: fastgc.jax.lincomb(np.ones(3), numbers(3, 5)), ValueError, r"shapes \(P, Q\) and \(Q, L\)"),
    (lambda: fastgc.jax.lincomb(np.ones((2, 3)), numbers(3, 0)), ValueError, "none empty"),
    (lambda: fastgc.jax.lincomb([[1.0, np.inf]], numbers(2, 5)), ValueError, r"coefficients\[0, 1\].*finite.*inf"),
    (lambda: fastgc.jax.lincomb([[1.0, 1e39]], numbers(2, 5)), ValueError, r"coefficients\[0, 1\].*float32.*1e\+39"),
    (lambda: fastgc.jax.lincomb([[1j, 1]], numbers(2, 5)), TypeError, "coefficients must be real numbers"),
    (lambda: fastgc.jax.lincomb(jnp.array([[1j, 1]]), numbers(2, 5)), TypeError, "coefficients must be real numbers"),
    (lambda: fastgc.jax.lincomb(np.ones((1, 2)), np.ones((2, 5), np.int32)), TypeError, "inputs must be.*not int32"),
    (lambda: fastgc.jax.lincomb(np.ones((1, 2)), "no"), TypeError, "inputs must be arrays of numbers, not str"),
    (lambda: fastgc.jax.lincomb([[1, 1]], numbers(2, 5, dtype=HALF), dtype=BRAIN), TypeError, "dtype must be"),
    (lambda: fastgc.jax.lincomb([[1, 1]], numbers(2, 5), dtype=DOUBLE), TypeError, "dtype must be.*not float64"),
    (lambda: fastgc.jax.lincomb([[1, 1]], numbers(2, 5), numbers(2, 5)), ValueError, r"initial must have.*\(1, 5\)"),
    (
        lambda: fastgc.jax.lincomb([[1, 1]], numbers(2, 5), numbers(1, 5, dtype=HALF)), TypeError,
        "initial must have element type float32",
    ),
    (lambda: fastgc.jax.lincomb([[1, 1]], numbers(2, 5), threads=0), ValueError, "threads must be"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD_LINCOMB, ids=[m for *_, m in BAD_LINCOMB])
def test_bad_arguments_of_lincomb(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_traced_coefficients_that_are_not_finite_are_an_error_of_the_call() -> None:
    call = jax.jit(lambda c, x: fastgc.jax.lincomb(jnp.log(c), x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="fastgc: coefficients: expected finite numbers, got -inf"):
        call(np.zeros((1, 2), np.float32), numbers(2, 5)).block_until_ready()
    assert np.isfinite(call(np.ones((1, 2), np.float32), numbers(2, 5))).all()


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("doubles")
def test_decoding_weights_have_numpys_bits() -> None:
    generator = numbers(7, 3, dtype=np.float64)
    patterns = np.array(list(itertools.permutations(range(7), 3)))
    wanted = kernels.decoding_weights(generator, patterns)
    assert same(fastgc.jax.decoding_weights(generator, patterns), wanted)
    traced = jax.jit(lambda rows: fastgc.jax.decoding_weights(generator, rows, dtype=np.float32))
    assert same(traced(patterns), wanted.astype(np.float32))
    assert same(traced(patterns[5]), wanted[5].astype(np.float32))
    mapped = jax.vmap(traced, in_axes=1)(patterns.reshape(-1, 2, 3))
    assert same(mapped, wanted.astype(np.float32).reshape(-1, 2, 3, 3).swapaxes(0, 1))


def test_one_program_decodes_from_whoever_answered() -> None:
    generator = schemes.grouped(4, load=4, reduction=2).decoder(0).code.generator
    messages = numbers(4, 1000)
    traced = jax.jit(lambda rows, m: fastgc.jax.lincomb(fastgc.jax.decoding_weights(generator, rows), m[rows]))
    for survivors in itertools.combinations(range(4), 2):
        weights = kernels.decoding_weights(generator, np.array(survivors))
        assert same(traced(np.array(survivors), messages), kernels.lincomb(weights, messages[list(survivors)]))


BAD_WEIGHTS: list[tuple[Any, Any, type[Exception], str]] = [
    (np.ones((3, 2)), [0, 1], jax.errors.JaxRuntimeError, r"patterns\[0\]: rows 0, 1 of the generator are dependent"),
    (numbers(3, 2), [[0, 1], [1, 3]], jax.errors.JaxRuntimeError, r"patterns\[1\]: rows 1, 3 must be among"),
    (numbers(3, 2), [-1, 1], jax.errors.JaxRuntimeError, r"patterns\[0\]: rows -1, 1 must be among"),
    (numbers(3, 2), [1, 1], jax.errors.JaxRuntimeError, r"patterns\[0\]: rows 1, 1 must be different"),
    (numbers(3, 2), [0, 1, 2], ValueError, r"patterns must have shape \(B, 2\) or \(2,\)"),
    (numbers(3, 2), [0.0, 1.0], TypeError, "patterns must be integers, not float32"),
    (numbers(2, 3), [0, 1, 2], ValueError, "generator must have shape"),
    (np.full((3, 2), np.nan), [0, 1], ValueError, "generator must be finite"),
]


@pytest.mark.parametrize(("generator", "patterns", "error", "message"), BAD_WEIGHTS, ids=[m for *_, m in BAD_WEIGHTS])
def test_bad_arguments_of_decoding_weights(generator: Any, patterns: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        jax.block_until_ready(fastgc.jax.decoding_weights(generator, np.array(patterns)))


# Gradients that are trees ---------------------------------------------------------------------------------------------

CODES = [schemes.grouped(8, load=4, reduction=2), schemes.polynomial(5, 2, 2), schemes.uncoded(3)]


def tree(seed: int, dtype: Any = np.float32) -> dict[str, Any]:
    shapes = {"bias": (7,), "empty": (0, 3), "scale": (), "weights": [(30, 7), (2, 3, 5)]}
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    arrays = [numbers(*shape, dtype=dtype, seed=seed) for shape in leaves]
    found: dict[str, Any] = jax.tree.unflatten(structure, [jnp.asarray(a) for a in arrays])
    return found


def flat(pytree: Any) -> Any:
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(pytree)])


def stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE, HALF, BRAIN], ids=lambda kind: kind.name)
@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
@pytest.mark.usefixtures("doubles")
def test_round_trips_of_trees_have_numpys_bits(code: fastgc.GradientCode, dtype: Any) -> None:
    gradients = [tree(j, dtype) for j in range(code.partitions)]
    survivors = range(code.stragglers, code.workers)
    messages = {}
    for worker in survivors:
        held = [gradients[j] for j in code.assignment[worker]]
        wanted = code.encode(worker, [flat(own) for own in held])
        messages[worker] = fastgc.jax.encode(code, worker, held)
        assert same(messages[worker], wanted)
        if worker == code.workers - 1:
            assert same(fastgc.jax.encode(code, worker, stack(held), stacked=True), wanted)
            assert same(fastgc.jax.encode(code, worker, np.stack([flat(own) for own in held])), wanted)
    total = jax.jit(lambda messages: fastgc.jax.decode(code, messages, gradients[0]))(messages)
    assert jax.tree.map(jnp.shape, total) == jax.tree.map(jnp.shape, gradients[0])
    wanted = code.decode({worker: np.asarray(own) for worker, own in messages.items()}, flat(total).size)
    assert same(flat(total), wanted)
    assert same(fastgc.jax.decode(code, messages, wanted.size), wanted)


def test_messages_of_a_half_type() -> None:
    code = schemes.grouped(4, load=4, reduction=2)
    gradients = [tree(j) for j in range(4)]
    for kind in (HALF, BRAIN):
        messages = {w: fastgc.jax.encode(code, w, gradients, dtype=kind) for w in (1, 2)}
        size = flat(gradients[0]).size
        out = np.empty(code.message_length(size), kind)
        assert same(messages[1], code.encode(1, [flat(own) for own in gradients], out))
        received = {w: np.asarray(own) for w, own in messages.items()}
        assert same(flat(fastgc.jax.decode(code, messages, gradients[0])), code.decode(received, size, dtype=SINGLE))
        assert same(fastgc.jax.decode(code, messages, size), code.decode(received, size))
        numpys = {"all": np.zeros(size)}  # float64, which JAX takes as float32
        assert same(flat(fastgc.jax.decode(code, messages, numpys)), code.decode(received, size, dtype=SINGLE))


@pytest.mark.usefixtures("doubles")
def test_derivatives_of_encoding_and_decoding() -> None:
    code = schemes.grouped(4, load=2, reduction=2)  # two groups
    held = [tree(j, DOUBLE) for j in code.assignment[0]]
    check_grads(lambda g: fastgc.jax.encode(code, 0, g), (held,), 2, modes=["fwd", "rev"])
    check_grads(lambda g: fastgc.jax.encode(code, 0, g, stacked=True), (stack(held),), 1, modes=["fwd", "rev"])
    messages = {w: numbers(code.message_length(248), dtype=np.float64, seed=w) for w in range(4)}
    check_grads(lambda m: fastgc.jax.decode(code, m, held[0]), (messages,), 2, modes=["fwd", "rev"])


@pytest.mark.usefixtures("doubles")
def test_the_round_trip_has_the_derivative_of_the_sum() -> None:
    code = schemes.grouped(8, load=4, reduction=2)
    gradients = [tree(j, DOUBLE) for j in range(8)]

    def total(gradients: Any) -> Any:
        held = {w: [gradients[j] for j in code.assignment[w]] for w in (0, 2, 3, 5, 6)}
        messages = {w: fastgc.jax.encode(code, w, own) for w, own in held.items()}
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(fastgc.jax.decode(code, messages, gradients[0])))

    found = jax.jit(jax.grad(total))(gradients)
    summed = sum(flat(own) for own in gradients)
    for own in found:
        np.testing.assert_allclose(flat(own), 2 * summed, rtol=1e-9, atol=1e-9)


def test_vmap_of_encoding_and_decoding() -> None:
    code = schemes.grouped(4, load=4, reduction=2)
    trees = [[tree(10 * i + j) for j in range(4)] for i in range(3)]
    encode = lambda *held: fastgc.jax.encode(code, 1, held)  # noqa: E731
    batches = [stack([trees[i][j] for i in range(3)]) for j in range(4)]
    assert same(jax.vmap(encode)(*batches), np.stack([encode(*trees[i]) for i in range(3)]))
    mixed = jax.vmap(encode, in_axes=(0, None, 0, None))(batches[0], trees[0][1], batches[2], trees[0][3])
    assert same(mixed, np.stack([encode(trees[i][0], trees[0][1], trees[i][2], trees[0][3]) for i in range(3)]))
    nested = jax.vmap(jax.vmap(encode, in_axes=(0, None, None, None)), in_axes=(None, 0, None, None))
    wanted = np.stack(
        [[encode(trees[i][0], trees[k][1], trees[0][2], trees[0][3]) for i in range(3)] for k in range(3)]
    )
    got = nested(batches[0], batches[1], trees[0][2], trees[0][3])
    assert same(got, wanted)
    of_shared = jax.grad(lambda shared: (mixed_sum(encode, batches, trees, shared) ** 2).sum())(trees[0][1])
    each = [
        jax.grad(lambda s, i=i: (encode(trees[i][0], s, trees[i][2], trees[0][3]) ** 2).sum())(trees[0][1])
        for i in range(3)
    ]
    np.testing.assert_allclose(flat(of_shared), sum(flat(own) for own in each), rtol=2e-4, atol=1e-5)


def mixed_sum(encode: Any, batches: Any, trees: Any, shared: Any) -> Any:
    return jax.vmap(encode, in_axes=(0, None, 0, None))(batches[0], shared, batches[2], trees[0][3])


def test_other_survivors_use_the_program_there_is() -> None:
    from fastgc.jax import _combine

    code = schemes.grouped(4, load=4, reduction=2)
    messages = [numbers(501, seed=w) for w in range(4)]
    found = fastgc.jax.decode(code, {0: messages[0], 1: messages[1]}, 1001)
    programs = _combine._compiled._cache_size()
    for pair in itertools.combinations(range(4), 2):
        received = {w: messages[w] for w in pair}
        found = fastgc.jax.decode(code, received, 1001)
        assert same(found, code.decode(received, 1001))
    assert _combine._compiled._cache_size() == programs


def test_estimates_where_too_few_have_answered() -> None:
    code = schemes.grouped(8, load=4, reduction=2)
    messages = {w: numbers(50, seed=w) for w in (0, 1, 5)}
    with pytest.raises(NotDecodableError):
        fastgc.jax.decode(code, messages, 99)
    for how in (True, "one_step", "unbiased"):
        assert same(fastgc.jax.decode(code, messages, 99, approximate=how), code.decode(messages, 99, approximate=how))


GROUPED = schemes.grouped(4, load=4, reduction=2)
BAD_TREES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fastgc.jax.encode(GROUPED, 4, [tree(0)] * 4), ValueError, "worker must be"),
    (lambda: fastgc.jax.encode(GROUPED, 0, [tree(0)] * 3), ValueError, "gradients must be 4.*not 3"),
    (lambda: fastgc.jax.encode(GROUPED, 0, tree(0)), TypeError, "sequence of pytrees, not dict"),
    (lambda: fastgc.jax.encode(GROUPED, 0, numbers(3, 9)), ValueError, r"4 in the first axis.*\(3, 9\)"),
    (
        lambda: fastgc.jax.encode(GROUPED, 0, [tree(0)] * 3 + [{"bias": numbers(7)}]), ValueError,
        r"gradients\[3\] must have the structure",
    ),
    (
        lambda: fastgc.jax.encode(GROUPED, 0, [numbers(7)] * 3 + [numbers(8)]), ValueError,
        r"gradients\[3\] must have the shapes of gradients\[0\], \[\(7,\)\], not \[\(8,\)\]",
    ),
    (
        lambda: fastgc.jax.encode(GROUPED, 0, [[numbers(7), numbers(7, dtype=HALF)]] * 4), TypeError,
        "one element type, not float16, float32",
    ),
    (lambda: fastgc.jax.encode(GROUPED, 0, [()] * 4), ValueError, "at least one array"),
    (lambda: fastgc.jax.decode(GROUPED, [numbers(5)], 9), TypeError, "messages must be a mapping"),
    (lambda: fastgc.jax.decode(GROUPED, {0: numbers(5), 9: numbers(5)}, 9), ValueError, "messages"),
    (lambda: fastgc.jax.decode(GROUPED, {0: numbers(5), 1: numbers(4)}, 9), ValueError, r"messages\[1\].*\(5,\)"),
    (lambda: fastgc.jax.decode(GROUPED, {0: numbers(5), 1: numbers(5)}, 0), ValueError, "like must be"),
    (
        lambda: fastgc.jax.decode(GROUPED, {0: numbers(5), 1: numbers(5, dtype=HALF)}, 9), TypeError,
        "one element type, not float16, float32",
    ),
    (lambda: fastgc.jax.decode(GROUPED, {0: numbers(5)}, 9), NotDecodableError, "survivors"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD_TREES, ids=[m for *_, m in BAD_TREES])
def test_bad_trees(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Several devices, and where it cannot be used -------------------------------------------------------------------------


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )


def test_several_cpu_devices() -> None:
    result = run(
        """
        from functools import partial
        import jax, jax.numpy as jnp, numpy as np
        import fastgc.jax
        from fastgc import kernels, schemes
        from jax.sharding import Mesh, PartitionSpec as P

        assert len(jax.devices()) == 4
        mesh = Mesh(np.array(jax.devices()), ("i",))
        shard_map = partial(jax.shard_map, mesh=mesh)
        random = np.random.default_rng(0)
        c = random.standard_normal((3, 4)).astype(np.float32)
        x = random.standard_normal((4, 400_000)).astype(np.float32)
        wanted = kernels.lincomb(c, x)

        columns = jax.jit(shard_map(fastgc.jax.lincomb, in_specs=(P(), P(None, "i")), out_specs=P(None, "i")))
        assert np.array_equal(columns(c, x), wanted)
        square = lambda f: jax.grad(lambda c, x: (f(c, x) ** 2).mean(), argnums=(0, 1))
        for got, alone in zip(square(columns)(c, x), square(fastgc.jax.lincomb)(c, x)):
            np.testing.assert_allclose(got, alone, rtol=1e-4, atol=1e-7)
        assert np.array_equal(jax.pmap(lambda x: fastgc.jax.lincomb(c, x))(np.stack([x] * 4)), [wanted] * 4)
        sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, P(None, "i")))
        assert np.array_equal(jax.jit(fastgc.jax.lincomb)(c, sharded), wanted)

        # A worker on every device: each sends its message to all, who decode it from two.
        code = schemes.grouped(4, load=4, reduction=2)
        gradients = random.standard_normal((4, 1001)).astype(np.float32)
        def work(gradients):
            own = jax.lax.switch(
                jax.lax.axis_index("i"), [partial(fastgc.jax.encode, code, w) for w in range(4)], gradients
            )
            messages = jax.lax.all_gather(own, "i")
            return fastgc.jax.decode(code, {w: messages[w] for w in (0, 2)}, 1001)[None]
        totals = jax.jit(shard_map(work, in_specs=P(), out_specs=P("i")))(gradients)
        assert np.array_equal(totals, [code.decode({w: code.encode(w, gradients) for w in (0, 2)}, 1001)] * 4)
        print("done")
        """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
        JAX_PLATFORMS="cpu",
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_a_library_for_a_newer_xla_is_never_shown_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # XLA's CPU backend does not start where a library that it refuses is registered.
    built = divmod(_xla.library().fastgc_xla_version(), 1000)
    assert _xla.problem() is None
    assert built <= _xla._offered()
    for offered in [(0, built[1] - 1), (built[0] + 1, 0)]:
        monkeypatch.setattr(_xla, "_offered", lambda offered=offered: offered)
        message = f"version {built[0]}.{built[1]} of XLA's .* jaxlib has {offered[0]}.{offered[1]}: update jaxlib"
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(_xla.problem())


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(_xla, "version", lambda name: "0.4.38")
        assert str(_xla.problem()) == "JAX 0.4.38 is too old: 0.6 or newer is needed"
    with monkeypatch.context() as patched:
        patched.setattr(_xla, "find_spec", lambda name: None)
        assert str(_xla.problem()) == "JAX is not installed: pip install jax"
    result = run(
        """
        from fastgc import _xla
        _xla._FILE = "none.so"
        try:
            import fastgc.jax
        except ImportError as error:
            print(error)
        """
    )
    assert result.stdout.startswith("fastgc.jax: this build of fastgc has no library of XLA's custom calls"), result
