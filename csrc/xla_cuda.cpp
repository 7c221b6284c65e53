// XLA's custom call on an NVIDIA GPU: launches that were noted when the program was lowered, on XLA's stream.
//
// The program carries all of them: the kernels as PTX, and every launch but for the addresses of the buffers and the
// number of blocks (fastgc/kernels/_cuda_items.py). So it runs in other processes and on other devices than those it
// was made with, a compiled program that was kept in a cache included. The driver is loaded when first needed, and
// nothing of CUDA is needed to build this file. Nothing waits for the device, and no memory is asked for: the calls of
// a launch are those that a graph can replay.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"
#include "xla_errors.h"

#ifndef _WIN32
# include <dlfcn.h>
#endif

namespace {

namespace ffi = xla::ffi;
using fastgc::require;
using Word = std::int64_t;

// The driver's interface, as far as it is used: cuda.h would be needed to build for everybody.
using Status = int;
using Device = int;
using Context = struct CUctx_st*;
using Module = struct CUmod_st*;
using Function = struct CUfunc_st*;
using Stream = struct CUstream_st*;
constexpr int kErrorLog = 5, kErrorLogBytes = 6;  // CU_JIT_ERROR_LOG_BUFFER and …_SIZE_BYTES
constexpr int kProcessors = 16;                   // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
constexpr int kRelaxed = 2;                       // CU_STREAM_CAPTURE_MODE_RELAXED

class Driver {
  public:
    static const Driver& get() {
        static const Driver driver;  // a failure is tried again by the next call
        return driver;
    }
    void check(Status status, const std::string& what) const {
        if (status == 0) return;
        const char* text = nullptr;
        if (error_string(status, &text) != 0 || text == nullptr) text = "unknown error";
        throw std::runtime_error(what + ": " + text + " (CUDA error " + std::to_string(status) + ")");
    }

    Status (*error_string)(Status, const char**);
    Status (*stream_context)(Stream, Context*);
    Status (*push_context)(Context);
    Status (*pop_context)(Context*);
    Status (*device)(Device*);
    Status (*attribute)(int*, int, Device);
    Status (*load)(Module*, const void*, unsigned, int*, void**);
    Status (*function)(Function*, Module, const char*);
    Status (*occupancy)(int*, Function, int, std::size_t);
    Status (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**,
                     void**);
    Status (*exchange_capture_mode)(int*);

  private:
    Driver() {
#ifdef _WIN32
        throw std::runtime_error("XLA has no CUDA on Windows");
#else
        void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) throw std::runtime_error(std::string("the CUDA driver cannot be loaded: ") + dlerror());
        const auto find = [&](auto& pointer, const char* name) {
            void* const symbol = dlsym(library, name);
            if (symbol == nullptr)
                throw std::runtime_error(std::string("the CUDA driver is too old: it has no ") + name);
            pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(symbol);
        };
        find(error_string, "cuGetErrorString");
        find(stream_context, "cuStreamGetCtx");
        find(push_context, "cuCtxPushCurrent_v2");
        find(pop_context, "cuCtxPopCurrent_v2");
        find(device, "cuCtxGetDevice");
        find(attribute, "cuDeviceGetAttribute");
        find(load, "cuModuleLoadDataEx");
        find(function, "cuModuleGetFunction");
        find(occupancy, "cuOccupancyMaxActiveBlocksPerMultiprocessor");
        find(launch, "cuLaunchKernel");
        find(exchange_capture_mode, "cuThreadExchangeStreamCaptureMode");
#endif
    }
};

// The context of a stream, current as long as this lives: XLA promises nobody that it is.
class Current {
  public:
    Current(const Driver& driver, Stream stream) : driver_(driver) {
        driver.check(driver.stream_context(stream, &context_), "the stream's context");
        driver.check(driver.push_context(context_), "making the stream's context current");
    }
    ~Current() {
        Context popped;
        driver_.pop_context(&popped);
    }
    Current(const Current&) = delete;
    Context context() const { return context_; }

  private:
    const Driver& driver_;
    Context context_ = nullptr;
};

// Loading may wait for the device, which a stream under capture forbids to all of the process or to its own thread.
class MayWait {
  public:
    explicit MayWait(const Driver& driver) : driver_(driver) { driver_.exchange_capture_mode(&mode_); }
    ~MayWait() { driver_.exchange_capture_mode(&mode_); }
    MayWait(const MayWait&) = delete;

