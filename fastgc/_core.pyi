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
def decoding_weights(
    generator: npt.NDArray[np.float64],
    patterns: npt.NDArray[np.int64],
    threads: int | None = None,
    isa: str | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]: ...
def isas() -> tuple[str, ...]: ...
def isa() -> str: ...
def fused(isa: str) -> bool: ...
