"""The pack's own socket types, and what travels through them."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io

from ..iteris_core import Adapter
from .keys import ModelKeys

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
    """A merged LoRA ready to be saved.

    Args:
        adapter: In the precision in which it is saved.
        keys: How the model's modules are called in files.
        recipe: How it was made; JSON.
    """

    adapter: Adapter
    keys: ModelKeys
    recipe: str
