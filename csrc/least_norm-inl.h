// The least-norm weights A with A G_F = T, for more rows than columns or a target T other than the identity.
//
// Householder's G_F = Q R, so A = (T R^-1) Q^T: the rows of A are solved for, which makes the left residual small, and
// those of Q^T are orthonormal, which makes A the shortest. Sums run along rows, in which a vector holds neighbouring
// columns and nothing is reordered, or in four interleaved parts, so that the bits are the same on every instruction
// set, as in decoding_weights-inl.h, from which the steps come.
//
// Columns are reduced from the last to the first. Those still to come are then the first ones of a row, and all loops
// run from its start to a multiple of four, over what is done with or zero: short rows with tails took twice as long.
// A chain of sums waits 3 or 4 cycles for each term, so four rows at a time are added up before they join it.
constexpr Index padded(Index n) { return (n + 3) / 4 * 4; }

FASTGC_INLINE double dot(const double* __restrict a, const double* __restrict b, Index n) {
    double sums[4] = {0, 0, 0, 0};
    for (Index i = 0; i < n; i += 4)
        for (int e = 0; e < 4; ++e) sums[e] += a[i + e] * b[i + e];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
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

bool least_norm_weights(const double* generator, Index k, const std::int64_t* pattern, Index q, const double* target,
                        Index targets, double* weights, double* work) {
    const Index stride = padded(k), height = padded(q) + 4;
    double* const m = work;                       // height x k, becomes R; the rows beyond q are zero
    double* const vectors = m + height * stride;  // row c: Householder's vector of step c, from its first entry
    double* const x = vectors + k * height;       // k x k, becomes R^-1
    double* const sums = x + k * stride;          // k
    double* const norms = sums + stride;          // k, squared norms of the columns of G_F
    double* const taus = norms + stride;          // k, 2 / |vector|²
    double* const t = taus + stride;              // targets x k
    double* const a = t + targets * stride;       // targets x height
    for (Index j = 0; j < stride; ++j) norms[j] = 0;
    for (Index r = 0; r < height; ++r) {
        double* const to = m + r * stride;
        for (Index j = 0; j < stride; ++j) to[j] = 0;
        if (r >= q) continue;
        const double* const from = generator + pattern[r] * k;
        for (Index j = 0; j < k; ++j) to[j] = from[j];
        for (Index j = 0; j < k; ++j) norms[j] += to[j] * to[j];
    }

    for (Index c = 0; c < k; ++c) {
        const Index at = k - 1 - c, rows = padded(q - c);
        double* const top = m + c * stride;
        double* const vector = vectors + c * height;
        for (Index j = 0; j <= at; ++j) sums[j] = 0;
        for (Index r = 0; r < rows; r += 4)
            add_four(sums, top + r * stride + at, stride, top + r * stride, stride, padded(at + 1));
        const double square = sums[at], first = top[at];
        if (!(square > 0)) {
            for (Index i = 0; i < targets * q; ++i) weights[i] = __builtin_nan("");
            return true;
        }
        const double length = first < 0 ? -__builtin_sqrt(square) : __builtin_sqrt(square);
        for (Index r = 1; r < rows; ++r) vector[r] = top[r * stride + at];
        vector[0] = first + length;  // of equal signs, so nothing cancels
        taus[c] = 1.0 / (square + first * length);
        for (Index j = 0; j < at; ++j) sums[j] = (sums[j] + length * top[j]) * taus[c];
        for (Index r = 0; r < q - c; ++r) subtract<4>(top + r * stride, vector[r], sums, padded(at));
        top[at] = -length;
    }

    for (Index c = k - 1; c >= 0; --c) {
        const Index at = k - 1 - c;
        double* const row = x + c * stride;
        const double* const factors = m + c * stride;
        for (Index j = 0; j < stride; ++j) row[j] = 0;
        Index j = 0;  // row k - 1 - j of R^-1 has j + 1 numbers, and zeros beyond change nothing
        for (; j + 4 <= at; j += 4) add_four(row, factors + j, 1, x + (k - 1 - j) * stride, -stride, padded(j + 4));
        for (; j < at; ++j) subtract<4>(row, -factors[j], x + (k - 1 - j) * stride, padded(j + 1));
        const double reciprocal = 1.0 / factors[at];
        for (j = 0; j < at; ++j) row[j] *= -reciprocal;
        row[at] = reciprocal;
    }
    // The bound of decoding_weights-inl.h: |G_F^+| = |R^-1|.
    for (Index j = 0; j < k; ++j) sums[j] = 0;
    for (Index c = 0; c < k; ++c)
        for (Index j = 0; j < k - c; ++j) sums[j] += norms[k - 1 - c] * (x[c * stride + j] * x[c * stride + j]);
    double product = 0;
    for (Index j = 0; j < k; ++j) product += sums[j];

    for (Index u = 0; u < targets; ++u) {
        for (Index j = 0; j < stride; ++j) t[u * stride + j] = j < k ? target[u * k + j] : 0.0;
        for (Index i = 0; i < height; ++i) a[u * height + i] = 0;
    }
    for (Index c = 0; c < k; ++c)
        for (Index u = 0; u < targets; ++u) {
            const Index at = k - 1 - c;
            const double value = t[u * stride + at] * x[c * stride + at];
            a[u * height + c] = value;
            subtract<4>(t + u * stride, value, m + c * stride, padded(at));
        }
    for (Index c = k - 1; c >= 0; --c)
        for (Index u = 0; u < targets; ++u) {
            double* const rest = a + u * height + c;
            const double* const vector = vectors + c * height;
            subtract<4>(rest, taus[c] * dot(vector, rest, padded(q - c)), vector, padded(q - c));
        }
    for (Index u = 0; u < targets; ++u)
        for (Index i = 0; i < q; ++i) weights[u * q + i] = a[u * height + i];
    return !(static_cast<double>(k) * product < 1e20);  // also where it is not finite
}
