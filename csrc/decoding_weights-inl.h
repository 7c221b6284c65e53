// The inverses of selected rows of a generator, many patterns at once: one lane of a vector for each pattern.
//
// With M = G_F^T = P^T L U (partial pivoting), row u of the inverse A solves M a_u = e_u. Solving for rows makes the
// *left* residual A G_F - I small, which is the one that decoding sees. Only rounded products, differences and
// quotients in a fixed order, so the bits are the same on every instruction set, alone and in a batch.

// A number of each of several patterns, in a compiler's vector: its arithmetic is that of scalars, in every lane.
struct Interleaved {
    static constexpr int lanes = Vec<double>::lanes;
    typedef double Number __attribute__((vector_size(8 * lanes)));
    typedef Number Piece;
    typedef std::int64_t Whole __attribute__((vector_size(8 * lanes)));
    FASTGC_INLINE double get(Number x, int lane) { return x[lane]; }
    FASTGC_INLINE Index get(Whole x, int lane) { return static_cast<Index>(x[lane]); }
    FASTGC_INLINE void set(Number& x, int lane, double value) { x[lane] = value; }
    FASTGC_INLINE Number size(Number x) { return (Number)((Whole)x & INT64_MAX); }
    // Numbers at from[0 .. lanes) of each lane.
    FASTGC_INLINE void load(Number* to, const double* const* from, Index at) {
        Vec<double> rows[lanes];
        for (int l = 0; l < lanes; ++l) rows[l] = Vec<double>::load(from[l] + at);
        transpose(rows);
        for (int l = 0; l < lanes; ++l) to[l] = rows[l].v;
    }
    FASTGC_INLINE void store(double* const* to, Index at, const Number* from) {
        Vec<double> rows[lanes];
        for (int l = 0; l < lanes; ++l) rows[l].v = from[l];
        transpose(rows);
        for (int l = 0; l < lanes; ++l) Vec<double>::store(to[l] + at, rows[l]);
    }
};

// One pattern: neighbours in a row then share a vector.
struct Single {
    static constexpr int lanes = 1;
    typedef double Piece __attribute__((vector_size(8 * Vec<double>::lanes)));
    typedef double Number;
    typedef std::int64_t Whole;
    FASTGC_INLINE double get(Number x, int) { return x; }
    FASTGC_INLINE Index get(Whole x, int) { return static_cast<Index>(x); }
    FASTGC_INLINE void set(Number& x, int, double value) { x = value; }
    FASTGC_INLINE Number size(Number x) { return __builtin_fabs(x); }
    FASTGC_INLINE void load(Number* to, const double* const* from, Index at) { *to = from[0][at]; }
    FASTGC_INLINE void store(double* const* to, Index at, const Number* from) { to[0][at] = *from; }
};

// The first largest number among those shown to it, in every lane.
template <class L>
struct Largest {
    using Number = typename L::Number;
    using Whole = typename L::Whole;
    Number size, value;
    Whole at;
    FASTGC_INLINE Largest first(Number x, Index row) { return {L::size(x), x, Whole{} + row}; }
    inline __attribute__((always_inline)) void see(Number x, Index row) {
        const Number a = L::size(x);
        const auto larger = a > size;
        size = larger ? a : size;
        value = larger ? x : value;
        at = larger ? Whole{} + row : at;
    }
};

// Row `to` changes places with the row that is the pivot of a lane, in that lane. No branches, as nobody can guess
// which rows are the same, and all loads before the stores, which write the same where they meet.
template <class L>
FASTGC_INLINE void swap_rows(typename L::Number* m, Index k, Index to, typename L::Whole at) {
    using Number = typename L::Number;
    if constexpr (L::lanes == 1) {
        if (at == to) return;
        Number* __restrict const upper = m + to * k;
        Number* __restrict const lower = m + at * k;
        for (Index j = 0; j < k; ++j) {
            const Number before = upper[j];
            upper[j] = lower[j];
            lower[j] = before;
        }
        return;
    }
    typename L::Whole here[L::lanes];
    Number* lower[L::lanes];
    for (int l = 0; l < L::lanes; ++l) {
        lower[l] = m + L::get(at, l) * k;
        here[l] = at == L::get(at, l);
    }
    Number* const top = m + to * k;
    for (Index j = 0; j < k; ++j) {
        const Number before = top[j];
        Number after = before, x[L::lanes];
        for (int l = 0; l < L::lanes; ++l) {
            x[l] = lower[l][j];
            L::set(after, l, L::get(x[l], l));
        }
        for (int l = 0; l < L::lanes; ++l) lower[l][j] = here[l] ? before : x[l];
        top[j] = after;
    }
}

