"""What differs between platforms when the kernels are built: names, options, compilers. setup.py asks.

Platforms are named as `sys.platform` does, and compilers are known by the macros that they define. All is a function of
these, so that a test tabulates every platform on any.
"""

from collections.abc import Collection

# -O3 because a tile keeps its sums in registers only where loops are unrolled: with -O2 lincomb has 0.27 of the speed
# (float32, rows of 10^3, geometric mean), and -O2 -fpeel-loops takes as long to compile as -O3.
# Bits are part of the interface: contraction is off so that a product and a sum are rounded where the source says so,
# and no option names an instruction set, because the kernels choose it at run time.
COMPILE = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-g0",
    "-Wall",
    "-Wextra",
)

NEEDED = "mingw-w64's GCC, or a Clang that targets mingw: Microsoft's compiler has no vector types (docs/packaging.md)"


def library(platform: str, name: str) -> str:
    """The file of a shared library; `fastgc.native` gives it the same name."""
    prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(platform, ("lib", ".so"))
    return f"{prefix}{name}{suffix}"


def import_library(platform: str, name: str) -> str | None:
    """What programs are linked against where that is not the library itself."""
    return f"{name}.lib" if platform == "win32" else None


def run_path(platform: str) -> str:
    """The linker's option, for pkg-config, with which programs find the library where it lies."""
    return "" if platform == "win32" else "-Wl,-rpath,${libdir} "


def compiler(platform: str, asked: str | None) -> str | None:
    """The class of setuptools that calls the compiler; None for its default. ValueError where that cannot do it."""
    if platform != "win32" or asked == "mingw32":
        return asked
    if asked is None:  # setuptools would take Microsoft's
        return "mingw32"
    raise ValueError(f"compiler: expected mingw32, got {asked}; fastgc is built by {NEEDED}")


def compiling(platform: str, macros: Collection[str]) -> list[str]:
    """The compiler's options; ValueError where its vectors, or what it links with, are not those of GCC and Clang.

    GCC takes the stack of Windows to be aligned to 32 bytes, and it is to 16 (GCC bug 54412): moves that may be
    unaligned are as fast where memory is aligned. GNU as has the option since 2.38; Clang aligns what it keeps there.
    """
    if platform != "win32":
        return [*COMPILE, "-pthread"]
    if "__MINGW32__" not in macros:
        raise ValueError(f"this compiler does not target mingw; fastgc is built by {NEEDED}")
    if "__clang__" in macros or "__x86_64__" not in macros:
        return [*COMPILE]
    return [*COMPILE, "-Wa,-muse-unaligned-vector-move"]


def python_macros(platform: str) -> list[tuple[str, str]]:
    """Macros for what includes Python.h, which before 3.12 knows of 64 bits by Microsoft's compiler alone."""
    return [("MS_WIN64", "")] if platform == "win32" else []


def linking(platform: str) -> list[str]:
    """The linker's options for all that is linked.

    On Windows nothing finds a library that lies beside an extension but what is in it: the compiler's own libraries are
    linked into each. The time of the build is left out, so that builds can be repeated.
    """
    return {
        "win32": ["-static", "-Wl,--no-insert-timestamp"],
        "darwin": [],
        "linux": ["-pthread", "-Wl,--as-needed", "-ldl"],  # libraries of their own before glibc 2.34
    }.get(platform, ["-pthread"])


def linking_library(platform: str, name: str, folder: str) -> list[str]:
    """The linker's further options for a library without Python, put into `folder`.

    It exports what begins with ``fastgc_``: on Windows that is what the sources declare to be exported.
    """
    file = library(platform, name)
    if platform == "win32":
        return [f"-Wl,--out-implib,{folder}/{import_library(platform, name)}"]
    if platform == "darwin":
        return [f"-Wl,-install_name,@rpath/{file}", "-Wl,-exported_symbol,_fastgc_*"]
    return [f"-Wl,-soname,{file}", "-Wl,--version-script=csrc/fastgc.map"]
