// A small matrix times a few long rows, and the tree sum of several such products.
//
// Element (p, x) of a product is one chain in increasing q: it starts with the rounded product c[p,0] x_0 (or, when
// accumulating, with fma(c[p,0], x_0, out)) and goes on with fma(c[p,q], x_q, chain). Nothing else may touch the
// value: the bits then depend neither on blocking, tails, threads nor alignment, and Q may be split into passes.
// Chains and sums are of type Compute<In>; what goes out in another type is rounded when all is done.

constexpr Index kLine = 64;       // bytes that caches and memory move together
constexpr Index kAligned = 4000;  // bytes of a row from which on it pays to begin with a whole vector
constexpr Index kUnrolled = 12;   // inputs from which on high tiles take four at a time
constexpr int kMaxBlockRows = kTuning.block_rows;
constexpr Index kMostApart = 64;  // inputs of a block that is cut

enum class Mode {
    store,       // out = chain
    accumulate,  // the chain starts from out
    add          // out = out + chain, the plain sum of two finished results
};

// Rows of which column x is at start[r][x - origin]: given rows (origin 0), or buffers that hold a chunk of columns.
template <class T>
struct Rows {
    T* const* start;
    Index origin;
    FASTGC_INLINE T* at(const Rows& rows, Index r, Index x) { return rows.start[r] + (x - rows.origin); }
    Rows from(Index r) const { return {start + r, origin}; }
};

// Vectors a row of a tile. Its sums stay in registers, and beside them either a vector of every row of the inputs and
// one coefficient, or every row's coefficient and one input. At most 4: beyond that a tile gains nothing where memory
// is the limit, and short rows become all remainder.
constexpr bool inputs_stay(int rows, int vectors) { return rows * vectors + vectors + 1 <= kRegisters; }
constexpr bool coefficients_stay(int rows, int vectors) { return rows * vectors + rows + 1 <= kRegisters; }
constexpr int vectors(int rows) {
    int most = 4;
    while (most > 1 && !inputs_stay(rows, most) && !coefficients_stay(rows, most)) --most;
    return most;
}
// A power of two, which divides a strip, and fills lines of cache.
constexpr int even_vectors(int rows) {
    int most = 4;
    while (most > 1 && !inputs_stay(rows, most)) most /= 2;
    return most;
}
constexpr int kPanelVectors = even_vectors(kMaxBlockRows);
template <class T>
constexpr Index kPanelWidth = kPanelVectors * Vec<T>::lanes;

// Where a tile has its inputs from: at(x) is that from column x on, row(q) the memory of input q.
//
// Inputs where they lie.
template <class In>
struct Direct {
    using Element = In;
    static constexpr bool asked = false, in_panel = false, packs = false;
    const In* const* rows;
    Index x;
    FASTGC_INLINE Direct at(const Direct& inputs, Index, Index x) { return {inputs.rows, x}; }
    FASTGC_INLINE const In* row(const Direct& inputs, Index q) { return inputs.rows[q] + inputs.x; }
};

// Those that no prefetcher follows: a tile asks for the columns of the next one, or `ahead` beyond.
template <class In>
struct Asked : Direct<In> {
    static constexpr bool asked = true;
    Index ahead;
    FASTGC_INLINE Asked at(const Asked& inputs, Index, Index x) { return {{inputs.rows, x}, inputs.ahead}; }
    // Whether a tile must ask for every line: it may skip a third of those that are in a cache.
    FASTGC_INLINE bool from_memory(const Asked& inputs) { return inputs.ahead > 0; }
    // The `width` columns that the tile after the one at `row` has.
    template <Index width, class T>
    FASTGC_INLINE void ask(const T* row) {
        constexpr Index line = kLine / sizeof(T), lines = width > line ? width / line : 1;
        for (Index i = 0; i < lines; ++i) __builtin_prefetch(row + 2 * width - 1 - i * line, 0, 3);
    }
};

// A panel: columns from `origin` on, packed in tiles that lie one after the other, input by input in each. What is
// missing in the last one is never looked at. While a block reads it, it asks for its share of the next panel's
// columns, which are `ahead` bytes further in `next_count` of the inputs: asked for at once, they would hold up who
// asks.
template <class T>
struct Packed {
    using Element = T;
    static constexpr bool asked = false, in_panel = true, packs = false;
    T* start;
    Index origin;
    const char* const* next = nullptr;
    Index next_count = 0, element = 0, ahead = 0;
    FASTGC_INLINE T* place(T* start, Index origin, Index count, Index x) {
        const Index within = (x - origin) % kPanelWidth<T>;
        return start + (x - origin - within) * count + within;
    }
    FASTGC_INLINE Packed at(const Packed& inputs, Index count, Index x) {
        for (Index i = 0; i < inputs.next_count; ++i) {
            const char* const from = inputs.next[i] + x * inputs.element + inputs.ahead;
            for (Index b = 0; b < kPanelWidth<T> * inputs.element; b += kLine) __builtin_prefetch(from + b, 0, 2);
        }
        return {place(inputs.start, inputs.origin, count, x), x};
    }
    FASTGC_INLINE const T* row(const Packed& inputs, Index q) { return inputs.start + q * kPanelWidth<T>; }
};

