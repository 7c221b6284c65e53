// What the interfaces for Python and for C share in judging arguments. No Python, and no messages: each has its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <vector>

#include "kernels.h"

namespace fastgc {

enum class Element { f32, f64, f16, bf16 };

inline std::size_t size_of(Element element) { return element == Element::f64 ? 8 : element == Element::f32 ? 4 : 2; }
inline const char* name_of(Element element) {
    constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16"};
    return names[static_cast<int>(element)];
}

// float16 and bfloat16 may go out as float32, and float32 as either; the result is rounded once in any case.
inline bool may_go_out(Element in, Element out) {
    const auto narrow = [](Element element) { return element == Element::f16 || element == Element::bf16; };
    return in == out || (out == Element::f32 && narrow(in)) || (in == Element::f32 && narrow(out));
}

// Calls body with null pointers of the types of inputs and outputs, of which the one may go out as the other: the one
// place where types at run time become templates.
template <class Body>
void with_types(Element in, Element out, const Body& body) {
    const auto into = [&](auto* from) {
        if (out == Element::f16)
            body(from, static_cast<Float16*>(nullptr));
        else if (out == Element::bf16)
            body(from, static_cast<BFloat16*>(nullptr));
        else
            body(from, static_cast<float*>(nullptr));
    };
    if (in == Element::f64) return body(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    if (in == Element::f32) return into(static_cast<float*>(nullptr));
    const auto same_or_float = [&](auto* from) {
        if (out == Element::f32)
            body(from, static_cast<float*>(nullptr));
        else
            body(from, from);
    };
    if (in == Element::f16) return same_or_float(static_cast<Float16*>(nullptr));
    same_or_float(static_cast<BFloat16*>(nullptr));
}

// The first of `size` coefficients that is not finite in the type that rows of `element` are computed in; `size` if all
// are. Counted without a branch first: a 64 x 64 matrix takes 3 us with one, longer than short rows.
inline Index first_beyond(const double* value, Index size, Element element) {
    const double most =
        element == Element::f64 ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
    Index beyond = 0;
    for (Index i = 0; i < size; ++i) beyond += !(std::fabs(value[i]) <= most);
    if (beyond == 0) return size;
    return std::find_if(value, value + size, [=](double x) { return !(std::fabs(x) <= most); }) - value;
}

// The memory of rows that are written, compared by address range: interleaved rows of one array do not overlap. Holds
// on to `starts`.
class Written {
  public:
    Written(const char* const* starts, Index count, std::size_t bytes) : bytes_(bytes), starts_(starts), count_(count) {
        const std::less<> before;
        const auto close = [&](Index i) { return before(starts_[i], starts_[i - 1] + bytes_); };
        Index i = 1;
        while (i < count_ && !close(i)) ++i;
        if (i >= count_) return;
        sorted_.assign(starts_, starts_ + count_);  // not one after the other
        std::sort(sorted_.begin(), sorted_.end(), before);
        starts_ = sorted_.data();
        for (i = 1; i < count_; ++i) disjoint_ &= !close(i);
    }
    Written(const Written&) = delete;

    // Whether no row reaches into another.
    bool disjoint() const { return disjoint_; }

    // Whether one of them, which are disjoint, reaches into [begin, begin + bytes).
    bool reach(const char* begin, std::size_t bytes) const {
        const std::less<> before;
        if (!before(begin, starts_[count_ - 1] + bytes_) || !before(starts_[0], begin + bytes)) return false;
        // Only the last one that starts before the end can reach into it.
        const char* const* const after = std::lower_bound(starts_, starts_ + count_, begin + bytes, before);
        return after != starts_ && before(begin, *(after - 1) + bytes_);
    }

  private:
    std::size_t bytes_;
    const char* const* starts_;  // in increasing order
    Index count_;
    std::vector<const char*> sorted_;
    bool disjoint_ = true;
};

}  // namespace fastgc
