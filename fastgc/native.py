"""Where the package's header and its library without Python lie, for programs in C and other languages."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["get_cuda_sources", "get_include", "get_library"]

_PACKAGE = Path(__file__).resolve().parent
_LIBRARY = {"win32": "fastgc.dll", "darwin": "libfastgc.dylib"}.get(sys.platform, "libfastgc.so")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; this is a source tree whose extension has not been built")
    return path


def get_include() -> str:
    """The folder of the header ``fastgc.h``, for a compiler's option ``-I``.

    Returns
    -------
    str
        An absolute path inside the package.

    Raises
    ------
    FileNotFoundError
        A source tree on the path whose extension has not been built.
    """
    return str(_existing(_PACKAGE / "include" / "fastgc.h").parent)


def get_library() -> str:
    """The shared library ``libfastgc``, whose interface is ``fastgc.h``.

    It holds the kernels and nothing of Python; its thread pool is the one of OpenMP's run-time library.

    Returns
    -------
    str
        The absolute path of a file, which ``ctypes.CDLL`` can load.

    Raises
    ------
    FileNotFoundError
        As in `get_include`.
    """
    return str(_existing(_PACKAGE / "lib" / _LIBRARY))


def get_cuda_sources() -> str:
    """The folder of the CUDA sources, which are compiled where they are used.

    Raises
    ------
    FileNotFoundError
        As in `get_include`.
    """
    return str(_existing(_PACKAGE / "include" / "cuda"))
