"""The pack's own socket types, and what travels through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..iteris_core import Adapter
from ..iteris_core.formats.metadata import Source
from ..iteris_core.scenes import Kind
from .keys import ModelKeys

TASKS = io.Custom("ITERIS_TASKS")
CALIBRATION = io.Custom("ITERIS_CALIBRATION")
MERGED = io.Custom("ITERIS_MERGED")
REPORT = io.Custom("ITERIS_REPORT")
LORA_MODEL = io.Custom("LORA_MODEL")
LORA_STACK = io.Custom("LORA_STACK")
_MOST_SOCKETS = 32


def growing(name: str, socket: Any, tooltip: str) -> list[Any]:
    """Return an input that always has one more free socket; none where the host has no such inputs (before ComfyUI 0.8)."""
    if not hasattr(io, "Autogrow"):
        return []
    template = io.Autogrow.TemplatePrefix(socket.Input("loras", optional=True, tooltip=tooltip), "loras", 0, _MOST_SOCKETS)
    return [io.Autogrow.Input(name, template, optional=True, tooltip=tooltip)]


@dataclass(frozen=True)
class LoraEntry:
    """One LoRA to merge, as the user asked for it.

    Args:
        lora_name: Its file in ComfyUI's list, which is read when the model is known; or what to call `tensors`.
        strength_model: Of the UNet part.
        strength_clip: Of the text encoder part.
        prompts: What it is for.
        weight: Of its task.
        prompts_from: Where the trigger words of the prompts come from; empty: the user wrote them.
        tensors: A LoRA that is in no file: trained in this workflow, or taken off a model.
        trigger: What to call it beside other LoRAs; see `PromptedAdapter`.
        kind: Whether it is a thing, or a way to render whole pictures.
    """

    lora_name: str
    strength_model: float
    strength_clip: float
    prompts: tuple[str, ...]
    weight: float
    prompts_from: str = ""
    tensors: Mapping[str, Tensor] | None = None
    trigger: str = ""
    kind: Kind = "subject"


@dataclass(frozen=True)
class MergedLora:
    """A merged LoRA ready to be saved.

    Args:
        adapter: In the precision in which it is saved.
        keys: How the model's modules are called in files.
        recipe: How it was made; JSON.
        sources: The LoRAs that are in it: name and metadata of each.
    """

    adapter: Adapter
    keys: ModelKeys
    recipe: str
    sources: tuple[Source, ...] = ()
