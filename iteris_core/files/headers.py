"""What the header of a LoRA file tells, without reading its tensors: quick enough to ask for every
file of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import AdapterError
from . import kohya
from .inspection import base_family
from .tensors import check_readable
from .trigger_words import TriggerWords, trigger_words


@dataclass(frozen=True)
class LoraHeader:
    """What is known about a LoRA file before its tensors are read.

    Args:
        triggers: See `TriggerWords`.
        rank: The largest of its low-rank factors; 0 if it has none.
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
    check_readable(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no dict)
            return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, dict(
                file.metadata() or {}
            )
    except SafetensorError as error:
        raise AdapterError(
            f"{path.name}: cannot be read as safetensors ({error}); download it again"
        ) from error


def lora_header(path: Path) -> LoraHeader:
    """Return what a LoRA file's header tells.

    Raises:
        AdapterError: See `check_readable`.
    """
    tensors, metadata = read_header(path)
    parts = ((kohya.split_key(key), tensor) for key, tensor in tensors.items())
    ranks = [
        tensor.shape[0]
        for part, tensor in parts
        if part is not None and part[1] == "down" and tensor.ndim > 1
    ]
    return LoraHeader(
        trigger_words(metadata), max(ranks, default=0), base_family(tensors, metadata)
    )
