"""Layers that read the same tensor have the same input moments: measure them once.

Found at run time by the identity of the tensors, not by the names of layers: q, k and v of a
self-attention; keys and values of every cross-attention of a network, whose context stays the same
tensor throughout.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..algebra.statistics import InputMoments
from ..errors import CalibrationError


@dataclass(frozen=True)
class _Seen:
    """A tensor that was measured: which one, and its count of in-place changes, or its sum where
    there is no such count.
    """

    reference: weakref.ref[Tensor]
    version: int
    checksum: Tensor | None

    @classmethod
    def of(cls, x: Tensor) -> _Seen:
        return (
            cls(weakref.ref(x), -1, _checksum(x))
            if x.is_inference()
            else cls(weakref.ref(x), x._version, None)
        )

    def is_still(self, x: Tensor) -> bool:
        return self.reference() is x and (self.checksum is not None or self.version == x._version)


@dataclass
class SharedInput:
    """Moments of one input tensor per chunk, and weak references to those tensors: once one is
    freed, it is over.
    """

    stream: str
    moments: Sequence[InputMoments]
    seen: list[_Seen] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        self.seen.append(_Seen.of(x))

    def alive(self) -> bool:
        return all(seen.reference() is not None for seen in self.seen)


@dataclass
class SharedInputs:
    """All inputs that layers still to come might read again."""

    entries: list[SharedInput] = field(default_factory=list)

    def find(self, stream: str, x: Tensor) -> SharedInput | None:
        """Return the entry whose first chunk is this tensor, if there is one; forget those whose
        tensors are gone.
        """
        self.entries = [entry for entry in self.entries if entry.alive()]
        return next(
            (
                entry
                for entry in self.entries
                if entry.stream == stream and entry.seen[0].is_still(x)
            ),
            None,
        )

    def check(self, entry: SharedInput, chunk: int, x: Tensor, path: str) -> Tensor:
        """Return whether a chunk's input was changed in place since it was measured, as a bool on
        its device.

        Raises:
            CalibrationError: The chunk reads another tensor here than where the entry was measured.
        """
        seen = entry.seen[chunk]
        if not seen.is_still(x):
            raise CalibrationError(
                f"layer {path!r} shares its input with an earlier layer in one chunk and not in "
                "another: the forward passes took different ways. Every sample has to run through "
                "the same layers in the same order"
            )
        if seen.checksum is None:
            return torch.zeros((), dtype=torch.bool, device=x.device)
        return ~torch.isclose(_checksum(x), seen.checksum, rtol=0, atol=0, equal_nan=True)


def _checksum(x: Tensor) -> Tensor:
    return torch.stack([x.sum(dtype=torch.float32), x.abs().sum(dtype=torch.float32)]).sum()
