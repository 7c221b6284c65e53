"""Arrays of every library go in and come out as what they were, with the bits of NumPy's."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
from array_libraries import BFLOAT16, NAMES, Bare, Library, library

from fastgc import Layout, NotDecodableError, Verified, arrays, kernels, schemes

each = pytest.mark.parametrize("name", NAMES)
others = pytest.mark.parametrize("name", [name for name in NAMES if name != "numpy"])


def numbers(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same_bits(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def forms(lib: Library, x: Any) -> dict[str, Any]:
    """The rows of a 2-D array as a library may hold them."""
    found = {"array": lib.make(x), "list": [lib.make(row) for row in x], "tuple": tuple(lib.make(row) for row in x)}
    if lib.strided:
        wide = np.zeros((x.shape[0], 2 * x.shape[1] + 3), x.dtype)
        wide[:, 1 : x.shape[1] + 1] = x
        apart = np.zeros((x.shape[1], x.shape[0]), x.dtype)
        apart[...] = x.T
        found |= {"padded rows": view(lib, wide, np.s_[:, 1 : x.shape[1] + 1]), "transposed": view(lib, apart, "T")}
    return found


def view(lib: Library, array: Any, index: Any) -> Any:
    """Part of an array, as the library itself cuts it."""
    made = lib.make(array)
    target, wrap = (made.array, Bare) if isinstance(made, Bare) else (made, lambda a: a)
    return wrap(target.T if index == "T" else target[index])


@each
@pytest.mark.parametrize(("P", "Q", "L"), [(1, 1, 1), (1, 2, 3), (2, 3, 17), (4, 4, 64), (3, 9, 1003)])
def test_lincomb(name: str, P: int, Q: int, L: int) -> None:
    lib = library(name)
    c = numbers((P, Q), np.float64, 1)
    for dtype in lib.dtypes:
        x = numbers((Q, L), dtype)
        wanted = kernels.lincomb(c, x)
        for form, rows in forms(lib, x).items():
            got = kernels.lincomb(c, rows)
            assert lib.owns(got), (form, dtype)
            assert same_bits(lib.read(got), wanted), (form, dtype)


@each
def test_lincomb_into_out(name: str) -> None:
    lib = library(name)
    if not lib.writable:
        pytest.skip(f"{name}: arrays are immutable")
    c = numbers((2, 3), np.float64, 1)
    for dtype, accumulate in product(lib.dtypes, (False, True)):
        x, before = numbers((3, 37), dtype), numbers((2, 37), dtype, 2)
        poisoned = before if accumulate else np.full_like(before, np.nan)
        wanted = kernels.lincomb(c, x, poisoned.copy(), accumulate=accumulate)
        out = lib.make(poisoned)
        assert kernels.lincomb(c, lib.make(x), out, accumulate=accumulate) is out
        assert same_bits(lib.read(out), wanted)
        rows = [lib.make(row) for row in poisoned]
        assert kernels.lincomb(c, lib.make(x), out=rows, accumulate=accumulate) is rows
        assert all(same_bits(lib.read(row), w) for row, w in zip(rows, wanted, strict=True))
        strip = np.full((2, 41), np.nan, dtype)
        strip[:, 2:39] = poisoned
        wide = lib.make(strip)
        part = Bare(wide.array[:, 2:39]) if isinstance(wide, Bare) else wide[:, 2:39]
        kernels.lincomb(c, lib.make(x), part, accumulate=accumulate)
        strip[:, 2:39] = wanted
        assert same_bits(lib.read(wide), strip)  # NaN around it as before


@each
def test_half_types_go_out_as_float32(name: str) -> None:
    lib = library(name)
    if not lib.writable:
        pytest.skip(f"{name}: arrays are immutable")
    c = numbers((2, 3), np.float64, 1)
    for dtype in [t for t in lib.dtypes if t.itemsize == 2]:
        x, wide = numbers((3, 37), dtype), np.empty((2, 37), np.float32)
        out = lib.make(wide)
        kernels.lincomb(c, lib.make(x), out)
        assert same_bits(lib.read(out), kernels.lincomb(c, x, wide))


@each
def test_encode_and_decode(name: str) -> None:
    lib = library(name)
    for dtype, (d, m, length) in product(lib.dtypes, [(1, 1, 1), (2, 2, 5), (3, 2, 1001), (4, 3, 100)]):
        c, g = numbers((d, m), np.float64, 1), numbers((d, length), dtype)
        wanted = kernels.encode(c, g)
        for form, rows in forms(lib, g).items():
            got = kernels.encode(c, rows)
            assert lib.owns(got), form
            assert same_bits(lib.read(got), wanted), form
        weights = [numbers((m, q), np.float64, 3) for q in (m, m + 1)]
        messages = [numbers((len(w[0]), len(wanted)), dtype, 4) for w in weights]
        result = kernels.decode(weights, messages, length)
        for groups in ([lib.make(rows) for rows in messages], tuple([lib.make(r) for r in rows] for rows in messages)):
            got = kernels.decode(weights, groups, length)
            assert lib.owns(got)
            assert same_bits(lib.read(got), result)
        if lib.writable:
            out = lib.make(np.full(length, np.nan, dtype))
            assert kernels.decode(weights, [lib.make(rows) for rows in messages], length, out) is out
            assert same_bits(lib.read(out), result)
            out = lib.make(np.full(wanted.shape, np.nan, dtype))
            assert kernels.encode(c, lib.make(g), out) is out
            assert same_bits(lib.read(out), wanted)


@each
@pytest.mark.parametrize("backend", kernels.backends())
def test_every_backend_on_the_host(name: str, backend: str) -> None:
    if backend == "cuda":
        pytest.skip("not on the host")
    lib = library(name)
    c, x = numbers((2, 3), np.float64, 1), numbers((3, 100), np.float32)
    got = kernels.lincomb(c, lib.make(x), backend=backend, threads=1)
    assert lib.owns(got)
    assert same_bits(lib.read(got), kernels.lincomb(c, x))


@each
def test_views_and_results_share_memory(name: str) -> None:
    lib = library(name)
    for dtype, shape in product(lib.dtypes, [(7,), (3, 5), (2, 1003)]):
        array = lib.make(numbers(shape, dtype))
        where = arrays.origin("inputs", array)
        seen = where.view("inputs", array)
        assert seen.ctypes.data == lib.address(array)
        assert same_bits(np.array(seen), lib.read(array))
        made = where.empty(shape, dtype)
        made[...] = seen
        given = where.give(made)
        assert lib.owns(given)
        assert lib.address(given) == made.ctypes.data
        del made
        assert same_bits(lib.read(given), lib.read(array))  # the result keeps its memory


@others
def test_coefficients_of_the_library(name: str) -> None:
    lib = library(name)
    c, x = numbers((2, 3), np.float32, 1), numbers((3, 100), np.float32)
    assert same_bits(lib.read(kernels.lincomb(lib.make(c), lib.make(x))), kernels.lincomb(c, x))
    assert same_bits(kernels.lincomb(lib.make(c), x), kernels.lincomb(c, x))


# Gradient codes ------------------------------------------------------------------------------------------------------

SCHEME = schemes.grouped(8, load=4, reduction=2)
SHAPES = ((3, 5), (7,), (), (2, 2, 4))
LENGTH = 39


def reshaped(lib: Library, row: Any) -> list[Any]:
    return [lib.make(piece) for piece in Layout(SHAPES).views(row)]


@each
def test_a_coded_round_trip(name: str) -> None:
    lib = library(name)
    for dtype in lib.dtypes:
        g = numbers((8, LENGTH), dtype)
        messages, sent = {}, {}
        for worker in (5, 0, 2, 3, 6):
            held = g[list(SCHEME.assignment[worker])]
            messages[worker] = SCHEME.encode(worker, held)
            for rows in (lib.make(held), [lib.make(row) for row in held]):
                sent[worker] = SCHEME.encode(worker, rows)
                assert lib.owns(sent[worker])
                assert same_bits(lib.read(sent[worker]), messages[worker])
        wanted = SCHEME.decode(messages, LENGTH)
        total = SCHEME.decode(sent, LENGTH)
        assert lib.owns(total)
        assert same_bits(lib.read(total), wanted)
        collector = SCHEME.collector(LENGTH, total.dtype if hasattr(total, "dtype") else dtype)
        for _ in range(2):
            for worker, message in sent.items():
                collector.add(worker, message)
            taken = collector.gradient()
            assert lib.owns(taken)
            assert same_bits(lib.read(taken), wanted)
            collector.reset()
        if lib.writable:
            out = lib.make(np.full(LENGTH, np.nan, dtype))
            assert SCHEME.decode(sent, LENGTH, out=out) is out
            assert same_bits(lib.read(out), wanted)


@each
def test_decoding_in_all_its_ways(name: str) -> None:
    lib = library(name)
    for dtype in lib.dtypes:
        sent = {w: numbers((20,), dtype, w) for w in range(8)}
        for w in range(8):
            sent[w] = SCHEME.encode(w, numbers((4, LENGTH), dtype)) if w < 4 else sent[w]
        ours = {w: lib.make(message) for w, message in sent.items()}
        ways: list[dict[str, Any]] = [{"approximate": True}, {"approximate": "one_step"}]
        ways += [{"dtype": np.float32}] if dtype.itemsize < 8 else [{"dtype": np.float64}]
        for way in ways:
            some = {w: ours[w] for w in ((0, 4, 5) if "approximate" in way else (0, 1, 4, 5))}
            got = SCHEME.decode(some, LENGTH, **way)
            assert lib.owns(got), way
            assert same_bits(lib.read(got), SCHEME.decode({w: sent[w] for w in some}, LENGTH, **way)), way
        with pytest.raises(NotDecodableError):
            SCHEME.decode({0: ours[0]}, LENGTH)
        half = schemes.grouped(4, load=4, reduction=2)
        good = {w: half.encode(w, numbers((4, LENGTH), dtype)) for w in range(4)}
        good[2][7] += 1000
        wrong = {w: lib.make(message) for w, message in good.items()}
        verified = half.decode(wrong, LENGTH, verify=True)
        plain = half.decode(good, LENGTH, verify=True)
        assert isinstance(verified, Verified)
        assert verified[1:] == plain[1:] == ((0, 1, 3), (2,))
        assert lib.owns(verified.gradient)
        assert same_bits(lib.read(verified.gradient), plain.gradient)
        collector = half.collector(LENGTH, dtype)
        for w, message in wrong.items():
            collector.add(w, message)
        assert same_bits(lib.read(collector.gradient(verify=True).gradient), plain.gradient)


@each
def test_layouts_and_encoders(name: str) -> None:
    lib = library(name)
    layout = Layout(SHAPES)
    assert layout.length == LENGTH
    for dtype in lib.dtypes:
        g = numbers((8, layout.length), dtype)
        held = SCHEME.assignment[1]
        wanted = SCHEME.encode(1, g[list(held)])
        message = SCHEME.encode(1, [reshaped(lib, g[j]) for j in held], layout=layout)
        assert lib.owns(message)
        assert same_bits(lib.read(message), wanted)
        for length in (layout.length, layout):
            encoder = SCHEME.encoder(1, length, dtype)
            parts = {j: lib.make(g[j]) if length is not layout else reshaped(lib, g[j]) for j in held}
            kept = []
            for order in (held, held[::-1]):
                for j in order:
                    encoder.add(j, parts[j])
                kept.append(encoder.message())
                assert encoder.message() is kept[-1]
                assert lib.owns(kept[-1])
                assert same_bits(lib.read(kept[-1]), wanted)
                encoder.reset()
            if not lib.writable:  # what was given away stays as it was
                for j in held:
                    encoder.add(j, lib.make(np.zeros(layout.length, dtype)) if length is not layout else parts[j])
                assert same_bits(lib.read(kept[0]), wanted)
        if lib.writable:
            out = lib.make(np.full(wanted.shape, np.nan, dtype))
            encoder = SCHEME.encoder(1, layout.length, dtype, out)
            for j in held:
                encoder.add(j, lib.make(g[j]))
            assert encoder.message() is out
            assert same_bits(lib.read(out), wanted)
            out = lib.make(np.full(wanted.shape, np.nan, dtype))
            assert SCHEME.encode(1, [reshaped(lib, g[j]) for j in held], out, layout=layout) is out
            assert same_bits(lib.read(out), wanted)


@each
def test_all_messages_and_views(name: str) -> None:
    lib = library(name)
    g = numbers((8, LENGTH), np.float32)
    all_of_them = SCHEME.encode_all(lib.make(g))
    assert lib.owns(all_of_them)
    assert same_bits(lib.read(all_of_them), SCHEME.encode_all(g))
    if name != "bare":  # which has no shape
        vector = numbers((Layout(SHAPES).length,), np.float32)
        for ours, theirs in zip(Layout(SHAPES).views(lib.make(vector)), Layout(SHAPES).views(vector), strict=True):
            assert lib.owns(ours)
            assert same_bits(lib.read(ours), theirs)


@others
def test_gradient_codes_do_not_mix_libraries(name: str) -> None:
    lib = library(name)
    g = numbers((4, 31), np.float32)
    ours = [lib.make(row) for row in g]
    message = SCHEME.encode(0, g)
    refused(r"gradients\[3\]: expected an array of", SCHEME.encode, 0, [*ours[:3], g[3]])
    layout = Layout([(31,)])
    refused(r"gradients\[3\]\[0\]: expected", SCHEME.encode, 0, [*([o] for o in ours[:3]), [g[3]]], layout=layout)
    refused(r"out: expected an array of", SCHEME.encode, 0, ours, np.empty(16, np.float32))
    refused(r"messages\[4\]: expected", SCHEME.decode, {0: lib.make(message), 1: lib.make(message), 4: message}, 31)
    mixed = {0: message, 1: message, 4: message, 5: lib.make(message)}
    for verify in (False, True):
        refused(r"messages.*: expected", SCHEME.decode, mixed, 31, verify=verify)
    collector = SCHEME.collector(31, np.float32)
    collector.add(0, message)
    refused("message: expected an array of NumPy", collector.add, 1, lib.make(message))
    collector.add(1, message)
    encoder = SCHEME.encoder(0, 31, np.float32)
    encoder.add(0, ours[0])
    refused("gradient: expected an array of", encoder.add, 1, g[1])
    encoder.add(1, ours[1])
    encoder = SCHEME.encoder(0, 31, np.float32, np.empty(16, np.float32))
    refused("gradient: expected an array of NumPy", encoder.add, 0, ours[0])
    if not lib.writable:
        refused("out: ", SCHEME.encoder, 0, 31, np.float32, lib.make(message))


def test_element_types_of_libraries() -> None:
    torch = pytest.importorskip("torch")
    strict = pytest.importorskip("array_api_strict")
    for dtype in (torch.float32, strict.float32, np.float32, "float32"):
        assert SCHEME.encoder(0, 31, dtype)._dtype == np.float32
    assert SCHEME.collector(31, torch.bfloat16)._dtype == BFLOAT16
    refused("dtype must be float32", SCHEME.collector, 31, torch.int32)


# What is refused -----------------------------------------------------------------------------------------------------


class Elsewhere:
    """An array on a device that is not there, as DLPack says it."""

    def __init__(self, kind: int) -> None:
        self.kind = kind

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("nothing was to be exported")

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 1


def refused(match: str, function: Any, *arguments: Any, error: Any = TypeError, **keywords: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)


@others
def test_libraries_do_not_mix(name: str) -> None:
    lib = library(name)
    x = numbers((2, 8), np.float32)
    c, ours = np.ones((1, 2)), lib.make(x)
    out = np.full((1, 8), np.nan, np.float32)
    refused(r"out: expected an array of .* got one of NumPy on cpu", kernels.lincomb, c, ours, out)
    refused(r"inputs\[1\]: expected an array of", kernels.lincomb, c, [lib.make(x[0]), x[1]])
    refused(r"inputs\[1\]: expected a 1-D NumPy array", kernels.lincomb, c, [x[0], lib.make(x[1])])
    refused(r"out: expected an array of NumPy on cpu", kernels.lincomb, c, x, lib.make(out))
    refused(r"out\[0\]: expected an array of NumPy on cpu", kernels.lincomb, c, x, [lib.make(out[0])])
    refused(r"out: expected an array of NumPy on cpu", kernels.encode, c.T, x, lib.make(out[0]))
    refused(r"out: expected an array of NumPy on cpu", kernels.decode, [c], [x], 8, lib.make(out[0]))
    refused(r"messages\[1\]\[0\]: expected an array", kernels.decode, [c, c], [ours, [x[0], x[1]]], 8)
    assert np.isnan(out).all()


@others
def test_bad_arguments_have_the_kernels_errors(name: str) -> None:
    lib = library(name)
    x = lib.make(numbers((2, 8), np.float32))
    refused("columns, one for each input", kernels.lincomb, np.ones((1, 3)), x, error=ValueError)
    refused("2 dimensions", kernels.lincomb, np.ones((1, 2)), lib.make(np.ones(8, np.float32)), error=ValueError)
    refused("2 dimensions", kernels.lincomb, np.ones(2), x, error=ValueError)
    refused("out: must be given to accumulate", kernels.lincomb, np.ones((1, 2)), x, accumulate=True, error=ValueError)
    refused("out: must be given to accumulate", kernels.encode, np.ones((2, 2)), x, accumulate=True, error=ValueError)
    refused("expected one of", kernels.lincomb, np.ones((1, 2)), x, backend="fortran", error=ValueError)
    refused("positive integer", kernels.decode, [np.ones((1, 2))], [x], -8, error=ValueError)
    refused("float32", kernels.lincomb, np.ones((1, 2)), lib.make(np.ones((2, 8), np.int32)))
    if lib.writable:
        refused("overlaps", kernels.lincomb, np.eye(2), x, x, error=ValueError)
        narrow = lib.make(np.ones((1, 7), np.float32))
        refused("out: expected length 8", kernels.lincomb, np.ones((1, 2)), x, narrow, error=ValueError)


def test_what_is_no_array() -> None:
    c = np.ones((1, 2))
    for nothing in (None, 3, "ab", {1: 2}, [1, 2], ["a"], object(), range(2), b"ab", memoryview(b"ab")):
        refused("inputs", kernels.lincomb, c, nothing)
    nested: list[Any] = []
    nested.append(nested)
    refused("inputs", kernels.lincomb, c, nested)
    refused("coefficients", kernels.lincomb, nested, np.ones((2, 2)))


def test_devices_out_of_reach() -> None:
    c = np.ones((1, 1))
    refused(r"inputs\[0\]: lies on .*no kernels.*move it", kernels.lincomb, c, [Elsewhere(10)])
    refused(r"coefficients: lies on .*no kernels", kernels.lincomb, Elsewhere(10), np.ones((1, 4)))
    refused(r"coefficients: expected numbers on the host", kernels.lincomb, Elsewhere(2), np.ones((1, 4)))
    refused(r"weights\[0\]: expected numbers on the host", kernels.decode, [Elsewhere(2)], [np.ones((1, 4))], 4)
    refused("backend: expected 'cuda'", kernels.lincomb, c, [Elsewhere(2)], backend="cpp", error=ValueError)


def test_a_missing_cuda_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastgc.kernels._cuda", None)  # as if it could not be imported
    for call in (
        lambda: kernels.lincomb([[1.0]], [Elsewhere(2)]),
        lambda: kernels.encode([[1.0]], (Elsewhere(13),)),
        lambda: kernels.decode([[[1.0]]], [[Elsewhere(2)]], 3),
    ):
        refused("lies on cuda:1, and backend 'cuda' does not work here: ", call, error=ValueError)


def test_results_need_a_library_that_takes_them() -> None:
    class Unknown(Bare):
        pass

    Unknown.__module__ = "nowhere"
    x, out = Unknown(numbers((2, 8), np.float32)), Unknown(np.empty((1, 8), np.float32))
    refused("out: must be given, as nowhere has no from_dlpack", kernels.lincomb, np.ones((1, 2)), x)
    assert kernels.lincomb(np.ones((1, 2)), x, out) is out
    np.testing.assert_array_equal(out.array, kernels.lincomb(np.ones((1, 2)), x.array))


class TestTorch:
    """What PyTorch's tensors are beside numbers in memory."""

    torch: Any

    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        type(self).torch = pytest.importorskip("torch")

    def test_tensors_that_require_grad(self) -> None:
        x = self.torch.ones((2, 8), requires_grad=True)
        refused(r"inputs: the tensor requires grad.*detach.*no_grad.*fastgc\.torch", kernels.lincomb, [[1.0, 2.0]], x)
        with self.torch.no_grad():
            result = kernels.lincomb([[1.0, 2.0]], x)
        assert not result.requires_grad
        assert (result == 3).all()
        with self.torch.inference_mode():
            assert (kernels.lincomb([[1.0, 2.0]], self.torch.ones((2, 8)), self.torch.ones((1, 8))) == 3).all()
        assert (kernels.lincomb([[1.0, 2.0]], x.detach()) == 3).all()

    def test_autograd_notices_what_was_written(self) -> None:
        weight, kept = self.torch.ones(8, requires_grad=True), self.torch.ones((1, 8))
        loss = (weight * kept).sum()
        kernels.lincomb([[1.0]], self.torch.zeros((1, 8)), kept)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        rows = [self.torch.ones(8), self.torch.ones(8)]
        versions = [row._version for row in rows]
        kernels.lincomb([[1.0], [2.0]], self.torch.zeros((1, 8)), rows)
        assert all(row._version > version for row, version in zip(rows, versions, strict=True))

    @pytest.mark.skipif("cpp" not in kernels.backends(), reason="the compiled kernels are missing")
    def test_plain_tensors_go_to_the_core_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By DLPack's C interface: the way through Python, which is the same for all others, is not taken."""
        if not hasattr(self.torch.Tensor, "__dlpack_c_exchange_api__"):
            pytest.skip("this PyTorch does not offer DLPack's C interface")

        class Detour(Exception):
            pass

        def detour(*_: Any) -> None:
            raise Detour

        lib = library("torch")
        monkeypatch.setattr(arrays, "origin_of_rows", detour)
        c, w = numbers((2, 3), np.float64, 1), numbers((1, 3), np.float64, 2)
        for dtype in lib.dtypes:
            x = numbers((3, 50), dtype)
            wanted = kernels.lincomb(c, x)
            for rows in (lib.make(x), [lib.make(row) for row in x], lib.make(np.ascontiguousarray(x[:, ::-1]))[:, :]):
                expected = wanted if isinstance(rows, list) or same_bits(lib.read(rows), x) else wanted[:, ::-1]
                for matrix in (c, c.tolist(), lib.make(c), lib.make(c.T.copy()).T):
                    made = kernels.lincomb(matrix, rows)
                    assert lib.owns(made)
                    assert not made.requires_grad
                    assert same_bits(lib.read(made), np.ascontiguousarray(expected))
                out = lib.make(np.full_like(wanted, np.nan))
                assert kernels.lincomb(c, rows, out) is out
                assert same_bits(lib.read(out), np.ascontiguousarray(expected))
                kernels.lincomb(c, rows, list(out), accumulate=True)
            assert same_bits(lib.read(kernels.encode(c.T, lib.make(x))), kernels.encode(c.T, x))
            got = kernels.decode([w, w], [lib.make(x), list(lib.make(x))], 50)
            assert same_bits(lib.read(got), kernels.decode([w, w], [x, x], 50))
        x = self.torch.ones((3, 50))
        aside = [
            self.torch.nn.Parameter(x), x.clone().requires_grad_(), x.t().contiguous().t(), x.to_sparse(), x.int(),
            self.torch.ones((3, 50), device="meta"), self.torch.ones((3, 50), dtype=self.torch.complex64).conj().imag,
        ]  # fmt: skip
        for other in aside:
            with pytest.raises(Detour):
                kernels.lincomb(c, other)
        for rows in ([x[0], x[1].numpy(), x[2]], [x[0], x[1].double(), x[2]], [x[0], x[1], x[2, :49]]):
            with pytest.raises(Detour):
                kernels.lincomb(c, rows)
        for out in (np.empty((2, 50), np.float32), self.torch.empty((50, 2)).t()):
            with pytest.raises(Detour):
                kernels.lincomb(c, x, out)
        with pytest.raises(Detour):
            kernels.lincomb(c, x.numpy(), self.torch.empty((2, 50)))
        with pytest.raises(Detour):  # for NumPy's memory, in huge pages
            kernels.lincomb(c, self.torch.ones((3, 2**19)))
        kernels.lincomb(c, self.torch.ones((3, 2**19)), self.torch.empty((2, 2**19)))

    def test_long_results(self) -> None:
        x = numbers((2, 2**19 + 1), np.float32)
        for rows in (self.torch.from_numpy(x), list(self.torch.from_numpy(x))):
            made = kernels.lincomb([[1.0, 2.0], [3.0, 4.0]], rows)
            assert library("torch").owns(made)
            assert same_bits(made.numpy(), kernels.lincomb([[1.0, 2.0], [3.0, 4.0]], x))

    def test_lazy_negation_and_sparse_tensors(self) -> None:
        negated = self.torch.ones((2, 8), dtype=self.torch.complex64).conj().imag
        assert negated.is_neg()
        refused(r"inputs: the tensor has its negative bit set.*resolve_neg", kernels.lincomb, [[1.0, 1.0]], negated)
        refused("inputs: this Tensor of PyTorch on cpu", kernels.lincomb, [[1.0]], self.torch.ones((1, 8)).to_sparse())

    def test_devices(self) -> None:
        meta = self.torch.ones((1, 8), device="meta")
        refused(r"inputs: lies on meta, where there are no kernels", kernels.lincomb, [[1.0]], meta)

    def test_expanded_rows(self) -> None:
        row = self.torch.arange(8, dtype=self.torch.float32)
        assert (kernels.lincomb([[1.0, 2.0]], row.expand(2, 8)) == 3 * row).all()
        refused(
            "overlap", kernels.lincomb, [[1.0], [1.0]], row[None], self.torch.ones(8).expand(2, 8), error=ValueError
        )

    def test_bfloat16_without_ml_dtypes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        refused("bfloat16 needs the package ml_dtypes", arrays.bfloat16, "inputs")


