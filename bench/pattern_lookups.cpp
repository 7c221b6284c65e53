// Looks survivor patterns up in libfastgc's cache as a master in C++ does, and times it. pattern_lookups.py compiles
// and calls it. What fails is -1.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fastgc.hpp>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

}  // namespace

extern "C" {

fastgc::patterns* fastgc_bench_cache(const double* generator, std::int64_t n, std::int64_t k,
                                     std::int64_t capacity) try {
    return new fastgc::patterns({generator, n, k}, capacity);
} catch (...) {
    return nullptr;
}

void fastgc_bench_drop(fastgc::patterns* cache) { delete cache; }

// Seconds of one look-up of `count` on each of so many threads, of masks from number `first` of `masks` on and around.
// `weights` (k x k) are those of the last one of the calling thread.
double fastgc_bench_look_up(const fastgc::patterns* cache, const std::uint64_t* masks, std::int64_t among,
                            std::int64_t first, std::int64_t count, std::int64_t k, int threads, double* weights) try {
    const auto look_up = [=](std::int64_t next, double* to) {
        for (std::int64_t i = 0; i < count; ++i) {
            cache->weights(masks[next], {to, k, k});
            if (++next == among) next = 0;
        }
    };
    std::vector<std::vector<double>> own(static_cast<std::size_t>(threads),
                                         std::vector<double>(static_cast<std::size_t>(k * k)));
    const auto begin = Clock::now();
    std::vector<std::thread> others;
    for (std::int64_t t = 1; t < threads; ++t)
        others.emplace_back(look_up, (first + t * among / threads) % among, own[static_cast<std::size_t>(t)].data());
    look_up(first % among, weights);
    for (std::thread& other : others) other.join();
    return seconds_since(begin) / static_cast<double>(count);
} catch (...) {
    return -1;
}

// Seconds of one call that finds weights without a cache.
double fastgc_bench_solve(const double* generator, std::int64_t n, std::int64_t k, const std::int64_t* patterns,
                          std::int64_t among, std::int64_t count, double* weights) {
    int status = FASTGC_OK;
    const auto begin = Clock::now();
    for (std::int64_t i = 0; i < count; ++i)
        status |= fastgc_decoding_weights(generator, n, k, patterns + i % among * k, 1, weights, 1);
    return status == FASTGC_OK ? seconds_since(begin) / static_cast<double>(count) : -1;
}

// Seconds of finding all sets of k survivors into a new cache, the memory's release left out.
double fastgc_bench_precompute(const double* generator, std::int64_t n, std::int64_t k, std::int64_t capacity,
                               int threads) try {
    const auto begin = Clock::now();
    const fastgc::patterns cache({generator, n, k}, capacity);
    cache.precompute_all(k, threads);
    return seconds_since(begin);
} catch (...) {
    return -1;
}
}
