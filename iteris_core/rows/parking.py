"""Moves tensors of paused chunks elsewhere, and back before the chunk goes on.

A sweep keeps all its rows in the middle of the network while a layer is solved. On a small device
they do not fit. Then chunks wait on the device as long as their room lasts, and the tensors of the
others wait in the host's memory or, where the model runs on the host itself, in a file. The forward
call does not notice: each tensor keeps its identity, only its storage is emptied and filled again.

What a chunk holds is in the local variables of its paused frames, and is counted there, not
estimated. At most layers the first chunk shows that all have room, so that the others are not
looked at.

So a tensor that anybody else uses meanwhile must stay. Those of the network's modules do;
everything else that chunks share is named to `Parking.keep`. To look at every tensor of the network
for every chunk would take long. So parameters are looked up once a round, and for every chunk only
what a forward call may have left in a module.
"""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import CalibrationError

logger = logging.getLogger("iteris")
_SMALLEST = 1 << 16  # bytes; less is not worth a copy
_LARGER = 2  # how much more than the first chunk another may hold, of longer texts, say
_NESTING = 3
_PAGE = 1 << 20  # bytes of a file
_HOLDERS = (Tensor, list, tuple)
_PLAIN = frozenset({type(None), bool, int, float, str, dict, OrderedDict, set})


class Store(Protocol):
    """Where the contents of storages wait."""

    def write(self, storage: torch.UntypedStorage) -> Any:
        """Return what `read` needs to fill the storage again, which may be emptied then."""
        ...

    def read(self, content: Any, storage: torch.UntypedStorage) -> None:
        """Fill an empty storage with what was written, once."""
        ...


class HostMemory:
    """Contents wait in the host's memory."""

    def write(self, storage: torch.UntypedStorage) -> Tensor:
        return _bytes_of(storage).to("cpu", copy=True)

    def read(self, content: Tensor, storage: torch.UntypedStorage) -> None:
        storage.resize_(content.numel())
        storage.copy_(content.untyped_storage())


@dataclass(frozen=True)
class Pages:
    """Where a storage's content is.

    Args:
        numbers: The pages of the file that have them, in order.
    """

    size: int
    numbers: tuple[int, ...]


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
        return Pages(storage.nbytes(), numbers)

    def read(self, content: Pages, storage: torch.UntypedStorage) -> None:
        storage.resize_(content.size)
        pieces = torch.split(_bytes_of(storage), _PAGE)
        try:
            for number, piece in zip(content.numbers, pieces, strict=True):
                self._file.seek(number * _PAGE)
                if self._file.readinto(self._page.numpy()[: len(piece)].data) != len(piece):
                    raise OSError("it was cut short")
                piece.copy_(self._page[: len(piece)])
        except OSError as error:
            raise self._failed("read", error) from error
        self._free += content.numbers

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


@dataclass
class Parked:
    """A paused chunk.

    Args:
        contents: Storages that are empty for the time being, and their contents in the store.
        staying: Bytes of the chunk that stay on the device.
    """

    contents: list[tuple[torch.UntypedStorage, Any]]
    staying: int


