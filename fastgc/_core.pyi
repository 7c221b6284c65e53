from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

def lincomb(
    coefficients: Any,
    inputs: Any,
    out: Any = None,
    accumulate: bool = False,
    threads: int | None = None,
    isa: str | None = None,
) -> Any: ...
def encode(
    coefficients: Any,
    gradients: Any,
    out: Any = None,
    accumulate: bool = False,
    threads: int | None = None,
    isa: str | None = None,
) -> Any: ...
def decode(
    weights: Any, messages: Any, length: int, out: Any = None, threads: int | None = None, isa: str | None = None
) -> Any: ...
def decode_checked(
    weights: Any,
    checks: Any,
    messages: Any,
    length: int,
    floors: Any,
    least: float = 0.0,
    threads: int | None = None,
    isa: str | None = None,
) -> tuple[Any, list[int]]: ...
def decoding_weights(
    generator: Any, patterns: Any, threads: int | None = None, isa: str | None = None
) -> tuple[npt.NDArray[np.float64], list[int]]: ...
def least_norm_weights(
    generator: Any, patterns: Any, target: Any, threads: int | None = None, isa: str | None = None
) -> tuple[npt.NDArray[np.float64], list[int]]: ...
def direct(name: str, function: Callable[..., Any]) -> Any: ...
def positions(masks: int | Sequence[int]) -> npt.NDArray[np.int64]: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def isas() -> tuple[str, ...]: ...
def isa() -> str: ...
def fused(isa: str) -> bool: ...

build: dict[str, str]  # compiler and flags
