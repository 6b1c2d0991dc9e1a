"""Input moments that are measured once for all layers that read the same tokens of the same tensor.

Shared inputs are detected at run time by the identity of the tensors, not by the names of layers.
Examples are q, k and v of a self-attention, and keys and values of every cross-attention of a
network, whose context stays the same tensor throughout.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..algebra.statistics import InputMoments
from ..errors import CalibrationError


@dataclass(frozen=True)
class _Seen:
    """A tensor that was measured.

    Args:
        version: Count of its in-place changes.
    """

    reference: weakref.ref[Tensor]
    version: int

    @classmethod
    def of(cls, x: Tensor) -> _Seen:
        return cls(weakref.ref(x), _version(x))

    def is_still(self, x: Tensor) -> bool:
        return self.reference() is x and self.version == _version(x)


def _version(x: Tensor) -> int:
    # engines leave inference mode, and nothing can change its tensors in place outside of it
    return -1 if x.is_inference() else x._version


@dataclass(frozen=True)
class Reading:
    """How a layer reads its input tensor.

    Args:
        stream: Token stream of the input, which decides the weights of its tokens.
        layout: How the layer cuts the tensor into tokens, see `layers.token_layout`.
    """

    stream: str
    layout: Hashable


@dataclass
class SharedInput:
    """One input of the network, which several layers may read.

    Args:
        seen: The input's tensor of each chunk, weakly: when one of them is freed, no layer can read
            this input any more.
    """

    reading: Reading
    moments: Sequence[InputMoments]
    seen: list[_Seen] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        return all(seen.reference() is not None for seen in self.seen)


@dataclass
class SharedInputs:
    """All inputs that later layers may read again."""

    entries: list[SharedInput] = field(default_factory=list)

    def find(self, reading: Reading, x: Tensor) -> SharedInput | None:
        """Return the input whose first chunk is this tensor, read in this way, if there is one, and
        forget those whose tensors are gone.
        """
        self.entries = [entry for entry in self.entries if entry.is_alive]
        for entry in self.entries:
            if entry.reading == reading and entry.seen[0].is_still(x):
                return entry
        return None

    def add(self, reading: Reading, moments: Sequence[InputMoments]) -> SharedInput:
        """Return a new input, to be measured."""
        entry = SharedInput(reading, moments)
        self.entries.append(entry)
        return entry


@dataclass
class LayerInput:
    """The input of one layer, chunk by chunk: measured here, or measured by an earlier layer, and
    checked to be the same here.

    Args:
        is_first: Whether this layer is the first that reads it, and measures it.
    """

    shared: SharedInput
    is_first: bool
    _arrived: int = field(default=0, init=False)

    def arrive(self, x: Tensor, path: str) -> None:
        """Take note of the next chunk's tensor.

        Raises:
            CalibrationError: The tensor is another one than the chunk's when the input was
                measured.
        """
        if self.is_first:
            self.shared.seen.append(_Seen.of(x))
            return
        seen = self.shared.seen[self._arrived]
        self._arrived += 1
        if not seen.is_still(x):
            raise CalibrationError(
                f"layer {path!r} shares its input with an earlier layer in one chunk and not in "
                "another: the forward passes took different ways. Every sample has to run through "
                "the same layers in the same order"
            )
