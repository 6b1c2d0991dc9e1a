"""Layers that read the same tensor have the same input moments: measure them once.

Found at run time by the identity of the tensors, not by the names of layers: q, k and v of a self-attention; keys and
values of every cross-attention of a network, whose context stays the same tensor throughout.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .errors import CalibrationError
from .statistics import InputMoments


@dataclass
class SharedInput:
    """Moments of one input tensor per chunk, and weak references to those tensors: once one is freed, it is over."""

    stream: str
    moments: Sequence[InputMoments]
    seen: list[tuple[weakref.ref[Tensor], int]] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        self.seen.append((weakref.ref(x), _version(x)))

    def holds(self, chunk: int, x: Tensor) -> bool:
        """Tell whether chunk number `chunk` was measured on this very tensor, unchanged since."""
        reference, version = self.seen[chunk]
        return reference() is x and version == _version(x)

    def alive(self) -> bool:
        return all(reference() is not None for reference, _ in self.seen)


@dataclass
class SharedInputs:
    """All inputs that layers still to come might read again."""

    entries: list[SharedInput] = field(default_factory=list)

    def find(self, stream: str, x: Tensor) -> SharedInput | None:
        """Return the entry whose first chunk is this tensor, if there is one; forget those whose tensors are gone."""
        self.entries = [entry for entry in self.entries if entry.alive()]
        return next((entry for entry in self.entries if entry.stream == stream and entry.holds(0, x)), None)

    def check(self, entry: SharedInput, chunk: int, x: Tensor, path: str) -> None:
        """Refuse a chunk that reads another tensor here than where the entry was measured."""
        if not entry.holds(chunk, x):
            raise CalibrationError(
                f"layer {path!r} shares its input with an earlier layer in one chunk and not in another: the forward passes "
                "took different ways. Every sample has to run through the same layers in the same order"
            )


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version  # inference tensors keep no count of in-place changes
