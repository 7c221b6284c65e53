"""Programs of `fastgc.jax` compiled by XLA for a GPU that is not there: a process of its own, with JAX's CUDA plugin.

    XLA_FLAGS=--xla_dump_to=FOLDER JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python compile_for_gpu.py FOLDER

Prints, as a JSON object by program, XLA's names of its steps on the device in their order, from what it writes into the
folder; steps in a graph are in a list. XLA finds the calls by the handlers that the plugin was given, and asks them
what may be in a graph.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

import fastgc.jax
from fastgc import schemes

# What XLA asks of a device, in its own words: an H100 with a driver of CUDA 13.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


def steps(name: str) -> list[Any]:
    """What XLA runs on the device, from its own list of a program."""
    (file,) = Path(sys.argv[1]).glob(f"*jit_{name}.thunk_sequence_after_thunk_passes.txt")
    found: list[Any] = []
    for line in file.read_text().splitlines():
        match = re.match(r"( *)\d+: k(\w+)", line)
        if match is None:
            continue
        (found[-1] if match[1] else found).append([] if match[2] == "CommandBuffer" else match[2])
    return found


def main() -> int:
    topology = topologies.get_topology_desc("1x1x1", platform="cuda", topology="1x1x1", target_config=H100)
    there = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def shape(dimensions: tuple[int, ...], kind: Any = np.float32) -> Any:
        return jax.ShapeDtypeStruct(dimensions, kind, sharding=there)

    code = schemes.grouped(4, load=2, reduction=2)
    generator = np.random.default_rng(0).standard_normal((5, 2))
    tree = {"bias": shape((7,)), "weights": shape((30, 7))}

    def known(x: Any) -> Any:
        return fastgc.jax.lincomb(np.ones((2, 3)), x) * 2

    def traced(c: Any, x: Any, initial: Any) -> Any:
        return fastgc.jax.lincomb(c, x, initial)

    def encoded(first: Any, second: Any) -> Any:
        return fastgc.jax.encode(code, 1, [first, second])

    def decoded(messages: Any) -> Any:
        return fastgc.jax.decode(code, messages, 217)

    def weights(patterns: Any) -> Any:
        return fastgc.jax.decoding_weights(generator, patterns)

    def mapped(c: Any, x: Any) -> Any:
        return jax.vmap(fastgc.jax.lincomb)(c, x)

    programs: list[tuple[Any, tuple[Any, ...]]] = [
        (known, (shape((3, 10_000)),)),
        (traced, (shape((2, 3)), shape((3, 10_000)), shape((2, 10_000)))),
        (encoded, (tree, tree)),
        (decoded, ({worker: shape((109,), jnp.bfloat16) for worker in range(4)},)),
        (weights, (shape((6, 2), np.int32),)),
        (mapped, (shape((9, 2, 3)), shape((9, 3, 1000)))),
    ]
    for function, arguments in programs:
        jax.jit(function).trace(*arguments).lower().compile()
    print(json.dumps({function.__name__: steps(function.__name__) for function, _ in programs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
