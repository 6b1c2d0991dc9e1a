"""The only package that uses ComfyUI's internals: models, patches, folders and the browser."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .folders import find_lora as find_lora
from .folders import find_model as find_model
from .folders import lora_name_of as lora_name_of
from .folders import lora_names as lora_names
from .folders import lora_path as lora_path
from .folders import model_files as model_files
from .folders import namesake as namesake
from .folders import output_folder as output_folder
from .folders import saves_metadata as saves_metadata
from .folders import version as version
from .server import answer_at as answer_at
from .server import heed_cancel as heed_cancel
from .server import note_prompts as note_prompts
from .server import picture_at as picture_at
from .server import prompt_sent as prompt_sent
from .server import stage_progress as stage_progress

if TYPE_CHECKING:
    from .conditions import start_of as start_of
    from .deltas import stock_loader as stock_loader
    from .diffusion_model import ComfyModel as ComfyModel
    from .drawing import Drawing as Drawing
    from .drawing import check_vae as check_vae
    from .drawing import draw as draw
    from .drawing import sampler_names as sampler_names
    from .drawing import scheduler_names as scheduler_names
    from .other_nodes import BaseChanges as BaseChanges
    from .other_nodes import base_changes as base_changes
    from .other_nodes import naming_changes as naming_changes
    from .patches import patches_of as patches_of

# What only a run needs is imported when it is first asked for, so that ComfyUI starts quickly.
_MODULE_OF = {
    "BaseChanges": "other_nodes",
    "ComfyModel": "diffusion_model",
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
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value
