// The C interface's cache of weights by survivor pattern.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "c_interface.h"
#include "patterns.h"

using fastgc::Index;
using namespace fastgc::c;

// Survivors are given as masks; the kernels want patterns, the numbers of their rows.
struct fastgc_patterns {
    fastgc_patterns(const double* generator_, Index n_, Index k_, const double* target_, Index m_, Index capacity)
        : n(n_),
          k(k_),
          m(m_),
          inverts(target_ == nullptr),
          generator(generator_, generator_ + n_ * k_),
          target(target_of(target_, m_, k_)),
          table(!inverts && fastgc::few_missing_pays(n, k, m)
                    ? fastgc::few_missing_table(generator.data(), n, k, target.data(), m)
                    : std::vector<double>()),
          cache(n_, m_, capacity) {}

    // How many survivors a mask has: at least k. name() is what its caller knows it by.
    template <class Name>
    Index count(const std::uint64_t* mask, const Name& name) const {
        Index q = 0;
        for (Index w = 0; w < cache.words(); ++w) q += __builtin_popcountll(mask[w]);
        const std::uint64_t last = mask[cache.words() - 1];
        if (n % 64 != 0 && last >> (n % 64) != 0)
            refuse(name() + ": bit " + std::to_string(n / 64 * 64 + 63 - __builtin_clzll(last)) + " is beyond the " +
                   std::to_string(n) + " rows of the generator");
        if (q < k)
            throw NotDecodable(name() + ": " + std::to_string(q) + " of them cannot have rank " + std::to_string(k));
        return q;
    }

    // Writes the rows that a mask names, in increasing order; returns the end of what it wrote.
    std::int64_t* write_rows(const std::uint64_t* mask, std::int64_t* to) const {
        for (Index w = 0; w < cache.words(); ++w)
            for (std::uint64_t rest = mask[w]; rest != 0; rest &= rest - 1) *to++ = 64 * w + __builtin_ctzll(rest);
        return to;
    }

    template <class Name, class Singular>
    std::vector<double> weights(const std::vector<std::int64_t>& patterns, Index q, const fastgc::Options& how,
                                const Name& name, const Singular& singular) const {
        const Index batch = static_cast<Index>(patterns.size()) / q;
        const double* const wanted = inverts && q == k ? nullptr : target.data();
        return weights_of(table.empty() ? nullptr : table.data(), generator.data(), n, k, patterns.data(), batch, q,
                          wanted, m, how, name, singular);
    }

    // Finds what is not held of these masks. Of those that do not have rank k the first is refused, or all are passed
    // over.
    void precompute(const std::uint64_t* masks, Index all, const fastgc::Options& how, bool pass_over);

    const Index n, k, m;
    const bool inverts;  // where as many survive as are needed
    const std::vector<double> generator, target, table;
    fastgc::PatternCache cache;
};

namespace {

using Blocks = std::vector<fastgc::PatternCache::Block>;  // by the number of the mask

std::string name_of_mask(Index number) { return item("survivors", number); }

// Finds the blocks of masks with q survivors each, given by their numbers.
void find(const fastgc_patterns& patterns, const std::uint64_t* masks, const Index* numbers, std::size_t count, Index q,
          const fastgc::Options& how, bool pass_over, Blocks& blocks) {
    std::vector<std::int64_t> rows(count * static_cast<std::size_t>(q));
    std::int64_t* to = rows.data();
    const auto mask = [&](std::size_t b) { return masks + numbers[b] * patterns.cache.words(); };
    for (std::size_t b = 0; b < count; ++b) to = patterns.write_rows(mask(b), to);
    std::vector<bool> singular(count);
    const std::vector<double> weights = patterns.weights(
        rows, q, how, [&](Index b) { return name_of_mask(numbers[b]); },
        [&](Index b) {
            if (!pass_over) not_decodable(name_of_mask(numbers[b]), patterns.k);
            singular[static_cast<std::size_t>(b)] = true;
        });
    const double* own = weights.data();
    for (std::size_t b = 0; b < count; ++b, own += patterns.m * q)
        if (!singular[b]) blocks[static_cast<std::size_t>(numbers[b])] = patterns.cache.block(mask(b), q, own);
}

// Whether there are more sets of q among n than `most`.
bool more_sets(Index n, Index q, Index most) {
    Index sets = 1;
    for (Index i = 1; i <= std::min(q, n - q) && sets <= most; ++i) {
        if (sets > std::numeric_limits<Index>::max() / n) return true;  // than any `most` that memory has room for
        sets = sets * (n - i + 1) / i;
    }
    return sets > most;
}

// The masks of all sets of q among n, in lexicographic order of the sets.
std::vector<std::uint64_t> all_masks(Index n, Index q, Index words) {
    std::vector<std::uint64_t> masks;
    std::vector<Index> set(static_cast<std::size_t>(q));
    std::iota(set.begin(), set.end(), Index{0});
    for (;;) {
        masks.resize(masks.size() + static_cast<std::size_t>(words));
        std::uint64_t* const mask = masks.data() + masks.size() - words;
        for (const Index row : set) mask[row / 64] |= std::uint64_t{1} << (row % 64);
        Index i = q - 1;
        while (i >= 0 && set[static_cast<std::size_t>(i)] == n - q + i) --i;
        if (i < 0) return masks;
        std::iota(set.begin() + i, set.end(), set[static_cast<std::size_t>(i)] + 1);
    }
}

}  // namespace

