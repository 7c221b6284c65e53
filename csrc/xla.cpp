// XLA's custom calls, by its typed FFI: view the buffers, check them, call the core. Built where jaxlib's headers are.
//
// fastgc/jax/ makes the calls and has checked their shapes; what is checked here again keeps a call from touching
// memory that is not its own. The numbers of coefficients are seen here for the first time.
#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "core.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"
#include "xla_errors.h"

#ifdef __linux__
# include <sys/mman.h>
#endif

namespace {

namespace ffi = xla::ffi;
using fastgc::Index;
using fastgc::require;
using Type = ffi::DataType;
using Result = ffi::Result<ffi::AnyBuffer>;

// XLA flushes denormal numbers while it computes; the bits of a result do not depend on who asks for it.
class DefaultFloats {
  public:
    DefaultFloats() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloats() { std::fesetenv(&saved_); }
    DefaultFloats(const DefaultFloats&) = delete;

  private:
    std::fenv_t saved_;
};

// XLA's own threads, so that calls at the same time share the machine's cores. A pool promises nobody to run two tasks
// at once, and the caller may be one of its threads: so whoever comes takes the next share, the caller too, which then
// waits for shares that are being worked on, never for one that nobody has begun.
class Pool final : public fastgc::Team {
  public:
    explicit Pool(ffi::ThreadPool& pool) : pool_(pool) {}
    int size(double) override { return static_cast<int>(std::min<std::int64_t>(pool_.num_threads(), 1 << 20)); }
    void run(int shares, void (*body)(const void* context, int t), const void* context) override {
        struct State {
            std::atomic<int> next{0};
            std::mutex mutex;
            std::condition_variable finished;
            int done = 0;
        };
        const auto state = std::make_shared<State>();  // a task that comes late finds it, and no share left
        const auto work = [=] {
            int mine = 0;
            for (int t; (t = state->next.fetch_add(1)) < shares; ++mine) {
                const DefaultFloats floats;
                body(context, t);
            }
            if (mine == 0) return;
            const std::lock_guard<std::mutex> lock(state->mutex);
            state->done += mine;
            if (state->done == shares) state->finished.notify_one();
        };
        for (int helper = 1; helper < shares; ++helper) pool_.Schedule([work] { work(); });
        work();
        std::unique_lock<std::mutex> lock(state->mutex);
        state->finished.wait(lock, [&] { return state->done == shares; });
    }

  private:
    ffi::ThreadPool& pool_;
};

// Runs a handler's body; an exception becomes an error of the call.
template <class Body>
ffi::Error guarded(const Body& body) {
    return fastgc::reported([&] {
        const DefaultFloats floats;
        body();
    });
}

// Asks for large pages where a result lies, as NumPy does for its own: a new one is memory that nobody has touched, and
// clearing it page by page takes several times as long as computing it.
void in_large_pages(const ffi::AnyBuffer& result) {
#ifdef __linux__
    constexpr std::size_t least = 4 * 1024 * 1024, page = 4096;
    const std::size_t bytes = result.size_bytes();
    if (bytes < least) return;
    const auto start = (reinterpret_cast<std::uintptr_t>(result.untyped_data()) + page - 1) / page * page;
    const auto end = (reinterpret_cast<std::uintptr_t>(result.untyped_data()) + bytes) / page * page;
    madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);  // advice: it may be declined
#else
    static_cast<void>(result);
#endif
}

