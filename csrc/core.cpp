#include "core.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <new>
#include <numeric>
#include <vector>

#include "threads.h"

namespace fastgc {

namespace {

const Kernels& chosen(const Options& options) {
    return options.kernels != nullptr ? *options.kernels : default_kernels();
}

Index stretches(Index columns) { return (columns + kJudged - 1) / kJudged; }

// How a call is cut. Figures are of Zen 3 (32 KiB + 512 KiB of cache a core, dTLB of 64 pages) where no other processor
// is named; what differs between the two is in tuning.h.
//
// Up to 6 rows are one block that reads inputs straight from memory. The processor follows 8 streams well and 16 badly
// (P = 4, Q = 64: 26 and 17 GB/s), so more inputs are read in passes over a chunk whose outputs rest in the second-
// level cache meanwhile (chunks of 16 and 128 KiB: 23 and 26 GB/s). Zen 5 reads 64 side by side if tiles ask for what
// they will need: of rows of up to 8 MiB 4 x 16 at 10^6 takes half the time, 1 x 64 0.8 (passes that ask: 0.68, 0.94).
// Of longer ones it is better at up to 14 (1 x 10 and 2 x 10 at 10^7: 0.91, 0.84; 1 x 16 1.17), and asking pays from 4
// rows on (4 x 32 at 4.1 10^6: 0.85; 1 x 32: 1.2), as it does within the second-level cache.
constexpr Index kResting = 128 * 1024;
constexpr Index kFewAsk = 4, kFewAskMemory = 2;  // from so many inputs on they do, beyond the second-level cache
constexpr Index kAskRows = 4, kAskFar = 8;
// More rows are several blocks on chunks of up to 64 inputs that take 16 KiB. Half types are packed, which converts
// them once for all rows; others where many rows use what comes from memory, in larger chunks, which reads longer
// pieces (float32, P = Q = 64 at 10^6: 1.04, 1.10, 1.16 and 1.10 of the speed with panels of 16, 32, 64 and 128 KiB;
// on Zen 5, whose second-level cache is twice as large, in float64: 0.83, 1, 1.18 and 1.21 with 32, 64, 128 and 256).
constexpr Index kPanel = 16 * 1024;
constexpr Index kPanelInputs = 64;
constexpr Index kPackRows = 48, kPackRowsHalf = 24;
constexpr Index kManyAsk = 16;  // from so many inputs on, wherever they are
// Groups of so many inputs together are added up in registers: from a cache, from memory, and from memory where there
// are three rows, or outputs of a half type (8 groups of 3 side by side take twice the time).
constexpr Index kSummedInCache = 64, kSummed = 12, kFewSummed = 8;
// Rows whose distances are multiples of 4 KiB share one set of the first-level cache, 8 lines, and banks of memory.
// More of them than that are packed: a chunk of one row at a time collides with nothing. Nor may results then pass the
// caches (8 x 8 at 2^20: 11 GFLOP/s, packed 18, and not past the caches 33; 16 x 16 at 2^10: 41 and 69). A few inputs
// too many do less harm than packing (8 x 64 float64 at 10^6, 8 inputs a set: 1.6 times as fast as they lie), outputs
// do more (8 x 2 at 2^20: a fifth of the speed), and count twice. Zen 5 copes with more (8 x 8 at 2^10 as they lie:
// 0.63 of the time, 32 x 4 at 2^13, 68 a set, 2.4), and in memory with any (8 x 8, 16 x 16 and 64 x 64 at 2^20: 0.36,
// 0.55 and 0.68, 8 x 64 1.1).
constexpr Index kSetBytes = 4096;
constexpr double kFirstCache = 32 * 1024;
// Results pass the caches, where one pass over the inputs makes whole lines, if all that moves is more than a part of
// the last one, which has other users, too: that takes 0.6 to 0.9 of the time at 16 to 24 MB (4 x 1, 2 x 2, 1 x 4
// float32 at 10^6), with neighbours at work a fifth. Many rows lie in too many places for the processor to fetch their
// lines in time (32 x 8 at 10^5: 0.45). Smaller results are left there for the caller: if those of the last call are
// there still, 4 x 4 at 5 10^5 takes 0.7 of the time. On Zen 5 they are until 20 MB (32 x 1 at 10^5 0.47 of the time,
// 4 x 1 at 10^6 0.9; at 24 MB and more passing gains a fifth to a half). Up to 3 rows that do not agree where a line
// begins are gathered in cache: more, or by the chunk instead of by the tile, take longer than they save.
constexpr double kLastCache = 32 * 1024 * 1024;
// Of a thread's share. A thread that loses its core, or shares it, is waited for no longer than one of them takes.
constexpr Index kPieces = 8;

// Segments under construction, with everything they point to. What a small call needs fits into the first bytes of an
// arena on the stack: an allocation costs as much as computing 500 elements.
template <class In, class Out>
class Plan {
    using T = Compute<In>;

