#!/bin/sh
# Builds the C++ core with its test under AddressSanitizer and UBSan, and runs it; and the tests of the cache of patterns
# and of the threads under these and under ThreadSanitizer. CXX chooses the compiler; arguments go to it (for instance
# -march=x86-64-v3, to see that the build target changes no bit of the fused sets).
set -eu
cd "$(dirname "$0")/../.."
rm -rf .asan && mkdir -p .asan
sanitize="-fsanitize=address,undefined -fno-sanitize-recover=all"
# Compiling is what takes long: at -O1 the checks in the unrolled kernels take twice as much as at -Og (65 s for the
# portable ones), at -O2, or with more than line numbers for the reports, one and a half to two times as much again. What
# -O0 compiles faster runs longer.
flags="-std=c++17 -Og -g1 -ffp-contract=off -fno-math-errno -pthread -Wall -Wextra -Werror -Icsrc $sanitize $*"
# A fifth of the rest is GCC's passes over pointers and over whole programs, which find nothing in these; other compilers
# have no such options.
fewer="-fno-tree-pta -fno-ipa-pure-const -fno-ipa-reference"
# shellcheck disable=SC2086  # flags are words
"${CXX:-g++}" -Werror $fewer -x c++ -fsyntax-only /dev/null 2>/dev/null && flags="$flags $fewer"
# The AVX-512 kernels take as long to compile as the rest; without the instructions nothing of them would run.
grep -qs avx512f /proc/cpuinfo || flags="$flags -DFASTGC_WITHOUT_AVX512"
jobs=""
for source in csrc/core.cpp csrc/kernels*.cpp csrc/threads.cpp tests/csrc/test_core.cpp; do
    # shellcheck disable=SC2086  # flags are words
    "${CXX:-g++}" $flags -c "$source" -o ".asan/$(basename "$source" .cpp).o" &
    jobs="$jobs $!"
done
for sanitizers in address,undefined thread; do
    for test in patterns threads; do
        # shellcheck disable=SC2086
        "${CXX:-g++}" -std=c++17 -O1 -g1 -pthread -Wall -Wextra -Werror -Icsrc $* "-fsanitize=$sanitizers" \
            -fno-sanitize-recover=all csrc/threads.cpp "tests/csrc/test_$test.cpp" -o ".asan/test_${test}_$sanitizers" &
        jobs="$jobs $!"
    done
done
for job in $jobs; do wait "$job"; done
# shellcheck disable=SC2086
"${CXX:-g++}" -pthread $sanitize .asan/*.o -o .asan/test_core
OMP_NUM_THREADS=3 .asan/test_core
for test in .asan/test_patterns_* .asan/test_threads_*; do "$test"; done
