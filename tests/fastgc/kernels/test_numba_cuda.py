"""lincomb for Numba's CUDA target, in its simulator: a process of its own, as the environment chooses the simulator."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import numpy as np
from numba import cuda

from fastgc import kernels
from fastgc.kernels import numba_cuda

rng = np.random.default_rng(0)


def by_steps(c, x, start):
    # The simulator's fma rounds product and sum one by one.
    with np.errstate(all="ignore"):
        for q in range(x.shape[0]):
            start = c[:, q : q + 1] * x[q].astype(c.dtype) + start
    return start


for kind, result in (("f4", "f4"), ("f8", "f8"), ("f2", "f2"), ("f2", "f4")):
    for P, Q, length, blocks in ((1, 1, 1, 1), (2, 3, 40, 1), (3, 2, 300, 1), (1, 2, 600, 2)):
        c = rng.standard_normal((P, Q))
        x = rng.standard_normal((Q, length)).astype(kind)
        before = rng.standard_normal((P, length)).astype(result)
        for accumulate in (False, True):
            out = cuda.to_device(before)
            numba_cuda.lincomb(c, cuda.to_device(x), out, accumulate, blocks=blocks)
            wide = c.astype("f8" if kind == "f8" else "f4")
            start = before.astype(wide.dtype) if accumulate else np.full(before.shape, -0.0, wide.dtype)
            wanted = by_steps(wide, x, start).astype(result)
            assert out.copy_to_host().tobytes() == wanted.tobytes(), (kind, result, P, Q, length, accumulate)
            fused = kernels.lincomb(c, x, before.copy(), accumulate=accumulate)
            unit = float(np.finfo(wide.dtype).eps) * Q + (float(np.finfo(result).eps) if result == "f2" else 0)
            size = np.abs(wide) @ np.abs(x.astype("f8")) + np.abs(before)
            assert (np.abs(fused.astype("f8") - wanted) <= 2 * unit * size).all()


@cuda.jit
def mine(c, x, out):
    column = cuda.grid(1)
    if column < out.shape[0]:
        out[column] = 2 * numba_cuda.chain(c, x, 0, column, np.float32(-0.0))


c, x, out = np.ones((1, 2), "f4"), np.ones((2, 5), "f4"), np.zeros(5, "f4")
mine[1, 32](c, x, out)
assert (out == 4).all()

there = cuda.to_device(x)
good = {"coefficients": [[1, 1]], "inputs": there, "out": cuda.to_device(np.full((1, 5), 7, "f4"))}
for change, error, text in (
    ({"inputs": x}, TypeError, "inputs: expected a device array of Numba, got ndarray"),
    ({"inputs": cuda.to_device(x.astype("i4"))}, TypeError, "inputs: expected dtype float32, float64 or float16"),
    ({"inputs": cuda.to_device(x[0])}, ValueError, "inputs: expected at least one row and column, got shape (5,)"),
    ({"out": cuda.to_device(np.ones((1, 5)))}, TypeError, "out: expected dtype float32 like inputs, got float64"),
    ({"out": cuda.to_device(np.ones((1, 6), "f4"))}, ValueError, "out: expected shape (1, 5), got (1, 6)"),
    ({"coefficients": [[1, 1, 1]]}, ValueError, "coefficients: expected 2 columns, got shape (1, 3)"),
    ({"coefficients": [[1, np.inf]]}, ValueError, "coefficients[0, 1]: expected a number finite in float32"),
    ({"blocks": 0}, ValueError, "blocks: expected a positive integer, got 0"),
):
    try:
        numba_cuda.lincomb(**{**good, **change})
    except error as raised:
        assert str(raised).startswith(text), raised
    else:
        raise AssertionError(text)
    assert (good["out"].copy_to_host() == 7).all()
print("done")
"""


def test_in_the_simulator():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]
