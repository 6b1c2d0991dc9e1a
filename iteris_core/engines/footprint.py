"""The memory that layers take while they are measured and solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..adapters import Adapter, target_shapes
from ..algebra.products import TOKENS_PER_PRODUCT
from ..config import MergeConfig
from ..devices import in_float32, sums_dtype
from ..layers import is_patchwise
from ..memory import LayerBytes
from .shared_inputs import may_derive


def layer_bytes(
    modules: Mapping[str, nn.Module],
    adapters: Sequence[Adapter],
    tasks: int,
    config: MergeConfig,
    device: torch.device,
) -> dict[str, LayerBytes]:
    """Return about what each layer that adapters change takes.

    Args:
        modules: Modules of the network; layers that are not among them do not count.
        device: Device of the sums.
    """
    shapes = target_shapes(adapters)
    return {
        path: bytes_at(module, shapes[path], tasks, config, device)
        for path, module in modules.items()
        if path in shapes
    }


def bytes_at(
    module: nn.Module,
    shape: tuple[int, int],
    tasks: int,
    config: MergeConfig,
    device: torch.device,
) -> LayerBytes:
    """Return about what one layer takes.

    Args:
        shape: (d_out, d_in).
        device: Device of the sums.
    """
    d_out, d_in = shape
    gram = 8 * d_in * d_in
    right_side = 8 * d_in * d_out if config.target == "full_output" else 0
    kept = sums_dtype(device).itemsize / 8
    keeps_rows = is_patchwise(module) and config.patches < d_in
    moments = 8 * config.patches * d_in if keeps_rows else tasks * kept * gram
    if may_derive(config) and d_in <= d_out and not keeps_rows:  # with sums over differences
        moments += 2 * tasks * kept * gram
    # rows that are gathered for the products: for the Gram matrix, and for the others
    gathered = 4 * tasks * TOKENS_PER_PRODUCT * (2 * d_in + d_out)
    # the factor (and the system, if the factor is in float32), and copies of the right sides
    if in_float32(config.factorisation, device, d_in):
        solve = 1.5 * gram + 3.7 * right_side
    else:
        solve = gram + 4.6 * right_side
    if keeps_rows:  # the system and the Gram matrix of one task's rows
        solve = max(solve, (1 + kept) * gram)
    if config.method == "ties":  # dense deltas, their trimmed copies, masks and signs
        solve = max(solve, 5 * 8 * tasks * d_in * d_out)
    return LayerBytes(moments + gathered + tasks * kept * right_side, solve)
