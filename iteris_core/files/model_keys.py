"""Names and sizes of one model's modules, as LoRA files of every spelling name them, and parts of a
fused weight: what other programs keep as several weights, one model keeps as rows of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..adapters import LowRankDelta
from ..layers import sorted_layers
from .families import Family

Keys = TypeVar("Keys", bound="ModelKeys")


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


@dataclass(frozen=True)
class ModelKeys:
    """Names and sizes of one model's modules; keeps no weights alive.

    Args:
        module_of_base: Base of a key -> module path, in every spelling.
        base_of_module: Module path -> the base of its keys in saved files, in the style of the
            family.
        shapes: Module path -> (d_out, d_in) of the layers that can be merged.
        refused: Module path -> why the layer cannot be merged; begins with the predicate.
        kernels: Module path -> the convolution's kernel, see `layer_kernels`.
        vector_sizes: Path of a bias or of a norm's weight -> its size.
        part_of_base: Base of a key -> the part of a fused weight that it names.
        ambiguous: Bases that may mean several modules; files with them are refused.
        prediction_type: What the model predicts, as ModelSpec names it (``epsilon`` or ``v``);
            empty: a flow model, which ModelSpec does not name.
    """

    family: Family
    module_of_base: Mapping[str, str]
    base_of_module: Mapping[str, str]
    shapes: Mapping[str, tuple[int, int]]
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    vector_sizes: Mapping[str, int] = field(default_factory=dict)
    part_of_base: Mapping[str, WeightPart] = field(default_factory=dict)
    ambiguous: frozenset[str] = frozenset()
    prediction_type: str = "epsilon"
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls: type[Keys],
        family: Family,
        modules: Mapping[str, nn.Module],
        module_of_base: Mapping[str, str],
        base_of_module: Mapping[str, str],
        **more: Any,
    ) -> Keys:
        """Return the keys of a model with these modules, path -> module, whose sizes are read; the
        other arguments are the fields of the class.
        """
        shapes, refused = sorted_layers(modules)
        return cls(
            family=family,
            module_of_base=module_of_base,
            base_of_module=base_of_module,
            shapes=shapes,
            kernels=layer_kernels(modules),
            vector_sizes=_vector_sizes(modules),
            refused=refused,
            **more,
        )

    def place_of(self, base: str) -> WeightPart | None:
        """Return the weight, or the part of one, that a base names; None if the model has none."""
        if base in self.part_of_base:
            return self.part_of_base[base]
        path = self.module_of_base.get(base)
        return None if path is None else WeightPart(path, 0, self.shapes.get(path, (0, 0))[0])

    def weight_shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of a layer's weight tensor: four numbers for a convolution."""
        d_out, d_in = self.shapes[path]
        if path not in self.kernels:
            return d_out, d_in
        kernel = self.kernels[path]
        return d_out, d_in // math.prod(kernel), *kernel


def layer_kernels(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return module path -> (height, width) of every convolution, with a time before them in
    models of videos.
    """
    return {
        path: tuple(module.kernel_size)
        for path, module in modules.items()
        if isinstance(module, (nn.Conv2d, nn.Conv3d))
    }


def _vector_sizes(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    # a packed parameter has other numbers of elements and sides than the shape that it shows
    return {
        f"{path}.{name}": parameter.shape[0]
        for path, module in modules.items()
        for name, parameter in module.named_parameters(recurse=False)
        if len(parameter.shape) == 1
    }
