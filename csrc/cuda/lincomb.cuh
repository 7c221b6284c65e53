// A small matrix times a few long rows.
//
// Element (p, x) is the chain of the CPU's kernels (csrc/lincomb-inl.h): fma(c[p,q], x_q, chain) in increasing q. It
// starts from -0, with which the first step is the rounded product c[p,0] x_0, or from what the output holds. Chains
// run in the type computed in and are rounded to the output once.
#pragma once

#include "device.cuh"

namespace fastgc {

template <class E>
struct ComputeOf {
    using type = float;
};
template <>
struct ComputeOf<double> {
    using type = double;
};
template <class E>
using Compute = typename ComputeOf<E>::type;

enum Mode : int {
    kStore,       // out = chain
    kAccumulate,  // the chain starts from out
    kAdd          // out = out + chain, the plain sum of two finished results
};

// The one argument of a launch, as large as arguments may be on every device. fastgc/kernels/_cuda_calls.py writes it.
// The tables are the addresses of the inputs, those of the outputs, and, from the next multiple of 16 bytes on, the
// coefficients: entry (p, q) at [q * stride + p], zero for rows that pad p.
constexpr int kArgumentBytes = 4096;
struct Call {
    Index length;                 // of a row
    Index head;                   // columns before the first where every row is aligned to a line; -1: they disagree
    const unsigned char* tables;  // null: they follow here
    int rows, inputs, stride, mode;
    alignas(16) unsigned char own[kArgumentBytes - 48];
};
static_assert(sizeof(Call) == kArgumentBytes && sizeof(void*) == 8, "the layout is shared with Python");

// The argument of a launch on many items at once, one in each layer of the grid, whose coefficients are in the device's
// memory. The tables are, of every input and then of every output, its address in the first item and the bytes from
// there to the next one's. fastgc/kernels/_cuda_items.py writes it.
struct Items {
    Index length, head;
    const unsigned char* tables;        // null: they follow here
    const unsigned char* coefficients;  // of the first item: entry (p, q) at [q * stride + p]
    Index apart;                        // bytes from the coefficients of an item to the next one's
    int rows, inputs, stride, mode;
    alignas(16) unsigned char own[kArgumentBytes - 64];
};
static_assert(sizeof(Items) == kArgumentBytes, "the layout is shared with Python");

// What a thread reads of a launch's tables, where they are, in the type computed in.
template <class T, class Argument>
struct Tables;

template <class T>
struct Tables<T, Call> {
    const unsigned char* start;
    int inputs, rows;
    FASTGC_DEVICE Tables(const Call& call, const unsigned char* tables)
        : start(tables), inputs(call.inputs), rows(call.rows) {}
    template <class E>
    FASTGC_DEVICE const E* input(int q) const {
        return reinterpret_cast<const E* const*>(start)[q];
    }
    template <class E>
    FASTGC_DEVICE E* output(int p) const {
        return reinterpret_cast<E* const*>(start)[inputs + p];
    }
    FASTGC_DEVICE T coefficient(Index i) const {
        return reinterpret_cast<const T*>(start + (8 * (inputs + rows) + 15) / 16 * 16)[i];
    }
};

template <class T>
struct Tables<T, Items> {
    struct Row {
        unsigned char* address;
        Index apart;
    };
    const Row* start;
    const T* coefficients;
    int inputs, rows;
    FASTGC_DEVICE Tables(const Items& call, const unsigned char* tables)
        : start(reinterpret_cast<const Row*>(tables)),
          coefficients(reinterpret_cast<const T*>(call.coefficients + blockIdx.z * call.apart)),
          inputs(call.inputs),
          rows(call.rows) {}
    FASTGC_DEVICE unsigned char* row(int i) const { return start[i].address + blockIdx.z * start[i].apart; }
    template <class E>
    FASTGC_DEVICE const E* input(int q) const {
        return reinterpret_cast<const E*>(row(q));
    }
    template <class E>
    FASTGC_DEVICE E* output(int p) const {
        return reinterpret_cast<E*>(row(inputs + p));
    }
    FASTGC_DEVICE T coefficient(Index i) const { return load_input(coefficients + i); }
};

// V neighbours of a row in whole lines, or in the largest pieces that a thread moves at once.
template <class E, int V>
struct Lines {
    static constexpr int kEach = V * sizeof(E) < 16 ? V : 16 / sizeof(E), kCount = V / kEach;
    union alignas(kEach * sizeof(E)) Piece {
        Line line;
        E elements[kEach];
        FASTGC_DEVICE Piece() {}
    };
    Piece pieces[kCount];
    FASTGC_DEVICE E& operator[](int v) { return pieces[v / kEach].elements[v % kEach]; }
};

// Where a thread reads and writes in every row: V neighbours from column x on, where all rows are aligned to lines;
template <int V>
struct AtLines {
    static constexpr int kColumns = V;
    template <class E>
    using Held = Lines<E, V>;
    Index x;
    template <class E>
    FASTGC_DEVICE void read(const E* row, Held<E>& held) const {
        const Line* const from = reinterpret_cast<const Line*>(row + x);
#pragma unroll
        for (int i = 0; i < Held<E>::kCount; ++i) held.pieces[i].line = load_input(from + i);
    }
    template <class E, class T>
    FASTGC_DEVICE void read_output(const E* row, T* values) const {
        Held<E> held;
        const Line* const from = reinterpret_cast<const Line*>(row + x);
#pragma unroll
        for (int i = 0; i < Held<E>::kCount; ++i) held.pieces[i].line = load(from + i);
#pragma unroll
        for (int v = 0; v < V; ++v) values[v] = widen(held[v]);
    }
    template <class E, class T>
    FASTGC_DEVICE void write(E* row, const T* values) const {
        Held<E> held;
#pragma unroll
        for (int v = 0; v < V; ++v) narrow(values[v], held[v]);
        Line* const to = reinterpret_cast<Line*>(row + x);
#pragma unroll
        for (int i = 0; i < Held<E>::kCount; ++i) store(to + i, held.pieces[i].line);
    }
};

// or one element.
struct AtElement {
    static constexpr int kColumns = 1;
    template <class E>
    struct Held {
        E element;
        FASTGC_DEVICE E& operator[](int) { return element; }
    };
    Index x;
    template <class E>
    FASTGC_DEVICE void read(const E* row, Held<E>& held) const {
        held.element = load_input(row + x);
    }
    template <class E, class T>
    FASTGC_DEVICE void read_output(const E* row, T* values) const {
        *values = widen(load(row + x));
    }
    template <class E, class T>
    FASTGC_DEVICE void write(E* row, const T* values) const {
        E element;
        narrow(*values, element);
        store(row + x, element);
    }
};

// The tiles of a call: the head, if there is one, then stretches of `width` columns of which the last may be short.
struct Tiles {
    Index head, length;
    int width;
    FASTGC_DEVICE Index heads() const { return head > 0; }
    FASTGC_DEVICE Index count() const { return heads() + (length - (head > 0 ? head : 0) + width - 1) / width; }
    FASTGC_DEVICE Index begin(Index tile) const {
        return heads() == 0 ? tile * width : tile == 0 ? 0 : head + (tile - 1) * width;
    }
    FASTGC_DEVICE Index end(Index tile) const {
        if (tile < heads()) return head;
        const Index after = begin(tile) + width;
        return after < length ? after : length;
    }
    FASTGC_DEVICE bool whole(Index tile) const { return head >= 0 && end(tile) - begin(tile) == width; }
};

// Few rows
// -------------------------------------------------------------------------------------------------------------
//
// A thread makes V columns of up to R rows in one pass over the inputs, all sums in registers. Coefficients and
// addresses are read from the argument, which is constant memory: the same for all threads.

template <class In, class Out, int R, int Ahead, class Argument, class At>
FASTGC_DEVICE void direct_columns(const Argument& call, const At at) {
    using T = Compute<In>;
    using Held = typename At::template Held<In>;
    constexpr int V = At::kColumns;
    const Tables<T, Argument> tables(call, call.own);
    T sums[R][V];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[r][v] = T(-0.0);
        if (call.mode == kAccumulate && r < call.rows) at.read_output(tables.template output<Out>(r), sums[r]);
    }
    const auto add = [&](int q, Held& held) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const T c = tables.coefficient(q * R + r);
#pragma unroll
            for (int v = 0; v < V; ++v) sums[r][v] = fused(c, widen(held[v]), sums[r][v]);
        }
    };
    // Inputs are asked for `Ahead` at a time: memory needs bytes on their way.
    int q = 0;
