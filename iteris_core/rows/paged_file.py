"""A file in which tensors wait that have no room in the host's memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CalibrationError

_PAGE = 1 << 20  # bytes


@dataclass(frozen=True)
class Pages:
    """Where a storage's content is.

    Args:
        size: Its bytes.
        numbers: The pages of the file that have them, in order.
    """

    size: int
    numbers: tuple[int, ...]


class PagedFile:
    """A file without a name, so that it goes with the process, however that ends."""

    def __init__(self) -> None:
        self._folder = _folder()
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        # a storage whose bytes Python reads itself could not be emptied any more
        self._page = torch.empty(_PAGE, dtype=torch.uint8)
        self._free: list[int] = []
        self._pages = 0

    def write(self, storage: torch.UntypedStorage) -> Pages:
        """Write a storage's content into free pages.

        Raises:
            CalibrationError: The disk has no room, or cannot be written.
        """
        pieces = _pieces_of(storage)
        numbers = tuple(self._free.pop() if self._free else self._new_page() for _ in pieces)
        try:
            for number, piece in zip(numbers, pieces, strict=True):
                self._page[: len(piece)].copy_(piece)
                self._file.seek(number * _PAGE)
                self._file.write(self._page.numpy()[: len(piece)].data)
            self._file.flush()
        except OSError as error:
            raise CalibrationError(
                f"samples that have no room in memory wait in a file in {self._folder}, which "
                f"cannot be written ({error}). Make room there, set TMPDIR to another folder, or "
                "merge with fewer samples or at a lower resolution"
            ) from error
        return Pages(storage.nbytes(), numbers)

    def read(self, pages: Pages, storage: torch.UntypedStorage) -> None:
        """Fill a storage with what was written, and free its pages."""
        storage.resize_(pages.size)
        for number, piece in zip(pages.numbers, _pieces_of(storage), strict=True):
            self._file.seek(number * _PAGE)
            self._file.readinto(self._page.numpy()[: len(piece)].data)
            piece.copy_(self._page[: len(piece)])
        self._free += pages.numbers

    def _new_page(self) -> int:
        self._pages += 1
        return self._pages - 1


def _pieces_of(storage: torch.UntypedStorage) -> Sequence[Tensor]:
    """Return a storage's bytes in pieces of a page."""
    return torch.empty(0, dtype=torch.uint8).set_(storage).split(_PAGE)


def _folder() -> str:
    """Return a folder for large files: on many systems /tmp is itself in memory."""
    large = "/var/tmp"
    if "TMPDIR" not in os.environ and os.access(large, os.W_OK):
        return large
    return tempfile.gettempdir()
