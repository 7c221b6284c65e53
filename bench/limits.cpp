// What the machine can do at most: bytes moved by a mix of read and write streams, and multiply-adds in registers.
//
// One body per measurement, a template over the vector; a wrapper per instruction set gives it its target, and the
// widest that runs here is chosen at run time. Plain C functions, called through ctypes (limits.py).
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__linux__)
# define TARGET(name) __attribute__((target(name)))
# define HAS(name) __builtin_cpu_supports(name)
#else
# define TARGET(name)
# define HAS(name) false
#endif

namespace {

using Bytes16 = std::uint64_t __attribute__((vector_size(16), aligned(1), may_alias));
using Bytes32 = std::uint64_t __attribute__((vector_size(32), aligned(1), may_alias));
using Bytes64 = std::uint64_t __attribute__((vector_size(64), aligned(1), may_alias));

using Floats16 = float __attribute__((vector_size(16)));
using Floats32 = float __attribute__((vector_size(32)));
using Floats64 = float __attribute__((vector_size(64)));
using Doubles16 = double __attribute__((vector_size(16)));
using Doubles32 = double __attribute__((vector_size(32)));
using Doubles64 = double __attribute__((vector_size(64)));

constexpr std::ptrdiff_t kLine = 64;  // no thread shares a cache line with another

// A volatile store of the address: what was read must be read even when nothing is written.
std::atomic<std::uint64_t> sink;

struct Streams {
    const char* const* reads;
    std::ptrdiff_t read_count;
    char* const* writes;
    std::ptrdiff_t write_count;
    std::ptrdiff_t block;  // bytes of a stream taken in one go, a multiple of 4 vectors
};

template <class V>
INLINE void store(char* to, V value, bool nontemporal) {
#if defined(__x86_64__)
    if (nontemporal) {
        if constexpr (sizeof(V) == 16)
            asm volatile("movntdq %1, %0" : "=m"(*(V*)to) : "x"(value));
        else if constexpr (sizeof(V) == 32)
            asm volatile("vmovntdq %1, %0" : "=m"(*(V*)to) : "x"(value));
        else
            asm volatile("vmovntdq %1, %0" : "=m"(*(V*)to) : "v"(value));
        return;
    }
#else
    (void)nontemporal;
#endif
    *(V*)to = value;
}

// Reads and writes bytes [begin, end) of every stream; returns the bytes of a stream that it covered.
template <class V, bool kNontemporal>
INLINE std::ptrdiff_t stream_body(const Streams& s, std::ptrdiff_t begin, std::ptrdiff_t end) {
    constexpr std::ptrdiff_t step = 4 * sizeof(V);
    V a{}, b{}, c{}, d{};
    std::ptrdiff_t at = begin;
    while (end - at >= step) {
        std::ptrdiff_t size = end - at < s.block ? end - at : s.block;
        size -= size % step;
        for (std::ptrdiff_t r = 0; r < s.read_count; ++r) {
            const char* from = s.reads[r] + at;
            for (std::ptrdiff_t i = 0; i < size; i += step) {
                a |= *(const V*)(from + i);
                b |= *(const V*)(from + i + sizeof(V));
                c |= *(const V*)(from + i + 2 * sizeof(V));
                d |= *(const V*)(from + i + 3 * sizeof(V));
            }
        }
        for (std::ptrdiff_t w = 0; w < s.write_count; ++w) {
            char* to = s.writes[w] + at;
            for (std::ptrdiff_t i = 0; i < size; i += step) {
                store<V>(to + i, a, kNontemporal);
                store<V>(to + i + sizeof(V), b, kNontemporal);
                store<V>(to + i + 2 * sizeof(V), c, kNontemporal);
                store<V>(to + i + 3 * sizeof(V), d, kNontemporal);
            }
        }
        at += size;
    }
#if defined(__x86_64__)
    if (kNontemporal) asm volatile("sfence" ::: "memory");
#endif
    const V all = a | b | c | d;
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < sizeof(V) / 8; ++i) seen |= all[i];
    sink.store(seen, std::memory_order_relaxed);
    return at - begin;
}

using Stream = std::ptrdiff_t (*)(const Streams&, std::ptrdiff_t, std::ptrdiff_t);

template <bool kNontemporal>
std::ptrdiff_t stream_16(const Streams& s, std::ptrdiff_t begin, std::ptrdiff_t end) {
    return stream_body<Bytes16, kNontemporal>(s, begin, end);
}
template <bool kNontemporal>
TARGET("avx2")
std::ptrdiff_t stream_32(const Streams& s, std::ptrdiff_t begin, std::ptrdiff_t end) {
    return stream_body<Bytes32, kNontemporal>(s, begin, end);
}
template <bool kNontemporal>
TARGET("avx512f")
std::ptrdiff_t stream_64(const Streams& s, std::ptrdiff_t begin, std::ptrdiff_t end) {
    return stream_body<Bytes64, kNontemporal>(s, begin, end);
}

template <bool kNontemporal>
Stream chosen_stream() {
    if (HAS("avx512f")) return stream_64<kNontemporal>;
    if (HAS("avx2")) return stream_32<kNontemporal>;
    return stream_16<kNontemporal>;
}

