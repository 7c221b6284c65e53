"""Builds fastgc._core. All other metadata is in pyproject.toml."""

import os
import tempfile
from glob import glob

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

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


class BuildExtension(build_ext):
    """Adds OpenMP where the compiler and the linker have it; without it every call runs on one thread."""

    def build_extension(self, ext: Extension) -> None:
        if self.links_openmp():
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        else:
            self.warn("this compiler has no OpenMP (-fopenmp): kernels will run on one thread")
        super().build_extension(ext)

    def links_openmp(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "probe.cpp")
            with open(source, "w") as file:
                file.write("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([source], output_dir=folder, extra_preargs=["-fopenmp"])
                self.compiler.link_executable(objects, os.path.join(folder, "probe"), extra_preargs=["-fopenmp"])
            except Exception:  # whatever the compiler's class raises, it means no
                return False
        return True


setup(
    ext_modules=[
        Extension(
            "fastgc._core",
            sources=sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            include_dirs=[pybind11.get_include()],
            extra_compile_args=COMPILE,
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
