"""Every key that ComfyUI's loader knows for small models of its own classes: read by us, applied by
the host, and taken off again.

Prints the largest differences of each family as JSON; see `in_comfy` for how it is run.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import in_comfy

# isort: split
import comfy.lora
import comfy.utils
import tiny_hosts
import torch
from iteris_pack.nodes.host.deltas import HostDeltas, stock_loader
from iteris_pack.nodes.keys import HostKeys, HostWeight, is_text, model_keys
from iteris_pack.nodes.loras.harvest import take_off
from torch import Tensor, nn

from iteris_core.files import kohya
from iteris_core.files.families import FAMILIES, family_of
from iteris_core.files.writing import write_tensors

# Families with parts of fused weights -> smaller sizes than those of `tiny_hosts`, since every key of
# theirs is read in several kinds of adapters.
SMALLER: dict[str, dict[str, Any]] = {
    "Flux.1": {"hidden_size": 64, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 12, 16]},
    "SD3.5": {},
    "Z-Image": {"dim": 64, "n_layers": 1, "axes_dims": [8, 12, 12]},
    "AuraFlow": {"dim": 64},
}


def lora(base: str, d_out: int, d_in: int, kernel: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        f"{base}.lora_A.weight": torch.randn(2, d_in, *kernel),
        f"{base}.lora_B.weight": torch.randn(d_out, 2, *(1 for _ in kernel)),
    }


def lokr(base: str, d_out: int, d_in: int, kernel: tuple[int, ...]) -> dict[str, Tensor]:
    size = math.gcd(2, math.gcd(d_out, d_in))
    return {
        f"{base}.lokr_w1": torch.randn(size, size),
        f"{base}.lokr_w2": torch.randn(d_out // size, d_in // size, *kernel),
    }


def dora(base: str, d_out: int, d_in: int, kernel: tuple[int, ...]) -> dict[str, Tensor]:
    scale = torch.rand(d_out, 1, *(1 for _ in kernel)) + 0.5
    return {**lora(base, d_out, d_in, kernel), f"{base}.dora_scale": scale}


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative difference of two deltas, (d_out, ...)."""
    return ((found.flatten(1) - expected.flatten(1)).norm() / expected.norm()).item()


def figures_of(name: str) -> dict[str, Any]:
    tiny = tiny_hosts.TINY[name]
    patcher = tiny_hosts.model_of(replace(tiny, unet={**tiny.unet, **SMALLER[name]}))
    modules = dict(patcher.model.named_modules())
    table = comfy.lora.model_lora_keys_unet(patcher.model, {})
    config = patcher.model.model_config.unet_config
    keys = model_keys(
        FAMILIES[name], modules, table, comfy.utils.unet_to_diffusers(config), prediction_type=""
    )
    clip = SimpleNamespace(patcher=SimpleNamespace(get_key_patches=dict))
    deltas = HostDeltas(patcher, clip, keys, lambda path: 1.0)
    weights = patcher.model.state_dict()
    targets = {
        base: target
        for base, target in ((base, HostWeight.of(entry)) for base, entry in table.items())
        if target.weight.endswith(".weight")
        and isinstance(modules.get(target.module), nn.Linear | nn.Conv2d)
    }
    errors: dict[str, float] = dict.fromkeys(("lora", "lokr", "dora", "off"), 0.0)
    done = set()
    for base, target in targets.items():
        weight = weights[target.weight]
        d_out = target.offset[2] if target.offset else len(weight)
        for make in (lora,) if target in done else (lora, lokr, dora):
            tensors = make(base, d_out, weight.shape[1], tuple(weight.shape[2:]))
            carrying = patcher.clone()
            carrying.add_patches(comfy.lora.load_lora(dict(tensors), {base: table[base]}), 1.0)
            patches = carrying.patches[target.weight]
            patched = comfy.lora.calculate_weight(patches, weight.clone(), target.weight)
            found = kohya.parse(base, tensors, keys, dense_delta=deltas).deltas[target.module]
            errors[make.__name__] = max(
                errors[make.__name__], error(found.dense(), patched - weight)
            )
            (taken,), rest = take_off(carrying.patches, is_text, keys.bases_of)
            again = kohya.parse(base, taken.tensors, keys, dense_delta=deltas)
            errors["off"] = max(
                errors["off"], error(again.deltas[target.module].dense(), found.dense())
            )
            if rest:
                raise AssertionError(f"{base}: {len(rest)} weights stay on the model")
        done.add(target)
    return {
        "unread": [base for base in targets if keys.place_of(base) is None],
        "parts": len({target for target in done if not target.is_whole}),
        "reordered": len({target for target in done if target.function is not None}),
        **errors,
        **of_files(keys, weights, targets),
    }


def of_files(
    keys: HostKeys, weights: dict[str, Tensor], targets: dict[str, HostWeight]
) -> dict[str, Any]:
    """Return figures of one file that changes all weights, by their parts where it can."""
    tensors: dict[str, Tensor] = {}
    covered: list[Any] = []
    for base in sorted(targets, key=lambda base: targets[base].is_whole):
        part = keys.place_of(base)
        if part is None or any(part.overlaps(other) for other in covered):
            continue
        covered.append(part)
        _, d_in, *kernel = weights[targets[base].weight].shape
        tensors |= lora(base, part.length, d_in, tuple(kernel))
    adapter = kohya.parse("all", tensors, keys)
    saved, metadata = kohya.file_of(adapter, keys, {})

    def loaded(tensors: dict[str, Tensor]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "a.safetensors"
            write_tensors(tensors, file, metadata)
            added = stock_loader(file, keys)
        largest = 0.0
        for path, delta in adapter.deltas.items():
            found = added(f"{path}.weight", keys.weight_shape(path))
            largest = max(largest, 1.0 if found is None else error(found, delta.dense()))
        return largest

    families = [family_of(file) for file in (tensors, saved)]
    return {
        "loaded": loaded(tensors),
        "saved": loaded(saved),
        "families": [family and family.name for family in families],
    }


in_comfy.tell(map(figures_of, in_comfy.ARGUMENTS))
