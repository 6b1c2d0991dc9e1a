"""Moves tensors of paused chunks to the host's memory, and back before they are needed.

A sweep keeps all its rows in the middle of the network while a layer is solved. On a small device
they do not fit. Then what is needed last waits in the host's memory. The forward call does not
notice: each tensor keeps its identity, only its storage is emptied and filled again.

A chunk's tensors are found in the local variables of its paused frames, and counted, not estimated.
What outer frames hold, such as a skip connection or a residual, is not needed until the module that
they have called returns: it goes first, and stays out until then. What the innermost frames hold
goes only if the budget has no room for it, and is back when the chunk goes on. At most layers the
first chunk shows that there is room for all, and the others are not searched.

A tensor that anybody else uses meanwhile must stay: those of the network's modules, and whatever
else chunks share, which `Parking.keep` is told. To search every module for every chunk would take
long. So parameters are looked up once a round, and for every chunk only what a forward call may
have left in a module.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from inspect import CO_OPTIMIZED
from types import CellType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..memory import free_bytes

logger = logging.getLogger("iteris")
_SMALLEST = 1 << 16  # bytes; less is not worth a copy
# Devices with a memory of their own, whose storages torch can empty and fill again.
_EMPTIED = frozenset({"cuda", "xpu", "npu"})
_HOST = torch.device("cpu")
_UNLOCKED = 2 << 30  # bytes of the host's memory that are never locked
_LARGER = 2  # how many times as much as the first chunk others may hold, with longer texts, say
_NESTING = 3
_CALL = nn.Module._call_impl.__code__
_HOLDERS = (Tensor, list, tuple)
_PLAIN = frozenset({type(None), bool, int, float, str, dict, OrderedDict, set})


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


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


@dataclass
class Parked:
    """A chunk that is or was paused.

    Args:
        waiting: Module -> storages that are empty until its call returns, and their contents; under
            None, until the chunk goes on.
        staying: Bytes of the chunk that stay on the device while it is paused.
    """

    waiting: dict[nn.Module | None, list[tuple[torch.UntypedStorage, Tensor]]] = field(
        default_factory=dict
    )
    staying: int = 0


class Parking:
    """Parks what paused frames hold, except for what others may use.

    Args:
        modules: Modules of the network, whose parameters, buffers and other tensors stay.
        budget: Bytes that paused chunks may hold on the device together. What is beyond it waits in
            the host's memory.
        smallest: Bytes of the smallest storage that is worth a copy.

    Attributes:
        store: Where contents wait.
        staying_bytes: Bytes that paused chunks hold on the device.
        copied_bytes: Bytes that were copied so far, out and back.
    """

    def __init__(
        self, modules: Iterable[nn.Module], *, budget: int = 0, smallest: int = _SMALLEST
    ) -> None:
        self.modules = list(modules)
        self.budget = budget
        self.store = HostMemory()
        self.smallest = smallest
        self.staying_bytes = 0
        self.copied_bytes = 0
        self._kept: list[weakref.ref[Tensor]] = []
        self._calling = frozenset(m for m in self.modules if next(m.children(), None) is not None)
        self.new_round(1)

    @contextmanager
    def told_of_returns(self, returned: Callable[[nn.Module], None]) -> Iterator[None]:
        """Call a function with each module that calls others, when its own call returns."""
        handles = [
            module.register_forward_hook(lambda m, *_: returned(m), prepend=True, always_call=True)
            for module in self._calling
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def new_round(self, chunks: int) -> None:
        """Rebuild what stays when the first of this round's chunks is parked."""
        self._lasting: set[int] | None = None  # to be looked up
        self._each: int | None = None  # bytes of each chunk, if all have room
        self._chunks = self._to_come = chunks
        self._left = self.budget  # for the chunks to come

    def new_chunk(self) -> Parked:
        """Return the state of a chunk that was never paused."""
        return Parked()

    def close(self) -> None:
        """Give back what waiting took; nothing waits any more."""
        self.store.close()

    def keep(self, *shared: Any) -> None:
        """Let tensors stay that several chunks use, as long as they live.

        Args:
            shared: Tensors, or lists, tuples, mappings and objects that hold some.
        """
        found = (tensor for value in shared for tensor in tensors_in(value, held_by))
        self._kept += [weakref.ref(tensor) for tensor in found]
        self._lasting = None

    def park(self, frame: FrameType | None, parked: Parked) -> None:
        """Empty the storages of device tensors in a paused frame and the frames that called it,
        as far as the budget has no room for them; the outermost first.

        Raises:
            CalibrationError: A tensor that waits already: another chunk holds it, too.
        """
        if self._each is not None:
            self._count(parked, self._each)
            return
        found = self._storages_in(frame, parked)
        total = sum(storage.nbytes() for storage, _ in found)
        is_first_and_here = self._to_come == self._chunks and not parked.waiting
        if is_first_and_here and _LARGER * total * self._chunks <= self.budget:
            self._each = total
            self._count(parked, total)
            return
        # its share of what the chunks before it have left, and never more than there is
        room = min(self._left // max(1, self._to_come), self.budget - self.staying_bytes)
        before = self.copied_bytes
        for storage, module in found:
            size = storage.nbytes()
            if parked.staying + size <= room:
                self._count(parked, size)
                continue
            parked.waiting.setdefault(module, []).append((storage, self.store.write(storage)))
            self.copied_bytes += size
            storage.resize_(0)
        self._to_come -= 1
        self._left -= parked.staying
        if self.copied_bytes > before:
            logger.debug("%d bytes of a paused chunk wait elsewhere", self.copied_bytes - before)

    def bring_back(self, parked: Parked, module: nn.Module | None = None) -> None:
        """Fill the storages of a chunk again that are needed when a module's call returns, or when
        the chunk goes on.
        """
        if module is None:
            self._count(parked, -parked.staying)
        contents = parked.waiting.get(module, [])
        while contents:
            storage, content = contents[-1]
            self.store.read(content, storage)
            contents.pop()  # only now: where there is no room for it, it still waits
            self.copied_bytes += storage.nbytes()
        parked.waiting.pop(module, None)

    def let_go(self, parked: Parked) -> None:
        """Forget a chunk that will not go on, and what still waits of it."""
        self._count(parked, -parked.staying)
        parked.waiting.clear()

    def _count(self, parked: Parked, size: int) -> None:
        """Count bytes of a chunk that stay on the device; below 0: that no longer do."""
        parked.staying += size
        self.staying_bytes += size

    def _storages_in(
        self, frame: FrameType | None, parked: Parked
    ) -> list[tuple[torch.UntypedStorage, nn.Module | None]]:
        """Return the storages that only a paused frame and its callers use, innermost first, each
        with the module for whose return its frames wait.
        """
        left = self._staying()
        left.update(s._cdata for part in parked.waiting.values() for s, _ in part)
        waits_for: dict[int, nn.Module | None] = {}  # of storages, innermost first
        found: dict[int, torch.UntypedStorage] = {}
        caller: nn.Module | None = None
        while frame is not None:
            variables = variables_of(frame)
            values = list(variables.values())
            for tensor in tensors_in(values, within_reach):
                waits_for.setdefault(storage_key(tensor), caller)
            for tensor in tensors_in(values, items_in):
                key = storage_key(tensor)
                if key in found or key in left or self._stays(tensor):
                    continue
                _check_unshared(tensor, frame)
                if tensor.untyped_storage().nbytes() >= self.smallest:
                    found[key] = tensor.untyped_storage()
            if frame.f_code is _CALL and variables["self"] in self._calling:
                caller = variables["self"]
            frame = frame.f_back
        return [(found[key], module) for key, module in waits_for.items() if key in found]

    def _stays(self, tensor: Tensor) -> bool:
        """Whether a tensor is on a device whose tensors stay, or its memory is somebody else's."""
        is_here = tensor.device.type in _EMPTIED
        return not is_here or not tensor.untyped_storage().resizable()

    def _staying(self) -> set[int]:
        if self._lasting is None:
            self._lasting = self._look_up_lasting()
        remembered = (
            storage_key(t) for value in self._left_behind() for t in tensors_in(value, items_in)
        )
        return self._lasting.union(remembered)

    def _look_up_lasting(self) -> set[int]:
        """Return the storages of what is kept, and of the parameters."""
        self._kept = [reference for reference in self._kept if reference() is not None]
        kept = {storage_key(tensor) for ref in self._kept if (tensor := ref()) is not None}
        own = (tensor for module in self.modules for tensor in module.parameters(recurse=False))
        return kept | set(map(storage_key, own))

    def _left_behind(self) -> list[Any]:
        """Return buffers and all attributes that may hold tensors; each forward call may have left
        new ones.
        """
        values: list[Any] = []
        for module in self.modules:
            attributes = vars(module)
            values += attributes["_buffers"].values()
            if not _PLAIN.issuperset(map(type, attributes.values())):  # skips most modules
                values += [value for value in attributes.values() if isinstance(value, _HOLDERS)]
        return values


def _check_unshared(tensor: Tensor, frame: FrameType) -> None:
    """Refuse a tensor that is empty, since it waits already, with another chunk."""
    if tensor.numel() and not tensor.untyped_storage().nbytes():
        raise CalibrationError(
            f"{frame.f_code.co_name!r} of the model holds a tensor of shape {tuple(tensor.shape)} "
            "that other samples' forward calls share, so that it cannot wait elsewhere; merge "
            "without a limit of waiting_bytes"
        )


# --- the tensors that frames and other values hold ---


def variables_of(frame: FrameType) -> dict[str, Any]:
    """Return the variables of a frame without letting it keep them alive: up to Python 3.12, a
    function's frame remembers the `f_locals` it was asked for, even after it lets a tensor go.
    """
    remembered = frame.f_locals
    variables = dict(remembered)
    if isinstance(remembered, dict) and frame.f_code.co_flags & CO_OPTIMIZED:
        remembered.clear()
    return variables


def tensors_in(
    value: Any, parts_of: Callable[[Any], Iterable[Any]], depth: int = _NESTING
) -> Iterator[Tensor]:
    """Yield the plain tensors in a variable: itself, or in its parts."""
    if isinstance(value, Tensor):
        if value.layout == torch.strided and type(value) in (Tensor, nn.Parameter):
            yield value
    elif depth:
        for part in parts_of(value):
            yield from tensors_in(part, parts_of, depth - 1)


def items_in(value: Any) -> Iterable[Any]:
    """Return the items of lists and tuples; mappings hold options, which chunks may share."""
    return value if isinstance(value, list | tuple) else ()


def within_reach(value: Any) -> Iterable[Any]:
    """Return what code with this variable may use: in containers and closures."""
    if isinstance(value, list | tuple | set):
        return value
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, FunctionType):
        return [c.cell_contents for c in value.__closure__ or () if c != CellType()]
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    return vars(value).values() if is_dataclass(value) else ()


def held_by(value: Any) -> Iterable[Any]:
    """Return what a value holds: items, values and attributes."""
    if isinstance(value, Mapping):
        return value.values()
    return items_in(value) or getattr(value, "__dict__", {}).values()


def storage_key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
