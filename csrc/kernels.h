// What every instruction set provides, and the table that lists them.
//
// Rows of the table are functions, columns are instruction sets. The files kernels_*.cpp compile the bodies (*-inl.h)
// once per instruction set; everything above them picks a column at run time and never sees an intrinsic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tuning.h"

// Instruction sets that this build has beside the portable one.
#if defined(__x86_64__) && defined(__GNUC__)
# define FASTGC_X86 1
#else
# define FASTGC_X86 0
#endif
#if FASTGC_X86 && !defined(FASTGC_WITHOUT_AVX512)  // for builds that take long and will not run it
# define FASTGC_AVX512 1
#else
# define FASTGC_AVX512 0
#endif
#if defined(__aarch64__)
# define FASTGC_NEON 1
#else
# define FASTGC_NEON 0
#endif

namespace fastgc {

// Element types that exist in memory only: IEEE binary16 and the upper half of a binary32, by their bits.
struct Float16 {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

// What an element type computes in.
template <class T>
struct ComputeOf {
    using type = float;
};
template <>
struct ComputeOf<double> {
    using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

// Up to so many rows of a product count as few: they are read and cut in another way than more.
constexpr Index kFewRows = 6;

// Rows of the register block that begins with row `first` of so many: all blocks but the last two are as long as one
// another, with at most `most` rows. The last two share what is left where one alone would have 1 or 2 rows: those wait
// for their sums.
inline Index block_rows(Index most, Index rows, Index first) {
    const Index blocks = (rows + most - 1) / most;
    const Index alike = (rows + blocks - 1) / blocks, left = rows - first;
    if (left <= alike) return left;
    return left < alike + 3 ? (left + 1) / 2 : alike;
}

// Whether outputs can hold what is computed between passes and groups; else it is kept in rows of the type computed in.
template <class In, class Out>
constexpr bool in_place = sizeof(Compute<In>) == sizeof(Out);

// One small matrix and the rows it is applied to. Coefficients are packed: blocks of block_rows() rows one after the
// other, and within a block of R rows entry (r, q) at [q * R + r].
template <class In>
struct Group {
    const Compute<In>* coefficients;
    const In* const* inputs;
    Index count;       // Q, the number of inputs, at least 1
    Index spares = 0;  // rows below the segment's that are syndromes: what they make of the inputs is judged, not kept
    Index completes = 0;  // sums of the segment's tree that this group is the last of
};

// A stretch of columns over which the rows that exist do not change. Its result is the sum of the groups' results
// by the binary tree [lo, hi) = [lo, mid) + [mid, hi), mid = (lo + hi) / 2; with one group there is nothing to add.
// Rows made of pieces (blocks of a gradient, later tensors of a model) become one segment per set of pieces.
// All arithmetic is in Compute<In>; a result is rounded to Out once, at the end.
template <class In, class Out>
struct Segment {
    Index length;
    Index rows;  // P, at least 1
    Out* const* outputs;
    const Group<In>* groups;
    Index group_count;
    bool accumulate;  // only with one group: the chain of every element starts from what the output holds
};

// How a call is cut into pieces that stay in cache, and the rows it keeps there, with room for `columns` elements each,
// of the type computed in.
template <class T>
struct Scratch {
    Index columns;      // work is done in chunks of so many
    Index pass;         // inputs that are read together; between passes the chains rest in the outputs
    Index summed;       // groups of so many inputs together are added up in registers
    Index asks;         // from so many inputs on tiles ask for the next tile's columns
    Index ahead;        // columns beyond the next tile that they ask for where inputs come from memory, else 0
    bool past_caches;   // results are stored past the caches where a tile makes whole lines
    bool gathers;       // where rows do not agree where a line begins, lines are gathered in cache
    bool collides;      // too many rows share a set of the first-level cache to be read side by side
    T* panel;           // room for `columns` packed columns of `pass` inputs; null: they are read where they are
    T* const* outputs;  // P rows for chains at rest that the outputs cannot hold; null: results are made in place
    T* const* sums;     // tree_levels() times P rows for the tree's partial sums, where they are not all in registers
    double* energies;   // a number for each group, to which the squares of its syndromes are added
};

// Up to this size several patterns are inverted at once, one in each lane: their matrices and inverses, 2 k² + 4 k
// numbers, fit a first-level cache of 32 KiB in 4 lanes.
constexpr Index kMostInterleaved = 16;
constexpr Index kMostLanes = 8;

// Bytes that decoding_weights needs for a batch of k x k.
inline std::size_t inversion_room(Index k, Index batch) {
    const Index lanes = batch > 1 && k <= kMostInterleaved ? kMostLanes : 1;
    return static_cast<std::size_t>(lanes * (2 * k * k + 4 * k)) * sizeof(double);
}

// Numbers that least_norm_weights needs: rows and columns are padded to multiples of four.
inline Index least_norm_room(Index k, Index q, Index targets) {
    const Index stride = (k + 3) / 4 * 4, height = (q + 3) / 4 * 4 + 4;
    return (2 * height + stride + 4) * stride + (k + targets) * height;
}

// Where a row of a table for few_missing_weights has what, all padded with zeros to multiples of four: the generator's
// row, a column of G^+, a row of I - G G^+, and the weights of all rows. There are `rows` of them.
struct FewMissing {
    static constexpr double kMostTrace = 1e6;  // of the inverse of a block, whose own eigenvalues are at most 1
    Index columns, rows, inverse, projector, weights, width;
    FewMissing(Index n, Index k, Index targets)
        : columns((k + 3) / 4 * 4),
          rows((n + 3) / 4 * 4),
          inverse(columns),
          projector(2 * columns),
          weights(projector + rows),
          width(weights + (targets + 3) / 4 * 4) {}