class TestJax:
    """What JAX's arrays are beside numbers in memory."""

    jax: Any

    @pytest.fixture(autouse=True)
    def _jax(self) -> None:
        type(self).jax = pytest.importorskip("jax")

    def test_immutable_and_traced(self) -> None:
        x = self.jax.numpy.ones((2, 8))
        refused("out: JAX arrays are immutable", kernels.lincomb, [[1.0, 1.0]], x, self.jax.numpy.ones((1, 8)))
        refused("traced by JAX.*fastgc.jax", self.jax.jit(lambda y: kernels.lincomb([[1.0, 1.0]], y)), x)

    def test_free_arrays_stay_free(self) -> None:
        device = self.jax.devices("cpu")[0]
        free = self.jax.numpy.ones((2, 8))
        assert not kernels.lincomb([[1.0, 1.0]], free).committed
        assert kernels.lincomb([[1.0, 1.0]], self.jax.device_put(free, device)).committed

    def test_several_devices(self) -> None:
        """In a process of its own: the number of devices is fixed when JAX starts."""
        script = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from fastgc import kernels
from jax.sharding import Mesh, NamedSharding, PartitionSpec
first, second = jax.devices("cpu")
there = jax.device_put(np.ones((2, 8), np.float32), second)
assert kernels.lincomb([[1.0, 1.0]], there).devices() == {second}
def error(call):
    try: call()
    except TypeError as caught: return str(caught)
