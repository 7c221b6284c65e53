// The intrinsics of x86-64, without the warnings that GCC 12 has about its own header: it takes placeholders for
// mistakes (GCC bug 105593).
#pragma once

#if !defined(__clang__)
# pragma GCC diagnostic push
# pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
# pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
# pragma GCC diagnostic pop
#endif
