// The kernels for any machine.
#include "kernels.h"

#define FASTGC_TARGET portable
#define FASTGC_TARGET_ID FASTGC_PORTABLE_ID
#include "kernels-inl.h"
