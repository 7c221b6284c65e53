#!/bin/sh
# Compiles and links for machines that are not at hand what setup.py compiles there, with its options, by Clang as zig
# has it: libfastgc and the C++ core's test. Where Wine is installed the test is run for Windows.
# PYTHON has ziglang (pip install ziglang); arguments name some of the targets.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
options() {
    PYTHONPATH=csrc "$python" -Bc "import toolchain; told = toolchain.$1; print(*([told] if isinstance(told, str) else told))"
}
rm -rf .cross
for target in ${*:-x86_64-macos aarch64-macos x86_64-windows-gnu aarch64-windows-gnu}; do
    case $target in
        *-macos) platform=darwin shared=-dynamiclib macros="{'__clang__'}" ;;
        *) platform=win32 shared=-shared macros="{'__clang__', '__MINGW32__'}" ;;
    esac
    folder=.cross/$target
    mkdir -p "$folder/lib"
    compiler="$python -m ziglang c++ -target $target"
    compile="$(options "compiling('$platform', $macros)") -Werror"
    jobs=""
    for source in csrc/core.cpp csrc/fastgc*.cpp csrc/kernels*.cpp csrc/rank.cpp csrc/threads.cpp tests/csrc/test_*.cpp
    do
        # shellcheck disable=SC2086  # options are words
        $compiler $compile -Icsrc '-DFASTGC_VERSION="0"' -c "$source" -o "$folder/$(basename "$source" .cpp).o" &
        jobs="$jobs $!"
    done
    for job in $jobs; do wait "$job"; done
    core="$folder/core.o $folder/kernels*.o $folder/threads.o"
    # Of the linker's options zig knows these alone; it links its own libraries statically without being told.
    own=$(options "linking_library('$platform', 'fastgc', '$folder/lib')" | sed 's/ -Wl,-exported_symbol,[^ ]*//')
    # shellcheck disable=SC2086
    $compiler $shared $core "$folder/rank.o" "$folder"/fastgc*.o $own \
        -o "$folder/lib/$(options "library('$platform', 'fastgc')")"
    # shellcheck disable=SC2086
    $compiler $core "$folder/test_core.o" -o "$folder/test_core.exe"
    $compiler "$folder/test_patterns.o" -o "$folder/test_patterns.exe"
    $compiler "$folder/threads.o" "$folder/test_threads.o" -o "$folder/test_threads.exe"
    echo "$target: compiled and linked"
    if [ "$target" = x86_64-windows-gnu ] && command -v wine > /dev/null; then
        export WINEPREFIX="$PWD/.cross/wine" WINEDEBUG=-all
        wine wineboot --init > /dev/null 2>&1
        wine "$folder/test_core.exe"
        wine "$folder/test_patterns.exe"
        wine "$folder/test_threads.exe"
    fi
done
