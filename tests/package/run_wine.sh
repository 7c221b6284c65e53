#!/bin/bash
# Builds the wheel for Windows by setup.py under a Python for Windows, which Wine runs, and tests it there:
#
#     tests/package/run_wine.sh FOLDER [PYTEST'S ARGUMENTS]
#
# FOLDER has python.exe, with its headers and import libraries, and in Lib/site-packages NumPy, SciPy, Numba, ml_dtypes,
# pytest, hypothesis, colorama, pybind11, setuptools and wheel: `pip download --platform win_amd64 --only-binary=:all:`,
# unpacked. Wine 8 runs NumPy up to 2.1. Debian: apt-get install g++-mingw-w64-x86-64-posix wine64
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(cd "$1" && pwd) && shift
[ $# -gt 0 ] || set -- tests/fastgc/kernels tests/fastgc/test_native.py # Wine 8 has no cexp(), which some schemes need
cd "$root"
mkdir -p .windows/bin .windows/tmp
rm -rf .windows/tree && mkdir .windows/tree
for program in gcc g++; do
    x86_64-w64-mingw32-gcc -O1 -Wall -Wextra tests/package/wine/compiler.c -o ".windows/bin/$program.exe"
done
export WINEPREFIX="$root/.windows/wine" WINEDEBUG=-all
export WINEPATH="Z:$root/.windows/bin" PYTHONDONTWRITEBYTECODE=1
wine wineboot --init > /dev/null 2>&1
wine winecfg -v win10 > /dev/null 2>&1
for name in TEMP TMP; do # the compilers know no other drive than Z:
    wine reg add 'HKCU\Environment' /v $name /t REG_SZ /d "Z:$root/.windows/tmp" /f > /dev/null 2>&1
done
python() { # it starts with pipes, and not with every file
    PYTHONPATH="Z:$root/tests/package/wine" wine "$folder/python.exe" "$@" < /dev/null 2>&1 | cat
}

git ls-files -z -c -o --exclude-standard | xargs -0 cp --parents -t .windows/tree
cd .windows/tree
python setup.py --quiet bdist_wheel
rm -rf "$folder"/Lib/site-packages/fastgc "$folder"/Lib/site-packages/fast_gradient_coding-*
python3 -m zipfile -e dist/*.whl "$folder/Lib/site-packages"
rm -rf fastgc # what is tested is what was installed
python -m fastgc info
python -m pytest -q -p no:cacheprovider -m "not soak and not gpu" "$@"
