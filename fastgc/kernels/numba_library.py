"""The compiled kernels of `libfastgc` inside code that Numba compiles.

Compiled code reads the function's address from a cell in memory whenever it calls, and the cell holds 0 where the
library cannot be used: what ``cache=True`` keeps on disk so works in any process, wherever the library lies there and
whether or not there is one. LLVM knows the cell by name from the import of this module on.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils as untyped
from numba.core import types
from numba.extending import intrinsic

from fastgc import native

__all__ = ["cell", "lincomb"]

_ABI_VERSION, _FLOAT64 = 1, 2  # of fastgc.h
_CELL = "fastgc_numba_lincomb"
cgutils: Any = untyped


def _address() -> int:
    """Of ``fastgc_lincomb``, or 0."""
    try:
        library = ctypes.CDLL(native.get_library())
        found = ctypes.cast(library.fastgc_lincomb, ctypes.c_void_p).value or 0
        return found if library.fastgc_abi_version() == _ABI_VERSION else 0
    except (AttributeError, OSError):  # not built, or for another machine
        return 0


cell = ctypes.c_int64(_address())
binding.add_symbol(_CELL, ctypes.addressof(cell))

_number, _word = ir.IntType(32), ir.IntType(64)
_FUNCTION = ir.FunctionType(
    _number, [_number, _word, _word, _word, _number, _word, _number, _word, _word, _number, _number]
)  # pointers as numbers


def _define_lincomb(
    _context: Any, coefficients: Any, P: Any, Q: Any, kind: Any, inputs: Any, result: Any, outputs: Any, length: Any,
    accumulate: Any,
) -> Any:  # fmt: skip
    """``lincomb(coefficients, P, Q, kind, inputs, result, outputs, length, accumulate)``: whether ``fastgc_lincomb``
    has done it, on the calling thread; else nothing has changed. Coefficients of float64 and the tables of rows are
    given by address."""

    def generate(_codegen: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        module = builder.module
        place = module.globals.get(_CELL) or ir.GlobalVariable(module, _word, _CELL)
        address = builder.load(place)
        done = cgutils.alloca_once_value(builder, cgutils.false_bit)
        with builder.if_then(cgutils.is_not_null(builder, address)):
            given = [_number(_FLOAT64), *arguments, _number(1)]
            fitting = [
                builder.trunc(value, kind) if value.type.width > kind.width else value
                for value, kind in zip(given, _FUNCTION.args, strict=True)
            ]
            status = builder.call(builder.inttoptr(address, _FUNCTION.as_pointer()), fitting)
            builder.store(cgutils.is_null(builder, status), done)
        return builder.load(done)

    return types.boolean(*[types.int64] * 9), generate


lincomb: Any = intrinsic(_define_lincomb)
