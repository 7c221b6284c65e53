// The threads that calls share, of csrc/threads.h: every share is computed once whoever calls, how many at once, and
// from where; nobody waits for a thread that has not begun. Built and run by tests/csrc/run_sanitized.sh under
// AddressSanitizer and under ThreadSanitizer.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "threads.h"

#ifndef _WIN32
# include <sys/wait.h>
# include <unistd.h>
#endif

namespace {

using fastgc::parallel;
using fastgc::thread_count;

constexpr double kGrain = 256 * 1024;
constexpr double kLarge = 1e12;
constexpr int kShares = 9;  // and so many threads, whatever the CPUs

std::atomic<int> failures{0};
std::atomic<long> cases{0};

void expect(bool right, const char* what) {
    ++cases;
    if (!right && ++failures <= 10) std::printf("FAILED: %s\n", what);
}

// A loop whose shares write what no other share writes, without atomics: ThreadSanitizer would see who is not done when
// the call returns. Shares may call loops of their own.
void loop(int shares, int depth) {
    std::vector<int> written(static_cast<std::size_t>(shares), 0);
    parallel(shares, nullptr, [&](int t) {
        written[static_cast<std::size_t>(t)] += t + 1;
        if (depth > 0 && t % 2 == 0) loop(2, depth - 1);
    });
    bool right = true;
    for (int t = 0; t < shares; ++t) right &= written[static_cast<std::size_t>(t)] == t + 1;
    expect(right, "every share is computed once");
}

// Loops in a row, and after pauses in which threads stop looking for work, or are about to.
void loops(unsigned seed, int count) {
    std::mt19937 random(seed);
    for (int i = 0; i < count; ++i) {
        loop(1 + static_cast<int>(random() % kShares), i % 50 == 0 ? 2 : 0);
        if (random() % 40 == 0) std::this_thread::sleep_for(std::chrono::microseconds(150 + random() % 150));
    }
}

// Callers at the same time, more than have others' help at once.
void callers(int count, int each) {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) threads.emplace_back(loops, static_cast<unsigned>(i), each);
    for (std::thread& thread : threads) thread.join();
}

// A caller is done although every other thread is busy, and stays busy until it is done; else the alarm goes off.
void nobody_waits_for_who_has_not_begun() {
    std::atomic<int> begun{0};
    std::atomic<bool> done{false};
    std::thread other([&] {
        parallel(kShares, nullptr, [&](int) {
            ++begun;
            while (!done) std::this_thread::yield();
        });
    });
    while (begun < kShares) std::this_thread::yield();  // they have come, each to one share, since none of them ends
    loop(kShares, 0);
    done = true;
    other.join();
}

void counts(int size) {
    expect(thread_count(kLarge, kGrain, 0) == size, "a large call uses all threads");
    expect(thread_count(kLarge, kGrain, 1) == 1, "but no more than the limit");
    expect(thread_count(kLarge, kGrain, 2) == std::min(size, 2), "but no more than the limit");
    expect(thread_count(kLarge, kGrain, 1000) == size, "a limit does not add any");
    expect(thread_count(2 * kGrain - 1, kGrain, 0) == 1, "a small one is not shared");
    expect(thread_count(kLarge, kLarge / 2, 0) == std::min(size, 2), "every thread gets its grain");
}

#ifndef _WIN32
void child_of_fork() {
    const pid_t child = fork();
    if (child == 0) {
        bool right = thread_count(kLarge, kGrain, 0) == 1;
        int sum = 0;
        parallel(1, nullptr, [&](int t) { sum += t + 1; });
        right &= sum == 1;
        _exit(right ? 0 : 1);
    }
    int status = 1;
    expect(waitpid(child, &status, 0) == child && status == 0, "a child of fork() works alone");
}
#endif

}  // namespace

int main() {
#ifndef _WIN32
    alarm(300);  // what should end and does not
#endif
    // Before any threads have been made a call of medium size goes alone, and then has help: all calls in a row do.
    expect(thread_count(2 * kGrain, kGrain, 0) == 1, "a call of medium size wakes nobody");
    const int size = fastgc::own_threads().size(kLarge);
    if (size > 1) {
        int most = 1;
        for (int i = 0; i < 1000; ++i) most = std::max(most, thread_count(2 * kGrain, kGrain, 0));
        expect(most == 2, "unless it is one of many");
        loop(size, 0);
    }
    counts(size);
    loops(1, 20000);
    callers(20, 1000);
    for (int i = 0; i < 50; ++i) nobody_waits_for_who_has_not_begun();
#ifndef _WIN32
    child_of_fork();
#endif
    loops(2, 500);
    std::printf("%ld checks of %d threads, %d failures\n", cases.load(), size, failures.load());
    return failures == 0 ? 0 : 1;
}
