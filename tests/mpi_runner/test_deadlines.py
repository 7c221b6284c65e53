"""Deadlines of iterations: what may be asked for, and how one is learned."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpi_runner.deadlines import Deadline


def test_a_fixed_deadline_is_what_it_is_told() -> None:
    deadline = Deadline("0.25", workers=4)
    deadline.note(100.0)
    assert deadline.seconds() == 0.25


def test_a_quantile_is_learned_from_the_latest_answers() -> None:
    deadline = Deadline("quantile:0.9:2", workers=4)
    answers = np.random.default_rng(5).exponential(size=3 * Deadline.WINDOW)
    for number, seconds in enumerate(answers, 1):
        assert (deadline.seconds() == math.inf) == (number <= 3 * 4)
        deadline.note(float(seconds))
        if number > Deadline.WINDOW:
            break
    for seconds in answers:
        deadline.note(float(seconds))
    assert deadline.seconds() == pytest.approx(2 * np.quantile(answers[-Deadline.WINDOW :], 0.9))


BAD = ["", "soon", "0", "-1", "inf", "nan", "quantile", "quantile:", "quantile:0", "quantile:1.5", "quantile:0.5:0",
       "quantile:0.5:1:2", "quantile:nan", "1:2"]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_deadline_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must (be SECONDS or quantile|have a quantile above 0)"):
        Deadline(text)
