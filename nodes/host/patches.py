"""Adapters as patches on a MODEL or a CLIP."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import comfy.weight_adapter

from ...iteris_core import Adapter, IterisError


def add_adapter(patcher: Any, adapter: Adapter, keys: set[str]) -> None:
    """Patch a MODEL or a CLIP. The keys are those of one file, and mark its patches as one LoRA."""
    patches = {
        f"{path}.weight": comfy.weight_adapter.LoRAAdapter(
            keys, (delta.up, delta.down, float(delta.rank), None, None, None)
        )
        for path, delta in adapter.deltas.items()
    }
    patches |= {parameter: ("diff", (vector,)) for parameter, vector in adapter.vectors.items()}
    missing = set(patches) - set(patcher.add_patches(patches, 1.0))
    if missing:
        raise IterisError(
            f"ComfyUI did not accept patches for {len(missing)} weights, such as {min(missing)!r}"
        )


def patches_of(model: Any, clip: Any) -> dict[str, list[Any]]:
    """Return the patches that MODEL and CLIP carry: weight -> patches in the order of their
    application.
    """
    return {
        weight: list(on_weight)
        for part in (model, clip.patcher)
        for weight, on_weight in part.patches.items()
    }


def with_patches(model: Any, clip: Any, patches: Mapping[str, list[Any]]) -> tuple[Any, Any]:
    """Return clones of MODEL and CLIP that carry these patches, and no others."""
    model = model.clone()
    clip = clip.clone()
    for patcher in (model, clip.patcher):
        patcher.patches = {
            weight: list(patches[weight]) for weight in patcher.patches if weight in patches
        }
        patcher.patches_uuid = uuid.uuid4()
    return model, clip
