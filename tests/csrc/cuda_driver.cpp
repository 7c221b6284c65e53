// Stands in for NVIDIA's driver, libcuda.so.1, with as much of its interface as csrc/xla_cuda.cpp uses: two devices of
// few multiprocessors that run the kernels of cuda_host.cpp, streams that run at once or are captured, and graphs that
// are replayed. And for XLA's CUDA backend: a handler for XLA's CPU backend that calls those of the library with a
// stream, in the stages, on copies of the buffers, wherever they are to lie and with nothing beside them.
//
// What a driver refuses is refused: a launch outside of the context, loading while a stream is captured.
#include <dlfcn.h>

#include <algorithm>
#include <cfenv>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "xla/ffi/api/c_api.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Device {
    int number;
};
struct Stream {
    Device* device;
};
struct Function {
    std::string name;
    Device* device;
    void (*entry)(const void*);
    std::size_t bytes;
    int barriers;
    unsigned threads;
};
struct Module {
    std::string text;
    Device* device;
};
struct Launch {
    const Function* function;
    unsigned grid[3], threads, shared;
    std::vector<unsigned char> argument;
};

constexpr int kInvalidValue = 1, kInvalidContext = 201, kUnsupportedPtx = 222, kNotFound = 500, kCapture = 900;
Device devices[2] = {{0}, {1}};
Stream streams[2] = {{&devices[0]}, {&devices[1]}};
thread_local std::vector<Device*> contexts;
thread_local int capture_mode = 0;  // global
std::mutex in_use;

// What the tests set, and what they ask.
int stream_number = 0, capturing = 0, offset = 0, refused_load = 0, skip_initialize = 0;
int loads = 0;
std::vector<Launch> graph;
std::string log_of_launches, failure;
std::vector<std::uint64_t> ranges;
XLA_FFI_Handler *initialize = nullptr, *execute = nullptr;

Device* current() { return contexts.empty() ? nullptr : contexts.back(); }

using Run = const char* (*)(void (*)(const void*), const void*, unsigned, unsigned, unsigned, unsigned, unsigned, int,
                            int, const std::uint64_t (*)[3], unsigned);
void* kernels() {
    static void* const library = dlopen(getenv("FASTGC_HOST_KERNELS"), RTLD_NOW);
    return library;
}

int run(const Launch& launch) {
    const auto start = reinterpret_cast<Run>(dlsym(kernels(), "launch"));
    alignas(16) unsigned char argument[32 * 1024];
    std::memcpy(argument, launch.argument.data(), launch.argument.size());
    const char* error =
        start(launch.function->entry, argument, launch.grid[0], launch.grid[1], launch.grid[2], launch.threads,
              launch.shared, launch.function->barriers, 0, reinterpret_cast<const std::uint64_t (*)[3]>(ranges.data()),
              static_cast<unsigned>(ranges.size() / 3));
    if (error != nullptr) failure = launch.function->name + ": " + error;
    return error == nullptr ? 0 : 700;
}

}  // namespace

// The driver ----------------------------------------------------------------------------------------------------------

