// The C interface: check the arguments once, call the core, turn exceptions into codes.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "c_interface.h"
#include "threads.h"

namespace {

using fastgc::Element;
using fastgc::Index;
using namespace fastgc::c;

// Room of a fixed size, so that saying that memory is short needs none.
thread_local char message[512] = "";

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

// Weights that are handed out only when all patterns have theirs.
void weights_into(double* result, const double* generator, Index n, Index k, const std::int64_t* patterns, Index batch,
                  Index q, const double* target, Index m, int threads) {
    given(result, "weights");
    const auto name = [](Index b) { return item("patterns", b); };
    const std::vector<double> weights = weights_of(nullptr, generator, n, k, patterns, batch, q, target, m,
                                                   options(threads), name, [&](Index b) { not_decodable(name(b), k); });
    std::copy(weights.begin(), weights.end(), result);
}

}  // namespace

int fastgc::c::failed(int status, const char* text) {
    std::snprintf(message, sizeof message, "%s", text);
    return status;
}

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
        weights_into(weights, generator, rows, size, patterns, count, size, nullptr, size, threads);
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
        const std::vector<double> wanted = target_of(target, targets, size);
        weights_into(weights, generator, rows, size, patterns, count, width, wanted.data(), targets, threads);
    });
}
