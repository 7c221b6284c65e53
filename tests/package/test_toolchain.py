"""What setup.py tells the compilers of each platform: names, options, and which compilers it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from installed import ROOT

from fastgc import native

sys.path.insert(0, str(ROOT / "csrc"))
import toolchain

GCC = {"__GNUC__", "__x86_64__", "__MINGW32__"}
CLANG = {*GCC, "__clang__"}
ALIGNED = "-Wa,-muse-unaligned-vector-move"

# Platform: the library, what is linked against, how programs find it, and the class of setuptools.
PLATFORMS = {
    "linux": ("libfastgc.so", None, "-Wl,-rpath,${libdir} ", None),
    "freebsd14": ("libfastgc.so", None, "-Wl,-rpath,${libdir} ", None),
    "darwin": ("libfastgc.dylib", None, "-Wl,-rpath,${libdir} ", None),
    "win32": ("fastgc.dll", "fastgc.lib", "", "mingw32"),
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_names(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library, imported, run_path, compiler = PLATFORMS[platform]
    assert toolchain.library(platform, "fastgc") == library
    assert toolchain.import_library(platform, "fastgc") == imported
    assert toolchain.run_path(platform) == run_path
    assert toolchain.compiler(platform, None) == compiler
    monkeypatch.setattr(sys, "platform", platform)
    assert native.file_name("fastgc") == library  # where the package looks for what the build makes


# Platform, macros of the compiler, and what is added to the options that all have.
@pytest.mark.parametrize(
    ("platform", "macros", "more"),
    [
        ("linux", set(), ["-pthread"]),
        ("darwin", set(), ["-pthread"]),
        ("win32", GCC, [ALIGNED]),
        ("win32", CLANG, []),  # its assembler has no such option, and its stack needs none
        ("win32", {"__MINGW32__", "__aarch64__", "__clang__"}, []),
        ("win32", {"__MINGW32__", "__aarch64__"}, []),
    ],
)
def test_options(platform: str, macros: set[str], more: list[str]) -> None:
    options = toolchain.compiling(platform, macros)
    assert options == [*toolchain.COMPILE, *more]
    assert {"-ffp-contract=off", "-O3"} <= set(options)
    assert not [option for option in options if option.startswith(("-march", "-mavx", "-ffast", "-Ofast"))]


def test_linking() -> None:
    assert toolchain.linking("linux") == ["-pthread", "-Wl,--as-needed", "-ldl"]
    assert toolchain.linking("freebsd14") == ["-pthread"]
    assert toolchain.linking("darwin") == []
    assert "-static" in toolchain.linking("win32")
    of = {platform: " ".join(toolchain.linking_library(platform, "fastgc", "at/lib")) for platform in PLATFORMS}
    assert of["linux"] == "-Wl,-soname,libfastgc.so -Wl,--version-script=csrc/fastgc.map"
    assert of["darwin"] == "-Wl,-install_name,@rpath/libfastgc.dylib -Wl,-exported_symbol,_fastgc_*"
    assert of["win32"] == "-Wl,--out-implib,at/lib/fastgc.lib"
    assert toolchain.python_macros("win32") == [("MS_WIN64", "")]
    assert toolchain.python_macros("linux") == []


def test_what_cannot_build_it_is_refused() -> None:
    assert toolchain.compiler("win32", "mingw32") == "mingw32"
    assert toolchain.compiler("linux", "unix") == "unix"
    for call, what in (
        (
            lambda: toolchain.compiler("win32", "msvc"),
            "compiler: expected mingw32, got msvc; fastgc is built by mingw-w64",
        ),
        (lambda: toolchain.compiling("win32", {"_MSC_VER", "__clang__", "__x86_64__"}), "does not target mingw"),
    ):
        with pytest.raises(ValueError, match=what) as refused:
            call()
        assert "\n" not in str(refused.value)


ABSENT = [name for name in ("setuptools", "pybind11") if find_spec(name) is None]
SETUP = """
import os, sys, sysconfig
import setuptools.command.build_ext, pybind11
sysconfig.get_config_vars()
sys.platform = "win32"
sys.argv = ["setup.py", "build_ext", *{arguments}]
sys.path.insert(0, os.getcwd())
exec(compile(open("setup.py").read(), "setup.py", "exec"), {{"__file__": "setup.py", "__name__": "__main__"}})
"""


@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compiler=msvc"], "error: compiler: expected mingw32, got msvc; fastgc is built by mingw-w64's GCC"),
        ([], "error: CC: no-such-gcc is not on PATH; fastgc is built by mingw-w64's GCC"),
    ],
)
def test_setup_says_in_one_line_what_builds_it_on_windows(arguments: list[str], said: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SETUP.format(arguments=arguments)],
        cwd=ROOT,
        env={"PATH": "", "CC": "no-such-gcc", "CXX": "no-such-g++"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(said), result.stderr


# Where Debian has both, the one without a suffix may be the other, whose library has no threads.
CROSS = "x86_64-w64-mingw32-g++"
CROSS_COMPILER = shutil.which(f"{CROSS}-posix") or shutil.which(CROSS)


@pytest.mark.skipif(CROSS_COMPILER is None, reason=f"{CROSS} is not installed")
def test_sources_that_know_of_the_system_compile_for_windows() -> None:
    """Not the kernels, which take minutes: `make windows` compiles, links and runs all."""
    sources = [ROOT / "csrc" / name for name in ("fastgc.cpp", "kernels.cpp", "threads.cpp")]
    options = [*toolchain.compiling("win32", GCC), "-Werror", '-DFASTGC_VERSION="0"', "-fsyntax-only"]
    assert CROSS_COMPILER is not None
    result = subprocess.run([CROSS_COMPILER, *options, *sources], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
