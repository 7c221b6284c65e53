"""The wire format: views into buffers, and every way in which a message can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastgc import compression, schemes
from mpi_runner import wire
from mpi_runner.wire import HEADER, BadMessage, Header, Wire

SCHEME = schemes.grouped(6, 3, 2)
OTHER_SCHEME = schemes.grouped(6, 2, 2)
LENGTHS = [1, 2, 5, 6, 1001]


@pytest.mark.parametrize("name", compression.CODECS)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_result_keeps_what_is_written(length: int, name: str) -> None:
    layout = Wire(SCHEME, length, "float32", name)
    buffer = layout.result_buffer()
    gradient = (np.arange(layout.message_length()) % 127 + 1).astype(np.float32)
    statistics = np.array([3.25], np.float64)
    layout.codec.compress(gradient, layout.gradient(buffer))
    layout.statistics(buffer)[:] = statistics
    spent = wire.Spent(compute=0.5, encode=0.125, delay=0.25)
    message = layout.seal(buffer, wire.RESULT, 17, worker=4, spent=spent, rejected=6)
    assert message.nbytes == layout.sizes[wire.RESULT]
    header = layout.read(message, {wire.RESULT: 17}, 4)
    assert header.kind == wire.RESULT
    assert (header.worker, header.iteration, header.rejected) == (4, 17, 6)
    assert (header.compute_seconds, header.encode_seconds, header.delay_seconds) == spent
    np.testing.assert_array_equal(layout.codec.decompress(layout.gradient(message), len(gradient)), gradient)
    np.testing.assert_array_equal(layout.statistics(message), statistics)


@pytest.mark.parametrize("name", ["float32", "int8"])
@pytest.mark.parametrize("length", LENGTHS)
def test_messages_of_every_reduction_share_a_buffer(length: int, name: str) -> None:
    scheme = schemes.adaptive(8, 4)
    layout = Wire(scheme, length, "float32", name)
    buffer = layout.result_buffer()
    for m in (4, 1, 3, 2):
        buffer[:] = 255  # of another message
        gradient = (np.arange(-(-length // m)) % 100 + 1).astype(np.float32)
        statistics = np.arange(1.0, 1.0 + -(-wire.STATISTICS // m))
        layout.codec.compress(gradient, layout.gradient(buffer, m))
        layout.statistics(buffer, m)[:] = statistics
        message = layout.seal(buffer, wire.RESULT, 17, worker=4, reduction=m)
        alone = Wire(schemes.grouped(8, 4, m), length, "float32", name)
        assert message.nbytes == layout.size(wire.RESULT, m) == alone.sizes[wire.RESULT] <= layout.sizes[wire.RESULT]
        header = layout.read(message, {wire.RESULT: 17}, 4, m)
        assert header.reduction == m
        np.testing.assert_array_equal(layout.codec.decompress(layout.gradient(message, m), len(gradient)), gradient)
        np.testing.assert_array_equal(layout.statistics(message, m), statistics)
        with pytest.raises(BadMessage, match=f"of reduction {m} in place of {m % 4 + 1}"):
            layout.read(message, {wire.RESULT: 17}, 4, m % 4 + 1)
        with pytest.raises(BadMessage, match="of another run, scheme"):  # though it is of the same length
            alone.read(message, {wire.RESULT: 17}, 4)
    for kind in (wire.MODEL, wire.READY, wire.OVERFLOW):  # every message says its own
        made = layout.seal(layout.model_buffer(), kind, 3, reduction=3)
        assert layout.read(made, {kind: 3}, 0, 3).reduction == 3


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_model_keeps_what_is_written(length: int, name: str) -> None:
    layout = Wire(SCHEME, length, name, "float32")
    buffer = layout.model_buffer()
    values = np.arange(length) % 200
    layout.parameters(buffer)[:] = values
    size = compression.codec(name).size(1)
    assert layout.seal(buffer, wire.MODEL, 3).nbytes == HEADER.size + length * size
    np.testing.assert_array_equal(layout.parameters(buffer), values)
    assert layout.read(buffer, {wire.MODEL: None}).iteration == 3


@pytest.mark.parametrize("workers", [1, 7, 8, 9, 64, 65])
def test_a_model_says_whose_messages_were_used(workers: int) -> None:
    layout = Wire(schemes.uncoded(workers), 3, "bfloat16", "int8", feedback=True)
    buffer = layout.model_buffer()
    layout.parameters(buffer)[:] = values = np.array([1.0, 2.0, 3.0])
    rng = np.random.default_rng(workers)
    for _ in range(5):
        used = set(np.flatnonzero(rng.random(workers) < 0.5).tolist())
        layout.mark_used(buffer, used)
        assert {worker for worker in range(workers) if layout.was_used(buffer, worker)} == used
        np.testing.assert_array_equal(layout.parameters(buffer), values)
    assert layout.seal(buffer, wire.MODEL, 3).nbytes == HEADER.size + 8 + 8 * -(-workers // 64)


LAYOUT = Wire(SCHEME, 10, "float32", "float32", run=7)
EXPECTED = {wire.RESULT: 5, wire.READY: None}
ITERATION, WORKER = 5, 2


def result(layout: Wire = LAYOUT, kind: int = wire.RESULT, iteration: int = ITERATION, worker: int = WORKER) -> Any:
    return layout.seal(layout.result_buffer(), kind, iteration, worker=worker)


def changed(field: str, value: Any) -> Any:
    """A message with one field set by someone who knows the format: its checksum is right."""
    message = result()
    header = Header._make(HEADER.unpack_from(message))._replace(**{field: value})
    HEADER.pack_into(message, 0, *header)
    HEADER.pack_into(message, 0, *header._replace(checksum=wire.checksum(message)))
    return message


FAULTS: list[tuple[str, Callable[[], Any], str]] = [
    ("cut in the header", lambda: result()[: HEADER.size - 1], "no header"),
    ("nothing", lambda: result()[:0], "no header"),
    ("cut in the gradient", lambda: result()[:-1], "in place of"),
    ("too long", lambda: np.append(result(), np.uint8(0)), "in place of"),
    ("another program", lambda: changed("magic", b"elsewher"), "another format"),
    ("another version", lambda: changed("magic", b"fastgc\x00\x02"), "another format"),
    ("another scheme", lambda: result(Wire(OTHER_SCHEME, 10, "float32", "float32", run=7)), "another run, scheme"),
    ("another reduction", lambda: changed("reduction", 1), "of reduction 1, which the scheme has not"),
    ("another run", lambda: result(Wire(SCHEME, 10, "float32", "float32", run=8)), "another run, scheme"),
    ("another gradient", lambda: result(Wire(SCHEME, 9, "float32", "float32", run=7)), "another run, scheme"),
    ("another element type", lambda: changed("element", 2), "another run, scheme"),
    ("a kind that only the master sends", lambda: result(kind=wire.STOP), "kind 3 is not expected"),
    ("a model", lambda: LAYOUT.seal(LAYOUT.model_buffer(), wire.MODEL, ITERATION), "worker 2 speaks for worker 0"),
    ("no kind at all", lambda: changed("kind", 99), "unknown kind 99"),
    ("a note with a gradient", lambda: changed("kind", wire.READY), "in place of 80"),
    ("someone else's number", lambda: result(worker=3), "worker 2 speaks for worker 3"),
    ("a part that there is not", lambda: changed("part", 1), "part 1 of 1"),
    ("an earlier iteration", lambda: result(iteration=4), "for iteration 4 in place of 5"),
]
SCALES = [("float16", [121, -114, 32767, -32768]), ("int8", [121, 127, -127, -128])]


@pytest.mark.parametrize(("name", "exponents"), SCALES, ids=[s[0] for s in SCALES])
def test_scales_that_no_worker_writes_are_refused(name: str, exponents: list[int]) -> None:
    """By someone who knows the format: 2**32768 is no float, and 127 · 2**121 no float32."""
    layout = Wire(SCHEME, 100, "float32", name)
    buffer = layout.result_buffer()
    layout.codec.compress(np.linspace(-1, 1, layout.message_length(), dtype=np.float32), layout.gradient(buffer))
    place = layout.gradient(buffer)[-2:].view(np.int16 if name == "float16" else np.int8)
    assert layout.read(layout.seal(buffer, wire.RESULT, 5, worker=2), EXPECTED, WORKER).iteration == 5
    for exponent in exponents:
        place[-1] = exponent
        with pytest.raises(BadMessage, match=rf"{name} scales from"):
            layout.read(layout.seal(buffer, wire.RESULT, 5, worker=2), EXPECTED, WORKER)


@pytest.mark.parametrize(("make", "pattern"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults(make: Callable[[], Any], pattern: str) -> None:
    assert LAYOUT.read(result(), EXPECTED, WORKER).iteration == ITERATION
    with pytest.raises(BadMessage, match=pattern):
        LAYOUT.read(make(), EXPECTED, WORKER)


def accepted(message: Any) -> bool:
    try:
        LAYOUT.read(message, EXPECTED, WORKER)
    except BadMessage:
        return False
    return True


def test_any_changed_byte_is_noticed() -> None:
    message = result()
    for position in range(len(message)):
        message[position] ^= 0x10
        assert not accepted(message), position
        message[position] ^= 0x10
    assert accepted(message)


def test_any_length_but_the_right_one_is_refused() -> None:
    message = np.zeros(200, np.uint8)
    message[: LAYOUT.sizes[wire.RESULT]] = result()
    assert [n for n in range(len(message)) if accepted(message[:n])] == [LAYOUT.sizes[wire.RESULT]]
