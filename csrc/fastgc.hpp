// fastgc.h for C++17: element types from pointers, sizes from containers, exceptions for statuses. Header only.
#ifndef FASTGC_HPP
#define FASTGC_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "fastgc.h"

namespace fastgc {

// What a call threw out: its status, and fastgc_error_message() as what().
class error : public std::runtime_error {
  public:
    explicit error(int status) : std::runtime_error(fastgc_error_message()), status_(status) {}
    int status() const noexcept { return status_; }

  private:
    int status_;
};

inline void check(int status) {
    if (status != FASTGC_OK) throw error(status);
}

// The fastgc_type of T. To use a 16-bit type of yours, specialise it.
template <class T>
struct type_of;
template <>
struct type_of<float> {
    static constexpr int value = FASTGC_FLOAT32;
};
template <>
struct type_of<double> {
    static constexpr int value = FASTGC_FLOAT64;
};

// A row-major matrix that someone else holds: its elements must outlive it.
template <class T>
struct matrix {
    T* data;
    std::int64_t rows, columns;
    T* operator[](std::int64_t row) const { return data + row * columns; }
};

struct options {
    bool accumulate = false;
    int threads = 0;
};

// outputs = coefficients times inputs, row by row.
template <class C, class In, class Out>
void lincomb(matrix<C> coefficients, matrix<In> inputs, matrix<Out> outputs, options how = {}) {
    using std::remove_const_t;
    if (coefficients.rows != outputs.rows || coefficients.columns != inputs.rows || inputs.columns != outputs.columns)
        throw std::invalid_argument("fastgc::lincomb: the shapes of coefficients, inputs and outputs do not match");
    check(fastgc_lincomb_strided(type_of<remove_const_t<C>>::value, coefficients.data, coefficients.rows,
                                 coefficients.columns, type_of<remove_const_t<In>>::value, inputs.data,
                                 inputs.columns * static_cast<std::int64_t>(sizeof(In)), type_of<Out>::value,
                                 outputs.data, outputs.columns * static_cast<std::int64_t>(sizeof(Out)), inputs.columns,
                                 how.accumulate, how.threads));
}

// The same for rows that lie anywhere, each of `length`.
template <class C, class In, class Out>
void lincomb(matrix<C> coefficients, const std::vector<In*>& inputs, const std::vector<Out*>& outputs,
             std::int64_t length, options how = {}) {
    using std::remove_const_t;
    if (static_cast<std::size_t>(coefficients.rows) != outputs.size() ||
        static_cast<std::size_t>(coefficients.columns) != inputs.size())
        throw std::invalid_argument("fastgc::lincomb: the shapes of coefficients, inputs and outputs do not match");
    const std::vector<const void*> from(inputs.begin(), inputs.end());
    const std::vector<void*> to(outputs.begin(), outputs.end());
    check(fastgc_lincomb(type_of<remove_const_t<C>>::value, coefficients.data, coefficients.rows, coefficients.columns,
                         type_of<remove_const_t<In>>::value, from.data(), type_of<Out>::value, to.data(), length,
                         how.accumulate, how.threads));
}

// The weights of survivors, k x (number of survivors): the inverse of their rows of the generator, or with survivors to
// spare the pseudoinverse.
inline std::vector<double> decoding_weights(matrix<const double> generator,
                                            const std::vector<std::int64_t>& survivors) {
    const std::int64_t k = generator.columns, q = static_cast<std::int64_t>(survivors.size());
    std::vector<double> weights(static_cast<std::size_t>(k) * survivors.size());
    if (q == k)
        check(fastgc_decoding_weights(generator.data, generator.rows, k, survivors.data(), 1, weights.data(), 0));
    else
        check(fastgc_least_norm_weights(generator.data, generator.rows, k, survivors.data(), 1, q, nullptr, k,
                                        weights.data(), 0));
    return weights;
}

// A cache of weights by survivor pattern, fastgc_patterns, which any number of threads may use at once. A mask is as
// fastgc.h has it: bit i of a number for up to 64 rows, else of (n + 63) / 64 numbers.
class patterns {
  public:
    // Of the generator's inverses and pseudoinverses, or of weights for a target (m x k).
    patterns(matrix<const double> generator, std::int64_t capacity) : patterns(generator, {}, capacity) {}
    patterns(matrix<const double> generator, matrix<const double> target, std::int64_t capacity)
        : rows_(target.data == nullptr ? generator.columns : target.rows), words_((generator.rows + 63) / 64) {
        if (target.data != nullptr && target.columns != generator.columns)
            throw std::invalid_argument("fastgc::patterns: generator and target do not have as many columns");
        fastgc_patterns* made = nullptr;
        check(fastgc_patterns_create(generator.data, generator.rows, generator.columns, target.data, rows_, capacity,
                                     &made));
        held_.reset(made);
    }

    // Copies the weights of the survivors, m x (number of survivors), columns in increasing order.
    void weights(std::uint64_t survivors, matrix<double> result) const {
        require(words_ == 1);
        look_up(&survivors, result);
    }
    void weights(const std::vector<std::uint64_t>& survivors, matrix<double> result) const {
        require(static_cast<std::int64_t>(survivors.size()) == words_);
        look_up(survivors.data(), result);
    }

    // Finds the weights of many sets of survivors ahead of need: of masks one after the other, or of all of q
    // survivors.
    void precompute(const std::vector<std::uint64_t>& masks, int threads = 0) const {
        require(static_cast<std::int64_t>(masks.size()) % words_ == 0);
        check(fastgc_patterns_precompute(held_.get(), masks.data(), static_cast<std::int64_t>(masks.size()) / words_,
                                         threads));
    }
    void precompute_all(std::int64_t q, int threads = 0) const {
        check(fastgc_patterns_precompute_all(held_.get(), q, threads));
    }

    std::int64_t size() const noexcept { return fastgc_patterns_size(held_.get()); }
    std::int64_t hits() const noexcept { return fastgc_patterns_hits(held_.get()); }
    std::int64_t misses() const noexcept { return fastgc_patterns_misses(held_.get()); }

  private:
    struct destroy {
        void operator()(fastgc_patterns* held) const noexcept { fastgc_patterns_destroy(held); }
    };
    static void require(bool right) {
        if (!right) throw std::invalid_argument("fastgc::patterns: a mask has (n + 63) / 64 words");
    }
    void look_up(const std::uint64_t* survivors, matrix<double> result) const {
        if (result.rows != rows_) throw std::invalid_argument("fastgc::patterns: weights have m rows");
        check(fastgc_patterns_weights(held_.get(), survivors, result.columns, result.data));
    }

    std::int64_t rows_, words_;
    std::unique_ptr<fastgc_patterns, destroy> held_;
};

}  // namespace fastgc

#endif
