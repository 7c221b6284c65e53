"""Gradient coding: exact distributed gradients without waiting for stragglers.

`schemes` makes gradient codes, `codes` the linear codes they are built from, `kernels` does the arithmetic,
`compression` makes messages shorter.
"""

from fastgc import codes, compression, kernels, schemes
from fastgc.errors import CorruptMessageError, NotDecodableError
from fastgc.gradient_code import GradientCode
from fastgc.layout import Layout
from fastgc.native import get_include, get_library
from fastgc.verification import Noise, Verifiable, Verified

__all__ = [
    "CorruptMessageError",
    "GradientCode",
    "Layout",
    "Noise",
    "NotDecodableError",
    "Verifiable",
    "Verified",
    "__version__",
    "codes",
    "compression",
    "get_include",
    "get_library",
    "kernels",
    "schemes",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # on demand: reading the installed metadata costs more than all other imports here
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("fast-gradient-coding")
        except PackageNotFoundError:  # a source tree on the path, not installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
