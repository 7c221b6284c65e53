// What the files of the C interface share: how a call fails, how arguments are judged, and weights that can be trusted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.h"
#include "core.h"
#include "rank.h"

#define FASTGC_BUILDING
#include "fastgc.h"

namespace fastgc::c {

// Sets the calling thread's message, and returns the status.
int failed(int status, const char* text);

struct NotDecodable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What a call does, with exceptions turned into statuses.
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

[[noreturn]] inline void refuse(const std::string& text) { throw std::invalid_argument(text); }

inline std::string item(const char* name, Index number) {
    return std::string(name) + "[" + std::to_string(number) + "]";
}

inline Index positive(std::int64_t value, const char* name) {
    if (value < 1 || value > std::numeric_limits<Index>::max() / 64)
        refuse(std::string(name) + ": expected a positive number, got " + std::to_string(value));
    return static_cast<Index>(value);
}

// The size of a matrix, where that is a number.
inline Index area(Index rows, Index columns, const char* name) {
    if (rows > std::numeric_limits<Index>::max() / 64 / columns)
        refuse(std::string(name) + ": " + std::to_string(rows) + " x " + std::to_string(columns) + " is too large");
    return rows * columns;
}

template <class T>
T* given(T* pointer, const std::string& name) {
    if (pointer == nullptr) refuse(name + ": is a null pointer");
    return pointer;
}

inline Options options(int threads) {
    if (threads < 0) refuse("threads: expected a positive number, or 0 for no limit, got " + std::to_string(threads));
    Options options;
    options.kernels = &default_kernels();
    options.threads = threads;
    return options;
}

inline void require_finite(const double* values, Index rows, Index columns, Element element, const std::string& name) {
    const Index at = first_beyond(values, rows * columns, element);
    if (at < rows * columns)
        refuse(name + "[" + std::to_string(at / columns) + ", " + std::to_string(at % columns) +
               "]: expected a number finite in " + name_of(element == Element::f64 ? element : Element::f32) +
               ", got " + std::to_string(values[at]));
}

inline void require_generator(const double* generator, Index n, Index k) {
    given(generator, "generator");
    if (k > n) refuse("k: expected at most n, which is " + std::to_string(n) + ", got " + std::to_string(k));
    area(n, k, "generator");
    require_finite(generator, n, k, Element::f64, "generator");
}

// A target (m x k), or the identity in its place.
inline std::vector<double> target_of(const double* target, Index m, Index k) {
    if (target != nullptr) {
        const Index size = area(m, k, "target");
        require_finite(target, m, k, Element::f64, "target");
        return {target, target + size};
    }
    if (m != k) refuse("m: expected k, which is " + std::to_string(k) + ", without a target, got " + std::to_string(m));
    std::vector<double> identity(static_cast<std::size_t>(area(k, k, "target")));
    for (Index i = 0; i < k; ++i) identity[static_cast<std::size_t>(i * k + i)] = 1;
    return identity;
}

// Weights (m x q) of the patterns of a batch, the inverse where there is no target. Calls singular(b) for a pattern
// whose rows do not have rank k, and may go on. name(b) is what the caller knows a pattern by. With a `table`, by
// few_missing_weights.
template <class Name, class Singular>
std::vector<double> weights_of(const double* table, const double* generator, Index n, Index k,
                               const std::int64_t* patterns, Index batch, Index q, const double* target, Index m,
                               const Options& how, const Name& name, const Singular& singular) {
    const Index size = area(m, q, "weights");
    std::vector<double> weights(static_cast<std::size_t>(area(batch, size, "weights")));
    std::vector<unsigned char> suspicious(static_cast<std::size_t>(batch));
    if (target == nullptr)
        decoding_weights(generator, k, patterns, batch, weights.data(), suspicious.data(), how);
    else
        few_missing_weights(table, generator, n, k, patterns, batch, q, target, m, weights.data(), suspicious.data(),
                            how);
    for (Index b = 0; b < batch; ++b) {
        if (suspicious[static_cast<std::size_t>(b)] == 0) continue;
        if (!full_rank(generator, k, patterns + b * q, q)) {
            singular(b);
            continue;
        }
        const double* const own = weights.data() + b * size;
        if (!std::all_of(own, own + size, [](double x) { return std::isfinite(x); }))
            refuse("generator: entries are so large or small that the weights of " + name(b) + " overflow");
    }
    return weights;
}

[[noreturn]] inline void not_decodable(const std::string& name, Index k) {
    throw NotDecodable(name + ": these rows of the generator do not have rank " + std::to_string(k));
}

}  // namespace fastgc::c
