// The operations, on plain pointers. No Python and no checks: the callers have made sure that sizes are
// positive and that no output overlaps anything else.
#pragma once

#include <vector>

#include "kernels.h"

namespace fastgc {

class Team;  // threads.h

struct Options {
    const Kernels* kernels = nullptr;  // null: default_kernels()
    int threads = 0;                   // at most this many; 0: no limit
    // Bytes that make a thread worth waking. At the 30 GB/s of a cache this is 9 us, twice what waking one costs.
    double grain = 256 * 1024;
    Team* team = nullptr;  // null: the library's own threads
};

// Coefficients are row-major doubles, rounded once to Compute<In>. The pairs of types are those of struct Lincombs.

// outputs[p] = sum_q coefficients[p, q] inputs[q], P x Q coefficients, rows of `length`.
template <class In, class Out>
void lincomb(const double* coefficients, Index P, Index Q, const In* const* inputs, Out* const* outputs, Index length,
             bool accumulate, const Options& options);

// Length of a block: a gradient of `length` is cut into m blocks, the last of which may be short or empty.
inline Index block_length(Index length, Index m) { return (length + m - 1) / m; }

// out = sum_j sum_u coefficients[j, u] (block u of gradient j), j and u ascending; d x m coefficients, gradients of
// `length`, out of block_length(length, m).
template <class In, class Out>
void encode(const double* coefficients, Index d, Index m, const In* const* gradients, Index length, Out* out,
            bool accumulate, const Options& options);

template <class In>
struct Received {
    const double* weights;      // m x count
    const In* const* messages;  // each of block_length(length, m)
    Index count;
    const double* checks = nullptr;  // spares x count, for decode_checked: what makes zeros of messages that agree
    Index spares = 0;
};

// out (of `length`, block after block) = the groups' weights · messages, added up by the tree of struct Segment.
template <class In, class Out>
void decode(const Received<In>* groups, Index group_count, Index m, Index length, Out* out, const Options& options);

template <class In, class Out>
struct Stretch {
    Index length, rows;
    Out* const* outputs;
    const Received<In>* groups;  // their weights are rows x count, their messages of `length`
    Index group_count;
};

// For rows made of pieces, such as the tensors of a model: outputs of each stretch as decode makes those of its blocks.
template <class In, class Out>
void combine(const Stretch<In, Out>* stretches, Index count, const Options& options);

// Columns whose syndromes, checks · messages, are judged together.
constexpr Index kJudged = 4096;
// No messages there count as smaller than the largest anywhere divided by this.
constexpr double kDynamicRange = 1024;
// What is so much below a floor, as a share of its square, is doubtful too: in which order squares are added up is left
// open, and must decide nothing.
constexpr double kMargin = 0x1p-10;
// Syndromes smaller than this have squares that float may lose.
constexpr double kUnderflow = 0x1p-50;

// How long a group's syndromes of kJudged columns may be, together: relative to a size that its messages' largest
// absolute value there is not below, and beside that.
struct Floor {
    double relative, absolute;
};

// As decode, and returns the numbers of the stretches of kJudged columns where the syndromes of some group exceed
// their floor, are not finite or too small to say. `least`: a size that no messages count as below.
template <class In>
std::vector<Index> decode_checked(const Received<In>* groups, Index group_count, Index m, Index length,
                                  Compute<In>* out, const Floor* floors, double least, const Options& options);

// weights[b] = inverse of rows patterns[b] (k of them) of the generator (row-major, k columns). suspicious[b] where
// the rank must be looked at first; the weights may then be NaN.
void decoding_weights(const double* generator, Index k, const std::int64_t* patterns, Index batch, double* weights,
                      unsigned char* suspicious, const Options& options);

// weights[b] (targets x q): the shortest A with A · (rows patterns[b], q >= k of them, of the generator) = target,
// which is targets x k. suspicious[b] where the rank must be looked at first; the weights may then be NaN.
void least_norm_weights(const double* generator, Index k, const std::int64_t* patterns, Index batch, Index q,
                        const double* target, Index targets, double* weights, unsigned char* suspicious,
                        const Options& options);

// Whether weights from a table take less time, and the table is made in that of some twenty patterns, at most 0.1 s:
// see docs/kernels.md.
inline bool few_missing_pays(Index n, Index k, Index targets) { return n <= 512 && 3 * (targets + n - k) <= 2 * k; }

// What finds weights of patterns that few of the n rows are missing from, in rows of struct FewMissing; empty where the
// generator is so ill-conditioned that it should not be relied on. Bits are the same on all machines.
std::vector<double> few_missing_table(const double* generator, Index n, Index k, const double* target, Index targets);

// As least_norm_weights, by such a table where there is one and it can be.
void few_missing_weights(const double* table, const double* generator, Index n, Index k, const std::int64_t* patterns,
                         Index batch, Index q, const double* target, Index targets, double* weights,
                         unsigned char* suspicious, const Options& options);

}  // namespace fastgc