// Calls body with null pointers of the types of inputs and outputs.
template <class Body>
void with_types(Type in, Type out, const Body& body) {
    using fastgc::BFloat16;
    using fastgc::Float16;
    const auto to = [&](auto* from, auto* same) {
        if (out == ffi::F32) return body(from, static_cast<float*>(nullptr));
        require(in == out, "expected elements to go out as they came in, or float32 on one side");
        body(from, same);
    };
    if (in == ffi::F64 && out == ffi::F64) return body(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    float* const single = nullptr;
    Float16* const half = nullptr;
    BFloat16* const brain = nullptr;
    if (in == ffi::F16) return to(half, half);
    if (in == ffi::BF16) return to(brain, brain);
    require(in == ffi::F32, "expected float32, float64, float16 or bfloat16");
    if (out == ffi::F16) return body(single, half);
    if (out == ffi::BF16) return body(single, brain);
    to(single, single);
}

// Coefficients in the type computed in, as the core takes them.
class Coefficients {
  public:
    Coefficients(const ffi::AnyBuffer& buffer, Type rows) : size_(static_cast<Index>(buffer.element_count())) {
        const Type type = rows == ffi::F64 ? ffi::F64 : ffi::F32;
        require(buffer.element_type() == type, "coefficients: expected the type computed in");
        if (type == ffi::F64)
            read(static_cast<const double*>(buffer.untyped_data()));
        else
            read(static_cast<const float*>(buffer.untyped_data()));
    }
    const double* data() const { return wide_ != nullptr ? wide_ : values_.data(); }
    double operator[](Index i) const {
        require(i >= 0 && i < size_, "table: names a coefficient that is not there");
        return data()[i];
    }

  private:
    template <class T>
    void read(const T* given) {
        for (Index i = 0; i < size_; ++i)
            if (!std::isfinite(given[i]))
                throw std::invalid_argument("coefficients: expected finite numbers, got " + std::to_string(given[i]) +
                                            " as number " + std::to_string(i));
        if constexpr (sizeof(T) == sizeof(double))
            wide_ = given;
        else
            values_.assign(given, given + size_);
    }
    Index size_;
    const double* wide_ = nullptr;
    std::vector<double> values_;
};

fastgc::Options options(std::int64_t threads, fastgc::Team& team) {
    fastgc::Options options;
    options.threads = static_cast<int>(threads);
    options.team = &team;
    return options;
}

// Calls body(item, options) for the items of a batch: small items side by side, large ones each by all threads.
template <class Body>
void over_batch(Index batch, double bytes, const fastgc::Options& all, const Body& body) {
    const bool small = bytes / static_cast<double>(batch) < 2 * all.grain;
    const int shares =
        batch > 1 && small
            ? static_cast<int>(std::min<Index>(batch, fastgc::thread_count(bytes, all.grain, all.threads, all.team)))
            : 1;
    if (shares == 1) {
        for (Index item = 0; item < batch; ++item) body(item, all);
        return;
    }
    fastgc::Options alone = all;
    alone.threads = 1;
    std::atomic<bool> failed{false};
    fastgc::parallel(shares, all.team, [&](int t) {
        try {
            for (Index item = batch * t / shares; item < batch * (t + 1) / shares; ++item) body(item, alone);
        } catch (const std::exception&) {  // only memory can run out here
            failed = true;
        }
    });
    if (failed) throw std::bad_alloc();
}

// out[b, p] = sum_q coefficients[b, p, q] inputs[b, q], the batch being one or absent in the coefficients and absent in
// all; with a third argument, which out shares memory with, chains start from what it holds.
ffi::Error lincomb(ffi::ThreadPool threads, ffi::AnyBuffer coefficients, ffi::AnyBuffer inputs,
                   ffi::RemainingArgs initial, Result out, std::int64_t limit) {
    return guarded([&] {
        const auto in = inputs.dimensions(), to = out->dimensions(), matrix = coefficients.dimensions();
        require((in.size() == 2 || in.size() == 3) && to.size() == in.size(), "inputs: expected two or three axes");
        require(matrix.size() == 2 || matrix.size() == in.size(), "coefficients: expected no more axes than inputs");
        const Index batch = in.size() == 3 ? in[0] : 1, Q = in[in.size() - 2], length = in[in.size() - 1];
        const Index P = matrix[matrix.size() - 2];
        require(matrix[matrix.size() - 1] == Q, "coefficients: expected a column for each input");
        require(to[to.size() - 2] == P && to[to.size() - 1] == length, "out: expected a row for each of coefficients");
        require(in.size() == 2 || to[0] == batch, "out: expected the inputs' batch");
        require(matrix.size() == 2 || matrix[0] == batch, "coefficients: expected the inputs' batch");
        require(batch > 0 && P > 0 && Q > 0 && length > 0, "expected no empty axis");
        const bool accumulate = initial.size() == 1;
        if (accumulate) {
            const auto before = initial.get<ffi::AnyBuffer>(0);
            require(before.has_value() && before->untyped_data() == out->untyped_data(), "out: expected to be aliased");
        }
        if (!accumulate) in_large_pages(*out);
        const Coefficients c(coefficients, inputs.element_type());
        const Index step = matrix.size() == 3 ? P * Q : 0;
        Pool team(threads);
        with_types(inputs.element_type(), out->element_type(), [&](auto* from, auto* into) {
            using In = std::remove_pointer_t<decltype(from)>;
            using Out = std::remove_pointer_t<decltype(into)>;
            const auto read = static_cast<const In*>(inputs.untyped_data());
            const auto write = static_cast<Out*>(out->untyped_data());
            const double bytes =
                static_cast<double>(batch * length) * static_cast<double>(Q * sizeof(In) + P * sizeof(Out));
            over_batch(batch, bytes, options(limit, team), [&](Index item, const fastgc::Options& how) {
                std::vector<const In*> sources;
                std::vector<Out*> targets;
                for (Index q = 0; q < Q; ++q) sources.push_back(read + (item * Q + q) * length);
                for (Index p = 0; p < P; ++p) targets.push_back(write + (item * P + p) * length);
                fastgc::lincomb<In, Out>(c.data() + item * step, P, Q, sources.data(), targets.data(), length,
                                         accumulate, how);
            });
        });
    });
}

// The stretches of a call on many arrays, as fastgc/jax/_combine.py writes them, number after number.
class Table {
  public:
    explicit Table(ffi::Span<const std::int64_t> numbers) : numbers_(numbers) {}
    bool ended() const { return at_ == numbers_.size(); }
    Index next() {
        require(!ended(), "table: ends too early");
        return numbers_[at_++];
    }
    Index count() {
        const Index value = next();
        require(value > 0, "table: expected a positive number");
        return value;
    }

  private:
    ffi::Span<const std::int64_t> numbers_;
    std::size_t at_ = 0;
};

// Arrays that a table names, of which every item of the batch has its own part, or all share one.
class Arrays {
  public:
    explicit Arrays(Index batch) : batch_(batch) {}
    void add(const ffi::AnyBuffer& buffer, bool shared) {
        require(arrays_.empty() || buffer.element_type() == type_, "expected arrays of one element type");
        type_ = buffer.element_type();
        const Index count = static_cast<Index>(buffer.element_count());
        arrays_.push_back(
            {static_cast<char*>(buffer.untyped_data()), shared ? 0 : count / batch_, shared ? count : count / batch_});
        bytes_ += static_cast<double>(buffer.size_bytes());
    }
    // The row of an item of the batch that the table names next, by its array and where in it it starts.
    template <class T>
    T* row(Table& table, Index length, Index item) const {
        const Index index = table.next(), start = table.next();
        require(index >= 0 && index < static_cast<Index>(arrays_.size()), "table: names an array that is not there");
        const Array& array = arrays_[static_cast<std::size_t>(index)];
        require(start >= 0 && length <= array.size - start, "table: names a row beyond its array");
        return reinterpret_cast<T*>(array.data) + item * array.step + start;
    }
    Type type() const { return type_; }
    double bytes() const { return bytes_; }

  private:
    struct Array {
        char* data;
        Index step, size;
    };
    std::vector<Array> arrays_;
    Index batch_;
    Type type_ = Type::INVALID;
    double bytes_ = 0;
};

// What the core's stretches point to.
template <class In, class Out>
struct Stretches {
    Stretches(Table table, const Coefficients& c, const Arrays& inputs, const Arrays& outputs, Index item) {
        while (!table.ended()) {
            const Index length = table.count(), rows = table.count(), groups = table.count();
            std::vector<Out*> targets;
            std::vector<Index> down, across;
            for (Index p = 0; p < rows; ++p) {
                targets.push_back(outputs.row<Out>(table, length, item));
                down.push_back(table.next());
            }
            std::vector<fastgc::Received<In>> received;
            for (Index g = 0; g < groups; ++g) {
                const Index count = table.count();
                std::vector<const In*> sources;
                across.clear();
                for (Index q = 0; q < count; ++q) {
                    sources.push_back(inputs.row<In>(table, length, item));
                    across.push_back(table.next());
                }
                std::vector<double> weights;
                for (const Index from : down)
                    for (const Index to : across) weights.push_back(c[from + to]);
                weights_.push_back(std::move(weights));
                sources_.push_back(std::move(sources));
                received.push_back({weights_.back().data(), sources_.back().data(), count});
            }
            targets_.push_back(std::move(targets));
            groups_.push_back(std::move(received));
            list.push_back({length, rows, targets_.back().data(), groups_.back().data(), groups});
        }
    }
    std::vector<fastgc::Stretch<In, Out>> list;

  private:
    std::vector<std::vector<double>> weights_;
    std::vector<std::vector<const In*>> sources_;
    std::vector<std::vector<Out*>> targets_;
    std::vector<std::vector<fastgc::Received<In>>> groups_;
};

// Linear combinations of rows that lie in many arrays; `shared` has a one for every array without the batch.
ffi::Error combine(ffi::ThreadPool threads, ffi::AnyBuffer coefficients, ffi::RemainingArgs arrays,
                   ffi::RemainingRets results, std::int64_t batch, ffi::Span<const std::int64_t> shared,
                   ffi::Span<const std::int64_t> table, std::int64_t limit) {
    return guarded([&] {
        require(batch > 0 && arrays.size() > 0 && results.size() > 0 && shared.size() == arrays.size(),
                "expected arrays, and for each whether it is shared");
        Arrays inputs(batch), outputs(batch);
        for (std::size_t i = 0; i < arrays.size(); ++i) {
            const auto buffer = arrays.get<ffi::AnyBuffer>(i);
            require(buffer.has_value(), "expected arrays");
            inputs.add(*buffer, shared[i] != 0);
        }
        for (std::size_t i = 0; i < results.size(); ++i) {
            auto buffer = results.get<ffi::AnyBuffer>(i);
            require(buffer.has_value(), "expected arrays");
            outputs.add(**buffer, false);
            in_large_pages(**buffer);
        }
        const Coefficients c(coefficients, inputs.type());
        Pool team(threads);
        with_types(inputs.type(), outputs.type(), [&](auto* from, auto* into) {
            using In = std::remove_pointer_t<decltype(from)>;
            using Out = std::remove_pointer_t<decltype(into)>;
            {
                const Stretches<In, Out> checked(Table(table), c, inputs, outputs, 0);
            }
            over_batch(batch, inputs.bytes() + outputs.bytes(), options(limit, team),
                       [&](Index item, const fastgc::Options& how) {
                           const Stretches<In, Out> stretches(Table(table), c, inputs, outputs, item);
                           fastgc::combine<In, Out>(stretches.list.data(), static_cast<Index>(stretches.list.size()),
                                                    how);
                       });
        });
    });
}

// weights[b] = inverse of rows patterns[b] of the generator, patterns being numbers that are seen here for the first
// time.
ffi::Error decoding_weights(ffi::ThreadPool threads, ffi::AnyBuffer patterns, Result weights,
                            ffi::Span<const double> generator, std::int64_t columns, std::int64_t limit) {
    return guarded([&] {
        const auto shape = patterns.dimensions();
        const Index k = columns, n = static_cast<Index>(generator.size()) / std::max<Index>(k, 1);
        const Index count = static_cast<Index>(patterns.element_count());
        require(patterns.element_type() == ffi::S32 && shape.size() > 0 && shape[shape.size() - 1] == k && k > 0,
                "patterns: expected k rows each, in int32");
        require(static_cast<Index>(weights->element_count()) == count * k, "weights: expected k rows a pattern");
        const auto given = static_cast<const std::int32_t*>(patterns.untyped_data());
        const auto refuse = [&](Index b, const std::string& what) {
            std::string rows;
            for (Index i = 0; i < k; ++i) rows += (i > 0 ? ", " : "") + std::to_string(given[b * k + i]);
            throw std::invalid_argument("patterns[" + std::to_string(b) + "]: rows " + rows + what);
        };
        for (Index b = 0; b < count / k; ++b)
            for (Index i = 0; i < k; ++i) {
                const std::int32_t row = given[b * k + i];
                if (row < 0 || row >= n) refuse(b, " must be among the generator's " + std::to_string(n));
                for (Index before = 0; before < i; ++before)
                    if (given[b * k + before] == row) refuse(b, " must be different");
            }
        const std::vector<std::int64_t> wide(given, given + count);
        std::vector<unsigned char> suspicious(static_cast<std::size_t>(count / k));
        std::vector<double> found(weights->element_type() == ffi::F64 ? 0 : static_cast<std::size_t>(count * k));
        double* const result = found.empty() ? static_cast<double*>(weights->untyped_data()) : found.data();
        Pool team(threads);
        fastgc::decoding_weights(generator.begin(), k, wide.data(), count / k, result, suspicious.data(),
                                 options(limit, team));
        for (Index b = 0; b < count / k; ++b)
            if (suspicious[static_cast<std::size_t>(b)] != 0)
                refuse(b, " of the generator are dependent, or too nearly for this function to tell");
        if (found.empty()) return;
        require(weights->element_type() == ffi::F32, "weights: expected float32 or float64");
        std::copy(found.begin(), found.end(), static_cast<float*>(weights->untyped_data()));
    });
}

}  // namespace

// The version of the interface, major times 1000 plus minor: fastgc/_xla.py compares it with the installed XLA's.
FASTGC_EXPORT int fastgc_xla_version();
FASTGC_EXPORT XLA_FFI_Error* fastgc_xla_lincomb(XLA_FFI_CallFrame*);
FASTGC_EXPORT XLA_FFI_Error* fastgc_xla_combine(XLA_FFI_CallFrame*);
FASTGC_EXPORT XLA_FFI_Error* fastgc_xla_decoding_weights(XLA_FFI_CallFrame*);

int fastgc_xla_version() { return XLA_FFI_API_MAJOR * 1000 + XLA_FFI_API_MINOR; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(fastgc_xla_lincomb, lincomb,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(fastgc_xla_combine, combine,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::int64_t>("batch")
                                  .Attr<ffi::Span<const std::int64_t>>("shared")
                                  .Attr<ffi::Span<const std::int64_t>>("table")
                                  .Attr<std::int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(fastgc_xla_decoding_weights, decoding_weights,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<ffi::Span<const double>>("generator")
                                  .Attr<std::int64_t>("columns")
                                  .Attr<std::int64_t>("threads"));
