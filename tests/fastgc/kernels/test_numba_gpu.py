"""`lincomb` for Numba's CUDA target on a GPU: the bits of the CPU. Only by ``make test-gpu``."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_support import same_bits

from fastgc import kernels

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cuda(request):
    cuda = pytest.importorskip("numba.cuda", reason="Numba has no CUDA target")
    problem = "" if cuda.is_available() else "Numba finds no CUDA device"
    if problem and request.config.getoption("markexpr") != "gpu":
        pytest.skip(problem)
    assert problem == ""
    return cuda


@pytest.mark.filterwarnings("ignore:Grid size")  # short rows do not fill a GPU
@pytest.mark.parametrize(("kind", "result"), [("f4", "f4"), ("f8", "f8"), ("f2", "f2"), ("f2", "f4")])
def test_lincomb_has_the_bits_of_the_cpu(cuda, kind, result):
    from fastgc.kernels import numba_cuda

    rng = np.random.default_rng(0)
    for P, Q, length in ((1, 1, 1), (2, 3, 40), (8, 8, 10_007), (3, 40, 300_007)):
        c, x = rng.standard_normal((P, Q)), rng.standard_normal((Q, length)).astype(kind)
        before = rng.standard_normal((P, length)).astype(result)
        for accumulate in (False, True):
            out = cuda.to_device(before)
            numba_cuda.lincomb(c, cuda.to_device(x), out, accumulate)
            wanted = kernels.lincomb(c, x, before.copy(), accumulate=accumulate)
            assert same_bits(out.copy_to_host(), wanted), (P, Q, length, accumulate)


def test_chain_in_a_kernel_of_ones_own(cuda):
    from fastgc.kernels import numba_cuda

    @cuda.jit
    def mine(c, x, out):
        column = cuda.grid(1)
        if column < out.shape[0]:
            out[column] = 2 * numba_cuda.chain(c, x, 0, column, np.float32(-0.0))

    rng = np.random.default_rng(1)
    c, x = rng.standard_normal((1, 7)).astype("f4"), rng.standard_normal((7, 5000)).astype("f4")
    out = cuda.to_device(np.zeros(5000, "f4"))
    mine[20, 256](cuda.to_device(c), cuda.to_device(x), out)
    assert same_bits(out.copy_to_host(), 2 * kernels.lincomb(c, x)[0])
