"""The package's header and its library without Python: where they are, and that they belong together."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

import fastgc
from fastgc import kernels, native

pytestmark = pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing")


def test_the_library_is_of_the_header_s_version() -> None:
    header = (Path(fastgc.get_include()) / "fastgc.h").read_text(encoding="utf-8")
    library = ctypes.CDLL(fastgc.get_library())
    library.fastgc_version.restype = ctypes.c_char_p
    (version,) = re.findall(r"#define FASTGC_ABI_VERSION (\d+)", header)
    assert library.fastgc_abi_version() == int(version)
    assert library.fastgc_version().decode() == fastgc.__version__


def test_what_has_not_been_built_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "_PACKAGE", tmp_path)
    for find in (native.get_include, native.get_library, native.get_cuda_sources):
        with pytest.raises(FileNotFoundError, match="has not been built"):
            find()
