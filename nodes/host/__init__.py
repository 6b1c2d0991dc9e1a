"""The only package that uses ComfyUI's internals: models, patches, folders and the browser."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .folders import (
    find_lora,
    find_model,
    is_output,
    lora_name_of,
    lora_names,
    lora_path,
    model_files,
    namesake,
    output_folder,
    saves_metadata,
    version,
)
from .server import (
    answer_at,
    heed_cancel,
    layer_teller,
    note_prompts,
    picture_at,
    prompt_sent,
    stage_progress,
)

if TYPE_CHECKING:
    from .conditions import start_of
    from .deltas import stock_loader
    from .diffusion_model import ComfyModel
    from .drawing import Drawing, check_vae, draw, sampler_names, scheduler_names
    from .loading import with_lora
    from .other_nodes import BaseChanges, base_changes, naming_changes
    from .pair import ComfyPair
    from .patches import patches_of, with_patches

# What only a run needs is imported when it is first asked for, so that ComfyUI starts quickly.
_MODULE_OF = {
    "BaseChanges": "other_nodes",
    "ComfyModel": "diffusion_model",
    "ComfyPair": "pair",
    "Drawing": "drawing",
    "base_changes": "other_nodes",
    "check_vae": "drawing",
    "draw": "drawing",
    "naming_changes": "other_nodes",
    "patches_of": "patches",
    "sampler_names": "drawing",
    "scheduler_names": "drawing",
    "start_of": "conditions",
    "stock_loader": "deltas",
    "with_lora": "loading",
    "with_patches": "patches",
}
__all__ = [
    "BaseChanges",
    "ComfyModel",
    "ComfyPair",
    "Drawing",
    "answer_at",
    "base_changes",
    "check_vae",
    "draw",
    "find_lora",
    "find_model",
    "heed_cancel",
    "is_output",
    "layer_teller",
    "lora_name_of",
    "lora_names",
    "lora_path",
    "model_files",
    "namesake",
    "naming_changes",
    "note_prompts",
    "output_folder",
    "patches_of",
    "picture_at",
    "prompt_sent",
    "sampler_names",
    "saves_metadata",
    "scheduler_names",
    "stage_progress",
    "start_of",
    "stock_loader",
    "version",
    "with_lora",
    "with_patches",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value
