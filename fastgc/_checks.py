"""Argument checks shared by the public functions: one wording for one kind of mistake."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgc import arrays

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_PLAIN = (_SINGLE, _DOUBLE, np.dtype(np.float16))
ELEMENT_TYPES = "float32, float64, float16 or bfloat16"


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether this is the type that ml_dtypes registers with NumPy, known by its name: nothing need be imported."""
    return dtype.itemsize == 2 and dtype.name == "bfloat16"


def is_element_type(dtype: np.dtype[Any]) -> bool:
    """Whether rows may have this type, which includes native byte order."""
    return dtype in _PLAIN or is_bfloat16(dtype)


def compute_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which rows of an element type are combined."""
    return _DOUBLE if dtype == _DOUBLE else _SINGLE


def converts(inputs: np.dtype[Any], out: np.dtype[Any]) -> bool:
    """Whether inputs of one type may be combined into another: the same, or float32 on one side of a half type."""
    return inputs == out or (np.float32 in (inputs, out) and np.float64 not in (inputs, out))


def integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int within ``[minimum, maximum]``, or raise naming the argument, its value and the range."""
    if type(value) is int and minimum <= value and (maximum is None or value <= maximum):
        return value
    allowed = f"an integer of at least {minimum}" + ("" if maximum is None else f" and at most {maximum}")
    if isinstance(value, bool):
        raise TypeError(f"{name} must be {allowed}, not {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {allowed}, not {value!r}") from None
    if number < minimum or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be {allowed}, not {number}")
    return number


def members(name: str, values: Iterable[Any], count: int) -> tuple[int, ...]:
    """Return `values` as a tuple of distinct ints in ``[0, count)``, in the order given."""
    try:
        items = list(values)
    except TypeError:
        raise TypeError(f"{name} must be an iterable of integers, not {values!r}") from None
    # Nearly always all is well, which takes 2 us for 27 numbers to see, where one by one takes 20.
    distinct = {*items} if {*map(type, items)} == {int} else set()
    if distinct and len(distinct) == len(items) and min(distinct) >= 0 and max(distinct) < count:
        return tuple(items)
    numbers = tuple(integer(f"{name}[{i}]", v, 0, count - 1) for i, v in enumerate(items))
    if len(set(numbers)) != len(numbers):
        repeated = sorted({v for v in numbers if numbers.count(v) > 1})
        raise ValueError(f"{name} must not repeat: {', '.join(map(str, repeated))} given more than once")
    return numbers


def element_type(name: str, value: npt.DTypeLike) -> np.dtype[Any]:
    """Return `value`, a type of any library, as one of the element types that gradients may have."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        # PyTorch's and others' own, which NumPy does not know, are known by their names: torch.bfloat16.
        last = str(value).rpartition(".")[2]
        if last not in ("float32", "float64", "float16", "bfloat16"):
            raise TypeError(f"{name} must be {ELEMENT_TYPES}, not {value!r}") from None
        dtype = arrays.bfloat16(name) if last == "bfloat16" else np.dtype(last)
    if not is_element_type(dtype):
        raise TypeError(f"{name} must be {ELEMENT_TYPES}, not {dtype}")
    return dtype


def message(name: str, value: Any, length: int, dtype: np.dtype[Any] | None) -> np.dtype[Any]:
    """Check a view of the given length and element type (any allowed one for None); return the type."""
    if not isinstance(value, np.ndarray) and not arrays.origin(name, value).native:
        arrays.NUMPY.view(name, value)  # which says what is wrong
    if value.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), not {value.shape}")
    if dtype is None:
        return element_type(f"{name}.dtype", value.dtype)
    if value.dtype != dtype:
        raise TypeError(f"{name} must have element type {dtype}, not {value.dtype}")
    return dtype


def output(name: str, value: npt.NDArray[Any]) -> None:
    """Check that a view can be written to as one row."""
    if not (value.flags.c_contiguous and getattr(value.flags, "writeable", True)):  # CuPy's arrays always are
        raise ValueError(f"{name} must be contiguous and writeable")


def real_numbers(name: str, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return `value` as float64, or raise where it is not made of real numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers, not {array.dtype}")
    return array.astype(np.float64)
