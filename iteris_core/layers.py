"""The two kinds of target layer, Linear and Conv2d, seen as one: a matrix that multiplies tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import AdapterError


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """Return (d_out, d_in) of a Linear or 1x1 Conv2d, read from the module's settings, never from its weight.

    Raises:
        AdapterError: Another kind of module; its class is named.
    """
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv2d) and module.groups == 1 and tuple(module.kernel_size) == (1, 1):
        return module.out_channels, module.in_channels
    raise AdapterError(f"is a {_describe(module)}; only Linear and 1x1 Conv2d layers can be merged")


def _describe(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        return f"Conv2d with a {height}x{width} kernel" + (f" and {module.groups} groups" if module.groups > 1 else "")
    return type(module).__name__


def input_tokens(module: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs that the layer's weight multiplies, (rows, tokens, d_in).

    >>> input_tokens(nn.Linear(4, 2), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """
    if isinstance(module, nn.Conv2d):
        step_down, step_right = module.stride
        return x[:, :, ::step_down, ::step_right].flatten(2).transpose(1, 2)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def output_tokens(module: nn.Module, y: Tensor) -> Tensor:
    """Return a layer's outputs as (rows, tokens, d_out)."""
    if isinstance(module, nn.Conv2d):
        return y.flatten(2).transpose(1, 2)
    return y.reshape(y.shape[0], -1, y.shape[-1])


def add_to_output(module: nn.Module, y: Tensor, tokens: Tensor) -> None:
    """Add (rows, tokens, d_out) to rows of a layer's output, in place."""
    if isinstance(module, nn.Conv2d):
        tokens = tokens.transpose(1, 2)
    y += tokens.reshape(y.shape).to(y.dtype)


def base_weight(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the layer's own (d_out, d_in) weight, measured by sending an identity through its ``forward``.

    Works for every way of storing weights (cast on the fly, quantised, patched); ``forward`` itself calls no hooks.
    """
    d_in = weight_shape(module)[1]
    probes = torch.cat([torch.eye(d_in, device=device, dtype=dtype), torch.zeros(1, d_in, device=device, dtype=dtype)])
    shape = (d_in + 1, d_in, 1, 1) if isinstance(module, nn.Conv2d) else (d_in + 1, d_in)
    answers = module.forward(probes.reshape(shape)).reshape(d_in + 1, -1)
    return (answers[:-1] - answers[-1]).T
