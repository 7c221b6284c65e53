// The C interface: check the arguments once, call the core, turn exceptions into codes.
#define FASTGC_BUILDING
#include "fastgc.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "core.h"
#include "rank.h"
#include "threads.h"

namespace {

using fastgc::Element;
using fastgc::Index;

// Room of a fixed size, so that saying that memory is short needs none.
thread_local char message[512] = "";

int failed(int status, const char* text) {
    std::snprintf(message, sizeof message, "%s", text);
    return status;
}

struct NotDecodable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

template <class Body>
int guarded(const Body& body) noexcept {
    try {
        body();
        return FASTGC_OK;
    } catch (const NotDecodable& error) {
        return failed(FASTGC_NOT_DECODABLE, error.what());
    } catch (const std::invalid_argument& error) {
        return failed(FASTGC_INVALID_ARGUMENT, error.what());
    } catch (const std::bad_alloc&) {
        return failed(FASTGC_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception& error) {
        return failed(FASTGC_INTERNAL_ERROR, error.what());
    } catch (...) {
        return failed(FASTGC_INTERNAL_ERROR, "an unknown exception");
    }
}

[[noreturn]] void refuse(const std::string& text) { throw std::invalid_argument(text); }

std::string item(const char* name, Index number) { return std::string(name) + "[" + std::to_string(number) + "]"; }

Index positive(std::int64_t value, const char* name) {
    if (value < 1 || value > std::numeric_limits<Index>::max() / 64)
        refuse(std::string(name) + ": expected a positive number, got " + std::to_string(value));
    return static_cast<Index>(value);
}

// The size of a matrix, where that is a number.
Index area(Index rows, Index columns, const char* name) {
    if (rows > std::numeric_limits<Index>::max() / 64 / columns)
        refuse(std::string(name) + ": " + std::to_string(rows) + " x " + std::to_string(columns) + " is too large");
    return rows * columns;
}

template <class T>
T* given(T* pointer, const std::string& name) {
    if (pointer == nullptr) refuse(name + ": is a null pointer");
    return pointer;
}

Element element_of(int type, const char* name) {
    switch (type) {
        case FASTGC_FLOAT32:
            return Element::f32;
        case FASTGC_FLOAT64:
            return Element::f64;
        case FASTGC_FLOAT16:
            return Element::f16;
        case FASTGC_BFLOAT16:
            return Element::bf16;
    }
    refuse(std::string(name) + ": expected a fastgc_type, got " + std::to_string(type));
}

fastgc::Options options(int threads) {
    if (threads < 0) refuse("threads: expected a positive number, or 0 for no limit, got " + std::to_string(threads));
    fastgc::Options options;
    options.kernels = &fastgc::default_kernels();
    options.threads = threads;
    return options;
}

void require_finite(const double* values, Index rows, Index columns, Element element, const std::string& name) {
    const Index at = fastgc::first_beyond(values, rows * columns, element);
    if (at < rows * columns)
        refuse(name + "[" + std::to_string(at / columns) + ", " + std::to_string(at % columns) +
               "]: expected a number finite in " + name_of(element == Element::f64 ? element : Element::f32) +
               ", got " + std::to_string(values[at]));
}

// Coefficients as doubles: the caller's, or a copy of float32 ones.
class Coefficients {
  public:
    Coefficients(int type, const void* values, Index rows, Index columns, Element element) {
        given(values, "coefficients");
        const Index size = area(rows, columns, "coefficients");
        if (type == FASTGC_FLOAT32) {
            const auto* const floats = static_cast<const float*>(values);
            copy_.assign(floats, floats + size);
            data_ = copy_.data();
        } else if (type == FASTGC_FLOAT64) {
            data_ = static_cast<const double*>(values);
        } else {
            refuse("coefficient_type: expected FASTGC_FLOAT32 or FASTGC_FLOAT64, got " + std::to_string(type));
        }
        require_finite(data_, rows, columns, element, "coefficients");
    }
    Coefficients(const Coefficients&) = delete;
    const double* data() const { return data_; }

  private:
    std::vector<double> copy_;
    const double* data_;
};

// `name` is a function, called where there is something to say: to make a name takes longer than to look at a row.
template <class Name>
void require_row(const void* row, Element element, const Name& name) {
    if (row == nullptr) given(row, name());
    if (reinterpret_cast<std::uintptr_t>(row) % size_of(element) != 0)
        refuse(name() + ": elements must be aligned to their size, " + std::to_string(size_of(element)) + " bytes");
}

// Rows that are read, and what is written: their memory must not overlap.
struct Inputs {
    const char* name;
    const void* const* rows;
    Index count;
    Element element;
    Index length;
    std::size_t bytes() const { return static_cast<std::size_t>(length) * size_of(element); }
};

void require_rows(const Inputs& inputs) {
    given(inputs.rows, inputs.name);
    for (Index q = 0; q < inputs.count; ++q)
        require_row(inputs.rows[q], inputs.element, [&] { return item(inputs.name, q); });
}

class Outputs {
  public:
    Outputs(const char* name, void* const* rows, Index count, Element element, Index length, Element from)
        : name_(name), written_(start(rows, name), count, static_cast<std::size_t>(length) * size_of(element)) {
        if (!may_go_out(from, element))
            refuse(std::string("output_type: ") + name_of(from) + " inputs cannot go out as " + name_of(element));
        for (Index p = 0; p < count; ++p)
            require_row(rows[p], element, [&] { return count > 1 ? item(name, p) : std::string(name); });
        if (!written_.disjoint()) refuse(name_ + ": rows overlap each other in memory");
    }
    void check(const Inputs& inputs) const {
        for (Index q = 0; q < inputs.count; ++q)
            if (written_.reach(static_cast<const char*>(inputs.rows[q]), inputs.bytes()))
                refuse(name_ + ": overlaps " + item(inputs.name, q) + " in memory");
    }

  private:
    static const char* const* start(void* const* rows, const char* name) {
        return reinterpret_cast<const char* const*>(given(rows, name));
    }
    std::string name_;
    fastgc::Written written_;
};

template <class T>
const T* const* as(const void* const* rows) {
    return reinterpret_cast<const T* const*>(rows);
}

void lincomb(int coefficient_type, const void* coefficients, Index P, Index Q, Element in, const void* const* inputs,
             Element out, void* const* outputs, Index length, bool accumulate, int threads) {
    const Coefficients c(coefficient_type, coefficients, P, Q, in);
    const Inputs rows{"inputs", inputs, Q, in, length};
    require_rows(rows);
    Outputs("outputs", outputs, P, out, length, in).check(rows);
    const fastgc::Options how = options(threads);
    fastgc::with_types(in, out, [&](auto* from, auto* to) {
        using In = std::remove_pointer_t<decltype(from)>;
        using Out = std::remove_pointer_t<decltype(to)>;
        fastgc::lincomb<In, Out>(c.data(), P, Q, as<In>(inputs), reinterpret_cast<Out* const*>(outputs), length,
                                 accumulate, how);
    });
}

// Pointers to rows at equal distances.
template <class Byte, class Void>
std::vector<Void*> rows_at(Void* first, std::int64_t stride, Index count, const char* name) {
    given(first, name);
    std::vector<Void*> rows;
    rows.reserve(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) rows.push_back(static_cast<Byte*>(first) + i * static_cast<Index>(stride));
    return rows;
}

void require_patterns(const std::int64_t* patterns, Index batch, Index q, Index n) {
    given(patterns, "patterns");
    std::vector<Index> seen(static_cast<std::size_t>(n), -1);
    for (Index b = 0; b < batch; ++b)
        for (Index i = 0; i < q; ++i) {
            const std::int64_t row = patterns[b * q + i];
            if (row < 0 || row >= n)
                refuse(item("patterns", b) + ": row " + std::to_string(row) + " is not among the generator's " +
                       std::to_string(n) + " rows");
            Index& last = seen[static_cast<std::size_t>(row)];
            if (last == b) refuse(item("patterns", b) + ": row " + std::to_string(row) + " is named twice");
            last = b;
        }
}

void require_generator(const double* generator, Index n, Index k) {
    given(generator, "generator");
    if (k > n) refuse("k: expected at most n, which is " + std::to_string(n) + ", got " + std::to_string(k));
    area(n, k, "generator");
    require_finite(generator, n, k, Element::f64, "generator");
}

// Weights made by body(weights, suspicious), looked at, and only then handed out.
template <class Body>
void weights_of(const double* generator, Index k, const std::int64_t* patterns, Index batch, Index q, Index size,
                double* result, const Body& body) {
    given(result, "weights");
    std::vector<double> weights(static_cast<std::size_t>(area(batch, size, "weights")));
    std::vector<unsigned char> suspicious(static_cast<std::size_t>(batch));
    body(weights.data(), suspicious.data());
    for (Index b = 0; b < batch; ++b) {
        if (suspicious[static_cast<std::size_t>(b)] == 0) continue;
        if (!fastgc::full_rank(generator, k, patterns + b * q, q))
            throw NotDecodable(item("patterns", b) + ": its rows of the generator do not have rank " +
                               std::to_string(k));
        const double* const own = weights.data() + b * size;
        if (!std::all_of(own, own + size, [](double x) { return std::isfinite(x); }))
            refuse("generator: entries are so large or small that the weights of " + item("patterns", b) + " overflow");
    }
    std::copy(weights.begin(), weights.end(), result);
}

}  // namespace

int fastgc_abi_version() { return FASTGC_ABI_VERSION; }

const char* fastgc_version() { return FASTGC_VERSION; }

const char* fastgc_error_message() { return message; }

const char* fastgc_instruction_set() {
    const char* name = nullptr;
    guarded([&] { name = fastgc::default_kernels().name; });
    return name;
}

const char* fastgc_available_instruction_set(int number) {
    const char* name = nullptr;
    guarded([&] {
        const auto& available = fastgc::available_kernels();
        if (number >= 0 && static_cast<std::size_t>(number) < available.size())
            name = available[static_cast<std::size_t>(number)]->name;
    });
    return name;
}

int fastgc_max_threads() { return fastgc::thread_count(std::numeric_limits<double>::max(), 1, 0); }

int fastgc_lincomb(int coefficient_type, const void* coefficients, int64_t P, int64_t Q, int input_type,
                   const void* const* inputs, int output_type, void* const* outputs, int64_t length, int accumulate,
                   int threads) {
    return guarded([&] {
        lincomb(coefficient_type, coefficients, positive(P, "P"), positive(Q, "Q"),
                element_of(input_type, "input_type"), inputs, element_of(output_type, "output_type"), outputs,
                positive(length, "length"), accumulate != 0, threads);
    });
}

int fastgc_lincomb_strided(int coefficient_type, const void* coefficients, int64_t P, int64_t Q, int input_type,
                           const void* inputs, int64_t input_stride, int output_type, void* outputs,
                           int64_t output_stride, int64_t length, int accumulate, int threads) {
    return guarded([&] {
        const auto in = rows_at<const char>(inputs, input_stride, positive(Q, "Q"), "inputs");
        const auto out = rows_at<char>(outputs, output_stride, positive(P, "P"), "outputs");
        lincomb(coefficient_type, coefficients, static_cast<Index>(P), static_cast<Index>(Q),
                element_of(input_type, "input_type"), in.data(), element_of(output_type, "output_type"), out.data(),
                positive(length, "length"), accumulate != 0, threads);
    });
}

int64_t fastgc_message_length(int64_t length, int64_t m) { return length < 1 || m < 1 ? 0 : (length - 1) / m + 1; }

int fastgc_encode(int coefficient_type, const void* coefficients, int64_t d, int64_t m, int input_type,
                  const void* const* gradients, int64_t length, int output_type, void* result, int accumulate,
                  int threads) {
    return guarded([&] {
        const Index load = positive(d, "d"), reduction = positive(m, "m"), total = positive(length, "length");
        const Element in = element_of(input_type, "input_type"), out = element_of(output_type, "output_type");
        const Coefficients c(coefficient_type, coefficients, load, reduction, in);
        const Inputs rows{"gradients", gradients, load, in, total};
        require_rows(rows);
        Outputs("message", &result, 1, out, fastgc::block_length(total, reduction), in).check(rows);
        const fastgc::Options how = options(threads);
        fastgc::with_types(in, out, [&](auto* from, auto* to) {
            using In = std::remove_pointer_t<decltype(from)>;
            using Out = std::remove_pointer_t<decltype(to)>;
            fastgc::encode<In, Out>(c.data(), load, reduction, as<In>(gradients), total, static_cast<Out*>(result),
                                    accumulate != 0, how);
        });
    });
}

int fastgc_decode(const fastgc_group* groups, int64_t group_count, int64_t m, int input_type, int64_t length,
                  int output_type, void* gradient, int threads) {
    return guarded([&] {
        const Index count = positive(group_count, "group_count"), reduction = positive(m, "m");
        const Index total = positive(length, "length");
        const Element in = element_of(input_type, "input_type"), out = element_of(output_type, "output_type");
        given(groups, "groups");
        const Outputs output("gradient", &gradient, 1, out, total, in);
        for (Index g = 0; g < count; ++g) {
            const std::string weights = item("groups", g) + ".weights", messages = item("groups", g) + ".messages";
            const Index survivors = positive(groups[g].count, (item("groups", g) + ".count").c_str());
            area(reduction, survivors, weights.c_str());
            require_finite(given(groups[g].weights, weights), reduction, survivors, in, weights);
            const Inputs rows{messages.c_str(), groups[g].messages, survivors, in,
                              fastgc::block_length(total, reduction)};
            require_rows(rows);
            output.check(rows);
        }
        const fastgc::Options how = options(threads);
        fastgc::with_types(in, out, [&](auto* from, auto* to) {
            using In = std::remove_pointer_t<decltype(from)>;
            using Out = std::remove_pointer_t<decltype(to)>;
            std::vector<fastgc::Received<In>> received;
            for (Index g = 0; g < count; ++g)
                received.push_back(
                    {groups[g].weights, as<In>(groups[g].messages), static_cast<Index>(groups[g].count)});
            fastgc::decode<In, Out>(received.data(), count, reduction, total, static_cast<Out*>(gradient), how);
        });
    });
}

int fastgc_decoding_weights(const double* generator, int64_t n, int64_t k, const int64_t* patterns, int64_t batch,
                            double* weights, int threads) {
    return guarded([&] {
        const Index rows = positive(n, "n"), size = positive(k, "k"), count = positive(batch, "batch");
        require_generator(generator, rows, size);
        require_patterns(patterns, count, size, rows);
        const fastgc::Options how = options(threads);
        weights_of(generator, size, patterns, count, size, size * size, weights,
                   [&](double* result, unsigned char* suspicious) {
                       fastgc::decoding_weights(generator, size, patterns, count, result, suspicious, how);
                   });
    });
}

int fastgc_least_norm_weights(const double* generator, int64_t n, int64_t k, const int64_t* patterns, int64_t batch,
                              int64_t q, const double* target, int64_t m, double* weights, int threads) {
    return guarded([&] {
        const Index rows = positive(n, "n"), size = positive(k, "k"), count = positive(batch, "batch");
        const Index width = positive(q, "q"), targets = positive(m, "m");
        require_generator(generator, rows, size);
        if (width < size)
            refuse("q: expected at least k, which is " + std::to_string(size) + ", got " + std::to_string(width));
        require_patterns(patterns, count, width, rows);
        std::vector<double> identity;
        if (target == nullptr) {
            if (targets != size)
                refuse("m: expected k, which is " + std::to_string(size) + ", without a target, got " +
                       std::to_string(targets));
            identity.resize(static_cast<std::size_t>(area(size, size, "target")));
            for (Index i = 0; i < size; ++i) identity[static_cast<std::size_t>(i * size + i)] = 1;
        } else {
            area(targets, size, "target");
            require_finite(target, targets, size, Element::f64, "target");
        }
        const double* const wanted = target == nullptr ? identity.data() : target;
        const fastgc::Options how = options(threads);
        weights_of(generator, size, patterns, count, width, area(targets, width, "weights"), weights,
                   [&](double* result, unsigned char* suspicious) {
                       fastgc::least_norm_weights(generator, size, patterns, count, width, wanted, targets, result,
                                                  suspicious, how);
                   });
    });
}
