// Inverses of selected rows of a generator, many patterns at once: a lane for each row of M, or a block for all.
//
// The arithmetic is that of csrc/decoding_weights-inl.h, rounded step by step, so that the bits are the CPU's: LU with
// partial pivoting of M = G_F^T, L^-1 in the place of the zeros that elimination makes, then U^-1 L^-1. Both take the
// terms of an element in the CPU's order: c increases in elimination and decreases in substitution.
#pragma once

#include "device.cuh"

namespace fastgc {

// The argument of a launch. fastgc/kernels/_cuda_launches.py writes it.
struct Inversion {
    const double* generator;    // n x k
    const Index* patterns;      // batch x k
    double* weights;            // batch x k x k
    unsigned char* suspicious;  // batch: the rank must be looked at first, or a row is not the generator's
    double* work;               // room for every block of the grid, where shared memory is too small
    Index batch;
    int n, k;
};
static_assert(sizeof(Inversion) == 56, "the layout is shared with Python");

// The largest of the numbers seen, and of equal ones that of the lowest row: the first largest. Compared as integers,
// so that lanes agree whatever they see; a NaN is the largest then, and makes the pattern singular at once, as it would
// in the end.
struct Pivot {
    Index size;
    int row;

    FASTGC_DEVICE void see(Index other, int at) {
        const bool better = other > size || (other == size && at < row);
        size = better ? other : size;
        row = better ? at : row;
    }
    // Of groups of so many lanes of a warp: a power of two.
    template <int Lanes>
    FASTGC_DEVICE void agree() {
#pragma unroll
        for (int distance = Lanes / 2; distance > 0; distance /= 2)
            see(exchange(size, distance), exchange(row, distance));
    }
    FASTGC_DEVICE bool regular() const { return size > 0 && size <= 0x7ff0000000000000ll; }
};

// See csrc/decoding_weights-inl.h for the bound. `terms`: its terms, and zeros.
template <int Unrolled>
FASTGC_DEVICE bool beyond_doubt(const double* terms, int count, int k) {
    double bound = 0;
#pragma unroll(Unrolled)
    for (int c = 0; c < count; ++c) bound = sum(bound, terms[c]);
    return product(static_cast<double>(k), bound) < 1e20;
}

// A row of the generator that a pattern has; -1 if there is no such row.
FASTGC_DEVICE int row_of(const Inversion& call, Index pattern, int i) {
    const Index row = load_input(call.patterns + pattern * static_cast<unsigned>(call.k) + i);
    return row >= 0 && row < call.n ? static_cast<int>(row) : -1;
}

// A lane has a row of M in registers. Rows never move: a lane knows the place that its row has come to, and when that
// is final, the row goes to shared memory, from where the others read it. They then go through the motions with numbers
// that nobody looks at, as do lanes without a row.
//
// So that a register is found without knowing c, rows turn: in step c of elimination column j is in place (j - c) mod
// Width, of registers and of row c in shared memory, and an update shifts by one; then back. It also keeps lanes off
// each other's banks when each reads from its row.
template <int Lanes, int Width>
struct Inverse {
    static_assert(Width <= Lanes && Width % 2 == 0, "rows are stored by pairs");
    int k, lane;
    Pair* rows;           // Width x Width, of which k: rows of U and L^-1, then of U^-1 L^-1
    double* reciprocals;  // Width: of the pivots
    Index* offsets;       // in the same place, of the generator's rows
    double* norms;        // Width: the squared norms of the columns of G_F, of which each is a lane's own
    unsigned* order;      // Width: where the weights begin that row c makes
    Pivot* pivots;        // of each warp, where there are several

    // Numbers that a pattern has in shared memory. Those of neighbours begin in different banks.
    static constexpr int room = (Width * Width + 3 * Width + 15) / 16 * 16 + 2;

