"""The kinds of target layer, Linear, Conv2d and the Conv3d that cuts a video into patches, seen as
one: a matrix that multiplies tokens.

For a k x k convolution a token is a patch, and d_in = channels * k * k, in the order of
``weight.flatten(1)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import AdapterError


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer multiplies its input by one (d_out, d_in) weight, as `nn.Linear` does.

    Hosts keep quantised weights in classes of their own, which are told by what they hold: the
    sizes, a matrix as ``weight``, and next to it and the bias nothing but single numbers, such as a
    scale. A relative of theirs holds something else: Nunchaku's fused layers a packed ``qweight``
    with factors of single features, a bank of experts one matrix each, PEFT's wrapper a layer.
    """
    if isinstance(module, nn.Linear):
        return True
    others = dict(module.named_parameters(recurse=False))
    weight = others.pop("weight", None)
    others.pop("bias", None)
    return (
        _has_sizes(module)
        and weight is not None
        and len(weight.shape) == 2
        and all(other.numel() == 1 for other in others.values())
    )


def _has_sizes(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, n, None), int) for n in ("in_features", "out_features"))


def is_quantised(module: nn.Module) -> bool:
    """Whether a target layer keeps its weight in fewer than 16 bits a number.

    Then the host may round what it adds to the weight, and the layer may round its input.

    Args:
        module: A layer whose `weight_shape` is known.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (
        weight.dtype.itemsize < 2
        or not weight.is_floating_point()
        or weight.numel() != math.prod(weight_shape(module))  # packed
        # a class of tensors that shows another dtype than the one that it keeps
        or type(weight).dequantize is not Tensor.dequantize
    )


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """Return (d_out, d_in) of a layer, read from the module's settings, never from its weight.

    Raises:
        AdapterError: A module that cannot be merged; says what it is.
    """
    if is_linear(module):
        return module.out_features, module.in_features
    if (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and module.padding != "same"
    ):
        height, width = module.kernel_size
        return module.out_channels, module.in_channels * height * width
    if cuts_videos(module):
        return module.out_channels, module.in_channels * math.prod(module.kernel_size)
    if _has_sizes(module):
        raise AdapterError(
            f"is a {class_of(module)}, which is not a plain Linear layer: it has more than one "
            "weight and its scale, so that it may scale, reorder or round its input first. Load "
            "the model in 16 bit, fp8 or GGUF"
        )
    raise AdapterError(
        f"is a {_describe(module)}; only Linear and Conv2d layers without groups can be merged, "
        "and a Conv3d that cuts a video into patches side by side"
    )


def cuts_videos(module: nn.Module) -> TypeGuard[nn.Conv3d]:
    """Whether a layer cuts videos into patches that lie side by side, and multiplies each by its
    weight.
    """
    return (
        isinstance(module, nn.Conv3d)
        and module.stride == module.kernel_size
        and module.padding in ("valid", (0, 0, 0))
        and module.dilation == (1, 1, 1)
        and module.groups == 1
    )


def layer_shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Return module path -> (d_out, d_in) of every layer that can be merged."""
    return sorted_layers(modules)[0]


def sorted_layers(
    modules: Mapping[str, nn.Module],
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return path -> (d_out, d_in) of the layers that can be merged, and path -> why not of all
    other modules.
    """
    shapes = {}
    refused = {}
    for path, module in modules.items():
        try:
            shapes[path] = weight_shape(module)
        except AdapterError as error:
            refused[path] = str(error)
    return shapes, refused


def class_of(module: nn.Module) -> str:
    """Return the name of a layer's class, and where it comes from if it is not PyTorch's."""
    kind = type(module)
    if kind.__module__.startswith("torch.nn."):
        return kind.__name__
    return f"{kind.__name__} of {kind.__module__}"


def _describe(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return class_of(module)
    padding = f"{module.padding_mode!r} {module.padding}"
    return f"Conv2d with {module.groups} groups and padding {padding}"


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    """Return the rows and columns of zeros around a picture; `weight_shape` refuses ``same``."""
    if isinstance(module.padding, str):
        return 0, 0  # "valid"
    rows, columns = module.padding
    return rows, columns


def is_patchwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a token of the layer is a patch of several positions, so that its tokens take much
    more room than its input.
    """
    return isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1)


def token_layout(module: nn.Module) -> Hashable:
    """Return how a layer cuts its input into tokens; layers with the same answer read the same
    tokens of one tensor.
    """
    if isinstance(module, nn.Conv3d):
        return module.kernel_size
    if not isinstance(module, nn.Conv2d):
        return None
    return module.kernel_size, module.stride, _padding(module), module.dilation


