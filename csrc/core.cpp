#include "core.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "threads.h"

namespace fastgc {

namespace {

const Kernels& chosen(const Options& options) {
    return options.kernels != nullptr ? *options.kernels : default_kernels();
}

// Segments under construction, with everything they point to.
template <class T>
class Plan {
  public:
    // The segment's outputs, `rows` of them from `outputs`, which must outlive the plan.
    void add_segment(Index length, Index rows, T* const* outputs, bool accumulate) {
        segments_.push_back({length, rows, outputs, nullptr, 0, accumulate});
    }

    // A group of the last segment: the first `rows` rows of a matrix with `stride` columns, of which the columns
    // named by the inputs' order are taken: coefficient(r, q).
    template <class Coefficient>
    void add_group(std::vector<const T*> inputs, const Coefficient& coefficient) {
        Segment<T>& segment = segments_.back();
        const Index count = static_cast<Index>(inputs.size());
        std::vector<T> packed(static_cast<std::size_t>(segment.rows * count));
        const Index step = block_rows(segment.rows);
        T* next = packed.data();
        for (Index first = 0; first < segment.rows; first += step)
            for (Index q = 0; q < count; ++q)
                for (Index r = first; r < std::min(first + step, segment.rows); ++r)
                    *next++ = static_cast<T>(coefficient(r, q));
        inputs_.push_back(std::move(inputs));
        coefficients_.push_back(std::move(packed));
        groups_.push_back({coefficients_.back().data(), inputs_.back().data(), count});
        ++segment.group_count;
    }

    void run(const Options& options) {
        const Kernels& kernels = chosen(options);
        // Pointers into groups_ are set now that it no longer grows.
        Index total = 0, levels = 0, rows = 0;
        double bytes = 0;
        const Group<T>* group = groups_.data();
        for (Segment<T>& segment : segments_) {
            segment.groups = group;
            Index inputs = 0;
            for (Index g = 0; g < segment.group_count; ++g) inputs += (group++)->count;
            // Beyond P = 8 arithmetic outweighs memory; the factor makes a byte moved cost as much as 4 products.
            const double columns = static_cast<double>(segment.length) * sizeof(T);
            bytes += columns * static_cast<double>(std::max(inputs + segment.rows, inputs * segment.rows / 4));
            total += segment.length;
            levels = std::max(levels, tree_levels(segment.group_count));
            rows = std::max(rows, segment.rows);
        }
        const int threads = thread_count(bytes, options.grain, options.threads);
        // Partial sums and the outputs they go to share a quarter of a 1 MiB second-level cache.
        const Index fit = 256 * 1024 / static_cast<Index>(sizeof(T)) / (rows * (levels + 1));
        const Index chunk = std::min(std::max<Index>(256, fit / 64 * 64), total);
        std::vector<T> values(static_cast<std::size_t>(levels * rows * chunk * threads));
        std::vector<T*> row_pointers(static_cast<std::size_t>(levels * rows * threads));
        for (std::size_t i = 0; i < row_pointers.size(); ++i)
            row_pointers[i] = values.data() + static_cast<Index>(i) * chunk;

        // Shares end on multiples of 64 columns (a cache line or more), so that only the last one has a tail.
        const Index share = (total / threads + 63) / 64 * 64;
        parallel(threads, [&](int t) {
            const Scratch<T> scratch{row_pointers.data() + levels * rows * t, chunk};
            const Index from = std::min(share * t, total);
            const Index to = t + 1 == threads ? total : std::min(share * (t + 1), total);
            Index start = 0;
            for (const Segment<T>& segment : segments_) {
                const Index begin = std::max(from - start, Index{0});
                const Index end = std::min(to - start, segment.length);
                if (begin < end) fastgc::run(kernels, segment, scratch, begin, end);
                start += segment.length;
            }
        });
    }

