"""Builds the kernels once, and from them fastgc._core and libfastgc. All other metadata is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from glob import glob
from hashlib import sha256
from importlib.util import find_spec

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import OptionError, PlatformError
from setuptools.modified import newer_group

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc"))
import toolchain


def files(pattern: str) -> list[str]:
    """In order and with slashes, as the names below have them, on Windows too."""
    return sorted(path.replace(os.sep, "/") for path in glob(pattern))


BINDINGS = ["csrc/bindings.cpp"]  # Python's
C_INTERFACE = files("csrc/fastgc*.cpp")
XLA_CALLS = ["csrc/xla.cpp", "csrc/xla_cuda.cpp"]
KERNELS = sorted({*files("csrc/*.cpp")} - {*BINDINGS, *C_INTERFACE, *XLA_CALLS})
DEPENDS = [*files("csrc/*.h*"), *files("csrc/cuda/*"), *files("csrc/config/*"), "csrc/fastgc.map"]

# Files that the package carries for others: where they are in the tree, and the folder they come to. The package
# is a prefix as pkg-config and CMake know them, and can be moved. In files *.in, names as @VERSION@ are filled in.
CARRIED = {
    "csrc/fastgc.h": "fastgc/include",
    "csrc/fastgc.hpp": "fastgc/include",
    "csrc/cuda/*": "fastgc/include/cuda",
    "csrc/config/*.pc.in": "fastgc/lib/pkgconfig",
    "csrc/config/*.cmake.in": "fastgc/lib/cmake/fastgc",
}

# The custom calls of fastgc.jax need headers that come with jaxlib: 80 MB for three files, with SciPy and NumPy 140.
# That is too much to ask of everybody who builds from source: jaxlib is used where it is at hand, and fetched into an
# isolated build only with FASTGC_WITH_JAX=1, with which the wheels for the package index are built. XLA loads libraries
# built with headers older than itself and none with newer ones; these are the oldest that have all that is used.
XLA_HEADERS = "jaxlib>=0.4.38,<0.8"
WITH_JAX = os.environ.get("FASTGC_WITH_JAX", "")


def xla_headers() -> list[str]:
    """The folder of jaxlib's headers; empty where there is none, or they are not wanted (FASTGC_WITH_JAX=0)."""
    spec = None if WITH_JAX == "0" else find_spec("jaxlib")
    folders = [os.path.join(folder, "include") for folder in ((spec and spec.submodule_search_locations) or [])]
    return [folder for folder in folders if os.path.exists(os.path.join(folder, "xla", "ffi", "api", "ffi.h"))]


class SharedLibrary(Extension):
    """A library without Python in it, in the package's folder ``lib``, which exports what begins with ``fastgc_``."""

    def __init__(self, name: str, sources: list[str]) -> None:
        self.stem = name
        self.file = toolchain.library(sys.platform, name)
        super().__init__(f"fastgc.lib.{name}", sources, depends=DEPENDS, language="c++")


