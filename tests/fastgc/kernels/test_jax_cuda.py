"""`fastgc.jax` for NVIDIA GPUs, without one: what programs become, and their calls on a stand-in for the driver.

XLA's CPU backend runs the programs that GPUs get, in processes of their own (``jax_on_driver.py``): the custom call of
csrc/xla_cuda.cpp with XLA's own frames and stages, a driver that refuses what CUDA's does, and the kernels compiled for
the host with checked memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_host import CSRC, compiled, kernels

from fastgc import _xla, schemes

if (_problem := _xla.problem()) is not None:
    pytest.skip(f"fastgc.jax: {_problem}", allow_module_level=True)

import jax
import jax.numpy as jnp
from jax import export

import fastgc.jax
from fastgc.jax import _cuda
from fastgc.kernels import _cuda_tiles as tiles
from fastgc.kernels import _nvrtc

SCRIPT = Path(__file__).with_name("jax_on_driver.py")
SCENARIOS = (
    "lincomb_in_every_type_and_tile",
    "tables_that_no_argument_holds",
    "denormal_numbers_are_kept",
    "vmap_has_the_bits_of_a_loop",
    "more_items_than_a_grid_has_layers",
    "derivatives",
    "trees_are_encoded_and_decoded",
    "vmap_of_encoding_and_decoding",
    "weights_of_every_size",
    "weights_that_a_cpu_refuses_are_nan",
    "survivors_that_a_program_finds",
    "coefficients_that_are_not_finite_go_their_way",
    "kernels_are_loaded_once_for_each_device",
    "a_graph_replays_a_call",
    "a_driver_that_refuses_says_why",
    "bad_attributes_are_refused",
)


def _no_compiler() -> str:
    try:
        _nvrtc.version()
    except ImportError as error:
        return str(error)
    return ""


compiles = pytest.mark.skipif(bool(_no_compiler()), reason=_no_compiler() or "NVRTC is there")


# The driver -----------------------------------------------------------------------------------------------------------


@cache
def stand_in(name: str) -> Path:
    """The stand-in for the driver, as a library of a name."""
    headers = f"-isystem{jax.ffi.include_dir()}"
    return compiled(name, headers, str(CSRC / "cuda_driver.cpp"), "-ldl", f"-Wl,-soname,{name}")


def run(*arguments: str) -> dict[str, str]:
    environment = {**os.environ, "FASTGC_HOST_KERNELS": str(kernels()), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiling is most of what XLA does here
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return run(str(stand_in("libcuda.so.1")), ",".join(SCENARIOS))


@pytest.mark.parametrize("name", SCENARIOS)
def test_on_the_stand_in(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == "", outcomes[name]


def test_without_a_driver_the_call_is_an_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty.cpp"
    empty.write_text("")
    old = compiled("old.so", str(empty), "-Wl,-soname,libcuda.so.1")
    assert run(str(stand_in("elsewhere.so")), "without_a_driver", str(old)) == {"without_a_driver": ""}


@compiles
def test_a_compiled_program_is_kept_for_another_process(tmp_path: Path) -> None:
    for which in ("made", "found"):
        assert run(str(stand_in("libcuda.so.1")), "kept", str(tmp_path), which) == {"kept": ""}


# XLA's compiler ------------------------------------------------------------------------------------------------------

PLUGIN = Path(os.environ.get("FASTGC_JAX_CUDA", CSRC.parents[1] / ".venv-jax-cuda"))
"""A Python environment, of this Python's version, with JAX's CUDA plugin."""


@pytest.mark.soak
def test_xla_compiles_programs_for_a_gpu_and_puts_the_calls_in_graphs(tmp_path: Path) -> None:
    if not (PLUGIN / "bin" / "python").exists():
        pytest.skip(f"JAX's CUDA plugin is not in {PLUGIN}: make jax-cuda puts it there")
    environment = {**os.environ, "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "PYTHONPATH": str(CSRC.parents[1])}
    environment.pop("JAX_PLATFORMS", None)
    environment["XLA_FLAGS"] = f"--xla_gpu_graph_min_graph_size=1 --xla_dump_to={tmp_path}"  # graphs however small
    command = [str(PLUGIN / "bin" / "python"), str(SCRIPT.with_name("compile_for_gpu.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    graph = {  # nothing is left outside
        "known": [["CustomCall", "CustomKernel"]],  # XLA has put the coefficients in order
        "traced": [["Copy", "CustomKernel", "CustomCall"]],  # of what the result starts from; puts them in order
        "encoded": [["CustomCall"]],
        "decoded": [["CustomCall"]],
        "weights": [["CustomKernel", "CustomCall", "CustomKernel"]],
        "mapped": [["CustomKernel", "CustomCall"]],
    }
    assert json.loads(done.stdout) == graph


# Lowering -------------------------------------------------------------------------------------------------------------

Shape = jax.ShapeDtypeStruct


def lowered(function: Any, *arguments: Any) -> str:
    """The program for a GPU, its kernels left out."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return re.sub(r'code = "(?:[^"\\]|\\.)*"', "code", text)


def kernels_in(text: str) -> list[str]:
    """The kernels of every call; a program has no other custom calls, and none to the host."""
    assert "callback" not in text
    assert text.count("custom_call") == text.count("custom_call @fastgc_cuda(") == text.count("code,")
    assert len(re.findall(r'key = "[0-9a-f]{64}"', text)) == text.count("custom_call")
    return re.findall(r'kernels = "([^"]*)"', text)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs without what takes most of the time to make."""
    monkeypatch.setattr(_nvrtc, "compiled", lambda chosen, architecture: str(architecture))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("pair", tiles.PAIRS, ids="-".join)
def test_every_type_is_lowered_to_its_kernels(pair: tuple[str, str]) -> None:
    given, result = (jnp.dtype(name) for name in pair)
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        wide = np.float64 if "float64" in pair else np.float32
        arguments = Shape((2, 3), wide), Shape((3, 100), given)
        product = partial(fastgc.jax.lincomb, dtype=result)
        name = "items_{}_{}".format(*pair)
        assert kernels_in(lowered(product, *arguments)) == [f"{name}_4"]
        batch = [Shape((5, *argument.shape), argument.dtype) for argument in arguments]
        assert kernels_in(lowered(jax.vmap(product), *batch)) == [f"{name}_4"]

        def loss(c: Any, x: Any) -> Any:
            return product(c, x).astype(wide).sum()

        back = "items_{}_{}_4".format(*reversed(pair))
        assert kernels_in(lowered(jax.grad(loss, argnums=1), *arguments)) == [back]
        code = schemes.grouped(4, load=2, reduction=2)
        gradients = [{"a": Shape((7,), given), "b": Shape((5, 4), given)}] * 2
        assert kernels_in(lowered(lambda *g: fastgc.jax.encode(code, 1, g, dtype=result), *gradients)) == [f"{name}_1"]
        messages = {worker: Shape((14,), given) for worker in range(4)}
        (found,) = kernels_in(lowered(lambda m: fastgc.jax.decode(code, m, 27, dtype=result), messages))
        in_wide = f"items_{pair[0]}_{np.dtype(wide).name}"
        assert (name if np.dtype(wide).name == pair[1] else in_wide) in found


@pytest.mark.usefixtures("uncompiled")
def test_weights_are_lowered_to_an_inversion() -> None:
    for k, width in ((2, 2), (16, 16), (54, 64), (65, "any")):
        generator = np.random.default_rng(k).standard_normal((k + 2, k))
        text = lowered(lambda p, g=generator: fastgc.jax.decoding_weights(g, p), Shape((3, k), np.int32))
        assert kernels_in(text) == [f"decoding_weights_{width}"]
        assert text.count("xf64>") >= 2  # inverted in float64 whatever JAX's own default is
        mapped = jax.vmap(lambda p, g=generator: fastgc.jax.decoding_weights(g, p))
        assert kernels_in(lowered(mapped, Shape((4, 3, k), np.int32))) == [f"decoding_weights_{width}"]


@compiles
def test_a_program_carries_its_kernels() -> None:
    traced = jax.jit(fastgc.jax.lincomb).trace(Shape((2, 3), np.float32), Shape((3, 8), np.float32))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ".visible .entry items_float32_float32_4(" in text
    assert ".target sm_75" in text  # for all devices, as there is none here
    assert ".ftz" not in text


@pytest.mark.usefixtures("uncompiled")
def test_the_oldest_device_decides_what_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    there = [SimpleNamespace(compute_capability=number) for number in ("9.0", "8.6", "10.0")]
    monkeypatch.setattr(_cuda.jax, "devices", lambda platform: there)
    traced = jax.jit(fastgc.jax.lincomb).trace(Shape((3, 3), np.float32), Shape((3, 8), np.float32))
    assert 'code = "86"' in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.usefixtures("uncompiled")
def test_a_result_takes_the_place_of_what_it_starts_from() -> None:
    text = lowered(fastgc.jax.lincomb, Shape((2, 3), np.float32), Shape((3, 8), np.float32), Shape((2, 8), np.float32))
    assert re.search(r"output_operand_alias<output_tuple_indices = \[\], operand_index = 2,", text)


@pytest.mark.usefixtures("uncompiled")
def test_one_program_for_both_platforms_and_for_meshes() -> None:
    traced = jax.jit(fastgc.jax.lincomb).trace(Shape((2, 3), np.float32), Shape((3, 8), np.float32))
    text = traced.lower(lowering_platforms=("cpu", "cuda")).as_text()
    assert "@fastgc_lincomb(" in text
    assert "@fastgc_cuda(" in text
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("i",))
    spec = jax.sharding.PartitionSpec
    columns = jax.shard_map(
        fastgc.jax.lincomb, mesh=mesh, in_specs=(spec(), spec(None, "i")), out_specs=spec(None, "i")
    )
    traced = jax.jit(columns).trace(Shape((2, 3), np.float32), Shape((3, 8), np.float32))
    assert "@fastgc_cuda(" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.usefixtures("uncompiled")
def test_a_program_can_be_exported_without_a_gpu() -> None:
    function = jax.jit(lambda x: fastgc.jax.lincomb([[1.0, 2.0]], x))
    with pytest.raises(ValueError, match="fastgc_cuda"):  # JAX exports others' calls only if it is told to
        export.export(function, platforms=["cuda"])(Shape((2, 9), np.float32))
    allowed = [export.DisabledSafetyCheck.custom_call("fastgc_cuda")]
    exported = export.export(function, platforms=["cuda"], disabled_checks=allowed)(Shape((2, 9), np.float32))
    assert exported.platforms == ("cuda",)
    assert "@fastgc_cuda(" in exported.mlir_module()


def test_other_platforms_are_refused_when_a_program_is_lowered() -> None:
    traced = jax.jit(lambda x: fastgc.jax.lincomb(np.ones((1, 2)), x)).trace(Shape((2, 3), np.float32))
    message = "fastgc.jax computes on CPUs and NVIDIA GPUs only, and this program is for tpu"
    with pytest.raises(NotImplementedError, match=message):
        traced.lower(lowering_platforms=("tpu",))


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = jax.jit(lambda x: fastgc.jax.lincomb(np.ones((1, 71)), x)).trace(Shape((71, 3), np.float32))
    _nvrtc._library.cache_clear()
    _nvrtc.compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)  # as if it could not be imported
    with pytest.raises(
        ImportError, match=r"NVRTC, and cuda-pathfinder.*pip install 'fast-g.*\[jax-cuda13\]'"
    ) as caught:
        traced.lower(lowering_platforms=("cuda",))
    assert "\n" not in str(caught.value)


@compiles
def test_errors_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvrtc.tiles, "program", lambda kernels: "__global__ void f() { undefined_name = 1; }")
    _nvrtc.compiled.cache_clear()
    with pytest.raises(RuntimeError, match=r"NVRTC cannot compile.*undefined_name") as caught:
        _nvrtc.compiled((tiles.PIECE,))
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="knows no architecture as old as sm_20"):
        _nvrtc.compiled((tiles.PIECE,), 20)
    _nvrtc.compiled.cache_clear()
