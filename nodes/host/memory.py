"""What ComfyUI keeps on a device, and what of it can be had."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch

from .sampling_options import loads_on_demand


def bytes_to_have(model: Any) -> float:
    """Return the bytes that are free on a MODEL's device once the host unloads all others there."""
    device = model.load_device
    free: float = comfy.model_management.get_free_memory(device)
    if device.type in ("cpu", "mps"):  # where unloaded models stay as well
        return free
    others: float = sum(
        loaded.model_loaded_memory()
        for loaded in _loaded_on(device)
        if not loaded.model.is_clone(model) and loaded.model.offload_device != device
    )
    return free + others


def evictable_bytes(device: torch.device) -> int:
    """Return the bytes of weights on a device that ComfyUI gives up for anything else."""
    found: int = sum(
        loaded.model_loaded_memory()
        for loaded in _loaded_on(device)
        if loads_on_demand(loaded.model)
    )
    return found


def _loaded_on(device: torch.device) -> list[Any]:
    every = comfy.model_management.current_loaded_models
    return [loaded for loaded in every if loaded.device == device and loaded.model is not None]
