#!/bin/sh
# Cross-compiles for Windows what setup.py compiles there, with its options, and runs it under Wine: the C++ core's
# test, and the examples in C and C++ against fastgc.dll. PYTHON has the package; without it what they print is not
# compared with NumPy's.
# Debian: apt-get install g++-mingw-w64-x86-64-posix wine64
set -eu
cd "$(dirname "$0")/../.."
target=x86_64-w64-mingw32
for tool in $target-g++ wine python3; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed" >&2; exit 2; }
done
options() { PYTHONPATH=csrc python3 -Bc "import toolchain; print(*toolchain.$1)"; }
compile="$(options "compiling('win32', {'__MINGW32__', '__x86_64__'})") -Werror"
link=$(options "linking('win32')")
rm -rf .windows && mkdir -p .windows/include .windows/lib
cp csrc/fastgc.h csrc/fastgc.hpp .windows/include

jobs=""
object() { # its source, and more options
    source=$1 && shift
    # shellcheck disable=SC2086  # options are words
    $target-g++ $compile "$@" -c "$source" -o ".windows/$(basename "$source" .cpp).o" &
    jobs="$jobs $!"
}
for source in csrc/core.cpp csrc/kernels*.cpp csrc/rank.cpp csrc/threads.cpp; do object "$source"; done
for source in csrc/fastgc*.cpp; do object "$source" '-DFASTGC_VERSION="0"'; done
object tests/csrc/test_patterns.cpp -Icsrc
object tests/csrc/test_threads.cpp -Icsrc
object tests/csrc/test_core.cpp -Icsrc -mfma # fma() of mingw's own library rounds twice, and the test expects one
for job in $jobs; do wait "$job"; done

core=".windows/core.o .windows/kernels*.o .windows/threads.o"
# shellcheck disable=SC2046,SC2086
$target-g++ -shared $core .windows/rank.o .windows/fastgc*.o -o .windows/lib/fastgc.dll \
    $link $(options "linking_library('win32', 'fastgc', '.windows/lib')")
# shellcheck disable=SC2086
$target-g++ $core .windows/test_core.o -o .windows/test_core.exe $link
# shellcheck disable=SC2086
$target-g++ .windows/test_patterns.o -o .windows/test_patterns.exe $link
# shellcheck disable=SC2086
$target-g++ .windows/threads.o .windows/test_threads.o -o .windows/test_threads.exe $link
strict="-Wall -Wextra -pedantic -Werror -I.windows/include"
# shellcheck disable=SC2086
$target-gcc -std=c99 $strict docs/examples/round_trip.c -o .windows/lib/c.exe -L.windows/lib -lfastgc
# shellcheck disable=SC2086
$target-g++ -std=c++17 $strict docs/examples/round_trip.cpp -o .windows/lib/cpp.exe -static -L.windows/lib -lfastgc

# Wheels must not need what is not on every Windows.
needed=$($target-objdump -p .windows/lib/fastgc.dll | sed -n 's/.*DLL Name: //p' | sort | tr '\n' ' ')
[ "$needed" = "KERNEL32.dll msvcrt.dll " ] || { echo "fastgc.dll needs $needed" >&2; exit 1; }

export WINEPREFIX="$PWD/.windows/wine" WINEDEBUG=-all
wine wineboot --init > /dev/null 2>&1
for isa in "" portable; do
    FASTGC_ISA=$isa wine .windows/lib/c.exe | tr -d '\r' > .windows/c.txt
    FASTGC_ISA=$isa wine .windows/lib/cpp.exe | tr -d '\r' > .windows/cpp.txt
    cmp .windows/c.txt .windows/cpp.txt
    [ -z "${PYTHON:-}" ] || "$PYTHON" docs/examples/round_trip_numpy.py | cmp - .windows/c.txt
done
OMP_NUM_THREADS=3 wine .windows/test_core.exe
wine .windows/test_patterns.exe
OMP_NUM_THREADS=3 wine .windows/test_threads.exe
