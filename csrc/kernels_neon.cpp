// The kernels for NEON, which is part of every AArch64.
#include "kernels.h"
#if FASTGC_NEON
# include <arm_neon.h>

# define FASTGC_TARGET neon
# define FASTGC_TARGET_ID FASTGC_NEON_ID
# include "kernels-inl.h"

#endif
