// The inverse of k selected rows of a generator, for decoding.
//
// With M = G_F^T = P^T L U (partial pivoting), row u of the inverse A solves M a_u = e_u. Solving for rows makes the
// *left* residual A G_F - I small, which is the one that decoding sees. Only rounded products, differences and
// quotients in a fixed order, so the bits are the same on every instruction set, alone and in a batch.
bool decoding_weights(const double* generator, Index k, const std::int64_t* pattern, double* weights, double* work) {
    double* m = work;           // k x k, becomes L and U
    double* x = work + k * k;   // k x k, the right-hand sides, becomes A^T
    double* norms = x + k * k;  // k, squared norms of the columns of G_F
    for (Index v = 0; v < k; ++v) {
        norms[v] = 0;
        for (Index i = 0; i < k; ++i) {
            const double g = generator[pattern[i] * k + v];
            m[v * k + i] = g;
            norms[v] += g * g;
        }
    }
    for (Index i = 0; i < k * k; ++i) x[i] = 0;
    for (Index i = 0; i < k; ++i) x[i * k + i] = 1;

    for (Index c = 0; c < k; ++c) {
        Index pivot = c;
        for (Index r = c + 1; r < k; ++r)
            if (__builtin_fabs(m[r * k + c]) > __builtin_fabs(m[pivot * k + c])) pivot = r;
        if (!(__builtin_fabs(m[pivot * k + c]) > 0)) {
            for (Index i = 0; i < k * k; ++i) weights[i] = __builtin_nan("");
            return true;
        }
        if (pivot != c)
            for (Index j = 0; j < k; ++j) {
                const double a = m[c * k + j], b = x[c * k + j];
                m[c * k + j] = m[pivot * k + j];
                m[pivot * k + j] = a;
                x[c * k + j] = x[pivot * k + j];
                x[pivot * k + j] = b;
            }
        for (Index r = c + 1; r < k; ++r) {
            const double factor = m[r * k + c] / m[c * k + c];
            m[r * k + c] = factor;
            for (Index j = c + 1; j < k; ++j) m[r * k + j] -= factor * m[c * k + j];
        }
    }
    // Substitution comes after the whole factorisation: the pivots' swaps of later steps move rows of x as well.
    for (Index c = 0; c < k; ++c)
        for (Index r = c + 1; r < k; ++r)
            for (Index u = 0; u < k; ++u) x[r * k + u] -= m[r * k + c] * x[c * k + u];
    for (Index c = k - 1; c >= 0; --c) {
        for (Index u = 0; u < k; ++u) x[c * k + u] /= m[c * k + c];
        for (Index r = 0; r < c; ++r)
            for (Index u = 0; u < k; ++u) x[r * k + u] -= m[r * k + c] * x[c * k + u];
    }

    // With the columns of G_F scaled to norm 1, the product of Frobenius norms bounds the condition number from
    // above: sqrt(k) sqrt(sum_u |column u|² |A_u|²). The rank function's limit lies above 1e10 up to k = 7000.
    double product = 0;
    for (Index u = 0; u < k; ++u) {
        double row = 0;
        for (Index i = 0; i < k; ++i) {
            weights[u * k + i] = x[i * k + u];
            row += x[i * k + u] * x[i * k + u];
        }
        product += norms[u] * row;
    }
    return !(static_cast<double>(k) * product < 1e20);  // also where it is not finite
}
