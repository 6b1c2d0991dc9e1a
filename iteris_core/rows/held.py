"""The memory that rows hold while they wait at a layer, counted in a forward call of a few."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..network import Network
from .lockstep import pause, run_in_lockstep
from .parking import Parking
from .wearing import layer_hooks


@torch.no_grad()
def held_bytes(
    network: Network,
    inputs: Sequence[Any],
    paths: Collection[str],
    parking: Parking | None = None,
) -> dict[str, int]:
    """Return the bytes that a forward call holds on its device while it waits at each layer.

    Args:
        network: The network; on torch's meta device it needs no memory.
        inputs: What each row reads, which does not count, as in a sweep.
        paths: Layers at which to wait.
        parking: What counts, with room for all of it; None: what would wait elsewhere in a sweep.

    Raises:
        CalibrationError: See `rows.lockstep.pause` and `rows.wearing.layer_hooks`.
    """
    counting = parking or Parking(network.modules.values(), budget=sys.maxsize)
    counting.keep(*inputs)
    held: dict[str, int] = {}

    def at_layer(path: str, _module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        counting.rows_run_on(x.device)
        pause(path)
        return y

    def waits(path: str) -> None:
        held[path] = counting.held_bytes

    with layer_hooks({path: network.modules[path] for path in paths}, at_layer):
        run_in_lockstep([partial(network.forward, inputs)], waits, counting)
    return held
