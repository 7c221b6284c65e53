"""Thread pools of one process: fastgc's beside those of PyTorch and SciPy, whichever came first, and after fork()."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from fastgc import kernels

pytestmark = [
    pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork()"),
]

PROGRAM = """
import importlib, os, sys
import numpy as np
order = sys.argv[1:]
for name in order:
    importlib.import_module({"scipy": "scipy.linalg"}.get(name, name))
rng = np.random.default_rng(0)
c, x, a = rng.standard_normal((4, 8)), rng.standard_normal((8, 300_000)), rng.standard_normal((400, 400))

def fastgc(threads=None):
    from fastgc import kernels
    assert np.allclose(kernels.lincomb(c, x, threads=threads), c @ x)

def torch():
    import torch
    t = torch.from_numpy(x)
    assert torch.allclose(torch.from_numpy(c) @ t, torch.from_numpy(c @ x))
    assert torch.allclose(torch.exp(t).log(), t)  # a loop in its own OpenMP

def scipy():
    import scipy.linalg
    assert np.allclose(scipy.linalg.lu_solve(scipy.linalg.lu_factor(a), a), np.eye(len(a)))

for _ in range(3):
    for name in order:
        globals()[name]()
child = os.fork()
if child == 0:
    fastgc()
    fastgc(1)
    scipy()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
for name in reversed(order):
    globals()[name]()
print("done")
"""
OTHERS = [name for name in ("torch", "scipy") if find_spec(name) is not None]


@pytest.mark.parametrize("order", [("fastgc", *OTHERS), (*OTHERS, "fastgc")], ids="-".join)
def test_thread_pools_get_on(order: tuple[str, ...]) -> None:
    """fastgc comes first and last; all use threads, in turns, before and after fork()."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *order],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"
