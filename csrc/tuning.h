// How `lincomb` is cut to suit caches and memory: what was measured to be best on one processor that has an instruction
// set, and is taken for all that have it. No bit of a result depends on it. core.cpp says what each choice is about.
#pragma once

#include <cstddef>

namespace fastgc {

using Index = std::ptrdiff_t;

constexpr int kNever = 1 << 30;
constexpr Index kKiB = 1024, kMiB = 1024 * kKiB;

// Sizes are in bytes.
struct Tuning {
    int block_rows;                 // of a register block, at most
    Index together;                 // from so many rows on one block makes them of a single input
    Index own_cache;                // what fits the second-level cache of a core
    int crowd, crowd_memory;        // more rows than that in a set of the first-level cache are packed; from memory
    Index memory_panel;             // of the packed columns of inputs from memory
    Index past, past_many;          // more than this passes the caches; the same of more than 6 rows
    Index streams;                  // inputs that up to 6 rows read side by side, of rows of more than `close` bytes;
    Index close;                    // 64 of shorter ones
    bool few_ask;                   // whether up to 6 rows ask for columns before they use them
    Index many_ask_memory;          // more rows do from so many inputs on, if these come from memory
    Index in_flight;                // that memory is asked for beyond the next tile, in all inputs
    Index least_ahead, most_ahead;  // the same in each
    int memory_vectors;             // of a row of a tile of several rows whose columns come from memory
    Index gathered;                 // of up to so many inputs, rows that begin no line together go out line by line
    Index apart;                    // from so many inputs from memory on a block of up to 6 rows is cut, of more always
};

// AVX2 at 32 KiB, 512 KiB and 32 MiB of cache.
constexpr Tuning zen3() {
    Tuning best{};
    best.block_rows = 6;  // with two vectors each 12 sums, which keep both FMA units busy with 16 registers
    best.together = kNever;
    best.own_cache = 512 * kKiB;
    best.crowd = best.crowd_memory = 12;  // 8 lines a set
    best.memory_panel = 64 * kKiB;
    best.past = 16 * kMiB;
    best.past_many = 9830 * kKiB;
    best.streams = 8;
    best.close = 0;
    best.few_ask = false;
    best.many_ask_memory = 16;
    best.in_flight = best.least_ahead = best.most_ahead = 512;
    best.memory_vectors = 4;
    best.gathered = kNever;
    best.apart = kNever;
    return best;
}

// AVX-512 at 48 KiB, 1 MiB and 32 MiB.
constexpr Tuning zen5() {
    Tuning best{};
    best.block_rows = 8;  // with three vectors 24 sums of 32 registers
    best.together = 4;
    best.own_cache = 1 * kMiB;
    best.crowd = 50;  // 12 lines a set, and a second-level cache that takes what they lose
    best.crowd_memory = kNever;
    best.memory_panel = 256 * kKiB;
    best.past = best.past_many = 20 * kMiB + 512 * kKiB;
    best.streams = 14;
    best.close = 8 * kMiB;
    best.few_ask = true;
    best.many_ask_memory = 2;
    best.in_flight = 8 * kKiB;
    best.least_ahead = 512;
    best.most_ahead = 1024;
    best.memory_vectors = 2;
    best.gathered = 6;
    best.apart = 24;
    return best;
}

}  // namespace fastgc