    FASTGC_DEVICE Inverse(int k, int lane, double* at)
        : k(k),
          lane(lane),
          rows(reinterpret_cast<Pair*>(at)),
          reciprocals(at + Width * Width),
          offsets(reinterpret_cast<Index*>(reciprocals)),
          norms(reciprocals + Width),
          order(reinterpret_cast<unsigned*>(norms + Width)),
          pivots(reinterpret_cast<Pivot*>(order + Width)) {}

    FASTGC_DEVICE void barrier() const {
        if (Lanes <= 32)
            warp_barrier();
        else
            block_barrier();
    }

    FASTGC_DEVICE void agree(Pivot& pivot) const {
        pivot.agree<(Lanes < 32 ? Lanes : 32)>();
        if (Lanes <= 32) return;
        if (lane % 32 == 0) pivots[lane / 32] = pivot;
        block_barrier();
        for (int warp = 0; warp < Lanes / 32; ++warp) pivot.see(pivots[warp].size, pivots[warp].row);
    }

    // Element (r, c) of U^-1 L^-1.
    FASTGC_DEVICE double element(int r, int c) const {
        const int at = c + k - 1 - r;
        return reinterpret_cast<const double*>(rows)[r * Width + (at < Width ? at : at - Width)];
    }

    FASTGC_DEVICE void invert(const Inversion& call, Index pattern, bool write) const {
        // What is in the places after the first k of a row does not matter.
        bool regular = true;
        if (lane < Width) {
            const int row = row_of(call, pattern, lane < k ? lane : 0);
            offsets[lane] = static_cast<Index>(row >= 0 ? row : 0) * static_cast<unsigned>(k);
            regular = row >= 0;
        }
        barrier();
        const double* const column = call.generator + (lane < k ? lane : 0);
        double v[Width], norm = 0;
#pragma unroll
        for (int i = 0; i < Width; ++i) {
            if (i % 16 == 0) warp_barrier();  // no more addresses at once than there are registers for
            v[i] = load_input(column + offsets[i]);
        }
#pragma unroll
        for (int i = 0; i < Width; ++i) norm = i < k ? sum(norm, product(v[i], v[i])) : norm;
        if (lane < Width) norms[lane] = norm;  // a register would wait for its use
        if (!regular) v[0] = not_a_number();   // so that all lanes hear of it
        regular = true;
        barrier();  // offsets lie where reciprocals will

        int place = lane;
#pragma unroll 1
        for (int c = 0;; ++c) {
            Pivot pivot{place >= c && place < k ? size_bits(v[0]) : -1, place};
            agree(pivot);
            regular = regular && pivot.regular();
            Pair* const top = rows + c * (Width / 2);
            if (place == pivot.row) {
                place = c;
                reciprocals[c] = reciprocal(v[0]);
#pragma unroll
                for (int i = 0; i < Width; i += 2) top[i / 2] = {v[i], v[i + 1]};
            } else if (place == c) {
                place = pivot.row;
            }
            if (c == k - 1) break;
            barrier();
            const double factor = product(v[0], reciprocals[c]);
#pragma unroll
            for (int i = 0; i < Width; i += 2) {
                const Pair t = top[i / 2];
                if (i > 0) v[i - 1] = difference(v[i], product(factor, t.first));
                v[i] = difference(v[i + 1], product(factor, t.second));
            }
            v[Width - 1] = difference(0.0, factor);
        }

        // own[c] is U's of the lane's row, own[Width + u] L^-1's. Lanes without a row read what is no longer written.
        const bool exists = place < k;
        const double* const own = reinterpret_cast<const double*>(rows) + (exists ? place : k - 1) * (Width - 1);
#pragma unroll
        for (int u = 0; u < Width; ++u) {
            v[u] = u == place ? 1.0 : 0.0;
            if (u < place && exists) v[u] = own[Width + u];
        }
#pragma unroll 1
        for (int c = k - 1;; --c) {
            Pair* const top = rows + c * (Width / 2);
            if (place == c) {
                const double factor = reciprocals[c];
#pragma unroll
                for (int i = 0; i < Width; i += 2) top[i / 2] = {product(v[i], factor), product(v[i + 1], factor)};
            }
            barrier();
            if (c == 0) break;
            const double factor = own[c];
            double first = 0;
#pragma unroll
            for (int i = Width - 2; i >= 0; i -= 2) {
                const Pair t = top[i / 2];
                const double turned = difference(v[i + 1], product(factor, t.second));
                if (i + 2 < Width)
                    v[i + 2] = turned;
                else
                    first = turned;
                v[i + 1] = difference(v[i], product(factor, t.first));
            }
            v[0] = first;
        }

        double* const terms = reciprocals;  // each was its own lane's by now
        if (lane < Width) {
            double length = 0;  // squared, of a row of A
#pragma unroll(Width < 16 ? Width : 4)
            for (int i = 0; i < Width; ++i) {
                const double a = element(i, place);
                length = i < k ? sum(length, product(a, a)) : length;
            }
            terms[place] = lane < k ? product(norms[lane], length) : 0.0;
            order[place] = static_cast<unsigned>(lane * k);
        }
        barrier();
        const bool doubtful = !regular || !beyond_doubt<Width>(terms, Width, k);
        if (write && lane < k) {
            double* const weights = call.weights + pattern * static_cast<unsigned>(k * k) + lane;
#pragma unroll(Width < 16 ? Width : 4)
            for (int i = 0; i < Width; ++i) {
                const int c = i < k ? i : k - 1;  // once more rather than a branch, behind which loads would wait
                store(weights + order[c], regular ? element(lane, c) : not_a_number());
            }
            if (lane == 0) store(call.suspicious + pattern, static_cast<unsigned char>(doubtful));
        }
        barrier();  // before the next pattern
    }
};

template <int Lanes, int Width>
FASTGC_DEVICE void decoding_weights(const Inversion& call) {
    const int groups = static_cast<int>(blockDim.x) / Lanes;
    const int group = static_cast<int>(threadIdx.x) / Lanes, lane = static_cast<int>(threadIdx.x) % Lanes;
    double* const rooms = reinterpret_cast<double*>(shared_memory());
    const Inverse<Lanes, Width> inverse(call.k, lane, rooms + group * Inverse<Lanes, Width>::room);
    // All threads go round as often, as they meet at barriers.
    for (Index first = static_cast<Index>(blockIdx.y) * groups; first < call.batch;
         first += static_cast<Index>(gridDim.y) * groups) {
        const Index pattern = first + group;
        inverse.invert(call, pattern < call.batch ? pattern : call.batch - 1, pattern < call.batch);
    }
}

// A block for each pattern, of any size, in the device's memory: warps share rows, their lanes columns.
template <int Threads>
struct LargeInverse {
    static constexpr int warps = Threads / 32;
    int k, thread;
    double* m;      // k x k: rows of U and L^-1
    double* x;      // k x k: U^-1 L^-1
    double* norms;  // k: the squared norms of the columns of G_F, in the order of M's rows; then terms of the bound
    double* reciprocals;  // k: of the pivots
    double* order;        // k: the row that row c of M has been