// Inputs where they lie, which the block that reads them first packs on its way.
template <class In>
struct Packing {
    using T = Compute<In>;
    using Element = T;
    static constexpr bool asked = false, in_panel = true, packs = true;
    const In* const* rows;
    T* start;
    Index origin;
    FASTGC_INLINE Packing at(const Packing& inputs, Index count, Index x) {
        return {inputs.rows, Packed<T>::place(inputs.start, inputs.origin, count, x), x};
    }
    FASTGC_INLINE const In* row(const Packing& inputs, Index q) { return inputs.rows[q] + inputs.origin; }
    FASTGC_INLINE void pack(const Packing& inputs, Index q, const Vec<T>* input, int count) {
        for (int v = 0; v < count; ++v) Vec<T>::store(inputs.start + q * kPanelWidth<T> + v * Vec<T>::lanes, input[v]);
    }
};

// Whether there is a mode `add`: see tree().
template <class T, class Out, class Inputs>
constexpr bool kAdds = sizeof(T) == sizeof(Out) && !Inputs::in_panel;

enum class Reach {
    whole,       // V vectors
    partial,     // the first n columns of one
    past_caches  // V vectors, stored past the caches; the outputs are aligned to them
};

// The chains of R rows by V vectors at column x, n columns of them where that is part of one: the inputs are read once.
template <class Out, int R, int V, bool partial, class T, class Inputs>
FASTGC_INLINE void chains(Mode mode, Index count, const T* coefficients, const Inputs& inputs, Rows<Out> outputs,
                          Index x, Index n, Vec<T> (&sum)[R][V]) {
    using W = Vec<T>;
    constexpr bool paired = kPaired<typename Inputs::Element, Out, V>;
    static_assert(!partial || V == 1);
    const auto load = [&](const auto* from, W(&to)[V]) FASTGC_INLINED {
        if constexpr (partial)
            to[0] = W::load_n(from, n);
        else
            load_all<paired>(from, to);
    };
    W input[V];
    const auto load_input = [&](Index number) FASTGC_INLINED {
        load(Inputs::row(inputs, number), input);
        if constexpr (Inputs::packs) Inputs::pack(inputs, number, input, V);
    };
    Index q = 0;
    if (mode == Mode::accumulate) {
        each<R>([&](auto r) FASTGC_INLINED { load(Rows<Out>::at(outputs, r, x), sum[r]); });
    } else {
        load_input(0);
        each<R>([&](auto r) FASTGC_INLINED {
            for (int v = 0; v < V; ++v) sum[r][v] = W::mul(W::set1(coefficients[r]), input[v]);
        });
        q = 1;
    }
    const auto step = [&]() FASTGC_INLINED {
        if constexpr (Inputs::asked) Inputs::template ask<V * W::lanes>(Inputs::row(inputs, q) + inputs.ahead);
        if constexpr (inputs_stay(R, V)) {
            load_input(q);
            each<R>([&](auto r) FASTGC_INLINED {
                const W c = W::set1(coefficients[q * R + r]);
                for (int v = 0; v < V; ++v) sum[r][v] = W::fma(c, input[v], sum[r][v]);
            });
        } else {
            static_assert(!paired && coefficients_stay(R, V));
            W c[R];
            for (int r = 0; r < R; ++r) c[r] = W::set1(coefficients[q * R + r]);
            const auto* const row = Inputs::row(inputs, q);
            for (int v = 0; v < V; ++v) {
                const W one = W::load(row + v * W::lanes);
                for (int r = 0; r < R; ++r) sum[r][v] = W::fma(c[r], one, sum[r][v]);
            }
        }
    };
    // Where memory, or another thread on the core, holds instructions up, fewer of them count (16 x 16 at 10^6 in 0.88
    // of the time); in cache on a core of its own this gains nothing, and with fewer inputs it would lose.
    if constexpr (R >= 4 && R * V >= 8) {
        if (count >= kUnrolled) {
#pragma GCC unroll 4
            for (; q < count; ++q) step();
            return;
        }
    }
    for (; q < count; ++q) step();
}

// What a row holds, plus V vectors.
template <bool partial, int V, class T>
FASTGC_INLINE void add_to(const T* row, Vec<T> (&sum)[V], Index n) {
    using W = Vec<T>;
    for (int v = 0; v < V; ++v) sum[v] = W::add(partial ? W::load_n(row, n) : W::load(row + v * W::lanes), sum[v]);
}

