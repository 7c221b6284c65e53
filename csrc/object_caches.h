// Two Python types that remember objects, and what they have in common. Both are bounded, least recently used out
// first, and safe for threads.
//
// SetCache(count, capacity) is for sets of ints below `count`, such as workers. get(values) gives what is remembered of
// a set, else None; put(values, object) remembers it; sorted(values) is the set as a tuple. `values` is a tuple, a
// list, a set, a range, or a dict by its keys, and names each number once: of anything else get() and sorted() know
// nothing, and what is wrong with it is for the caller to say. A look-up of 27 workers takes 0.1 us, where to make a
// frozenset of them and find that takes ten times as long.
//
// MaskCache(count, capacity, solvers) is for keys (owner, mask), of masks of up to `count` bits. It counts hits and
// misses. To find one of its objects takes 50 ns, a third of what a lock and an OrderedDict take. solved(key) is what
// get(key) finds, or what the owner's solver makes of the mask.
#pragma once

#include <pybind11/pybind11.h>

#include <structmember.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "recent_masks.h"
#include "views.h"

// Before Python 3.13 the GIL is what keeps a dict from changing while it is read.
#ifndef Py_BEGIN_CRITICAL_SECTION
# define Py_BEGIN_CRITICAL_SECTION(object) {
# define Py_END_CRITICAL_SECTION() }
#endif

namespace fastgc {
namespace object_caches {

namespace py = pybind11;

// The words of a mask, of which so many need no allocation.
class Mask {
  public:
    explicit Mask(Index words) {
        const auto count = static_cast<std::size_t>(words);
        if (count > kRoom) more_.resize(count);
        words_ = count > kRoom ? more_.data() : first_;
        std::memset(words_, 0, count * sizeof *words_);
    }
    Mask(const Mask&) = delete;
    Mask& operator=(const Mask&) = delete;
    operator const std::uint64_t*() const { return words_; }
    std::uint64_t& operator[](Index word) { return words_[word]; }

  private:
    static constexpr std::size_t kRoom = 16;
    std::uint64_t* words_;
    std::uint64_t first_[kRoom];
    std::vector<std::uint64_t> more_;
};

// Objects by mask, each a reference that a block of the table has as its one word.
class Objects {
  public:
    Objects(Index bits, Index capacity) : table_(bits, capacity) {}

    Index words() const { return table_.words(); }
    Index size() const {
        return locked([&] { return table_.size(); });
    }
    Index hits() const {
        return locked([&] { return hits_; });
    }
    Index misses() const {
        return locked([&] { return misses_; });
    }

    // A new reference, or null.
    PyObject* find(const std::uint64_t* mask) {
        return locked([&]() -> PyObject* {
            const std::uint64_t* const found = table_.find(mask);
            ++(found == nullptr ? misses_ : hits_);
            return found == nullptr ? nullptr : Py_NewRef(object(found));
        });
    }

    // Makes it the most recently used, if there is one.
    void touch(const std::uint64_t* mask) {
        locked([&] { table_.find(mask); });
    }

    bool holds(const std::uint64_t* mask) {
        return locked([&] { return table_.holds(mask); });
    }

    // Keeps an object, unless there is one for the mask.
    void add(const std::uint64_t* mask, PyObject* what) {
        RecentMasks::Block block = table_.block(mask, 1), gone;
        static_assert(sizeof what <= sizeof block[0]);
        std::memcpy(block.get() + table_.words(), &what, sizeof what);
        locked([&] {
            table_.make_room(1);
            Py_INCREF(what);
            table_.add(block);
            if (table_.too_many()) gone = table_.drop();
        });
        release(block);  // still there if it was not wanted
        release(gone);
    }

    void set_capacity(Index capacity) {
        locked([&] { table_.set_capacity(capacity); });
        drop([&] { return table_.too_many(); });
    }

    void clear() {
        drop([&] { return table_.size() > 0; });
        locked([&] { hits_ = misses_ = 0; });
    }

    // For the garbage collector, under which no other thread runs.
    int traverse(visitproc visit, void* arg) const {
        int stop = 0;
        table_.each([&](const std::uint64_t* words) {
            if (stop == 0) stop = visit(object(words), arg);
        });
        return stop;
    }