  private:
    const Driver& driver_;
    int mode_ = kRelaxed;
};

struct Kernel {
    Function function;
    unsigned threads, shared;
    Word at_once;  // blocks that the device runs
};
using Kernels = std::vector<Kernel>;

// What the attributes say of the kernels.
struct Code {
    std::string_view text, names, key;
    ffi::Span<const Word> shapes;
};

Kernels loaded(const Driver& driver, const Code& code) {
    const MayWait may_wait(driver);
    const std::string text(code.text);  // which ends
    std::array<char, 4096> log{};
    std::array<int, 2> options{kErrorLog, kErrorLogBytes};
    std::array<void*, 2> values{log.data(), reinterpret_cast<void*>(log.size() - 1)};
    Module module = nullptr;
    const Status status = driver.load(&module, text.c_str(), options.size(), options.data(), values.data());
    const std::string_view said(log.data());
    const std::string first(said.substr(0, said.find('\n')));
    driver.check(status, "loading the kernels" + (first.empty() ? "" : " (" + first + ")"));
    Device device = 0;
    int processors = 0;
    driver.check(driver.device(&device), "the context's device");
    driver.check(driver.attribute(&processors, kProcessors, device), "the device's multiprocessors");
    Kernels kernels;
    for (std::size_t at = 0; at < code.names.size();) {
        const std::size_t end = std::min(code.names.find(' ', at), code.names.size());
        const std::string name(code.names.substr(at, end - at));
        at = end + 1;
        require(2 * kernels.size() + 1 < code.shapes.size(), "shapes: expected two numbers for each kernel");
        const Word threads = code.shapes[2 * kernels.size()], shared = code.shapes[2 * kernels.size() + 1];
        Function function = nullptr;
        int each = 0;
        driver.check(driver.function(&function, module, name.c_str()), name);
        driver.check(driver.occupancy(&each, function, static_cast<int>(threads), static_cast<std::size_t>(shared)),
                     name);
        kernels.push_back({function, static_cast<unsigned>(threads), static_cast<unsigned>(shared),
                           std::max<Word>(1, Word{each} * processors)});
    }
    return kernels;
}

// The kernels in a context; loaded once, and kept as long as the process, as XLA's contexts are.
const Kernels& kernels_of(const Driver& driver, Context context, const Code& code) {
    static std::shared_mutex mutex;
    static std::map<std::pair<Context, std::string>, const Kernels> known;
    const std::pair<Context, std::string> key{context, code.key};
    {
        const std::shared_lock<std::shared_mutex> lock(mutex);
        const auto found = known.find(key);
        if (found != known.end()) return found->second;
    }
    const std::lock_guard<std::shared_mutex> lock(mutex);
    auto found = known.find(key);  // another thread may have been first
    if (found == known.end()) found = known.emplace(key, loaded(driver, code)).first;
    return found->second;  // stays where it is
}

// Where the buffers are that words of arguments name.
class Buffers {
  public:
    static constexpr Word kLine = 16;  // bytes that a thread moves at once, where all buffers allow it
    void add(const ffi::AnyBuffer& buffer) {
        const auto address = static_cast<Word>(reinterpret_cast<std::uintptr_t>(buffer.untyped_data()));
        buffers_.push_back({address, static_cast<Word>(buffer.size_bytes())});
        in_lines_ = in_lines_ && address % kLine == 0;
    }
    bool in_lines() const { return in_lines_; }
    Word resolved(Word word) const {
        if (word >> 62 != 1) return word;
        const Word number = (word & ((Word{1} << 62) - 1)) >> 40, offset = word & ((Word{1} << 40) - 1);
        require(number < static_cast<Word>(buffers_.size()), "launches: name a buffer that is not there");
        const Buffer& buffer = buffers_[static_cast<std::size_t>(number)];
        require(offset < buffer.size, "launches: name a place beyond a buffer");
        return buffer.address + offset;
    }

  private:
    struct Buffer {
        Word address, size;
    };
    std::vector<Buffer> buffers_;
    bool in_lines_ = true;
};

