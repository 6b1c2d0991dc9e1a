"""Waiting chunks in host memory: what a paused forward call holds on the device is copied out, and
back before it goes on.

A sweep keeps all its rows in the middle of the network while a layer is solved. On a small device
they do not fit; their tensors then wait on the host. The forward call does not notice: each tensor
keeps its identity, only its storage is emptied and filled again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

_SMALLEST = 1 << 16  # bytes; less is not worth a copy
_NESTING = 3


@dataclass
class Parked:
    """Storages that are empty for the time being, and their contents on the host."""

    contents: list[tuple[torch.UntypedStorage, Tensor]]

    def bring_back(self) -> None:
        """Fill the storages again."""
        while self.contents:
            storage, content = self.contents.pop()
            storage.resize_(content.numel())
            storage.copy_(content.untyped_storage())


class Parking:
    """Parks paused frames, except for what other frames may use: the model's own tensors, and those
    of several frames.

    Args:
        modules: The network's modules, whose parameters, buffers and other tensors stay where they
            are.
        smallest: Storages of fewer bytes stay too.
    """

    def __init__(self, modules: Iterable[nn.Module], smallest: int = _SMALLEST) -> None:
        self.smallest = smallest
        self.staying = {_key(tensor) for module in modules for tensor in _tensors_of(module)}

    def park(self, frame: FrameType | None) -> Parked:
        """Empty the storages of all device tensors in a paused frame and the frames that called
        it.
        """
        contents: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}
        while frame is not None:
            for tensor in _tensors_in(list(frame.f_locals.values()), _NESTING):
                storage = tensor.untyped_storage()
                key = _key(tensor)
                if (
                    self.is_parkable(tensor)
                    and key not in self.staying
                    and storage.nbytes() >= self.smallest
                    and key not in contents
                ):
                    contents[key] = storage, _bytes_on_host(storage)
            frame = frame.f_back
        for storage, _ in contents.values():
            storage.resize_(0)
        return Parked(list(contents.values()))

    def is_parkable(self, tensor: Tensor) -> bool:
        """Whether a tensor takes room on a device that has little of it."""
        return tensor.device.type not in ("cpu", "meta")


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes_on_host(storage: torch.UntypedStorage) -> Tensor:
    return (
        torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).to("cpu", copy=True)
    )


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
    for value in vars(module).values():
        yield from _tensors_in(value, _NESTING)


def _tensors_in(value: Any, depth: int) -> Iterator[Tensor]:
    """Yield the tensors in a variable: itself, or in lists and tuples. Dicts hold options, which
    chunks may share.
    """
    if isinstance(value, Tensor):
        if value.layout == torch.strided and type(value) in (Tensor, nn.Parameter):
            yield value
    elif depth and isinstance(value, list | tuple):
        for part in value:
            yield from _tensors_in(part, depth - 1)
