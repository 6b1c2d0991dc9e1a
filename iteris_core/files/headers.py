"""What the header of a LoRA file tells, without reading its tensors: quick enough to ask for every
file of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .families import base_family
from .groups import grouped
from .kinds import DOWN
from .tensors import opened
from .trigger_words import TriggerWords, trigger_words


@dataclass(frozen=True)
class LoraHeader:
    """What is known about a LoRA file before its tensors are read.

    Args:
        triggers: The words that call it up.
        rank: The largest rank of its low-rank factors; 0 if it has none.
        base: What it was trained for.
    """

    triggers: TriggerWords
    rank: int
    base: str


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors without content (on the device ``meta``), and its
    metadata.

    Raises:
        AdapterError: See `check_readable`.
    """
    with opened(path) as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no dict)
        tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        return tensors, dict(file.metadata() or {})


def lora_header(path: Path) -> LoraHeader:
    """Return what a LoRA file's header tells.

    Raises:
        AdapterError: See `check_readable`.
    """
    tensors, metadata = read_header(path)
    groups, _ = grouped(tensors)
    downs = [group.tensors[DOWN] for group in groups.values() if DOWN in group.tensors]
    ranks = [down.shape[0] for down in downs if down.ndim > 1]
    return LoraHeader(
        trigger_words(metadata), max(ranks, default=0), base_family(tensors, metadata)
    )
