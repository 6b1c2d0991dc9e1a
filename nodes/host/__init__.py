"""The one package that touches ComfyUI's insides: models, LoRA files, patches, folders, the browser."""

from .deltas import stock_loader
from .folders import (
    find_lora,
    is_output,
    lora_name_of,
    lora_names,
    lora_path,
    model_files,
    output_folder,
    saves_metadata,
    version,
)  # fmt: skip
from .patches import patches_of, with_patches
from .server import answer_at, layer_teller, show_text, stage_progress
from .stable_diffusion import ComfyStableDiffusion

__all__ = [
    "ComfyStableDiffusion", "answer_at", "find_lora", "is_output", "layer_teller", "lora_name_of", "lora_names", "lora_path",
    "model_files", "output_folder", "patches_of", "saves_metadata", "show_text", "stage_progress", "stock_loader", "version",
    "with_patches",
]  # fmt: skip
