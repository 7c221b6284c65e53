// The kernels for AVX-512 (F, VL, BW, DQ).
#include "kernels.h"
#if FASTGC_AVX512

# include "intrinsics.h"

// All headers are included before the region: a function with external linkage that it instantiated could be the copy
// that the linker picks for everyone. The bodies call only intrinsics, compiler builtins and each other.
# define FASTGC_TARGET avx512
# define FASTGC_TARGET_ID FASTGC_AVX512_ID
# ifdef __clang__
#  pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c"))), \
                               apply_to = function)
# else
#  pragma GCC push_options
#  pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")
# endif
# include "kernels-inl.h"
# ifdef __clang__
#  pragma clang attribute pop
# else
#  pragma GCC pop_options
# endif

#endif
