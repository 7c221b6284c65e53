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
#include "object_caches.h"
#include "threads.h"
#include "views.h"

namespace py = pybind11;

#ifdef __clang__
# define FASTGC_COMPILER ""  // its version begins with its name
#else
# define FASTGC_COMPILER "GCC "
#endif

namespace {

using fastgc::Element;
using fastgc::Index;
using namespace fastgc::views;

Index positive(py::handle object, const char* name) {
    if (!PyIndex_Check(object.ptr()) || py::isinstance<py::bool_>(object))
        type_error(std::string(name) + ": expected a positive integer, got " + text(py::repr(object)));
    const Py_ssize_t value = PyNumber_AsSsize_t(object.ptr(), nullptr);  // clips, as no error type is given
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (value < 1) value_error(std::string(name) + ": expected a positive integer, got " + text(py::repr(object)));
    return value;
}

int thread_limit(py::handle object, const char* name) {
    return static_cast<int>(std::min<Index>(positive(object, name), 1 << 20));
}

fastgc::Options options(py::handle threads, py::handle isa) {
    fastgc::Options options;
    if (!threads.is_none()) options.threads = thread_limit(threads, "threads");
    options.kernels =
        isa.is_none() ? &fastgc::default_kernels() : &fastgc::kernels_named(py::str(isa).cast<std::string>(), "isa");
    return options;
}

// As fastgc::with_types. Giving up the GIL and getting it back takes as long as moving a few KB, and much longer where
// others want it.
template <class Body>
void with_types(Element in, Element out, std::size_t bytes, const Body& body) {
    std::optional<py::gil_scoped_release> release;
    if (bytes > 32 * 1024) release.emplace();
    fastgc::with_types(in, out, body);
}

py::object lincomb(py::handle coefficients, py::handle inputs, py::object out, bool accumulate, py::handle threads,
                   py::handle isa) {
    const Rows in = rows_view(inputs, "inputs", Access::read);
    const Matrix c = coefficients_view(coefficients, "coefficients", in.element);
    if (c.columns() != in.count())
        value_error("coefficients: expected " + std::to_string(in.count()) +
                    " columns, one for each input, got shape " + c.shape());
    const fastgc::Options how = options(threads, isa);
    const bool made = out.is_none();
    if (made) {
        if (accumulate) value_error("out: must be given to accumulate into");
        out = make_output(in, {c.rows(), in.length});
    }
    const Rows result = rows_view(out, "out", Access::write);
    require_library(result, in.library);
    require_output(result, in.element, "inputs");
    require_shape(result, c.rows(), in.length);
    Overlap(result).check(in);
    with_types(in.element, result.element, in.total() + result.total(), [&](auto* from, auto* to) {
        using In = std::remove_pointer_t<decltype(from)>;
        using Out = std::remove_pointer_t<decltype(to)>;
        fastgc::lincomb<In, Out>(c.data(), c.rows(), c.columns(), in.as<In>(), result.as<Out>(), in.length, accumulate,
                                 how);
    });
    if (!made) note_written(result, out);
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
    const bool made = out.is_none();
    if (made) {
        if (accumulate) value_error("out: must be given to accumulate into");
        out = make_output(in, {length});
    }
    const Rows result = vector_rows(out, "out", Access::write);
    require_library(result, in.library);
    require_output(result, in.element, "gradients");
    require_shape(result, 1, length);
    Overlap(result).check(in);
    with_types(in.element, result.element, in.total() + result.total(), [&](auto* from, auto* to) {
        using In = std::remove_pointer_t<decltype(from)>;
        using Out = std::remove_pointer_t<decltype(to)>;
        fastgc::encode<In, Out>(c.data(), c.rows(), c.columns(), in.as<In>(), in.length, result.as<Out>()[0],
                                accumulate, how);
    });
    if (!made) note_written(result, out);
    return out;
}

// What decoding is given: each group's weights and messages.
struct Messages {
    Items items;
    std::vector<Rows> rows;
    std::vector<Matrix> weights;
    Index length;