  public:
    explicit Plan(const Options& options) : options_(options), kernels_(chosen(options)) {}

    template <class U>
    U* take(Index count) {
        return static_cast<U*>(arena_.allocate(static_cast<std::size_t>(count) * sizeof(U), 64));
    }

    // Room for so many: what grows is copied, and its old place in the arena lost.
    void reserve(Index segments, Index groups) {
        segments_.reserve(static_cast<std::size_t>(segments));
        groups_.reserve(static_cast<std::size_t>(segments * groups));
    }

    // The segment's outputs, `rows` of them from `outputs`, which must outlive the plan.
    void add_segment(Index length, Index rows, Out* const* outputs, bool accumulate) {
        segments_.push_back({length, rows, outputs, nullptr, 0, accumulate});
    }

    // A group of the last segment, on `count` inputs, which must outlive the plan; its matrix as a function (p, q), the
    // last `spares` rows of which make syndromes.
    template <class Coefficient>
    void add_group(const In* const* inputs, Index count, const Coefficient& coefficient, Index spares = 0) {
        Segment<In, Out>& segment = segments_.back();
        const Index total = segment.rows + spares;
        T* packed = take<T>(total * count);
        for (Index first = 0, rows; first < total; first += rows) {
            rows = block_rows(kernels_.tuning.block_rows, total, first);
            T* to = packed + first * count;
            for (Index q = 0; q < count; ++q)
                for (Index r = 0; r < rows; ++r) *to++ = static_cast<T>(coefficient(first + r, q));
        }
        groups_.push_back({packed, inputs, count, spares});
        ++segment.group_count;
    }

    // Whether more rows of a segment with one group share a set of the first-level cache than it copes with.
    bool collides(const Segment<In, Out>& segment, int crowd) const {
        int lines[kSetBytes / 64] = {};
        int most = 0;
        const auto count = [&](const void* row, int weight) {
            int& line = lines[reinterpret_cast<std::uintptr_t>(row) % kSetBytes / 64];
            most = std::max(most, line += weight);
        };
        std::for_each_n(segment.groups->inputs, segment.groups->count, [&](const void* row) { count(row, 1); });
        std::for_each_n(segment.outputs, segment.rows, [&](const void* row) { count(row, 2); });
        return most > crowd;
    }

    void run() {
        const Demand demand = this->demand();
        const int threads = thread_count(demand.bytes, options_.grain, options_.threads, options_.team);
        const Work work = this->work(demand, threads);
        // Shares end on multiples of 64 columns (a cache line or more), so that only the last one has a tail.
        over_shares(demand.total, threads, 64, options_.team, [&](int thread, const auto& each) {
            const Scratch<T> scratch = work.of(thread);
            each(segments_, [&](std::size_t s, Index, Index begin, Index end) {
                static_cast<const Lincomb<In, Out>&>(kernels_.lincombs).run(segments_[s], scratch, begin, end);
            });
        });
    }

