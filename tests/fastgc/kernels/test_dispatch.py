"""Choosing backend and instruction set, threads and fork, what an import costs."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from importlib.util import find_spec

import numpy as np
import pytest
from kernel_support import CPU_BACKENDS, ISAS, same_bits

from fastgc import kernels

compiled = pytest.mark.skipif(not ISAS, reason="the C++ extension is not built")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@compiled
@pytest.mark.parametrize("isa", ISAS)
def test_environment_forces_an_instruction_set(isa):
    code = """
import numpy as np
from fastgc import _core, kernels
x = np.arange(1003.0).reshape(1, -1)
assert (kernels.lincomb([[2]], x) == 2 * x).all()
print(_core.isa())
"""
    done = run(code, FASTGC_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


@compiled
@pytest.mark.parametrize("value", ["sse9", "neon" if "avx2" in ISAS else "avx2", "AVX2"])
def test_environment_with_an_unknown_instruction_set(value):
    code = """
import numpy as np
from fastgc import kernels
for call in (
    lambda: kernels.lincomb([[2]], np.ones((1, 3))),
    lambda: kernels.encode([[2]], np.ones((1, 3))),
    lambda: kernels.decode([[[2]]], [np.ones((1, 3))], 3),
    lambda: kernels.decoding_weights(np.eye(2), [0, 1]),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    done = run(code, FASTGC_ISA=value)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 4
    for line in lines:
        assert f"FASTGC_ISA={value}" in line
        assert all(isa in line for isa in ISAS)


@compiled
def test_table_of_instruction_sets():
    from fastgc import _core

    assert ISAS[0] == "portable"
    assert all(_core.fused(isa) for isa in ISAS[1:])
    if "FASTGC_ISA" not in os.environ:
        assert _core.isa() == ISAS[-1]
    with pytest.raises(ValueError, match="sse9"):
        _core.lincomb([[1]], np.ones((1, 3)), isa="sse9")


def test_backends():
    names = kernels.backends()
    assert set(names) <= {"cpp", "numba", "cuda"}
    assert names[0] == ("cpp" if ISAS else "numba")
    missing = kernels.missing_backends()
    assert set(missing) | set(names) == {"cpp", "numba", "cuda"}
    assert set(missing) & set(names) == set()
    assert all(reason and "\n" not in reason for reason in missing.values())


@pytest.mark.skipif("cuda" in kernels.backends(), reason="there is a CUDA device")
def test_cuda_without_a_device_says_why():
    reason = kernels.missing_backends()["cuda"]
    assert reason == "CuPy is not installed" if find_spec("cupy") is None else "CUDA" in reason or "NVRTC" in reason
    with pytest.raises(ValueError, match=r"backend.*'cuda'"):
        kernels.lincomb([[1]], np.ones((1, 3)), backend="cuda")


HIDE = """
import sys, warnings

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "fastgc._core":
            raise ImportError("hidden for a test")

sys.meta_path.insert(0, Hide())
"""


def test_missing_extension_warns_once_and_falls_back():
    code = (
        HIDE
        + """
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastgc
    from fastgc import kernels
    x = np.arange(12.0).reshape(3, 4)
    for _ in range(2):
        assert (kernels.lincomb([[1, 1, 1]], x) == x.sum(0)).all()
        assert (kernels.decoding_weights(np.eye(2) * 2, [0, 1]) == np.eye(2) / 2).all()
ours = [w for w in caught if "compiled kernels" in str(w.message)]
assert len(ours) == 1, caught
assert ours[0].category is RuntimeWarning
print(ours[0].message)
assert kernels.backends()[0] == "numba" and "hidden for a test" in kernels.missing_backends()["cpp"]
try:
    kernels.lincomb([[1]], x[:1], backend="cpp")
except ValueError as error:
    assert "cpp" in str(error) and "numba" in str(error)
else:
    raise AssertionError
"""
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "hidden for a test" in done.stdout
    assert "Numba" in done.stdout


def test_import_is_light():
    done = run("import sys, fastgc.kernels; print([m for m in ('numba', 'scipy', 'mpi4py') if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


FORK = """
import os, signal, time
import numpy as np
from fastgc import kernels
x = np.random.default_rng(0).standard_normal((4, 1_000_000))
c = np.ones((2, 4))
wanted = kernels.lincomb(c, x)
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        same = kernels.lincomb(c, x, threads=2).tobytes() == wanted.tobytes()
        os._exit(0 if same else 1)
    children.append(child)
deadline = time.monotonic() + 30
for child in children:
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0, status
            break
        if time.monotonic() > deadline:
            for hanging in children[children.index(child) :]:  # the others are reaped
                os.kill(hanging, signal.SIGKILL)
            raise AssertionError("a child of fork() hangs")
        time.sleep(0.01)
assert kernels.lincomb(c, x).tobytes() == wanted.tobytes()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_of_fork_after_a_threaded_call():
    done = run(FORK, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_calls_from_several_threads(backend):
    rng = np.random.default_rng(0)
    c, x = rng.standard_normal((3, 4)), rng.standard_normal((4, 300_000))
    wanted = kernels.lincomb(c, x, threads=1, backend=backend)
    wrong = []

    def work():
        for _ in range(5):
            if not same_bits(kernels.lincomb(c, x, backend=backend), wanted):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not wrong


@pytest.mark.parametrize("count", ["1", "2"])
def test_omp_num_threads_is_honoured(count):
    code = """
import os
import numpy as np
from fastgc import kernels
x = np.ones((4, 1_000_000))
kernels.lincomb(np.ones((1, 4)), x, threads=2)
print(len(os.listdir("/proc/self/task")))
"""
    if sys.platform != "linux" or not ISAS:
        pytest.skip("needs Linux, which counts a process's threads in /proc, and the C++ extension")
    # NumPy's BLAS keeps threads of its own unless told otherwise.
    done = run(code, OMP_NUM_THREADS=count, OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == min(int(count), len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("count", [1, 2, 10_000])
def test_as_many_threads_as_was_said_last(count):
    code = f"""
import os
import numpy as np
from fastgc import kernels, schemes
kernels.set_num_threads(3)
kernels.set_num_threads({count})
print(kernels.get_num_threads())
code = schemes.grouped(4, 2, 1)
code.encode(0, np.ones((2, 4_000_000)))
kernels.lincomb(np.ones((1, 4)), np.ones((4, 1_000_000)), threads=2)
print(min(2, len(os.listdir("/proc/self/task"))))
"""
    if sys.platform != "linux" or not ISAS:
        pytest.skip("needs Linux, which counts a process's threads in /proc, and the C++ extension")
    done = run(code, OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    usable = len(os.sched_getaffinity(0))
    assert done.stdout.split() == [str(min(count, usable)), str(min(count, usable, 2))]


@pytest.mark.parametrize("count", [0, -1, True, 1.0, "2", None])
def test_threads_must_be_a_positive_number(count):
    before = kernels.get_num_threads()
    with pytest.raises((TypeError, ValueError), match=r"count: expected a positive integer, got"):
        kernels.set_num_threads(count)
    assert kernels.get_num_threads() == before


def test_every_public_name_is_documented():
    for name in kernels.__all__:
        assert inspect.getdoc(getattr(kernels, name)), name
    for name in kernels.reference.__all__:
        assert inspect.getdoc(getattr(kernels.reference, name)), name