// A tile: its chains, and the outputs written once. The mode is a constant only where that is worth compiling: a branch
// costs tiles of few inputs a twelfth of their time.
template <class Out, int R, int V, Reach reach, class T, class Inputs>
FASTGC_INLINE void tile(Mode mode, Index count, const T* coefficients, const Inputs& inputs, Rows<Out> outputs, Index x,
                        Index n) {
    using W = Vec<T>;
    constexpr bool partial = reach == Reach::partial;
    constexpr bool paired = kPaired<typename Inputs::Element, Out, V>;
    if constexpr (Inputs::asked && reach == Reach::whole)  // a line must be there to be written to
        if (Inputs::from_memory(inputs))
            for (int r = 0; r < R; ++r) Inputs::template ask<V * W::lanes>(Rows<Out>::at(outputs, r, x) + inputs.ahead);
    W sum[R][V];
    chains<Out, R, V, partial>(reach == Reach::past_caches ? Mode::store : mode, count, coefficients, inputs, outputs,
                               x, n, sum);
    for (int r = 0; r < R; ++r) {
        Out* const out = Rows<Out>::at(outputs, r, x);
        if constexpr (kAdds<T, Out, Inputs> && reach != Reach::past_caches) {
            if (mode == Mode::add) add_to<partial>(out, sum[r], n);
        }
        if constexpr (partial)
            W::store_n(out, sum[r][0], n);
        else if constexpr (reach == Reach::past_caches)
            stream_all<paired>(out, sum[r]);
        else
            store_all<paired>(out, sum[r]);
    }
}

// Columns before the first that is aligned to `bytes`, a power of two, in all rows; -1 where the rows disagree.
template <class T>
Index before_aligned(std::size_t bytes, Index count, Rows<T> rows, Index x) {
    const auto offset = [&](Index r) {
        return -reinterpret_cast<std::uintptr_t>(Rows<T>::at(rows, r, x)) & (bytes - 1);
    };
    for (Index r = 1; r < count; ++r)
        if (offset(r) != offset(0)) return -1;
    return static_cast<Index>(offset(0) / sizeof(T));
}

// Blocks of equally many rows, which a tile's columns go through one after the other.
template <class T>
struct Blocks {
    Index number, rows;     // rows of each
    Index count;            // inputs
    const T* coefficients;  // of the first
    Index stride;           // from the coefficients of one block to those of the next
};

template <class Out, int R, class T, class Inputs>
void columns(Mode mode, const Blocks<T> blocks, const Inputs inputs, Rows<Out> outputs, bool past_caches, Index begin,
             Index end) {  // by value: a store through a vector type could change what a reference names
    using W = Vec<T>;
    // Half types are loaded in pairs of vectors.
    constexpr bool halves = sizeof(typename Inputs::Element) < sizeof(T) || sizeof(Out) < sizeof(T);
    constexpr int E = Inputs::in_panel ? kPanelVectors : even_vectors(R);
    constexpr int V = Inputs::in_panel || halves ? E : vectors(R);
    // From memory tiles of fewer vectors ask for a line or two of each input, steadily.
    constexpr int M = Inputs::asked && R > 1 && kTuning.memory_vectors < E ? kTuning.memory_vectors : E;
    constexpr Index even_width = E * W::lanes, width = V * W::lanes, memory_width = M * W::lanes;
    const auto tiles = [&](auto vectors, auto reach, auto how, Index x, Index n) FASTGC_INLINED {
        const Inputs here = Inputs::at(inputs, blocks.count, x);
        const T* coefficients = blocks.coefficients;
        Rows<Out> block = outputs;
        for (Index b = blocks.number;;) {
            tile<Out, R, vectors.value, reach.value>(how, blocks.count, coefficients, here, block, x, n);
            if (--b == 0) break;
            coefficients += blocks.stride;
            block = block.from(R);
        }
    };
    constexpr Constant<int, V> all{};
    constexpr Constant<int, E> even{};
    constexpr Constant<int, M> memory{};
    constexpr Constant<int, 1> narrow{};
    constexpr Constant<Reach, Reach::whole> whole{};
    constexpr Constant<Mode, Mode::store> store{};
    Index x = begin;
    // Only whole lines pass the caches: a line stored in part must be read first, and a tile must fill it at once.
    if constexpr (memory_width * sizeof(Out) % kLine == 0) {
        if (past_caches && mode == Mode::store && before_aligned(kLine, R * blocks.number, outputs, x) == 0)
            for (; x + memory_width <= end; x += memory_width)
                tiles(memory, Constant<Reach, Reach::past_caches>{}, store, x, 0);
    }
    bool by_lines = false;  // tiles of which each asks for whole lines
    if constexpr (Inputs::asked && V != M) by_lines = Inputs::from_memory(inputs);
    const Index wide = by_lines ? x : end;  // where tiles of V vectors end
    if (Inputs::asked || mode != Mode::store)
        for (; x + width <= wide; x += width) tiles(all, whole, mode, x, 0);
    else if constexpr (!Inputs::asked)
        for (; x + width <= wide; x += width) tiles(all, whole, store, x, 0);
    if constexpr (M != E)
        for (; by_lines && x + memory_width <= end; x += memory_width) tiles(memory, whole, mode, x, 0);
    if constexpr (V != E)
        for (; x + even_width <= end; x += even_width) tiles(even, whole, mode, x, 0);
    if constexpr (Inputs::asked) {  // the few columns left have code already
        columns<Out, R, T, Direct<typename Inputs::Element>>(mode, blocks, inputs, outputs, past_caches, x, end);
    } else {
        for (; x + W::lanes <= end; x += W::lanes) tiles(narrow, whole, mode, x, 0);
        if (x < end) tiles(narrow, Constant<Reach, Reach::partial>{}, mode, x, end - x);
    }
}