#pragma unroll 1
    for (; q + Ahead <= call.inputs; q += Ahead) {
        Held held[Ahead];
#pragma unroll
        for (int i = 0; i < Ahead; ++i) at.read(tables.template input<In>(q + i), held[i]);
#pragma unroll
        for (int i = 0; i < Ahead; ++i) add(q + i, held[i]);
    }
#pragma unroll 1
    for (; q < call.inputs; ++q) {
        Held held;
        at.read(tables.template input<In>(q), held);
        add(q, held);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
        if (r >= call.rows) break;
        Out* const out = tables.template output<Out>(r);
        if (call.mode == kAdd) {
            T before[V];
            at.read_output(out, before);
#pragma unroll
            for (int v = 0; v < V; ++v) sums[r][v] = sum(before[v], sums[r][v]);
        }
        at.write(out, sums[r]);
    }
}

template <class In, class Out, int R, int V, int Threads, class Argument>
FASTGC_DEVICE void lincomb_direct(const Argument& call) {
    constexpr int kAhead = 2;  // more take registers, and with them threads, which ask as well
    const Tiles tiles{call.head, call.length, Threads * V};
    for (Index tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
        const Index begin = tiles.begin(tile), end = tiles.end(tile);
        if (tiles.whole(tile)) {
            direct_columns<In, Out, R, kAhead>(call, AtLines<V>{begin + static_cast<Index>(threadIdx.x) * V});
        } else {
#pragma unroll 1
            for (Index x = begin + threadIdx.x; x < end; x += Threads)
                direct_columns<In, Out, R, 4>(call, AtElement{x});
        }
    }
}

