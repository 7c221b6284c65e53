#include "threads.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#ifdef _WIN32
# ifndef NOMINMAX
#  define NOMINMAX
# endif
# include <windows.h>
#else
# include <dlfcn.h>
# include <pthread.h>
#endif
#ifdef __linux__
# include <sched.h>
#endif

namespace fastgc {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostThreads = 256;
constexpr int kCallers = 16;  // that have others' help at the same time

// How long a thread that has nothing to do looks for more before it sleeps, and a caller who is done whether others
// are: calls that follow each other find all awake, and whoever else wants a CPU has it soon.
constexpr std::chrono::microseconds kAwake{200};
// Calls that move less do without threads that sleep, unless so many in a row have come before they would have fallen
// asleep. To wake one costs the caller 5 us, and it comes after 10; on a virtual machine whose idle CPUs are halted it
// costs 15 and takes 65.
constexpr double kWorthWaking = 2 * 1024 * 1024;
constexpr int kRow = 8;

std::atomic<bool> forked{false};

// Registered when the library is loaded, so that no thread can come before it. Windows has no fork().
#ifdef _WIN32
const int registered = 0;
#else
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#endif

// The first of OMP_NUM_THREADS's numbers; what OpenMP would not take counts for nothing.
int asked() {
    const char* const text = std::getenv("OMP_NUM_THREADS");
    char* end = nullptr;
    const long count = text != nullptr ? std::strtol(text, &end, 10) : 0;
    while (end != nullptr && std::isspace(static_cast<unsigned char>(*end))) ++end;
    if (count < 1 || (*end != '\0' && *end != ',')) return kMostThreads;
    return static_cast<int>(std::min<long>(count, kMostThreads));
}

// What most_threads() was set to last.
std::atomic<int>& said() {
    static std::atomic<int> most{asked()};
    return most;
}

// CPUs in the affinity mask, asked at every call: launchers pin processes after start.
int usable_cpus() {
#ifdef __linux__
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) return CPU_COUNT(&mask);
#endif
    static const int all = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    return all;
}

// Whether waiting threads may take a CPU.
bool active() {
    const char* const policy = std::getenv("OMP_WAIT_POLICY");
    return policy == nullptr || (std::strcmp(policy, "passive") != 0 && std::strcmp(policy, "PASSIVE") != 0);
}

// The CPU of the calling thread; -1 where nobody asks.
int here() {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

// Moves the calling thread to another CPU if it is on this one, its caller's. Linux may wake a thread on the CPU of
// whoever wakes it though another is idle (where there are two it looks for none), and it would keep the caller from
// working.
void leave(int cpu) {
#ifdef __linux__
    cpu_set_t mask;
    if (sched_getcpu() != cpu || sched_getaffinity(0, sizeof mask, &mask) != 0) return;
    CPU_CLR(cpu, &mask);
    if (sched_setaffinity(0, sizeof mask, &mask) != 0) return;  // there is no other
    CPU_SET(cpu, &mask);
    sched_setaffinity(0, sizeof mask, &mask);
#else
    static_cast<void>(cpu);
#endif
}

// Threads that sleep go on when the process ends, and until then the library must stay where it is.
void stay_loaded() {
    static const char place = 0;
#ifdef _WIN32
    HMODULE module;
    GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN, &place, &module);
#else
    Dl_info library;
    if (dladdr(&place, &library) != 0) dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
#endif
}

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");  // yield is none on most
#endif
}

// Looks at `done` for some time; whether it came true.
template <class Done>
bool spin(const Done& done) {
    static const bool may = active();
    if (done()) return true;
    if (!may) return false;
    const auto end = Clock::now() + kAwake;
    do {
        for (int i = 0; i < 32; ++i) {
            pause();
            if (done()) return true;
        }
    } while (Clock::now() < end);
    return false;
}

// Threads that help whoever calls. Nobody waits for a thread that has not begun: the caller takes shares as they do,
// and then waits for those that are being worked on. So a call takes no longer than alone, but for waking them, when
// the CPUs are taken: by the threads of another library, which go on looking for work for some milliseconds after a
// call.
//
// Sequential consistency, which is the default, is what two parties need that each write one thing and then read the
// other's: a caller who withdraws a job and counts its helpers, a helper who counts itself and looks for the job; a
// caller who counts a job and those who sleep, one who counts itself asleep and looks for jobs.
class Threads final : public Team {
  public:
    int size(double bytes) override {
        if (registered != 0 || forked.load(std::memory_order_relaxed)) return 1;
        const int most = said().load(std::memory_order_relaxed);
        if (most == 1) return 1;
        const bool all = bytes >= kWorthWaking || in_a_row();
        return std::min(all ? most : std::min(most, awake()), usable_cpus());
    }