void fastgc_patterns::precompute(const std::uint64_t* masks, Index all, const fastgc::Options& how, bool pass_over) {
    std::map<Index, std::vector<Index>> missing;  // the numbers of masks that are not held, by how many survive
    for (Index i = 0; i < all; ++i) {
        const std::uint64_t* const mask = masks + i * cache.words();
        const Index q = count(mask, [=] { return name_of_mask(i); });
        if (!cache.holds(mask)) missing[q].push_back(i);
    }
    // Patterns solved at once. With 3 MB of weights, for k = 10, they are copied out of a cache: 0.7 of the time of
    // four times as many.
    constexpr std::size_t kBatch = 4096;
    Blocks blocks(static_cast<std::size_t>(all));
    for (const auto& [q, numbers] : missing)
        for (std::size_t first = 0; first < numbers.size(); first += kBatch)
            find(*this, masks, numbers.data() + first, std::min(kBatch, numbers.size() - first), q, how, pass_over,
                 blocks);
    cache.add(masks, all, blocks);
}

int fastgc_patterns_create(const double* generator, int64_t n, int64_t k, const double* target, int64_t m,
                           int64_t capacity, fastgc_patterns** patterns) {
    return guarded([&] {
        const Index rows = positive(n, "n"), size = positive(k, "k"), targets = positive(m, "m");
        const Index most = positive(capacity, "capacity");
        require_generator(generator, rows, size);
        area(targets, rows, "weights");  // of all survivors, the largest
        given(patterns, "patterns");
        *patterns = new fastgc_patterns(generator, rows, size, target, targets, most);
    });
}

void fastgc_patterns_destroy(fastgc_patterns* patterns) { delete patterns; }

int fastgc_patterns_weights(fastgc_patterns* patterns, const uint64_t* survivors, int64_t q, double* weights) {
    return guarded([&] {
        given(patterns, "patterns");
        given(survivors, "survivors");
        given(weights, "weights");
        fastgc::PatternCache& cache = patterns->cache;
        const auto name = [](Index = 0) { return std::string("survivors"); };
        const Index count = patterns->count(survivors, name);
        if (q != count)
            refuse("q: expected the number of survivors, which is " + std::to_string(count) + ", got " +
                   std::to_string(q));
        if (cache.find(survivors, count, weights)) return;
        std::vector<std::int64_t> pattern(static_cast<std::size_t>(count));
        patterns->write_rows(survivors, pattern.data());
        const std::vector<double> found =
            patterns->weights(pattern, count, options(1), name, [&](Index) { not_decodable(name(), patterns->k); });
        cache.add(cache.block(survivors, count, found.data()));
        std::copy(found.begin(), found.end(), weights);
    });
}

int fastgc_patterns_precompute(fastgc_patterns* patterns, const uint64_t* survivors, int64_t count, int threads) {
    return guarded([&] {
        given(patterns, "patterns");
        given(survivors, "survivors");
        const Index all = positive(count, "count"), most = patterns->cache.capacity();
        if (all > most)
            refuse("count: expected at most the capacity, which is " + std::to_string(most) + ", got " +
                   std::to_string(all));
        patterns->precompute(survivors, all, options(threads), false);
    });
}

int fastgc_patterns_precompute_all(fastgc_patterns* patterns, int64_t q, int threads) {
    return guarded([&] {
        given(patterns, "patterns");
        const fastgc::Options how = options(threads);
        const Index size = positive(q, "q"), n = patterns->n, k = patterns->k, most = patterns->cache.capacity();
        if (size > n) refuse("q: expected at most n, which is " + std::to_string(n) + ", got " + std::to_string(size));
        if (size < k)
            throw NotDecodable("q: sets of " + std::to_string(size) + " cannot have rank " + std::to_string(k));
        if (more_sets(n, size, most))
            refuse("q: there are more sets of " + std::to_string(size) + " of " + std::to_string(n) +
                   " than the capacity, which is " + std::to_string(most));
        const std::vector<std::uint64_t> masks = all_masks(n, size, patterns->cache.words());
        patterns->precompute(masks.data(), static_cast<Index>(masks.size()) / patterns->cache.words(), how, true);
    });
}

int64_t fastgc_patterns_size(const fastgc_patterns* patterns) {
    return patterns == nullptr ? 0 : patterns->cache.size();
}

int64_t fastgc_patterns_hits(const fastgc_patterns* patterns) {
    return patterns == nullptr ? 0 : patterns->cache.hits();
}

int64_t fastgc_patterns_misses(const fastgc_patterns* patterns) {
    return patterns == nullptr ? 0 : patterns->cache.misses();
}
