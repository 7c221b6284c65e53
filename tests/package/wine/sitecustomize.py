"""What CPython wants of Windows and Wine 8 does not have: without it the standard library has other ways."""

import _winapi
import sys

if hasattr(_winapi, "CopyFile2"):
    del _winapi.CopyFile2
sys.modules["_wmi"] = None  # type: ignore[assignment]
