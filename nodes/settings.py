"""What the widgets of IterIS Merge say about how to solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..iteris_core import ConfigError, MergeConfig
from .sockets import MergeSettings

if TYPE_CHECKING:
    from ..iteris_core.diffusion.samples import PromptedAdapter

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_BYTES_OF_NAMES = 500  # of a layer's three tensors in the file's header


def from_widgets(
    loras: Sequence[PromptedAdapter],
    *,
    precision: str,
    rank: int,
    kept_energy: float,
    size_mb: float,
    correct_strength: bool,
    **same: Any,
) -> MergeSettings:
    """Return the settings that the widgets of IterIS Merge mean for these LoRAs; those in `same`
    are the core's own.

    Raises:
        ConfigError: An unknown precision, or more than one way to choose ranks.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; it can be {', '.join(PRECISIONS)}")
    check_ranks(rank, kept_energy, size_mb)
    config = MergeConfig(
        rank=rank or "sum",
        kept_energy=kept_energy if kept_energy < 1 else None,
        size=weights_in(size_mb, PRECISIONS[precision], loras) if size_mb else None,
        output_dtype=PRECISIONS[precision],
        **same,
    )
    return MergeSettings(config, correct_strength)


def check_ranks(rank: int, kept_energy: float, size_mb: float) -> None:
    """Refuse more than one way to choose ranks.

    Raises:
        ConfigError: Says which of them are set.
    """
    given = {"rank": (rank, 0), "kept_energy": (kept_energy, 1), "size_mb": (size_mb, 0)}
    used = [f"{name} is {value:g}" for name, (value, off) in given.items() if value != off]
    if len(used) > 1:
        raise ConfigError(
            f"{' and '.join(used)}, but each of them decides the ranks. Set one, and leave the "
            "others off: rank 0, kept_energy 1, size_mb 0"
        )


def weights_in(size_mb: float, dtype: torch.dtype, loras: Sequence[PromptedAdapter]) -> int:
    """Return how many weights a file of this size has room for, in all factors together.

    Raises:
        ConfigError: It has no room for rank 1 at every layer.
    """
    from ..iteris_core.adapters import target_layers

    adapters = [lora.adapter for lora in loras]
    shapes = {path: delta.shape for adapter in adapters for path, delta in adapter.deltas.items()}
    names = _BYTES_OF_NAMES * len(target_layers(adapters))
    weights = int((size_mb * 1e6 - names) / dtype.itemsize)
    least = sum(map(sum, shapes.values()))
    if weights < least:
        raise ConfigError(
            f"size_mb is {size_mb:g}; the smallest merge of these LoRAs, rank 1 in all "
            f"{len(shapes)} layers, takes {(least * dtype.itemsize + names) / 1e6:.1f} MB. Allow "
            "more"
        )
    return weights
