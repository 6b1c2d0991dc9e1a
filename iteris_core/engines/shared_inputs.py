"""Input moments that are measured once for all layers that read the same tokens of the same tensor.

Shared inputs are detected at run time by the identity of the tensors, not by the names of layers.
Examples are q, k and v of a self-attention, and keys and values of every cross-attention of a
network, whose context stays the same tensor throughout.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..algebra.moments import InputMoments
from ..config import MergeConfig
from ..errors import CalibrationError
from ..layers import token_layout, weight_shape
from ..network import Network


@dataclass(frozen=True)
class Seen:
    """A tensor as it was when it was measured.

    Args:
        version: Count of its in-place changes.
    """

    reference: weakref.ref[Tensor]
    version: int

    @classmethod
    def of(cls, x: Tensor) -> Seen:
        return cls(weakref.ref(x), _version(x))

    def is_still(self, x: Tensor) -> bool:
        return self.reference() is x and self.version == _version(x)


def _version(x: Tensor) -> int:
    # engines leave inference mode, and nothing can change its tensors in place outside of it
    return -1 if x.is_inference() else x._version


def reading_of(network: Network, path: str, module: nn.Module) -> Hashable:
    """Return how a layer reads its input tensor: the token stream, which decides the weights of the
    tokens, and how the layer cuts the tensor into these.
    """
    return network.stream(path), token_layout(module)


@dataclass
class SharedInput:
    """One input of the network, which several layers may read.

    Args:
        reading: See `reading_of`.
        derives: Whether the sums of the layers that read it follow from its moments, so that these
            layers can be solved as soon as it is measured.
        seen: The input's tensor of each chunk, weakly: when one of them is freed, no layer can read
            this input any more.
    """

    reading: Hashable
    moments: Sequence[InputMoments]
    derives: bool = False
    seen: list[Seen] = field(default_factory=list)


@dataclass
class SharedInputs:
    """All inputs that later layers may read again.

    Args:
        widths: Path of a layer -> total d_out of the layers that read its input, see `Readers`;
            empty: not known.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    entries: list[SharedInput] = field(default_factory=list)

    def find(self, reading: Hashable, x: Tensor) -> SharedInput | None:
        """Return the known input whose first chunk is this tensor, read this way, or None; forget
        inputs whose tensors are gone.
        """
        self.entries = [
            entry
            for entry in self.entries
            if all(seen.reference() is not None for seen in entry.seen)
        ]
        for entry in self.entries:
            if entry.reading == reading and entry.seen[0].is_still(x):
                return entry
        return None

    def add(
        self, reading: Hashable, moments: Sequence[InputMoments] = (), *, derives: bool = False
    ) -> SharedInput:
        """Return a new input, to be measured."""
        entry = SharedInput(reading, moments, derives)
        self.entries.append(entry)
        return entry


def may_derive(config: MergeConfig) -> bool:
    """Whether the settings allow sums that are derived from a layer's input, see
    `statistics.DerivedSums`.
    """
    return config.target == "full_output" and config.balance != "full" and config.ridge != "paper"


class Readers:
    """Finds out, in one forward call, which layers read the same input."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._inputs = SharedInputs()
        self._readers: dict[int, tuple[SharedInput, dict[str, int]]] = {}

    def note(self, path: str, module: nn.Module, x: Tensor) -> bool:
        """Note a layer that is reached, and return whether it is the first to read its input."""
        reading = reading_of(self._network, path, module)
        found = self._inputs.find(reading, x)
        shared = found or self._inputs.add(reading)
        if found is None:
            shared.seen.append(Seen.of(x))
        _, readers = self._readers.setdefault(id(shared), (shared, {}))
        readers[path] = weight_shape(module)[0]
        return found is None

    def widths(self) -> dict[str, int]:
        """Return the path of each layer -> total d_out of the layers that read its input."""
        return {
            path: sum(readers.values()) for _, readers in self._readers.values() for path in readers
        }


@dataclass
class Arrivals:
    """The tensors of one layer's input, chunk by chunk: noted by the first layer that reads it, and
    checked to be the same by the others.

    Args:
        is_first: Whether this layer is the first.
    """

    path: str
    seen: list[Seen]
    is_first: bool
    _arrived: int = field(default=0, init=False)

    def add(self, x: Tensor) -> None:
        """Take note of the next chunk's tensor.

        Raises:
            CalibrationError: It is not the tensor that was measured for this chunk.
        """
        if self.is_first:
            self.seen.append(Seen.of(x))
            return
        seen = self.seen[self._arrived]
        self._arrived += 1
        if not seen.is_still(x):
            raise CalibrationError(
                f"layer {self.path!r} shares its input with an earlier layer in one chunk and not "
                "in another: the forward passes took different ways. Every sample has to run "
                "through the same layers in the same order"
            )