// Copies columns of a row, into another type where that is one of the two.
template <class From, class To>
void copy(const From* from, To* to, Index n) {
    using W = Vec<Compute<From>>;
    Index x = 0;
    for (; x + W::lanes <= n; x += W::lanes) W::store(to + x, W::load(from + x));
    if (x < n) W::store_n(to + x, W::load_n(from + x, n - x), n - x);
}

// The groups [first, last), a node of their tree, all with one block of rows.
template <class In>
struct Sum {
    const Group<In>*first, *last;
};

// R rows by V vectors of the tree of `number` groups from `group` on, which it leaves at the next one. What waits for
// the rest stays in registers, if there are enough.
template <class Out, int number, int R, int V, bool partial, class In, class T>
FASTGC_INLINE void sum_of(const Group<In>*& group, Rows<Out> outputs, Index x, Index n, Vec<T> (&sum)[R][V]) {
    if constexpr (number == 1) {
        chains<Out, R, V, partial>(Mode::store, group->count, group->coefficients, Direct<In>{group->inputs, x},
                                   outputs, x, n, sum);
        ++group;
    } else {
        Vec<T> first[R][V];
        sum_of<Out, number / 2, R, V, partial>(group, outputs, x, n, first);
        sum_of<Out, number - number / 2, R, V, partial>(group, outputs, x, n, sum);
        each<R * V>([&](auto i) FASTGC_INLINED {  // a loop over v would leave them in memory
            sum[i / V][i % V] = Vec<T>::add(first[i / V][i % V], sum[i / V][i % V]);
        });
    }
}

// The same of any number of groups: what waits does so in the first-level cache.
template <class Out, int R, int V, bool partial, class In, class T>
FASTGC_INLINE void sum_of_any(const Sum<In> of, Rows<Out> outputs, Index x, Index n, Vec<T> (&sum)[R][V]) {
    using W = Vec<T>;
    W waiting[kMostWaiting][R * V];
    const auto at = [&](auto i) FASTGC_INLINED -> W& { return sum[i / V][i % V]; };
    Index depth = 0;
    for (const Group<In>* group = of.first;; ++group) {
        chains<Out, R, V, partial>(Mode::store, group->count, group->coefficients, Direct<In>{group->inputs, x},
                                   outputs, x, n, sum);
        for (Index i = group->completes; i > 0 && depth > 0; --i) {
            --depth;
            each<R * V>([&](auto i) FASTGC_INLINED { at(i) = W::add(waiting[depth][i], at(i)); });
        }
        if (group + 1 == of.last) return;
        each<R * V>([&](auto i) FASTGC_INLINED { waiting[depth][i] = at(i); });
        ++depth;
    }
}

// R rows by V vectors of their sum; of `number` groups, if that is not 0.
template <class T, int R, int V, int number, bool partial, class In, class Out>
void sum_tile(const Sum<In> of, Rows<Out> outputs, bool past_caches, Index x, Index n) {
    using W = Vec<T>;
    constexpr bool paired = kPaired<In, Out, V>;
    W sum[R][V];
    if constexpr (number == 0) {
        sum_of_any<Out, R, V, partial>(of, outputs, x, n, sum);
    } else {
        const Group<In>* group = of.first;
        sum_of<Out, number, R, V, partial>(group, outputs, x, n, sum);
    }
    each<R>([&](auto r) FASTGC_INLINED {
        Out* const out = Rows<Out>::at(outputs, r, x);
        if constexpr (partial)
            W::store_n(out, sum[r][0], n);
        else if (kPassesCaches && V > 1 && past_caches)
            stream_all<paired>(out, sum[r]);
        else
            store_all<paired>(out, sum[r]);
    });
}

template <class In, class Out, int R>
constexpr int sum_vectors = std::is_same_v<In, Out> && in_place<In, Out> && vectors(R) == 4 ? 4 : even_vectors(R);

// Columns of R rows of it.
template <class T, int R, class In, class Out>
void sum_columns(const Sum<In>& of, Rows<Out> outputs, bool past_caches, Index begin, Index end) {
    constexpr int V = sum_vectors<In, Out, R>;
    constexpr Index lanes = Vec<T>::lanes, width = V * lanes;
    const bool past = past_caches && width * sizeof(Out) % kLine == 0 && before_aligned(kLine, R, outputs, begin) == 0;
    Index x = begin;
    const auto tiles = [&](auto number) FASTGC_INLINED {
        // One row has registers left. In caches what a tile does beside its arithmetic counts; memory is read as well.
        if constexpr (R == 1 && sizeof(In) == sizeof(T) && sizeof(Out) == sizeof(T) && coefficients_stay(R, 2 * V))
            if (!past_caches)
                for (; x + 2 * width <= end; x += 2 * width)
                    sum_tile<T, R, 2 * V, number.value, false>(of, outputs, false, x, 0);
        for (; x + width <= end; x += width) sum_tile<T, R, V, number.value, false>(of, outputs, past, x, 0);
    };
    switch (of.last - of.first) {
        case 2:
            tiles(Constant<int, 2>{});
            break;
        case 3:
            tiles(Constant<int, 3>{});
            break;
        case 4:
            tiles(Constant<int, 4>{});
            break;
        default:
            tiles(Constant<int, 0>{});
    }
    for (; x + lanes <= end; x += lanes) sum_tile<T, R, 1, 0, false>(of, outputs, false, x, 0);
    if (x < end) sum_tile<T, R, 1, 0, true>(of, outputs, false, x, end - x);
}

