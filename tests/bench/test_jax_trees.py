"""The measurement of encoding pytrees runs, and checks what it times."""

from __future__ import annotations

import pytest

from bench import jax_trees
from fastgc import _xla

needs_jax = pytest.mark.skipif(_xla.problem() is not None, reason=f"fastgc.jax: {_xla.problem()}")


@needs_jax
def test_a_short_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert jax_trees.main(["--widths", "5", "7", "3", "--seconds", "0.01"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert "66 parameters" in header
    assert rows[0].startswith("fastgc.jax.encode ")
    assert rows[0].split()[-1] == "1.00"
    assert len(rows) == 4


def test_nonsense_is_refused() -> None:
    for words in (["--widths", "5"], ["--widths", "0", "5"], ["--seconds", "0"]):
        with pytest.raises(SystemExit):
            jax_trees.main(words)
