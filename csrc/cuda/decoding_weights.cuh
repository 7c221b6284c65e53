// Inverses of selected rows of a generator, many patterns at once: a few lanes for each.
//
// The arithmetic is that of csrc/decoding_weights-inl.h, rounded step by step, so that the bits are the CPU's: LU with
// partial pivoting of M = G_F^T, L^-1 without permuting the right-hand sides, then U^-1 L^-1. A lane owns every
// Lanes-th column; columns need each other only in elimination. Every lane looks for the pivot itself, which costs no
// exchange.
#pragma once

#include "device.cuh"

namespace fastgc {

// The argument of a launch. fastgc/kernels/_cuda_calls.py writes it.
struct Inversion {
    const double* generator;    // n x k
    const Index* patterns;      // batch x k
    double* weights;            // batch x k x k
    unsigned char* suspicious;  // batch: the rank must be looked at first, or a row is not the generator's
    double* work;               // room for every group of the grid; null: shared memory has it
    Index batch;
    int n, k;
};
static_assert(sizeof(Inversion) == 56, "the layout is shared with Python");

// Numbers that a group of lanes needs.
FASTGC_DEVICE int inversion_room(int k) { return 2 * k * k + 3 * k; }

template <int Lanes, int Threads>
struct Inverse {
    int k, lane;
    double* m;        // k x k: U above the diagonal, L below; its reciprocals on it
    double* x;        // k x k: U^-1 L^-1
    double* norms;    // k: the squared norms of the columns of G_F, in the order of M's rows
    double* lengths;  // k: the squared norms of the rows of A, in that order
    double* order;    // k: the row that row c of M has been

    FASTGC_DEVICE void barrier() const {
        if (Lanes <= 32)
            warp_barrier();
        else
            block_barrier();
    }

    // False where a row is not the generator's.
    FASTGC_DEVICE bool load_rows(const Inversion& call, Index pattern) const {
        bool known = true;
#pragma unroll 1
        for (int i = 0; i < k; ++i) {
            const Index row = load_input(call.patterns + pattern * k + i);
            known = known && row >= 0 && row < call.n;
        }
#pragma unroll 1
        for (int v = lane; v < k; v += Lanes) {
            double norm = 0;
            for (int i = 0; i < k; ++i) {
                const Index row = known ? load_input(call.patterns + pattern * k + i) : 0;
                const double g = load_input(call.generator + row * k + v);
                m[v * k + i] = g;
                norm = sum(norm, product(g, g));
            }
            norms[v] = norm;
            order[v] = v;
        }
        return known;
    }

    // False where a pivot is zero or not a number.
    FASTGC_DEVICE bool eliminate() const {
        bool regular = true;
#pragma unroll 1
        for (int c = 0; c < k; ++c) {
            barrier();
            int pivot = c;
            double largest = magnitude(m[c * k + c]);
            for (int r = c + 1; r < k; ++r) {
                const double size = magnitude(m[r * k + c]);
                if (size > largest) {
                    largest = size;
                    pivot = r;
                }
            }
            regular = regular && largest > 0;
            barrier();
#pragma unroll 1
            for (int j = lane; j < k; j += Lanes) {
                const double upper = m[pivot * k + j];
                m[pivot * k + j] = m[c * k + j];
                m[c * k + j] = upper;
            }
            if (lane == c % Lanes) {
                const double norm = norms[pivot], row = order[pivot];
                norms[pivot] = norms[c];
                norms[c] = norm;
                order[pivot] = order[c];
                order[c] = row;
                const double reciprocal = quotient(1.0, m[c * k + c]);
                m[c * k + c] = reciprocal;
                for (int r = c + 1; r < k; ++r) m[r * k + c] = product(m[r * k + c], reciprocal);
            }
            barrier();
#pragma unroll 1
            for (int j = lane; j < k; j += Lanes) {
                if (j <= c) continue;
                const double top = m[c * k + j];
                for (int r = c + 1; r < k; ++r) m[r * k + j] = difference(m[r * k + j], product(m[r * k + c], top));
            }
        }
        barrier();
        return regular;
    }

    FASTGC_DEVICE void substitute() const {
#pragma unroll 1
        for (int u = lane; u < k; u += Lanes) {
#pragma unroll 1
            for (int r = 0; r < k; ++r) {
                double value = r == u ? 1.0 : 0.0;
                for (int c = u; c < r; ++c) value = difference(value, product(m[r * k + c], x[c * k + u]));
                x[r * k + u] = value;
            }
            double length = 0;
#pragma unroll 1
            for (int r = k - 1; r >= 0; --r) {
                double value = x[r * k + u];
                for (int c = k - 1; c > r; --c) value = difference(value, product(m[r * k + c], x[c * k + u]));
                x[r * k + u] = product(value, m[r * k + r]);
            }
            for (int i = 0; i < k; ++i) length = sum(length, product(x[i * k + u], x[i * k + u]));
            lengths[u] = length;
        }
        barrier();
    }

    // See csrc/decoding_weights-inl.h for the bound.
    FASTGC_DEVICE bool beyond_doubt() const {
        double bound = 0;
        for (int c = 0; c < k; ++c) bound = sum(bound, product(norms[c], lengths[c]));
        return product(static_cast<double>(k), bound) < 1e20;
    }

    FASTGC_DEVICE void invert(const Inversion& call, Index pattern, bool write) const {
        const bool known = load_rows(call, pattern);
        const bool regular = eliminate() && known;
        substitute();
        if (write) {
            double* const weights = call.weights + pattern * k * k;
#pragma unroll 1
            for (int c = lane; c < k; c += Lanes)
                for (int i = 0; i < k; ++i)
                    store(weights + static_cast<int>(order[c]) * k + i, regular ? x[i * k + c] : not_a_number());
            if (lane == 0) store(call.suspicious + pattern, static_cast<unsigned char>(!regular || !beyond_doubt()));
        }
        barrier();  // before the next pattern
    }
};

template <int Lanes, int Threads>
FASTGC_DEVICE void decoding_weights(const Inversion& call) {
    const int k = call.k, groups = static_cast<int>(blockDim.x) / Lanes;
    const int group = static_cast<int>(threadIdx.x) / Lanes, lane = static_cast<int>(threadIdx.x) % Lanes;
    double* const room = call.work == nullptr ? reinterpret_cast<double*>(shared_memory())
                                              : call.work + static_cast<Index>(blockIdx.y) * groups * inversion_room(k);
    double* const m = room + group * inversion_room(k);
    double* const x = m + k * k;
    const Inverse<Lanes, Threads> inverse{k, lane, m, x, x + k * k, x + k * k + k, x + k * k + 2 * k};
    // All threads go round as often, as they meet at barriers.
    for (Index first = static_cast<Index>(blockIdx.y) * groups; first < call.batch;
         first += static_cast<Index>(gridDim.y) * groups) {
        const Index pattern = first + group;
        inverse.invert(call, pattern < call.batch ? pattern : call.batch - 1, pattern < call.batch);
    }
}

}  // namespace fastgc