EXPORT int cuGetErrorString(int status, const char** text) {
    static const std::map<int, const char*> known{{kInvalidContext, "invalid device context"},
                                                  {kUnsupportedPtx, "unsupported toolchain"},
                                                  {kNotFound, "named symbol not found"},
                                                  {kCapture, "operation not permitted when stream is capturing"},
                                                  {700, "an illegal memory access was encountered"}};
    const auto found = known.find(status);
    if (found == known.end()) return kInvalidValue;
    *text = found->second;
    return 0;
}
EXPORT int cuStreamGetCtx(Stream* stream, Device** context) {
    *context = stream->device;
    return 0;
}
EXPORT int cuCtxPushCurrent_v2(Device* context) {
    contexts.push_back(context);
    return 0;
}
EXPORT int cuCtxPopCurrent_v2(Device** context) {
    if (contexts.empty()) return kInvalidContext;
    *context = contexts.back();
    contexts.pop_back();
    return 0;
}
EXPORT int cuCtxGetDevice(int* number) {
    if (current() == nullptr) return kInvalidContext;
    *number = current()->number;
    return 0;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int number) {
    if (attribute != 16) return kInvalidValue;
    *value = number + 2;  // multiprocessors
    return 0;
}
EXPORT int cuThreadExchangeStreamCaptureMode(int* mode) {
    std::swap(*mode, capture_mode);
    return 0;
}
EXPORT int cuModuleLoadDataEx(Module** module, const void* image, unsigned count, const int* options, void** values) {
    if (current() == nullptr) return kInvalidContext;
    if (capturing != 0 && capture_mode != 2) return kCapture;
    if (count != 2 || options[0] != 5 || options[1] != 6) return kInvalidValue;
    if (refused_load != 0) {
        std::strncpy(static_cast<char*>(values[0]), "ptxas fatal : too new\nmore",
                     reinterpret_cast<std::size_t>(values[1]));
        return kUnsupportedPtx;
    }
    ++loads;
    *module = new Module{static_cast<const char*>(image), current()};
    return 0;
}
EXPORT int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    if (module->text.find(".entry " + std::string(name) + "(") == std::string::npos) return kNotFound;
    const auto entry = reinterpret_cast<void (*)(const void*)>(dlsym(kernels(), name));
    const auto about = static_cast<const unsigned*>(dlsym(kernels(), (std::string("about_") + name).c_str()));
    if (entry == nullptr || about == nullptr) return kNotFound;
    *function = new Function{name, module->device, entry, about[0], static_cast<int>(about[1]), about[2]};
    return 0;
}
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads, std::size_t) {
    if (threads < 1 || static_cast<unsigned>(threads) > function->threads) return kInvalidValue;
    *blocks = 2;
    return 0;
}
EXPORT int cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                          unsigned threads_z, unsigned shared, Stream* stream, void** parameters, void** extra) {
    if (current() != stream->device || function->device != stream->device) return kInvalidContext;
    if (threads > function->threads || threads_y != 1 || threads_z != 1 || extra != nullptr) return kInvalidValue;
    if (shared > 48 * 1024 || y > 65535 || z > 65535 || x == 0 || y == 0 || z == 0) return kInvalidValue;
    const auto* const argument = static_cast<const unsigned char*>(parameters[0]);
    Launch launch{function, {x, y, z}, threads, shared, {argument, argument + function->bytes}};
    log_of_launches +=
        function->name + " " + std::to_string(x) + " " + std::to_string(y) + " " + std::to_string(z) + "\n";
    if (capturing == 0) return run(launch);
    graph.push_back(std::move(launch));
    return 0;
}

// XLA -----------------------------------------------------------------------------------------------------------------

namespace {

XLA_FFI_Error* stream_of(XLA_FFI_Stream_Get_Args* args) {
    args->stream = &streams[stream_number];
    return nullptr;
}

XLA_FFI_Error* error(const XLA_FFI_Api* api, const std::string& message) {
    XLA_FFI_Error_Create_Args args{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message.c_str(),
                                   XLA_FFI_Error_Code_INTERNAL};
    return api->XLA_FFI_Error_Create(&args);
}

std::size_t bytes_of(const XLA_FFI_Buffer& buffer, std::size_t& element) {
    static const std::map<int, std::size_t> sizes{
        {XLA_FFI_DataType_U8, 1},  {XLA_FFI_DataType_S32, 4}, {XLA_FFI_DataType_S64, 8}, {XLA_FFI_DataType_F16, 2},
        {XLA_FFI_DataType_F32, 4}, {XLA_FFI_DataType_F64, 8}, {XLA_FFI_DataType_BF16, 2}};
    element = sizes.at(buffer.dtype);
    std::size_t bytes = element;
    for (std::int64_t i = 0; i < buffer.rank; ++i) bytes *= static_cast<std::size_t>(buffer.dims[i]);
    return bytes;
}

// A buffer's stand-in: alone, NaN at first where it is a result, as far off a line as the tests say.
struct Copy {
    XLA_FFI_Buffer* original;
    XLA_FFI_Buffer buffer;
    std::vector<unsigned char> memory;
    std::size_t bytes;
    void place(bool result, const std::vector<Copy>& before) {
        std::size_t element = 0;
        buffer = *original;
        bytes = bytes_of(*original, element);
        for (const Copy& other : before)  // results that take an operand's place
            if (bytes > 0 && other.original->data == original->data) {
                buffer.data = other.buffer.data;
                return;
            }
        memory.assign(bytes + 256, 0xff);
        const auto start = (reinterpret_cast<std::uintptr_t>(memory.data()) + 127) / 128 * 128;
        buffer.data =
            reinterpret_cast<void*>(start + static_cast<std::size_t>(offset) * std::max<std::size_t>(element, 2));
        if (buffer.dtype == XLA_FFI_DataType_U8) buffer.data = reinterpret_cast<void*>(start + (offset != 0 ? 8 : 0));
        if (!result) std::memcpy(buffer.data, original->data, bytes);
    }
};

XLA_FFI_Error* staged(XLA_FFI_CallFrame* frame, XLA_FFI_Handler* handler, XLA_FFI_ExecutionStage stage) {
    frame->stage = stage;
    return handler(frame);
}

XLA_FFI_Error* run_stages(XLA_FFI_CallFrame* frame) {
    if (skip_initialize == 0)
        if (XLA_FFI_Error* failed = staged(frame, initialize, XLA_FFI_ExecutionStage_INITIALIZE)) return failed;
    if (capturing == 0) return staged(frame, execute, XLA_FFI_ExecutionStage_EXECUTE);
    graph.clear();
    XLA_FFI_Error* failed = staged(frame, execute, XLA_FFI_ExecutionStage_EXECUTE);
    for (int replay = 0; replay < 2 && failed == nullptr; ++replay)
        for (const Launch& launch : graph)
            if (run(launch) != 0) return error(frame->api, failure);
    return failed;
}

}  // namespace