  private:
    template <class Body>
    std::invoke_result_t<const Body&> locked(const Body& body) const {
#ifdef Py_GIL_DISABLED  // the GIL, which no body gives up, is lock enough
        const std::lock_guard lock(mutex_);
#endif
        return body();
    }

    template <class Wanted>
    void drop(const Wanted& wanted) {
        for (RecentMasks::Block gone;; release(gone)) {
            locked([&] { gone = wanted() ? table_.drop() : nullptr; });
            if (gone == nullptr) return;
        }
    }

    static PyObject* object(const std::uint64_t* words) {
        PyObject* found;
        std::memcpy(&found, words, sizeof found);
        return found;
    }

    // Not under the lock: to give up a reference may run any code.
    void release(const RecentMasks::Block& block) const {
        if (block != nullptr) Py_DECREF(object(block.get() + table_.words()));
    }

#ifdef Py_GIL_DISABLED
    mutable std::mutex mutex_;
#endif
    Index hits_ = 0, misses_ = 0;
    RecentMasks table_;
};

// A Python object of either type.
struct Cache {
    PyObject_HEAD Objects* objects;
    PyObject* solvers;  // of a MaskCache: a tuple
    Index count;
};

inline Cache& of(PyObject* self) { return *reinterpret_cast<Cache*>(self); }

// Sets the bit of a number; false where it is none, or was named before.
inline bool add_number(Mask& mask, Index count, PyObject* number) {
    if (!PyLong_CheckExact(number)) return false;  // True is 1, but no worker
    int overflow = 0;
    const long value = PyLong_AsLongAndOverflow(number, &overflow);
    if (value < 0 || value >= count || overflow != 0) return false;
    std::uint64_t& word = mask[value / 64];
    const std::uint64_t bit = std::uint64_t{1} << (value % 64);
    if ((word & bit) != 0) return false;
    word |= bit;
    return true;
}

inline bool read_tuple(Mask& mask, Index count, PyObject* values) {
    const Py_ssize_t size = PyTuple_GET_SIZE(values);
    for (Py_ssize_t i = 0; i < size; ++i)
        if (!add_number(mask, count, PyTuple_GET_ITEM(values, i))) return false;
    return true;
}

// Whether `values` is a plain collection of different ints below the count, which the mask then has.
inline bool read_set(Mask& mask, Index count, PyObject* values) {
    if (PyTuple_CheckExact(values)) return read_tuple(mask, count, values);
    if (PyDict_CheckExact(values)) {
        bool good = true;
        Py_BEGIN_CRITICAL_SECTION(values);
        PyObject* key;
        for (Py_ssize_t at = 0; good && PyDict_Next(values, &at, &key, nullptr) != 0;)
            good = add_number(mask, count, key);
        Py_END_CRITICAL_SECTION();
        return good;
    }
    // A tuple of the others is made in C, and does not change.
    if (!PyList_CheckExact(values) && !PyAnySet_CheckExact(values) && !PyRange_Check(values)) return false;
    const auto tuple = py::reinterpret_steal<py::object>(PySequence_Tuple(values));
    if (!tuple) throw py::error_already_set();
    return read_tuple(mask, count, tuple.ptr());
}

// Reads a key (owner, mask), of which the owner is the last word.
inline void read_key(Mask& mask, Index words, PyObject* key) {
    if (!PyTuple_CheckExact(key) || PyTuple_GET_SIZE(key) != 2)
        throw py::type_error("key: expected a tuple of an owner and a mask");
    PyObject* const bits = PyTuple_GET_ITEM(key, 1);
    mask[words - 1] = static_cast<std::uint64_t>(PyLong_AsSsize_t(PyTuple_GET_ITEM(key, 0)));
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (words == 2) {
        mask[0] = PyLong_AsUnsignedLongLong(bits);
        if (mask[0] == UINT64_MAX && PyErr_Occurred() != nullptr) throw py::error_already_set();
        return;
    }
    views::each_bit(bits, [&](Index bit) {
        if (bit >= 64 * (words - 1)) {
            PyErr_SetString(PyExc_OverflowError, "key: the mask has more bits than the cache is for");
            throw py::error_already_set();
        }
        mask[bit / 64] |= std::uint64_t{1} << (bit % 64);
    });
}

// What body() returns; null, and the error set, where it throws.
template <class Body>
PyObject* guarded(const Body& body) {
    try {
        return body();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    }
    return nullptr;
}

inline void require_two(Py_ssize_t given) {
    if (given != 2)
        throw py::type_error("put: expected a key and an object, got " + std::to_string(given) + " arguments");
}

inline PyCFunction as_method(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

inline PyObject* or_none(PyObject* found) { return found == nullptr ? Py_NewRef(Py_None) : found; }

inline PyObject* make(PyTypeObject* type, PyObject* arguments, Index words_of_owner) {
    Py_ssize_t count = 0, capacity = 0;
    PyObject* solvers = nullptr;
    if (PyArg_ParseTuple(arguments, words_of_owner > 0 ? "nn|O!" : "nn", &count, &capacity, &PyTuple_Type, &solvers) ==
        0)
        return nullptr;
    if (count < 1 || capacity < 1) {
        PyErr_Format(PyExc_ValueError, "count, capacity: expected positive integers, got %zd and %zd", count, capacity);
        return nullptr;
    }
    return guarded([&] {
        auto objects = std::make_unique<Objects>((count + 63) / 64 * 64 + 64 * words_of_owner, capacity);
        PyObject* const self = type->tp_alloc(type, 0);
        if (self != nullptr) {
            of(self).objects = objects.release();
            of(self).solvers = solvers != nullptr ? Py_NewRef(solvers) : PyTuple_New(0);
            of(self).count = count;
        }
        return self;
    });
}

namespace sets {

inline PyObject* make(PyTypeObject* type, PyObject* arguments, PyObject*) {
    return object_caches::make(type, arguments, 0);
}

inline PyObject* get(PyObject* self, PyObject* values) {
    return guarded([&] {
        Objects& objects = *of(self).objects;
        Mask mask(objects.words());
        return or_none(read_set(mask, of(self).count, values) ? objects.find(mask) : nullptr);
    });
}

inline PyObject* sorted(PyObject* self, PyObject* values) {
    return guarded([&]() -> PyObject* {
        const Index words = of(self).objects->words();
        Mask mask(words);
        if (!read_set(mask, of(self).count, values)) return or_none(nullptr);
        Py_ssize_t size = 0;
        for (Index w = 0; w < words; ++w) size += __builtin_popcountll(mask[w]);
        auto numbers = py::reinterpret_steal<py::object>(PyTuple_New(size));
        if (!numbers) return nullptr;
        Py_ssize_t at = 0;
        for (Index w = 0; w < words; ++w)
            for (std::uint64_t rest = mask[w]; rest != 0; rest &= rest - 1) {
                PyObject* const number = PyLong_FromSsize_t(64 * w + __builtin_ctzll(rest));
                if (number == nullptr) return nullptr;
                PyTuple_SET_ITEM(numbers.ptr(), at++, number);
            }
        return numbers.release().ptr();
    });
}

inline PyObject* put(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&] {
        require_two(given);
        Objects& objects = *of(self).objects;
        Mask mask(objects.words());
        if (!read_set(mask, of(self).count, arguments[0]))
            throw py::value_error("values: expected a collection of different integers below the count");
        objects.add(mask, arguments[1]);
        return or_none(nullptr);
    });
}

inline PyMethodDef methods[] = {
    {"get", get, METH_O, nullptr},
    {"put", as_method(put), METH_FASTCALL, nullptr},
    {"sorted", sorted, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace sets

namespace masks {

// Runs body(objects, mask) for a key.
template <class Body>
auto with_key(PyObject* self, PyObject* key, const Body& body) {
    Objects& objects = *of(self).objects;
    Mask mask(objects.words());
    read_key(mask, objects.words(), key);
    return body(objects, static_cast<const std::uint64_t*>(mask));
}

inline PyObject* make(PyTypeObject* type, PyObject* arguments, PyObject*) {
    return object_caches::make(type, arguments, 1);
}

inline PyObject* get(PyObject* self, PyObject* key) {
    return guarded([&] {
        return with_key(self, key,
                        [](Objects& objects, const std::uint64_t* mask) { return or_none(objects.find(mask)); });
    });
}

// What is there for a key; else what its owner's solver makes of the mask, which is there from now on. Two threads may
// both solve: what the first has put there stays.
inline PyObject* solved(PyObject* self, PyObject* key) {
    return guarded([&] {
        return with_key(self, key, [&](Objects& objects, const std::uint64_t* mask) -> PyObject* {
            if (PyObject* const found = objects.find(mask)) return found;
            PyObject* const solvers = of(self).solvers;
            const auto owner = static_cast<Py_ssize_t>(mask[objects.words() - 1]);
            if (solvers == nullptr || owner < 0 || owner >= PyTuple_GET_SIZE(solvers))
                throw py::index_error("key: there is no such owner");
            auto made = py::reinterpret_steal<py::object>(
                PyObject_CallOneArg(PyTuple_GET_ITEM(solvers, owner), PyTuple_GET_ITEM(key, 1)));
            if (made) objects.add(mask, made.ptr());
            return made.release().ptr();
        });
    });
}

inline PyObject* put(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&] {
        require_two(given);
        with_key(self, arguments[0],
                 [&](Objects& objects, const std::uint64_t* mask) { objects.add(mask, arguments[1]); });
        return or_none(nullptr);
    });
}

inline int contains(PyObject* self, PyObject* key) {
    bool found = false;
    const auto look = [&found](Objects& objects, const std::uint64_t* mask) { found = objects.holds(mask); };
    const auto done = py::reinterpret_steal<py::object>(guarded([&] {
        with_key(self, key, look);
        return or_none(nullptr);
    }));
    return done ? found : -1;
}

inline PyObject* touch(PyObject* self, PyObject* keys) {
    return guarded([&] {
        for (const py::handle key : py::iter(keys))
            with_key(self, key.ptr(), [](Objects& objects, const std::uint64_t* mask) { objects.touch(mask); });
        return or_none(nullptr);
    });
}

inline PyObject* clear(PyObject* self, PyObject*) {
    of(self).objects->clear();
    return or_none(nullptr);
}

inline PyObject* set_capacity(PyObject* self, PyObject* capacity) {
    const Py_ssize_t value = PyLong_AsSsize_t(capacity);
    if (value == -1 && PyErr_Occurred() != nullptr) return nullptr;
    of(self).objects->set_capacity(value);
    return or_none(nullptr);
}

inline PyObject* hits(PyObject* self, void*) { return PyLong_FromSsize_t(of(self).objects->hits()); }
inline PyObject* misses(PyObject* self, void*) { return PyLong_FromSsize_t(of(self).objects->misses()); }

inline PyMethodDef methods[] = {
    {"get", get, METH_O, nullptr},
    {"solved", solved, METH_O, nullptr},
    {"put", as_method(put), METH_FASTCALL, nullptr},
    {"touch", touch, METH_O, nullptr},
    {"clear", clear, METH_NOARGS, nullptr},
    {"set_capacity", set_capacity, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
inline PyGetSetDef counts[] = {
    {"hits", hits, nullptr, nullptr, nullptr},
    {"misses", misses, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

}  // namespace masks

inline Py_ssize_t size(PyObject* self) { return of(self).objects->size(); }

inline int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(of(self).solvers);
    return of(self).objects->traverse(visit, arg);
}

inline int clear(PyObject* self) {
    of(self).objects->clear();
    Py_CLEAR(of(self).solvers);
    return 0;
}

inline void destroy(PyObject* self) {
    PyTypeObject* const type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    delete of(self).objects;
    type->tp_free(self);
    Py_DECREF(type);
}

inline py::object make_type(const char* name, std::initializer_list<PyType_Slot> own) {
    std::vector<PyType_Slot> slots = {
        {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
        {Py_tp_clear, reinterpret_cast<void*>(clear)},
        {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
        {Py_sq_length, reinterpret_cast<void*>(size)},
    };
    slots.insert(slots.end(), own);
    slots.push_back({0, nullptr});
    PyType_Spec spec = {name, sizeof(Cache), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots.data()};
    PyObject* const type = PyType_FromSpec(&spec);
    if (type == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(type);
}

inline void add_to(py::module_& module) {
    module.attr("SetCache") = make_type(
        "fastgc._core.SetCache", {{Py_tp_new, reinterpret_cast<void*>(sets::make)}, {Py_tp_methods, sets::methods}});
    module.attr("MaskCache") =
        make_type("fastgc._core.MaskCache", {{Py_tp_new, reinterpret_cast<void*>(masks::make)},
                                             {Py_sq_contains, reinterpret_cast<void*>(masks::contains)},
                                             {Py_tp_methods, masks::methods},
                                             {Py_tp_getset, masks::counts}});
}

}  // namespace object_caches
}  // namespace fastgc
