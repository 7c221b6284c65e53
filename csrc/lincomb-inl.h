// A small matrix times a few long rows, and the tree sum of several such products.
//
// Element (p, x) of a product is one chain in increasing q: it starts with the rounded product c[p,0] x_0 (or, when
// accumulating, with fma(c[p,0], x_0, out)) and goes on with fma(c[p,q], x_q, chain). Nothing else may touch the
// value: the bits then depend neither on blocking, tails, threads nor alignment, and Q may be split into passes.
// Chains and sums are of type Compute<In>; what goes out in another type is rounded when all is done.

constexpr Index kLine = 64;  // bytes that caches and memory move together

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

enum class Reach {
    whole,       // V vectors
    partial,     // the first n columns of one
    past_caches  // V vectors, stored past the caches; the outputs are aligned to them
};

// R rows by V vectors at column x: the inputs are read once for all R rows, the outputs written once.
template <class In, class Out, int R, int V, Mode mode, Reach reach>
FASTGC_INLINE void tile(Index count, const Compute<In>* coefficients, Rows<const In> inputs, Rows<Out> outputs, Index x,
                        Index n) {
    using W = Vec<Compute<In>>;
    constexpr bool partial = reach == Reach::partial;
    W sum[R][V];
    Index q = 0;
    if constexpr (mode == Mode::accumulate) {
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; ++v) {
                const Out* p = Rows<Out>::at(outputs, r, x) + v * W::lanes;
                sum[r][v] = partial ? W::load_n(p, n) : W::load(p);
            }
    } else {
        for (int v = 0; v < V; ++v) {
            const In* p = Rows<const In>::at(inputs, 0, x) + v * W::lanes;
            const W input = partial ? W::load_n(p, n) : W::load(p);
            for (int r = 0; r < R; ++r) sum[r][v] = W::mul(W::set1(coefficients[r]), input);
        }
        q = 1;
    }
    for (; q < count; ++q) {
        W input[V];
        for (int v = 0; v < V; ++v) {
            const In* p = Rows<const In>::at(inputs, q, x) + v * W::lanes;
            input[v] = partial ? W::load_n(p, n) : W::load(p);
        }
        for (int r = 0; r < R; ++r) {
            const W c = W::set1(coefficients[q * R + r]);
            for (int v = 0; v < V; ++v) sum[r][v] = W::fma(c, input[v], sum[r][v]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
            Out* p = Rows<Out>::at(outputs, r, x) + v * W::lanes;
            if constexpr (mode == Mode::add) sum[r][v] = W::add(partial ? W::load_n(p, n) : W::load(p), sum[r][v]);
            if constexpr (reach == Reach::past_caches)
                W::stream(p, sum[r][v]);
            else if constexpr (partial)
                W::store_n(p, sum[r][v], n);
            else
                W::store(p, sum[r][v]);
        }
}

// What a block fetches into the second-level cache while it computes column x: column x + ahead of its share of the
// inputs, and of its outputs, a line or two a tile. More at once would fill the queue that the loads need.
struct Fetch {
    struct Streams {
        const void* const* start;
        Index count, size;  // of an element, in bytes
    };
    Streams inputs, outputs;
    Index ahead, end;
    FASTGC_INLINE void run(const Fetch& fetch, Index x, Index width) {
        x += fetch.ahead;
        if (x + width > fetch.end) return;
        for (const Streams& streams : {fetch.inputs, fetch.outputs})
            for (Index i = 0; i < streams.count; ++i)
                for (Index byte = x * streams.size; byte < (x + width) * streams.size; byte += kLine)
                    __builtin_prefetch(static_cast<const char*>(streams.start[i]) + byte, 0, 2);
    }
};

// Columns before the first that starts a line in all R rows; -1 where the rows disagree.
template <class T, int R>
Index before_line(Rows<T> rows, Index x) {
    const auto offset = [&](Index r) { return -reinterpret_cast<std::uintptr_t>(Rows<T>::at(rows, r, x)) % kLine; };
    for (Index r = 1; r < R; ++r)
        if (offset(r) != offset(0)) return -1;
    return static_cast<Index>(offset(0) / sizeof(T));
}

template <class In, class Out, int R, Mode mode>
void columns(Index count, const Compute<In>* coefficients, Rows<const In> inputs, Rows<Out> outputs, const Fetch& fetch,
             bool past_caches, Index begin, Index end) {
    using W = Vec<Compute<In>>;
    // R V sums, V inputs and a coefficient fill the registers. At most 4: beyond that a tile gains nothing where memory
    // is the limit, and short rows become all remainder. A power of two, so that it divides a strip.
    constexpr int fit = (kRegisters - 1) / (R + 1);
    constexpr int V = fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
    constexpr Index width = V * W::lanes;
    const auto narrow = [&](Index x, Index stop) {
        for (; x + W::lanes <= stop; x += W::lanes)
            tile<In, Out, R, 1, mode, Reach::whole>(count, coefficients, inputs, outputs, x, 0);
        if (x < stop) tile<In, Out, R, 1, mode, Reach::partial>(count, coefficients, inputs, outputs, x, stop - x);
    };
    Index x = begin;
    // Only whole lines pass the caches: a line stored in part must be read first, and a tile must fill it at once (8
    // rows of half lines: 6 GB/s instead of 24).
    if constexpr (mode == Mode::store && width * sizeof(Out) % kLine == 0) {
        const Index head = past_caches ? before_line<Out, R>(outputs, x) : -1;
        if (head >= 0 && x + head < end) {
            narrow(x, x + head);
            for (x += head; x + width <= end; x += width)
                tile<In, Out, R, V, mode, Reach::past_caches>(count, coefficients, inputs, outputs, x, 0);
        }
    }
    for (; x + width <= end; x += width) {
        Fetch::run(fetch, x, width);
        tile<In, Out, R, V, mode, Reach::whole>(count, coefficients, inputs, outputs, x, 0);
    }
    narrow(x, end);
}

template <class In, class Out, Mode mode>
void block(Index rows, Index count, const Compute<In>* coefficients, Rows<const In> inputs, Rows<Out> outputs,
           const Fetch& fetch, bool past_caches, Index begin, Index end) {
    static_assert(kMaxBlockRows == 8, "one case a row count");
    switch (rows) {
        case 1:
            return columns<In, Out, 1, mode>(count, coefficients, inputs, outputs, fetch, past_caches, begin, end);
        case 2:
            return columns<In, Out, 2, mode>(count, coefficients, inputs, outputs, fetch, past_caches, begin, end);
        case 3:
            return columns<In, Out, 3, mode>(count, coefficients, inputs, outputs, fetch, past_caches, begin, end);
        case 4:
            return columns<In, Out, 4, mode>(count, coefficients, inputs, outputs, fetch, past_caches, begin, end);
        case 5:
            return columns<In, Out, 5, mode>(count, coefficients, inputs, outputs, fetch, past_caches, begin, end);
        case 6:
            return columns<In, Out, 6, mode>(count, coefficients, inputs, outputs, fetch, past_caches, begin, end);
        case 7:
            return columns<In, Out, 7, mode>(count, coefficients, inputs, outputs, fetch, past_caches, begin, end);
        case 8:
            return columns<In, Out, 8, mode>(count, coefficients, inputs, outputs, fetch, past_caches, begin, end);
    }
}

template <class In, class Out>
void block(Mode mode, Index rows, Index count, const Compute<In>* coefficients, Rows<const In> inputs,
           Rows<Out> outputs, const Fetch& fetch, bool past_caches, Index begin, Index end) {
    switch (mode) {
        case Mode::store:
            return block<In, Out, Mode::store>(rows, count, coefficients, inputs, outputs, fetch, past_caches, begin,
                                               end);
        case Mode::accumulate:
            return block<In, Out, Mode::accumulate>(rows, count, coefficients, inputs, outputs, fetch, past_caches,
                                                    begin, end);
        case Mode::add:
            if constexpr (in_place<In, Out>)
                return block<In, Out, Mode::add>(rows, count, coefficients, inputs, outputs, fetch, past_caches, begin,
                                                 end);
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

// All P rows of one group's product, over a chunk of the columns that end at `last`.
template <class In, class Out, class To>
void product(Mode mode, const Segment<In, Out>& segment, const Group<In>& group, const Scratch<Compute<In>>& scratch,
             Rows<To> outputs, Index begin, Index end, Index last) {
    using T = Compute<In>;
    const Index step = block_rows(segment.rows);
    const Index passes = (group.count + scratch.pass - 1) / scratch.pass;
    const Index pass = (group.count + passes - 1) / passes;
    for (Index q = 0; q < group.count; q += pass) {
        const Mode now = q > 0 ? Mode::accumulate : mode;
        const Index count = group.count - q < pass ? group.count - q : pass;
        const Rows<const In> inputs{group.inputs + q, 0};
        if (scratch.inputs != nullptr)
            for (Index i = 0; i < count; ++i)
                copy(Rows<const In>::at(inputs, i, begin), scratch.inputs[i], end - begin);
        // With fewer inputs the processor's own prefetchers keep up; fetching outputs pays for long chains only.
        const bool fetch_inputs = scratch.ahead > 0 && count >= 16;
        const bool fetch_outputs =
            scratch.ahead > 0 && count >= 32 && q == 0 && scratch.outputs == nullptr && segment.group_count == 1;
        for (Index first = 0; first < segment.rows; first += step) {
            const Index rows = first + step < segment.rows ? step : segment.rows - first;
            const Index share = count * first / segment.rows, share_end = count * (first + rows) / segment.rows;
            const Fetch fetch{{reinterpret_cast<const void* const*>(inputs.start + share),
                               fetch_inputs ? share_end - share : 0, static_cast<Index>(sizeof(In))},
                              {reinterpret_cast<const void* const*>(segment.outputs + first), fetch_outputs ? rows : 0,
                               static_cast<Index>(sizeof(Out))},
                              scratch.ahead,
                              last};
            const T* coefficients = group.coefficients + first * group.count + q * rows;
            if (scratch.inputs != nullptr)
                block<T, To>(now, rows, count, coefficients, Rows<const T>{scratch.inputs, begin}, outputs.from(first),
                             fetch, scratch.past_caches, begin, end);
            else
                block<In, To>(now, rows, count, coefficients, inputs, outputs.from(first), fetch, scratch.past_caches,
                              begin, end);
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

// Groups [lo, hi) into `outputs`; `buffers` are the row pointers of the tree's free partial sums.
template <class In, class Out, class T>
void tree(const Segment<In, Out>& segment, const Scratch<T>& scratch, Index lo, Index hi, Rows<T> outputs,
          T* const* buffers, Index begin, Index end, Index last) {
    if (hi - lo == 1) return product(Mode::store, segment, segment.groups[lo], scratch, outputs, begin, end, last);
    const Index mid = (lo + hi) / 2;
    tree(segment, scratch, lo, mid, outputs, buffers, begin, end, last);
    // A product that one pass finishes is added where it is made.
    if (hi - mid == 1 && segment.groups[mid].count <= scratch.pass)
        return product(Mode::add, segment, segment.groups[mid], scratch, outputs, begin, end, last);
    tree(segment, scratch, mid, hi, Rows<T>{buffers, begin}, buffers + segment.rows, begin, end, last);
    add(segment.rows, outputs, buffers, begin, end);
}

// The chunk [begin, end) into `outputs`.
template <class In, class Out, class To>
void chunk(const Segment<In, Out>& segment, const Scratch<Compute<In>>& scratch, Rows<To> outputs, Index begin,
           Index end, Index last) {
    if (segment.group_count == 1)
        return product(segment.accumulate ? Mode::accumulate : Mode::store, segment, segment.groups[0], scratch,
                       outputs, begin, end, last);
    if constexpr (in_place<In, To>)
        tree(segment, scratch, 0, segment.group_count, outputs, scratch.sums, begin, end, last);
}

template <class In, class Out>
void lincomb(const Segment<In, Out>& segment, const Scratch<Compute<In>>& scratch, Index begin, Index end) {
    for (Index x = begin; x < end; x += scratch.columns) {
        const Index stop = x + scratch.columns < end ? x + scratch.columns : end;
        if (scratch.outputs == nullptr) {
            chunk(segment, scratch, Rows<Out>{segment.outputs, 0}, x, stop, end);
        } else {
            if (segment.accumulate)
                for (Index r = 0; r < segment.rows; ++r) copy(segment.outputs[r] + x, scratch.outputs[r], stop - x);
            chunk(segment, scratch, Rows<Compute<In>>{scratch.outputs, x}, x, stop, end);
            for (Index r = 0; r < segment.rows; ++r) copy(scratch.outputs[r], segment.outputs[r] + x, stop - x);
        }
    }
    if (scratch.past_caches) fence();
}
