"""Sizes of a model's layers, by module path: what an adapter's tensors must fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..errors import AdapterError
from ..layers import weight_shape


def layer_shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Return module path -> (d_out, d_in) of every layer that can be merged."""
    shapes = {}
    for path, module in modules.items():
        try:
            shapes[path] = weight_shape(module)
        except AdapterError:  # no target layer, so no adapter may change it
            continue
    return shapes


def layer_kernels(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Return module path -> (height, width) of convolutions."""
    return {
        path: module.kernel_size
        for path, module in modules.items()
        if isinstance(module, nn.Conv2d)
    }


def vector_sizes(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return parameter path -> size, of biases and norms."""
    return {
        f"{path}.{name}": parameter.numel()
        for path, module in modules.items()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 1
    }
