"""What the widgets of IterIS Merge, or a recipe, say about how to solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from ..iteris_core import ConfigError, IterisError, MergeConfig
from ..iteris_core.adapters import target_layers
from ..iteris_core.config import BaselineOptions
from ..iteris_core.families.diffusion_samples import PromptedAdapter
from .sockets import MergeSettings

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
    """Return the settings that the widgets of IterIS Merge mean for these LoRAs; those in `same` are the core's own.

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
            f"{' and '.join(used)}, but each of them decides the ranks. Set one, and leave the others off: "
            "rank 0, kept_energy 1, size_mb 0"
        )


def weights_in(size_mb: float, dtype: torch.dtype, loras: Sequence[PromptedAdapter]) -> int:
    """Return how many weights a file of this size has room for, in all factors together.

    Raises:
        ConfigError: It has no room for rank 1 at every layer.
    """
    adapters = [lora.adapter for lora in loras]
    shapes = {path: delta.shape for adapter in adapters for path, delta in adapter.deltas.items()}
    names = _BYTES_OF_NAMES * len(target_layers(adapters))
    weights, least = int((size_mb * 1e6 - names) / dtype.itemsize), sum(map(sum, shapes.values()))
    if weights < least:
        raise ConfigError(
            f"size_mb is {size_mb:g}; the smallest merge of these LoRAs, rank 1 in all {len(shapes)} layers, takes "
            f"{(least * dtype.itemsize + names) / 1e6:.1f} MB. Allow more"
        )
    return weights


def from_recipe(lora_name: str, recipe: Mapping[str, Any]) -> MergeSettings:
    """Return a recipe's settings.

    Raises:
        IterisError: It has a setting that this version does not know.
    """
    config = dict(recipe["config"])
    check_known(lora_name, config, MergeConfig)
    if "baseline" in config:
        check_known(lora_name, config["baseline"], BaselineOptions)
        config["baseline"] = BaselineOptions(**config["baseline"])
    if "output_dtype" in config:
        config["output_dtype"] = getattr(torch, config["output_dtype"])
    return MergeSettings(MergeConfig(**config), "strength_correction" in recipe)


def check_known(lora_name: str, settings: Mapping[str, Any], kind: type) -> None:
    """Refuse settings of a recipe that this version does not know.

    Raises:
        IterisError: Names the first.
    """
    unknown = sorted(set(settings) - {field.name for field in fields(kind)})
    if unknown:
        raise IterisError(
            f"{lora_name}: its recipe has the setting {unknown[0]!r}, unknown to this version of IterIS; update it"
        )