    Messages(py::handle weights_, py::handle messages, py::handle length_) {
        const Items matrices(weights_, "weights", "a sequence with a matrix for each group");
        items = Items(messages, "messages", "a sequence with the messages of each group");
        if (matrices.count() == 0) value_error("weights: expected at least one group, got none");
        if (matrices.count() != items.count())
            value_error("messages: expected " + std::to_string(matrices.count()) +
                        " groups, one for each of weights, got " + std::to_string(items.count()));
        length = positive(length_, "length");
        rows.reserve(static_cast<std::size_t>(items.count()));
        weights.reserve(rows.capacity());
        for (Index number = 0; number < items.count(); ++number) {
            const auto g = static_cast<std::size_t>(number);
            rows.push_back(rows_view(items[number], {"messages", number}, Access::read));
            require_library(rows[g], rows[0].library);
            require_element(rows[g], rows[0].element, "messages[0]");
            const Name name("weights", number);
            weights.push_back(coefficients_view(matrices[number], name, rows[g].element));
            require_shape_of(weights[g], name, g, weights[0].rows());
            require_shape(rows[g], rows[g].count(), fastgc::block_length(length, weights[0].rows()));
        }
    }

    // A group's matrix, of as many rows.
    void require_shape_of(const Matrix& matrix, const Name& name, std::size_t g, Index expected) const {
        if (matrix.rows() != expected || matrix.columns() != rows[g].count())
            value_error(name + ": expected shape (" + std::to_string(expected) + ", " +
                        std::to_string(rows[g].count()) + "), got " + matrix.shape());
    }

    Rows output(py::handle out) const {
        Rows result = vector_rows(out, "out", Access::write);
        require_library(result, rows[0].library);
        require_output(result, rows[0].element, "messages");
        require_shape(result, 1, length);
        const Overlap overlap(result);
        for (const Rows& group : rows) overlap.check(group);
        return result;
    }

    template <class In>
    std::vector<fastgc::Received<In>> groups() const {
        std::vector<fastgc::Received<In>> groups;
        groups.reserve(rows.size());
        for (std::size_t g = 0; g < rows.size(); ++g)
            groups.push_back({weights[g].data(), rows[g].as<In>(), rows[g].count()});
        return groups;
    }
};

py::object decode(py::handle weights, py::handle messages, py::handle length, py::object out, py::handle threads,
                  py::handle isa) {
    const Messages given(weights, messages, length);
    const fastgc::Options how = options(threads, isa);
    const bool made = out.is_none();
    if (made) out = make_output(given.rows[0], {given.length});
    const Rows result = given.output(out);
    with_types(given.rows[0].element, result.element, given.rows[0].total() + result.total(),
               [&](auto* from, auto* to) {
                   using In = std::remove_pointer_t<decltype(from)>;
                   using Out = std::remove_pointer_t<decltype(to)>;
                   const auto groups = given.groups<In>();
                   fastgc::decode<In, Out>(groups.data(), static_cast<Index>(groups.size()), given.weights[0].rows(),
                                           given.length, result.as<Out>()[0], how);
               });
    if (!made) note_written(result, out);
    return out;
}

// A tuple of what `make` gives for each item of a tuple: a reference of the tuple's own, or null where it has failed.
template <class Make>
py::object mapped(py::handle items, const char* name, const Make& make) {
    if (PyTuple_CheckExact(items.ptr()) == 0) type_error(std::string(name) + ": expected a tuple");
    const Py_ssize_t count = PyTuple_GET_SIZE(items.ptr());
    auto made = py::reinterpret_steal<py::object>(PyTuple_New(count));
    if (!made) throw py::error_already_set();
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* const item = make(PyTuple_GET_ITEM(items.ptr(), i));
        if (item == nullptr) throw py::error_already_set();
        PyTuple_SET_ITEM(made.ptr(), i, item);
    }
    return made;
}

// Null for messages of other libraries.
py::object decode_by_pattern(py::handle weights, py::handle patterns, py::handle members, py::handle messages,
                             py::handle length, py::object out) {
    const py::object sent = mapped(members, "members", [&](PyObject* group) {
        const auto one = [&](PyObject* worker) { return PyObject_GetItem(messages.ptr(), worker); };
        return mapped(group, "members", one).release().ptr();
    });
    if (are_foreign(sent)) return py::object();
    const auto solved = [&](PyObject* pattern) { return PyObject_CallOneArg(weights.ptr(), pattern); };
    return decode(mapped(patterns, "patterns", solved), sent, length, std::move(out), py::none(), py::none());
}

