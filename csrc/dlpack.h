// The part of DLPack's C exchange interface (https://github.com/dmlc/dlpack, version 1.3) that is used here: through
// it a library hands its arrays to C, and makes new ones, in tens of nanoseconds, where a view by way of Python takes
// microseconds. The layout of these types is DLPack's ABI.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <string>

namespace fastgc {
namespace dlpack {

constexpr std::int32_t kHost = 1, kPinned = 3;               // device types: memory that the CPU reaches
constexpr std::uint8_t kFloat = 2, kBfloat = 4;              // codes of element types
constexpr std::uint32_t kMajor = 1, kFirstMinorWithApi = 3;  // of the interface's version

struct Device {
    std::int32_t type, id;
};

struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType type;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements
    std::uint64_t byte_offset;
    char* begin() const { return static_cast<char*>(data) + byte_offset; }
};

struct Version {
    std::uint32_t major, minor;
};

struct Managed;

struct Interface {
    Version version;
    const Interface* older;
    int (*allocate)(Tensor* like, Managed** out, void* context, void (*fail)(void*, const char*, const char*));
    int (*from_object)(void* object, Managed** out);
    int (*to_object)(Managed* tensor, void** out);  // takes the tensor over
    int (*view_object)(void* object, Tensor* out);  // null where the library has none; 0 is success
    int (*current_stream)(std::int32_t device_type, std::int32_t device, void** out);
};

// A type whose objects are arrays that can be exchanged so.
struct Library {
    PyTypeObject* type = nullptr;
    const Interface* interface = nullptr;
    // PyTorch's: its tensors may record gradients, or hold their numbers negated, of which DLPack says nothing.
    bool has_gradients = false;
};

// Looks the interface up in the type itself: a derived type, such as a tensor that only pretends to have memory, does
// not count. Null where there is none.
inline const Library* find(PyTypeObject* type) {
    static std::atomic<const Library*> last{nullptr};  // nearly always there is one; found ones are never freed
    const Library* const known = last.load(std::memory_order_acquire);
    if (known != nullptr && known->type == type) return known;
    if (type->tp_dict == nullptr || type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE) return nullptr;
    PyObject* const capsule = PyDict_GetItemString(type->tp_dict, "__dlpack_c_exchange_api__");  // borrowed
    if (capsule == nullptr || !PyCapsule_IsValid(capsule, "dlpack_exchange_api")) return nullptr;
    const auto* interface = static_cast<const Interface*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    while (interface != nullptr && interface->version.major != kMajor) interface = interface->older;
    if (interface == nullptr || interface->version.minor < kFirstMinorWithApi || interface->view_object == nullptr)
        return nullptr;
    auto* const found =
        new Library{type, interface, PyObject_HasAttrString(reinterpret_cast<PyObject*>(type), "requires_grad") != 0};
    Py_INCREF(type);
    last.store(found, std::memory_order_release);
    return found;
}

// Whether an object's memory holds its numbers, and nobody wants to know what is done with them.
inline bool is_plain(const Library& library, PyObject* object) {
    if (!library.has_gradients) return true;
    static PyObject* const gradients = PyUnicode_InternFromString("requires_grad");
    static PyObject* const negated = PyUnicode_InternFromString("is_neg");
    const auto records = pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttr(object, gradients));
    if (!records) throw pybind11::error_already_set();
    if (records.ptr() != Py_False) return false;
    const auto negative = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallMethodNoArgs(object, negated));
    if (!negative) throw pybind11::error_already_set();
    return negative.ptr() == Py_False;
}

// Whether an array lies where the CPU reaches it; `out` says where, as long as the object lives and stays as it is.
inline bool view(const Library& library, PyObject* object, Tensor& out) {
    if (library.interface->view_object(object, &out) != 0) {
        PyErr_Clear();
        return false;
    }
    return out.device.type == kHost || out.device.type == kPinned;
}

// A new array of a library, on the host.
inline pybind11::object make(const Library& library, DataType type, std::int32_t ndim, std::int64_t* shape) {
    Tensor like{nullptr, {kHost, 0}, ndim, type, shape, nullptr, 0};
    Managed* made = nullptr;
    std::string reason;
    const auto fail = [](void* context, const char*, const char* message) {
        *static_cast<std::string*>(context) = message;
    };
    if (library.interface->allocate(&like, &made, &reason, fail) != 0) throw std::runtime_error(reason);
    void* object = nullptr;
    if (library.interface->to_object(made, &object) != 0) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(static_cast<PyObject*>(object));
}

}  // namespace dlpack
}  // namespace fastgc
