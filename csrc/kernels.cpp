// Compiles the bodies once per instruction set and keeps the table.
//
// To add a kernel: write its body in a file like lincomb-inl.h in terms of Vec<T> (simd-inl.h), include it in
// kernels-inl.h, add a row to struct Kernels and fill it in there. To add an instruction set: give it a Vec in
// simd-inl.h, a block below and a line in available_kernels().
//
// Nothing with external linkage may be instantiated inside a target region, or the linker could pick the copy that
// needs AVX-512 for everyone. So all headers are included before the first region, and the bodies call only
// intrinsics, compiler builtins and functions of their own unnamed namespace.
#include "kernels.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__) && defined(__GNUC__)
# define FASTGC_X86 1
# include <cpuid.h>
// GCC 12 takes its own header's placeholders for mistakes (GCC bug 105593).
# if !defined(__clang__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#  pragma GCC diagnostic ignored "-Wuninitialized"
# endif
# include <immintrin.h>
# if !defined(__clang__)
#  pragma GCC diagnostic pop
# endif
#elif defined(__aarch64__)
# define FASTGC_NEON 1
# include <arm_neon.h>
#endif

#define FASTGC_PORTABLE_ID 0
#define FASTGC_AVX2_ID 1
#define FASTGC_AVX512_ID 2
#define FASTGC_NEON_ID 3

#define FASTGC_TARGET portable
#define FASTGC_TARGET_ID FASTGC_PORTABLE_ID
#include "kernels-inl.h"
#undef FASTGC_TARGET
#undef FASTGC_TARGET_ID

#ifdef FASTGC_X86
# define FASTGC_TARGET avx2
# define FASTGC_TARGET_ID FASTGC_AVX2_ID
# ifdef __clang__
#  pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
# else
#  pragma GCC push_options
#  pragma GCC target("avx2,fma,f16c")
# endif
# include "kernels-inl.h"
# ifdef __clang__
#  pragma clang attribute pop
# else
#  pragma GCC pop_options
# endif
# undef FASTGC_TARGET
# undef FASTGC_TARGET_ID

# ifndef FASTGC_WITHOUT_AVX512  // for builds that take long and will not run it
#  define FASTGC_TARGET avx512
#  define FASTGC_TARGET_ID FASTGC_AVX512_ID
#  ifdef __clang__
#   pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c"))), \
                                apply_to = function)
#  else
#   pragma GCC push_options
#   pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")
#  endif
#  include "kernels-inl.h"
#  ifdef __clang__
#   pragma clang attribute pop
#  else
#   pragma GCC pop_options
#  endif
#  undef FASTGC_TARGET
#  undef FASTGC_TARGET_ID
# endif
#endif

#ifdef FASTGC_NEON  // part of every AArch64, so no region is needed
# define FASTGC_TARGET neon
# define FASTGC_TARGET_ID FASTGC_NEON_ID
# include "kernels-inl.h"
# undef FASTGC_TARGET
# undef FASTGC_TARGET_ID
#endif

namespace fastgc {

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> available = [] {
        std::vector<const Kernels*> list{&portable::kernels};
#ifdef FASTGC_X86
        unsigned leaf[4];  // F16C is not among the names that every compiler's cpu_supports knows
        const bool f16c = __get_cpuid(1, &leaf[0], &leaf[1], &leaf[2], &leaf[3]) != 0 && (leaf[2] & bit_F16C) != 0;
        __builtin_cpu_init();  // cpu_supports also asks whether the operating system saves the wide registers
        if (f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.push_back(&avx2::kernels);
# ifndef FASTGC_WITHOUT_AVX512
        if (f16c && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
            list.push_back(&avx512::kernels);
# endif
#endif
#ifdef FASTGC_NEON
        list.push_back(&neon::kernels);
#endif
        return list;
    }();
    return available;
}

const Kernels& kernels_named(const std::string& name, const char* source) {
    std::string known;
    for (const Kernels* kernels : available_kernels()) {
        if (name == kernels->name) return *kernels;
        known += known.empty() ? "" : ", ";
        known += kernels->name;
    }
    throw std::invalid_argument(std::string(source) + "=" + name +
                                ": no such instruction set on this machine; available: " + known);
}

const Kernels& default_kernels() {
    static std::atomic<const Kernels*> chosen{nullptr};
    const Kernels* kernels = chosen.load(std::memory_order_acquire);
    if (kernels == nullptr) {
        const char* forced = std::getenv("FASTGC_ISA");
        kernels =
            forced != nullptr && *forced != '\0' ? &kernels_named(forced, "FASTGC_ISA") : available_kernels().back();
        chosen.store(kernels, std::memory_order_release);
    }
    return *kernels;
}

}  // namespace fastgc
