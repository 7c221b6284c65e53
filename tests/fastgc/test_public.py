"""The public names, their docstrings, and what importing them costs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import fastgc
from fastgc import (
    approximate,
    arrays,
    codes,
    compression,
    gradient_code,
    kernels,
    layout,
    native,
    patterns,
    schemes,
    streaming,
    verification,
)

NAMES: dict[Any, list[str]] = {
    fastgc: [
        "codes", "compression", "schemes", "kernels", "CorruptMessageError", "GradientCode", "Layout", "Noise",
        "NotDecodableError", "Verifiable", "Verified", "__version__", "get_include", "get_library",
    ],
    codes: [
        "LinearCode", "gaussian", "repetition", "parity", "vandermonde", "chebyshev", "cauchy", "hamming",
        "reed_muller", "product", "from_generator",
    ],
    codes.LinearCode: [
        "n", "k", "distance", "is_mds", "decoding_weights", "condition_number", "worst_condition_number",
    ],
    schemes: [
        "grouped", "adaptive", "heterogeneous", "uncoded", "ignore_stragglers", "fractional_repetition",
        "cyclic_repetition", "cyclic_mds", "polynomial", "polynomial_gaussian", "erasure_head", "bernoulli",
        "stochastic_block", "expander", "margulis", "bibd", "from_assignment", "from_coefficients", "load",
    ],
    fastgc.GradientCode: [
        "coefficients", "message_length", "encode", "encode_all", "encoder", "is_decodable", "decoding_weights",
        "condition_number", "amplification", "decode", "approximation_error", "verifiable", "detection_floor",
        "collector", "in_parts", "part_order",
        "with_reduction", "save",
    ],
    kernels: ["lincomb", "decoding_weights", "backends", "missing_backends", "reference"],
    compression: ["Codec", "ErrorFeedback", "codec"],
    compression.Codec: ["size", "compress", "decompress", "numbers", "check"],
    compression.ErrorFeedback: ["compress", "settle", "residual", "reset"],
    streaming.Encoder: ["add", "message"],
    streaming.Collector: ["add", "ready", "missing", "survivors", "gradient", "discard", "reset"],
    patterns.PatternCache: ["size", "maxsize", "precompute", "clear"],
}  # fmt: skip
ATTRIBUTES: dict[Any, list[str]] = {
    schemes.adaptive(4, 2): ["reductions"],
    schemes.grouped(4, 2, 1): ["workers", "partitions", "load", "stragglers", "reduction", "assignment", "exact"],
    schemes.grouped(4, 2, 1).patterns: ["hits", "misses", "size", "maxsize"],
    codes.cauchy(3, 2): ["generator", "n", "k", "distance", "is_mds"],
    fastgc.NotDecodableError("", (1,), (2,)): ["survivors", "missing"],
    fastgc.CorruptMessageError("", (1,), (2,)): ["survivors", "suspects"],
}


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in NAMES.items() for name in names])
def test_public_names_are_there(owner: Any, name: str) -> None:
    assert hasattr(owner, name)
    if isinstance(owner, ModuleType):
        assert name in owner.__all__


def test_attributes_are_there() -> None:
    for owner, names in ATTRIBUTES.items():
        for name in names:
            assert hasattr(owner, name), (owner, name)


def test_nothing_else_is_public_in_the_package() -> None:
    assert set(fastgc.__all__) == set(NAMES[fastgc])
    for module in (fastgc, codes, compression, schemes, kernels):
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert hasattr(module, name), f"{module.__name__}.{name}"
    with pytest.raises(AttributeError, match="nothing"):
        _ = fastgc.nothing  # type: ignore[attr-defined]


def test_the_error_is_a_value_error() -> None:
    assert issubclass(fastgc.NotDecodableError, ValueError)


# Docstrings -----------------------------------------------------------------------------------------------------------


def documented() -> Iterator[tuple[str, Any]]:
    """Every public module, function, class, method and property."""
    modules = (fastgc, arrays, codes, schemes, kernels, kernels.reference, gradient_code, layout, patterns, streaming)
    modules += (approximate, compression, native, verification)
    for module in modules:
        yield module.__name__, module
    described = (codes, compression, schemes, kernels, kernels.reference, native)
    owners = [(m, name) for m in described for name in m.__all__]
    classes: list[type] = [fastgc.GradientCode, fastgc.Layout, fastgc.NotDecodableError, codes.LinearCode]
    classes += [
        compression.Codec,
        compression.ErrorFeedback,
        patterns.PatternCache,
        streaming.Encoder,
        streaming.Collector,
    ]
    classes += [approximate.EstimatingDecoder, approximate.Approximation, verification.Verifier]
    classes += [arrays.Origin]
    classes += [fastgc.CorruptMessageError, fastgc.Noise, fastgc.Verifiable, fastgc.Verified]
    for module, name in owners:
        value = getattr(module, name)
        if callable(value):
            yield f"{module.__name__}.{name}", value
    for cls in classes:
        yield cls.__qualname__, cls
        for name, member in vars(cls).items():
            if not name.startswith("_") and (callable(member) or isinstance(member, property)):
                yield f"{cls.__qualname__}.{name}", member


DOCUMENTED = dict(documented())


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring(name: str) -> None:
    text = inspect.getdoc(DOCUMENTED[name])
    assert text, f"{name} has no docstring"
    first = text.split("\n\n")[0]
    assert first.strip().endswith((".", ":", "`")) or ". " in first, f"{name}: its first paragraph is no sentence"


PAPERS = {
    schemes.grouped: "2005.07184",
    schemes.fractional_repetition: "Tandon",
    schemes.cyclic_repetition: "Tandon",
    schemes.cyclic_mds: "Raviv",
    schemes.polynomial: "Ye and Abbe",
    schemes.polynomial_gaussian: "Ye and Abbe",
    schemes.erasure_head: "1901.09671",
    schemes.bernoulli: "1711.06771",
    schemes.stochastic_block: "1805.10378",
    schemes.expander: "1707.03858",
    schemes.margulis: "Gabber and Galil",
    schemes.bibd: "1904.13373",
}


def test_schemes_name_their_papers() -> None:
    for function, paper in PAPERS.items():
        assert paper in (function.__doc__ or ""), function.__name__


# Imports --------------------------------------------------------------------------------------------------------------

LATER = ("scipy", "numba", "mpi4py", "pandas", "cupy", "torch", "matplotlib", "importlib.metadata")


def modules_after(program: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.skipif("cpp" not in kernels.backends(), reason="without the compiled kernels Numba is imported at once")
def test_import_takes_only_what_it_needs() -> None:
    before = modules_after("import numpy")
    after = modules_after("import fastgc")
    assert [name for name in LATER if name in after - before] == []


@pytest.mark.skipif("cpp" not in kernels.backends(), reason="without the compiled kernels Numba is imported at once")
def test_training_takes_no_more() -> None:
    """A grouped scheme is made, encodes and decodes without SciPy or Numba."""
    program = """
import numpy as np, fastgc
scheme = fastgc.schemes.grouped(8, 4, 2)
gradients = np.ones((4, 5))
messages = {w: scheme.encode(w, gradients) for w in range(2, 8)}
assert abs(scheme.decode(messages, 5) - 8).max() < 1e-12
"""
    after = modules_after(program)
    assert [name for name in ("scipy", "numba", "mpi4py", "pandas") if name in after] == []


@pytest.mark.skipif("cpp" not in kernels.backends(), reason="without the compiled kernels Numba is imported at once")
def test_import_is_fast() -> None:
    """Below 100 ms beyond NumPy's own import, once in several times: other processes only ever add."""
    program = """
import numpy, time
start = time.perf_counter()
import fastgc
print(time.perf_counter() - start)
"""
    times: list[float] = []
    while len(times) < 40 and min(times, default=1.0) >= 0.1:
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        times.append(float(result.stdout))
    assert min(times) < 0.1, times
