"""What the tests of the core share: a record of how much of the error bound was used."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_used = pytest.StashKey[dict[str, tuple[float, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_used] = {}


@pytest.fixture
def note_bound(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Note the fraction of a bound that a test saw; the largest of each kind is in the summary."""
    seen = request.config.stash[_used]

    def note(kind: str, fraction: float) -> None:
        if fraction > seen.get(kind, (-1.0, ""))[0]:
            seen[kind] = (fraction, request.node.name)

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for kind, (fraction, name) in sorted(config.stash[_used].items()):
        terminalreporter.write_line(f"{kind}: at most {fraction:.3f} of the bound is used, by {name}")
