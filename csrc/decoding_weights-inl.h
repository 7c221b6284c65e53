// The inverses of selected rows of a generator, many patterns at once: one lane of a vector for each pattern.
//
// With M = G_F^T = P^T L U (partial pivoting), row u of the inverse A solves M a_u = e_u. Solving for rows makes the
// *left* residual A G_F - I small, which is the one that decoding sees. Only rounded products, differences and
// quotients in a fixed order, so the bits are the same on every instruction set, alone and in a batch.

// A number of each of several patterns, in a compiler's vector: its arithmetic is that of scalars, in every lane.
struct Interleaved {
    static constexpr int lanes = Vec<double>::lanes;
    typedef double Number __attribute__((vector_size(8 * lanes)));
    typedef std::int64_t Whole __attribute__((vector_size(8 * lanes)));
    FASTGC_INLINE double get(Number x, int lane) { return x[lane]; }
    FASTGC_INLINE Index get(Whole x, int lane) { return static_cast<Index>(x[lane]); }
    FASTGC_INLINE void set(Number& x, int lane, double value) { x[lane] = value; }
};

// One pattern: the loops over a row are then what a compiler vectorises.
struct Single {
    static constexpr int lanes = 1;
    typedef double Number;
    typedef std::int64_t Whole;
    FASTGC_INLINE double get(Number x, int) { return x; }
    FASTGC_INLINE Index get(Whole x, int) { return static_cast<Index>(x); }
    FASTGC_INLINE void set(Number& x, int, double value) { x = value; }
};

// to -= factor * from, over n numbers (of each lane), n a multiple of Step.
template <int Step = 1, class Number>
FASTGC_INLINE void subtract(Number* __restrict to, Number factor, const Number* __restrict from, Index n) {
    for (Index j = 0; j < n; j += Step)
        for (int e = 0; e < Step; ++e) to[j + e] -= factor * from[j + e];
}

// The same for four factors and rows, one after the other: `to` is then loaded and stored once.
template <class Number>
FASTGC_INLINE void subtract_four(Number* __restrict to, const Number* factors, Index next,
                                 const Number* __restrict from, Index stride, Index n) {
    const Number f0 = factors[0], f1 = factors[next], f2 = factors[2 * next], f3 = factors[3 * next];
    for (Index j = 0; j < n; ++j) {
        Number sum = to[j] - f0 * from[j];
        sum -= f1 * from[stride + j];
        sum -= f2 * from[2 * stride + j];
        to[j] = sum - f3 * from[3 * stride + j];
    }
}

