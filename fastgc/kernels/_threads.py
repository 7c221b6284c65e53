"""How many threads a call may have: one number for the backends on the CPU."""

from __future__ import annotations

import os

from fastgc.kernels import _arguments
from fastgc.kernels._extension import core


def _asked() -> int | None:
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) > 0 else None


_said = _asked()


def get_num_threads() -> int:
    """Threads that a large call may have on a CPU.

    Returns
    -------
    int
        What `set_num_threads` was given last, at first the first number in ``OMP_NUM_THREADS``; no more than the CPUs
        that the process may run on.
    """
    if core is not None:
        return core.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_said or usable, usable)


def set_num_threads(count: int) -> None:
    """Say how many threads a call may have on a CPU from now on, in the whole process.

    Encoding and decoding included, whoever calls. Where two say so, in whichever threads, the last word counts. It does
    not concern `fastgc.jax`, which uses XLA's threads, nor programs that call the library for C.

    Parameters
    ----------
    count : int
        At least 1. More than there are CPUs is as many as there are.

    Raises
    ------
    TypeError, ValueError
        `count` is not a positive integer.
    """
    global _said
    _said = _arguments.positive("count", count)
    if core is not None:
        core.set_num_threads(_said)