// The same for rows of which no column begins a line in all: results are gathered in the first-level cache, and go out
// from there in whole lines, a tile later, so that no load waits for a store.
template <class T, int R, class In, class Out>
void sum_gathered(const Sum<In>& of, Rows<Out> outputs, Index begin, Index end) {
    using W = Vec<T>;
    constexpr int V = sum_vectors<In, Out, R>;
    constexpr Index width = V * W::lanes, room = 8 * width, line = kLine / sizeof(Out);
    alignas(kLine) Out gathered[R][line + room];  // what is left of the columns before, and the next
    Out* starts[R];
    Index next[R];  // the first column that has not gone out
    for (int r = 0; r < R; ++r) {
        starts[r] = gathered[r] + line;
        next[r] = begin + before_aligned(kLine, 1, outputs.from(r), begin);
    }
    Index x = begin;
    for (; x + room <= end; x += room) {
        const Rows<Out> here{starts, x};
        const auto put_lines = [&](Index until) FASTGC_INLINED {
            for (int r = 0; r < R; ++r)
                for (; next[r] + line <= until; next[r] += line)
                    for (Index i = 0; i < line; i += W::lanes)
                        W::stream(Rows<Out>::at(outputs, r, next[r] + i), W::load(Rows<Out>::at(here, r, next[r] + i)));
        };
        for (Index t = 0; t < room; t += width) {
            sum_tile<T, R, V, 0, false>(of, here, false, x + t, 0);
            put_lines(x + t);
        }
        put_lines(x + room);
        for (int r = 0; r < R; ++r) {
            if (x == begin)
                copy(starts[r], Rows<Out>::at(outputs, r, begin), before_aligned(kLine, 1, outputs.from(r), begin));
            copy(gathered[r] + room, gathered[r], line);
        }
    }
    if (x > begin)
        for (int r = 0; r < R; ++r) copy(starts[r] + (next[r] - x), Rows<Out>::at(outputs, r, next[r]), x - next[r]);
    sum_columns<T, R>(of, outputs, false, x, end);
}

// Calls of(R) with a constant.
template <class Of>
void with_rows(Index count, const Of& of) {
    static_assert(kMaxBlockRows == 6 || kMaxBlockRows == 8, "one case a row count");
    switch (count) {
        case 1:
            return of(Constant<int, 1>{});
        case 2:
            return of(Constant<int, 2>{});
        case 3:
            return of(Constant<int, 3>{});
        case 4:
            return of(Constant<int, 4>{});
        case 5:
            return of(Constant<int, 5>{});
        case 6:
            return of(Constant<int, 6>{});
    }
    if constexpr (kMaxBlockRows == 8) {
        if (count == 7) return of(Constant<int, 7>{});
        return of(Constant<int, 8>{});
    }
}

template <class Out, class T, class Inputs>
void rows(Mode mode, const Blocks<T>& blocks, const Inputs& inputs, Rows<Out> outputs, bool past_caches, Index begin,
          Index end) {
    // Of more rows than one block has.
    constexpr int few = kTuning.few_ask ? 1 : 4;
    constexpr int fewest = Inputs::packs ? kMaxBlockRows : Inputs::asked ? few : Inputs::in_panel ? 3 : 1;
    with_rows(blocks.rows, [&](auto count) {
        if constexpr (count.value >= fewest)
            columns<Out, count.value>(mode, blocks, inputs, outputs, past_caches, begin, end);
    });
}

// Copies n columns of an input into its place in a panel of `count`.
template <class In, class T>
void pack(const In* from, T* to, Index count, Index n) {
    using W = Vec<T>;
    constexpr Index width = kPanelWidth<T>;
    Index x = 0;
    for (; x + width <= n; x += width, to += width * count) {
        __builtin_prefetch(from + x + n, 0, 2);  // the next panel is made of that
        for (int v = 0; v < kPanelVectors; ++v) W::store(to + v * W::lanes, W::load(from + x + v * W::lanes));
    }
    for (; x < n; x += W::lanes, to += W::lanes)
        W::store(to, n - x < W::lanes ? W::load_n(from + x, n - x) : W::load(from + x));
}

