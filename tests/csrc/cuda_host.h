// Stands in for csrc/cuda/device.cuh where the CUDA kernels are compiled for the host: the same names, with the
// arithmetic of IEEE 754, and memory that is checked. Threads are run by cuda_host.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define FASTGC_DEVICE inline

struct Dimensions {
    unsigned x, y, z;
};
extern Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace host {
// Whether an access is inside what the launch may read or write; notes it if not, or if it is misaligned.
bool check(const void* at, std::size_t size, bool write);
void barrier(bool block);
// What another thread of the warp shows, its number differing in some bits; waits for all.
long long exchange(long long mine, unsigned distance);
unsigned char* shared();
}  // namespace host

namespace fastgc {

using Index = long long;

struct Float16 {
    unsigned short bits;
};
struct BFloat16 {
    unsigned short bits;
};
struct alignas(16) Line {
    unsigned int words[4];
};
struct alignas(16) Pair {
    double first, second;
};

// Copied by memcpy: what is there is of another type than a line.
template <class E>
E load(const E* from) {
    E element{};
    if (host::check(from, sizeof(E), false)) std::memcpy(&element, static_cast<const void*>(from), sizeof(E));
    return element;
}
template <class E>
E load_input(const E* from) {
    return load(from);
}
template <class E>
E load_common(const E* from) {
    return load(from);
}
template <class E>
void store(E* to, E element) {
    if (host::check(to, sizeof(E), true)) std::memcpy(static_cast<void*>(to), &element, sizeof(E));
}

inline float as_float(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Float16 x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16;
    const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    float size =
        std::ldexp(static_cast<float>(exponent == 0 ? fraction : 1024 + fraction), exponent == 0 ? -24 : exponent - 25);
    if (exponent == 31) size = fraction == 0 ? std::numeric_limits<float>::infinity() : as_float(0x7fc00000u);
    return as_float(bits_of(size) | sign);
}
inline float widen(BFloat16 x) { return as_float(static_cast<std::uint32_t>(x.bits) << 16); }

inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }
inline void narrow(float x, Float16& to) {
    const unsigned sign = bits_of(x) >> 16 & 0x8000;
    unsigned bits = 0x7fff;  // NaN
    const float size = std::fabs(x);
    if (size >= 65520.0F) {
        bits = 0x7c00;
    } else if (size < std::ldexp(1.0F, -14)) {
        bits = static_cast<unsigned>(std::nearbyint(std::ldexp(size, 24)));
    } else if (size == size) {
        const std::uint32_t word = bits_of(size);
        bits = (word + 0xfff + (word >> 13 & 1) - (112u << 23)) >> 13;
    }
    to.bits = static_cast<unsigned short>(sign | bits);
}
inline void narrow(float x, BFloat16& to) {
    const std::uint32_t bits = bits_of(x);
    to.bits = static_cast<unsigned short>(x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline double fused(double a, double b, double c) { return std::fma(a, b, c); }
inline float sum(float a, float b) { return a + b; }
inline double sum(double a, double b) { return a + b; }
inline double difference(double a, double b) { return a - b; }
inline double product(double a, double b) { return a * b; }
inline double reciprocal(double a) { return 1.0 / a; }
inline Index size_bits(double a) {
    std::uint64_t bits;
    std::memcpy(&bits, &a, sizeof bits);
    return static_cast<Index>(bits & 0x7fffffffffffffff);
}
inline double not_a_number() { return std::numeric_limits<double>::quiet_NaN(); }

inline void block_barrier() { host::barrier(true); }
inline void warp_barrier() { host::barrier(false); }
template <class T>
T exchange(T mine, int distance) {
    return static_cast<T>(host::exchange(mine, static_cast<unsigned>(distance)));
}
inline unsigned char* shared_memory() { return host::shared(); }

}  // namespace fastgc