// A piece of a row: one or several neighbours, wherever they are.
template <class Piece, class Number>
FASTGC_INLINE Piece load(const Number* from) {
    Piece a;
    __builtin_memcpy(&a, from, sizeof a);
    return a;
}
template <class Piece, class Number>
FASTGC_INLINE void store(Number* to, Piece a) {
    __builtin_memcpy(to, &a, sizeof a);
}

// Calls body(Piece{}, first) for every piece of a row.
template <class L, class Body>
FASTGC_INLINE void in_pieces(Index k, const Body& body) {
    constexpr Index wide = sizeof(typename L::Piece) / sizeof(typename L::Number);
    Index j = 0;
    for (; j + wide <= k; j += wide) body(typename L::Piece{}, j);
    for (; j < k; ++j) body(typename L::Number{}, j);
}

// Calls body(Piece{}, first, count) for stretches of a row of `count` pieces, which is known at compile time and leaves
// a sum for each piece in registers. Where k is known, pieces are numbers, and there are as few stretches as can be,
// all the same; the last may overlap.
template <class L, int K, class Body>
FASTGC_INLINE void in_stretches(Index k, const Body& body) {
    if constexpr (K > 0) {
        constexpr Index stretches = (K + 11) / 12, n = (K + stretches - 1) / stretches;
        for (Index u = 0; u < K; u += n) body(typename L::Number{}, u < K - n ? u : K - n, Constant<int, n>{});
    } else {
        using Piece = typename L::Piece;
        constexpr Index wide = sizeof(Piece) / sizeof(typename L::Number);
        Index u = 0;
        for (; u + 8 * wide <= k; u += 8 * wide) body(Piece{}, u, Constant<int, 8>{});
        for (; u + wide <= k; u += wide) body(Piece{}, u, Constant<int, 1>{});
        for (; u < k; ++u) body(typename L::Number{}, u, Constant<int, 1>{});
    }
}

