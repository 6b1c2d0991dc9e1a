"""What the host's own code makes of a LoRA's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
from torch import Tensor

from ...iteris_core.files import kohya
from ...iteris_core.files.kinds import peft_dora
from ..foreign import added_by_host
from ..keys import TEXT_PREFIX, ModelKeys


@dataclass
class HostDeltas:
    """Dense deltas of the adapter kinds that only the host knows, made by its own classes; and
    PEFT's DoRAs.
    """

    model: Any
    clip: Any
    keys: ModelKeys
    name: str
    strength_model: float
    strength_clip: float

    @cached_property
    def _weights(self) -> dict[str, Any]:
        return self.model.get_key_patches() | self.clip.patcher.get_key_patches()

    def __call__(self, path: str, group: Mapping[str, Tensor]) -> Tensor:
        """Return the delta of one weight per unit of strength; an OFT's depends on the strength, a
        DoRA's on the weight.

        Raises:
            AdapterError: The host cannot apply the tensors; with its own words.
        """
        strength = self.strength_clip if path.startswith(TEXT_PREFIX) else self.strength_model
        if not strength:
            return torch.zeros(self.keys.shapes[path])
        key = f"{path}.weight"
        weight = self._effective_weight(key)
        if "magnitude" in group:
            return peft_dora(self.name, path, group, weight)
        tensors = kohya.tensors_of_group(path, group)

        def apply(weight: Tensor) -> Tensor | None:
            patch = comfy.lora.load_lora(tensors, {path: key}, log_missing=False).get(key)
            return None if patch is None else _apply(patch, weight, key, strength)

        return (added_by_host(self.name, path, tensors, weight, apply) / strength).flatten(1)

    def _effective_weight(self, key: str) -> Tensor:
        """Return a weight as the base model uses it, float32 on the CPU, patches that it already
        carries included.
        """
        (weight, convert), *patches = self._weights[key]
        weight = convert(weight.to(device="cpu", dtype=torch.float32, copy=True), inplace=True)
        return comfy.lora.calculate_weight(patches, weight, key)


def stock_loader(path: Path, keys: ModelKeys) -> Callable[[str, Sequence[int]], Tensor | None]:
    """Load a LoRA file as the stock LoraLoader does.

    Returns:
        (parameter path, its shape) -> what the file adds to it at strength 1; None: nothing.
    """
    tensors = comfy.lora_convert.convert_lora(
        comfy.utils.load_torch_file(str(path), safe_load=True)
    )
    patches = comfy.lora.load_lora(tensors, dict(keys.host_keys), log_missing=False)

    def added(parameter: str, shape: Sequence[int]) -> Tensor | None:
        return (
            _apply(patches[parameter], torch.zeros(*shape), parameter)
            if parameter in patches
            else None
        )

    return added


def _apply(patch: Any, weight: Tensor, key: str, strength: float = 1.0) -> Tensor:
    return comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], weight, key)