template <class L, int K>
void invert(const double* generator, Index size, const std::int64_t* patterns, double* weights,
            unsigned char* suspicious, void* work) {
    constexpr int W = L::lanes;
    using Number = typename L::Number;
    using Whole = typename L::Whole;
    const Index k = K > 0 ? K : size;
    // Row v of M, which becomes L and U, and what moves with it when rows change places: the squared norm of column v
    // of G_F, and v itself.
    const Index stride = k + 2;
    Number* const m = static_cast<Number*>(work);
    Number* const x = m + k * stride;  // k x k, becomes U^-1 L^-1
    for (Index i = 0; i < k; ++i) {
        const double* row[W];
        for (int l = 0; l < W; ++l) row[l] = generator + patterns[l * k + i] * k;
        for (Index v = 0; v < k; ++v) {
            Number g{};
            for (int l = 0; l < W; ++l) L::set(g, l, row[l][v]);
            m[v * stride + i] = g;
            Number& norm = m[v * stride + k];
            norm = i == 0 ? g * g : norm + g * g;
        }
    }
    for (Index v = 0; v < k; ++v) m[v * stride + k + 1] = Number{} + static_cast<double>(v);

    Number smallest = Number{} + 1.0;  // stays positive where every pivot does
    for (Index c = 0; c < k; ++c) {
        Number best = m[c * stride + c];
        best = best < 0 ? -best : best;
        Whole at = Whole{} + c;
        for (Index r = c + 1; r < k; ++r) {
            Number a = m[r * stride + c];
            a = a < 0 ? -a : a;
            const auto larger = a > best;
            best = larger ? a : best;
            at = larger ? Whole{} + r : at;
        }
        smallest = best > 0 ? smallest : Number{};
        Number* const top = m + c * stride;
        for (int l = 0; l < W; ++l) {  // the rows that are a pivot in some lane change places with the top, once each
            const Index r = L::get(at, l);
            bool stays = r == c;
            for (int e = 0; e < l; ++e) stays |= L::get(at, e) == r;
            if (stays) continue;
            const auto here = at == r;
            Number* __restrict upper = top;
            Number* __restrict lower = m + r * stride;
            for (Index j = 0; j < stride; ++j) {
                const Number a = upper[j], b = lower[j];
                upper[j] = here ? b : a;
                lower[j] = here ? a : b;
            }
        }
        // A quotient for each pivot only: 4 of them take as long as 13 products on Zen 3.
        const Number reciprocal = 1.0 / top[c];
        for (Index r = c + 1; r < k; ++r) {
            const Number factor = m[r * stride + c] * reciprocal;
            m[r * stride + c] = factor;
            subtract(m + r * stride + c + 1, factor, top + c + 1, k - c - 1);
        }
        top[c] = reciprocal;
    }
    // x = L^-1, whose rows have the zeros of L in all lanes, as the right-hand sides' P waits for the end.
    for (Index r = 0; r < k; ++r) {
        Number* const row = x + r * k;
        for (Index u = 0; u < k; ++u) row[u] = Number{} + (u == r ? 1.0 : 0.0);
        const Number* const factors = m + r * stride;
        Index c = 0;  // row c of L^-1 ends at c, and zeros up to c + 3 change nothing
        for (; c + 3 < r; c += 4) subtract_four(row, factors + c, 1, x + c * k, k, c + 4);
        for (; c < r; ++c) subtract(row, factors[c], x + c * k, c + 1);
    }
    for (Index r = k - 1; r >= 0; --r) {
        Number* const row = x + r * k;
        const Number* const factors = m + r * stride;
        Index c = k - 1;
        for (; c - 3 > r; c -= 4) subtract_four(row, factors + c, -1, x + c * k, -k, k);
        for (; c > r; --c) subtract(row, factors[c], x + c * k, k);
        for (Index u = 0; u < k; ++u) row[u] *= factors[r];
    }

    // With the columns of G_F scaled to norm 1, the product of Frobenius norms bounds the condition number from
    // above: sqrt(k) sqrt(sum_u |column u|² |A_u|²). The rank function's limit lies above 1e10 up to k = 7000.
    Number* const lengths = m;  // the squared norms of the rows of A
    for (Index c = 0; c < k; ++c) lengths[c] = x[c] * x[c];
    for (Index i = 1; i < k; ++i)
        for (Index c = 0; c < k; ++c) lengths[c] += x[i * k + c] * x[i * k + c];
    Number product{};
    for (Index c = 0; c < k; ++c) product += m[c * stride + k] * lengths[c];
    for (int l = 0; l < W; ++l) {
        double* const inverse = weights + l * k * k;
        const bool singular = !(L::get(smallest, l) > 0);
        suspicious[l] = singular || !(static_cast<double>(k) * L::get(product, l) < 1e20);  // also if not finite
        for (Index c = 0; c < k; ++c) {
            double* const row = inverse + static_cast<Index>(L::get(m[c * stride + k + 1], l)) * k;
            Index i = 0;
            for (; i + W <= k; i += W) {  // a vector of one lane's numbers: a store for W loads
                Number column{};
                for (int e = 0; e < W; ++e) L::set(column, e, L::get(x[(i + e) * k + c], l));
                __builtin_memcpy(row + i, &column, sizeof column);
            }
            for (; i < k; ++i) row[i] = L::get(x[i * k + c], l);
        }
        if (singular)
            for (Index i = 0; i < k * k; ++i) inverse[i] = __builtin_nan("");
    }
}

// Sizes known at compile time take a quarter less time than loops over any size.
template <int K>
void interleaved(const double* generator, Index k, const std::int64_t* patterns, double* weights,
                 unsigned char* suspicious, void* work) {
    if constexpr (K > kMostInterleaved)
        __builtin_unreachable();
    else if (k == K)
        invert<Interleaved, K>(generator, k, patterns, weights, suspicious, work);
    else
        interleaved<K + 1>(generator, k, patterns, weights, suspicious, work);
}

void decoding_weights(const double* generator, Index k, const std::int64_t* patterns, Index batch, double* weights,
                      unsigned char* suspicious, void* work) {
    constexpr Index W = Interleaved::lanes;
    Index b = 0;
    if (k <= kMostInterleaved)
        for (; b + W <= batch; b += W)
            interleaved<1>(generator, k, patterns + b * k, weights + b * k * k, suspicious + b, work);
    for (; b < batch; ++b) invert<Single, 0>(generator, k, patterns + b * k, weights + b * k * k, suspicious + b, work);
}
