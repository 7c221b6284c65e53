"""Faults of an emulated cluster as they are written; `test_cluster.py` lets them happen."""

from __future__ import annotations

import pytest

from mpi_runner.cluster import faults
from mpi_runner.cluster.faults import Fault
from mpi_runner.config import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("worker3@20s:link-down", Fault("worker3", "link-down", "", 20.0)),
        ("worker3@0.5s:link-up", Fault("worker3", "link-up", "", 0.5)),
        ("worker0@1s:bandwidth=10mbit", Fault("worker0", "bandwidth", "10mbit", 1.0)),
        ("head@1s:link-down", Fault("head", "link-down", "", 1.0)),
        ("worker12@0s:lost", Fault("worker12", "lost")),
    ],
)
def test_timed_faults(text: str, expected: Fault) -> None:
    assert faults.parse_timed(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker3:link-down", "must be HOST@SECONDSs:FAULT"),
        ("worker3@20:link-down", "must be HOST@SECONDSs:FAULT"),
        ("worker3@-1s:link-down", "must be HOST@SECONDSs:FAULT"),
        ("@1s:lost", "must be HOST@SECONDSs:FAULT"),
        ("worker3@1s:unplug", "must be one of link-down, link-up, bandwidth=RATE, lost, not 'unplug'"),
        ("worker3@1s:lost=1", "must be one of"),
        ("worker3@1s:bandwidth", "a rate is a number"),
        ("worker3@1s:bandwidth=fast", "a rate is a number"),
        ("head@1s:lost", "it cannot be lost"),
    ],
)
def test_bad_faults_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        faults.parse_timed(text)
    assert "\n" not in str(caught.value)
