// A small matrix times a few long rows, and the tree sum of several such products.
//
// Element (p, x) of a product is one chain in increasing q: it starts with the rounded product c[p,0] x_0 (or, when
// accumulating, with fma(c[p,0], x_0, out)) and goes on with fma(c[p,q], x_q, chain). Nothing else may touch the
// value: the bits then depend neither on blocking, tails, threads nor alignment, and Q may be split into passes.

enum class Mode {
    store,       // out = chain
    accumulate,  // the chain starts from out
    add          // out = out + chain, the plain sum of two finished results
};

// R rows by V vectors at column x: the inputs are read once for all R rows, the outputs written once.
// Output columns are counted from `shift`, so that a chunk can go into a buffer as well as in place.
template <class T, int R, int V, Mode mode, bool partial>
FASTGC_INLINE void tile(const Group<T>& group, const T* coefficients, T* const* outputs, Index shift, Index x,
                        Index n) {
    using W = Vec<T>;
    W sum[R][V];
    Index q = 0;
    if constexpr (mode == Mode::accumulate) {
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; ++v) {
                const T* p = outputs[r] + (x - shift) + v * W::lanes;
                sum[r][v] = partial ? W::load_n(p, n) : W::load(p);
            }
    } else {
        for (int v = 0; v < V; ++v) {
            const T* p = group.inputs[0] + x + v * W::lanes;
            const W input = partial ? W::load_n(p, n) : W::load(p);
            for (int r = 0; r < R; ++r) sum[r][v] = W::mul(W::set1(coefficients[r]), input);
        }
        q = 1;
    }
    for (; q < group.count; ++q) {
        W input[V];
        for (int v = 0; v < V; ++v) {
            const T* p = group.inputs[q] + x + v * W::lanes;
            input[v] = partial ? W::load_n(p, n) : W::load(p);
        }
        for (int r = 0; r < R; ++r) {
            const W c = W::set1(coefficients[q * R + r]);
            for (int v = 0; v < V; ++v) sum[r][v] = W::fma(c, input[v], sum[r][v]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
            T* p = outputs[r] + (x - shift) + v * W::lanes;
            if constexpr (mode == Mode::add) sum[r][v] = W::add(partial ? W::load_n(p, n) : W::load(p), sum[r][v]);
            if constexpr (partial)
                W::store_n(p, sum[r][v], n);
            else
                W::store(p, sum[r][v]);
        }
}

template <class T, int R, Mode mode>
void columns(const Group<T>& group, const T* coefficients, T* const* outputs, Index shift, Index begin, Index end) {
    constexpr Index lanes = Vec<T>::lanes;
    // At most 4: beyond that a tile gains nothing where memory is the limit, and short rows become all remainder.
    constexpr int V = kAccumulators / R < 1 ? 1 : kAccumulators / R > 4 ? 4 : kAccumulators / R;
    Index x = begin;
    for (; x + V * lanes <= end; x += V * lanes) tile<T, R, V, mode, false>(group, coefficients, outputs, shift, x, 0);
    for (; x + lanes <= end; x += lanes) tile<T, R, 1, mode, false>(group, coefficients, outputs, shift, x, 0);
    if (x < end) tile<T, R, 1, mode, true>(group, coefficients, outputs, shift, x, end - x);
}

template <class T, Mode mode>
void block(Index rows, const Group<T>& group, const T* coefficients, T* const* outputs, Index shift, Index begin,
           Index end) {
    static_assert(kMaxBlockRows == 8, "one case a row count");
    switch (rows) {
        case 1:
            return columns<T, 1, mode>(group, coefficients, outputs, shift, begin, end);
        case 2:
            return columns<T, 2, mode>(group, coefficients, outputs, shift, begin, end);
        case 3:
            return columns<T, 3, mode>(group, coefficients, outputs, shift, begin, end);
        case 4:
            return columns<T, 4, mode>(group, coefficients, outputs, shift, begin, end);
        case 5:
            return columns<T, 5, mode>(group, coefficients, outputs, shift, begin, end);
        case 6:
            return columns<T, 6, mode>(group, coefficients, outputs, shift, begin, end);
        case 7:
            return columns<T, 7, mode>(group, coefficients, outputs, shift, begin, end);
        case 8:
            return columns<T, 8, mode>(group, coefficients, outputs, shift, begin, end);
    }
}

// All P rows of one group's product. Where P needs several blocks, they take turns on a stretch of columns whose
// inputs stay in the second-level cache, so that memory is still read once.
template <class T, Mode mode>
void product(Index rows, const Group<T>& group, T* const* outputs, Index shift, Index begin, Index end) {
    const Index step = block_rows(rows);
    if (step == rows) return block<T, mode>(rows, group, group.coefficients, outputs, shift, begin, end);
    constexpr Index kBytes = 256 * 1024;  // a fraction of the L2 of any server core since 2017 (1 MiB and more)
    const Index fit = kBytes / (group.count * static_cast<Index>(sizeof(T)));
    const Index stretch = fit < 256 ? 256 : fit / 64 * 64;
    for (Index x = begin; x < end; x += stretch) {
        const Index stop = x + stretch < end ? x + stretch : end;
        for (Index first = 0; first < rows; first += step) {
            const Index count = first + step < rows ? step : rows - first;
            block<T, mode>(count, group, group.coefficients + first * group.count, outputs + first, shift, x, stop);
        }
    }
}

template <class T>
void add(Index rows, T* const* outputs, Index shift, T* const* terms, Index begin, Index end) {
    using W = Vec<T>;
    for (Index r = 0; r < rows; ++r) {
        T* out = outputs[r] + (begin - shift);
        const T* term = terms[r];
        const Index length = end - begin;
        Index x = 0;
        for (; x + W::lanes <= length; x += W::lanes) W::store(out + x, W::add(W::load(out + x), W::load(term + x)));
        const Index n = length - x;
        if (n > 0) W::store_n(out + x, W::add(W::load_n(out + x, n), W::load_n(term + x, n)), n);
    }
}

// Groups [lo, hi) into `outputs`; `buffers` are the row pointers of the tree's free partial sums.
template <class T>
void tree(const Segment<T>& segment, Index lo, Index hi, T* const* outputs, Index shift, T* const* buffers, Index begin,
          Index end) {
    if (hi - lo == 1) return product<T, Mode::store>(segment.rows, segment.groups[lo], outputs, shift, begin, end);
    const Index mid = (lo + hi) / 2;
    tree(segment, lo, mid, outputs, shift, buffers, begin, end);
    if (hi - mid == 1) return product<T, Mode::add>(segment.rows, segment.groups[mid], outputs, shift, begin, end);
    tree(segment, mid, hi, buffers, begin, buffers + segment.rows, begin, end);
    add(segment.rows, outputs, shift, buffers, begin, end);
}

template <class T>
void lincomb(const Segment<T>& segment, Scratch<T> scratch, Index begin, Index end) {
    if (segment.group_count == 1) {
        if (segment.accumulate)
            product<T, Mode::accumulate>(segment.rows, segment.groups[0], segment.outputs, 0, begin, end);
        else
            product<T, Mode::store>(segment.rows, segment.groups[0], segment.outputs, 0, begin, end);
        return;
    }
    for (Index x = begin; x < end; x += scratch.columns) {
        const Index stop = x + scratch.columns < end ? x + scratch.columns : end;
        tree(segment, 0, segment.group_count, segment.outputs, 0, scratch.rows, x, stop);
    }
}
