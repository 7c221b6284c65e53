// How many threads a call gets, and a loop over them.
#pragma once

#include <utility>

#include "kernels.h"

#ifdef _OPENMP
# include <omp.h>
#endif

namespace fastgc {

// Threads for a call that moves `bytes`, each to get at least `grain` of them: at most `limit` (0: no limit given),
// OMP_NUM_THREADS and the CPUs this process may run on. One inside another parallel region, and one in a child
// of fork(): the OpenMP pool's threads do not survive fork and libgomp would wait for them for ever.
int thread_count(double bytes, double grain, int limit);

// Calls body(t) for t = 0 … threads - 1. The body must not throw.
template <class Body>
void parallel(int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1) {
# pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int t = 0; t < threads; ++t) body(t);
        return;
    }
#endif
    for (int t = 0; t < threads; ++t) body(t);
}

}  // namespace fastgc
