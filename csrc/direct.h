// A Python callable that reaches a function of C++ without a detour through argument parsing in Python.
//
// direct(function, parameters, run) stands in for a Python function that documents, and in all cases could do, what
// `run` does for calls that name only `parameters`. Every other call, also one that lacks an argument, goes to the
// Python function, and so does one that `run` has refused by a TypeError before it wrote anything: the Python function
// knows more types, or has the better error. A call costs about 30 ns, one through a Python function and pybind11's
// dispatcher ten times as much.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>

namespace fastgc {

constexpr std::size_t kMostParameters = 6;

// Values of the parameters in order, null where not given. Returns a new reference; may throw what pybind11 translates.
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

pybind11::object direct(pybind11::object function, const Parameters& parameters, Run run);

}  // namespace fastgc
