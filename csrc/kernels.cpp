// Keeps the table and chooses a column of it.
//
// To add a kernel: write its body in a file like lincomb-inl.h in terms of Vec<T> (simd-inl.h), include it in
// kernels-inl.h, add a row to struct Kernels and fill it in there. To add an instruction set: give it a Vec in
// simd-inl.h, a file like kernels_avx2.cpp, and a line in available_kernels().
#include "kernels.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__) && defined(__GNUC__)
# include <cpuid.h>
#endif

namespace fastgc {

std::uint16_t bfloat16_by_integers = 0xffff;

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> available = [] {
        std::vector<const Kernels*> list{&portable::kernels};
#if FASTGC_X86
        unsigned leaf[4];  // F16C is not among the names that every compiler's cpu_supports knows
        const bool f16c = __get_cpuid(1, &leaf[0], &leaf[1], &leaf[2], &leaf[3]) != 0 && (leaf[2] & bit_F16C) != 0;
        __builtin_cpu_init();  // cpu_supports also asks whether the operating system saves the wide registers
        if (f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.push_back(&avx2::kernels);
# if FASTGC_AVX512
        if (f16c && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")) {
            list.push_back(&avx512::kernels);
            constexpr unsigned bf16 = 1u << 5;
            if (__get_cpuid_count(7, 1, &leaf[0], &leaf[1], &leaf[2], &leaf[3]) != 0 && (leaf[0] & bf16) != 0)
                bfloat16_by_integers = 0;
        }
# endif
#endif
#if FASTGC_NEON
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
