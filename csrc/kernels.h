// What every instruction set provides, and the table that lists them.
//
// Rows of the table are functions, columns are instruction sets. kernels.cpp compiles the bodies (the *-inl.h
// files) once per instruction set; everything above it picks a column at run time and never sees an intrinsic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastgc {

using Index = std::ptrdiff_t;

// Output rows that one register block computes together; coefficients are packed in blocks of at most this many.
constexpr Index kMaxBlockRows = 8;

// Rows per register block, so that P rows are cut into blocks as equal as possible (9 = 5 + 4, never 8 + 1).
inline Index block_rows(Index rows) {
    const Index blocks = (rows + kMaxBlockRows - 1) / kMaxBlockRows;
    return (rows + blocks - 1) / blocks;
}

// One small matrix and the rows it is applied to. Coefficients are packed: blocks of block_rows(P) rows one after
// the other (the last may have fewer), and within a block of R rows entry (r, q) at [q * R + r].
template <class T>
struct Group {
    const T* coefficients;
    const T* const* inputs;
    Index count;  // Q, the number of inputs, at least 1
};

// A stretch of columns over which the rows that exist do not change. Its result is the sum of the groups' results
// by the binary tree [lo, hi) = [lo, mid) + [mid, hi), mid = (lo + hi) / 2; with one group there is nothing to add.
// Rows made of pieces (blocks of a gradient, later tensors of a model) become one segment per set of pieces.
template <class T>
struct Segment {
    Index length;
    Index rows;  // P, at least 1
    T* const* outputs;
    const Group<T>* groups;
    Index group_count;
    bool accumulate;  // only with one group: the chain of every element starts from what the output holds
};

// Buffers of partial sums for the tree: `levels` of them, each of `rows` rows with room for `columns` elements.
template <class T>
struct Scratch {
    T* const* rows;
    Index columns;
};

// Up to this size several patterns are inverted at once, one in each lane: their matrices and inverses, 2 k² + 2 k
// numbers, fit a first-level cache of 32 KiB in 4 lanes.
constexpr Index kMostInterleaved = 16;
constexpr Index kMostLanes = 8;

// Bytes that decoding_weights needs for a batch of k x k.
inline std::size_t inversion_room(Index k, Index batch) {
    const Index lanes = batch > 1 && k <= kMostInterleaved ? kMostLanes : 1;
    return static_cast<std::size_t>(lanes * (2 * k * k + 2 * k)) * sizeof(double);
}

// Numbers that least_norm_weights needs: rows and columns are padded to multiples of four.
inline Index least_norm_room(Index k, Index q, Index targets) {
    const Index stride = (k + 3) / 4 * 4, height = (q + 3) / 4 * 4 + 4;
    return (2 * height + stride + 3) * stride + (k + targets) * height;
}

// Buffers that the tree over `groups` needs: a right child that is a leaf is added in place.
inline Index tree_levels(Index groups) {
    Index levels = 0;
    for (; groups > 2; groups -= groups / 2) ++levels;
    return levels;
}

// One column of the table.
struct Kernels {
    const char* name;
    bool fused;  // multiply-add with one rounding: all such instruction sets give the same bits
    // Computes columns [begin, end) of a segment.
    void (*lincomb_f32)(const Segment<float>&, Scratch<float>, Index begin, Index end);
    void (*lincomb_f64)(const Segment<double>&, Scratch<double>, Index begin, Index end);
    // weights[b] = inverse of the k rows patterns[b] of the generator (row-major, k columns). suspicious[b] where the
    // result must not be trusted before the rank has been looked at. `work`: 64-byte aligned, inversion_room() bytes.
    void (*decoding_weights)(const double* generator, Index k, const std::int64_t* patterns, Index batch,
                             double* weights, unsigned char* suspicious, void* work);
    // The least-norm `weights` (targets x q) that bring the q >= k rows `pattern` of the generator to the target
    // (targets x k); true where the rank must be looked at first. `work` has room for least_norm_room() numbers.
    bool (*least_norm_weights)(const double* generator, Index k, const std::int64_t* pattern, Index q,
                               const double* target, Index targets, double* weights, double* work);
};

inline void run(const Kernels& kernels, const Segment<float>& segment, Scratch<float> scratch, Index begin, Index end) {
    kernels.lincomb_f32(segment, scratch, begin, end);
}
inline void run(const Kernels& kernels, const Segment<double>& segment, Scratch<double> scratch, Index begin,
                Index end) {
    kernels.lincomb_f64(segment, scratch, begin, end);
}

// The columns that this machine can run, slowest first.
const std::vector<const Kernels*>& available_kernels();

// The column of that name. Throws std::invalid_argument naming `source`, the value and what is available.
const Kernels& kernels_named(const std::string& name, const char* source);

// The column in use: the one FASTGC_ISA names, else the fastest. The environment is read once, on first use.
const Kernels& default_kernels();

}  // namespace fastgc
