// What the bindings see of Python's arguments: rows and matrices of numbers where they lie, and the checks that all
// share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"
#include "core.h"
#include "direct.h"
#include "dlpack.h"

namespace fastgc {
namespace views {

namespace py = pybind11;

// What an argument is called: made into text only where there is something to say about it.
struct Name {
    const char* name;
    Index group, item;
    Name(const char* argument, Index group_number = -1, Index item_number = -1)
        : name(argument), group(group_number), item(item_number) {}
    Name at(Index index) const { return {name, group, index}; }
    std::string text() const {
        std::string whole = name;
        for (const Index index : {group, item})
            if (index >= 0) whole += "[" + std::to_string(index) + "]";
        return whole;
    }
};

inline std::string operator+(const Name& name, const std::string& rest) { return name.text() + rest; }
inline std::string operator+(const std::string& before, const Name& name) { return before + name.text(); }

inline std::string text(py::handle object) { return py::str(object).cast<std::string>(); }
inline std::string type_name(py::handle object) { return text(py::type::handle_of(object).attr("__name__")); }
inline std::string shape_of(py::handle array) { return text(array.attr("shape")); }

[[noreturn]] inline void value_error(const std::string& message) { throw py::value_error(message); }
[[noreturn]] inline void type_error(const std::string& message) { throw py::type_error(message); }

// The array behind a handle that is known to be one, without a change of its reference count.
inline const py::detail::PyArray_Proxy& proxy(py::handle array) { return *py::detail::array_proxy(array.ptr()); }

inline Element element_of(py::handle array, const Name& name) {
    const auto& type = *py::detail::array_descriptor_proxy(proxy(array).descr);
    if (type.byteorder == '=' || type.byteorder == '|') {
        constexpr int float32 = 11, float64 = 12, float16 = 23;  // NPY_FLOAT, NPY_DOUBLE, NPY_HALF
        if (type.type_num == float32) return Element::f32;
        if (type.type_num == float64) return Element::f64;
        if (type.type_num == float16) return Element::f16;
        // A type that ml_dtypes registers with NumPy. It is known by its name, so that nothing need be imported, and
        // from then on by its number, because asking for a name takes microseconds.
        static std::atomic<int> bfloat16{-1};
        if (type.type_num == bfloat16.load(std::memory_order_relaxed)) return Element::bf16;
        const auto dtype = py::reinterpret_borrow<py::dtype>(proxy(array).descr);
        if (type.type_num > float16 && dtype.itemsize() == 2 && text(dtype.attr("name")) == "bfloat16") {
            bfloat16.store(type.type_num, std::memory_order_relaxed);
            return Element::bf16;
        }
        constexpr int longdouble = 13;  // NPY_LONGDOUBLE, which is float64 on Windows and to NumPy equal to it
        if (type.type_num == longdouble && dtype.itemsize() == 8) return Element::f64;
    }
    type_error(name + ": expected dtype float32, float64, float16 or bfloat16 in native byte order, got " +
               text(proxy(array).descr));
}

enum class Access { read, write };

// A list that needs no allocation up to 32 items.
template <class T>
class Few {
  public:
    Few() {}  // not defaulted, which would have `Few{}` fill the room with zeros
    Few(Few&& other) : more_(std::move(other.more_)), size_(other.size_), room_(other.room_) {
        std::copy(other.first_, other.first_ + kRoom, first_);
    }
    void append(T item) {
        if (size_ == room_) reserve(2 * room_);
        begin()[size_++] = item;
    }
    // As many items, of which those beyond the ones there are to be filled in.
    void resize(Index size) {
        if (size > room_) reserve(size);
        size_ = size;
    }
    T* begin() { return more_ ? more_.get() : first_; }
    T* end() { return begin() + size_; }
    const T* begin() const { return more_ ? more_.get() : first_; }
    const T* end() const { return begin() + size_; }
    Index size() const { return size_; }
    T operator[](Index i) const { return begin()[i]; }

  private:
    static constexpr Index kRoom = 32;
    void reserve(Index room) {
        std::unique_ptr<T[]> wider(new T[static_cast<std::size_t>(room)]);
        std::copy(begin(), end(), wider.get());
        more_ = std::move(wider);
        room_ = room;
    }
    T first_[kRoom];
    std::unique_ptr<T[]> more_;
    Index size_ = 0, room_ = kRoom;
};

// The items of a sequence, which may change meanwhile: a tuple is its own, and of a list one is made in 30 ns.
class Items {
  public:
    Items() {}
    Items(py::handle object, const Name& name, const char* expected);
    Index count() const { return items_ ? PyTuple_GET_SIZE(items_.ptr()) : 0; }
    py::handle operator[](Index i) const { return PyTuple_GET_ITEM(items_.ptr(), i); }