    // As run, and what to judge the groups with spares by, for every kJudged columns: the sum of the squares of their
    // syndromes, and a size that their largest absolute value is not below; groups x stretches numbers of both.
    void run_judging(double* energies, double* sizes) {
        const Demand demand = this->demand();
        const int threads = thread_count(demand.bytes, options_.grain, options_.threads, options_.team);
        const Work work = this->work(demand, threads);
        const Index groups = segments_[0].group_count, totals = stretches(demand.total);
        constexpr Index line = 64 / sizeof(double);  // threads share none
        const Index stride = (groups + line - 1) / line * line;
        double* const sums = take<double>(stride * threads);
        std::fill_n(energies, groups * totals, 0.0);
        std::fill_n(sizes, groups * totals, 0.0);
        // No thread shares a stretch with another: how many there are changes nothing. It may lie in two segments, and
        // has what both add up to.
        over_shares(demand.total, threads, kJudged, options_.team, [&](int thread, const auto& each) {
            Scratch<T> scratch = work.of(thread);
            scratch.energies = sums + stride * thread;
            each(segments_, [&](std::size_t s, Index start, Index begin, Index end) {
                const Segment<In, Out>& segment = segments_[s];
                for (Index x = begin, stop; x < end; x = stop) {
                    const Index number = (start + x) / kJudged;
                    stop = std::min(end, (number + 1) * kJudged - start);
                    std::fill_n(scratch.energies, groups, 0.0);
                    static_cast<const Lincomb<In, Out>&>(kernels_.lincombs).run(segment, scratch, x, stop);
                    for (Index g = 0; g < groups; ++g) {
                        const Group<In>& group = segment.groups[g];
                        if (group.spares == 0) continue;
                        energies[g * totals + number] += scratch.energies[g];
                        double& size = sizes[g * totals + number];
                        size = std::max(
                            size, static_cast<const Size<In>&>(kernels_.sizes).run(group.inputs, group.count, x, stop));
                    }
                }
            });
        });
    }

  private:
    // The column that the next piece of a thread's share begins at, in a line of cache of its own.
    struct alignas(64) Next {
        std::atomic<Index> column;
    };

    // What a run reads, writes and computes.
    struct Demand {
        Index total = 0, levels = 0, rows = 0, inputs = 0, streams = 0;
        bool judged = false;
        double bytes = 0, moved = 0;
    };

    // How it is cut, and what every thread has to work with.
    struct Work {
        Scratch<T> shape;
        Index buffers, results;
        T** starts;
        T* panels;
        Index panel;
        Scratch<T> of(int thread) const {
            Scratch<T> scratch = shape;
            T* const* const own = starts + buffers * thread;
            if (panels != nullptr) scratch.panel = panels + panel * thread;
            if (results > 0) scratch.outputs = own;
            scratch.sums = own + results;
            return scratch;
        }
    };

    Demand demand() {
        // Pointers into groups_ are set now that it no longer grows.
        Demand demand;
        Group<In>* group = groups_.data();
        for (Segment<In, Out>& segment : segments_) {
            segment.groups = group;
            Index read = 0;
            for (Index g = 0; g < segment.group_count; ++g, ++group) {
                demand.inputs = std::max(demand.inputs, group->count);
                demand.judged |= group->spares > 0;
                group->completes = sums_completed(segment.group_count, g);
                read += group->count;
            }
            demand.streams = std::max(demand.streams, read);
            const double columns = static_cast<double>(segment.length);
            const double both = columns * static_cast<double>(read * sizeof(In) + segment.rows * sizeof(Out));
            // Beyond P = 8 arithmetic outweighs memory; the factor makes a byte moved cost as much as 4 products.
            demand.bytes += std::max(both, columns * static_cast<double>(read * segment.rows * sizeof(T) / 4));
            demand.moved += both;
            demand.total += segment.length;
            demand.levels = std::max(demand.levels, tree_levels(segment.group_count));
            demand.rows = std::max(demand.rows, segment.rows);
        }
        return demand;
    }

