// How many threads a call gets, and a loop over them.
#pragma once

#include "kernels.h"

namespace fastgc {

// Threads that shares of a call are computed on.
class Team {
  public:
    // Those that a call should use that moves so many bytes, the caller among them.
    virtual int size(double bytes) = 0;
    // Calls body(context, t) for t = 0 … shares - 1, no more than the largest size, on any threads, and returns when
    // all calls have.
    virtual void run(int shares, void (*body)(const void* context, int t), const void* context) = 0;

  protected:
    ~Team() = default;
};

// This library's own: most_threads() of them, the caller among them. In a child of fork(), where none of the others is
// left, it is the caller alone.
Team& own_threads();

// Threads that a call may have: as many as was said last, at first by OMP_NUM_THREADS, and no more than the CPUs that
// the process may run on.
int most_threads();
void set_most_threads(int count);

// Threads for a call that moves `bytes`, each to get at least `grain` of them: at most the size of the team (null: this
// library's own threads) and `limit` (0: no limit given).
int thread_count(double bytes, double grain, int limit, Team* team = nullptr);

// Calls body(t) for t = 0 … threads - 1. The body must not throw.
template <class Body>
void parallel(int threads, Team* team, const Body& body) {
    if (threads == 1) return body(0);
    (team != nullptr ? *team : own_threads())
        .run(threads, [](const void* context, int t) { (*static_cast<const Body*>(context))(t); }, &body);
}

}  // namespace fastgc
