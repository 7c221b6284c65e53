"""The compiled extension; where it cannot be imported, None and the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgc import _core

    core = _core
    missing: str
else:
    try:
        from fastgc import _core as core

        missing = ""
    except ImportError as error:
        core = None
        missing = str(error)
