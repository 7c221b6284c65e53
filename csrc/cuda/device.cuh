// What the kernels ask of the machine: element types, memory, and arithmetic with one rounding a step.
//
// Instructions are spelled out. CuPy compiles with -ftz=true, which would flush subnormal numbers in what a compiler
// makes of plain float32 arithmetic, and a compiler may fuse a product with a sum. Nothing is included, so that NVRTC
// needs no headers. tests/csrc/cuda_host.h stands in for this file where the kernels are compiled for the host.
#pragma once

#define FASTGC_DEVICE __device__ __forceinline__

namespace fastgc {

using Index = long long;

struct Float16 {
    unsigned short bits;
};
struct BFloat16 {
    unsigned short bits;
};

// 16 bytes, which one instruction moves.
struct alignas(16) Line {
    unsigned int words[4];
};

// Two numbers, which one instruction moves.
struct __align__(16) Pair {
    double first, second;
};

// Inputs are read once: they need no place in the first-level cache.
FASTGC_DEVICE Line load_input(const Line* from) {
    Line line;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(line.words[0]), "=r"(line.words[1]), "=r"(line.words[2]), "=r"(line.words[3])
        : "l"(from));
    return line;
}
FASTGC_DEVICE Index load_input(const Index* from) { return __ldg(from); }
FASTGC_DEVICE double load_input(const double* from) { return __ldg(from); }
FASTGC_DEVICE float load_input(const float* from) { return __ldg(from); }
FASTGC_DEVICE Float16 load_input(const Float16* from) { return {__ldg(&from->bits)}; }
FASTGC_DEVICE BFloat16 load_input(const BFloat16* from) { return {__ldg(&from->bits)}; }

// What all threads read, and read again: through the first-level cache.
FASTGC_DEVICE Line load_common(const Line* from) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
    return {{words.x, words.y, words.z, words.w}};
}

template <class E>
FASTGC_DEVICE E load(const E* from) {
    return *from;
}
template <class E>
FASTGC_DEVICE void store(E* to, E element) {
    *to = element;
}
FASTGC_DEVICE Line load(const Line* from) {
    Line line;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(line.words[0]), "=r"(line.words[1]), "=r"(line.words[2]), "=r"(line.words[3])
                 : "l"(from)
                 : "memory");
    return line;
}
FASTGC_DEVICE void store(Line* to, Line line) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(line.words[0]), "r"(line.words[1]), "r"(line.words[2]), "r"(line.words[3])
                 : "memory");
}

FASTGC_DEVICE float widen(float x) { return x; }
FASTGC_DEVICE double widen(double x) { return x; }
FASTGC_DEVICE float widen(Float16 x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}
FASTGC_DEVICE float widen(BFloat16 x) { return __uint_as_float(static_cast<unsigned int>(x.bits) << 16); }

// To nearest even.
FASTGC_DEVICE void narrow(float x, float& to) { to = x; }
FASTGC_DEVICE void narrow(double x, double& to) { to = x; }
FASTGC_DEVICE void narrow(float x, Float16& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
FASTGC_DEVICE void narrow(float x, BFloat16& to) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
    const unsigned int bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to.bits = static_cast<unsigned short>(nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

// a * b + c, rounded once.
FASTGC_DEVICE float fused(float a, float b, float c) {
    float result;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
    return result;
}
FASTGC_DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

FASTGC_DEVICE float sum(float a, float b) {
    float result;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
FASTGC_DEVICE double sum(double a, double b) { return __dadd_rn(a, b); }
FASTGC_DEVICE double difference(double a, double b) { return __dsub_rn(a, b); }
FASTGC_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
FASTGC_DEVICE double reciprocal(double a) { return __drcp_rn(a); }
// In the order of magnitudes; a NaN's is the largest.
FASTGC_DEVICE Index size_bits(double a) { return __double_as_longlong(a) & 0x7fffffffffffffffll; }
FASTGC_DEVICE double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

FASTGC_DEVICE void block_barrier() { __syncthreads(); }
FASTGC_DEVICE void warp_barrier() { __syncwarp(); }
// What the lane of the warp has whose number differs by a power of two; all lanes ask.
template <class T>
FASTGC_DEVICE T exchange(T mine, int distance) {
    return __shfl_xor_sync(0xffffffffu, mine, distance);
}

// What a block's threads share: as many bytes as the launch asks for.
FASTGC_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}

}  // namespace fastgc
