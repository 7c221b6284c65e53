// The C++ core under AddressSanitizer and UBSan: every instruction set of this machine against naive loops, bit for
// bit. Every row is a heap block of its exact size, so that a read or write one element off is an error. Run by
// tests/csrc/run_sanitized.sh.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "core.h"
#include "threads.h"

namespace {

using fastgc::Index;

int failures = 0;
long cases = 0;

using fastgc::BFloat16;
using fastgc::Compute;
using fastgc::Float16;

// The half types by their definition: a significand of 11 or 8 bits, the smallest exponent -24 or -133.
double value(float x) { return x; }
double value(double x) { return x; }
double value(Float16 x) {
    const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    const double size = exponent == 31
                            ? (fraction != 0 ? std::nan("") : HUGE_VAL)
                            : std::ldexp(exponent == 0 ? fraction : fraction + 1024, std::max(exponent, 1) - 25);
    return x.bits >> 15 != 0 ? -size : size;
}
double value(BFloat16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}
std::uint16_t half_bits(double x, int digits, int smallest, int largest) {
    const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const double size = std::fabs(x);
    const int all = 1 << (16 - digits);  // the exponent of infinity
    if (std::isnan(x)) return static_cast<std::uint16_t>(sign | (all - 1) << (digits - 1) | 1 << (digits - 2));
    int exponent = smallest;
    if (size > 0) std::frexp(size, &exponent);
    const int unit = std::max(exponent - digits, smallest);
    const double units = std::nearbyint(std::ldexp(size, -unit));  // to even, as the environment rounds
    if (std::ldexp(units, unit) >= std::ldexp(1.0, largest))
        return static_cast<std::uint16_t>(sign | (all - 1) << (digits - 1));
    return static_cast<std::uint16_t>(sign + (static_cast<int>(units) + ((unit - smallest) << (digits - 1))));
}
template <class Out>
Out rounded(double x) {
    if constexpr (std::is_same_v<Out, Float16>)
        return {half_bits(x, 11, -24, 16)};
    else if constexpr (std::is_same_v<Out, BFloat16>)
        return {half_bits(x, 8, -133, 128)};
    else
        return static_cast<Out>(x);
}

template <class T>
class Row {
  public:
    // `offset` elements of a fresh block are skipped, so that rows are misaligned against any vector.
    Row(Index length, Index offset, std::mt19937& random, bool poison = false)
        : block_(new T[static_cast<std::size_t>(length + offset)]), data_(block_.get() + offset), length_(length) {
        std::normal_distribution<double> normal;
        for (Index i = 0; i < length; ++i) data_[i] = rounded<T>(poison ? std::nan("") : normal(random));
    }
    T* data() const { return data_; }
    Index length() const { return length_; }

