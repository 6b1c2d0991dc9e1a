"""Stores, where the contents of tensors wait: the host's memory, or a file."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..memory import free_bytes

_HOST = torch.device("cpu")
_UNLOCKED = 2 << 30  # bytes of the host's memory that are never locked
_PAGE = 1 << 20  # bytes of a file


class Store(Protocol):
    """Where the contents of storages wait."""

    def write(self, storage: torch.UntypedStorage) -> Any:
        """Return what `read` needs to fill the storage again; then it may be emptied."""
        ...

    def read(self, content: Any, storage: torch.UntypedStorage) -> None:
        """Fill an empty storage with what was written, once."""
        ...

    def close(self) -> None:
        """Give back the room, when nothing waits there any more."""
        ...


class HostMemory:
    """Contents wait in the host's memory. A GPU's wait in locked pages, which the GPU copies by
    itself, in the order of its other work, while Python goes on. If the host has little memory
    left, pages are not locked, so that it can swap them.
    """

    def __init__(self) -> None:
        self._locks = False  # whether it has locked any

    def write(self, storage: torch.UntypedStorage) -> Tensor:
        content = _bytes_of(storage)
        room = _room_on_host(content)
        is_locked = room.is_pinned()
        self._locks |= is_locked
        return room.copy_(content, non_blocking=is_locked)

    def read(self, content: Tensor, storage: torch.UntypedStorage) -> None:
        storage.resize_(content.numel())
        _bytes_of(storage).copy_(content, non_blocking=content.is_pinned())

    def close(self) -> None:
        """Let torch unlock the pages, which it keeps for the process's life otherwise."""
        newer = getattr(torch, "accelerator", None)
        older = getattr(torch._C, "_host_emptyCache", None)
        empty = getattr(newer, "empty_host_cache", older)
        if self._locks and empty is not None:
            empty()


def _room_on_host(content: Tensor) -> Tensor:
    if content.is_cuda and _may_lock(content.nbytes):
        with suppress(RuntimeError):  # the system lets no more pages be locked
            return torch.empty(content.shape, dtype=content.dtype, pin_memory=True)
    return torch.empty(content.shape, dtype=content.dtype)


def _may_lock(size: int) -> bool:
    """Whether the host has room for so many locked bytes, which torch rounds up to twice that."""
    free = free_bytes(_HOST)
    return free is None or free > _UNLOCKED + 2 * size


# Bytes of a storage, and the pages of the file that have its content, in order.
Pages = tuple[int, tuple[int, ...]]


class PagedFile:
    """Contents wait in a file without a name, so that it goes with the process, however that ends.

    Raises:
        CalibrationError: It cannot be made, written or read; names the folder.
    """

    def __init__(self) -> None:
        self._folder = _folder()
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        except OSError as error:
            raise self._failed("made", error) from error
        # a storage whose bytes Python reads itself could not be emptied any more
        self._page = torch.empty(_PAGE, dtype=torch.uint8)
        self._free: list[int] = []
        self._pages = 0

    def write(self, storage: torch.UntypedStorage) -> Pages:
        pieces = torch.split(_bytes_of(storage), _PAGE)
        numbers = tuple(self._free.pop() if self._free else self._new_page() for _ in pieces)
        try:
            for number, piece in zip(numbers, pieces, strict=True):
                self._page[: len(piece)].copy_(piece)
                self._file.seek(number * _PAGE)
                self._file.write(self._page.numpy()[: len(piece)].data)
            self._file.flush()
        except OSError as error:
            raise self._failed("written", error) from error
        return storage.nbytes(), numbers

    def read(self, content: Pages, storage: torch.UntypedStorage) -> None:
        size, numbers = content
        storage.resize_(size)
        pieces = torch.split(_bytes_of(storage), _PAGE)
        try:
            for number, piece in zip(numbers, pieces, strict=True):
                self._file.seek(number * _PAGE)
                if self._file.readinto(self._page.numpy()[: len(piece)].data) != len(piece):
                    raise OSError("it was cut short")
                piece.copy_(self._page[: len(piece)])
        except OSError as error:
            raise self._failed("read", error) from error
        self._free += numbers

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _new_page(self) -> int:
        self._pages += 1
        return self._pages - 1

    def _failed(self, what: str, error: OSError) -> CalibrationError:
        return CalibrationError(
            f"samples that have no room in memory wait in a file in {self._folder}, which cannot "
            f"be {what} ({error}). Make room there, set TMPDIR to another folder, or merge with "
            "fewer samples or at a lower resolution"
        )


def _folder() -> str:
    """Return a folder for large files: on many systems /tmp is itself in memory."""
    large = "/var/tmp"
    if "TMPDIR" not in os.environ and os.access(large, os.W_OK):
        return large
    return tempfile.gettempdir()


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
