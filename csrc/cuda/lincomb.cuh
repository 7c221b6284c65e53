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

// The one argument of a launch. fastgc/kernels/_cuda_launches.py writes it. The tables are the addresses of the inputs,
// those of the outputs, and, from the next multiple of 16 bytes on, the coefficients: of every input those of all rows,
// and zeros for those that the last layer lacks.
template <int Bytes>
struct CallOf {
    Index length;  // of a row
    Index head;    // columns before the first where every row is aligned to a line; -1: they disagree
    int rows, inputs, mode;
    alignas(16) unsigned char own[Bytes - 32];
};
constexpr int kArgumentBytes = 4096;  // as large as arguments may be on every device; 32 KB since CUDA 12.1
constexpr int kLargeBytes = 8192, kPieceBytes = 32752;
using Call = CallOf<kArgumentBytes>;
using LargeCall = CallOf<kLargeBytes>;
static_assert(sizeof(Call) == kArgumentBytes && sizeof(LargeCall) == kLargeBytes && sizeof(void*) == 8,
              "the layout is shared with Python");

// The argument of a launch on many items at once, one in each layer of the grid, whose coefficients are in the device's
// memory. The tables are, of every input and then of every output, its address in the first item and the bytes from
// there to the next one's.
struct Items {
    Index length, head;
    int rows, inputs, mode;
    const unsigned char* tables;        // null: they follow here
    const unsigned char* coefficients;  // of the first item
    Index apart;                        // bytes from the coefficients of an item to the next one's
    alignas(16) unsigned char own[kArgumentBytes - 64];
};
static_assert(sizeof(Items) == kArgumentBytes, "the layout is shared with Python");

// Numbers that begin at a line, or at whatever is aligned to one of them.
template <int N, class T, class Load>
FASTGC_DEVICE void read_lines(const T* from, T (&to)[N], const Load& load_line) {
    constexpr int kEach = 16 / sizeof(T);
    union Piece {
        Line line;
        T elements[kEach];
        FASTGC_DEVICE Piece() {}
    };
#pragma unroll
    for (int n = 0; n < N; n += kEach) {
        Piece piece;
        piece.line = load_line(reinterpret_cast<const Line*>(from + n));
#pragma unroll
        for (int e = 0; e < kEach; ++e) to[n + e] = piece.elements[e];
    }
}

// What a thread reads of a launch's tables, where they are: addresses, and coefficients in the type computed in. Those
// of R rows, a multiple of 4 or 1, are whole lines, or too few for one.
template <class T>
struct InArgument {
    static constexpr int kRegisters = 96, kMost = 8;  // for sums and inputs, and of those at once
    const unsigned char* start;
    int inputs, rows;
    template <class E>
    FASTGC_DEVICE const E* input(int q) const {
        return reinterpret_cast<const E* const*>(start)[q];
    }
    template <class E>
    FASTGC_DEVICE E* output(int p) const {
        return reinterpret_cast<E* const*>(start)[inputs + p];
    }
    template <int R>
    FASTGC_DEVICE bool by_lines() const {
        return true;
    }
    template <int R, bool kLines>
    FASTGC_DEVICE void coefficients(Index place, T (&c)[R]) const {
        const T* const from = reinterpret_cast<const T*>(start + (8 * (inputs + rows) + 15) / 16 * 16) + place * R;
        if constexpr (R * sizeof(T) % 16 == 0) {
            read_lines(from, c, [](const Line* line) { return *line; });
        } else {
#pragma unroll
            for (int r = 0; r < R; ++r) c[r] = from[r];
        }
    }
};

