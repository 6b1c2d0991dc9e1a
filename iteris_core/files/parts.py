"""Parts of a fused weight: what other programs keep as several weights, one model keeps as rows of
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta


@dataclass(frozen=True)
class WeightPart:
    """Rows of a weight that files name as a weight of its own; a whole weight is all of them.

    Args:
        start: The first row.
        length: The number of rows.
        reorder: Function that brings rows from the order of the files to the model's order:
            (length, ...) -> the same rows; None: both are the same.
    """

    path: str
    start: int
    length: int
    reorder: Callable[[Tensor], Tensor] | None = None

    @property
    def rows(self) -> Tensor:
        """The place in the weight of each row of the part, (length,), in the order of the files."""
        places = torch.arange(self.start, self.start + self.length)
        if self.reorder is None:
            return places
        return places[torch.argsort(self.reorder(torch.arange(self.length)))]

    def is_whole(self, d_out: int) -> bool:
        """Whether it is a weight of this many rows, in the model's own order."""
        return self.length == d_out and self.reorder is None

    def overlaps(self, other: WeightPart) -> bool:
        """Whether both have a row of one weight."""
        return self.path == other.path and (
            self.start < other.start + other.length and other.start < self.start + self.length
        )

    def in_weight(self, delta: LowRankDelta, d_out: int) -> LowRankDelta:
        """Return a delta of the part, in the order of the files, as one of the weight of `d_out`
        rows, which is zero in all other rows.
        """
        if self.is_whole(d_out):
            return delta
        up = delta.up.new_zeros(d_out, delta.rank)
        up[self.rows] = delta.up
        return LowRankDelta(up, delta.down)

    def __str__(self) -> str:
        return f"rows {self.start} to {self.start + self.length - 1} of {self.path!r}"