  private:
    py::object items_;
};

// Rows of numbers in memory: what a 2-D array, or a sequence of 1-D arrays, is to the kernels. A caller holds what it
// gave; `items` are those of a sequence, `copies` what has been made of some. `library` is null for NumPy.
struct Rows {
    Name name;
    Element element = Element::f32;
    Index length = 0;
    Few<char*> data;
    Items items;
    std::vector<py::object> copies;
    py::handle type;
    const dlpack::Library* library = nullptr;

    explicit Rows(const Name& argument) : name(argument) {}
    Index count() const { return data.size(); }
    std::size_t bytes() const { return static_cast<std::size_t>(length) * size_of(element); }
    std::size_t total() const { return bytes() * static_cast<std::size_t>(count()); }
    template <class T>
    T* const* as() const {
        return reinterpret_cast<T* const*>(data.begin());
    }
};

// Appends the rows of a 1-D or 2-D array. Inputs whose elements are not next to each other are copied.
inline void append(Rows& rows, py::handle array, const Name& name, Access access) {
    const auto* view = &proxy(array);
    const Element element = element_of(array, name);
    const Index length = view->dimensions[view->nd - 1];
    if (rows.count() == 0) {
        rows.element = element;
        rows.length = length;
        rows.type = view->descr;
    }
    if (element != rows.element)
        type_error(name + ": expected dtype " + name_of(rows.element) + " like " + rows.name.at(0) + ", got " +
                   name_of(element));
    if (length != rows.length)
        value_error(name + ": expected length " + std::to_string(rows.length) + " like " + rows.name.at(0) + ", got " +
                    std::to_string(length));
    const bool adjacent = length <= 1 || view->strides[view->nd - 1] == static_cast<Index>(size_of(element));
    const bool aligned = (view->flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    if (access == Access::write) {
        if ((view->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) == 0)
            value_error(name + ": the array is read-only");
        if (!adjacent)
            value_error(name + ": elements of a row must be contiguous, got strides " + text(array.attr("strides")));
        if (!aligned) value_error(name + ": elements must be aligned to their size");
    } else if (!adjacent || !aligned) {
        rows.copies.push_back(array.attr("copy")("C"));
        view = &proxy(rows.copies.back());
    }
    const Index count = view->nd == 2 ? view->dimensions[0] : 1;
    const Index stride = view->nd == 2 ? view->strides[0] : 0;
    for (Index i = 0; i < count; ++i) rows.data.append(view->data + i * stride);
}

// Appends the rows of an array of another library, or is Unsuitable: what takes copies or messages is done in Python.
inline void append_exchanged(Rows& rows, py::handle object, int dimensions, Access access) {
    const dlpack::Library* const library = dlpack::find(Py_TYPE(object.ptr()));
    if (library == nullptr || (rows.count() > 0 && rows.library != library)) throw Unsuitable{};
    // Where nothing is known of gradients, nothing is known of who may write either.
    if ((access == Access::write && !library->has_gradients) || !is_plain(*library, object.ptr())) throw Unsuitable{};
    dlpack::Tensor view;
    if (!dlpack::view(*library, object.ptr(), view)) throw Unsuitable{};
    if (view.ndim != dimensions || view.type.lanes != 1) throw Unsuitable{};
    Element element = Element::f32;
    if (view.type.code == dlpack::kBfloat && view.type.bits == 16)
        element = Element::bf16;
    else if (view.type.code == dlpack::kFloat && view.type.bits == 16)
        element = Element::f16;
    else if (view.type.code == dlpack::kFloat && view.type.bits == 64)
        element = Element::f64;
    else if (view.type.code != dlpack::kFloat || view.type.bits != 32)
        throw Unsuitable{};
    const Index length = view.shape[dimensions - 1];
    const Index size = static_cast<Index>(size_of(element));
    if (rows.count() == 0) {
        rows.element = element;
        rows.length = length;
        rows.library = library;
    }
    const bool adjacent = length <= 1 || view.strides[dimensions - 1] == 1;
    const bool aligned = reinterpret_cast<std::uintptr_t>(view.begin()) % static_cast<std::size_t>(size) == 0;
    if (element != rows.element || length != rows.length || !adjacent || !aligned) throw Unsuitable{};
    const Index count = dimensions == 2 ? view.shape[0] : 1;
    const Index stride = dimensions == 2 ? view.strides[0] * size : 0;
    for (Index i = 0; i < count; ++i) rows.data.append(view.begin() + i * stride);
}

inline bool is_exchanged(py::handle object) { return dlpack::find(Py_TYPE(object.ptr())) != nullptr; }

inline void append_vector(Rows& rows, py::handle object, const Name& name, Access access) {
    if (py::isinstance<py::array>(object)) {
        if (rows.library != nullptr) throw Unsuitable{};
    } else if (rows.library != nullptr || (rows.count() == 0 && is_exchanged(object))) {
        return append_exchanged(rows, object, 1, access);
    } else {
        type_error(name + ": expected a 1-D NumPy array, got " + type_name(object));
    }
    if (proxy(object).nd != 1) value_error(name + ": expected a 1-D array, got shape " + shape_of(object));
    append(rows, object, name, access);
}

// An array of another library that is none of those exchanged, which must neither be taken apart nor be copied.
inline bool is_foreign(py::handle object) {
    return !PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr()) && !py::isinstance<py::array>(object) &&
           PyObject_HasAttrString(object.ptr(), "__dlpack_device__") != 0;
}

// Whether rows, or groups of rows, are such arrays, as those on a GPU are.
inline bool are_foreign(py::handle rows) {
    auto first = py::reinterpret_borrow<py::object>(rows);
    for (int depth = 0; depth < 2 && (PyList_CheckExact(first.ptr()) || PyTuple_CheckExact(first.ptr())); ++depth) {
        PyObject* const item = PySequence_GetItem(first.ptr(), 0);
        if (item == nullptr) return PyErr_Clear(), false;  // there is none
        first = py::reinterpret_steal<py::object>(item);
    }
    return !is_exchanged(first) && is_foreign(first);
}

inline Items::Items(py::handle object, const Name& name, const char* expected) {
    if (!PyTuple_CheckExact(object.ptr()) && !PyList_CheckExact(object.ptr())) {
        if (is_foreign(object)) throw Unsuitable{};
        if (!PySequence_Check(object.ptr()) || py::isinstance<py::str>(object) || py::isinstance<py::bytes>(object))
            type_error(name + ": expected " + expected + ", got " + type_name(object));
    }
    items_ = py::reinterpret_steal<py::object>(PySequence_Tuple(object.ptr()));
    if (!items_) throw py::error_already_set();
}

// Calls visit(number) for the bits that are set in a mask of any width.
template <class Visit>
void each_bit(py::handle mask, const Visit& visit) {
    const auto each_of = [&visit](unsigned long long word, Index first) {
        for (; word != 0; word &= word - 1) visit(first + __builtin_ctzll(word));
    };
    const unsigned long long word = PyLong_AsUnsignedLongLong(mask.ptr());
    if (word != static_cast<unsigned long long>(-1) || PyErr_Occurred() == nullptr) return each_of(word, 0);
    PyErr_Clear();  // wider than a word, or negative, which to_bytes refuses
    const auto bytes = (mask.attr("bit_length")().cast<Index>() + 7) / 8;
    const auto text = mask.attr("to_bytes")(bytes, "little").cast<std::string>();
    for (Index i = 0; i < bytes; ++i) each_of(static_cast<unsigned char>(text[static_cast<std::size_t>(i)]), 8 * i);
}

inline Rows rows_view(py::handle object, const Name& name, Access access) {
    Rows rows{name};
    if (py::isinstance<py::array>(object)) {
        if (proxy(object).nd != 2) value_error(name + ": expected 2 dimensions, got shape " + shape_of(object));
        append(rows, object, name, access);
    } else if (is_exchanged(object)) {
        append_exchanged(rows, object, 2, access);
    } else {
        rows.items = Items(object, name, "a 2-D array or a sequence of 1-D arrays");
        for (Index i = 0; i < rows.items.count(); ++i) append_vector(rows, rows.items[i], name.at(i), access);
    }
    if (rows.count() == 0) value_error(name + ": expected at least one row, got none");
    if (rows.length == 0) value_error(name + ": rows have length 0");
    return rows;
}

// NumPy asks the system for huge pages for arrays of so many bytes and more, PyTorch does not: it takes 53 ms in place
// of 10 to write 80 MB of its fresh memory (Zen 3). Such results are made in Python, in NumPy's memory.
constexpr Index kHuge = 4 * 1024 * 1024;

// A new array for results, of the inputs' library and element type.
inline py::object make_output(const Rows& inputs, std::initializer_list<Index> shape) {
    if (inputs.library == nullptr)
        return py::array(py::reinterpret_borrow<py::dtype>(inputs.type), std::vector<Index>(shape));
    std::int64_t sizes[2] = {0, 0};
    std::copy(shape.begin(), shape.end(), sizes);
    const Index elements = sizes[0] * (shape.size() == 2 ? sizes[1] : 1);
    if (elements * static_cast<Index>(size_of(inputs.element)) >= kHuge) throw Unsuitable{};
    const std::uint8_t code = inputs.element == Element::bf16 ? dlpack::kBfloat : dlpack::kFloat;
    const dlpack::DataType type{code, static_cast<std::uint8_t>(8 * size_of(inputs.element)), 1};
    return dlpack::make(*inputs.library, type, static_cast<std::int32_t>(shape.size()), sizes);
}

inline void require_library(const Rows& rows, const dlpack::Library* library) {
    if (rows.library != library) throw Unsuitable{};
}

// Tells a library that an array it knew has other numbers now.
inline void note_written(const Rows& rows, py::handle out) {
    if (rows.library != nullptr) py::module_::import("fastgc.arrays").attr("written")(out);
}

inline Rows vector_rows(py::handle object, const Name& name, Access access) {
    Rows rows{name};
    append_vector(rows, object, name, access);
    return rows;
}

inline void require_element(const Rows& rows, Element element, const char* like) {
    if (rows.element != element)
        type_error(rows.name + ": expected dtype " + name_of(element) + " like " + like + ", got " +
                   name_of(rows.element));
}

inline void require_output(const Rows& out, Element inputs, const char* like) {
    if (!may_go_out(inputs, out.element)) require_element(out, inputs, like);
}

inline void require_shape(const Rows& rows, Index count, Index length) {
    if (rows.count() != count)
        value_error(rows.name + ": expected " + std::to_string(count) + " rows, got " + std::to_string(rows.count()));
    if (rows.length != length)
        value_error(rows.name + ": expected length " + std::to_string(length) + ", got " + std::to_string(rows.length));
}

class Overlap {
  public:
    explicit Overlap(const Rows& out) : name_(out.name), written_(out.data.begin(), out.count(), out.bytes()) {
        if (!written_.disjoint()) value_error(out.name + ": rows overlap each other in memory");
    }
    void check(const Rows& inputs) const {
        for (Index q = 0; q < inputs.count(); ++q)
            if (written_.reach(inputs.data[q], inputs.bytes()))
                value_error(name_ + ": overlaps " + inputs.name + " row " + std::to_string(q) + " in memory");
    }

