// How many threads a call gets, and a loop over them.
#pragma once

#include <utility>

#include "kernels.h"

#ifdef _OPENMP
# include <omp.h>
#endif

namespace fastgc {

// Threads that a caller has of its own, which work in place of OpenMP's.
class Team {
  public:
    virtual int size() = 0;
    // Calls body(context, t) for t = 0 … shares - 1, on any threads, and returns when all calls have.
    virtual void run(int shares, void (*body)(const void* context, int t), const void* context) = 0;

  protected:
    ~Team() = default;
};

// Threads for a call that moves `bytes`, each to get at least `grain` of them: at most `limit` (0: no limit given), and
// the size of the team, or without one OMP_NUM_THREADS and the CPUs this process may run on. Of OpenMP's, one inside
// another parallel region, and one in a child of fork(): its pool's threads do not survive fork and libgomp would wait
// for them for ever.
int thread_count(double bytes, double grain, int limit, Team* team = nullptr);

// Calls body(t) for t = 0 … threads - 1. The body must not throw.
template <class Body>
void parallel(int threads, Team* team, const Body& body) {
    if (team != nullptr && threads > 1)
        return team->run(threads, [](const void* context, int t) { (*static_cast<const Body*>(context))(t); }, &body);
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