EXPORT XLA_FFI_Error* emulated(XLA_FFI_CallFrame* given) {
    if (given->extension_start != nullptr) return execute(given);  // XLA asks for its version and traits
    const std::lock_guard<std::mutex> lock(in_use);
    std::fenv_t floats;
    std::fegetenv(&floats);
    std::fesetenv(FE_DFL_ENV);
    XLA_FFI_CallFrame frame = *given;
    XLA_FFI_Api api = *given->api;
    api.XLA_FFI_Stream_Get = stream_of;
    frame.api = &api;
    std::vector<Copy> operands(static_cast<std::size_t>(frame.args.size)),
        results(static_cast<std::size_t>(frame.rets.size));
    std::vector<void*> args, rets;
    ranges.clear();
    const auto allow = [](const Copy& copy, std::uint64_t write) {
        const auto begin = reinterpret_cast<std::uintptr_t>(copy.buffer.data);
        ranges.insert(ranges.end(), {begin, begin + copy.bytes, write});
    };
    for (std::size_t i = 0; i < operands.size(); ++i) {
        operands[i].original = static_cast<XLA_FFI_Buffer*>(frame.args.args[i]);
        operands[i].place(false, {});
        allow(operands[i], 0);
        args.push_back(&operands[i].buffer);
    }
    for (std::size_t i = 0; i < results.size(); ++i) {
        results[i].original = static_cast<XLA_FFI_Buffer*>(frame.rets.rets[i]);
        results[i].place(true, operands);
        allow(results[i], 1);
        rets.push_back(&results[i].buffer);
    }
    frame.args.args = args.data();
    frame.rets.rets = rets.data();
    XLA_FFI_Error* failed = run_stages(&frame);
    for (const Copy& copy : results) std::memcpy(copy.original->data, copy.buffer.data, copy.bytes);
    if (failed == nullptr && !contexts.empty()) failed = error(given->api, "a context was left current");
    if (failed == nullptr && capture_mode != 0) failed = error(given->api, "another capture mode was left");
    std::fesetenv(&floats);
    return failed;
}

EXPORT void set_handlers(XLA_FFI_Handler* first, XLA_FFI_Handler* second) {
    initialize = first;
    execute = second;
}
EXPORT void set_stream(int value) { stream_number = value; }
EXPORT void set_capturing(int value) { capturing = value; }
EXPORT void set_offset(int value) { offset = value; }
EXPORT void set_refused_load(int value) { refused_load = value; }
EXPORT void set_skip_initialize(int value) { skip_initialize = value; }
EXPORT int count_of_loads() { return loads; }
EXPORT const char* launched() {
    static std::string said;
    said.swap(log_of_launches);
    log_of_launches.clear();
    return said.c_str();
}
