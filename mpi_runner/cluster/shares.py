"""A host's share of the CPU: a cgroup a host, under one a cluster, where the machine has cgroups to write."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

PERIOD = 20_000  # µs. The kernel's default of 100 ms would let a host compute on all cores, then stop for long
V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
PREFIX = "fastgc-"
REMOVAL_SECONDS = 2.0


def _root() -> Path | None:
    """Where CPU limits can be made: version 1's hierarchy of them, or version 2's if it hands them down."""
    if (V1 / "cgroup.procs").exists():
        return V1
    with contextlib.suppress(OSError):
        if "cpu" in (V2 / "cgroup.subtree_control").read_text().split():
            return V2
    return None


def available() -> bool:
    """Whether this machine can limit a host's cores."""
    root = _root()
    return root is not None and os.access(root, os.W_OK)


def make(cluster: str, host: str, cores: float | None) -> Path:
    """Make a host's cgroup, without a limit for None; processes join by writing their ids into the file returned."""
    root = _root()
    assert root is not None
    parent = root / f"{PREFIX}{cluster}"
    parent.mkdir(exist_ok=True)
    if root == V2:
        (parent / "cgroup.subtree_control").write_text("+cpu")
    group = parent / host
    group.mkdir()
    if cores is None:
        return group / "cgroup.procs"
    quota = max(1000, round(cores * PERIOD))  # 1 ms is the least that the kernel takes
    if root == V2:
        (group / "cpu.max").write_text(f"{quota} {PERIOD}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    return group / "cgroup.procs"


def folder(cluster: str) -> Path | None:
    """The cgroup that a cluster's are under, whether or not it is there."""
    root = _root()
    return None if root is None else root / f"{PREFIX}{cluster}"


def names() -> list[str]:
    """The clusters that have cgroups."""
    root = _root()
    return [] if root is None else [group.name.removeprefix(PREFIX) for group in root.glob(f"{PREFIX}*-*-*")]


def remove(cluster: str) -> None:
    """Remove a cluster's cgroups; its processes have ended, which the kernel may take a moment to see."""
    group = folder(cluster)
    if group is None or not group.exists():
        return
    end = time.monotonic() + REMOVAL_SECONDS
    while True:
        try:
            for host in [path for path in group.iterdir() if path.is_dir()]:
                host.rmdir()
            group.rmdir()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