template <class L, int K>
void invert(const double* generator, Index size, const std::int64_t* patterns, double* weights,
            unsigned char* suspicious, void* work) {
    constexpr int W = L::lanes;
    using Number = typename L::Number;
    const Index k = K > 0 ? K : size;
    // k x k: row v of M. What elimination has made zero holds L^-1 instead, without its diagonal of 1.
    Number* const m = static_cast<Number*>(work);
    Number* const x = m + k * k;                                     // k x k: U^-1 L^-1
    Number* const norms = x + k * k;                                 // k: the squared norms of the columns of G_F
    Number* const reciprocals = norms + k;                           // k: of the pivots
    Number* const start = reciprocals + k;                           // k: a row of L^-1
    auto* const order = reinterpret_cast<std::int64_t*>(start + k);  // W x k: the row of M that row c has been
    const double* row[W];
    for (Index v = 0; v < k; v += W) {
        const bool whole = k >= W;
        if (whole && v > k - W) v = k - W;
        Number norm[W] = {};
        for (Index i = 0; i < k; ++i) {
            Number g[W] = {};
            for (int l = 0; l < W; ++l) row[l] = generator + patterns[l * k + i] * k;
            if (whole) {
                L::load(g, row, v);
            } else {
                for (Index e = 0; e < k; ++e) {
                    Number number{};
                    for (int l = 0; l < W; ++l) L::set(number, l, row[l][e]);
                    g[e] = number;
                }
            }
            for (Index e = 0; e < (whole ? W : k); ++e) {
                m[(v + e) * k + i] = g[e];
                norm[e] = i == 0 ? g[e] * g[e] : norm[e] + g[e] * g[e];
            }
        }
        for (Index e = 0; e < (whole ? W : k); ++e) norms[v + e] = norm[e];
    }
    for (int l = 0; l < W; ++l)
        for (Index v = 0; v < k; ++v) order[l * k + v] = v;

    Number smallest = Number{} + 1.0;  // stays positive where every pivot does
    auto pivot = Largest<L>::first(m[0], 0);
    for (Index r = 1; r < k; ++r) pivot.see(m[r * k], r);
    const auto take = [&](Index c) __attribute__((always_inline)) {
        smallest = pivot.size > 0 ? smallest : Number{};
        // A quotient for each pivot only: 4 of them take as long as 13 products on Zen 3.
        reciprocals[c] = 1.0 / pivot.value;
        for (int l = 0; l < W; ++l) {
            std::int64_t* const here = order + l * k;
            const Index r = L::get(pivot.at, l);
            const std::int64_t other = here[r];
            here[r] = here[c];
            here[c] = other;
        }
        swap_rows<L>(m, k, c, pivot.at);
    };
    // Two pivots at a time.
    Index c = 0;
    for (; c + 1 < k; c += 2) {
        take(c);
        Number* const top = m + c * k;
        Number* const next = top + k;
        {
            const Number factor = next[c] * reciprocals[c];
            next[c] = factor;
            pivot = Largest<L>::first(next[c + 1] -= factor * top[c + 1], c + 1);
        }
        for (Index r = c + 2; r < k; ++r) {
            Number* const to = m + r * k;
            const Number factor = to[c] * reciprocals[c];
            to[c] = factor;
            pivot.see(to[c + 1] -= factor * top[c + 1], r);
        }
        take(c + 1);
        {
            const Number factor = next[c];
            in_pieces<L>(k, [&](auto piece, Index j) __attribute__((always_inline)) {
                using Piece = decltype(piece);
                store(next + j, load<Piece>(next + j) - factor * load<Piece>(top + j));
            });
            next[c] = 0.0 - factor;
        }
        Index r = c + 2;
        if (r == k) break;
        {
            const Number* const first = m + r * k;
            const Number g = first[c + 1] * reciprocals[c + 1];
            pivot = Largest<L>::first((first[c + 2] - first[c] * top[c + 2]) - g * next[c + 2], r);
        }
        const auto update = [&](auto count) __attribute__((always_inline)) {
            constexpr int rows = decltype(count)::value;
            Number f[rows], g[rows], left[rows];
            Number* const to = m + r * k;
            for (int i = 0; i < rows; ++i) {
                f[i] = to[i * k + c];
                g[i] = to[i * k + c + 1] * reciprocals[c + 1];
                left[i] = (0.0 - f[i]) - g[i] * next[c];
            }
            in_pieces<L>(k, [&](auto piece, Index j) __attribute__((always_inline)) {
                using Piece = decltype(piece);
                const Piece t = load<Piece>(top + j), n = load<Piece>(next + j);
                for (int i = 0; i < rows; ++i) {
                    Number* const x = to + i * k + j;
                    store(x, (load<Piece>(x) - f[i] * t) - g[i] * n);
                }
            });
            for (int i = 0; i < rows; ++i) {
                to[i * k + c] = left[i];
                to[i * k + c + 1] = 0.0 - g[i];
                pivot.see(to[i * k + c + 2], r + i);
            }
        };
        for (; r + 1 < k; r += 2) update(Constant<int, 2>{});
        if (r < k) update(Constant<int, 1>{});
    }
    if (k % 2 == 1) take(k - 1);

    for (Index r = k - 1; r >= 0; --r) {
        const Number* const factors = m + r * k;
        Number* const row = x + r * k;
        for (Index u = 0; u < r; ++u) start[u] = factors[u];
        start[r] = Number{} + 1.0;
        if (r + 1 < k) start[r + 1] = Number{};
        in_stretches<L, K>(k, [&](auto piece, Index u, auto count) __attribute__((always_inline)) {
            using Piece = decltype(piece);
            constexpr Index n = decltype(count)::value, wide = sizeof(Piece) / sizeof(Number);
            Piece sums[n];
            for (int e = 0; e < n; ++e) sums[e] = load<Piece>(start + u + e * wide);
            for (Index c = k - 1; c > r; --c) {
                const Number factor = factors[c];
                for (int e = 0; e < n; ++e) sums[e] -= factor * load<Piece>(x + c * k + u + e * wide);
            }
            for (int e = 0; e < n; ++e) store(row + u + e * wide, sums[e] * reciprocals[r]);
        });
    }

    // With the columns of G_F scaled to norm 1, the product of Frobenius norms bounds the condition number from
    // above: sqrt(k) sqrt(sum_u |column u|² |A_u|²). The rank function's limit lies above 1e10 up to k = 7000.
    Number* const lengths = reciprocals;  // the squared norms of the rows of A
    in_stretches<L, K>(k, [&](auto piece, Index u, auto count) __attribute__((always_inline)) {
        using Piece = decltype(piece);
        constexpr Index n = decltype(count)::value, wide = sizeof(Piece) / sizeof(Number);
        Piece sums[n] = {};
        for (Index i = 0; i < k; ++i)
            for (int e = 0; e < n; ++e) {
                const Piece a = load<Piece>(x + i * k + u + e * wide);
                sums[e] += a * a;
            }
        for (int e = 0; e < n; ++e) store(lengths + u + e * wide, sums[e]);
    });
    Number product{};
    for (Index c = 0; c < k; ++c) {
        double* to[W];
        Number norm{};
        for (int l = 0; l < W; ++l) {
            const Index u = static_cast<Index>(order[l * k + c]);
            to[l] = weights + (l * k + u) * k;
            L::set(norm, l, L::get(norms[u], l));
        }
        product += norm * lengths[c];
        if (k >= W) {
            for (Index i = 0; i < k; i += W) {
                if (i > k - W) i = k - W;
                Number column[W];
                for (int e = 0; e < W; ++e) column[e] = x[(i + e) * k + c];
                L::store(to, i, column);
            }
        } else {
            for (Index i = 0; i < k; ++i)
                for (int l = 0; l < W; ++l) to[l][i] = L::get(x[i * k + c], l);
        }
    }
    for (int l = 0; l < W; ++l) {
        const bool singular = !(L::get(smallest, l) > 0);
        suspicious[l] = singular || !(static_cast<double>(k) * L::get(product, l) < 1e20);  // also if not finite
        if (singular)
            for (Index i = 0; i < k * k; ++i) weights[l * k * k + i] = __builtin_nan("");
    }
}

