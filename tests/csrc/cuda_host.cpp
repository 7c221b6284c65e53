// Runs CUDA kernels on the host: every thread of a block is a fiber, a barrier goes on with the next one.
//
// Between barriers threads run one after the other, in either order, so that what depends on the order shows as other
// bits. Shared memory is NaN when a block begins. An access outside the memory that a launch was given, one that is not
// aligned to its size, and a barrier that not all threads reach are errors.
#include "cuda_host.h"

#include <ucontext.h>

#include <algorithm>
#include <string>
#include <vector>

Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr std::size_t kStack = 64 * 1024;
constexpr unsigned kWarp = 32;

struct Range {
    std::uintptr_t begin, end;
    bool write;
};

enum class State { ready, at_warp, at_block, done };

struct Block {
    std::vector<ucontext_t> fibers;
    std::vector<State> states;
    std::vector<unsigned char> stacks, memory;
    std::vector<long long> shown;
    ucontext_t scheduler;
    void (*entry)(const void*) = nullptr;
    const void* argument = nullptr;
    unsigned running = 0;
    bool with_barriers = false;
    std::vector<Range> ranges;
    std::string error;
} block;

void note(const std::string& error) {
    if (block.error.empty()) block.error = error;
}

void fiber() {
    block.entry(block.argument);
    block.states[block.running] = State::done;
    swapcontext(&block.fibers[block.running], &block.scheduler);
}

// Lets everybody go on who has all of the others beside.
void release(unsigned threads) {
    const auto all = [&](unsigned begin, unsigned end, State state) {
        return std::all_of(block.states.begin() + begin, block.states.begin() + end,
                           [=](State s) { return s == state; });
    };
    const auto go = [&](unsigned begin, unsigned end) {
        std::fill(block.states.begin() + begin, block.states.begin() + end, State::ready);
    };
    for (unsigned warp = 0; warp < threads; warp += kWarp)
        if (all(warp, std::min(warp + kWarp, threads), State::at_warp)) go(warp, std::min(warp + kWarp, threads));
    if (all(0, threads, State::at_block)) go(0, threads);
}

void run_fibers(unsigned threads, bool reverse) {
    block.fibers.resize(threads);
    block.stacks.resize(threads * kStack);
    block.states.assign(threads, State::ready);
    block.shown.assign(threads, 0);
    for (unsigned t = 0; t < threads; ++t) {
        getcontext(&block.fibers[t]);
        block.fibers[t].uc_stack.ss_sp = block.stacks.data() + t * kStack;
        block.fibers[t].uc_stack.ss_size = kStack;
        block.fibers[t].uc_link = nullptr;
        makecontext(&block.fibers[t], fiber, 0);
    }
    for (;;) {
        bool ran = false;
        for (unsigned i = 0; i < threads; ++i) {
            const unsigned t = reverse ? threads - 1 - i : i;
            if (block.states[t] != State::ready) continue;
            ran = true;
            block.running = t;
            threadIdx = {t, 0, 0};
            swapcontext(&block.scheduler, &block.fibers[t]);
        }
        if (std::all_of(block.states.begin(), block.states.end(), [](State s) { return s == State::done; })) return;
        if (!ran) return note("a barrier that not all threads reach");
        release(threads);
    }
}

}  // namespace

namespace host {

bool check(const void* at, std::size_t size, bool write) {
    static std::size_t last = 0;  // neighbours tend to be in one range
    const auto begin = reinterpret_cast<std::uintptr_t>(at);
    if (begin % size != 0) note("an access that is not aligned to its " + std::to_string(size) + " bytes");
    const auto inside = [&](const Range& range) {
        return range.begin <= begin && begin + size <= range.end && (range.write || !write);
    };
    if (last < block.ranges.size() && inside(block.ranges[last])) return true;
    const auto found = std::find_if(block.ranges.begin(), block.ranges.end(), inside);
    last = static_cast<std::size_t>(found - block.ranges.begin());
    if (found != block.ranges.end()) return true;
    note(write ? "a write to memory that is not the launch's" : "a read of memory that is not the launch's");
    return false;
}

void barrier(bool whole_block) {
    if (!block.with_barriers) return note("a barrier in a kernel that is said to have none");
    block.states[block.running] = whole_block ? State::at_block : State::at_warp;
    swapcontext(&block.fibers[block.running], &block.scheduler);
}

long long exchange(long long mine, unsigned distance) {
    const unsigned thread = block.running;
    block.shown[thread] = mine;
    barrier(false);
    const long long other = block.shown[thread ^ distance];
    barrier(false);
    return other;
}

unsigned char* shared() { return block.memory.data(); }

}  // namespace host

// Launches a kernel; the first error, or null. `ranges` are begin, end, may be written.
extern "C" __attribute__((visibility("default"))) const char* launch(void (*entry)(const void*), const void* argument,
                                                                     unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                                                     unsigned threads, unsigned shared_bytes,
                                                                     int barriers, int reverse,
                                                                     const std::uint64_t (*ranges)[3],
                                                                     unsigned range_count) {
    block.error.clear();
    block.entry = entry;
    block.argument = argument;
    block.with_barriers = barriers != 0;
    block.ranges.clear();
    for (unsigned i = 0; i < range_count; ++i) block.ranges.push_back({ranges[i][0], ranges[i][1], ranges[i][2] != 0});
    gridDim = {grid_x, grid_y, grid_z};
    blockDim = {threads, 1, 1};
    for (unsigned i = 0; i < grid_x * grid_y * grid_z; ++i) {
        blockIdx = {i % grid_x, i / grid_x % grid_y, i / grid_x / grid_y};
        block.memory.assign(shared_bytes, 0xff);
        if (block.with_barriers) {
            run_fibers(threads, reverse != 0);
        } else {
            for (unsigned t = 0; t < threads; ++t) {
                threadIdx = {reverse != 0 ? threads - 1 - t : t, 0, 0};
                entry(argument);
            }
        }
        if (!block.error.empty()) return block.error.c_str();
    }
    return nullptr;
}