// n columns of a row made of one input: a tile's arithmetic with nothing else in the way, which takes half the time.
template <class In, class Out, Mode mode>
void multiple(Compute<In> coefficient, const In* from, Out* to, bool past_caches, Index n) {
    using W = Vec<Compute<In>>;
    constexpr int V = 4;
    constexpr Index width = V * W::lanes;
    constexpr bool paired = kPaired<In, Out, V>;
    const W c = W::set1(coefficient);
    const auto result = [&](W input, W chain) {
        return mode == Mode::accumulate ? W::fma(c, input, chain) : W::mul(c, input);
    };
    const auto wide = [&](Index x, W(&chains)[V]) {
        W input[V];
        load_all<paired>(from + x, input);
        if constexpr (mode == Mode::accumulate) load_all<paired>(to + x, chains);
        for (int v = 0; v < V; ++v) chains[v] = result(input[v], chains[v]);
    };
    const auto narrow = [&](Index x, Index end) {
        for (; x + W::lanes <= end; x += W::lanes) W::store(to + x, result(W::load(from + x), W::load(to + x)));
        const Index left = end - x;
        if (left > 0) W::store_n(to + x, result(W::load_n(from + x, left), W::load_n(to + x, left)), left);
    };
    Index x = 0;
    W chains[V] = {};
    if (mode == Mode::store && past_caches) {
        const Index head = -reinterpret_cast<std::uintptr_t>(to) % kLine / sizeof(Out);
        if (head < n) narrow(0, x = head);
        for (; x + width <= n; x += width) {
            wide(x, chains);
            stream_all<paired>(to + x, chains);
        }
    }
    for (; x + width <= n; x += width) {
        wide(x, chains);
        store_all<paired>(to + x, chains);
    }
    narrow(x, n);
}

// Columns of R rows those of which from `kept` on are syndromes: no memory has them. Returns the sum of their squares.
template <class T, int R, class In>
double judged_columns(Mode mode, Index kept, const Group<In> group, const T* coefficients, Rows<T> outputs,
                      bool past_caches, Index begin, Index end) {
    using W = Vec<T>;
    constexpr int V = even_vectors(R);
    constexpr Index width = V * W::lanes;
    W squares[V];
    for (W& some : squares) some = W::set1(0);
    const auto tile = [&](auto vectors, auto partial, Index x, Index n) {
        constexpr int count = vectors.value;
        W sum[R][count];
        chains<T, R, count, partial.value>(Mode::store, group.count, coefficients, Direct<In>{group.inputs, x}, outputs,
                                           x, n, sum);
        for (int r = 0; r < R; ++r) {
            if (r >= kept) {
                for (int v = 0; v < count; ++v) squares[v] = W::fma(sum[r][v], sum[r][v], squares[v]);
                continue;
            }
            T* const out = Rows<T>::at(outputs, r, x);
            if (mode == Mode::add) add_to<partial.value>(out, sum[r], n);
            if constexpr (partial.value)
                W::store_n(out, sum[r][0], n);
            else if (count == V && past_caches)
                stream_all<false>(out, sum[r]);
            else
                store_all<false>(out, sum[r]);
        }
    };
    constexpr Constant<bool, false> whole{};
    Index x = begin;
    for (; x + width <= end; x += width) tile(Constant<int, V>{}, whole, x, 0);
    for (; x + W::lanes <= end; x += W::lanes) tile(Constant<int, 1>{}, whole, x, 0);
    if (x < end) tile(Constant<int, 1>{}, Constant<bool, true>{}, x, end - x);
    T lanes[width];
    for (int v = 0; v < V; ++v) W::store(lanes + v * W::lanes, squares[v]);
    double total = 0;
    for (const T lane : lanes) total += static_cast<double>(lane);
    return total;
}

// A product with syndromes below its rows, the sum of whose squares it returns: one pass over the inputs as they lie.
template <class T, class In>
double judged_product(Mode mode, Index rows, const Group<In>& group, Rows<T> outputs, bool past_caches, Index begin,
                      Index end) {
    const Index total = rows + group.spares;
    double energy = 0;
    for (Index first = 0, size; first < total; first += size) {
        size = block_rows(kMaxBlockRows, total, first);
        const Index left = rows > first ? rows - first : 0, kept = left < size ? left : size;
        const bool past = past_caches && (kept == 0 || before_aligned(kLine, kept, outputs.from(first), begin) == 0);
        with_rows(size, [&](auto count) {
            energy += judged_columns<T, count.value>(mode, kept, group, group.coefficients + first * group.count,
                                                     outputs.from(rows - left), past, begin, end);
        });
    }
    return energy;
}

// A panel for its reader of that number: the first block has packed it, the others share in asking for the next.
template <class T, class In>
Packed<T> panel(const Scratch<T>& scratch, const In* const* inputs, Index count, Index number, Index rows, Index begin,
                Index end) {
    if (scratch.ahead == 0 || scratch.collides) return {scratch.panel, begin};
    const Index readers = (rows - 1) / kMaxBlockRows, share = (count + readers - 1) / readers;
    const Index from = number * share < count ? number * share : count;
    const Index asked = share < count - from ? share : count - from;
    constexpr Index element = sizeof(In);
    const Index ahead = (end - begin) * element + kLine - element;
    return {scratch.panel, begin, reinterpret_cast<const char* const*>(inputs + from), asked, element, ahead};
}

// A block's rows as two or three lower blocks, with coefficients in `place`. The first that goes through a tile waits
// for memory: the less arithmetic it has, the more inputs a core has on their way.
template <class T>
Blocks<T> apart(const Blocks<T>& block, T* place) {
    const Index parts = block.rows % 2 == 0 ? 2 : block.rows % 3 == 0 ? 3 : 1, rows = block.rows / parts;
    if (parts == 1) return block;
    for (Index r = 0; r < block.rows; ++r)
        for (Index q = 0; q < block.count; ++q)
            place[(r / rows * block.count + q) * rows + r % rows] = block.coefficients[q * block.rows + r];
    return {parts, rows, block.count, place, rows * block.count};
}

