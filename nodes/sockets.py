"""The pack's own socket types, and what travels through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

TASKS = io.Custom("ITERIS_TASKS")
CALIBRATION = io.Custom("ITERIS_CALIBRATION")
MERGED = io.Custom("ITERIS_MERGED")
REPORT = io.Custom("ITERIS_REPORT")
LORA_MODEL = io.Custom("LORA_MODEL")


@dataclass(frozen=True)
class LoraEntry:
    """One LoRA to merge, as the user asked for it; its file is read when the model is known."""

    lora_name: str
    strength_model: float
    strength_clip: float
    prompts: tuple[str, ...]
    weight: float


@dataclass(frozen=True)
class MergedLora:
    """A merged LoRA ready to be saved: tensors under kohya's names, and metadata."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
