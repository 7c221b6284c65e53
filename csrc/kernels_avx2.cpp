// The kernels for AVX2, FMA and F16C.
#include "kernels.h"
#if FASTGC_X86

# include "intrinsics.h"

// All headers are included before the region: a function with external linkage that it instantiated could be the copy
// that the linker picks for everyone. The bodies call only intrinsics, compiler builtins and each other.
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

#endif