// More rows
// ------------------------------------------------------------------------------------------------------------
//
// A block makes Rows x Width sums, a thread R x V of them. Stages of Depth inputs go through shared memory, in the type
// computed in, so that each is read and widened once for all rows; the next stage is on its way in registers meanwhile.
// Threads of a warp share their rows, so that coefficients are broadcast, and a thread's columns are kColumns apart, so
// that neighbours read and write neighbours, whatever the alignment.

template <class In, class Out, int Rows, int Width, int Depth, int Threads, class Argument>
struct Tiled {
    using T = Compute<In>;
    using Table = Tables<T, Argument>;
    static constexpr int R = 8, V = 16 / sizeof(T);
    static constexpr int kColumns = Width / V;  // threads along the columns
    static_assert(kColumns % 32 == 0 && Rows / R * kColumns == Threads, "a warp has one set of rows");
    static constexpr int kStaged = Depth * Width / Threads, kWeights = (Depth * Rows + Threads - 1) / Threads;
    static constexpr int kEach = Lines<In, kStaged>::kEach;
    static_assert(kStaged * sizeof(In) % 16 == 0 && Width % kEach == 0, "stages are whole lines");

    Lines<In, kStaged> staged;
    T weights[kWeights];

    // A stage's numbers, among threads: by lines, or by elements.
    template <bool kWhole>
    FASTGC_DEVICE void fetch(const Table& tables, int q, Index begin, Index end) {
        constexpr int size = kWhole ? kEach : 1;
#pragma unroll
        for (int i = 0; i < kStaged / size; ++i) {
            const int at = (static_cast<int>(threadIdx.x) + i * Threads) * size, input = q + at / Width;
            const Index x = begin + at % Width;
            if (input >= tables.inputs || (!kWhole && x >= end)) continue;
            const In* const from = tables.template input<In>(input) + x;
            if constexpr (kWhole)
                staged.pieces[i].line = load_input(reinterpret_cast<const Line*>(from));
            else
                staged[i] = load_input(from);
        }
    }
    template <bool kWhole>
    FASTGC_DEVICE void put(T* inputs) {
        constexpr int size = kWhole ? kEach : 1;
#pragma unroll
        for (int i = 0; i < kStaged / size; ++i)
#pragma unroll
            for (int e = 0; e < size; ++e)
                inputs[(static_cast<int>(threadIdx.x) + i * Threads) * size + e] = widen(staged[i * size + e]);
    }
    FASTGC_DEVICE void fetch_weights(const Table& tables, int stride, int first, int q) {
#pragma unroll
        for (int i = 0; i < kWeights; ++i) {
            const int at = static_cast<int>(threadIdx.x) + i * Threads, input = q + at / Rows, row = first + at % Rows;
            weights[i] = at < Depth * Rows && input < tables.inputs && row < stride
                             ? tables.coefficient(static_cast<Index>(input) * stride + row)
                             : T(0);
        }
    }
    FASTGC_DEVICE void put_weights(T* coefficients) {
#pragma unroll
        for (int i = 0; i < kWeights; ++i) {
            const int at = static_cast<int>(threadIdx.x) + i * Threads;
            if (at < Depth * Rows) coefficients[at] = weights[i];
        }
    }

