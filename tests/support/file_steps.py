"""Strikes at one step of a writer: between two of its operations on files.

SQLite tests its commits so. The module that writes reaches the system through its own `os`, `shutil`
and `open`; here these are replaced by others that count.
"""

import errno
import os
import shutil
from collections.abc import Callable

from iteris_core.files import writing

CHANGES = {"open", "fsync", "link", "replace", "rename", "unlink", "mkdir", "makedirs", "rmtree"}
OF_FILES = {"write", "writelines", "flush", "close"}
KILLED = 9


class Steps:
    """Counts the operations on files, and strikes before one of them.

    Args:
        at: Number of the operation, from 0 on; None: none.
        strike: Is called then, and may raise, or end the process.
    """

    def __init__(self, at: int | None = None, strike: Callable[[], object] = lambda: None) -> None:
        self.at = at
        self.strike = strike
        self.names: list[str] = []

    def __call__(self, name: str) -> bool:
        """Count an operation; return whether this is the one."""
        self.names.append(name)
        return len(self.names) - 1 == self.at

    def wrapped(self, name, function):
        def call(*args, **kwargs):
            if self(name):
                self.strike()
            return function(*args, **kwargs)

        return call

    def install(self, monkeypatch) -> None:
        for module in (os, shutil):
            monkeypatch.setattr(writing, module.__name__, _Counted(module, self, CHANGES))
        monkeypatch.setattr(writing, "open", self._open, raising=False)

    def _open(self, *args):
        if self("open"):
            self.strike()
        return _File(open(*args), self, OF_FILES - {"write"})


class _Counted:
    """Something some of whose functions are counted."""

    def __init__(self, inner, steps, names):
        self._inner = inner
        self._steps = steps
        self._names = names

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        return self._steps.wrapped(name, value) if name in self._names else value


class _File(_Counted):
    def write(self, data):
        data = bytes(data)
        if self._steps("write"):  # a kill may come in the middle
            done = self._inner.write(data[: len(data) // 2])
            self._inner.flush()
            self._steps.strike()
            data = data[done:]
        return self._inner.write(data)

    def writelines(self, blocks):
        for block in blocks:
            self.write(block)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self._inner.close()


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kill():
    """End this process as a kill does: nothing is tidied up."""
    os._exit(KILLED)


def in_child(work: Callable[[], object]) -> int:
    """Return the exit status of a process of its own that does this work; 1: it raised."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
