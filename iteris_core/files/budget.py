"""What one look at a file may take in all: each of `limits` may be kept, and their sum too much."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from ..errors import AdapterError
from .limits import BYTES_A_SECOND, LOOK_BYTES, LOOK_SECONDS


class _Spent(Exception):
    """No `ValueError`, which readers take for a field that cannot be read."""


@dataclass
class _Budget:
    """What is left: bytes, and the time on this thread's processor at which it ends."""

    bytes: int
    end: float


_BUDGET: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextlib.contextmanager
def budget(path: Path, tensors: Path | None = None) -> Iterator[None]:
    """Let all readers that are called meanwhile share one budget; see `spend`.

    Args:
        path: The file, for errors.
        tensors: The file of the tensors, if they are read, too: a larger one may take longer.

    Raises:
        AdapterError: They took more.
    """
    if _BUDGET.get() is not None:  # that of the whole look
        yield
        return
    size = _size(tensors) if tensors else 0
    seconds = LOOK_SECONDS + size / BYTES_A_SECOND
    before = _BUDGET.set(_Budget(LOOK_BYTES, time.thread_time() + seconds))
    try:
        yield
    except _Spent as spent:
        raise AdapterError(
            f"{path.name}: to read it takes more than {spent}. No adapter is known that needs so "
            "much, so the file is damaged or made to do harm; use another"
        ) from None
    finally:
        _BUDGET.reset(before)


def spend(count: int = 0) -> None:
    """Take the bytes of a text, and the time until now, out of the present budget, if there is one.
    To be called before each step.
    """
    left = _BUDGET.get()
    if left is None:
        return
    left.bytes -= count
    if left.bytes < 0:
        raise _Spent("the bytes that are read of one file")
    if time.thread_time() > left.end:
        raise _Spent("the seconds of the processor that are spent on one file")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # the reader says why
        return 0


def first(texts: Iterable[str], letters: int) -> Iterator[str]:
    """Yield texts as long as all together have no more letters."""
    for text in texts:
        letters -= len(text)
        if letters < 0:
            return
        yield text
