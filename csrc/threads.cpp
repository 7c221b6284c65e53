#include "threads.h"

#include <algorithm>
#include <atomic>

#ifdef _OPENMP
# ifndef _WIN32
#  include <pthread.h>
# endif
# ifdef __linux__
#  include <sched.h>
# endif
#endif

namespace fastgc {

namespace {

int of_team(double share, int limit, Team& team) {
    const int threads = limit > 0 ? std::min(team.size(), limit) : team.size();
    return std::max(1, share < threads ? static_cast<int>(share) : threads);
}

}  // namespace

#ifdef _OPENMP

namespace {

std::atomic<bool> forked{false};

// Registered when the library is loaded, so that no use of the pool can come before it. Windows has no fork().
# ifdef _WIN32
const int registered = 0;
# else
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
# endif

// CPUs in the affinity mask, asked at every call: launchers pin processes after start. Elsewhere OpenMP knows them.
int usable_cpus(int most) {
# ifdef __linux__
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) return std::min(most, CPU_COUNT(&mask));
# endif
    return most;
}

}  // namespace

int thread_count(double bytes, double grain, int limit, Team* team) {
    const double share = bytes / grain;
    if (team != nullptr) return of_team(share, limit, *team);
    if (share < 2 || limit == 1 || registered != 0 || forked.load(std::memory_order_relaxed) || omp_in_parallel())
        return 1;
    int threads = omp_get_max_threads();
    if (limit > 0) threads = std::min(threads, limit);
    if (share < threads) threads = static_cast<int>(share);
    return threads > 1 ? std::max(1, usable_cpus(threads)) : 1;
}

#else

int thread_count(double bytes, double grain, int limit, Team* team) {
    return team != nullptr ? of_team(bytes / grain, limit, *team) : 1;
}

#endif

}  // namespace fastgc
