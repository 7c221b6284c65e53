"""Gradients that are lists of tensors, and all workers' messages at once: the bits of `encode` on plain vectors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scheme_table import CONSTRUCTED, FLOATS, Case, gradients, names, same_bits

from fastgc import Layout, schemes

SEED = 23
SHAPES: list[list[tuple[int, ...]]] = [
    [(1,)],
    [()],
    [(7,)],
    [(3, 5), (5,), (5, 2), (2,)],
    [(1,), (1,), (1,), (1,), (1,)],
    [(100,), (1,), (1,), (1,)],
    [(1,), (2, 3, 4), (0,), (9,), (0, 4)],
    [(0,), (4, 4)],
    [(64, 32), (32,), (32, 10), (10,), (300,)],
]
SCHEMES = [
    schemes.uncoded(3),
    schemes.grouped(4, 2, 2),
    schemes.grouped(6, 6, 5),
    schemes.cyclic_repetition(5, 2),
    schemes.polynomial(7, 2, 3),
    schemes.grouped(7, 4, 2, uneven=True),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_lists_of_tensors_have_the_bits_of_their_concatenation(shapes: Any, scheme: Any, dtype: Any) -> None:
    layout = Layout(shapes)
    values = gradients(scheme.partitions, layout.length, dtype, SEED)
    kept = values.copy()
    values.setflags(write=False)
    lists = [[np.array(view) for view in layout.views(row)] for row in values]
    for worker, held in enumerate(scheme.assignment):
        expected = scheme.encode(worker, [values[j] for j in held])
        views = [layout.views(values[j]) for j in held]
        assert same_bits(scheme.encode(worker, views, layout=layout), expected), f"seed {SEED}"
        out = np.full_like(expected, np.nan)
        assert scheme.encode(worker, [lists[j] for j in held], out, layout=layout) is out
        assert same_bits(out, expected)
        encoder = scheme.encoder(worker, layout, dtype, out := np.full_like(expected, np.nan))
        for j in reversed(held):
            encoder.add(j, lists[j])
        assert encoder.message() is out
        assert same_bits(out, expected)
    assert same_bits(values, kept)


def test_half_types_are_rounded_once() -> None:
    """As many partitions go through float32, whether a message is made at once or piece by piece."""
    layout = Layout(SHAPES[3])
    scheme = schemes.grouped(6, 3, 2)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        values = gradients(scheme.partitions, layout.length, np.float32, SEED).astype(dtype)
        held = scheme.assignment[1]
        expected = scheme.encode(1, [values[j] for j in held])
        views = [layout.views(values[j]) for j in held]
        assert same_bits(scheme.encode(1, views, layout=layout), expected)
        wide = scheme.encode(1, views, np.full(len(expected), np.nan, np.float32), layout=layout)
        assert same_bits(wide.astype(dtype), expected)
        encoder = scheme.encoder(1, layout, dtype)
        for j, tensors in zip(held, views, strict=True):
            encoder.add(j, tensors)
        assert same_bits(encoder.message(), expected)


def test_tensors_that_are_not_contiguous() -> None:
    layout = Layout([(3, 4), (5,)])
    scheme = schemes.grouped(2, 2, 2)
    rng = np.random.default_rng(SEED)
    wide = rng.standard_normal((2, 4, 3))
    long = rng.standard_normal((2, 10))
    tensors = [[wide[j].T, long[j, ::2]] for j in range(2)]
    flat = [np.concatenate([t.reshape(-1) for t in row]) for row in tensors]
    assert same_bits(scheme.encode(1, tensors, layout=layout), scheme.encode(1, flat))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_views_are_views_in_order(shapes: Any) -> None:
    layout = Layout(shapes)
    assert layout.length == sum(int(np.prod(shape)) for shape in shapes)
    vector = np.arange(float(layout.length))
    views = layout.views(vector)
    assert [view.shape for view in views] == shapes
    np.testing.assert_array_equal(np.concatenate([view.reshape(-1) for view in views]), vector)
    assert all(view.size == 0 or np.shares_memory(view, vector) for view in views)


@pytest.mark.parametrize("m", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_stretches_cover_every_element_once(shapes: Any, m: int) -> None:
    """And no stretch is cut where no tensor begins or ends."""
    layout = Layout(shapes)
    block = -(-layout.length // m)
    sizes = [int(np.prod(shape)) for shape in shapes]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    seen: list[int] = []
    stretches = layout.stretches(m)
    for begin, end, parts in stretches:
        for u, (tensor, first) in enumerate(parts):
            assert 0 <= first < first + end - begin <= sizes[tensor]
            assert starts[tensor] + first == u * block + begin
            seen += range(u * block + begin, u * block + end)
    assert sorted(seen) == list(range(layout.length))
    assert all(a.end == b.begin for a, b in pairwise(stretches))
    assert {s.begin for s in stretches} <= {int(start) % block for start in starts} | {0}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CONSTRUCTED[::2], ids=names(CONSTRUCTED[::2]))
def test_all_messages_at_once_have_the_bits_of_each(case: Case, dtype: Any) -> None:
    scheme = case.scheme
    for length in (1, scheme.reduction, scheme.reduction + 1, 257):
        values = gradients(scheme.partitions, length, dtype, SEED)
        expected = np.stack([scheme.encode(w, [values[j] for j in held]) for w, held in enumerate(scheme.assignment)])
        assert same_bits(scheme.encode_all(values), expected)
        out = np.full_like(expected, np.nan)
        assert scheme.encode_all(list(values), out) is out
        assert same_bits(out, expected)


# Errors ---------------------------------------------------------------------------------------------------------------

LAYOUT = Layout([(2, 3), (4,)])
SCHEME = schemes.grouped(4, 2, 2)
GOOD = [[np.ones((2, 3)), np.ones(4)] for _ in range(2)]
OVERLAP = np.ones(10)
BAD: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("shapes no iterable", lambda: Layout(3), TypeError, "shapes .*not 3"),  # type: ignore[arg-type]
    ("a shape no sequence", lambda: Layout([3]), TypeError, "shapes"),  # type: ignore[list-item]
    ("a size no integer", lambda: Layout([(2.0,)]), TypeError, r"shapes\[0\]\[0\] .*not 2.0"),  # type: ignore[list-item]
    ("a negative size", lambda: Layout([(2,), (3, -1)]), ValueError, r"shapes\[1\]\[1\] .*not -1"),
    ("no tensors", lambda: Layout([]), ValueError, "shapes must have at least one element"),
    ("empty tensors", lambda: Layout([(0,)]), ValueError, "shapes must have at least one element"),
    ("vector too short", lambda: LAYOUT.views(np.ones(9)), ValueError, r"vector .*\(10,\), not \(9,\)"),
    ("vector strided", lambda: LAYOUT.views(np.ones(20)[::2]), ValueError, "vector must be a contiguous"),
    ("too few gradients", lambda: SCHEME.encode(0, GOOD[:1], layout=LAYOUT), ValueError, "gradients must be 2.*not 1"),
    ("a gradient no list", lambda: SCHEME.encode(0, [np.ones(10)] * 2, layout=LAYOUT), TypeError, r"gradients\[0\]"),
    ("too few tensors", lambda: SCHEME.encode(0, [GOOD[0][:1]] * 2, layout=LAYOUT), ValueError,
     r"gradients\[0\] must be 2 arrays.*not 1"),
    ("wrong shape", lambda: SCHEME.encode(0, [GOOD[0], GOOD[1][::-1]], layout=LAYOUT), ValueError,
     r"gradients\[1\]\[0\] must have shape \(2, 3\), not \(4,\)"),
    ("no arrays", lambda: SCHEME.encode(0, [[1, 2], [1, 2]], layout=LAYOUT), TypeError, r"gradients\[0\]\[0\].*int"),
    ("mixed types", lambda: SCHEME.encode(0, [[GOOD[0][0], np.ones(4, "f4")]] * 2, layout=LAYOUT), TypeError,
     r"gradients\[0\]\[1\].*float32"),
    ("types mixed between gradients", lambda: SCHEME.encode(
        0, [GOOD[0], [t.astype("f4") for t in GOOD[0]]], layout=LAYOUT), TypeError, r"gradients\[1\].*float32"),
    ("integers", lambda: SCHEME.encode(0, [[t.astype(int) for t in GOOD[0]]] * 2, layout=LAYOUT), TypeError, "int64"),
    ("out too long", lambda: SCHEME.encode(0, GOOD, np.ones(6), layout=LAYOUT), ValueError,
     r"out .*\(5,\), not \(6,\)"),
    ("out strided", lambda: SCHEME.encode(0, GOOD, np.ones(10)[::2], layout=LAYOUT), ValueError, "out .*contiguous"),
    ("out overlaps", lambda: SCHEME.encode(
        0, [LAYOUT.views(OVERLAP)] * 2, OVERLAP[5:], layout=LAYOUT), ValueError, "out must not overlap"),
    ("encoder of other tensors", lambda: SCHEME.encoder(0, LAYOUT, "f4").add(0, GOOD[0]), TypeError,
     "float32.*float64"),
    ("encoder given a vector", lambda: SCHEME.encoder(0, LAYOUT, "f8").add(0, np.ones(10)), TypeError, "gradient"),
    ("all: too few", lambda: SCHEME.encode_all(np.ones((3, 4))), ValueError, "gradients must be 4.*not 3"),
    ("all: unequal", lambda: SCHEME.encode_all([np.ones(4)] * 3 + [np.ones(5)]), ValueError, r"gradients\[3\].*\(5,\)"),
    ("all: integers", lambda: SCHEME.encode_all(np.ones((4, 4), int)), TypeError, "int64"),
    ("all: lists", lambda: SCHEME.encode_all([[1.0]] * 4), TypeError, r"gradients\[0\].*list"),
    ("all: one vector", lambda: SCHEME.encode_all(np.ones(4)), TypeError, r"gradients\[0\]"),
    ("all: out strided", lambda: SCHEME.encode_all(np.ones((4, 4)), np.ones((4, 4))[:, ::2]), ValueError, "contiguous"),
    ("all: a number", lambda: SCHEME.encode_all(4), TypeError, "gradients"),  # type: ignore[arg-type]
    ("all: out too small", lambda: SCHEME.encode_all(np.ones((4, 4)), np.ones((3, 2))), ValueError, r"out .*\(4, 2\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert (OVERLAP == 1).all()


def test_an_overlapping_out_for_all_is_refused() -> None:
    memory = np.ones(40)
    with pytest.raises(ValueError, match="overlap"):
        SCHEME.encode_all(memory[:32].reshape(4, 8), memory[24:].reshape(4, 4))
    assert (memory == 1).all()


def test_coefficients_that_overflow_are_found_before_anything_is_written() -> None:
    scheme = schemes.from_coefficients([[0], [1]], [[[1.0]], [[1e39]]])
    out = np.full((2, 3), np.nan, np.float32)
    with pytest.raises(ValueError, match="coefficients of worker 1 are not finite in float32"):
        scheme.encode_all(np.ones((2, 3), np.float32), out)
    assert np.isnan(out).all()


def test_a_layout_can_be_sent_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(LAYOUT)) == LAYOUT