  private:
    std::vector<Segment<T>> segments_;
    std::vector<Group<T>> groups_;
    std::vector<std::vector<T>> coefficients_;
    std::vector<std::vector<const T*>> inputs_;
};

// Calls body(begin, end, work) for shares of a batch, on threads that each have `room` bytes of work. `cost` of one
// pattern in bytes that could be moved in its time.
template <class Body>
void over_patterns(Index batch, double cost, std::size_t room, const Options& options, const Body& body) {
    const int threads = thread_count(static_cast<double>(batch) * cost, options.grain, options.threads);
    const Index share = (batch + threads - 1) / threads;
    room = (room + 63) / 64 * 64;
    // Not a vector: zeros in 35 KB would take longer than the inverse of a small pattern.
    const std::unique_ptr<unsigned char[]> memory(new unsigned char[room * static_cast<std::size_t>(threads) + 63]);
    void* work = memory.get();
    std::size_t space = 64 + 63;
    std::align(64, 64, work, space);
    parallel(threads, [&](int t) {
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

template <class T>
void lincomb(const double* coefficients, Index P, Index Q, const T* const* inputs, T* const* outputs, Index length,
             bool accumulate, const Options& options) {
    Plan<T> plan;
    plan.add_segment(length, P, outputs, accumulate);
    plan.add_group(std::vector<const T*>(inputs, inputs + Q),
                   [=](Index p, Index q) { return coefficients[p * Q + q]; });
    plan.run(options);
}

template <class T>
void encode(const double* coefficients, Index d, Index m, const T* const* gradients, Index length, T* out,
            bool accumulate, const Options& options) {
    const Blocks blocks(length, m);
    Plan<T> plan;
    T* outputs[2] = {out, out + blocks.remainder};
    const auto segment = [&](Index begin, Index end, Index present, T* const* output) {
        if (begin == end) return;
        std::vector<const T*> inputs;
        for (Index j = 0; j < d; ++j)
            for (Index u = 0; u < present; ++u) inputs.push_back(gradients[j] + u * blocks.length + begin);
        plan.add_segment(end - begin, 1, output, accumulate);
        plan.add_group(std::move(inputs), [=](Index, Index q) { return coefficients[q / present * m + q % present]; });
    };
    segment(0, blocks.remainder, blocks.full + 1, outputs);
    segment(blocks.remainder, blocks.length, blocks.full, outputs + 1);
    plan.run(options);
}

template <class T>
void decode(const Received<T>* groups, Index group_count, Index m, Index length, T* out, const Options& options) {
    const Blocks blocks(length, m);
    Plan<T> plan;
    std::vector<T*> outputs(static_cast<std::size_t>(2 * (blocks.full + 1)));
    const auto segment = [&](Index begin, Index end, Index present, T** rows) {
        if (begin == end) return;
        for (Index u = 0; u < present; ++u) rows[u] = out + u * blocks.length + begin;
        plan.add_segment(end - begin, present, rows, false);
        for (Index g = 0; g < group_count; ++g) {
            const Received<T>& group = groups[g];
            std::vector<const T*> inputs;
            for (Index q = 0; q < group.count; ++q) inputs.push_back(group.messages[q] + begin);
            plan.add_group(std::move(inputs), [&](Index u, Index q) { return group.weights[u * group.count + q]; });
        }
    };
    segment(0, blocks.remainder, blocks.full + 1, outputs.data());
    segment(blocks.remainder, blocks.length, blocks.full, outputs.data() + blocks.full + 1);
    plan.run(options);
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

template void lincomb(const double*, Index, Index, const float* const*, float* const*, Index, bool, const Options&);
template void lincomb(const double*, Index, Index, const double* const*, double* const*, Index, bool, const Options&);
template void encode(const double*, Index, Index, const float* const*, Index, float*, bool, const Options&);
template void encode(const double*, Index, Index, const double* const*, Index, double*, bool, const Options&);
template void decode(const Received<float>*, Index, Index, Index, float*, const Options&);
template void decode(const Received<double>*, Index, Index, Index, double*, const Options&);

}  // namespace fastgc