template <class T>
struct InMemory {
    struct Row {
        unsigned char* address;
        Index apart;
    };
    static constexpr int kRegisters = 72, kMost = 4;  // as addresses take more
    const Row* start;
    const T* all;
    int inputs;
    FASTGC_DEVICE InMemory(const Items& call, const unsigned char* tables)
        : start(reinterpret_cast<const Row*>(tables)),
          all(reinterpret_cast<const T*>(call.coefficients + blockIdx.z * call.apart)),
          inputs(call.inputs) {}
    FASTGC_DEVICE unsigned char* row(int i) const { return start[i].address + blockIdx.z * start[i].apart; }
    template <class E>
    FASTGC_DEVICE const E* input(int q) const {
        return reinterpret_cast<const E*>(row(q));
    }
    template <class E>
    FASTGC_DEVICE E* output(int p) const {
        return reinterpret_cast<E*>(row(inputs + p));
    }
    // Whether coefficients lie so that they can be read by lines, where those of R rows are whole ones.
    template <int R>
    FASTGC_DEVICE bool by_lines() const {
        return R * sizeof(T) % 16 != 0 || reinterpret_cast<unsigned long long>(all) % 16 == 0;
    }
    template <int R, bool kLines>
    FASTGC_DEVICE void coefficients(Index place, T (&c)[R]) const {
        if constexpr (kLines && R * sizeof(T) % 16 == 0) {
            read_lines(all + place * R, c, [](const Line* line) { return load_common(line); });
        } else {
#pragma unroll
            for (int r = 0; r < R; ++r) c[r] = load_input(all + place * R + r);
        }
    }
};

// V neighbours of a row, in whole lines.
template <class E, int V>
struct Lines {
    static constexpr int kEach = 16 / sizeof(E), kCount = V / kEach;
    static_assert(V % kEach == 0, "the neighbours are whole lines");
    union Piece {
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
    static constexpr bool kLines = true;
    template <class E>
    using Held = Lines<E, V>;
    Index x;
    template <class E>
    FASTGC_DEVICE void read(const E* row, Held<E>& held) const {
        const auto* const from = reinterpret_cast<const Line*>(row + x);
#pragma unroll
        for (int i = 0; i < Held<E>::kCount; ++i) held.pieces[i].line = load_input(from + i);
    }
    template <class E, class T>
    FASTGC_DEVICE void read_output(const E* row, T* values) const {
        Held<E> held;
        const auto* const from = reinterpret_cast<const Line*>(row + x);
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
        auto* const to = reinterpret_cast<Line*>(row + x);
#pragma unroll
        for (int i = 0; i < Held<E>::kCount; ++i) store(to + i, held.pieces[i].line);
    }
};

// or one element.
struct AtElement {
    static constexpr int kColumns = 1;
    static constexpr bool kLines = false;
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

// A thread makes V columns of up to R rows, of a layer's, in one pass over the inputs, all sums in registers. What all
// threads share is read from the argument, which is constant memory, where it has room.
// -------------------------------------------------------------------------------------------------------------------

template <class In, class Out, int R, class Tables, class At>
struct Columns {
    using T = Compute<In>;
    using Held = typename At::template Held<In>;
    static constexpr int V = At::kColumns;
    // Inputs are asked for several at a time, as memory needs bytes on their way: as many as there are registers for
    // beside the sums, and of 16 rows no more than 4.
    static constexpr int kSums = R * V * sizeof(T) / 4, kLimit = R < 16 ? Tables::kMost : 4;
    static constexpr int kRoom = (Tables::kRegisters - kSums) * 4 / static_cast<int>(V * sizeof(In));
    static constexpr int kAhead = kRoom < 4 ? 2 : kRoom < 8 || kLimit < 8 ? 4 : 8;

    const Tables& tables;
    const At at;
    const int first = static_cast<int>(blockIdx.x) * R;
    T sums[R][V];

    FASTGC_DEVICE Columns(const Tables& tables, const At& at) : tables(tables), at(at) {}

