// All bodies, compiled once per instruction set: included by kernels_*.cpp alone.
#define FASTGC_PORTABLE_ID 0
#define FASTGC_AVX2_ID 1
#define FASTGC_AVX512_ID 2
#define FASTGC_NEON_ID 3

namespace fastgc {
namespace FASTGC_TARGET {
namespace {

constexpr Tuning kTuning = FASTGC_TARGET_ID == FASTGC_AVX512_ID ? zen5() : zen3();

#include "simd-inl.h"
// Vec<T> first: the bodies are written in terms of it.
#include "decoding_weights-inl.h"
#include "least_norm-inl.h"
// Which has the sums that this is written in, too.
#include "few_missing-inl.h"
#include "lincomb-inl.h"

}  // namespace

#define FASTGC_STRING_(x) #x
#define FASTGC_STRING(x) FASTGC_STRING_(x)
const Kernels kernels = {FASTGC_STRING(FASTGC_TARGET),
                         kTuning,
                         kFused,
                         {{&lincomb<float, float>},
                          {&lincomb<float, Float16>},
                          {&lincomb<float, BFloat16>},
                          {&lincomb<double, double>},
                          {&lincomb<Float16, Float16>},
                          {&lincomb<Float16, float>},
                          {&lincomb<BFloat16, BFloat16>},
                          {&lincomb<BFloat16, float>}},
                         {{&some_size<float>}, {&some_size<double>}, {&some_size<Float16>}, {&some_size<BFloat16>}},
                         &decoding_weights,
                         &least_norm_weights,
                         &few_missing_weights};
#undef FASTGC_STRING
#undef FASTGC_STRING_

}  // namespace FASTGC_TARGET
}  // namespace fastgc