  private:
    std::unique_ptr<T[]> block_;
    T* data_;
    Index length_;
};

template <class T>
std::vector<Row<T>> rows(Index count, Index length, Index offset, std::mt19937& random, bool poison = false) {
    std::vector<Row<T>> made;
    for (Index i = 0; i < count; ++i) made.emplace_back(length, (offset + i) % 5, random, poison);
    return made;
}

template <class T>
std::vector<T*> pointers(const std::vector<Row<T>>& rows) {
    std::vector<T*> list;
    for (const Row<T>& row : rows) list.push_back(row.data());
    return list;
}

std::vector<double> numbers(Index count, std::mt19937& random) {
    std::normal_distribution<double> normal;
    std::vector<double> list(static_cast<std::size_t>(count));
    for (double& x : list) x = normal(random);
    return list;
}

// One step of the contract's chain.
template <class T>
T step(bool fused, double c, T x, T sum) {
    const T rounded = static_cast<T>(c);
    if (fused) return std::fma(rounded, x, sum);
    const volatile T product = rounded * x;
    return product + sum;
}

template <class T>
T start(double c, T x) {
    return static_cast<T>(c) * x;
}

template <class T>
void expect(T wanted, T got, const std::string& where) {
    ++cases;
    if (std::memcmp(&wanted, &got, sizeof(T)) == 0) return;
    if (++failures <= 20) std::printf("%s: expected %.17g, got %.17g\n", where.c_str(), value(wanted), value(got));
}

std::string label(const char* what, const fastgc::Options& how, std::initializer_list<Index> sizes) {
    std::string text = std::string(what) + " " + how.kernels->name + " threads " + std::to_string(how.threads);
    for (Index size : sizes) text += " " + std::to_string(size);
    return text;
}

template <class In, class Out>
void test_lincomb(const fastgc::Options& how, Index P, Index Q, Index length, bool accumulate, std::mt19937& random) {
    using T = Compute<In>;
    const bool fused = how.kernels->fused;
    const auto c = numbers(P * Q, random);
    const auto in = rows<In>(Q, length, length % 3, random);
    const auto out = rows<Out>(P, length, Q % 4, random, !accumulate);
    std::vector<std::vector<Out>> before;
    for (const Row<Out>& row : out) before.emplace_back(row.data(), row.data() + length);
    const auto sources = pointers(in);
    const auto targets = pointers(out);
    fastgc::lincomb<In, Out>(c.data(), P, Q, sources.data(), targets.data(), length, accumulate, how);
    const std::string where = label("lincomb", how, {Index{sizeof(In)}, Index{sizeof(Out)}, P, Q, length, accumulate});
    for (Index p = 0; p < P; ++p)
        for (Index x = 0; x < length; ++x) {
            const double* row = c.data() + p * Q;
            const auto input = [&](Index q) { return static_cast<T>(value(in[q].data()[x])); };
            T sum = accumulate ? step(fused, row[0], input(0), static_cast<T>(value(before[p][x])))
                               : start(row[0], input(0));
            for (Index q = 1; q < Q; ++q) sum = step(fused, row[q], input(q), sum);
            expect(rounded<Out>(sum), out[p].data()[x], where);
        }
}

template <class In, class Out>
void test_encode(const fastgc::Options& how, Index d, Index m, Index length, bool accumulate, std::mt19937& random) {
    using T = Compute<In>;
    const bool fused = how.kernels->fused;
    const Index block = fastgc::block_length(length, m);
    const auto c = numbers(d * m, random);
    const auto in = rows<In>(d, length, m % 3, random);
    const Row<Out> out(block, d % 4, random, !accumulate);
    const std::vector<Out> before(out.data(), out.data() + block);
    const auto sources = pointers(in);
    fastgc::encode<In, Out>(c.data(), d, m, sources.data(), length, out.data(), accumulate, how);
    const std::string where = label("encode", how, {Index{sizeof(In)}, Index{sizeof(Out)}, d, m, length, accumulate});
    for (Index x = 0; x < block; ++x) {
        bool first = !accumulate;
        T sum = static_cast<T>(value(before[x]));
        for (Index j = 0; j < d; ++j)
            for (Index u = 0; u < m; ++u) {
                if (u * block + x >= length) continue;
                const T input = static_cast<T>(value(in[j].data()[u * block + x]));
                sum = first ? start(c[j * m + u], input) : step(fused, c[j * m + u], input, sum);
                first = false;
            }
        expect(rounded<Out>(sum), out.data()[x], where);
    }
}

template <class T>
T tree(const std::vector<T>& leaves, std::size_t lo, std::size_t hi) {
    if (hi - lo == 1) return leaves[lo];
    const std::size_t mid = (lo + hi) / 2;
    return tree(leaves, lo, mid) + tree(leaves, mid, hi);
}

template <class In, class Out>
void test_decode(const fastgc::Options& how, Index groups, Index m, Index length, std::mt19937& random) {
    using T = Compute<In>;
    const bool fused = how.kernels->fused;
    const Index block = fastgc::block_length(length, m);
    std::vector<std::vector<double>> weights;
    std::vector<std::vector<Row<In>>> messages;
    std::vector<std::vector<In*>> sources;
    std::vector<fastgc::Received<In>> received;
    for (Index g = 0; g < groups; ++g) {
        const Index count = 1 + g % 4;
        weights.push_back(numbers(m * count, random));
        messages.push_back(rows<In>(count, block, g % 3, random));
        sources.push_back(pointers(messages.back()));
    }
    for (Index g = 0; g < groups; ++g)
        received.push_back({weights[g].data(), sources[g].data(), static_cast<Index>(sources[g].size())});
    const Row<Out> out(length, groups % 4, random, true);
    fastgc::decode<In, Out>(received.data(), groups, m, length, out.data(), how);
    const std::string where = label("decode", how, {Index{sizeof(In)}, Index{sizeof(Out)}, groups, m, length});
    std::vector<T> leaves(static_cast<std::size_t>(groups));
    for (Index i = 0; i < length; ++i) {
        const Index u = i / block, x = i % block;
        for (Index g = 0; g < groups; ++g) {
            const Index count = received[g].count;
            const auto input = [&](Index q) { return static_cast<T>(value(sources[g][q][x])); };
            T sum = start(weights[g][u * count], input(0));
            for (Index q = 1; q < count; ++q) sum = step(fused, weights[g][u * count + q], input(q), sum);
            leaves[g] = sum;
        }
        expect(rounded<Out>(tree(leaves, 0, leaves.size())), out.data()[i], where);
    }
}

// Two stretches of several groups: each is what decode makes of blocks that are all of its length.
template <class In, class Out>
void test_combine(const fastgc::Options& how, Index groups, Index length, std::mt19937& random) {
    const Index lengths[] = {length, length / 2 + 1}, counts[] = {3, 2};
    std::vector<std::vector<double>> weights;
    std::vector<std::vector<Row<In>>> messages;
    std::vector<std::vector<In*>> sources;
    std::vector<std::vector<Row<Out>>> made;
    std::vector<std::vector<Out*>> targets;
    std::vector<std::vector<fastgc::Received<In>>> received(2);
    std::vector<fastgc::Stretch<In, Out>> stretches;
    for (Index s : {0, 1}) {
        for (Index g = 0; g < groups; ++g) {
            const Index count = 1 + (g + s) % 4;
            weights.push_back(numbers(counts[s] * count, random));
            messages.push_back(rows<In>(count, lengths[s], g % 3, random));
            sources.push_back(pointers(messages.back()));
            received[s].push_back({weights.back().data(), sources.back().data(), count});
        }
        made.push_back(rows<Out>(counts[s], lengths[s], s, random, true));
        targets.push_back(pointers(made.back()));
        stretches.push_back({lengths[s], counts[s], targets.back().data(), received[s].data(), groups});
    }
    fastgc::combine<In, Out>(stretches.data(), 2, how);
    const std::string where = label("combine", how, {Index{sizeof(In)}, Index{sizeof(Out)}, groups, length});
    fastgc::Options alone = how;
    alone.threads = 1;
    alone.team = nullptr;
    for (Index s : {0, 1}) {
        const Index rows = counts[s], total = rows * lengths[s];
        const std::unique_ptr<Out[]> wanted(new Out[static_cast<std::size_t>(total)]);
        fastgc::decode<In, Out>(received[s].data(), groups, rows, total, wanted.get(), alone);
        for (Index i = 0; i < total; ++i) expect(wanted[i], targets[s][i / lengths[s]][i % lengths[s]], where);
    }
}

// The bits of decode, and the stretches whose syndromes, as they would be decoded, exceed a floor.
template <class In>
void test_decode_checked(const fastgc::Options& how, Index groups, Index m, Index spares, Index length,
                         std::mt19937& random) {
    using T = Compute<In>;
    const Index block = fastgc::block_length(length, m), stretches = (block + fastgc::kJudged - 1) / fastgc::kJudged;
    std::vector<std::vector<double>> weights, checks;
    std::vector<std::vector<Row<In>>> messages;
    std::vector<std::vector<In*>> sources;
    std::vector<fastgc::Received<In>> received;
    for (Index g = 0; g < groups; ++g) {
        const Index count = 1 + g % 4;
        weights.push_back(numbers(m * count, random));
        checks.push_back(numbers((spares + g % 2) * count, random));
        messages.push_back(rows<In>(count, block, g % 3, random));
        sources.push_back(pointers(messages.back()));
    }
    std::vector<double> energies(static_cast<std::size_t>(groups * stretches));
    for (Index g = 0; g < groups; ++g) {
        const Index count = static_cast<Index>(sources[g].size()), own = spares + g % 2;
        const fastgc::Received<In> alone{checks[g].data(), sources[g].data(), count};
        const Row<T> syndromes(own * block, 1, random, true);
        fastgc::decode<In, T>(&alone, 1, own, own * block, syndromes.data(), how);
        for (Index i = 0; i < own * block; ++i) {
            const double syndrome = static_cast<double>(syndromes.data()[i]);
            energies[g * stretches + i % block / fastgc::kJudged] += syndrome * syndrome;
        }
        received.push_back({weights[g].data(), sources[g].data(), count, checks[g].data(), own});
    }
    const Row<T> plain(length, 1, random, true), out(length, 1, random, true);
    fastgc::decode<In, T>(received.data(), groups, m, length, plain.data(), how);
    const std::string where = label("decode_checked", how, {Index{sizeof(In)}, groups, m, spares, length});
    for (const double factor : {1 - 1e-4, 1 + 1e-3}) {
        std::vector<fastgc::Floor> floors;
        for (Index g = 0; g < groups; ++g) floors.push_back({0.0, factor * std::sqrt(energies[g * stretches])});
        const std::vector<Index> doubtful =
            fastgc::decode_checked<In>(received.data(), groups, m, length, out.data(), floors.data(), 0.0, how);
        for (Index i = 0; i < length; ++i) expect(plain.data()[i], out.data()[i], where);
        for (Index b = 0; b < stretches; ++b) {
            bool above = false, near = false;
            for (Index g = 0; g < groups; ++g) {
                const double ratio = std::sqrt(energies[g * stretches + b] / energies[g * stretches]) / factor;
                above = above || ratio > 1;
                near = near || (b > 0 && std::fabs(ratio - 1) < 1e-3);
            }
            const bool found = std::count(doubtful.begin(), doubtful.end(), b) == 1;
            if (!near) expect<double>(above, found, where);
        }
    }
}

void test_decoding_weights(const fastgc::Options& how, Index n, Index k, Index batch, std::mt19937& random) {
    const auto generator = numbers(n * k, random);
    std::vector<std::int64_t> patterns;
    for (Index b = 0; b < batch; ++b)
        for (Index i = 0; i < k; ++i) patterns.push_back((b * 3 + i) % n);
    const auto size = static_cast<std::size_t>(batch * k * k);
    const std::unique_ptr<double[]> weights(new double[size]), alone(new double[size]);
    const std::unique_ptr<unsigned char[]> flags(new unsigned char[static_cast<std::size_t>(batch)]);
    fastgc::decoding_weights(generator.data(), k, patterns.data(), batch, weights.get(), flags.get(), how);
    const std::string where = label("decoding_weights", how, {n, k, batch});
    fastgc::Options portable;
    portable.kernels = &fastgc::kernels_named("portable", "test");
    portable.threads = 1;
    for (Index b = 0; b < batch; ++b) {
        unsigned char flag = 2;
        double* inverse = alone.get() + b * k * k;
        fastgc::decoding_weights(generator.data(), k, patterns.data() + b * k, 1, inverse, &flag, portable);
        expect<double>(flag, flags[b], where + " flag");
        for (Index i = 0; i < k * k; ++i) expect(inverse[i], weights[b * k * k + i], where);
        if (flag != 0) continue;
        for (Index u = 0; u < k; ++u)
            for (Index v = 0; v < k; ++v) {
                double sum = 0, size_of_terms = 0;
                for (Index i = 0; i < k; ++i) {
                    const double term = inverse[u * k + i] * generator[patterns[b * k + i] * k + v];
                    sum += term;
                    size_of_terms += std::fabs(term);
                }
                ++cases;
                if (!(std::fabs(sum - (u == v)) <= 1e-12 * k * (1 + size_of_terms)) && ++failures <= 20)
                    std::printf("%s: residual %g\n", where.c_str(), sum - (u == v));
            }
    }
}

// The library's threads, as many as a test asks for: whatever the machine's CPUs, and whether they sleep or not.
class Always final : public fastgc::Team {
  public:
    int size(double) override { return 1 << 10; }
    void run(int shares, void (*body)(const void* context, int t), const void* context) override {
        fastgc::own_threads().run(shares, body, context);
    }
};

// A caller's own threads: they may come in any order, and one may do all the work.
class Backwards final : public fastgc::Team {
  public:
    int size(double) override { return 3; }
    void run(int shares, void (*body)(const void* context, int t), const void* context) override {
        for (int t = shares; t-- > 0;) body(context, t);
        ran = ran + shares;
    }
    int ran = 0;
};

void test_team(const fastgc::Options& how, std::mt19937& random) {
    Backwards team;
    fastgc::Options own = how;
    own.team = &team;
    own.grain = 256;
    own.threads = 2;
    test_lincomb<float, float>(own, 3, 4, 1001, false, random);
    expect<double>(2, team.ran, label("team", how, {2}));
    own.threads = 0;
    test_decode<float, float>(own, 3, 2, 2001, random);
    expect<double>(5, team.ran, label("team", how, {3}));
    test_decoding_weights(own, 9, 4, 41, random);
    own.threads = 1;
    team.ran = 0;
    test_lincomb<float, float>(own, 3, 4, 1001, false, random);
    expect<double>(0, team.ran, label("team", how, {1}));
}

// A pattern of rank below k in every place of a batch: it alone is flagged, and the others' bits are untouched.
void test_singular_lanes(const fastgc::Options& how, Index k, std::mt19937& random) {
    const Index n = k + 3, batch = 19;
    auto generator = numbers(n * k, random);
    for (Index v = 0; v < k; ++v) generator[(n - 1) * k + v] = 0;
    std::vector<std::int64_t> good;
    for (Index b = 0; b < batch; ++b)
        for (Index i = 0; i < k; ++i) good.push_back((b + i) % (n - 1));
    const auto size = static_cast<std::size_t>(batch * k * k);
    const std::unique_ptr<double[]> wanted(new double[size]), weights(new double[size]);
    const std::unique_ptr<unsigned char[]> flags(new unsigned char[static_cast<std::size_t>(batch)]);
    fastgc::decoding_weights(generator.data(), k, good.data(), batch, wanted.get(), flags.get(), how);
    const std::string where = label("singular lanes", how, {k});
    for (Index at = 0; at < batch; ++at) {
        auto patterns = good;
        patterns[at * k] = n - 1;
        fastgc::decoding_weights(generator.data(), k, patterns.data(), batch, weights.get(), flags.get(), how);
        for (Index b = 0; b < batch; ++b) {
            expect<double>(b == at, flags[b], where);
            for (Index i = b * k * k; b != at && i < (b + 1) * k * k; ++i) expect(wanted[i], weights[i], where);
        }
    }
}

long asked_of_tables = 0, found_by_tables = 0;  // the others are Householder's

void test_least_norm(const fastgc::Options& how, Index n, Index k, Index q, Index targets, bool from_missing,
                     std::mt19937& random) {
    const Index batch = 7;
    const auto generator = numbers(n * k, random), target = numbers(targets * k, random);
    std::vector<std::int64_t> patterns;
    for (Index b = 0; b < batch; ++b)
        for (Index i = 0; i < q; ++i) patterns.push_back((b * 3 + i) % n);
    const auto size = static_cast<std::size_t>(batch * targets * q);
    const std::unique_ptr<double[]> weights(new double[size]), alone(new double[size]);
    unsigned char flags[batch];
    std::vector<double> table;
    if (from_missing) {
        table = fastgc::few_missing_table(generator.data(), n, k, target.data(), targets);
        expect<double>(0, table.empty(), "table");
    }
    const auto solve = [&](const std::int64_t* some, Index count, double* to, unsigned char* flag,
                           const fastgc::Options& by) {
        if (table.empty())
            fastgc::least_norm_weights(generator.data(), k, some, count, q, target.data(), targets, to, flag, by);
        else
            fastgc::few_missing_weights(table.data(), generator.data(), n, k, some, count, q, target.data(), targets,
                                        to, flag, by);
    };
    solve(patterns.data(), batch, weights.get(), flags, how);
    const std::string where = label(from_missing ? "few_missing" : "least_norm", how, {n, k, q, targets});
    fastgc::Options portable;
    portable.kernels = &fastgc::kernels_named("portable", "test");
    portable.threads = 1;
    for (Index b = 0; b < batch; ++b) {
        unsigned char flag = 2;
        double* const found = alone.get() + b * targets * q;
        const std::int64_t* const pattern = patterns.data() + b * q;
        if (from_missing) {
            std::vector<double> work(static_cast<std::size_t>(fastgc::FewMissing(n, k, targets).room(n - q)));
            ++asked_of_tables;
            found_by_tables += portable.kernels->few_missing_weights(table.data(), n, k, pattern, q, target.data(),
                                                                     targets, found, work.data());
        }
        solve(pattern, 1, found, &flag, portable);
        expect<double>(flag, flags[b], where + " flag");
        for (Index i = 0; i < targets * q; ++i) expect(found[i], weights[b * targets * q + i], where);
        for (Index u = 0; u < targets && flag == 0; ++u)
            for (Index v = 0; v < k; ++v) {
                double sum = -target[u * k + v], size_of_terms = std::fabs(sum);
                for (Index i = 0; i < q; ++i) {
                    const double term = found[u * q + i] * generator[pattern[i] * k + v];
                    sum += term;
                    size_of_terms += std::fabs(term);
                }
                ++cases;
                if (!(std::fabs(sum) <= 1e-14 * static_cast<double>(q + k) * size_of_terms) && ++failures <= 20)
                    std::printf("%s: residual %g\n", where.c_str(), sum);
            }
    }
}

void test_singular(const fastgc::Options& how) {
    const double generator[] = {1, 2, 2, 4, 0, 0, 1, 0};
    const std::int64_t patterns[] = {0, 1, 0, 3, 2, 3};
    double weights[12];
    unsigned char flags[3] = {2, 2, 2};
    fastgc::decoding_weights(generator, 2, patterns, 3, weights, flags, how);
    expect<double>(1, flags[0], label("singular", how, {0}));
    expect<double>(0, flags[1], label("singular", how, {1}));
    expect<double>(1, flags[2], label("singular", how, {2}));
}

template <class In, class Out>
void test_all(const fastgc::Options& how, std::mt19937& random) {
    // Lengths from the widest vector; smaller vectors divide it. Pairs with a half type get every other size.
    const Index N = 64 / static_cast<Index>(sizeof(Compute<In>));
    const bool thin = sizeof(In) + sizeof(Out) < 8 || sizeof(In) != sizeof(Out);
    const std::vector<Index> all{1,         N / 4 - 1, N / 4 + 1, N / 2,         N - 1,     N,   N + 1,
                                 4 * N / 3, 4 * N - 1, 4 * N,     4 * N + N + 3, 8 * N + 2, 1001};
    std::vector<Index> lengths;
    for (std::size_t i = 0; i < all.size(); i += thin ? 2 : 1) lengths.push_back(all[i]);
    for (Index P : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17})
        for (Index Q : {1, 2, 3, 8, 19})
            for (Index length : lengths)
                for (bool accumulate : {false, true})
                    if (!thin || (P + Q) % 2 == 0) test_lincomb<In, Out>(how, P, Q, length, accumulate, random);
    for (bool accumulate : {false, true}) {  // every way in which Plan::run cuts
        test_lincomb<In, Out>(how, 11, 40, 3001, accumulate, random);
        test_lincomb<In, Out>(how, 2, 20, 9001, accumulate, random);
        test_lincomb<In, Out>(how, 1, 3, 40001, accumulate, random);
        test_lincomb<In, Out>(how, 26, 7, 301, accumulate, random);  // half types by way of panels
    }
    for (Index m = 1; m <= 6; ++m) {
        for (Index length = 1; length <= 40; length += thin ? 3 : 1)
            for (Index d : {1, 3}) {
                test_encode<In, Out>(how, d, m, length, length % 2 == 0, random);
                test_decode<In, Out>(how, d, m, length, random);
            }
        for (Index groups = 1; groups <= 9; ++groups) test_decode<In, Out>(how, groups, m, 20 * N + 7, random);
    }
    for (Index groups : {1, 2, 5}) {
        test_combine<In, Out>(how, groups, 1, random);
        test_combine<In, Out>(how, groups, 3 * N + 5, random);
    }
    test_combine<In, Out>(how, 3, 20011, random);
    test_encode<In, Out>(how, 4, 3, 30011, false, random);
    test_decode<In, Out>(how, 6, 4, thin ? 50003 : 200003, random);  // several chunks of the tree
    if constexpr (std::is_same_v<Out, Compute<In>>)
        for (Index spares : {1, 3})
            for (Index groups : {1, 2, 5})
                for (Index length : {7, 8192, 40007}) test_decode_checked<In>(how, groups, 3, spares, length, random);
}