py::tuple decode_checked(py::handle weights, py::handle checks, py::handle messages, py::handle length,
                         py::handle floors, double least, py::handle threads, py::handle isa) {
    const Messages given(weights, messages, length);
    const Items items(checks, "checks", "a sequence with a matrix for each group");
    if (items.count() != given.items.count())
        value_error("checks: expected " + std::to_string(given.items.count()) +
                    " matrices, one for each group of weights, got " + std::to_string(items.count()));
    std::vector<Matrix> matrices;
    matrices.reserve(given.rows.size());
    for (std::size_t g = 0; g < given.rows.size(); ++g) {
        const Name name("checks", static_cast<Index>(g));
        matrices.emplace_back(items[static_cast<Index>(g)], name);
        given.require_shape_of(matrices[g], name, g, matrices[g].rows());
        require_finite(matrices[g], name, given.rows[g].element);
    }
    const Matrix allowed(floors, "floors");
    if (allowed.rows() != items.count() || allowed.columns() != 2)
        value_error("floors: expected shape (" + std::to_string(items.count()) + ", 2), got " + allowed.shape());
    if (!(least >= 0)) value_error("least: expected a number of at least 0, got " + std::to_string(least));
    const fastgc::Options how = options(threads, isa);
    const Element element = given.rows[0].element;
    const bool wide = element == Element::f64;
    const py::array out(wide ? py::dtype::of<double>() : py::dtype::of<float>(), std::vector<Index>{given.length});
    const Rows result = given.output(out);
    std::vector<Index> doubtful;
    with_types(element, result.element, given.rows[0].total() + result.total(), [&](auto* from, auto* to) {
        using In = std::remove_pointer_t<decltype(from)>;
        using Out = std::remove_pointer_t<decltype(to)>;
        if constexpr (std::is_same_v<Out, fastgc::Compute<In>>) {
            auto groups = given.groups<In>();
            for (std::size_t g = 0; g < groups.size(); ++g) {
                groups[g].checks = matrices[g].data();
                groups[g].spares = matrices[g].rows();
            }
            static_assert(sizeof(fastgc::Floor) == 2 * sizeof(double));
            doubtful = fastgc::decode_checked<In>(groups.data(), static_cast<Index>(groups.size()),
                                                  given.weights[0].rows(), given.length, result.as<Out>()[0],
                                                  reinterpret_cast<const fastgc::Floor*>(allowed.data()), least, how);
        }
    });
    py::list stretches;
    for (const Index stretch : doubtful) stretches.append(stretch);
    return py::make_tuple(out, stretches);
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

Matrix target_view(py::handle object, Index k) {
    Matrix target = finite_matrix(object, "target");
    if (target.rows() < 1 || target.columns() != k)
        value_error("target: expected shape (m, " + std::to_string(k) + "), got " + target.shape());
    return target;
}

// The table that few_missing_table() made for these, or null for none. Only its shape is looked at.
const double* table_view(py::handle object, const Matrix& generator, const Matrix& target) {
    using Table = py::array_t<double, py::array::c_style>;
    if (object.is_none()) return nullptr;
    const fastgc::FewMissing at(generator.rows(), generator.columns(), target.rows());
    if (py::isinstance<Table>(object)) {
        const auto table = py::reinterpret_borrow<Table>(object);
        const bool aligned = (table.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
        if (aligned && table.ndim() == 2 && table.shape(0) == at.rows && table.shape(1) == at.width)
            return table.data();
    }
    value_error("table: expected what few_missing_table made of a generator and a target of these shapes");
}

py::object few_missing_table(py::handle generator, py::handle target) {
    const Matrix matrix = generator_view(generator);
    const Matrix wanted = target_view(target, matrix.columns());
    const fastgc::FewMissing at(matrix.rows(), matrix.columns(), wanted.rows());
    std::vector<double> table;
    {
        py::gil_scoped_release release;
        table = fastgc::few_missing_table(matrix.data(), matrix.rows(), matrix.columns(), wanted.data(), wanted.rows());
    }
    if (table.empty()) return py::none();
    return py::array_t<double>({at.rows, at.width}, table.data());
}

py::tuple least_norm_weights(py::handle generator, py::handle patterns, py::handle target, py::handle table,
                             py::handle threads, py::handle isa) {
    const Matrix matrix = generator_view(generator);
    const Index k = matrix.columns();
    const Patterns chosen = patterns_view(patterns, matrix.rows(), k, false);
    const Matrix wanted = target_view(target, k);
    const double* const known = table_view(table, matrix, wanted);
    const fastgc::Options how = options(threads, isa);
    return weights_of(chosen, wanted.rows(), [&](double* weights, unsigned char* suspicious) {
        fastgc::few_missing_weights(known, matrix.data(), matrix.rows(), k, chosen.array.data(), chosen.batch(),
                                    chosen.width(), wanted.data(), wanted.rows(), weights, suspicious, how);
    });
}

py::array_t<std::int64_t> positions(py::handle masks) {
    std::vector<std::int64_t> found;
    found.reserve(64);
    const auto append = [&found](std::int64_t number) { found.push_back(number); };
    if (PyLong_Check(masks.ptr()) != 0) {
        each_bit(masks, append);
        return py::array_t<std::int64_t>(static_cast<Index>(found.size()), found.data());
    }
    const Items items(masks, "masks", "an integer or a sequence of integers");
    for (Index i = 0; i < items.count(); ++i) each_bit(items[i], append);
    const Index width = static_cast<Index>(found.size()) / std::max<Index>(items.count(), 1);
    return py::array_t<std::int64_t>({items.count(), width}, found.data());
}

// The weights of one pattern as its mask gives it, in a microsecond for k = 5. What is to be refused, or must be
// ranked, is left to Python.
py::object pattern_weights(py::handle generator, py::handle mask, py::handle target, py::handle table) {
    const Matrix matrix(generator, "generator");  // weights from numbers that are not finite are suspicious
    const Index k = matrix.columns();
    if (k < 1 || PyLong_CheckExact(mask.ptr()) == 0) throw fastgc::Unsuitable{};
    Few<std::int64_t> rows;
    each_bit(mask, [&rows](std::int64_t row) { rows.append(row); });
    const Index q = rows.size();
    if (q < k || rows[q - 1] >= matrix.rows()) throw fastgc::Unsuitable{};
    const bool inverts = target.is_none() && q == k;
    std::optional<Matrix> wanted;
    std::vector<double> identity;
    if (!target.is_none()) {
        wanted.emplace(finite_matrix(target, "target"));
        if (wanted->rows() < 1 || wanted->columns() != k) throw fastgc::Unsuitable{};
    } else if (!inverts) {
        identity.resize(static_cast<std::size_t>(k * k));
        for (Index i = 0; i < k; ++i) identity[static_cast<std::size_t>(i * (k + 1))] = 1;
    }
    const Index m = wanted ? wanted->rows() : k;
    const double* const known = wanted ? table_view(table, matrix, *wanted) : nullptr;
    const auto& numpy = py::detail::npy_api::get();  // pybind11's own arrays take vectors of sizes and of strides
    Py_intptr_t shape[2] = {m, q};
    py::array weights = py::reinterpret_steal<py::array>(numpy.PyArray_NewFromDescr_(
        numpy.PyArray_Type_, py::dtype::of<double>().release().ptr(), 2, shape, nullptr, nullptr, 0, nullptr));
    if (!weights) throw py::error_already_set();
    auto* const values = static_cast<double*>(weights.mutable_data());
    fastgc::Options how;
    how.threads = 1;
    how.kernels = &fastgc::default_kernels();
    unsigned char suspicious = 0;
    if (inverts)
        fastgc::decoding_weights(matrix.data(), k, rows.begin(), 1, values, &suspicious, how);
    else
        fastgc::few_missing_weights(known, matrix.data(), matrix.rows(), k, rows.begin(), 1, q,
                                    wanted ? wanted->data() : identity.data(), m, values, &suspicious, how);
    if (suspicious != 0) throw fastgc::Unsuitable{};
    py::detail::array_proxy(weights.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return std::move(weights);
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
                                  if (are_foreign(value[1])) return static_cast<PyObject*>(nullptr);
                                  return lincomb(value[0], value[1], or_none(value[2]), truth(value[3]),
                                                 or_none(value[4]), py::none())
                                      .release()
                                      .ptr();
                              });
    if (name == "encode")
        return fastgc::direct(
            std::move(function), {{"coefficients", "gradients", "out", "accumulate", "threads"}, 5, 2, 3},
            [](Value value) {
                if (are_foreign(value[1])) return static_cast<PyObject*>(nullptr);
                return encode(value[0], value[1], or_none(value[2]), truth(value[3]), or_none(value[4]), py::none())
                    .release()
                    .ptr();
            });
    if (name == "decode")
        return fastgc::direct(
            std::move(function), {{"weights", "messages", "length", "out", "threads"}, 5, 3, 4}, [](Value value) {
                if (are_foreign(value[1])) return static_cast<PyObject*>(nullptr);
                return decode(value[0], value[1], value[2], or_none(value[3]), or_none(value[4]), py::none())
                    .release()
                    .ptr();
            });
    if (name == "decode_by_pattern")
        return fastgc::direct(
            std::move(function), {{"weights", "patterns", "members", "messages", "length", "out"}, 6, 5, 6},
            [](Value value) {
                return decode_by_pattern(value[0], value[1], value[2], value[3], value[4], or_none(value[5]))
                    .release()
                    .ptr();
            });
    if (name == "pattern_weights")
        return fastgc::direct(
            std::move(function), {{"generator", "mask", "target", "table"}, 4, 2, 4}, [](Value value) {
                return pattern_weights(value[0], value[1], or_none(value[2]), or_none(value[3])).release().ptr();
            });
    value_error("name: expected lincomb, encode, decode, decode_by_pattern or pattern_weights, got " + name);
}

}  // namespace

