"""The wire format: views into buffers, and every way in which a message can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastgc import schemes
from mpi_runner import wire
from mpi_runner.wire import Wire

SCHEME = schemes.grouped(6, 3, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
@pytest.mark.parametrize("length", [1, 2, 5, 6, 1001])
def test_a_result_keeps_what_is_written(length: int, dtype: Any) -> None:
    layout = Wire(SCHEME, length, dtype)
    buffer = layout.result_buffer()
    gradient = np.arange(layout.message_length, dtype=dtype) + 1
    statistics = np.array([3.25], np.float64)
    layout.gradient(buffer)[:] = gradient
    layout.statistics(buffer)[:] = statistics
    message = layout.write_header(buffer, wire.RESULT, 4, 17, wire.Spent(compute=0.5, encode=0.125, delay=0.25))
    assert message.nbytes == layout.result_bytes
    header = layout.header(message)
    assert (int(header["worker"]), int(header["iteration"])) == (4, 17)
    seconds = [float(header[f"{what}_seconds"]) for what in ("compute", "encode", "delay")]
    assert seconds == [0.5, 0.125, 0.25]
    np.testing.assert_array_equal(layout.gradient(message), gradient)
    np.testing.assert_array_equal(layout.statistics(message), statistics)
    assert layout.fault(message, message.nbytes, {wire.RESULT: layout.result_bytes}, 4) is None


def test_a_model_keeps_what_is_written() -> None:
    layout = Wire(SCHEME, 7, np.float32)
    buffer = layout.model_buffer()
    layout.parameters(buffer)[:] = np.arange(7)
    assert layout.write_header(buffer, wire.MODEL, 0, 3).nbytes == 64 + 28
    np.testing.assert_array_equal(layout.parameters(buffer), np.arange(7, dtype=np.float32))


LAYOUT = Wire(SCHEME, 10, np.float32)
KINDS = {wire.RESULT: LAYOUT.result_bytes, wire.READY: 64}


def damage(field: str, value: Any) -> Callable[[Any], None]:
    def change(buffer: Any) -> None:
        LAYOUT.header(buffer)[field] = value

    return change


FAULTS: list[tuple[str, Callable[[Any], None], int | None, str]] = [
    ("cut in the header", lambda b: None, 63, "no header"),
    ("nothing", lambda b: None, 0, "no header"),
    ("cut in the gradient", lambda b: None, LAYOUT.result_bytes - 1, "in place of"),
    ("another program", damage("magic", b"elsewhere"[:8]), None, "another format"),
    ("another version", damage("magic", b"fastgc\x00\x02"), None, "another format"),
    ("another scheme", damage("fingerprint", 1), None, "another format, scheme or gradient"),
    ("another gradient", damage("length", 11), None, "another format, scheme or gradient"),
    ("another element type", damage("itemsize", 8), None, "another format, scheme or gradient"),
    ("a kind that only the master sends", damage("kind", wire.MODEL), None, "unexpected kind 1"),
    ("no kind at all", damage("kind", 99), None, "unexpected kind 99"),
    ("a note with a gradient", damage("kind", wire.READY), None, "in place of 64"),
    ("someone else's number", damage("worker", 3), None, "worker 2 speaks for worker 3"),
]


@pytest.mark.parametrize(("change", "received", "pattern"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults(change: Callable[[Any], None], received: int | None, pattern: str) -> None:
    buffer = LAYOUT.result_buffer()
    LAYOUT.write_header(buffer, wire.RESULT, 2, 0)
    assert LAYOUT.fault(buffer, len(buffer), KINDS, 2) is None
    change(buffer)
    fault = LAYOUT.fault(buffer, len(buffer) if received is None else received, KINDS, 2)
    assert fault is not None
    assert pattern in fault
