"""Headers of LoRA files, read without the tensors: quick enough for every file of a list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .families import base_family, family_shown
from .groups import grouped
from .roles import DOWN
from .sidecars import words_beside
from .tensors import opened
from .trigger_words import TriggerWords, trigger_words


@dataclass(frozen=True)
class LoraHeader:
    """The facts in a LoRA file's header.

    Args:
        triggers: Trigger words of the LoRA.
        rank: Largest rank of its low-rank factors; 0 if it has none.
        base: Base model family for which it was trained, with the statement of its file.
        family: Name of this family alone; empty if nothing shows it.
    """

    triggers: TriggerWords
    rank: int
    base: str
    family: str


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors without content (on the device ``meta``), and its
    metadata.

    Raises:
        AdapterError: See `check_readable`.
    """
    with opened(path) as (_, layout):
        pass
    tensors = {key: torch.empty(place.shape, device="meta") for key, place in layout.places.items()}
    return tensors, dict(layout.metadata)


def lora_header(path: Path) -> LoraHeader:
    """Return the facts in a LoRA file's header, and the trigger words beside the file.

    Raises:
        AdapterError: See `check_readable`.
    """
    tensors, metadata = read_header(path)
    groups, _ = grouped(tensors)
    downs = [group.tensors[DOWN] for group in groups.values() if DOWN in group.tensors]
    ranks = [down.shape[0] for down in downs if down.ndim > 1]
    family = family_shown(tensors, metadata)
    return LoraHeader(
        trigger_words(metadata, words_beside(path)),
        max(ranks, default=0),
        base_family(tensors, metadata),
        "" if family is None else family.name,
    )