    Work work(const Demand& demand, int threads) {
        const Tuning& tuning = kernels_.tuning;
        const auto [total, levels, rows, inputs, streams, judged, bytes, moved] = demand;
        Scratch<T> shape{total, tuning.streams, 0, kNever, 0, false, false, false, nullptr, nullptr, nullptr, nullptr};
        const auto fit = [&, total = total](Index cache, Index count) {  // columns, in steps that every tile divides
            const Index width = 256 / static_cast<Index>(sizeof(T));
            return std::min(total, std::max(width, cache / static_cast<Index>(sizeof(T)) / count / width * width));
        };
        bool packs = false;
        const bool many = rows > kFewRows, from_memory = moved > kLastCache / 4;
        const bool past = moved > static_cast<double>(many ? tuning.past_many : tuning.past);
        const bool owned = moved <= static_cast<double>(tuning.own_cache);
        const bool close = total * static_cast<Index>(sizeof(In)) <= tuning.close;
        if (many)
            shape.asks = from_memory ? tuning.many_ask_memory : kManyAsk;
        else if (tuning.few_ask && (rows >= kAskRows || (close && !owned)))
            shape.asks = from_memory ? close ? kFewAskMemory : kAskFar : owned ? kManyAsk : kFewAsk;
        if (from_memory) {
            const Index each = std::clamp(tuning.in_flight / inputs, tuning.least_ahead, tuning.most_ahead);
            shape.ahead = each / static_cast<Index>(sizeof(In));
        }
        if (close) shape.pass = kPanelInputs;
        if (!judged && !from_memory)
            shape.summed = kSummedInCache;
        else if (!judged)
            shape.summed = in_place<In, Out> && rows < 3 ? kSummed : kFewSummed;
        const bool summed = levels > 0 && levels <= kMostWaiting && rows <= kMostSummed && streams <= shape.summed;
        if (many) {
            constexpr bool halves = sizeof(In) < sizeof(T) || !in_place<In, Out>;
            shape.collides = levels == 0 && moved > kFirstCache &&
                             collides(segments_[0], from_memory ? tuning.crowd_memory : tuning.crowd);
            shape.pass = std::min(inputs, kPanelInputs);
            shape.past_caches = levels == 0 && past && inputs == shape.pass && !shape.collides;
            packs = shape.collides || (halves ? rows >= kPackRowsHalf : from_memory && rows >= kPackRows);
            const bool at_once = rows <= tuning.block_rows && inputs == shape.pass && levels == 0 && !judged;
            if (packs || !at_once)  // else one block makes the outputs in one go
                shape.columns = fit(packs && from_memory && !halves ? tuning.memory_panel : kPanel, shape.pass);
        } else if (!summed && inputs > shape.pass && (levels > 0 || !owned)) {
            shape.columns = fit(kResting, rows * (1 + levels));
        } else {
            shape.pass = inputs;
            if (levels > 0 && !summed) shape.columns = fit(kResting, rows * (1 + levels));
            shape.past_caches = past && (levels == 0 || summed);
            shape.gathers =
                shape.past_caches && !judged && inputs > 1 && streams <= tuning.gathered && rows <= kMostSummed;
        }
        const bool directly = inputs <= shape.pass && (levels == 0 || summed);
        const Index results = in_place<In, Out> || directly ? 0 : rows;
        if (results > 0) shape.past_caches = past;
        const Index buffers = results + (summed ? 0 : levels * rows);
        const Index stride = shape.columns + 64 / static_cast<Index>(sizeof(T));  // rows in different sets of a cache
        T* values = buffers > 0 ? take<T>(buffers * threads * stride) : nullptr;
        T** starts = buffers > 0 ? take<T*>(buffers * threads) : nullptr;
        for (Index i = 0; i < buffers * threads; ++i) starts[i] = values + i * stride;
        const Index panel = packs ? (shape.columns + 63) / 64 * 64 * shape.pass : 0;
        T* panels = packs ? take<T>(panel * threads) : nullptr;

        return {shape, buffers, results, starts, panels, panel};
    }

    // Calls body(thread, each) on every thread; each(segments, visit) calls visit(s, start, begin, end) for the columns
    // [begin, end) of segment s, which begins at column `start` of all, that are the thread's. Every thread has a
    // share, which it finds in its cache if the last call was alike; who is done with it helps the others, piece by
    // piece.
    template <class Body>
    void over_shares(Index total, int threads, Index step, Team* team, const Body& body) {
        const auto whole = [step](Index columns) { return (columns + step - 1) / step * step; };
        const Index share = whole(total / threads);  // 0 where there are fewer columns than threads
        const Index piece = threads == 1 ? total : std::max(whole(share / kPieces), step);
        const auto end_of = [=](int t) { return t + 1 == threads ? total : std::min(share * (t + 1), total); };
        Next* const next = take<Next>(threads);
        for (int t = 0; t < threads; ++t) new (next + t) Next{std::min(share * t, total)};
        parallel(threads, team, [&](int t) {
            body(t, [&, t](const auto& segments, const auto& visit) {
                for (int i = 0; i < threads; ++i) {
                    const int whose = (t + i) % threads;
                    const Index end = end_of(whose);
                    Index from;
                    while ((from = next[whose].column.fetch_add(piece, std::memory_order_relaxed)) < end)
                        over(segments, from, std::min(from + piece, end), visit);
                }
            });
        });
    }

