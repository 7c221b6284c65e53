"""Windows, as far as it can be told from other systems: no module of the package needs what Python lacks there."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What other packages want of the system they have had when they were imported; the package comes after that.
PROGRAM = """
import importlib, importlib.util, os, pkgutil, signal, sys, time
import numpy as np
for name in ("scipy.linalg", "numba", "cupy", "torch", "jax"):
    if importlib.util.find_spec(name.partition(".")[0]):
        importlib.import_module(name)

class Absent:
    names = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"Windows has no {name}", name=name)
sys.meta_path.insert(0, Absent())
for name in Absent.names:
    sys.modules.pop(name, None)
gone = {
    os: "chown confstr fork forkpty getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getuid "
        "killpg lchown mkfifo nice openpty posix_fadvise posix_spawn pread preadv pwrite register_at_fork "
        "sched_getaffinity sched_setaffinity sched_yield sendfile setpgid setpriority setsid sync sysconf ttyname "
        "uname wait wait3 wait4",
    signal: "SIGALRM SIGCHLD SIGHUP SIGKILL SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 alarm pthread_sigmask setitimer sigwait",
    time: "clock_gettime clock_getres tzset",
}
for module, names in gone.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

assert not any(name.startswith("fastgc") for name in sys.modules)
import fastgc
imported, missing = [], []
for found in pkgutil.walk_packages(fastgc.__path__, "fastgc."):
    if found.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(found.name)
        imported.append(found.name)
    except ModuleNotFoundError as error:
        assert error.name.partition(".")[0] in ("cupy", "jax", "torch"), error
        missing.append(found.name)
scheme = fastgc.schemes.grouped(4, load=2, reduction=2)
sent = {w: scheme.encode(w, np.ones((2, 100))) for w in range(4)}
assert abs(scheme.decode(sent, 100) - 4).max() < 1e-12
from fastgc import cli
assert cli.info()["threads"] >= 1
print(len(imported), *missing)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="here nothing need be hidden")
def test_no_module_needs_what_windows_lacks() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) >= 30, result.stdout