// Reads the launches as fastgc/kernels/_cuda_items.py writes them, and makes them.
void launch_all(const Driver& driver, const Kernels& kernels, const Buffers& buffers, ffi::Span<const Word> launches,
                Stream stream) {
    std::size_t at = 0;
    const auto next = [&] {
        require(at < launches.size(), "launches: end too early");
        return launches[at++];
    };
    while (at < launches.size()) {
        const Word number = next(), tiles = next(), layers = next(), items = next();
        const Word head = next(), bytes = next(), words = next();
        alignas(16) std::array<Word, 4096> argument;  // as large as arguments may be
        require(number >= 0 && number < static_cast<Word>(kernels.size()), "launches: name a kernel that is not there");
        require(tiles > 0 && layers > 0 && items > 0, "launches: expected work");
        require(bytes <= static_cast<Word>(sizeof argument) && words >= 0 && 8 * words <= bytes && head < words,
                "launches: expected no more words than an argument has");
        std::fill_n(argument.begin(), bytes / 8, Word{0});
        for (Word i = 0; i < words; ++i) argument[static_cast<std::size_t>(i)] = buffers.resolved(next());
        if (head >= 0 && !buffers.in_lines()) argument[static_cast<std::size_t>(head)] = -1;
        // As many blocks as run at once, or fewer, so that all have nearly the same number of tiles: `share` in
        // fastgc/kernels/_cuda_tiles.py.
        const Kernel& kernel = kernels[static_cast<std::size_t>(number)];
        const Word rounds = (tiles * layers * items + kernel.at_once - 1) / kernel.at_once;
        const auto blocks = static_cast<unsigned>((tiles + rounds - 1) / rounds);
        void* parameters[] = {argument.data()};
        driver.check(driver.launch(kernel.function, static_cast<unsigned>(layers), blocks, static_cast<unsigned>(items),
                                   kernel.threads, 1, 1, kernel.shared, stream, parameters, nullptr),
                     "launching a kernel");
    }
}

// Before a program runs: the kernels are there when a graph of it is captured. Some of XLA's headers want all operands
// named, which may not be looked at yet.
ffi::Error initialize(Stream stream, ffi::RemainingArgs, ffi::RemainingRets, std::string_view code,
                      std::string_view kernels, std::string_view key, ffi::Span<const Word>,
                      ffi::Span<const Word> shapes) {
    return fastgc::reported([&] {
        const Driver& driver = Driver::get();
        const Current current(driver, stream);
        kernels_of(driver, current.context(), {code, kernels, key, shapes});
    });
}

ffi::Error execute(Stream stream, ffi::RemainingArgs arguments, ffi::RemainingRets results, std::string_view code,
                   std::string_view kernels, std::string_view key, ffi::Span<const Word> launches,
                   ffi::Span<const Word> shapes) {
    return fastgc::reported([&] {
        Buffers buffers;
        for (std::size_t i = 0; i < arguments.size(); ++i) {
            const auto buffer = arguments.get<ffi::AnyBuffer>(i);
            require(buffer.has_value(), "expected arrays");
            buffers.add(*buffer);
        }
        for (std::size_t i = 0; i < results.size(); ++i) {
            auto buffer = results.get<ffi::AnyBuffer>(i);
            require(buffer.has_value(), "expected arrays");
            buffers.add(**buffer);
        }
        const Driver& driver = Driver::get();
        const Current current(driver, stream);
        launch_all(driver, kernels_of(driver, current.context(), {code, kernels, key, shapes}), buffers, launches,
                   stream);
    });
}

template <ffi::ExecutionStage stage>
auto binding() {
    return ffi::Ffi::Bind<stage>()
        .template Ctx<ffi::PlatformStream<Stream>>()
        .RemainingArgs()
        .RemainingRets()
        .template Attr<std::string_view>("code")
        .template Attr<std::string_view>("kernels")
        .template Attr<std::string_view>("key")
        .template Attr<ffi::Span<const Word>>("launches")
        .template Attr<ffi::Span<const Word>>("shapes");
}

}  // namespace

FASTGC_EXPORT XLA_FFI_Error* fastgc_xla_cuda_initialize(XLA_FFI_CallFrame*);
FASTGC_EXPORT XLA_FFI_Error* fastgc_xla_cuda_execute(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(fastgc_xla_cuda_initialize, initialize, binding<ffi::ExecutionStage::kInitialize>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(fastgc_xla_cuda_execute, execute, binding<ffi::ExecutionStage::kExecute>(),
                              {ffi::Traits::kCmdBufferCompatible});