    FASTGC_DEVICE LargeInverse(int k, int thread, double* room)
        : k(k),
          thread(thread),
          m(room),
          x(m + k * k),
          norms(x + k * k),
          reciprocals(norms + k),
          order(reciprocals + k) {}

    // False where a row is not the generator's.
    FASTGC_DEVICE bool load_rows(const Inversion& call, Index pattern) const {
        bool known = true;
        for (int i = 0; i < k; ++i) known = known && row_of(call, pattern, i) >= 0;
        for (int v = thread; v < k; v += Threads) {
            double norm = 0;
            for (int i = 0; i < k; ++i) {
                const Index row = known ? row_of(call, pattern, i) : 0;
                const double g = load_input(call.generator + row * k + v);
                m[v * k + i] = g;
                norm = sum(norm, product(g, g));
            }
            norms[v] = norm;
            order[v] = v;
        }
        block_barrier();
        return known;
    }

    // False where a pivot is zero or not a number.
    FASTGC_DEVICE bool eliminate() const {
        const int warp = thread / 32, lane = thread % 32;
        bool regular = true;
#pragma unroll 1
        for (int c = 0; c < k; ++c) {
            Pivot pivot{-1, c};  // every warp looks for it
            for (int r = c + lane; r < k; r += 32) pivot.see(size_bits(m[r * k + c]), r);
            pivot.agree<32>();
            regular = regular && pivot.regular();
            block_barrier();
            double* const top = m + c * k;
            double* const other = m + pivot.row * k;
            for (int j = thread; j < k; j += Threads) {
                const double upper = other[j];
                other[j] = top[j];
                top[j] = upper;
                if (j == c) reciprocals[c] = reciprocal(upper);
            }
            if (thread == 0) {
                const double norm = norms[pivot.row], row = order[pivot.row];
                norms[pivot.row] = norms[c];
                norms[c] = norm;
                order[pivot.row] = order[c];
                order[c] = row;
            }
            block_barrier();
#pragma unroll 1
            for (int r = c + 1 + warp; r < k; r += warps) {
                double* const row = m + r * k;
                const double factor = product(row[c], reciprocals[c]);
                warp_barrier();  // all have read what one of them writes
                for (int j = lane; j < k; j += 32)
                    row[j] = difference(j == c ? 0.0 : row[j], j == c ? factor : product(factor, top[j]));
            }
            block_barrier();
        }
        return regular;
    }

