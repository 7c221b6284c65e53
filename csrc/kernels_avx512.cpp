// The kernels for AVX-512 (F, VL, BW, DQ; BF16 where the processor has it).
#include "kernels.h"
#if FASTGC_AVX512

# include "intrinsics.h"

// All headers are included before the region: a function with external linkage that it instantiated could be the copy
// that the linker picks for everyone. The bodies call only intrinsics, compiler builtins and each other.
# define FASTGC_TARGET avx512
# define FASTGC_TARGET_ID FASTGC_AVX512_ID
// No compiler makes an instruction of BF16 by itself: there is no type in the bodies that it is for.
# ifdef __clang__
#  define FASTGC_BF16 1
#  pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma,f16c"))), \
                               apply_to = function)
# else
#  pragma GCC push_options
#  if __GNUC__ >= 10
#   define FASTGC_BF16 1
#   pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma,f16c")
#  else
#   define FASTGC_BF16 0
#   pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")
#  endif
# endif
# include "kernels-inl.h"
# ifdef __clang__
#  pragma clang attribute pop
# else
#  pragma GCC pop_options
# endif

#endif