    // Calls visit(s, start, begin, end) for the columns [from, to) of all, segment by segment.
    template <class Segments, class Visit>
    static void over(const Segments& segments, Index from, Index to, const Visit& visit) {
        Index start = 0;
        for (std::size_t s = 0; s < segments.size(); ++s) {
            const Index begin = std::max(from - start, Index{0});
            const Index end = std::min(to - start, segments[s].length);
            if (begin < end) visit(s, start, begin, end);
            start += segments[s].length;
        }
    }

    const Options& options_;
    const Kernels& kernels_;
    alignas(64) std::byte first_[8192];
    std::pmr::monotonic_buffer_resource arena_{first_, sizeof first_};
    std::pmr::vector<Segment<In, Out>> segments_{&arena_};
    std::pmr::vector<Group<In>> groups_{&arena_};
};

// Calls body(begin, end, work) for shares of a batch, on threads that each have `room` bytes of work. `cost` of one
// pattern in bytes that could be moved in its time.
template <class Body>
void over_patterns(Index batch, double cost, std::size_t room, const Options& options, const Body& body) {
    const int threads = thread_count(static_cast<double>(batch) * cost, options.grain, options.threads, options.team);
    const Index share = (batch + threads - 1) / threads;
    room = (room + 63) / 64 * 64;
    // Not a vector: zeros in 35 KB would take longer than the inverse of a small pattern.
    const std::unique_ptr<unsigned char[]> memory(new unsigned char[room * static_cast<std::size_t>(threads) + 63]);
    void* work = memory.get();
    std::size_t space = 64 + 63;
    std::align(64, 64, work, space);
    parallel(threads, options.team, [&](int t) {
        const Index begin = std::min(share * t, batch), end = std::min(share * (t + 1), batch);
        body(begin, end, static_cast<unsigned char*>(work) + room * static_cast<std::size_t>(t));
    });
}

// Blocks of a gradient of `length` cut into m: the first `remainder` columns have one block more than the rest.
struct Blocks {
    Index length, full, remainder;
    Blocks(Index total, Index m) : length(block_length(total, m)), full(total / length), remainder(total % length) {}
};

}  // namespace

template <class In, class Out>
void lincomb(const double* coefficients, Index P, Index Q, const In* const* inputs, Out* const* outputs, Index length,
             bool accumulate, const Options& options) {
    Plan<In, Out> plan(options);
    plan.add_segment(length, P, outputs, accumulate);
    plan.add_group(inputs, Q, [=](Index p, Index q) { return coefficients[p * Q + q]; });
    plan.run();
}

template <class In, class Out>
void encode(const double* coefficients, Index d, Index m, const In* const* gradients, Index length, Out* out,
            bool accumulate, const Options& options) {
    const Blocks blocks(length, m);
    Plan<In, Out> plan(options);
    Out* outputs[2] = {out, out + blocks.remainder};
    const auto segment = [&](Index begin, Index end, Index present, Out* const* output) {
        if (begin == end) return;
        auto inputs = plan.template take<const In*>(d * present);
        for (Index j = 0; j < d; ++j)
            for (Index u = 0; u < present; ++u) inputs[j * present + u] = gradients[j] + u * blocks.length + begin;
        plan.add_segment(end - begin, 1, output, accumulate);
        plan.add_group(inputs, d * present,
                       [=](Index, Index q) { return coefficients[q / present * m + q % present]; });
    };
    segment(0, blocks.remainder, blocks.full + 1, outputs);
    segment(blocks.remainder, blocks.length, blocks.full, outputs + 1);
    plan.run();
}

namespace {

template <class In, class Out>
void add_decoding(Plan<In, Out>& plan, const Received<In>* groups, Index group_count, Index m, Index length, Out* out,
                  bool checked) {
    const Blocks blocks(length, m);
    plan.reserve(blocks.remainder == 0 ? 1 : 2, group_count);
    const auto segment = [&](Index begin, Index end, Index present) {
        if (begin == end) return;
        Out** rows = plan.template take<Out*>(present);
        for (Index u = 0; u < present; ++u) rows[u] = out + u * blocks.length + begin;
        plan.add_segment(end - begin, present, rows, false);
        for (Index g = 0; g < group_count; ++g) {
            const Received<In>& group = groups[g];
            auto inputs = plan.template take<const In*>(group.count);
            for (Index q = 0; q < group.count; ++q) inputs[q] = group.messages[q] + begin;
            const auto coefficient = [&](Index r, Index q) {
                return r < present ? group.weights[r * group.count + q] : group.checks[(r - present) * group.count + q];
            };
            plan.add_group(inputs, group.count, coefficient, checked ? group.spares : 0);
        }
    };
    segment(0, blocks.remainder, blocks.full + 1);
    segment(blocks.remainder, blocks.length, blocks.full);
}

}  // namespace

template <class In, class Out>
void decode(const Received<In>* groups, Index group_count, Index m, Index length, Out* out, const Options& options) {
    Plan<In, Out> plan(options);
    add_decoding(plan, groups, group_count, m, length, out, false);
    plan.run();
}

template <class In, class Out>
void combine(const Stretch<In, Out>* stretches, Index count, const Options& options) {
    Plan<In, Out> plan(options);
    std::for_each_n(stretches, count, [&](const Stretch<In, Out>& stretch) {
        plan.add_segment(stretch.length, stretch.rows, stretch.outputs, false);
        std::for_each_n(stretch.groups, stretch.group_count, [&](const Received<In>& group) {
            plan.add_group(group.messages, group.count,
                           [&](Index p, Index q) { return group.weights[p * group.count + q]; });
        });
    });
    plan.run();
}

template <class In>
std::vector<Index> decode_checked(const Received<In>* groups, Index group_count, Index m, Index length,
                                  Compute<In>* out, const Floor* floors, double least, const Options& options) {
    Plan<In, Compute<In>> plan(options);
    add_decoding(plan, groups, group_count, m, length, out, true);
    const Index count = stretches(block_length(length, m));
    std::vector<double> energies(static_cast<std::size_t>(group_count * count)), sizes(energies.size());
    plan.run_judging(energies.data(), sizes.data());
    const bool squares_vanish = sizeof(Compute<In>) < sizeof(double);
    std::vector<Index> doubtful;
    for (Index g = 0; g < group_count; ++g) {
        if (groups[g].spares == 0) continue;
        const double *const energy = energies.data() + g * count, *const size = sizes.data() + g * count;
        const double smallest = std::max(least, *std::max_element(size, size + count) / kDynamicRange);
        for (Index i = 0; i < count; ++i) {
            const double floor = floors[g].relative * std::max(size[i], smallest) + floors[g].absolute;
            const double most = floor * floor * (1 - kMargin);
            const bool fine = energy[i] <= most && std::isfinite(energy[i]);  // floors may be infinite too
            if (!fine || (squares_vanish && !(floor > kUnderflow))) doubtful.push_back(i);
        }
    }
    std::sort(doubtful.begin(), doubtful.end());
    doubtful.erase(std::unique(doubtful.begin(), doubtful.end()), doubtful.end());
    return doubtful;
}

void decoding_weights(const double* generator, Index k, const std::int64_t* patterns, Index batch, double* weights,
                      unsigned char* suspicious, const Options& options) {
    const Kernels& kernels = chosen(options);
    const double size = static_cast<double>(k);
    over_patterns(batch, size * size * size + 20 * size * size, inversion_room(k, batch), options,
                  [&](Index begin, Index end, void* work) {
                      kernels.decoding_weights(generator, k, patterns + begin * k, end - begin, weights + begin * k * k,
                                               suspicious + begin, work);
                  });
}

void least_norm_weights(const double* generator, Index k, const std::int64_t* patterns, Index batch, Index q,
                        const double* target, Index targets, double* weights, unsigned char* suspicious,
                        const Options& options) {
    const Kernels& kernels = chosen(options);
    const double size = static_cast<double>(k);
    over_patterns(batch, 2 * size * size * static_cast<double>(q + targets),
                  static_cast<std::size_t>(least_norm_room(k, q, targets)) * sizeof(double), options,
                  [&](Index begin, Index end, void* work) {
                      for (Index b = begin; b < end; ++b)
                          suspicious[b] =
                              kernels.least_norm_weights(generator, k, patterns + b * q, q, target, targets,
                                                         weights + b * targets * q, static_cast<double*>(work));
                  });
}

// What is computed of the projector is off by 2^-53 times this, 10^-8, a hundredth of the least eigenvalue of a block
// that FewMissing::kMostTrace lets pass: so a block that is singular does not. Of what passes, least_norm_weights would
// doubt no rank either, as its bound is at most the product of the two.
constexpr double kMostProduct = 1e8;

std::vector<double> few_missing_table(const double* generator, Index n, Index k, const double* target, Index targets) {
    const FewMissing at(n, k, targets);
    std::vector<std::int64_t> all(static_cast<std::size_t>(n));
    std::iota(all.begin(), all.end(), std::int64_t{0});
    std::vector<double> identity(static_cast<std::size_t>(k * k)), inverse(static_cast<std::size_t>(k * n));
    for (Index i = 0; i < k; ++i) identity[static_cast<std::size_t>(i * (k + 1))] = 1;
    unsigned char suspicious = 0;
    least_norm_weights(generator, k, all.data(), 1, n, identity.data(), k, inverse.data(), &suspicious, Options{});
    double product = 0;  // bounds the square of the condition number, whatever the columns' scales
    for (Index j = 0; j < k; ++j) {
        double own = 0, inverses = 0;
        for (Index i = 0; i < n; ++i) own += generator[i * k + j] * generator[i * k + j];
        for (Index i = 0; i < n; ++i)
            inverses += inverse[static_cast<std::size_t>(j * n + i)] * inverse[static_cast<std::size_t>(j * n + i)];
        product += own * inverses;
    }
    if (suspicious != 0 || !(static_cast<double>(k) * product < kMostProduct)) return {};
    std::vector<double> table(static_cast<std::size_t>(at.rows * at.width));
    for (Index i = 0; i < n; ++i) {
        double* const row = table.data() + i * at.width;
        std::copy_n(generator + i * k, k, row);
        row[at.projector + i] = 1;
        for (Index j = 0; j < k; ++j) {
            const double* const from = inverse.data() + j * n;
            row[at.inverse + j] = from[i];
            for (Index c = 0; c < n; ++c) row[at.projector + c] -= row[j] * from[c];
            for (Index u = 0; u < targets; ++u) row[at.weights + u] += target[u * k + j] * from[i];
        }
    }
    return table;
}

void few_missing_weights(const double* table, const double* generator, Index n, Index k, const std::int64_t* patterns,
                         Index batch, Index q, const double* target, Index targets, double* weights,
                         unsigned char* suspicious, const Options& options) {
    if (table == nullptr)
        return least_norm_weights(generator, k, patterns, batch, q, target, targets, weights, suspicious, options);
    const Kernels& kernels = chosen(options);
    const Index room = std::max(least_norm_room(k, q, targets), FewMissing(n, k, targets).room(n - q));
    over_patterns(batch, 4 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(targets),
                  static_cast<std::size_t>(room) * sizeof(double), options, [&](Index begin, Index end, void* memory) {
                      double* const work = static_cast<double*>(memory);
                      for (Index b = begin; b < end; ++b) {
                          const std::int64_t* const pattern = patterns + b * q;
                          double* const own = weights + b * targets * q;
                          suspicious[b] =
                              !kernels.few_missing_weights(table, n, k, pattern, q, target, targets, own, work) &&
                              kernels.least_norm_weights(generator, k, pattern, q, target, targets, own, work);
                      }
                  });
}

#define FASTGC_FOR(In, Out)                                                                                         \
    template void lincomb(const double*, Index, Index, const In* const*, Out* const*, Index, bool, const Options&); \
    template void encode(const double*, Index, Index, const In* const*, Index, Out*, bool, const Options&);         \
    template void decode(const Received<In>*, Index, Index, Index, Out*, const Options&);                           \
    template void combine(const Stretch<In, Out>*, Index, const Options&);
FASTGC_FOR(float, float)
FASTGC_FOR(float, Float16)
FASTGC_FOR(float, BFloat16)
FASTGC_FOR(double, double)
FASTGC_FOR(Float16, Float16)
FASTGC_FOR(Float16, float)
FASTGC_FOR(BFloat16, BFloat16)
FASTGC_FOR(BFloat16, float)
#undef FASTGC_FOR

#define FASTGC_FOR(In)                                                                                               \
    template std::vector<Index> decode_checked(const Received<In>*, Index, Index, Index, Compute<In>*, const Floor*, \
                                               double, const Options&);
FASTGC_FOR(float)
FASTGC_FOR(double)
FASTGC_FOR(Float16)
FASTGC_FOR(BFloat16)
#undef FASTGC_FOR

}  // namespace fastgc