// All P rows of one group's product, over a chunk of the columns.
template <class In, class Out, class To>
void product(Mode mode, const Segment<In, Out>& segment, const Group<In>& group, const Scratch<Compute<In>>& scratch,
             Rows<To> outputs, Index begin, Index end) {
    using T = Compute<In>;
    if constexpr (in_place<In, Out>) {
        if (group.spares > 0) {
            scratch.energies[&group - segment.groups] +=
                judged_product<T>(mode, segment.rows, group, outputs, scratch.past_caches, begin, end);
            return;
        }
    }
    constexpr bool as_computed = sizeof(In) == sizeof(T) && sizeof(To) == sizeof(T);
    const bool together = as_computed && segment.rows >= kTuning.together && segment.rows <= kMaxBlockRows;
    if (group.count == 1 && mode != Mode::add && !together) {
        constexpr Index size = 8 * 1024 / sizeof(In);  // an input for all rows to find in the first-level cache
        const auto row = mode == Mode::store ? multiple<In, To, Mode::store> : multiple<In, To, Mode::accumulate>;
        for (Index x = begin, n; x < end; x += n) {
            n = end - x < size ? end - x : size;
            for (Index r = 0; r < segment.rows; ++r)  // packed coefficients on one input are in the order of the rows
                row(group.coefficients[r], group.inputs[0] + x, Rows<To>::at(outputs, r, x), scratch.past_caches, n);
        }
        return;
    }
    const bool packs = scratch.panel != nullptr && segment.rows > kFewRows;
    const auto block = [&](Index first) { return block_rows(kMaxBlockRows, segment.rows, first); };
    // Nearly always as many as there are at most, so that no other block needs code for it.
    const bool packs_on_the_way = packs && !scratch.collides && block(0) == kMaxBlockRows;
    const Index passes = (group.count + scratch.pass - 1) / scratch.pass;
    const Index pass = (group.count + passes - 1) / passes;
    for (Index q = 0; q < group.count; q += pass) {
        const Mode now = q > 0 ? Mode::accumulate : mode;
        const Index count = group.count - q < pass ? group.count - q : pass;
        const In* const* const inputs = group.inputs + q;
        if (packs && !packs_on_the_way)
            for (Index i = 0; i < count; ++i)
                pack(inputs[i] + begin, scratch.panel + i * kPanelWidth<T>, count, end - begin);
        for (Index first = 0, number = 0; first < segment.rows;) {
            Blocks<T> blocks{1, block(first), count, group.coefficients + first * group.count, 0};
            // All blocks go through a tile's columns before the next tile, so that memory is asked for steadily; in a
            // panel one block goes through all columns, so that its coefficients are read once.
            Index after = first + blocks.rows;
            for (; !packs && after < segment.rows && block(after) == blocks.rows; after += blocks.rows) ++blocks.number;
            blocks.stride = blocks.rows * group.count;
            blocks.coefficients += q * blocks.rows;
            const auto compute = [&](const auto& from) {
                rows(now, blocks, from, outputs.from(first), scratch.past_caches, begin, end);
            };
            const Direct<In> direct{inputs, 0};
            if (packs_on_the_way && first == 0)
                compute(Packing<In>{inputs, scratch.panel, begin});
            else if (packs)
                compute(panel(scratch, inputs, count, number++, segment.rows, begin, end));
            else if (first == 0 && count >= scratch.asks && (kTuning.few_ask || segment.rows > kFewRows)) {
                T place[kMaxBlockRows * kMostApart];
                const bool alone = segment.rows <= kMaxBlockRows && count <= kMostApart && scratch.ahead > 0;
                if (alone && (segment.rows > kFewRows || count >= kTuning.apart)) blocks = apart(blocks, place);
                compute(Asked<In>{direct, scratch.ahead});
            } else
                compute(direct);
            first = after;
        }
    }
}

template <class T>
void add(Index rows, Rows<T> outputs, T* const* terms, Index begin, Index end) {
    using W = Vec<T>;
    for (Index r = 0; r < rows; ++r) {
        T* out = Rows<T>::at(outputs, r, begin);
        const T* term = terms[r];
        const Index length = end - begin;
        Index x = 0;
        for (; x + W::lanes <= length; x += W::lanes) W::store(out + x, W::add(W::load(out + x), W::load(term + x)));
        const Index n = length - x;
        if (n > 0) W::store_n(out + x, W::add(W::load_n(out + x, n), W::load_n(term + x, n)), n);
    }
}

// Whether groups are added up in registers: where their inputs are not too many to be read side by side.
template <class In, class T>
bool in_registers(const Sum<In>& of, Index rows, const Scratch<T>& scratch) {
    if (of.last - of.first > kMostAtOnce || rows > kMostSummed) return false;
    Index inputs = 0;
    for (const Group<In>* group = of.first; group < of.last; ++group) inputs += group->count;
    return inputs <= scratch.summed;
}

