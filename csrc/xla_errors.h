// What the handlers of XLA's calls share: their errors, and their names outside.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>

#include "xla/ffi/api/ffi.h"

#if defined(_WIN32)
# define FASTGC_EXPORT extern "C" __declspec(dllexport)
#else
# define FASTGC_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace fastgc {

inline void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// Runs a handler's body; an exception becomes an error of the call.
template <class Body>
xla::ffi::Error reported(const Body& body) {
    try {
        body();
        return xla::ffi::Error::Success();
    } catch (const std::invalid_argument& error) {
        return xla::ffi::Error::InvalidArgument(std::string("fastgc: ") + error.what());
    } catch (const std::exception& error) {
        return xla::ffi::Error::Internal(std::string("fastgc: ") + error.what());
    }
}

}  // namespace fastgc
