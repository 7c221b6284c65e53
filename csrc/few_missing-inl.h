// The least-norm weights of nearly all rows of a generator, from those of all: where 3 of 30 rows are missing, 3
// equations are solved instead of 27.
//
// The rows of the projector I - G G^+ change nothing of A G. Those of the missing rows, as many times as they are added
// to the weights of all, take these to zero on the missing, and stay the shortest way to do so. That block of the
// projector has the square of the condition number of the same rows of an orthonormal basis of G's columns, and one
// step of refinement mends what that costs: nearly always, as a look at the residual says. Where it does not, and where
// the block may be singular, nothing is done. Sums are in the order of least_norm-inl.h. `table`: see
// few_missing_table() in core.h. Whether the weights (targets x q) of `pattern` were found.
bool few_missing_weights(const double* table, Index n, Index k, const std::int64_t* pattern, Index q,
                         const double* target, Index targets, double* weights, double* work) {
    const FewMissing at(n, k, targets);
    const Index missing = n - q;
    double* const a = work;                   // all rows' weights
    double* const more = a + at.rows;         // what refinement adds
    double* const rest = more + at.rows;      // of the target
    double* const size = rest + at.columns;   // of the terms of each column of A G_F
    double* const times = size + at.columns;  // of each missing row
    double* const x = times + missing;        // missing x missing, the inverse of the projector's block
    auto* const gone = reinterpret_cast<std::int64_t*>(x + missing * missing);
    for (Index i = 0; i < at.rows; ++i) more[i] = 0;
    for (Index i = 0; i < q; ++i) more[pattern[i]] = 1;
    for (Index i = 0, found = 0; found < missing; ++i)
        if (more[i] == 0) gone[found++] = i;

    for (Index i = 0; i < missing; ++i)
        for (Index j = 0; j < missing; ++j) x[i * missing + j] = table[gone[i] * at.width + at.projector + gone[j]];
    double trace = 0;
    for (Index p = 0; p < missing; ++p) {  // Gauss and Jordan; the block is positive definite
        double* const row = x + p * missing;
        if (!(row[p] > 0)) return false;
        const double reciprocal = 1.0 / row[p];
        row[p] = 1;
        for (Index j = 0; j < missing; ++j) row[j] *= reciprocal;
        for (Index i = 0; i < missing; ++i) {
            if (i == p) continue;
            double* const other = x + i * missing;
            const double factor = other[p];
            other[p] = 0;
            for (Index j = 0; j < missing; ++j) other[j] -= factor * row[j];
        }
    }
    for (Index p = 0; p < missing; ++p) trace += x[p * missing + p];
    if (!(trace < FewMissing::kMostTrace)) return false;

    const auto without_missing = [&](double* row) {
        for (Index i = 0; i < missing; ++i) {
            times[i] = 0;
            for (Index j = 0; j < missing; ++j) times[i] += row[gone[j]] * x[j * missing + i];
        }
        for (Index i = 0; i < missing; ++i) subtract(row, times[i], table + gone[i] * at.width + at.projector, at.rows);
        for (Index i = 0; i < missing; ++i) row[gone[i]] = 0;
    };
    for (Index u = 0; u < targets; ++u) {
        for (Index i = 0; i < at.rows; ++i) a[i] = table[i * at.width + at.weights + u];
        without_missing(a);
        for (Index j = 0; j < at.columns; ++j) rest[j] = 0;
        for (Index i = 0; i < at.rows; i += 4) add_four(rest, a + i, 1, table + i * at.width, at.width, at.columns);
        for (Index j = 0; j < k; ++j) rest[j] = target[u * k + j] - rest[j];
        for (Index i = 0; i < at.rows; ++i) more[i] = dot(rest, table + i * at.width + at.inverse, at.columns);
        without_missing(more);
        for (Index i = 0; i < at.rows; ++i) a[i] += more[i];
        for (Index j = 0; j < at.columns; ++j) rest[j] = size[j] = 0;
        for (Index i = 0; i < at.rows; ++i) {
            const double* const row = table + i * at.width;
            for (Index j = 0; j < at.columns; ++j) {
                const double term = a[i] * row[j];
                rest[j] += term;
                size[j] += __builtin_fabs(term);
            }
        }
        for (Index j = 0; j < k; ++j) {
            const double wanted = target[u * k + j];
            // Half of what Householder's is held to: the rounding of these sums may be the other half.
            if (!(__builtin_fabs(rest[j] - wanted) <=
                  static_cast<double>(q + k) * 0x1p-53 * (size[j] + __builtin_fabs(wanted))))
                return false;
        }
        for (Index i = 0; i < q; ++i) weights[u * q + i] = a[pattern[i]];
    }
    return true;
}