// The sum of groups that are added up in registers.
template <class T, class In, class Out>
void sum_rows(const Sum<In>& of, Index rows, Rows<Out> outputs, bool past_caches, Index begin, Index end) {
    with_rows(rows, [&](auto count) {
        if constexpr (count.value <= kMostSummed) sum_columns<T, count.value>(of, outputs, past_caches, begin, end);
    });
}

// Groups [lo, hi) into `outputs`; `buffers` are the row pointers of the tree's free partial sums.
template <class In, class Out, class T>
void tree(const Segment<In, Out>& segment, const Scratch<T>& scratch, Index lo, Index hi, Rows<T> outputs,
          T* const* buffers, Index begin, Index end) {
    if (hi - lo == 1) return product(Mode::store, segment, segment.groups[lo], scratch, outputs, begin, end);
    const Sum<In> all{segment.groups + lo, segment.groups + hi};
    if (in_registers(all, segment.rows, scratch))
        return sum_rows<T>(all, segment.rows, outputs, scratch.past_caches, begin, end);
    const Index mid = (lo + hi) / 2;
    tree(segment, scratch, lo, mid, outputs, buffers, begin, end);
    // A product that one pass finishes is added where it is made; few have panels.
    if (hi - mid == 1 && segment.groups[mid].count <= scratch.pass && scratch.panel == nullptr)
        return product(Mode::add, segment, segment.groups[mid], scratch, outputs, begin, end);
    tree(segment, scratch, mid, hi, Rows<T>{buffers, begin}, buffers + segment.rows, begin, end);
    add(segment.rows, outputs, buffers, begin, end);
}

// The chunk [begin, end) into `outputs`.
template <class In, class Out, class To>
void chunk(const Segment<In, Out>& segment, const Scratch<Compute<In>>& scratch, Rows<To> outputs, Index begin,
           Index end) {
    const Sum<In> all{segment.groups, segment.groups + segment.group_count};
    if constexpr (kPassesCaches && std::is_same_v<In, To> && in_place<In, To>) {
        if (scratch.gathers && !segment.accumulate && before_aligned(kLine, segment.rows, outputs, begin) < 0)
            return with_rows(segment.rows, [&](auto count) {
                if constexpr (count.value > 1 && count.value <= kMostSummed)
                    sum_gathered<Compute<In>, count.value>(all, outputs, begin, end);
            });
    }
    if (segment.group_count == 1)
        return product(segment.accumulate ? Mode::accumulate : Mode::store, segment, segment.groups[0], scratch,
                       outputs, begin, end);
    if constexpr (in_place<In, To>)
        tree(segment, scratch, 0, segment.group_count, outputs, scratch.sums, begin, end);
    else  // the plan has rows in between for all others
        sum_rows<Compute<In>>(all, segment.rows, outputs, scratch.past_caches, begin, end);
}

template <class In, class Out>
void lincomb(const Segment<In, Out>& segment, const Scratch<Compute<In>>& scratch, Index begin, Index end) {
    // Chunks begin with a whole vector, those that pass the caches with a line, if all rows agree where that is: where
    // every other store crosses the end of a line, 4 x 1 takes a third more time.
    const Rows<Out> outputs{segment.outputs, 0};
    const bool aligns = (end - begin) * static_cast<Index>(sizeof(Out)) >= kAligned;
    Index head = -1;
    if (scratch.past_caches || aligns)
        head = before_aligned(scratch.past_caches ? kLine : sizeof(Vec<Compute<In>>), segment.rows, outputs, begin);
    for (Index x = begin, stop; x < end; x = stop) {
        const Index size = head > 0 ? head : scratch.columns;
        head = -1;
        stop = size < end - x ? x + size : end;
        if (scratch.outputs == nullptr) {
            chunk(segment, scratch, outputs, x, stop);
            continue;
        }
        Scratch<Compute<In>> here = scratch;
        here.past_caches = false;
        if (segment.accumulate)
            for (Index r = 0; r < segment.rows; ++r) copy(segment.outputs[r] + x, scratch.outputs[r], stop - x);
        chunk(segment, here, Rows<Compute<In>>{scratch.outputs, x}, x, stop);
        for (Index r = 0; r < segment.rows; ++r)
            multiple<Compute<In>, Out, Mode::store>(1, scratch.outputs[r], segment.outputs[r] + x, scratch.past_caches,
                                                    stop - x);
    }
    if (scratch.past_caches) fence();
}

// The largest of a few columns' root mean squares.
template <class In>
double some_size(const In* const* rows, Index count, Index begin, Index end) {
    using T = Compute<In>;
    using W = Vec<T>;
    T largest = 0;
    for (const Index x : {begin, begin + (end - begin) / 2}) {
        const Index n = end - x < W::lanes ? end - x : W::lanes;
        W sum = W::set1(0);
        for (Index r = 0; r < count; ++r) {
            const W some = n < W::lanes ? W::load_n(rows[r] + x, n) : W::load(rows[r] + x);
            sum = W::fma(some, some, sum);
        }
        T lanes[W::lanes];
        W::store(lanes, sum);
        for (const T lane : lanes) largest = largest < lane ? lane : largest;
    }
    return __builtin_sqrt(static_cast<double>(largest) / static_cast<double>(count));
}
