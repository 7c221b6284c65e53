// The cache of patterns alone: against a plain model of it, and used by several threads at once. Run by
// tests/csrc/run_sanitized.sh under AddressSanitizer and under ThreadSanitizer, which cannot see into OpenMP: the C
// interface, which finds weights with its threads, is tested from Python.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <random>
#include <thread>
#include <vector>

#include "patterns.h"

namespace {

using fastgc::Index;
using fastgc::PatternCache;
using Mask = std::vector<std::uint64_t>;

std::atomic<int> failures{0};
std::atomic<long> cases{0};

void expect(bool right, const char* what) {
    ++cases;
    if (!right && ++failures <= 10) std::printf("FAILED: %s\n", what);
}

constexpr Index kRows = 2;  // of weights

Index count(const Mask& mask) {
    Index q = 0;
    for (const std::uint64_t word : mask) q += __builtin_popcountll(word);
    return q;
}

// Numbers that tell a mask from any other, and the places of the matrix from each other.
std::vector<double> weights(const Mask& mask) {
    std::vector<double> made(static_cast<std::size_t>(kRows * count(mask)));
    double value = 0;
    for (const std::uint64_t word : mask) value = value * 3 + static_cast<double>(word % 1000003);
    for (double& number : made) number = value++;
    return made;
}

bool found(PatternCache& cache, const Mask& mask) {
    const std::vector<double> wanted = weights(mask);
    std::vector<double> got(wanted.size(), -1);
    const bool held = cache.find(mask.data(), count(mask), got.data());
    expect(got == (held ? wanted : std::vector<double>(wanted.size(), -1)), "the weights of a mask, or nothing");
    return held;
}

void add(PatternCache& cache, const Mask& mask) {
    cache.add(cache.block(mask.data(), count(mask), weights(mask).data()));
}

Mask random_mask(Index words, std::mt19937_64& random) {
    Mask mask(static_cast<std::size_t>(words));
    // In one word or another: masks that differ in their last word alone, too.
    mask[random() % mask.size()] = random() % 50 + 1;
    return mask;
}

// Least recently used first, as a list.
void test_against_a_model(Index n, Index capacity, std::mt19937_64& random) {
    PatternCache cache(n, kRows, capacity);
    std::list<Mask> model;
    Index hits = 0, misses = 0;
    const auto use = [&](const Mask& mask) {
        const auto at = std::find(model.begin(), model.end(), mask);
        const bool held = at != model.end();
        if (held) model.erase(at);
        model.push_back(mask);
        return held;
    };
    const auto shrink = [&] {
        while (static_cast<Index>(model.size()) > capacity) model.pop_front();
    };
    for (int step = 0; step < 4000; ++step) {
        if (random() % 50 != 0) {
            const Mask mask = random_mask(cache.words(), random);
            const bool held = use(mask);
            expect(found(cache, mask) == held, "what is held");
            if (!held) add(cache, mask);
            (held ? hits : misses) += 1;
        } else {  // several at once: some held, some twice, some that are neither held nor given
            const Index several = 1 + static_cast<Index>(random() % static_cast<std::uint64_t>(capacity));
            std::vector<std::uint64_t> masks;
            std::vector<PatternCache::Block> blocks;
            for (Index i = 0; i < several; ++i) {
                const Mask mask = random_mask(cache.words(), random);
                masks.insert(masks.end(), mask.begin(), mask.end());
                const bool held = std::find(model.begin(), model.end(), mask) != model.end();
                const bool given = random() % 4 != 0;
                blocks.push_back(given ? cache.block(mask.data(), count(mask), weights(mask).data()) : nullptr);
                if (held || given) use(mask);
            }
            cache.add(masks.data(), several, blocks);
        }
        shrink();
        expect(cache.size() == static_cast<Index>(model.size()), "the number of patterns");
    }
    for (const Mask& mask : model) expect(cache.holds(mask.data()), "what the model holds");
    expect(cache.hits() == hits && cache.misses() == misses, "hits and misses");
}

void test_threads(Index n, Index capacity) {
    PatternCache cache(n, kRows, capacity);
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 4; ++seed)
        threads.emplace_back([&cache, seed] {
            std::mt19937_64 random(seed);
            for (int step = 0; step < 2000; ++step) {
                const Mask mask = random_mask(cache.words(), random);
                if (!found(cache, mask)) add(cache, mask);
                if (step % 100 == 0) {
                    std::vector<PatternCache::Block> blocks(1);
                    cache.add(mask.data(), 1, blocks);
                    expect(cache.size() <= cache.capacity(), "the bound");
                }
            }
        });
    for (std::thread& thread : threads) thread.join();
    expect(cache.hits() + cache.misses() == 4 * 2000, "every look-up is counted");
}

}  // namespace

int main() {
    std::mt19937_64 random(20200514);
    for (const Index n : {6, 64, 65, 200})
        for (const Index capacity : {1, 2, 7, 64, 150}) test_against_a_model(n, capacity, random);
    for (const Index n : {64, 130})
        for (const Index capacity : {1, 20, 1000}) test_threads(n, capacity);
    std::printf("%ld checks of the cache of patterns, %d failures\n", cases.load(), failures.load());
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
