#include "rank.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace fastgc {

namespace {

double dot(const double* a, const double* b, Index size) {
    double sum = 0;
    for (Index i = 0; i < size; ++i) sum += a[i] * b[i];
    return sum;
}

}  // namespace

// One-sided Jacobi (Hestenes 1958): columns are rotated in pairs until all are orthogonal; their lengths are then the
// singular values. It is as accurate as rank needs it, and short; only patterns that are nearly singular come here.
bool full_rank(const double* generator, Index k, const std::int64_t* pattern, Index q) {
    constexpr double eps = std::numeric_limits<double>::epsilon();
    std::vector<double> columns(static_cast<std::size_t>(q * k));
    for (Index c = 0; c < k; ++c) {
        double* const column = columns.data() + c * q;
        double largest = 0;  // taken out first, so that squares neither overflow nor vanish
        for (Index i = 0; i < q; ++i) {
            column[i] = generator[pattern[i] * k + c];
            largest = std::max(largest, std::fabs(column[i]));
        }
        if (largest == 0) return false;
        for (Index i = 0; i < q; ++i) column[i] /= largest;
        const double length = std::sqrt(dot(column, column, q));
        for (Index i = 0; i < q; ++i) column[i] /= length;
    }
    constexpr int kMostSweeps = 60;  // it converges quadratically: ten are many
    bool rotated = true;
    for (int sweep = 0; rotated && sweep < kMostSweeps; ++sweep) {
        rotated = false;
        for (Index a = 0; a < k; ++a)
            for (Index b = a + 1; b < k; ++b) {
                double* const x = columns.data() + a * q;
                double* const y = columns.data() + b * q;
                const double xx = dot(x, x, q), yy = dot(y, y, q), xy = dot(x, y, q);
                if (!(std::fabs(xy) > eps * std::sqrt(xx * yy))) continue;
                rotated = true;
                const double zeta = (yy - xx) / (2 * xy);
                const double t = std::copysign(1.0, zeta) / (std::fabs(zeta) + std::hypot(1.0, zeta));
                const double cosine = 1 / std::hypot(1.0, t), sine = cosine * t;
                for (Index i = 0; i < q; ++i) {
                    const double old = x[i];
                    x[i] = cosine * old - sine * y[i];
                    y[i] = sine * old + cosine * y[i];
                }
            }
    }
    double least = std::numeric_limits<double>::infinity(), most = 0;
    for (Index c = 0; c < k; ++c) {
        const double length = std::sqrt(dot(columns.data() + c * q, columns.data() + c * q, q));
        least = std::min(least, length);
        most = std::max(most, length);
    }
    return least > 64 * static_cast<double>(q) * eps * most;
}

}  // namespace fastgc
