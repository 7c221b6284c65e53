"""Builds the kernels once, and from them fastgc._core and libfastgc. All other metadata is in pyproject.toml."""

import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from glob import glob

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BINDINGS = ["csrc/bindings.cpp", "csrc/direct.cpp"]  # Python's
C_INTERFACE = ["csrc/fastgc.cpp"]
KERNELS = sorted({*glob("csrc/*.cpp")} - {*BINDINGS, *C_INTERFACE})
DEPENDS = [*sorted(glob("csrc/*.h")), "csrc/fastgc.map", "setup.py"]

# Files that the package carries for others to read: where they are in the tree, and the folder they come to.
CARRIED = {"csrc/fastgc.h": "fastgc/include", "csrc/cuda/*": "fastgc/include/cuda"}

# Bits are part of the interface: contraction is off so that a product and a sum are rounded where the source says so,
# and no option names an instruction set, because the kernels choose it at run time.
COMPILE = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-g0",
    "-Wall",
    "-Wextra",
]

ParallelCompile(default=0).install()  # as many compilers at once as there are CPUs


class SharedLibrary(Extension):
    """A library without Python in it, in the package's folder ``lib``, which exports what begins with ``fastgc_``."""

    def __init__(self, name: str, sources: list[str]) -> None:
        prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(sys.platform, ("lib", ".so"))
        self.file = f"{prefix}{name}{suffix}"
        link = [f"-Wl,-soname,{self.file}", "-Wl,--version-script=csrc/fastgc.map"]
        if sys.platform == "darwin":
            link = [f"-Wl,-install_name,@rpath/{self.file}", "-Wl,-exported_symbol,_fastgc_*"]
        super().__init__(f"fastgc.lib.{name}", sources, depends=DEPENDS, extra_link_args=link, language="c++")


class BuildExtension(build_ext):
    """Compiles every source once, links what is made of them, and puts the carried files beside that."""

    def build_extensions(self) -> None:
        sources = sorted({source for extension in self.extensions for source in extension.sources})
        sources.sort(key=os.path.getsize)  # kernels_*.cpp are short, include most, and take longest: they start first
        objects = self.compiler.compile(
            sources,
            output_dir=self.build_temp,
            macros=[("FASTGC_VERSION", f'"{self.distribution.get_version()}"')],
            include_dirs=[pybind11.get_include(), *self.include_dirs],
            extra_postargs=[*COMPILE, *self.openmp],
        )
        self.objects = dict(zip(sources, objects, strict=True))
        super().build_extensions()
        for source, target in self.carried():
            self.copy_to(source, os.path.join(self.build_lib, target))

    def build_extension(self, extension: Extension) -> None:
        linker = self.compiler.linker_so_cxx
        if isinstance(extension, SharedLibrary) and sys.platform == "darwin":  # what Python imports is a bundle
            self.compiler.linker_so_cxx = [{"-bundle": "-dynamiclib"}.get(option, option) for option in linker]
        self.compiler.link_shared_object(
            [self.objects[source] for source in extension.sources],
            self.get_ext_fullpath(extension.name),
            libraries=self.get_libraries(extension),
            extra_postargs=[*self.openmp, *extension.extra_link_args],
            export_symbols=self.get_export_symbols(extension),
            build_temp=self.build_temp,
            target_lang="c++",
        )
        self.compiler.linker_so_cxx = linker

    @cached_property
    def openmp(self) -> list[str]:
        """The option for OpenMP where compiler and linker have it; without it every call runs on one thread."""
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "probe.cpp")
            with open(source, "w") as file:
                file.write("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([source], output_dir=folder, extra_preargs=["-fopenmp"])
                self.compiler.link_executable(objects, os.path.join(folder, "probe"), extra_preargs=["-fopenmp"])
            except Exception:  # whatever the compiler's class raises, it means no
                self.warn("this compiler has no OpenMP (-fopenmp): kernels will run on one thread")
                return []
        return ["-fopenmp"]

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
            for source in sorted(glob(pattern)):
                yield source, os.path.join(folder, os.path.basename(source))

    def copy_to(self, source: str, target: str) -> None:
        self.mkpath(os.path.dirname(target))
        self.copy_file(source, target)

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:
            self.mkpath(os.path.dirname(self.get_ext_filename(extension.name)))
        super().copy_extensions_to_source()
        for source, target in self.carried():
            self.copy_to(source, target)

    def get_outputs(self) -> list[str]:
        return sorted({*super().get_outputs(), *(os.path.join(self.build_lib, target) for _, target in self.carried())})

    def get_output_mapping(self) -> dict[str, str]:
        carried = {os.path.join(self.build_lib, target): target for _, target in self.carried()} if self.inplace else {}
        return {**super().get_output_mapping(), **carried}


setup(
    ext_modules=[
        Extension("fastgc._core", [*KERNELS, *BINDINGS], depends=DEPENDS, language="c++"),
        SharedLibrary("fastgc", [*KERNELS, *C_INTERFACE]),
        # Here comes what else is made of the kernels: an Extension or a SharedLibrary with sources of its own.
    ],
    cmdclass={"build_ext": BuildExtension},
)
