"""Where the package's header and its library without Python lie, for programs in C and other languages.

The package's folder is a prefix as pkg-config and CMake know them: ``include``, ``lib``, ``lib/pkgconfig`` and
``lib/cmake/fastgc``. Nothing in it holds an absolute path, so it can be moved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["get_cuda_sources", "get_include", "get_library", "get_path", "get_prefix"]

_PACKAGE = Path(__file__).resolve().parent


def file_name(library: str) -> str:
    """What a shared library's file is called here, such as ``libfastgc.so`` for ``fastgc``."""
    prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(sys.platform, ("lib", ".so"))
    return f"{prefix}{library}{suffix}"


def get_path(*parts: str) -> str:
    """A folder or file of the package.

    Parameters
    ----------
    *parts : str
        Names from the package's folder on.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        A source tree on the path whose extension has not been built.
    """
    path = _PACKAGE.joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; this is a source tree whose extension has not been built")
    return str(path)


def get_include() -> str:
    """The folder of the headers ``fastgc.h`` and ``fastgc.hpp``, for a compiler's option ``-I``.

    Returns
    -------
    str
        An absolute path inside the package.

    Raises
    ------
    FileNotFoundError
        A source tree on the path whose extension has not been built.
    """
    return os.path.dirname(get_path("include", "fastgc.h"))


def get_library() -> str:
    """The shared library ``libfastgc``, whose interface is ``fastgc.h``.

    It holds the kernels and nothing of Python; its threads are its own.

    Returns
    -------
    str
        The absolute path of a file, which ``ctypes.CDLL`` can load.

    Raises
    ------
    FileNotFoundError
        As in `get_include`.
    """
    return get_path("lib", file_name("fastgc"))


def get_prefix() -> str:
    """The folder that holds ``include`` and ``lib``, for ``CMAKE_PREFIX_PATH``.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        As in `get_include`.
    """
    return os.path.dirname(get_path("lib"))


def get_cuda_sources() -> str:
    """The folder of the CUDA sources, which are compiled where they are used.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        As in `get_include`.
    """
    return get_path("include", "cuda")
