"""The CUDA kernels compiled for GPUs, without one: every instance, its registers and spills."""

from __future__ import annotations

import json
import re

import pytest

from bench import cuda_registers as registers
from fastgc.kernels import _cuda_tiles as tiles


def _no_compiler() -> str:
    try:
        registers.version()
    except Exception as error:  # CuPy is missing, or does not find NVRTC
        return f"no NVRTC: {type(error).__name__}: {error}".splitlines()[0]
    return ""


REASON = _no_compiler()
compiles = pytest.mark.skipif(bool(REASON), reason=REASON)
architectures = pytest.mark.parametrize("architecture", registers.ARCHITECTURES, ids=lambda a: f"sm_{a}")


def check(kernels: list[tiles.Kernel], architecture: int) -> None:
    log, ptx = registers.assemble(tiles.program(kernels), architecture)
    found = registers.reported(log)
    assert sorted(found) == sorted(kernel.name for kernel in kernels)
    for kernel in kernels:
        use = found[kernel.name]
        assert use["spills"] == use["stack"] == 0, kernel.name
        assert use["registers"] * kernel.threads * kernel.blocks <= 65536, kernel.name
    # Subnormal numbers are not flushed, though CuPy asks for it; no product is fused with a sum but where it is said.
    assert ".ftz" not in ptx
    assert not re.search(r"\bfma\.(?!rn\.f(32|64)\b)|\bmad\.", ptx.replace("mad.lo", "").replace("mad.wide", ""))


def test_record_is_of_this_source():
    """All kernels have been compiled for all architectures since the source last changed."""
    record = json.loads(registers.RECORD.read_text())
    assert record["source"] == registers.digest(), "run python -m bench.cuda_registers"
    assert list(record["kernels"]) == [f"sm_{a}" for a in registers.ARCHITECTURES]
    for kernels in record["kernels"].values():
        assert sorted(kernels) == sorted(kernel.name for kernel in tiles.kernels())
    assert registers.spilling(record) == []
    assert registers.RECORD.with_suffix(".md").read_text() == registers.table(record)


@compiles
@architectures
def test_each_template_compiles(architecture):
    few = [
        tiles.lincomb("float64", "float64", 1),
        tiles.lincomb("float32", "bfloat16", 4),
        tiles.lincomb("bfloat16", "float32", 4),
        tiles.lincomb("float16", "float16", 8),
        tiles.lincomb("float32", "float32", 16),
        tiles.lincomb("float32", "float32", 4, "Items"),
        tiles.lincomb("bfloat16", "bfloat16", 8, "Items"),
        tiles.lincomb("float32", "float32", 16, "LargeCall"),
        tiles.inversion(8),
        tiles.inversion(64),
        tiles.inversion(0),
        tiles.PIECE,
    ]
    check(few, architecture)


@compiles
@pytest.mark.soak
@architectures
def test_every_instance_compiles_for_every_architecture(architecture):
    check(list(tiles.kernels()), architecture)
    record = json.loads(registers.RECORD.read_text())
    if record["nvrtc"] == registers.version():
        log, _ = registers.assemble(tiles.program(tiles.kernels()), architecture)
        assert registers.reported(log) == record["kernels"][f"sm_{architecture}"]


@compiles
def test_an_error_in_a_kernel_is_an_error():
    with pytest.raises(RuntimeError, match=r"sm_80.*undefined_name"):
        registers.assemble("__global__ void f() { undefined_name = 1; }", 80)


@compiles
def test_a_spill_is_noticed():
    kernel = tiles.lincomb("float32", "float32", 16)
    text = tiles.source() + kernel.entry.replace(f"({kernel.threads}, {kernel.blocks})", f"({kernel.threads}, 4)")
    use = registers.reported(registers.assemble(text, 80)[0])[kernel.name]
    assert use["spills"] > 0
    assert registers.spilling({"kernels": {"sm_80": {kernel.name: use}}}) == [("sm_80", kernel.name)]


def test_choice_of_tiles():
    """Whatever a call's shape, its tables fit where they are said to go, and rows fit the tile."""
    for inputs, out in tiles.PAIRS:
        for rows in (1, 2, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 200):
            for count in (1, 3, 40, 41, 80, 300, 400):
                kernel = tiles.choose(inputs, out, rows, count)
                assert kernel in set(tiles.kernels())
                assert kernel.layers(rows) == max(1, -(-rows // tiles.rows_of(inputs, out)[-1]))
                in_all = kernel.layers(rows) * kernel.rows
                assert in_all >= rows
                room = tiles.table_bytes(inputs, count, rows, in_all)
                assert room <= tiles.TABLE_BYTES.get(kernel.argument, room)
                smaller = [size for call, size in tiles.TABLE_BYTES.items() if call != kernel.argument]
                assert kernel.argument == "Call" or room > min(smaller)
                assert (kernel.argument == "Items") == (room > max(tiles.TABLE_BYTES.values()))
                assert tiles.choose(inputs, out, rows, count, "Items").argument == "Items"
    for k in (*range(1, 66), 500):
        inversion = tiles.choose_inversion(k)
        assert k <= inversion.width <= inversion.lanes or (k > 64 and inversion.width == 0)
        assert inversion.lanes * inversion.groups == inversion.threads
        assert inversion.shared <= tiles.SHARED_BYTES


def test_source_is_one_text():
    text = tiles.source()
    assert "#include" not in text
    assert text.count("namespace fastgc {") == 3