def token_count(module: nn.Module, x: Tensor) -> int:
    """Return the number of tokens in a row of the layer's input."""
    if isinstance(module, nn.Conv3d):
        return math.prod(n // k for n, k in zip(x.shape[2:], module.kernel_size, strict=True))
    if not isinstance(module, nn.Conv2d):
        return x[0, ..., 0].numel()
    sides = zip(
        x.shape[2:],
        module.kernel_size,
        module.stride,
        _padding(module),
        module.dilation,
        strict=True,
    )
    rows, columns = (
        (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for n, k, stride, padding, dilation in sides
    )
    return rows * columns


def input_tokens(module: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs that the layer's weight multiplies, (rows, tokens, d_in).

    >>> input_tokens(nn.Linear(4, 2), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    >>> input_tokens(nn.Conv2d(4, 2, 3), torch.zeros(2, 4, 5, 6)).shape
    torch.Size([2, 12, 36])
    >>> input_tokens(nn.Conv3d(4, 2, (1, 2, 2), (1, 2, 2)), torch.zeros(2, 4, 3, 4, 6)).shape
    torch.Size([2, 18, 16])
    """
    if isinstance(module, nn.Conv3d):
        for axis, size in enumerate(module.kernel_size, 2):
            x = x.unfold(axis, size, size)  # (rows, channels, t, h, w, and what was cut)
        return x.movedim(1, 4).flatten(4).flatten(1, 3)
    if isinstance(module, nn.Conv2d):
        if not is_patchwise(module) and not any(_padding(module)):
            step_down, step_right = module.stride
            return x[:, :, ::step_down, ::step_right].flatten(2).transpose(1, 2)
        return functional.unfold(
            x, module.kernel_size, module.dilation, _padding(module), module.stride
        ).transpose(1, 2)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def codes_of(module: nn.Module, x: Tensor, down: Tensor) -> Tensor:
    """Return ``tokens @ down^T``, (rows, tokens, r), without making the patches of a convolution.

    Args:
        x: Input of the layer, in any precision.
        down: (r, d_in), in the precision of the result.
    """
    x = x.to(down.dtype)
    if not is_patchwise(module):
        return input_tokens(module, x) @ down.T
    if x.device.type != "cpu":  # a matrix product, row by row: convolutions there may round to TF32
        return torch.cat([input_tokens(module, row[None]) @ down.T for row in x])
    kernel = down.reshape(down.shape[0], module.in_channels, *module.kernel_size)
    return (
        functional.conv2d(x, kernel, None, module.stride, _padding(module), module.dilation)
        .flatten(2)
        .transpose(1, 2)
    )


def output_tokens(module: nn.Module, y: Tensor) -> Tensor:
    """Return a layer's outputs as (rows, tokens, d_out)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        return y.flatten(2).transpose(1, 2)
    return y.reshape(y.shape[0], -1, y.shape[-1])


def add_to_output(module: nn.Module, y: Tensor, codes: Tensor, up: Tensor) -> None:
    """Add ``codes @ up^T`` to rows of a layer's output, in place.

    Args:
        y: Rows of its output.
        codes: (rows, tokens, r).
        up: (d_out, r), in the precision of the codes.
    """
    is_convolution = isinstance(module, (nn.Conv2d, nn.Conv3d))
    if y.dtype == codes.dtype and y.is_contiguous():
        # without a tensor of the output's size in between
        if is_convolution:
            whole = y.view(len(y), len(up), -1)
            whole.baddbmm_(up.expand(len(y), *up.shape), codes.transpose(1, 2))
        else:
            y.view(-1, len(up)).addmm_(codes.flatten(0, 1), up.T)
        return
    tokens = codes @ up.T
    if is_convolution:
        tokens = tokens.transpose(1, 2)
    y += tokens.reshape(y.shape).to(y.dtype)


def stored_weight(path: str, module: nn.Module) -> Tensor:
    """Return a layer's weight as it is stored.

    Raises:
        AdapterError: It is elsewhere until the layer is called.
    """
    weight = module.get_parameter("weight").detach()
    if weight.is_meta:
        raise AdapterError(
            f"the adapter's change of {path!r} depends on the layer's own weight, as a DoRA's "
            "does, and accelerate keeps that elsewhere until the layer is called; load the model "
            "without a device map"
        )
    return weight


# That go through a layer at once: a host may copy the weight to the device for each call. A
# convolution's are pictures, several times as large.
_PROBES = 4096
_PICTURES = 1024


def base_weight_and_bias(
    module: nn.Module, device: torch.device, dtype: torch.dtype, size: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the layer's own weight (d_out, d_in) and bias (d_out,), float32 or better, by sending
    an identity and zeros through ``forward``.

    Works for every way of storing weights (cast on the fly, quantised, patched); ``forward`` itself
    calls no hooks. For a convolution each probe is one picture of the kernel's size, read at the
    output position whose patch it is.

    Args:
        size: Factor of the identity. A large one keeps a bias from taking the weight's digits in
            half precision.
    """
    d_in = weight_shape(module)[1]
    precision = torch.promote_types(dtype, torch.float32)
    columns = []
    bias = torch.empty(0)
    run: Callable[[Tensor], Tensor]
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        run, most = partial(_convolve_patches, module), _PICTURES
    else:
        run, most = module.forward, _PROBES
    for start in range(0, d_in, most):
        count = min(most, d_in - start)
        probes = torch.zeros(count + 1, d_in, device=device, dtype=dtype)  # the last for the bias
        probes[:count, start : start + count].fill_diagonal_(size)
        answers = run(probes).to(precision)
        bias = answers[-1]
        columns.append((answers[:-1] - bias) / size)
    return torch.cat(columns).T, bias


def _convolve_patches(module: nn.Conv2d | nn.Conv3d, patches: Tensor) -> Tensor:
    """Return the module's output for single patches (n, d_in), as (n, d_out)."""
    if isinstance(module, nn.Conv3d):
        single = patches.reshape(len(patches), module.in_channels, *module.kernel_size)
        return module.forward(single).flatten(1)
    # The patch is put where the output position `anchor` reads it, far enough inside to read no
    # padding.
    sides = []
    anchors = []
    for size, stride, padding, dilation in zip(
        module.kernel_size, module.stride, _padding(module), module.dilation, strict=True
    ):
        anchor = -(-padding // stride)
        anchors.append(anchor)
        start = anchor * stride - padding
        sides.append((start, start + (size - 1) * dilation + 1, dilation))
    picture = patches.new_zeros(len(patches), module.in_channels, sides[0][1], sides[1][1])
    rows, columns = (slice(start, stop, step) for start, stop, step in sides)
    picture[:, :, rows, columns] = patches.reshape(
        len(patches), module.in_channels, *module.kernel_size
    )
    return module.forward(picture)[:, :, anchors[0], anchors[1]]