// kChains independent multiply-adds: 5 cycles of latency times 2 a cycle need 10 of them. 12 vectors and the two
// operands fit the 16 registers of AVX2.
template <class V>
INLINE double fma_body(std::int64_t rounds) {
    constexpr int kChains = 12;
    V x[kChains], m, a;
    for (std::size_t i = 0; i < sizeof(V) / sizeof(m[0]); ++i) m[i] = 0.999f, a[i] = 1e-3f;
    for (int j = 0; j < kChains; ++j) x[j] = m * float(j);
    for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
        for (int j = 0; j < kChains; ++j) x[j] = x[j] * m + a;
    }
    double sum = 0;
    for (int j = 0; j < kChains; ++j) {
        for (std::size_t i = 0; i < sizeof(V) / sizeof(m[0]); ++i) sum += double(x[j][i]);
    }
    sink.store(std::uint64_t(sum), std::memory_order_relaxed);
    return 2.0 * kChains * double(sizeof(V) / sizeof(m[0])) * double(rounds);
}

using Flops = double (*)(std::int64_t);

template <class V>
double fma_16(std::int64_t rounds) {
    return fma_body<V>(rounds);
}
template <class V>
TARGET("avx2,fma")
double fma_32(std::int64_t rounds) {
    return fma_body<V>(rounds);
}
template <class V>
TARGET("avx512f")
double fma_64(std::int64_t rounds) {
    return fma_body<V>(rounds);
}

template <class V16, class V32, class V64>
Flops chosen_fma() {
    if (HAS("avx512f")) return fma_64<V64>;
    if (HAS("avx2") && HAS("fma")) return fma_32<V32>;
    return fma_16<V16>;
}

// Seconds from the moment all threads are ready to the moment the last has finished body(t).
template <class Body>
double timed(int threads, const Body& body) {
    using Clock = std::chrono::steady_clock;
    std::atomic<int> waiting{threads};
    std::vector<Clock::time_point> ends(threads);
    Clock::time_point begin;
    const auto run = [&](int t) {
        --waiting;
        while (waiting.load() > 0) std::this_thread::yield();
        if (t == 0) begin = Clock::now();
        body(t);
        ends[t] = Clock::now();
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
    run(0);
    for (auto& other : others) other.join();
    Clock::time_point last = ends[0];
    for (const auto& end : ends) last = end > last ? end : last;
    return std::chrono::duration<double>(last - begin).count();
}

}  // namespace

extern "C" {

// Seconds of one pass over all streams of `length` bytes each, the mean of `passes`.
double fastgc_bench_stream(const void* const* reads, std::ptrdiff_t read_count, void* const* writes,
                           std::ptrdiff_t write_count, std::ptrdiff_t length, std::ptrdiff_t block, int nontemporal,
                           int threads, std::int64_t passes) {
    std::vector<char*> targets(write_count);
    for (std::ptrdiff_t w = 0; w < write_count; ++w) {  // non-temporal stores need aligned addresses
        auto address = reinterpret_cast<std::uintptr_t>(writes[w]);
        if (nontemporal) address = (address + kLine - 1) / kLine * kLine;
        targets[w] = reinterpret_cast<char*>(address);
    }
    const std::ptrdiff_t whole = length;
    if (nontemporal) length = length > kLine ? length - kLine : 0;
    const Streams streams{reinterpret_cast<const char* const*>(reads), read_count, targets.data(), write_count, block};
    const Stream pass = nontemporal ? chosen_stream<true>() : chosen_stream<false>();
    const std::ptrdiff_t share = (length / threads + kLine - 1) / kLine * kLine;
    std::vector<std::ptrdiff_t> covered(threads);
    const double seconds = timed(threads, [&](int t) {
        const std::ptrdiff_t begin = t * share < length ? t * share : length;
        const std::ptrdiff_t end = begin + share < length && t + 1 < threads ? begin + share : length;
        for (std::int64_t p = 0; p < passes; ++p) covered[t] = pass(streams, begin, end);
    });
    std::ptrdiff_t total = 0;
    for (const std::ptrdiff_t part : covered) total += part;
    return total ? seconds / double(passes) * double(whole) / double(total) : 0.0;
}

// Floating-point operations a second (an FMA counts as two) over all threads, each of which does `rounds` rounds.
double fastgc_bench_fma(int is_double, int threads, std::int64_t rounds) {
    const Flops work =
        is_double ? chosen_fma<Doubles16, Doubles32, Doubles64>() : chosen_fma<Floats16, Floats32, Floats64>();
    std::vector<double> done(threads);
    const double seconds = timed(threads, [&](int t) { done[t] = work(rounds); });
    double total = 0;
    for (const double part : done) total += part;
    return total / seconds;
}

// 1 where non-temporal stores exist here.
int fastgc_bench_nontemporal() {
#if defined(__x86_64__)
    return 1;
#else
    return 0;
#endif
}

// The widest vector used, in bytes.
int fastgc_bench_vector() { return HAS("avx512f") ? 64 : HAS("avx2") ? 32 : 16; }
}