    // Numbers that the weights of n - missing rows need.
    Index room(Index missing) const { return 2 * (rows + columns) + missing * (missing + 2); }
};

// Buffers that the tree over `groups` needs.
inline Index tree_levels(Index groups) {
    Index levels = 0;
    for (; groups > 1; groups -= groups / 2) ++levels;
    return levels;
}

// Sums of the tree over `groups` that group g is the last of.
inline Index sums_completed(Index groups, Index g) {
    Index completed = 0;
    for (Index lo = 0, hi = groups; hi - lo > 1;) {
        const Index mid = (lo + hi) / 2;
        if (g < mid) {
            hi = mid;
            completed = 0;
        } else {
            lo = mid;
            ++completed;
        }
    }
    return completed;
}

// At most so many groups, of at most so many rows, are added up in registers, with so many sums waiting for others.
constexpr Index kMostAtOnce = 16, kMostWaiting = 4;
constexpr Index kMostSummed = 3;

// Computes columns [begin, end) of a segment.
template <class In, class Out>
struct Lincomb {
    void (*run)(const Segment<In, Out>&, const Scratch<Compute<In>>&, Index begin, Index end);
};

// The pairs of element types that there are.
struct Lincombs : Lincomb<float, float>,
                  Lincomb<float, Float16>,
                  Lincomb<float, BFloat16>,
                  Lincomb<double, double>,
                  Lincomb<Float16, Float16>,
                  Lincomb<Float16, float>,
                  Lincomb<BFloat16, BFloat16>,
                  Lincomb<BFloat16, float> {};

// A size that the largest absolute value in columns [begin, end) of the rows does not fall below, from a few columns.
template <class In>
struct Size {
    double (*run)(const In* const* rows, Index count, Index begin, Index end);
};
struct Sizes : Size<float>, Size<double>, Size<Float16>, Size<BFloat16> {};

// One column of the table.
struct Kernels {
    const char* name;
    Tuning tuning;
    bool fused;  // multiply-add with one rounding: all such instruction sets give the same bits
    Lincombs lincombs;
    Sizes sizes;
    // weights[b] = inverse of the k rows patterns[b] of the generator (row-major, k columns). suspicious[b] where the
    // result must not be trusted before the rank has been looked at. `work`: 64-byte aligned, inversion_room() bytes.
    void (*decoding_weights)(const double* generator, Index k, const std::int64_t* patterns, Index batch,
                             double* weights, unsigned char* suspicious, void* work);
    // The least-norm `weights` (targets x q) that bring the q >= k rows `pattern` of the generator to the target
    // (targets x k); true where the rank must be looked at first. `work` has room for least_norm_room() numbers.
    bool (*least_norm_weights)(const double* generator, Index k, const std::int64_t* pattern, Index q,
                               const double* target, Index targets, double* weights, double* work);
    // The same, from a table for n rows; false where the other is to be asked. `work`: FewMissing::room() numbers.
    bool (*few_missing_weights)(const double* table, Index n, Index k, const std::int64_t* pattern, Index q,
                                const double* target, Index targets, double* weights, double* work);
};

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace neon {
extern const Kernels kernels;
}

// All ones until available_kernels() finds that the processor rounds to bfloat16 by an instruction.
extern std::uint16_t bfloat16_by_integers;

// The columns that this machine can run, slowest first.
const std::vector<const Kernels*>& available_kernels();

// The column of that name. Throws std::invalid_argument naming `source`, the value and what is available.
const Kernels& kernels_named(const std::string& name, const char* source);

// The column in use: the one FASTGC_ISA names, else the fastest. The environment is read once, on first use.
const Kernels& default_kernels();

}  // namespace fastgc
