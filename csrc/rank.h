// The rank decision of fastgc.linalg.rank, for programs without Python.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace fastgc {

// Whether the q >= k rows `pattern` of the generator (row-major, k columns) have numerical rank k: with columns scaled
// to length 1, all singular values exceed 64 q 2^-52 times the largest.
bool full_rank(const double* generator, Index k, const std::int64_t* pattern, Index q);

}  // namespace fastgc
