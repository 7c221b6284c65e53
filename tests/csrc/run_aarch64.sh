#!/bin/sh
# Builds the C++ core with its test for AArch64 and runs it under QEMU: the NEON code path on a machine of another kind.
# Debian: apt-get install g++-aarch64-linux-gnu qemu-user
set -eu
cd "$(dirname "$0")/../.."
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed" >&2; exit 2; }
done
mkdir -p .aarch64
aarch64-linux-gnu-g++ -std=c++17 -O2 -ffp-contract=off -fno-math-errno -pthread -Wall -Wextra -Werror -Icsrc -static \
    csrc/core.cpp csrc/kernels*.cpp csrc/threads.cpp tests/csrc/test_core.cpp -o .aarch64/test_core
OMP_NUM_THREADS=2 qemu-aarch64 .aarch64/test_core
