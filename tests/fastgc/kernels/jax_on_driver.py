"""JAX programs with the calls that GPUs get, run by a stand-in for CUDA's driver: a process of its own.

    python jax_on_driver.py STAND-IN NAME…

Runs the functions of these names and prints a JSON object: what was wrong, by name. XLA's CPU backend calls what its
CUDA backend would, see ``tests/csrc/cuda_driver.cpp``.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
import time
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import ffi
from jax.interpreters import mlir

import fastgc.jax
from fastgc import _xla, kernels, schemes
from fastgc.jax import _combine, _cuda, _lincomb, _weights
from fastgc.kernels import _cuda_tiles as tiles
from fastgc.kernels import _nvrtc

BRAIN = np.dtype(ml_dtypes.bfloat16)
driver: Any = None


def start(path: str) -> None:
    """Load the stand-in, and lower programs for CPUs as for GPUs."""
    global driver
    driver = ctypes.CDLL(path)
    driver.launched.restype = ctypes.c_char_p
    stages = (getattr(_xla.library(), f"fastgc_xla_cuda_{name}") for name in ("initialize", "execute"))
    driver.set_handlers(*(ctypes.cast(stage, ctypes.c_void_p) for stage in stages))
    ffi.register_ffi_target(_cuda.CALL, ffi.pycapsule(driver.emulated), platform="cpu")
    for primitive, rule in (
        (_lincomb._primitive, _cuda.lincomb),
        (_combine._primitive, _cuda.combine),
        (_weights._primitive, _cuda.decoding_weights),
    ):
        mlir.register_lowering(primitive, rule, platform="cpu")


def entries(chosen: tuple[tiles.Kernel, ...], architecture: int = 0) -> str:
    """What the stand-in looks at in PTX."""
    return "".join(f".visible .entry {kernel.name}(\n" for kernel in chosen)


def dtype(name: str) -> np.dtype[Any]:
    return BRAIN if name == "bfloat16" else np.dtype(name)


def numbers(*shape: int, kind: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(kind)


def check(got: Any, wanted: Any, *case: Any) -> None:
    """The same bits, type and shape, and made by launches."""
    got, wanted = np.asarray(got), np.asarray(wanted)  # which waits
    assert driver.launched(), ("nothing was launched", *case)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), case
    assert got.tobytes() == wanted.tobytes(), case


# Bits -----------------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1), (1, 7), (3, 5), (4, 4), (8, 9), (9, 3), (33, 40), (66, 17)]


def lincomb_in_every_type_and_tile() -> None:
    for pair in tiles.PAIRS:
        given, result = map(dtype, pair)
        cases, wanted = [], []
        for number, (P, Q) in enumerate(SHAPES):
            columns = tiles.choose(*pair, P, Q, "Items").columns
            length = [1, 33, columns, columns + 8, 7][number % 5]
            c, x = numbers(P, Q, kind=np.float64), numbers(Q, length, kind=given)
            before = numbers(P, length, kind=result, seed=1)
            cases.append((c, x, before))
            out = before.copy()
            wanted.append((kernels.lincomb(c, x, np.empty_like(out)), kernels.lincomb(c, x, out, accumulate=True)))

        def run(cases: Any, kind: Any = result) -> Any:
            plain = [fastgc.jax.lincomb(c, x, dtype=kind) for c, x, _ in cases]
            return list(zip(plain, [fastgc.jax.lincomb(*case, dtype=kind) for case in cases], strict=True))

        compiled = jax.jit(run)
        for offset in (0, 1):  # elements that every buffer is off a line
            driver.set_offset(offset)
            for shape, found, own in zip(SHAPES, jax.block_until_ready(compiled(cases)), wanted, strict=True):
                for got, right in zip(found, own, strict=True):
                    assert np.asarray(got).tobytes() == right.tobytes(), (pair, shape, offset)
            assert driver.launched().count(b"items_") == 2 * len(SHAPES)
    driver.set_offset(0)


def tables_that_no_argument_holds() -> None:
    for P, Q, length in [(2, 300, 70), (300, 2, 40), (7, 600, 9)]:
        c, x = numbers(P, Q), numbers(Q, length)
        check(fastgc.jax.lincomb(c, x), kernels.lincomb(c, x), P, Q)
        jax.block_until_ready(fastgc.jax.lincomb(c, x))
        assert b"write_piece" in driver.launched()


def denormal_numbers_are_kept() -> None:
    x = numbers(2, 500) * np.float32(1e-39)
    wanted = kernels.lincomb([[0.3, -0.7]], x)
    assert np.count_nonzero(wanted) > 250
    check(fastgc.jax.lincomb([[0.3, -0.7]], x), wanted)


AXES: list[tuple[int | None, ...]] = [
    *[axes for axes in itertools.product((None, 0, 1), repeat=2) if axes != (None, None)],
    (0, 0, 0), (None, 1, 0), (None, 2, None), (1, None, 2), (0, 1, None), (None, 0, 2),
]  # fmt: skip


def vmap_has_the_bits_of_a_loop() -> None:
    cases = list(itertools.product((7, 1028), AXES))
    arguments, wanted = [], []
    for length, axes in cases:
        arrays = [numbers(*shape) for shape in [(2, 3), (3, length), (2, length)]][: len(axes)]
        items = [
            [a if axis is None else a * np.float32(k + 1) for k in range(4)]
            for a, axis in zip(arrays, axes, strict=True)
        ]
        arguments.append(
            [item[0] if axis is None else np.stack(item, axis) for item, axis in zip(items, axes, strict=True)]
        )
        each = []
        for own in zip(*items, strict=True):
            out = own[2].copy() if len(own) > 2 else np.empty((2, length), np.float32)
            each.append(kernels.lincomb(own[0], own[1], out, accumulate=len(own) > 2))
        wanted.append(np.stack(each))

    def run(arguments: Any) -> Any:
        mapped = [jax.vmap(fastgc.jax.lincomb, in_axes=axes) for _, axes in cases]
        return [function(*own) for function, own in zip(mapped, arguments, strict=True)]

    found = jax.block_until_ready(jax.jit(run)(arguments))
    assert driver.launched().count(b"items_") == len(cases)  # one launch each, however many items
    for case, got, right in zip(cases, found, wanted, strict=True):
        assert np.asarray(got).tobytes() == right.tobytes(), case
    # Many small items, and items of which only some begin a line.
    for c, x in ((numbers(700, 2, 3), numbers(700, 3, 5)), (numbers(4, 1, 1), numbers(4, 1, 1029))):
        several = jax.vmap(fastgc.jax.lincomb)(c, x)
        check(several, np.stack([kernels.lincomb(a, b) for a, b in zip(c, x, strict=True)]))


def more_items_than_a_grid_has_layers() -> None:
    c, x = numbers(66_000, 1, 2), numbers(66_000, 2, 3)
    found = np.asarray(jax.vmap(fastgc.jax.lincomb)(c, x))
    assert driver.launched().decode().splitlines() == [f"items_float32_float32_1 1 1 {n}" for n in (65535, 465)]
    each = [0, 1, 65534, 65535, 65999]
    assert np.array_equal(found[each], np.stack([kernels.lincomb(c[i], x[i]) for i in each]))


def derivatives() -> None:
    c, x = numbers(3, 4), numbers(4, 600)
    of_c, of_x = jax.jit(jax.grad(lambda c, x: (fastgc.jax.lincomb(c, x) * 2).sum(), argnums=(0, 1)))(c, x)
    check(of_x, kernels.lincomb(c.T, np.full((3, 600), 2, np.float32)))
    np.testing.assert_allclose(of_c, np.tile(2 * x.sum(1), (3, 1)), rtol=1e-5)
    code = schemes.grouped(4, load=2, reduction=2)
    gradients = [tree(j, np.float32) for j in range(4)]

    def total(gradients: Any) -> Any:
        messages = {w: fastgc.jax.encode(code, w, [gradients[j] for j in code.assignment[w]]) for w in range(4)}
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(fastgc.jax.decode(code, messages, gradients[0])))

    summed = sum(flat(own) for own in gradients)
    for own in jax.jit(jax.grad(total))(gradients):
        np.testing.assert_allclose(flat(own), 2 * summed, rtol=1e-3, atol=1e-3)


def tree(seed: int, kind: Any) -> dict[str, Any]:
    shapes = {"bias": (7,), "empty": (0, 3), "scale": (), "weights": [(30, 7), (2, 3, 5)]}
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    found: dict[str, Any] = jax.tree.unflatten(
        structure, [jnp.asarray(numbers(*shape, kind=kind, seed=seed)) for shape in leaves]
    )
    return found


def flat(pytree: Any) -> Any:
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(pytree)])


CODES = [schemes.grouped(8, load=4, reduction=2), schemes.grouped(6, load=1, reduction=1), schemes.polynomial(5, 2, 2)]


def trees_are_encoded_and_decoded() -> None:
    for code, name in itertools.product(CODES, tiles.ELEMENTS):
        kind = dtype(name)
        gradients = [tree(j, kind) for j in range(code.partitions)]
        messages = {}
        for worker in range(code.stragglers, code.workers):
            held = [gradients[j] for j in code.assignment[worker]]
            messages[worker] = np.asarray(fastgc.jax.encode(code, worker, held))
            check(messages[worker], code.encode(worker, [flat(own) for own in held]), code.name, name)
        for result in dict.fromkeys((kind, np.dtype(np.float32))) if kind.itemsize < 8 else (kind,):
            total = jax.jit(lambda m, g=gradients, r=result, c=code: fastgc.jax.decode(c, m, g[0], dtype=r))(messages)
            check(flat(total), code.decode(messages, 248, dtype=result), code.name, name, result)


def vmap_of_encoding_and_decoding() -> None:
    code = schemes.grouped(8, load=2, reduction=2)  # four groups
    trees = [[tree(10 * i + j, np.float32) for j in range(2)] for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[own[0] for own in trees])
    mapped = jax.vmap(lambda first, second: fastgc.jax.encode(code, 1, [first, second]), in_axes=(0, None))
    wanted = [code.encode(1, [flat(trees[i][0]), flat(trees[0][1])]) for i in range(3)]
    check(mapped(stacked, trees[0][1]), np.stack(wanted))
    for kind in (np.dtype(np.float32), BRAIN):
        batches = {w: numbers(3, 5000, kind=kind, seed=w) for w in range(8)}
        shared = {0: None, **dict.fromkeys(range(1, 8), 0)}
        sent = {**batches, 0: batches[0][0]}
        found = jax.jit(jax.vmap(lambda m: fastgc.jax.decode(code, m, 9999), in_axes=(shared,)))(sent)
        each = [code.decode({w: sent[0] if w == 0 else sent[w][i] for w in range(8)}, 9999) for i in range(3)]
        check(found, np.stack(each), kind)


def weights_of_every_size() -> None:
    for k in (1, 5, 13, 17, 55, 66):
        generator = numbers(k + 3, k, kind=np.float64)
        patterns = np.array([np.random.default_rng(b).permutation(k + 3)[:k] for b in range(17 if k < 30 else 2)])
        wanted = kernels.decoding_weights(generator, patterns)
        check(fastgc.jax.decoding_weights(generator, patterns, dtype=np.float64), wanted, k)
        found = jax.jit(lambda p, g=generator: fastgc.jax.decoding_weights(g, p, dtype=np.float32))(patterns)
        check(found, wanted.astype(np.float32), k)
    mapped = jax.vmap(lambda p: fastgc.jax.decoding_weights(numbers(5, 2, kind=np.float64), p))
    patterns = np.array([[[0, 1], [2, 4]], [[1, 3], [4, 0]], [[3, 2], [0, 2]]])
    wanted = kernels.decoding_weights(numbers(5, 2, kind=np.float64), patterns.reshape(-1, 2)).reshape(3, 2, 2, 2)
    check(mapped(patterns), wanted)


def weights_that_a_cpu_refuses_are_nan() -> None:
    generator = np.vstack([numbers(4, 3, kind=np.float64), np.ones(3), np.ones(3) + 1e-14])
    patterns = np.array([[0, 1, 2], [0, 0, 1], [4, 5, 1], [0, 1, 6], [-1, 1, 2], [3, 2, 1]])
    found = np.asarray(fastgc.jax.decoding_weights(generator, patterns))
    assert driver.launched()
    assert np.isnan(found).all((1, 2)).tolist() == [False, True, True, True, True, False]
    assert np.array_equal(found[[0, 5]], kernels.decoding_weights(generator, patterns[[0, 5]]))


def survivors_that_a_program_finds() -> None:
    generator = schemes.grouped(4, load=4, reduction=2).decoder(0).code.generator
    messages = numbers(4, 1000, kind=np.float64)
    traced = jax.jit(lambda rows, m: fastgc.jax.lincomb(fastgc.jax.decoding_weights(generator, rows), m[rows]))
    for survivors in itertools.combinations(range(4), 2):
        weights = kernels.decoding_weights(generator, np.array(survivors))
        check(traced(np.array(survivors), messages), kernels.lincomb(weights, messages[list(survivors)]))


def coefficients_that_are_not_finite_go_their_way() -> None:
    found = jax.jit(lambda c, x: fastgc.jax.lincomb(jnp.log(c), x))(np.zeros((1, 2), np.float32), numbers(2, 5))
    assert not np.isfinite(found).any()
    driver.launched()


# The driver -----------------------------------------------------------------------------------------------------------


def kernels_are_loaded_once_for_each_device() -> None:
    call = jax.jit(lambda x: fastgc.jax.lincomb([[1.0, 2.0, 3.0]], x, dtype=np.float32))
    x = numbers(3, 5 * 2048 + 1, kind=np.float16)
    wanted = kernels.lincomb([[1.0, 2.0, 3.0]], x, np.empty((1, x.shape[1]), np.float32))
    before = driver.count_of_loads()
    for stream, at_once in ((0, 4), (1, 6), (0, 4)):
        driver.set_stream(stream)
        found = np.asarray(call(x))
        (launch,) = driver.launched().decode().splitlines()
        kernel = tiles.lincomb("float16", "float32", 1, "Items")
        grid = tiles.share(-(-x.shape[1] // kernel.columns), 1, at_once)
        assert launch == f"{kernel.name} 1 {grid} 1", (launch, grid)
        assert np.array_equal(found, wanted)
    driver.set_stream(0)
    assert driver.count_of_loads() - before <= 2  # others may have used the kernel before


def a_graph_replays_a_call() -> None:
    for skipped in (0, 1):  # loaded before the capture, or during it
        driver.set_capturing(1)
        driver.set_skip_initialize(skipped)
        P, Q = 11 + skipped, 13
        c, x = numbers(P, Q, kind=np.float64), numbers(Q, 300, kind=np.float64)
        check(fastgc.jax.lincomb(c, x), kernels.lincomb(c, x))
        code = schemes.grouped(4, load=1, reduction=1)
        messages = {w: numbers(2000, seed=w, kind=np.float16) for w in range(4)}
        check(fastgc.jax.decode(code, messages, 2000), code.decode(messages, 2000))
        before, k = driver.count_of_loads(), (8, 10)[skipped]  # whose kernel no other call has
        check(fastgc.jax.decoding_weights(c[:, :k], np.arange(k)), kernels.decoding_weights(c[:, :k], np.arange(k)))
        assert driver.count_of_loads() == before + 1
        driver.set_capturing(0)
        driver.set_skip_initialize(0)


def a_driver_that_refuses_says_why() -> None:
    generator, rows = numbers(41, 40, kind=np.float64), np.arange(40)  # a kernel that no other call has loaded
    call = jax.jit(lambda rows: fastgc.jax.decoding_weights(generator, rows))
    driver.set_refused_load(1)
    try:
        message = refusal(lambda: call(rows))
    finally:
        driver.set_refused_load(0)
    assert "fastgc: loading the kernels (ptxas fatal : too new): unsupported toolchain (CUDA error 222)" in message
    check(call(rows), kernels.decoding_weights(generator, rows))  # the next call tries again


def refusal(call: Any) -> str:
    try:
        jax.block_until_ready(call())
    except jax.errors.JaxRuntimeError as error:
        return str(error)
    raise AssertionError("no error")


def bad_attributes_are_refused() -> None:
    """A program can be made by anybody: what its attributes say is checked before memory is touched."""
    kernel = tiles.lincomb("float32", "float32", 1, "Items")
    code = entries((kernel,))
    good = [0, 1, 1, 1, 1, 4096, 12, 8, 0, 1 | 1 << 32, 0, 0, 1 << 62, 0, 0, 1 << 62, 0, (1 << 62) + (1 << 40), 0]
    x = jnp.ones(8, np.float32)

    def call(launches: list[int], names: str = kernel.name, shapes: Any = (256, 0), key: str = "k") -> Any:
        target = ffi.ffi_call(_cuda.CALL, [jax.ShapeDtypeStruct((8,), np.float32)])
        attributes = {"code": code, "kernels": names, "key": key}
        return target(x, launches=np.array(launches, np.int64), shapes=np.array(shapes, np.int64), **attributes)

    check(call(good)[0], np.ones(8, np.float32))
    changed = {
        "name a kernel that is not there": {0: 1},
        "expected work": {1: 0},
        "no more words than an argument has": {5: 8},
        "name a buffer that is not there": {15: (1 << 62) + (7 << 40)},
        "name a place beyond a buffer": {15: (1 << 62) + 32},
    }
    for message, change in changed.items():
        words = [change.get(i, word) for i, word in enumerate(good)]
        assert f"fastgc: launches: {message}" in refusal(lambda words=words: call(words)).replace(
            "expected no more", "no more"
        ), message
    assert "launches: end too early" in refusal(lambda: call(good[:-1]))
    assert "shapes: expected two numbers" in refusal(lambda: call(good, shapes=(256,), key="s"))
    assert "another: named symbol not found (CUDA error 500)" in refusal(lambda: call(good, names="another", key="n"))


# Alone ----------------------------------------------------------------------------------------------------------------


def without_a_driver() -> None:
    """Of a stand-in that is not the driver, in a process that has none, and then an old one."""
    x = numbers(2, 5)
    message = refusal(lambda: fastgc.jax.lincomb([[1.0, 1.0]], x))
    assert "fastgc: the CUDA driver cannot be loaded: libcuda.so.1" in message, message
    old = ctypes.CDLL(sys.argv[3])  # has the driver's name, and nothing in it
    message = refusal(lambda: fastgc.jax.lincomb([[1.0, 1.0]], x))
    assert "fastgc: the CUDA driver is too old: it has no cuGetErrorString" in message, (message, old)


def kept() -> None:
    """A program that a process compiles and another one finds in JAX's cache; the fourth argument says which it is."""
    jax.config.update("jax_compilation_cache_dir", sys.argv[3])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    c, x = numbers(3, 5), numbers(5, 2000)
    check(jax.jit(fastgc.jax.lincomb)(c, x), kernels.lincomb(c, x))
    assert events.count("/jax/compilation_cache/cache_hits") == (sys.argv[4] == "found"), events


def main() -> int:
    jax.config.update("jax_enable_x64", True)
    start(sys.argv[1])
    if sys.argv[2] != "kept":  # compiling takes most of the time, and the stand-in looks at no more than this
        _nvrtc.compiled = entries
    wrong = {}
    for name in sys.argv[2].split(","):
        began = time.process_time()
        try:
            globals()[name]()
            wrong[name] = ""
        except Exception:
            wrong[name] = traceback.format_exc()
        print(f"{name}: {time.process_time() - began:.1f} s", file=sys.stderr)
    print(json.dumps(wrong))
    return 0


if __name__ == "__main__":
    sys.exit(main())