    FASTGC_DEVICE void substitute() const {
        const int warp = thread / 32, lane = thread % 32;
        for (int r = warp; r < k; r += warps)
            for (int u = lane; u < k; u += 32) x[r * k + u] = u < r ? m[r * k + u] : u == r ? 1.0 : 0.0;
        block_barrier();
#pragma unroll 1
        for (int c = k - 1; c >= 0; --c) {
            double* const top = x + c * k;
            for (int u = thread; u < k; u += Threads) top[u] = product(top[u], reciprocals[c]);
            block_barrier();
#pragma unroll 1
            for (int r = warp; r < c; r += warps) {
                const double factor = m[r * k + c];
                for (int u = lane; u < k; u += 32) x[r * k + u] = difference(x[r * k + u], product(factor, top[u]));
            }
            block_barrier();
        }
    }

    FASTGC_DEVICE void invert(const Inversion& call, Index pattern) const {
        const bool known = load_rows(call, pattern);
        const bool regular = eliminate() && known;
        substitute();
        double* const weights = call.weights + pattern * k * k;
        for (int c = thread; c < k; c += Threads) {
            double length = 0;
            for (int i = 0; i < k; ++i) length = sum(length, product(x[i * k + c], x[i * k + c]));
            norms[c] = product(norms[c], length);
        }
        for (int c = thread / 32; c < k; c += warps)
            for (int i = thread % 32; i < k; i += 32)
                store(weights + static_cast<int>(order[c]) * k + i, regular ? x[i * k + c] : not_a_number());
        block_barrier();
        if (thread == 0)
            store(call.suspicious + pattern, static_cast<unsigned char>(!regular || !beyond_doubt<4>(norms, k, k)));
        block_barrier();  // before the next pattern
    }
};

template <int Threads>
FASTGC_DEVICE void large_decoding_weights(const Inversion& call) {
    const Index k = call.k, room = 2 * k * k + 3 * k;
    const LargeInverse<Threads> inverse(call.k, static_cast<int>(threadIdx.x), call.work + blockIdx.y * room);
    for (Index pattern = blockIdx.y; pattern < call.batch; pattern += gridDim.y) inverse.invert(call, pattern);
}

}  // namespace fastgc