class BuildExtension(build_ext):
    """Compiles every source once, links what is made of them, and puts the carried files beside that."""

    def finalize_options(self) -> None:
        super().finalize_options()
        try:
            self.compiler = toolchain.compiler(sys.platform, self.compiler)
        except ValueError as error:
            raise OptionError(str(error)) from None
        if self.compiler == "mingw32":
            for variable, usual in (("CC", "gcc"), ("CXX", "g++")):
                program = os.environ.get(variable, usual)
                if shutil.which(program.split()[0]) is None:
                    raise OptionError(f"{variable}: {program} is not on PATH; fastgc is built by {toolchain.NEEDED}")

    def build_extensions(self) -> None:
        if WITH_JAX == "1" and not xla_headers():
            raise RuntimeError(f"FASTGC_WITH_JAX=1 needs {XLA_HEADERS} in the environment that builds")
        # As many compilers at once as there are CPUs. What takes longest comes first, so that none ends up alone: short
        # as they are, kernels_*.cpp, then what has large headers.
        sources = {source for extension in self.extensions for source in extension.sources}
        slow = (*files("csrc/kernels_*.cpp"), *BINDINGS, *XLA_CALLS)
        sources = sorted(sources, key=lambda source: slow.index(source) if source in slow else len(slow))
        try:
            self.options = toolchain.compiling(sys.platform, self.macros)
        except ValueError as error:
            raise PlatformError(str(error)) from None
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.objects = dict(zip(sources, pool.map(self.compiled, sources), strict=True))
        super().build_extensions()
        self.carry(self.build_lib)

    def compiled(self, source: str) -> str:
        """The object file: one of an earlier build, if it was made in the same way and nothing has changed since."""
        macros, includes, options = [], [], [*self.options]
        made_by = [*self.compiler.compiler_so_cxx, *options, self.distribution.get_version()]
        if source in C_INTERFACE:
            macros = [("FASTGC_VERSION", f'"{self.distribution.get_version()}"')]
        elif source in BINDINGS:  # all else knows nothing of Python
            macros = [("FASTGC_FLAGS", f'"{" ".join(options)}"'), *toolchain.python_macros(sys.platform)]
            includes = [pybind11.get_include(), *self.include_dirs]
            made_by += [pybind11.__version__, sys.version]
        elif source in XLA_CALLS:
            options += [f"-isystem{folder}" for folder in xla_headers()]
            made_by += options
        folder = os.path.join("build", "objects", sha256(repr(made_by).encode()).hexdigest()[:16])
        (target,) = self.compiler.object_filenames([source], output_dir=folder)
        if self.force or newer_group([source, *DEPENDS, "setup.py", "csrc/toolchain.py"], target):
            self.compiler.compile(
                [source], output_dir=folder, macros=macros, include_dirs=includes, extra_postargs=options
            )
        return target

    def build_extension(self, extension: Extension) -> None:
        linker, options = self.compiler.linker_so_cxx, toolchain.linking(sys.platform)
        target = self.get_ext_fullpath(extension.name)
        if isinstance(extension, SharedLibrary):
            self.mkpath(os.path.dirname(target))  # for what is written beside it
            options += toolchain.linking_library(sys.platform, extension.stem, os.path.dirname(target))
            if sys.platform == "darwin":  # what Python imports is a bundle
                self.compiler.linker_so_cxx = [{"-bundle": "-dynamiclib"}.get(option, option) for option in linker]
        self.compiler.link_shared_object(
            [self.objects[source] for source in extension.sources],
            target,
            libraries=self.get_libraries(extension),
            extra_postargs=options,
            export_symbols=self.get_export_symbols(extension),
            build_temp=self.build_temp,
            target_lang="c++",
        )
        self.compiler.linker_so_cxx = linker

    @cached_property
    def macros(self) -> set[str]:
        """What the compiler defines by itself; asked on Windows alone, where one has to choose."""
        if sys.platform != "win32":
            return set()
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "empty.cpp")
            open(source, "w").close()
            command = [*self.compiler.compiler_so_cxx, "-dM", "-E", source]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {line.split()[1] for line in said.splitlines()}

    # Where things lie -------------------------------------------------------------------------------------------------

    def get_ext_filename(self, fullname: str) -> str:
        extension = self.ext_map.get(fullname)
        if isinstance(extension, SharedLibrary):
            return os.path.join(*fullname.split(".")[:-1], extension.file)
        return super().get_ext_filename(fullname)

    def get_libraries(self, extension: Extension) -> list[str]:
        return [] if isinstance(extension, SharedLibrary) else super().get_libraries(extension)

    def get_export_symbols(self, extension: Extension) -> list[str]:
        return [] if isinstance(extension, SharedLibrary) else super().get_export_symbols(extension)

    def carried(self) -> Iterator[tuple[str, str]]:
        """The carried files, and their places relative to the root of the packages."""
        for pattern, folder in CARRIED.items():
            for source in files(pattern):
                yield source, os.path.join(folder, os.path.basename(source).removesuffix(".in"))

    def carry(self, root: str) -> None:
        values = {
            "@VERSION@": self.distribution.get_version(),
            "@LIBRARY@": toolchain.library(sys.platform, "fastgc"),
            "@RUN_PATH@": toolchain.run_path(sys.platform),
        }
        for source, target in self.carried():
            target = os.path.join(root, target)
            self.mkpath(os.path.dirname(target))
            if source.endswith(".in"):
                with open(source, encoding="utf-8") as template, open(target, "w", encoding="utf-8") as file:
                    file.write(re.sub("@[A-Z_]+@", lambda name: values[name[0]], template.read()))
            else:
                self.copy_file(source, target)

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:
            self.mkpath(os.path.dirname(self.get_ext_filename(extension.name)))
        super().copy_extensions_to_source()
        for library in self.import_libraries():
            self.copy_file(os.path.join(self.build_lib, library), library)
        self.carry(os.curdir)

    def import_libraries(self) -> Iterator[str]:
        """What the linker writes beside the libraries, relative to the root of the packages."""
        for extension in self.extensions:
            file = isinstance(extension, SharedLibrary) and toolchain.import_library(sys.platform, extension.stem)
            if file:
                yield os.path.join("fastgc", "lib", file)

    def beside(self) -> dict[str, str]:
        """All outputs but the extensions: where they are built, and their places in the source tree."""
        files = [*self.import_libraries(), *(target for _, target in self.carried())]
        return {os.path.join(self.build_lib, file): file for file in files}

    def get_outputs(self) -> list[str]:
        return sorted({*super().get_outputs(), *self.beside()})

    def get_output_mapping(self) -> dict[str, str]:
        return {**super().get_output_mapping(), **(self.beside() if self.inplace else {})}


class SourceDistribution(sdist):
    """Adds to what setuptools finds what the sources are tested and described with; there is no MANIFEST.in."""

    def make_distribution(self) -> None:
        for folder in ("bench", "csrc", "docs", "tests"):
            found = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
            self.filelist.extend(sorted(path for path in found if "__pycache__" not in path))
        self.filelist.extend([".clang-format", "Makefile", "CHANGELOG.md", "CONTRIBUTING.md"])
        self.filelist.remove_duplicates()
        super().make_distribution()


setup(
    ext_modules=[
        Extension("fastgc._core", [*KERNELS, *BINDINGS], depends=DEPENDS, language="c++"),
        SharedLibrary("fastgc", [*KERNELS, *C_INTERFACE]),
        *([SharedLibrary("fastgc_xla", [*KERNELS, *XLA_CALLS])] if xla_headers() else []),
        # Here comes what else is made of the kernels: an Extension or a SharedLibrary with sources of its own.
    ],
    cmdclass={"build_ext": BuildExtension, "sdist": SourceDistribution},
    setup_requires=[XLA_HEADERS] if WITH_JAX == "1" else [],
)
