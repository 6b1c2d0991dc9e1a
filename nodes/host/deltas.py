"""Weights with a LoRA, and dense deltas, as the host's code makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_patcher
import torch
from torch import Tensor

from ...iteris_core import AdapterError
from ...iteris_core.diffusion.model import PatchedWeight
from ...iteris_core.files.adapter_kinds import PEFT_DORA, kind_of, peft_dora
from ...iteris_core.files.groups import tensors_by_key
from ...iteris_core.files.model_keys import WeightPart
from ...iteris_core.files.roles import Tensors, check_scales
from ...iteris_core.files.tensors import read_tensors
from ...iteris_core.layers import class_of
from ..foreign import added_by_host
from ..keys import HostKeys, HostWeight, is_text
from .patches import added_patches
from .server import heed_cancel


@dataclass
class HostDeltas:
    """Maker of the dense deltas of PEFT's DoRAs, and of the kinds of adapters that only the host
    can apply.

    Args:
        model: ModelPatcher that the LoRA is read for.
        clip: CLIP of the same checkpoint.
        keys: Keys of the model and the CLIP.
        strength_of: Module path -> the strength of the LoRA's change there.
    """

    model: Any
    clip: Any
    keys: HostKeys
    strength_of: Callable[[str], float]

    def __call__(self, part: WeightPart, tensors: Tensors) -> Tensor:
        """Return the delta of a weight or of a part of it, divided by the strength: an OFT's delta
        depends on it.

        Args:
            part: The weight, or the part.
            tensors: Role -> tensor.

        Raises:
            AdapterError: The host cannot apply the tensors; the message quotes the host.
        """
        path = part.path
        d_out, d_in = self.keys.shapes[path]
        strength = self.strength_of(path)
        if not strength:
            return torch.zeros(part.length, d_in)
        key = f"{path}.weight"
        weight = self._effective_weight(path)
        if kind_of(tensors) is PEFT_DORA:
            return peft_dora(tensors, weight[part.rows])
        check_scales(tensors, (part.length, *weight.shape[1:]))
        named = tensors_by_key(path, tensors)
        target = HostWeight(key)
        if not part.is_whole(d_out):
            target = HostWeight(key, (0, part.start, part.length), part.reorder)

        def apply(weight: Tensor) -> Tensor | None:
            patch = comfy.lora.load_lora(named, {path: key}, log_missing=False).get(key)
            return None if patch is None else _apply(patch, weight, target, strength)

        return (added_by_host(path, named, weight, apply) / strength).flatten(1)[part.rows]

    def _effective_weight(self, path: str) -> Tensor:
        """Return a weight as the base model uses it.

        Raises:
            AdapterError: A weight whose packed form only the layer's own code reads, as in GGUF.
        """
        patcher = self.clip.patcher if is_text(path) else self.model
        weight = effective_weight(patcher, path, self.keys.shapes[path], torch.device("cpu"))
        if weight is None:
            layer = class_of(patcher.model.get_submodule(path))
            raise AdapterError(
                f"is applied by ComfyUI to the base weight, which a {layer} keeps in a packed "
                "form. Load the model in fp8 or 16 bit, or use a plain LoRA, LoCon or LoHa"
            )
        return weight


def effective_weight(
    patcher: Any, path: str, shape: Sequence[int] | None, device: torch.device
) -> Tensor | None:
    """Return a weight as the base model uses it, float32, patches that it already carries included;
    None for one whose packed form only the layer's own code reads, as in GGUF.

    Args:
        patcher: MODEL, or the patcher of CLIP.
        path: The module.
        shape: (d_out, d_in) of the weight; None: it is as it is kept.
        device: Where it is computed.
    """
    key = f"{path}.weight"
    # not `get_key_patches`, which fails at quantised layers: it asks them for all their keys
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    if key in patcher.backup:
        weight = patcher.backup[key].weight
    weight = weight.to(device=device, dtype=torch.float32, copy=True)
    if convert is not None:
        weight = convert(weight, inplace=True)
    if shape is not None and weight.numel() != math.prod(shape):
        return None
    patched: Tensor = comfy.lora.calculate_weight(patcher.patches.get(key, []), weight, key)
    return patched


def patched_weights(
    ours: Any, theirs: Any, shapes: Mapping[str, Sequence[int]]
) -> Iterator[PatchedWeight]:
    """Yield the weights with more patches on a clone of MODEL or CLIP than on this one.

    Args:
        shapes: Module -> (d_out, d_in) of its weight.
    """
    device = ours.load_device
    for key, start in added_patches(ours, theirs):
        heed_cancel()
        path = HostWeight(key).module
        shape = shapes.get(path)
        before = effective_weight(ours, path, shape, device)
        if before is None:  # packed; what needs the weight itself has been refused
            assert shape is not None
            before = torch.zeros(*shape, device=device)
        elif not before.isfinite().all():  # in no checkpoint, so it was never filled
            before = torch.zeros_like(before)
        after = comfy.lora.calculate_weight(theirs.patches[key][start:], before.clone(), key)
        yield PatchedWeight(path, *(w.reshape(len(w), -1) for w in (before, after)))


def stock_loader(path: Path, keys: HostKeys) -> Callable[[str, Sequence[int]], Tensor | None]:
    """Load a LoRA file as the stock LoraLoader does, after safetensors has read it.

    Args:
        path: The file; its name need not end as one that ComfyUI lists.
        keys: The keys of the model.

    Returns:
        (parameter path, its shape) -> difference that the file adds at strength 1; None: no
            difference.
    """
    tensors = comfy.lora_convert.convert_lora(read_tensors(path)[0])
    patches: dict[str, list[tuple[HostWeight, Any]]] = {}
    loaded = comfy.lora.load_lora(tensors, dict(keys.host_keys), log_missing=False)
    for entry, patch in loaded.items():
        target = HostWeight.of(entry)
        patches.setdefault(target.weight, []).append((target, patch))

    def added(parameter: str, shape: Sequence[int]) -> Tensor | None:
        if parameter not in patches:
            return None
        weight = torch.zeros(*shape)
        for target, patch in patches[parameter]:
            weight = _apply(patch, weight, target)
        return weight

    return added


def _apply(patch: Any, weight: Tensor, target: HostWeight, strength: float = 1.0) -> Tensor:
    patched: Tensor = comfy.lora.calculate_weight(
        [(strength, patch, 1.0, target.offset, target.function)], weight, target.weight
    )
    return patched
