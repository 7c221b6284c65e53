// The Python module fastgc._core: view the arguments, check them once, release the GIL, call the core, return.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core.h"
#include "direct.h"

namespace py = pybind11;

namespace {

using fastgc::Index;

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

std::string operator+(const Name& name, const std::string& rest) { return name.text() + rest; }
std::string operator+(const std::string& before, const Name& name) { return before + name.text(); }

std::string text(py::handle object) { return py::str(object).cast<std::string>(); }
std::string type_name(py::handle object) { return text(py::type::handle_of(object).attr("__name__")); }
std::string shape_of(py::handle array) { return text(array.attr("shape")); }

[[noreturn]] void value_error(const std::string& message) { throw py::value_error(message); }
[[noreturn]] void type_error(const std::string& message) { throw py::type_error(message); }

enum class Element { f32, f64, f16, bf16 };

std::size_t size_of(Element element) { return element == Element::f64 ? 8 : element == Element::f32 ? 4 : 2; }
const char* name_of(Element element) {
    constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16"};
    return names[static_cast<int>(element)];
}

// The array behind a handle that is known to be one, without a change of its reference count.
const py::detail::PyArray_Proxy& proxy(py::handle array) { return *py::detail::array_proxy(array.ptr()); }

Element element_of(py::handle array, const Name& name) {
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

// Rows of numbers in memory: what a 2-D array, or a sequence of 1-D arrays, is to the kernels. A caller holds what it
// gave; `owners` holds the items of a sequence, which may change meanwhile, and copies.
struct Rows {
    Name name;
    Element element = Element::f32;
    Index length = 0;
    Few<char*> data;
    std::vector<py::object> owners;
    py::handle type;

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
void append(Rows& rows, py::handle array, const Name& name, Access access) {
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
        rows.owners.push_back(array.attr("copy")("C"));
        view = &proxy(rows.owners.back());
    }
    const Index count = view->nd == 2 ? view->dimensions[0] : 1;
    const Index stride = view->nd == 2 ? view->strides[0] : 0;
    for (Index i = 0; i < count; ++i) rows.data.append(view->data + i * stride);
}

void append_vector(Rows& rows, py::handle object, const Name& name, Access access) {
    if (!py::isinstance<py::array>(object)) type_error(name + ": expected a 1-D NumPy array, got " + type_name(object));
    if (proxy(object).nd != 1) value_error(name + ": expected a 1-D array, got shape " + shape_of(object));
    append(rows, object, name, access);
}

std::vector<py::object> items_of(py::handle object, const Name& name, const char* expected) {
    if (!PySequence_Check(object.ptr()) || py::isinstance<py::str>(object) || py::isinstance<py::bytes>(object))
        type_error(name + ": expected " + expected + ", got " + type_name(object));
    std::vector<py::object> items;
    items.reserve(static_cast<std::size_t>(std::max<Py_ssize_t>(PySequence_Size(object.ptr()), 0)));
    PyErr_Clear();  // a sequence without a length is still one
    for (py::handle item : object) items.push_back(py::reinterpret_borrow<py::object>(item));
    return items;
}

Rows rows_view(py::handle object, const Name& name, Access access) {
    Rows rows{name};
    if (py::isinstance<py::array>(object)) {
        if (proxy(object).nd != 2) value_error(name + ": expected 2 dimensions, got shape " + shape_of(object));
        append(rows, object, name, access);
    } else {
        rows.owners = items_of(object, name, "a 2-D array or a sequence of 1-D arrays");
        const auto given = static_cast<Index>(rows.owners.size());  // copies are added
        for (Index i = 0; i < given; ++i)
            append_vector(rows, py::handle(rows.owners[static_cast<std::size_t>(i)]), name.at(i), access);
    }
    if (rows.count() == 0) value_error(name + ": expected at least one row, got none");
    if (rows.length == 0) value_error(name + ": rows have length 0");
    return rows;
}

Rows vector_rows(py::handle object, const Name& name, Access access) {
    Rows rows{name};
    append_vector(rows, object, name, access);
    return rows;
}

void require_element(const Rows& rows, Element element, const char* like) {
    if (rows.element != element)
        type_error(rows.name + ": expected dtype " + name_of(element) + " like " + like + ", got " +
                   name_of(rows.element));
}

// float16 and bfloat16 may go out as float32, and float32 as either; the result is rounded once in any case.
void require_output(const Rows& out, Element inputs, const char* like) {
    const auto narrow = [](Element element) { return element == Element::f16 || element == Element::bf16; };
    if ((out.element == Element::f32 && narrow(inputs)) || (inputs == Element::f32 && narrow(out.element))) return;
    require_element(out, inputs, like);
}

void require_shape(const Rows& rows, Index count, Index length) {
    if (rows.count() != count)
        value_error(rows.name + ": expected " + std::to_string(count) + " rows, got " + std::to_string(rows.count()));
    if (rows.length != length)
        value_error(rows.name + ": expected length " + std::to_string(length) + ", got " + std::to_string(rows.length));
}

// Rows are compared by address range: interleaved rows of one array do not overlap.
class Overlap {
  public:
    explicit Overlap(const Rows& out) : bytes_(out.bytes()), name_(out.name), starts_(out.data.begin()) {
        count_ = out.count();
        const std::less<> before;
        const auto close = [&](Index i) { return before(starts_[i], starts_[i - 1] + bytes_); };
        Index i = 1;
        while (i < count_ && !close(i)) ++i;
        if (i < count_) {  // not one after the other
            sorted_.assign(starts_, starts_ + count_);
            std::sort(sorted_.begin(), sorted_.end(), before);
            starts_ = sorted_.data();
            for (i = 1; i < count_; ++i)
                if (close(i)) value_error(out.name + ": rows overlap each other in memory");
        }
    }
    void check(const Rows& inputs) const {
        const std::less<> before;
        char* const end = starts_[count_ - 1] + bytes_;
        for (Index q = 0; q < inputs.count(); ++q) {
            char* const begin = inputs.data[q];
            if (!before(begin, end) || !before(starts_[0], begin + inputs.bytes())) continue;
            // Outputs are disjoint, so only the last one that starts before the input's end can reach into it.
            char* const* const after = std::lower_bound(starts_, starts_ + count_, begin + inputs.bytes(), before);
            if (after != starts_ && before(begin, *(after - 1) + bytes_))
                value_error(name_ + ": overlaps " + inputs.name + " row " + std::to_string(q) + " in memory");
        }
    }

  private:
    std::size_t bytes_;
    Name name_;
    char* const* starts_;  // in increasing order
    Index count_;
    std::vector<char*> sorted_;
};

// A matrix of doubles, row by row: the caller's memory if it is like that, else a copy.
class Matrix {
  public:
    Matrix(py::handle object, const Name& name) {
        if (!py::isinstance<py::array>(object) || !read(object)) {
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
            copy_from<double>(view);
        else
            copy_from<float>(view);
        return true;
    }
    template <class T>
    void copy_from(const py::detail::PyArray_Proxy& view) {
        double* to = copy_.begin();
        for (Index i = 0; i < rows_; ++i)
            for (Index j = 0; j < columns_; ++j)
                *to++ = static_cast<double>(
                    *reinterpret_cast<const T*>(view.data + i * view.strides[0] + j * view.strides[1]));
    }
    py::object owner_;
    Few<double> copy_;
    Index rows_ = 0, columns_ = 0;
};

Matrix coefficients_view(py::handle object, const Name& name, Element element) {
    Matrix matrix(object, name);
    if (matrix.size() == 0) value_error(name + ": expected at least one row and column, got shape " + matrix.shape());
    const double most =
        element == Element::f64 ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
    const double* const value = matrix.data();
    const Index size = matrix.size();
    Index beyond = 0;  // counted without a branch first: a 64 x 64 matrix takes 3 us with one, longer than short rows
    for (Index i = 0; i < size; ++i) beyond += !(std::fabs(value[i]) <= most);
    if (beyond > 0) {
        const Index i = std::find_if(value, value + size, [=](double x) { return !(std::fabs(x) <= most); }) - value;
        value_error(name +
                    ("[" + std::to_string(i / matrix.columns()) + ", " + std::to_string(i % matrix.columns()) +
                     "]: expected a number finite in " + name_of(element == Element::f64 ? element : Element::f32) +
                     ", got " + text(py::float_(value[i]))));
    }
    return matrix;
}

Index positive(py::handle object, const char* name) {
    if (!PyIndex_Check(object.ptr()) || py::isinstance<py::bool_>(object))
        type_error(std::string(name) + ": expected a positive integer, got " + text(py::repr(object)));
    const Py_ssize_t value = PyNumber_AsSsize_t(object.ptr(), nullptr);  // clips, as no error type is given
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (value < 1) value_error(std::string(name) + ": expected a positive integer, got " + text(py::repr(object)));
    return value;
}

fastgc::Options options(py::handle threads, py::handle isa) {
    fastgc::Options options;
    if (!threads.is_none()) options.threads = static_cast<int>(std::min<Index>(positive(threads, "threads"), 1 << 20));
    options.kernels =
        isa.is_none() ? &fastgc::default_kernels() : &fastgc::kernels_named(py::str(isa).cast<std::string>(), "isa");
    return options;
}

// Calls body with null pointers of the types of inputs and outputs: the one place where types at run time become
// templates.
template <class Body>
void with_types(Element in, Element out, std::size_t bytes, const Body& body) {
    // Giving up the GIL and getting it back takes as long as moving a few KB, and much longer where others want it.
    std::optional<py::gil_scoped_release> release;
    if (bytes > 32 * 1024) release.emplace();
    using fastgc::BFloat16;
    using fastgc::Float16;
    const auto into = [&](auto* from) {
        if (out == Element::f16)
            body(from, static_cast<Float16*>(nullptr));
        else if (out == Element::bf16)
            body(from, static_cast<BFloat16*>(nullptr));
        else
            body(from, static_cast<float*>(nullptr));
    };
    if (in == Element::f64) return body(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    if (in == Element::f32) return into(static_cast<float*>(nullptr));
    const auto same_or_float = [&](auto* from) {
        if (out == Element::f32)
            body(from, static_cast<float*>(nullptr));
        else
            body(from, from);
    };
    if (in == Element::f16) return same_or_float(static_cast<Float16*>(nullptr));
    same_or_float(static_cast<BFloat16*>(nullptr));
}

py::object lincomb(py::handle coefficients, py::handle inputs, py::object out, bool accumulate, py::handle threads,
                   py::handle isa) {
    const Rows in = rows_view(inputs, "inputs", Access::read);
    const Matrix c = coefficients_view(coefficients, "coefficients", in.element);
    if (c.columns() != in.count())
        value_error("coefficients: expected " + std::to_string(in.count()) +
                    " columns, one for each input, got shape " + c.shape());
    const fastgc::Options how = options(threads, isa);
    if (out.is_none()) {
        if (accumulate) value_error("out: must be given to accumulate into");
        out = py::array(py::reinterpret_borrow<py::dtype>(in.type), std::vector<Index>{c.rows(), in.length});
    }
    const Rows result = rows_view(out, "out", Access::write);
    require_output(result, in.element, "inputs");
    require_shape(result, c.rows(), in.length);
    Overlap(result).check(in);
    with_types(in.element, result.element, in.total() + result.total(), [&](auto* from, auto* to) {
        using In = std::remove_pointer_t<decltype(from)>;
        using Out = std::remove_pointer_t<decltype(to)>;
        fastgc::lincomb<In, Out>(c.data(), c.rows(), c.columns(), in.as<In>(), result.as<Out>(), in.length, accumulate,
                                 how);
    });
    return out;
}

py::object encode(py::handle coefficients, py::handle gradients, py::object out, bool accumulate, py::handle threads,
                  py::handle isa) {
    const Rows in = rows_view(gradients, "gradients", Access::read);
    const Matrix c = coefficients_view(coefficients, "coefficients", in.element);
    if (c.rows() != in.count())
        value_error("coefficients: expected " + std::to_string(in.count()) +
                    " rows, one for each gradient, got shape " + c.shape());
    const Index length = fastgc::block_length(in.length, c.columns());
    const fastgc::Options how = options(threads, isa);
    if (out.is_none()) {
        if (accumulate) value_error("out: must be given to accumulate into");
        out = py::array(py::reinterpret_borrow<py::dtype>(in.type), std::vector<Index>{length});
    }
    const Rows result = vector_rows(out, "out", Access::write);
    require_output(result, in.element, "gradients");
    require_shape(result, 1, length);
    Overlap(result).check(in);
    with_types(in.element, result.element, in.total() + result.total(), [&](auto* from, auto* to) {
        using In = std::remove_pointer_t<decltype(from)>;
        using Out = std::remove_pointer_t<decltype(to)>;
        fastgc::encode<In, Out>(c.data(), c.rows(), c.columns(), in.as<In>(), in.length, result.as<Out>()[0],
                                accumulate, how);
    });
    return out;
}

py::object decode(py::handle weights, py::handle messages, py::handle length, py::object out, py::handle threads,
                  py::handle isa) {
    const auto weight_items = items_of(weights, "weights", "a sequence with a matrix for each group");
    const auto message_items = items_of(messages, "messages", "a sequence with the messages of each group");
    if (weight_items.empty()) value_error("weights: expected at least one group, got none");
    if (weight_items.size() != message_items.size())
        value_error("messages: expected " + std::to_string(weight_items.size()) +
                    " groups, one for each of weights, got " + std::to_string(message_items.size()));
    const Index total = positive(length, "length");
    std::vector<Rows> rows;
    std::vector<Matrix> matrices;
    for (std::size_t g = 0; g < weight_items.size(); ++g) {
        const Index number = static_cast<Index>(g);
        rows.push_back(rows_view(message_items[g], {"messages", number}, Access::read));
        require_element(rows[g], rows[0].element, "messages[0]");
        matrices.push_back(coefficients_view(weight_items[g], {"weights", number}, rows[g].element));
        if (matrices[g].rows() != matrices[0].rows() || matrices[g].columns() != rows[g].count())
            value_error(Name("weights", number) + ": expected shape (" + std::to_string(matrices[0].rows()) + ", " +
                        std::to_string(rows[g].count()) + "), got " + matrices[g].shape());
        require_shape(rows[g], rows[g].count(), fastgc::block_length(total, matrices[0].rows()));
    }
    const fastgc::Options how = options(threads, isa);
    if (out.is_none()) out = py::array(py::reinterpret_borrow<py::dtype>(rows[0].type), std::vector<Index>{total});
    const Rows result = vector_rows(out, "out", Access::write);
    require_output(result, rows[0].element, "messages");
    require_shape(result, 1, total);
    const Overlap overlap(result);
    for (const Rows& group : rows) overlap.check(group);
    with_types(rows[0].element, result.element, rows[0].total() + result.total(), [&](auto* from, auto* to) {
        using In = std::remove_pointer_t<decltype(from)>;
        using Out = std::remove_pointer_t<decltype(to)>;
        std::vector<fastgc::Received<In>> groups;
        for (std::size_t g = 0; g < rows.size(); ++g)
            groups.push_back({matrices[g].data(), rows[g].as<In>(), rows[g].count()});
        fastgc::decode<In, Out>(groups.data(), static_cast<Index>(groups.size()), matrices[0].rows(), total,
                                result.as<Out>()[0], how);
    });
    return out;
}

// The functions above as callables that stand in for those of fastgc.kernels.
using Value = PyObject* const*;
py::object or_none(PyObject* value) {
    return value == nullptr ? py::none() : py::reinterpret_borrow<py::object>(value);
}
bool truth(PyObject* value) {
    const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
}

py::object direct(const std::string& name, py::object function) {
    if (name == "lincomb")
        return fastgc::direct(std::move(function),
                              {{"coefficients", "inputs", "out", "accumulate", "threads"}, 5, 2, 3}, [](Value value) {
                                  return lincomb(value[0], value[1], or_none(value[2]), truth(value[3]),
                                                 or_none(value[4]), py::none())
                                      .release()
                                      .ptr();
                              });
    if (name == "encode")
        return fastgc::direct(
            std::move(function), {{"coefficients", "gradients", "out", "accumulate", "threads"}, 5, 2, 3},
            [](Value value) {
                return encode(value[0], value[1], or_none(value[2]), truth(value[3]), or_none(value[4]), py::none())
                    .release()
                    .ptr();
            });
    if (name == "decode")
        return fastgc::direct(
            std::move(function), {{"weights", "messages", "length", "out", "threads"}, 5, 3, 4}, [](Value value) {
                return decode(value[0], value[1], value[2], or_none(value[3]), or_none(value[4]), py::none())
                    .release()
                    .ptr();
            });
    value_error("name: expected lincomb, encode or decode, got " + name);
}

// Patterns as rows of int64, each naming different rows of a generator: one pattern, or a batch.
struct Patterns {
    py::array_t<std::int64_t, py::array::c_style> array;
    bool single;
    Index width() const { return array.shape(array.ndim() - 1); }
    Index batch() const { return single ? 1 : array.shape(0); }
};

Patterns patterns_view(py::handle object, Index n, Index k, bool square) {
    using Numbers = py::array_t<std::int64_t, py::array::c_style>;
    const bool exact = py::isinstance<Numbers>(object);
    const py::array given = exact ? py::reinterpret_borrow<py::array>(object) : py::array::ensure(object);
    if (!given) type_error("patterns: expected integers, got " + type_name(object));
    if (given.dtype().kind() != 'i' && given.dtype().kind() != 'u')
        type_error("patterns: expected integers, got dtype " + text(given.dtype()));
    const std::string size = std::to_string(k);
    const Index width = given.ndim() > 0 ? given.shape(given.ndim() - 1) : 0;
    if (given.ndim() < 1 || given.ndim() > 2 || width < k || (square && width > k))
        value_error("patterns: expected shape " +
                    (square ? "(B, " + size + ") or (" + size + ",)" : "(B, q) or (q,) with q >= k,") +
                    " for k = " + size + ", got " + shape_of(given));
    const bool aligned = (given.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    // Unsigned numbers beyond int64 come out negative, and are refused as that.
    const Patterns patterns{exact && aligned ? py::reinterpret_borrow<Numbers>(given)
                                             : Numbers(py::object(given.attr("astype")("int64", "C"))),
                            given.ndim() == 1};
    std::vector<unsigned char> seen(static_cast<std::size_t>(n));
    const std::int64_t* row = patterns.array.data();
    for (Index b = 0; b < patterns.batch(); ++b, row += width) {
        bool twice = false;
        for (Index i = 0; i < width; ++i) {
            if (row[i] < 0 || row[i] >= n)
                value_error(Name("patterns", b) + ": row " + text(given.attr("reshape")(-1)[py::int_(b * width + i)]) +
                            " is not among the generator's " + std::to_string(n) + " rows");
            const auto at = static_cast<std::size_t>(row[i]);
            twice |= seen[at] != 0;
            seen[at] = 1;
        }
        if (twice)
            value_error(Name("patterns", b) + ": a row is named twice in " +
                        text(py::tuple(py::array(width, row).attr("tolist")())));
        for (Index i = 0; i < width; ++i) seen[static_cast<std::size_t>(row[i])] = 0;
    }
    return patterns;
}

Matrix finite_matrix(py::handle object, const Name& name) {
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

Matrix generator_view(py::handle object) {
    Matrix generator = finite_matrix(object, "generator");
    if (generator.columns() < 1 || generator.columns() > generator.rows())
        value_error("generator: expected shape (n, k) with 0 < k <= n, got " + generator.shape());
    return generator;
}

// The weights of patterns, filled by body(weights, suspicious) without the GIL, and a list of the suspicious patterns.
template <class Body>
py::tuple weights_of(const Patterns& patterns, Index rows, const Body& body) {
    const Index batch = patterns.batch(), columns = patterns.width();
    py::array_t<double> weights(patterns.single ? std::vector<Index>{rows, columns}
                                                : std::vector<Index>{batch, rows, columns});
    double* result = weights.mutable_data();
    std::vector<unsigned char> suspicious(static_cast<std::size_t>(batch));
    {
        py::gil_scoped_release release;
        body(result, suspicious.data());
    }
    py::list doubtful;
    for (Index b = 0; b < batch; ++b)
        if (suspicious[static_cast<std::size_t>(b)] != 0) doubtful.append(b);
    return py::make_tuple(std::move(weights), std::move(doubtful));
}

py::tuple decoding_weights(py::handle generator, py::handle patterns, py::handle threads, py::handle isa) {
    const Matrix matrix = generator_view(generator);
    const Index k = matrix.columns();
    const Patterns chosen = patterns_view(patterns, matrix.rows(), k, true);
    const fastgc::Options how = options(threads, isa);
    return weights_of(chosen, k, [&](double* weights, unsigned char* suspicious) {
        fastgc::decoding_weights(matrix.data(), k, chosen.array.data(), chosen.batch(), weights, suspicious, how);
    });
}

py::tuple least_norm_weights(py::handle generator, py::handle patterns, py::handle target, py::handle threads,
                             py::handle isa) {
    const Matrix matrix = generator_view(generator);
    const Index k = matrix.columns();
    const Patterns chosen = patterns_view(patterns, matrix.rows(), k, false);
    const Matrix wanted = finite_matrix(target, "target");
    if (wanted.rows() < 1 || wanted.columns() != k)
        value_error("target: expected shape (m, " + std::to_string(k) + "), got " + wanted.shape());
    const fastgc::Options how = options(threads, isa);
    return weights_of(chosen, wanted.rows(), [&](double* weights, unsigned char* suspicious) {
        fastgc::least_norm_weights(matrix.data(), k, chosen.array.data(), chosen.batch(), chosen.width(), wanted.data(),
                                   wanted.rows(), weights, suspicious, how);
    });
}

// Appends the numbers of the bits that are set in a mask of any width.
void append_bits(py::handle mask, std::vector<std::int64_t>& found) {
    const auto append = [&found](unsigned long long word, Index first) {
        for (; word != 0; word &= word - 1) found.push_back(first + __builtin_ctzll(word));
    };
    const unsigned long long word = PyLong_AsUnsignedLongLong(mask.ptr());
    if (word != static_cast<unsigned long long>(-1) || PyErr_Occurred() == nullptr) return append(word, 0);
    PyErr_Clear();  // wider than a word, or negative, which to_bytes refuses
    const auto bytes = (mask.attr("bit_length")().cast<Index>() + 7) / 8;
    const auto text = mask.attr("to_bytes")(bytes, "little").cast<std::string>();
    for (Index i = 0; i < bytes; ++i) append(static_cast<unsigned char>(text[static_cast<std::size_t>(i)]), 8 * i);
}

py::array_t<std::int64_t> positions(py::handle masks) {
    std::vector<std::int64_t> found;
    found.reserve(64);
    if (PyLong_Check(masks.ptr()) != 0) {
        append_bits(masks, found);
        return py::array_t<std::int64_t>(static_cast<Index>(found.size()), found.data());
    }
    Index count = 0;
    for (const py::object& mask : items_of(masks, "masks", "an integer or a sequence of integers")) {
        append_bits(mask, found);
        ++count;
    }
    const Index width = static_cast<Index>(found.size()) / std::max<Index>(count, 1);
    return py::array_t<std::int64_t>({count, width}, found.data());
}

}  // namespace

// Needs no GIL: nothing is shared between calls but the choice of an instruction set, which is atomic.
PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
    using namespace py::literals;
    module.doc() = "Kernels of fastgc in C++. Use fastgc.kernels, which documents and dispatches them.";
    module.def("lincomb", &lincomb, "coefficients"_a, "inputs"_a, "out"_a = py::none(), "accumulate"_a = false,
               "threads"_a = py::none(), "isa"_a = py::none());
    module.def("encode", &encode, "coefficients"_a, "gradients"_a, "out"_a = py::none(), "accumulate"_a = false,
               "threads"_a = py::none(), "isa"_a = py::none());
    module.def("decode", &decode, "weights"_a, "messages"_a, "length"_a, "out"_a = py::none(), "threads"_a = py::none(),
               "isa"_a = py::none());
    module.def("direct", &direct, "name"_a, "function"_a);
    module.def("decoding_weights", &decoding_weights, "generator"_a, "patterns"_a, "threads"_a = py::none(),
               "isa"_a = py::none());
    module.def("least_norm_weights", &least_norm_weights, "generator"_a, "patterns"_a, "target"_a,
               "threads"_a = py::none(), "isa"_a = py::none());
    module.def("positions", &positions, "masks"_a);
    module.def("isas", [] {
        std::vector<std::string> names;
        for (const fastgc::Kernels* kernels : fastgc::available_kernels()) names.push_back(kernels->name);
        py::list list;
        for (const std::string& name : names) list.append(name);
        return py::tuple(list);
    });
    module.def("isa", [] { return fastgc::default_kernels().name; });
    module.def("fused", [](const std::string& isa) { return fastgc::kernels_named(isa, "isa").fused; }, "isa"_a);
}