    void run(int shares, void (*body)(const void*, int), const void* context) override {
        const auto free = std::find_if(std::begin(places_), std::end(places_),
                                       [](Place& place) { return !place.owned.exchange(true); });
        if (free == std::end(places_)) {
            for (int t = 0; t < shares; ++t) body(context, t);
            return;
        }
        Job job{shares, body, context};
        job.take(0);
        start(shares - 1);
        free->job.store(&job);
        wake(shares - 1);
        body(context, 0);
        job.work(1);
        free->job.store(nullptr);
        free->wait();
        free->owned.store(false);
    }

  private:
    struct Job {
        const int cpu = here();
        Job(int shares, void (*body)(const void*, int), const void* context)
            : shares_(shares), body_(body), context_(context) {
            std::for_each_n(taken_, shares, [](auto& taken) { taken.store(false, std::memory_order_relaxed); });
        }
        // Whether the share is now the caller's.
        bool take(int t) { return !taken_[t].exchange(true); }
        // Computes what nobody has taken, from share `first` on: a thread has the same as in the last call, if it can.
        void work(int first) {
            for (int i = 0; i < shares_; ++i) {
                const int t = (first + i) % shares_;
                if (!taken_[t].load(std::memory_order_relaxed) && take(t)) body_(context_, t);
            }
        }

      private:
        int shares_;
        void (*body_)(const void*, int);
        const void* context_;
        std::atomic<bool> taken_[kMostThreads];
    };

    // Where a caller offers its job.
    struct alignas(64) Place {
        std::atomic<Job*> job{nullptr};
        std::atomic<int> helpers{0};  // that may have the job, which the caller keeps until there are none
        std::atomic<bool> owned{false}, waiting{false};
        std::mutex mutex;
        std::condition_variable left;

        void help(int number) {
            if (job.load(std::memory_order_relaxed) == nullptr) return;
            ++helpers;
            if (Job* const offered = job.load()) {
                leave(offered->cpu);
                offered->work(number);
            }
            if (--helpers == 0 && waiting.load()) {
                const std::lock_guard<std::mutex> lock(mutex);
                left.notify_one();
            }
        }

        void wait() {
            const auto none = [this] { return helpers.load() == 0; };
            if (spin(none)) return;
            std::unique_lock<std::mutex> lock(mutex);
            waiting.store(true);
            left.wait(lock, none);
            waiting.store(false);
        }
    };

    // Those who begin at once, the caller among them.
    int awake() const { return 1 + started_.load() - asleep_.load(); }

    bool in_a_row() {
        const auto now = Clock::now().time_since_epoch();
        const bool soon = now - Clock::duration(last_.exchange(now.count(), std::memory_order_relaxed)) < kAwake;
        const int row = soon ? std::min(row_.load(std::memory_order_relaxed) + 1, kRow) : 0;
        row_.store(row, std::memory_order_relaxed);  // callers on several threads may lose some
        return row >= kRow;
    }

    // Sees to it that there are so many threads, if the system and its memory let them be.
    void start(int count) {
        if (started_.load(std::memory_order_relaxed) >= count) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        stay_loaded();
        try {
            for (int number; (number = started_.load() + 1) <= count; ++started_)
                std::thread([this, number] { work(number); }).detach();
        } catch (const std::exception&) {  // callers do with those that there are
        }
    }

    void wake(int count) {
        ++jobs_;
        count = std::min(count + 1 - awake(), asleep_.load());
        if (count <= 0) return;
        mutex_.lock();  // whoever counts as asleep is so when it is free
        mutex_.unlock();
        for (; count > 0; --count) more_.notify_one();
    }

    void work(int number) {
        for (;;) {
            const unsigned seen = jobs_.load();
            for (Place& place : places_) place.help(number);
            const auto more = [&] { return jobs_.load() != seen; };
            if (spin(more)) continue;
            std::unique_lock<std::mutex> lock(mutex_);
            ++asleep_;
            more_.wait(lock, more);
            --asleep_;
        }
    }

    Place places_[kCallers];
    std::atomic<unsigned> jobs_{0};
    std::atomic<int> started_{0}, asleep_{0}, row_{0};
    std::atomic<Clock::rep> last_{0};
    std::mutex mutex_;
    std::condition_variable more_;
};

}  // namespace

Team& own_threads() {
    static Threads& threads = *new Threads;  // never destroyed: its threads go on until the process ends
    return threads;
}

int most_threads() { return std::min(said().load(std::memory_order_relaxed), usable_cpus()); }

void set_most_threads(int count) { said().store(std::min(count, kMostThreads), std::memory_order_relaxed); }

int thread_count(double bytes, double grain, int limit, Team* team) {
    const double share = bytes / grain;
    if (share < 2 || limit == 1) return 1;
    int count = (team != nullptr ? *team : own_threads()).size(bytes);
    if (limit > 0) count = std::min(count, limit);
    return share < count ? static_cast<int>(share) : count;
}

}  // namespace fastgc