  private:
    Name name_;
    Written written_;
};

// A matrix of doubles, row by row: the caller's memory if it is like that, else a copy.
class Matrix {
  public:
    Matrix(py::handle object, const Name& name) {
        const bool known = py::isinstance<py::array>(object) ? read(object) : is_exchanged(object) && exchange(object);
        if (!known) {
            if (is_foreign(object)) throw Unsuitable{};
            const py::array array = py::array::ensure(object);
            if (!array || std::strchr("biuf", array.dtype().kind()) == nullptr)
                type_error(name + ": expected real numbers, got " +
                           (array ? "dtype " + text(array.dtype()) : type_name(object)));
            if (array.ndim() != 2) value_error(name + ": expected 2 dimensions, got shape " + shape_of(array));
            read(py::object(array.attr("astype")("float64")).attr("copy")("C"));
        }
    }
    Index rows() const { return rows_; }
    Index columns() const { return columns_; }
    Index size() const { return rows_ * columns_; }
    const double* data() const { return owner_ ? reinterpret_cast<const double*>(proxy(owner_).data) : copy_.begin(); }
    std::string shape() const { return "(" + std::to_string(rows_) + ", " + std::to_string(columns_) + ")"; }

  private:
    // Whether it was one of the common arrays, float32 or float64: going through NumPy takes microseconds.
    bool read(py::handle array) {
        using Api = py::detail::npy_api;
        constexpr int float32 = 11, float64 = 12;  // NPY_FLOAT, NPY_DOUBLE
        const auto& view = proxy(array);
        const auto& type = *py::detail::array_descriptor_proxy(view.descr);
        if (view.nd != 2 || (type.type_num != float32 && type.type_num != float64) || type.byteorder != '=' ||
            (view.flags & Api::NPY_ARRAY_ALIGNED_) == 0)
            return false;
        rows_ = view.dimensions[0];
        columns_ = view.dimensions[1];
        if (type.type_num == float64 && (view.flags & Api::NPY_ARRAY_C_CONTIGUOUS_) != 0) {
            owner_ = py::reinterpret_borrow<py::object>(array);
            return true;
        }
        copy_.resize(size());
        if (type.type_num == float64)
            copy_from<double>(view.data, view.strides[0], view.strides[1]);
        else
            copy_from<float>(view.data, view.strides[0], view.strides[1]);
        return true;
    }
    // The same for an array of another library.
    bool exchange(py::handle array) {
        const dlpack::Library& library = *dlpack::find(Py_TYPE(array.ptr()));
        dlpack::Tensor view;
        if (!is_plain(library, array.ptr()) || !dlpack::view(library, array.ptr(), view)) throw Unsuitable{};
        if (view.ndim != 2 || view.type.code != dlpack::kFloat || view.type.bits < 32 || view.type.lanes != 1)
            throw Unsuitable{};
        rows_ = view.shape[0];
        columns_ = view.shape[1];
        copy_.resize(size());
        if (view.type.bits == 64)
            copy_from<double>(view.begin(), 8 * view.strides[0], 8 * view.strides[1]);
        else
            copy_from<float>(view.begin(), 4 * view.strides[0], 4 * view.strides[1]);
        return true;
    }
    template <class T>
    void copy_from(const char* data, Index row, Index column) {
        double* to = copy_.begin();
        const auto copy = [&](Index step) __attribute__((always_inline)) {
            for (Index i = 0; i < rows_; ++i, to += columns_)
                for (Index j = 0; j < columns_; ++j)
                    to[j] = static_cast<double>(*reinterpret_cast<const T*>(data + i * row + j * step));
        };
        if (column == sizeof(T))  // several at once: 64 x 64 in 0.2 us in place of 0.8
            copy(sizeof(T));
        else
            copy(column);
    }
    py::object owner_;
    Few<double> copy_;
    Index rows_ = 0, columns_ = 0;
};

inline void require_finite(const Matrix& matrix, const Name& name, Element element) {
    const double* const value = matrix.data();
    const Index i = first_beyond(value, matrix.size(), element);
    if (i < matrix.size()) {
        value_error(name +
                    ("[" + std::to_string(i / matrix.columns()) + ", " + std::to_string(i % matrix.columns()) +
                     "]: expected a number finite in " + name_of(element == Element::f64 ? element : Element::f32) +
                     ", got " + text(py::float_(value[i]))));
    }
}

inline Matrix coefficients_view(py::handle object, const Name& name, Element element) {
    Matrix matrix(object, name);
    if (matrix.size() == 0) value_error(name + ": expected at least one row and column, got shape " + matrix.shape());
    require_finite(matrix, name, element);
    return matrix;
}

inline Matrix finite_matrix(py::handle object, const Name& name) {
    Matrix matrix(object, name);
    const double* const value = matrix.data();
    const Index size = matrix.size();
    // Zero times a number is NaN where that is not finite; four sums, as one alone waits for itself.
    double sums[4] = {0, 0, 0, 0};
    for (Index i = 0; i + 4 <= size; i += 4)
        for (int e = 0; e < 4; ++e) sums[e] += 0.0 * value[i + e];
    for (Index i = size / 4 * 4; i < size; ++i) sums[0] += 0.0 * value[i];
    if (std::isnan((sums[0] + sums[1]) + (sums[2] + sums[3]))) {
        const Index i = std::find_if(value, value + size, [](double x) { return !std::isfinite(x); }) - value;
        value_error(name + ("[" + std::to_string(i / matrix.columns()) + ", " + std::to_string(i % matrix.columns()) +
                            "]: expected a finite number, got " + text(py::float_(value[i]))));
    }
    return matrix;
}

}  // namespace views
}  // namespace fastgc