spread = jax.device_put(np.ones((2, 8), np.float32), NamedSharding(Mesh([first, second], "a"), PartitionSpec("a")))
print(error(lambda: kernels.lincomb([[1.0, 1.0]], spread)))
here = jax.device_put(np.ones(8, np.float32), first)
print(error(lambda: kernels.lincomb([[1.0, 1.0]], [there[0], here])))
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        spread, mixed = done.stdout.splitlines()
        assert spread.startswith("inputs: the array lies on 2 devices")
        assert mixed.startswith("inputs[1]: expected an array of JAX on cpu:1")


def test_array_api_compat() -> None:
    """The shims see the same library and device in what comes out as in what went in."""
    compat = pytest.importorskip("array_api_compat")
    for name in ("numpy", "torch", "jax", "array_api_strict"):
        if (lib := _if_there(name)) is None:
            continue
        x = lib.make(numbers((2, 8), np.float32))
        y = kernels.lincomb(np.ones((1, 2)), x)
        assert compat.array_namespace(x, y) is compat.array_namespace(x)
        assert compat.device(y) == compat.device(x)
        assert compat.is_writeable_array(y) == compat.is_writeable_array(x)
        assert y.dtype == x.dtype
        xp = compat.array_namespace(y)
        assert bool(xp.all(y == xp.sum(x, axis=0, keepdims=True)))


def test_a_library_is_asked_for_its_namespace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take as long as a view; a library that lacks it is known by the module of its arrays."""
    strict = pytest.importorskip("array_api_strict")
    x = strict.ones((2, 8), dtype=strict.float32)
    ask, asked = type(x).__array_namespace__, []
    monkeypatch.setattr(type(x), "__array_namespace__", lambda array: asked.append(array) or ask(array))
    monkeypatch.delitem(arrays._namespaces, type(x), raising=False)
    for _ in range(3):
        assert type(kernels.lincomb(np.ones((1, 2)), [x[0, :], x[1, :]])) is type(x)
    assert len(asked) == 1


def _if_there(name: str) -> Library | None:
    try:
        return library(name)
    except pytest.skip.Exception:
        return None


def test_bfloat16_is_the_type_of_ml_dtypes() -> None:
    assert arrays.bfloat16("inputs") == BFLOAT16
