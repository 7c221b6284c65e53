// The least-norm weights A with A G_F = T, for more rows than columns or a target T other than the identity.
//
// Householder's G_F = Q L, from the last column to the first, so A = (T L^-1) Q^T: the rows of Q^T are orthonormal,
// which makes A the shortest. Its residual is small against the largest rows of G_F, and after one step of refinement
// against each row's own size, as after LU with partial pivoting.
//
// The columns still to come are the first ones of a row, and all loops run from its start to a multiple of four, over
// what is done with or zero: short rows with tails took twice as long. A chain of sums waits 3 or 4 cycles for each
// term, so four products are added up before they join it. A vector holds neighbouring columns or the four parts of a
// sum, so nothing is reordered and the bits are the same on every instruction set, as in decoding_weights-inl.h.
typedef double Four __attribute__((vector_size(32), aligned(8), may_alias));
FASTGC_INLINE Four& four(double* from) { return *reinterpret_cast<Four*>(from); }
FASTGC_INLINE const Four& four(const double* from) { return *reinterpret_cast<const Four*>(from); }

constexpr Index padded(Index n) { return (n + 3) / 4 * 4; }

FASTGC_INLINE double dot(const double* __restrict a, const double* __restrict b, Index n) {
    double sums[4] = {0, 0, 0, 0};
    for (Index i = 0; i < n; i += 4)
        for (int e = 0; e < 4; ++e) sums[e] += a[i + e] * b[i + e];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// to -= factor * from, over n numbers, a multiple of four.
FASTGC_INLINE void subtract(double* __restrict to, double factor, const double* __restrict from, Index n) {
    for (Index j = 0; j < n; j += 4)
        for (int e = 0; e < 4; ++e) to[j + e] -= factor * from[j + e];
}

// to += four factors times four rows, over n numbers, a multiple of four.
FASTGC_INLINE void add_four(double* __restrict to, const double* factors, Index next, const double* __restrict from,
                            Index stride, Index n) {
    const double f0 = factors[0], f1 = factors[next], f2 = factors[2 * next], f3 = factors[3 * next];
    for (Index j = 0; j < n; j += 4)
        for (int e = 0; e < 4; ++e) {
            const double* const x = from + j + e;
            to[j + e] += (f0 * x[0] + f1 * x[stride]) + (f2 * x[2 * stride] + f3 * x[3 * stride]);
        }
}

// Four rows lose multiples of `from`, over n numbers, a multiple of four, and what remains is summed up as by add_four,
// with factors in column `at`: each number is read once for both.
FASTGC_INLINE void subtract_four(double* __restrict rows, Index stride, const double* factors,
                                 const double* __restrict from, Index n, Index at, double* __restrict sums) {
    const double v0 = factors[0], v1 = factors[1], v2 = factors[2], v3 = factors[3];
    double* const __restrict row1 = rows + stride;
    double* const __restrict row2 = row1 + stride;
    double* const __restrict row3 = row2 + stride;
    const double f0 = rows[at] - v0 * from[at], f1 = row1[at] - v1 * from[at];
    const double f2 = row2[at] - v2 * from[at], f3 = row3[at] - v3 * from[at];
    for (Index j = 0; j < n; j += 4) {
        const Four x = four(from + j);
        const Four x0 = four(rows + j) - v0 * x, x1 = four(row1 + j) - v1 * x;
        const Four x2 = four(row2 + j) - v2 * x, x3 = four(row3 + j) - v3 * x;
        four(rows + j) = x0;
        four(row1 + j) = x1;
        four(row2 + j) = x2;
        four(row3 + j) = x3;
        four(sums + j) += (f0 * x0 + f1 * x1) + (f2 * x2 + f3 * x3);
    }
}

bool least_norm_weights(const double* generator, Index k, const std::int64_t* pattern, Index q, const double* target,
                        Index targets, double* weights, double* work) {
    const Index stride = padded(k), height = padded(q) + 4;
    double* const g = work;                       // height x k, G_F and rows of zeros
    double* const m = g + height * stride;        // the same, whose row c becomes row k - 1 - c of L
    double* const x = m + height * stride;        // k x k and rows of zeros, L^-1
    double* const vectors = x + stride * stride;  // row c: Householder's vector of step c, from its first entry
    double* const taus = vectors + k * height;    // k, 2 / |vector|²
    double* const norms = taus + stride;          // k, squared norms of the columns of G_F
    double* const sums = norms + stride;          // k
    double* const multiples = sums + stride;      // k
    double* const a = multiples + stride;         // targets x height
    for (Index j = 0; j < stride; ++j) norms[j] = 0;
    __builtin_memset(g, 0, static_cast<std::size_t>(height * stride) * sizeof *g);
    for (Index r = 0; r < q; ++r) {
        double* const to = g + r * stride;
        __builtin_memcpy(to, generator + pattern[r] * k, static_cast<std::size_t>(k) * sizeof *to);
        for (Index j = 0; j < stride; j += 4) four(norms + j) += four(to + j) * four(to + j);
    }
    __builtin_memcpy(m, g, static_cast<std::size_t>(height * stride) * sizeof *g);

    for (Index j = 0; j < stride; ++j) sums[j] = 0;
    for (Index r = 0; r < q; r += 4) add_four(sums, m + r * stride + k - 1, stride, m + r * stride, stride, stride);
    for (Index c = 0; c < k; ++c) {
        const Index at = k - 1 - c, n = padded(at);
        double* const top = m + c * stride;
        double* const vector = vectors + c * height;
        const double square = sums[at], first = top[at];
        if (!(square > 0)) {
            for (Index i = 0; i < targets * q; ++i) weights[i] = __builtin_nan("");
            return true;
        }
        const double length = first < 0 ? -__builtin_sqrt(square) : __builtin_sqrt(square);
        for (Index r = 1; r <= padded(q - c); ++r) vector[r] = top[r * stride + at];
        vector[0] = first + length;  // of equal signs, so nothing cancels
        taus[c] = 1.0 / (square + first * length);
        for (Index j = 0; j < at; ++j) multiples[j] = (sums[j] + length * top[j]) * taus[c];
        for (Index j = at; j < n; ++j) multiples[j] = 0;  // columns that are done with stay finite
        for (Index j = 0; j < n; ++j) sums[j] = 0;
        subtract(top, vector[0], multiples, n);
        if (at > 0)
            for (Index r = 1; r < q - c; r += 4)
                subtract_four(top + r * stride, stride, vector + r, multiples, n, at - 1, sums);
        top[at] = -length;
    }

    for (Index i = 0; i < stride * stride; ++i) x[i] = 0;
    for (Index i = 0; i < k; ++i) {
        const double* const factors = m + (k - 1 - i) * stride;
        for (Index j = 0; j < padded(i); ++j) sums[j] = 0;
        // Row j of L^-1 ends at j, and zeros beyond it and in the rows from i on change nothing.
        for (Index j = 0; j < i; j += 4) add_four(sums, factors + j, 1, x + j * stride, stride, j + 4);
        const double reciprocal = 1.0 / factors[i];
        for (Index j = 0; j < i; ++j) x[i * stride + j] = sums[j] * -reciprocal;
        x[i * stride + i] = reciprocal;
    }
    // The bound of decoding_weights-inl.h: |G_F^+| = |L^-1|.
    for (Index j = 0; j < k; ++j) sums[j] = 0;
    for (Index i = 0; i < k; ++i)
        for (Index j = 0; j <= i; ++j) sums[j] += norms[i] * (x[i * stride + j] * x[i * stride + j]);
    double product = 0;
    for (Index j = 0; j < k; ++j) product += sums[j];

    double* const t = norms;  // what is still to be met of a row of the target
    for (Index i = 0; i < targets * height; ++i) a[i] = 0;
    for (const bool refined : {false, true}) {
        for (Index u = 0; u < targets; ++u) {
            double* const row = weights + u * q;
            double* const correction = a + u * height;
            for (Index j = 0; j < stride; ++j) sums[j] = 0;
            if (refined)
                for (Index r = 0; r < q; r += 4) add_four(sums, correction + r, 1, g + r * stride, stride, stride);
            for (Index j = 0; j < k; ++j) t[j] = target[u * k + j] - sums[j];
            for (Index j = 0; j < stride; ++j) sums[j] = 0;
            for (Index i = 0; i < k; i += 4) add_four(sums, t + i, 1, x + i * stride, stride, stride);
            for (Index i = 0; i < q; ++i) row[i] = correction[i];
            for (Index i = 0; i < height; ++i) correction[i] = i < k ? sums[k - 1 - i] : 0.0;
        }
        for (Index c = k - 1; c >= 0; --c)
            for (Index u = 0; u < targets; ++u) {
                double* const rest = a + u * height + c;
                const double* const vector = vectors + c * height;
                subtract(rest, taus[c] * dot(vector, rest, padded(q - c)), vector, padded(q - c));
            }
    }
    for (Index u = 0; u < targets; ++u)
        for (Index i = 0; i < q; ++i) weights[u * q + i] += a[u * height + i];
    return !(static_cast<double>(k) * product < 1e20);  // also where it is not finite
}
