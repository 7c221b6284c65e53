// A Python callable that reaches a function of C++ without a detour through argument parsing in Python.
//
// direct(function, parameters, run) stands in for a Python function that documents, and in all cases could do, what
// `run` does for calls that name only `parameters`. Every other call, also one that lacks an argument, goes to the
// Python function, and so does one that `run` has refused by a TypeError before it wrote anything: the Python function
// knows more types, or has the better error. A call costs about 30 ns, one through a Python function and pybind11's
// dispatcher ten times as much. All is in this header: pybind11's take longer to compile than bindings.cpp itself.
#pragma once

#include <pybind11/pybind11.h>

#include <structmember.h>

#include <array>
#include <cstddef>
#include <new>
#include <stdexcept>

namespace fastgc {

constexpr std::size_t kMostParameters = 6;

// Values of the parameters in order, null where not given. Returns a new reference, or null where the Python function
// is to be called, which an exception takes microseconds to say; may throw what pybind11 translates.
using Run = PyObject* (*)(PyObject* const* values);

// What `run` throws for arrays that it leaves to the Python function.
struct Unsuitable : pybind11::type_error {
    Unsuitable()
        : pybind11::type_error("arrays: expected a list or a tuple of arrays that can be viewed as they lie") {}
};

struct Parameters {
    std::array<const char*, kMostParameters> names{};
    std::size_t count = 0, required = 0, positional = 0;
};

namespace calls {

struct Direct {
    PyObject_HEAD vectorcallfunc call;
    PyObject* attributes;  // what functools.update_wrapper sets
    PyObject* function;
    std::array<PyObject*, kMostParameters> names;  // interned, so that nearly every comparison is of addresses
    Parameters parameters;
    Run run;
};

inline Direct* of(PyObject* object) { return reinterpret_cast<Direct*>(object); }

// Puts the arguments into their places; false where the Python function is to judge them.
inline bool place(const Direct& self, PyObject* const* arguments, std::size_t given, PyObject* keywords,
                  PyObject** values) {
    if (given > self.parameters.positional) return false;
    for (std::size_t i = 0; i < given; ++i) values[i] = arguments[i];
    const Py_ssize_t count = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
    for (Py_ssize_t k = 0; k < count; ++k) {
        PyObject* const name = PyTuple_GET_ITEM(keywords, k);
        std::size_t i = 0;
        while (i < self.parameters.count && self.names[i] != name) ++i;
        if (i == self.parameters.count || values[i] != nullptr) return false;
        values[i] = arguments[given + static_cast<std::size_t>(k)];
    }
    for (std::size_t i = 0; i < self.parameters.required; ++i)
        if (values[i] == nullptr) return false;
    return true;
}

inline PyObject* call(PyObject* object, PyObject* const* arguments, std::size_t flagged, PyObject* keywords) {
    const Direct& self = *of(object);
    std::array<PyObject*, kMostParameters> values{};
    if (!place(self, arguments, static_cast<std::size_t>(PyVectorcall_NARGS(flagged)), keywords, values.data()))
        return PyObject_Vectorcall(self.function, arguments, flagged, keywords);
    try {
        PyObject* const result = self.run(values.data());
        return result != nullptr ? result : PyObject_Vectorcall(self.function, arguments, flagged, keywords);
    } catch (const pybind11::type_error&) {
        return PyObject_Vectorcall(self.function, arguments, flagged, keywords);
    } catch (pybind11::error_already_set& error) {
        error.restore();
    } catch (const pybind11::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::invalid_argument& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

inline int traverse(PyObject* object, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(of(object)->attributes);
    Py_VISIT(of(object)->function);
    return 0;
}

inline int clear(PyObject* object) {
    Py_CLEAR(of(object)->attributes);
    Py_CLEAR(of(object)->function);
    return 0;
}

inline void destroy(PyObject* object) {
    PyTypeObject* const type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    clear(object);
    for (PyObject* name : of(object)->names) Py_XDECREF(name);
    type->tp_free(object);
    Py_DECREF(type);
}

inline PyObject* text(PyObject* object) { return PyUnicode_FromFormat("<fastgc kernel for %R>", of(object)->function); }

// As Python's own functions, it is pickled by its name.
inline PyObject* reduce(PyObject* object, PyObject*) {
    return PyObject_GetAttrString(of(object)->function, "__qualname__");
}

inline pybind11::object make_type() {
    static PyMemberDef members[] = {
        {"__vectorcalloffset__", T_PYSSIZET, offsetof(Direct, call), READONLY, nullptr},
        {"__dictoffset__", T_PYSSIZET, offsetof(Direct, attributes), READONLY, nullptr},
        {nullptr, 0, 0, 0, nullptr},
    };
    static PyMethodDef methods[] = {{"__reduce__", reduce, METH_NOARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
    static PyGetSetDef properties[] = {
        {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
        {nullptr, nullptr, nullptr, nullptr, nullptr},
    };
    static PyType_Slot slots[] = {
        {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
        {Py_tp_repr, reinterpret_cast<void*>(text)},
        {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
        {Py_tp_clear, reinterpret_cast<void*>(clear)},
        {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
        {Py_tp_members, members},
        {Py_tp_methods, methods},
        {Py_tp_getset, properties},
        {0, nullptr},
    };
    static PyType_Spec spec = {"fastgc._core.Direct", sizeof(Direct), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL, slots};
    PyObject* const type = PyType_FromSpec(&spec);
    if (type == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(type);
}

}  // namespace calls

inline pybind11::object direct(pybind11::object function, const Parameters& parameters, Run run) {
    // Objects hold a reference to their type, so that it needs no other owner.
    const pybind11::object type = calls::make_type();
    auto* const python_type = reinterpret_cast<PyTypeObject*>(type.ptr());
    PyObject* const object = python_type->tp_alloc(python_type, 0);
    if (object == nullptr) throw pybind11::error_already_set();
    calls::Direct& self = *calls::of(object);
    self.call = calls::call;
    self.parameters = parameters;
    self.run = run;
    self.function = function.release().ptr();
    for (std::size_t i = 0; i < parameters.count; ++i) self.names[i] = PyUnicode_InternFromString(parameters.names[i]);
    return pybind11::reinterpret_steal<pybind11::object>(object);
}

}  // namespace fastgc