// What is only done with more than a last cache holds, of which 8 MiB count as memory and 24 are passed by.
void test_large(const fastgc::Options& how, std::mt19937& random) {
    test_lincomb<float, float>(how, 3, 1, 2800013, false, random);
    test_lincomb<float, float>(how, 50, 9, 45001, false, random);  // panels that ask for the next
    for (bool accumulate : {false, true}) test_lincomb<float, float>(how, 2, 3, 1310003, accumulate, random);
    for (Index past : {0, 5})  // rows that agree where a line begins, and that do not
        for (Index m : {2, 3}) test_decode<float, float>(how, 3, m, m * (16 * 55000 + past), random);
    test_decode<double, double>(how, 4, 2, 2 * 300005, random);
}

}  // namespace

int main() {
    std::mt19937 random(20200514);
    Always team;
    for (const fastgc::Kernels* kernels : fastgc::available_kernels())
        for (int threads : {1, 3}) {
            fastgc::Options how;
            how.kernels = kernels;
            how.threads = threads;
            how.team = &team;
            if (threads > 1) how.grain = 256;  // so that short rows are cut as well
            test_all<float, float>(how, random);
            test_all<float, Float16>(how, random);
            test_all<float, BFloat16>(how, random);
            test_all<double, double>(how, random);
            test_all<Float16, Float16>(how, random);
            test_all<Float16, float>(how, random);
            test_all<BFloat16, BFloat16>(how, random);
            test_all<BFloat16, float>(how, random);
            // Where the processor rounds to bfloat16, integers do so elsewhere.
            const std::uint16_t by_integers = fastgc::bfloat16_by_integers;
            if (by_integers == 0 && kernels == fastgc::available_kernels().back()) {
                fastgc::bfloat16_by_integers = 0xffff;
                test_all<float, BFloat16>(how, random);
                test_all<BFloat16, BFloat16>(how, random);
                fastgc::bfloat16_by_integers = by_integers;
            }
            test_large(how, random);
            for (Index k = 1; k <= 20; ++k) {
                test_decoding_weights(how, 2 * k + 1, k, 41, random);
                test_singular_lanes(how, k, random);
                for (Index q : {k, k + 1, k + 2, k + 7})
                    for (Index targets : {1, 2, 5})
                        for (const bool from_missing : {false, true})
                            test_least_norm(how, k + 9, k, q, targets, from_missing, random);
            }
            test_singular(how);
            test_team(how, random);
        }
    expect<double>(1, found_by_tables > asked_of_tables * 9 / 10, "weights by tables");
    try {
        fastgc::kernels_named("sse9", "FASTGC_ISA");
        ++failures;
    } catch (const std::invalid_argument&) {
        ++cases;
    }
    std::printf("%ld comparisons, %d failures, instruction sets:", cases, failures);
    for (const fastgc::Kernels* kernels : fastgc::available_kernels()) std::printf(" %s", kernels->name);
    std::printf("\n");
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