// Needs no GIL: calls share the choice of an instruction set and the number of threads, which are atomic, and threads.
PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
    using namespace py::literals;
    module.doc() = "Kernels of fastgc in C++. Use fastgc.kernels, which documents and dispatches them.";
    module.def("lincomb", &lincomb, "coefficients"_a, "inputs"_a, "out"_a = py::none(), "accumulate"_a = false,
               "threads"_a = py::none(), "isa"_a = py::none());
    module.def("encode", &encode, "coefficients"_a, "gradients"_a, "out"_a = py::none(), "accumulate"_a = false,
               "threads"_a = py::none(), "isa"_a = py::none());
    module.def("decode", &decode, "weights"_a, "messages"_a, "length"_a, "out"_a = py::none(), "threads"_a = py::none(),
               "isa"_a = py::none());
    module.def("decode_checked", &decode_checked, "weights"_a, "checks"_a, "messages"_a, "length"_a, "floors"_a,
               "least"_a = 0.0, "threads"_a = py::none(), "isa"_a = py::none());
    module.def("direct", &direct, "name"_a, "function"_a);
    module.def("decoding_weights", &decoding_weights, "generator"_a, "patterns"_a, "threads"_a = py::none(),
               "isa"_a = py::none());
    module.def("least_norm_weights", &least_norm_weights, "generator"_a, "patterns"_a, "target"_a,
               "table"_a = py::none(), "threads"_a = py::none(), "isa"_a = py::none());
    module.def("few_missing_table", &few_missing_table, "generator"_a, "target"_a);
    module.def("positions", &positions, "masks"_a);
    fastgc::object_caches::add_to(module);
    module.def("isas", [] {
        std::vector<std::string> names;
        for (const fastgc::Kernels* kernels : fastgc::available_kernels()) names.push_back(kernels->name);
        py::list list;
        for (const std::string& name : names) list.append(name);
        return py::tuple(list);
    });
    module.def("get_num_threads", [] { return fastgc::most_threads(); });
    module.def(
        "set_num_threads", [](py::handle count) { fastgc::set_most_threads(thread_limit(count, "count")); }, "count"_a);
    module.def("isa", [] { return fastgc::default_kernels().name; });
#ifdef __VERSION__
    module.attr("build") = py::dict("compiler"_a = FASTGC_COMPILER __VERSION__, "flags"_a = FASTGC_FLAGS);
#else
    module.attr("build") = py::dict("compiler"_a = "unknown", "flags"_a = FASTGC_FLAGS);
#endif
    module.def("fused", [](const std::string& isa) { return fastgc::kernels_named(isa, "isa").fused; }, "isa"_a);
}