// Sizes known at compile time take a quarter less time than loops over any size, for one pattern up to a third. The
// portable kernels go without, which saves the compiler a quarter of its time for them: k = 2 takes 73 instead of 54 ns
// there, k = 16 1.30 instead of 1.14 us.
constexpr bool kSizesKnown = FASTGC_TARGET_ID != FASTGC_PORTABLE_ID;
constexpr int kMostSingle = 7;  // of one pattern: from 8 on neighbours in a row share a vector, and little is gained

// The inverse, up to k = `most` by the code for K = k.
template <class L, int K, int most>
void invert_known(const double* generator, Index k, const std::int64_t* patterns, double* weights,
                  unsigned char* suspicious, void* work) {
    if constexpr (kSizesKnown && K > most && most == kMostInterleaved)
        __builtin_unreachable();
    else if constexpr (!kSizesKnown || K > most)
        invert<L, 0>(generator, k, patterns, weights, suspicious, work);
    else if (k == K)
        invert<L, K>(generator, k, patterns, weights, suspicious, work);
    else
        invert_known<L, K + 1, most>(generator, k, patterns, weights, suspicious, work);
}

void decoding_weights(const double* generator, Index k, const std::int64_t* patterns, Index batch, double* weights,
                      unsigned char* suspicious, void* work) {
    constexpr Index W = Interleaved::lanes;
    Index b = 0;
    if (k <= kMostInterleaved)
        for (; b + W <= batch; b += W)
            invert_known<Interleaved, 1, kMostInterleaved>(generator, k, patterns + b * k, weights + b * k * k,
                                                           suspicious + b, work);
    for (; b < batch; ++b)
        invert_known<Single, 1, kMostSingle>(generator, k, patterns + b * k, weights + b * k * k, suspicious + b, work);
}