    template <int N>
    FASTGC_DEVICE void add(int q) {
        Held held[N];
#pragma unroll
        for (int i = 0; i < N; ++i) at.read(tables.template input<In>(q + i), held[i]);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            T c[R];
            tables.template coefficients<R, At::kLines>((q + i) * static_cast<int>(gridDim.x) + blockIdx.x, c);
#pragma unroll
            for (int r = 0; r < R; ++r)
#pragma unroll
                for (int v = 0; v < V; ++v) sums[r][v] = fused(c[r], widen(held[i][v]), sums[r][v]);
        }
    }

    FASTGC_DEVICE void make(int rows, int inputs, int mode) {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int v = 0; v < V; ++v) sums[r][v] = T(-0.0);
        if (mode == kAccumulate) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                if (first + r >= rows) break;
                at.read_output(tables.template output<Out>(first + r), sums[r]);
            }
        }
        int q = 0;
#pragma unroll 1
        for (; q + kAhead <= inputs; q += kAhead) add<kAhead>(q);
        if (kAhead > 4 && q + 4 <= inputs) add<4>(q), q += 4;
        if (kAhead > 2 && q + 2 <= inputs) add<2>(q), q += 2;
        if (q < inputs) add<1>(q);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            if (first + r >= rows) break;
            Out* const out = tables.template output<Out>(first + r);
            if (mode == kAdd) {
                T before[V];
                at.read_output(out, before);
#pragma unroll
                for (int v = 0; v < V; ++v) sums[r][v] = sum(before[v], sums[r][v]);
            }
            at.write(out, sums[r]);
        }
    }
};

// Layers are neighbours in the grid: those of a tile run at about the same time, and the inputs are read from memory
// once for all of them.
template <class In, class Out, int R, int V, int Threads, class Argument, class Tables>
FASTGC_DEVICE void layer(const Argument& call, const Tables& tables) {
    const Tiles tiles{call.head, call.length, Threads * V};
    const bool by_lines = tables.template by_lines<R>();
    for (Index tile = blockIdx.y; tile < tiles.count(); tile += gridDim.y) {
        const Index begin = tiles.begin(tile), end = tiles.end(tile);
        if (by_lines && tiles.whole(tile)) {
            const AtLines<V> at{begin + static_cast<Index>(threadIdx.x) * V};
            Columns<In, Out, R, Tables, AtLines<V>>(tables, at).make(call.rows, call.inputs, call.mode);
        } else {
#pragma unroll 1
            for (Index x = begin + threadIdx.x; x < end; x += Threads)
                Columns<In, Out, R, Tables, AtElement>(tables, AtElement{x}).make(call.rows, call.inputs, call.mode);
        }
    }
}

template <class In, class Out, int R, int V, int Threads, int Bytes>
FASTGC_DEVICE void lincomb(const CallOf<Bytes>& call) {
    layer<In, Out, R, V, Threads>(call, InArgument<Compute<In>>{call.own, call.inputs, call.rows});
}

template <class In, class Out, int R, int V, int Threads>
FASTGC_DEVICE void lincomb(const Items& call) {
    // Told apart here, so that addresses in the argument are read as what they are, constants.
    if (call.tables == nullptr)
        layer<In, Out, R, V, Threads>(call, InMemory<Compute<In>>(call, call.own));
    else
        layer<In, Out, R, V, Threads>(call, InMemory<Compute<In>>(call, call.tables));
}

// Tables that no argument holds are written to the device's memory by launches that carry a piece each: unlike a copy
// from the host's memory that needs nothing to outlive the call, and a graph can replay it.
struct Piece {
    unsigned char* to;
    Index words;  // of 8 bytes
    unsigned char bytes[kPieceBytes - 16];
};
static_assert(sizeof(Piece) == kPieceBytes, "the layout is shared with Python");

template <int Threads>
FASTGC_DEVICE void write_piece(const Piece& piece) {
    const auto* const from = reinterpret_cast<const unsigned long long*>(piece.bytes);
    auto* const to = reinterpret_cast<unsigned long long*>(piece.to);
    for (int i = static_cast<int>(threadIdx.x); i < piece.words; i += Threads) store(to + i, from[i]);
}

}  // namespace fastgc