class Parking:
    """Parks what paused frames hold, except for what others may use.

    Args:
        modules: Modules of the network, whose parameters, buffers and other tensors stay.
        budget: Bytes that paused chunks may hold on the device together. A chunk beyond it waits
            elsewhere.
        store: Where; None: in the host's memory, or in a file if the rows run there.
        smallest: Bytes of the smallest storage that is worth a copy.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        *,
        budget: int = 0,
        store: Store | None = None,
        smallest: int = _SMALLEST,
    ) -> None:
        self.modules = list(modules)
        self.budget = budget
        self.store = store
        self.smallest = smallest
        self._device: str | None = None  # None: any
        self._staying_bytes = 0
        self._uncounted = 1  # chunks of this round, as long as none of them was counted; then 0
        self._each: int | None = None  # bytes of each chunk of this round, where all have room
        self._kept: list[weakref.ref[Tensor]] = []
        self._lasting: set[int] | None = None  # None: to be looked up

    @property
    def held_bytes(self) -> int:
        """Bytes that paused chunks hold on the device."""
        return self._staying_bytes

    @property
    def is_in_file(self) -> bool:
        """Whether what has no room waits in a file."""
        return self._device == "cpu" if self.store is None else isinstance(self.store, PagedFile)

    def rows_run_on(self, device: torch.device) -> None:
        """Park the tensors of this device alone, from now on."""
        self._device = device.type

    def new_round(self, chunks: int) -> None:
        """Rebuild what stays when the first chunk of this round is parked."""
        self._lasting = None
        self._uncounted = chunks
        self._each = None

    def keep(self, *shared: Any) -> None:
        """Let tensors stay that several chunks use, as long as they live.

        Args:
            shared: Tensors, or lists, tuples, mappings and objects that hold some.
        """
        found = (tensor for value in shared for tensor in _tensors_held_by(value, _NESTING))
        self._kept += [weakref.ref(tensor) for tensor in found]
        self._lasting = None

    def park(self, frame: FrameType | None) -> Parked:
        """Empty the storages of all device tensors in a paused frame and the frames that called
        it, if the budget has no room for them.

        Raises:
            CalibrationError: A tensor that waits already: another chunk holds it, too; or the file
                cannot be written.
        """
        if self._each is not None:
            self._staying_bytes += self._each
            return Parked([], self._each)
        found = self._storages_in(frame)
        total = sum(storage.nbytes() for storage in found)
        if self._uncounted and _LARGER * total * self._uncounted <= self.budget:
            self._each = total
        self._uncounted = 0
        if self._staying_bytes + total <= self.budget:
            self._staying_bytes += total
            return Parked([], total)
        if self.store is None:
            self.store = PagedFile() if self.is_in_file else HostMemory()
        parked = Parked([], 0)
        for storage in found:
            parked.contents.append((storage, self.store.write(storage)))
            storage.resize_(0)
        logger.debug("%d bytes of a paused chunk wait elsewhere", total)
        return parked

    def bring_back(self, parked: Parked) -> None:
        """Fill the storages of a chunk again, before it goes on.

        Raises:
            CalibrationError: The file cannot be read.
        """
        self._staying_bytes -= parked.staying
        parked.staying = 0
        while parked.contents:
            assert self.store is not None
            storage, content = parked.contents.pop()
            self.store.read(content, storage)

    def _storages_in(self, frame: FrameType | None) -> list[torch.UntypedStorage]:
        """Return the storages that nothing else uses, of a paused frame and those that called
        it.
        """
        staying = self._staying()
        found: dict[int, torch.UntypedStorage] = {}
        while frame is not None:
            for tensor in _tensors_in(list(frame.f_locals.values()), _NESTING):
                key = _key(tensor)
                if self._stays(tensor) or key in staying or key in found:
                    continue
                storage = tensor.untyped_storage()
                if tensor.numel() and not storage.nbytes():
                    raise CalibrationError(
                        f"{frame.f_code.co_name!r} of the model holds a tensor of shape "
                        f"{tuple(tensor.shape)} that other samples' forward calls share, so that "
                        "it cannot wait elsewhere; merge without waiting_bytes"
                    )
                if storage.nbytes() >= self.smallest:
                    found[key] = storage
            frame = frame.f_back
        return list(found.values())

    def _stays(self, tensor: Tensor) -> bool:
        """Whether a tensor is on a device whose tensors stay, or its memory is somebody else's."""
        is_elsewhere = self._device not in (None, tensor.device.type)
        return is_elsewhere or not tensor.untyped_storage().resizable()

    def _staying(self) -> set[int]:
        """Return the storages that stay."""
        if self._lasting is None:
            self._lasting = self._look_up_lasting()
        remembered = (
            _key(t) for value in self._left_behind() for t in _tensors_in(value, _NESTING)
        )
        return self._lasting.union(remembered)

    def _look_up_lasting(self) -> set[int]:
        """Return the storages of what is kept, and of the parameters."""
        self._kept = [reference for reference in self._kept if reference() is not None]
        kept = {_key(tensor) for ref in self._kept if (tensor := ref()) is not None}
        return kept | {_key(tensor) for module in self.modules for tensor in _parameters_of(module)}

    def _left_behind(self) -> list[Any]:
        """Return buffers and all attributes that may hold tensors; each forward call may have left
        new ones.
        """
        values: list[Any] = []
        for module in self.modules:
            attributes = vars(module)
            values += attributes["_buffers"].values()
            if not _PLAIN.issuperset(map(type, attributes.values())):  # passes most modules by
                values += [value for value in attributes.values() if isinstance(value, _HOLDERS)]
        return values


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _parameters_of(module: nn.Module) -> Iterator[nn.Parameter]:
    yield from module.parameters(recurse=False)


def _tensors_in(value: Any, depth: int) -> Iterator[Tensor]:
    """Yield the tensors in a variable: itself, or in lists and tuples. Mappings hold options, which
    chunks may share.
    """
    if isinstance(value, Tensor):
        if value.layout == torch.strided and type(value) in (Tensor, nn.Parameter):
            yield value
    elif depth and isinstance(value, list | tuple):
        for part in value:
            yield from _tensors_in(part, depth - 1)


def _tensors_held_by(value: Any, depth: int) -> Iterator[Tensor]:
    """Yield the tensors that a value holds: itself, or in sequences, mappings and attributes."""
    if isinstance(value, Tensor):
        yield from _tensors_in(value, 0)
    elif depth:
        parts: Iterable[Any] = ()
        if isinstance(value, list | tuple):
            parts = value
        elif isinstance(value, Mapping):
            parts = value.values()
        elif hasattr(value, "__dict__"):
            parts = vars(value).values()
        for part in parts:
            yield from _tensors_held_by(part, depth - 1)