    FASTGC_DEVICE void tile(const Table& tables, const Argument& call, int first, Index begin, Index end, bool whole) {
        T* const inputs = reinterpret_cast<T*>(shared_memory());  // Depth x Width
        T* const coefficients = inputs + Depth * Width;           // Depth x Rows
        const int thread = static_cast<int>(threadIdx.x) % kColumns;
        const int group = static_cast<int>(threadIdx.x) / kColumns * R;
        const auto exists = [&](int r, int v) {
            return first + group + r < tables.rows && begin + thread + v * kColumns < end;
        };
        const auto output = [&](int r, int v) {
            return tables.template output<Out>(first + group + r) + (begin + thread + v * kColumns);
        };
        const auto fetch_stage = [&](int q) {
            if (whole)
                fetch<true>(tables, q, begin, end);
            else
                fetch<false>(tables, q, begin, end);
            fetch_weights(tables, call.stride, first, q);
        };
        T sums[R][V];
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int v = 0; v < V; ++v)
                sums[r][v] = call.mode == kAccumulate && exists(r, v) ? widen(load(output(r, v))) : T(-0.0);
        fetch_stage(0);
#pragma unroll 1
        for (int q = 0; q < tables.inputs; q += Depth) {
            block_barrier();
            if (whole)
                put<true>(inputs);
            else
                put<false>(inputs);
            put_weights(coefficients);
            block_barrier();
            if (q + Depth < tables.inputs) fetch_stage(q + Depth);
            const int count = tables.inputs - q < Depth ? tables.inputs - q : Depth;
#pragma unroll 1
            for (int k = 0; k < count; ++k) {
                T x[V], c[R];
#pragma unroll
                for (int v = 0; v < V; ++v) x[v] = inputs[k * Width + thread + v * kColumns];
#pragma unroll
                for (int r = 0; r < R; ++r) c[r] = coefficients[k * Rows + group + r];
#pragma unroll
                for (int r = 0; r < R; ++r)
#pragma unroll
                    for (int v = 0; v < V; ++v) sums[r][v] = fused(c[r], x[v], sums[r][v]);
            }
        }
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (exists(r, v)) {
                    Out* const to = output(r, v);
                    Out out;
                    narrow(call.mode == kAdd ? sum(widen(load(to)), sums[r][v]) : sums[r][v], out);
                    store(to, out);
                }
    }
};

template <class In, class Out, int Rows, int Width, int Depth, int Threads, class Argument>
FASTGC_DEVICE void lincomb_tiled(const Argument& call) {
    const Tables<Compute<In>, Argument> tables(call, call.tables != nullptr ? call.tables : call.own);
    const Tiles tiles{call.head, call.length, Width};
    Tiled<In, Out, Rows, Width, Depth, Threads, Argument> work;
    for (Index tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x)
        work.tile(tables, call, static_cast<int>(blockIdx.y) * Rows, tiles.begin(tile), tiles.end(tile),
                  tiles.whole(tile));
}

// Tables that no argument holds are written to the device's memory by launches that carry a piece each: unlike a copy
// from the host's memory that needs nothing to outlive the call, and a graph can replay it.
constexpr int kPieceBytes = kArgumentBytes - 16;
struct Piece {
    unsigned char* to;
    Index words;  // of 8 bytes
    unsigned char bytes[kPieceBytes];
};
static_assert(sizeof(Piece) == kArgumentBytes, "the layout is shared with Python");

template <int Threads>
FASTGC_DEVICE void write_piece(const Piece& piece) {
    const auto* const from = reinterpret_cast<const unsigned long long*>(piece.bytes);
    auto* const to = reinterpret_cast<unsigned long long*>(piece.to);
    for (int i = static_cast<int>(threadIdx.x); i < piece.words; i += Threads) store(to + i, from[i]);
}

}  // namespace fastgc
