"""Load LoRAs against a chain of ComfyUI's own loaders, and its block weights against those of a
merge.

    python tests/support/loader_checks.py COMFYUI FAMILY

writes a line of JSON: what was measured, and what the node refuses.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import in_comfy

# isort: split
import comfy.lora
import folder_paths
import tiny_hosts
import torch
from family_checks import lora_of
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.load import LoadLoras
from iteris_pack.nodes.loras.prompts import use_without_prompts
from safetensors.torch import load_file, save_file

from iteris_core.diffusion.lora_rows import read_rows
from iteris_core.errors import IterisError
from nodes import LoraLoader, LoraLoaderModelOnly

Json = dict[str, Any]
BLOCKS = {
    "SD1.5": 'blocks="IN01:0.5, MID:0, BASE:0.25" without=*attn2*',
    "Flux.1": 'blocks="double:0.5, single 1:0" without=*linear2*',
}
CHAIN = [("a", 0.7, 0.4), ("b", -0.5, 0.0), ("a", 0.2, 0.2)]
TEXT = "<lora:a:0.7:0.4>\n# <lora:b>\n<lora:b:-0.5:0>\n<lora:a:0.2>\n<lora:b:0>"


def load(model: Any, clip: Any, text: str) -> Any:
    return LoadLoras.execute(model=model, clip=clip, loras=text).args


def told(model: Any, clip: Any, text: str) -> str:
    try:
        load(model, clip, text)
    except IterisError as error:
        return str(error)
    return "nothing"


def is_same(found: Any, expected: Any) -> bool:
    """Whether what a loader has put on a weight is the same, tensors bit for bit."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(is_same, found, expected))
    if hasattr(expected, "weights"):
        return found.name == expected.name and is_same(found.weights, expected.weights)
    return callable(expected) or found == expected


def count_same(found: Any, expected: Any) -> list[int]:
    """Return how many weights carry the same patches, how many carry some, and how many should."""
    same = [
        key for key in expected.patches if is_same(found.patches.get(key), expected.patches[key])
    ]
    return [len(same), len(found.patches), len(expected.patches)]


def largest_difference(found: Any, expected: Any) -> float:
    """Return the largest difference of a weight that two patchers make of it, of its change."""
    worst = 0.0
    for key in {**found.patches, **expected.patches}:
        weight = comfy.model_patcher.get_key_weight(expected.model, key)[0].float()
        ours, theirs = (
            comfy.lora.calculate_weight(each.patches.get(key, []), weight.clone(), key)
            for each in (found, expected)
        )
        worst = max(worst, ((ours - theirs).norm() / (weight - theirs).norm().clamp(1e-6)).item())
    return worst


def check(name: str, folder: Path) -> Json:
    folder_paths.add_model_folder_path("loras", str(folder))
    host = tiny_hosts.host_of(name)
    model, clip = host.model, host.clip
    for seed, file in enumerate(("a", "b")):
        tensors = lora_of(host, seed, "kohya")
        save_file(tensors, folder / f"{file}.safetensors")
    of_text = [key for key in tensors if key.startswith("lora_te")]
    save_file({key: tensors[key] for key in of_text}, folder / "text.safetensors")
    save_file({"nowhere.lora_up.weight": torch.ones(2, 2)}, folder / "odd.safetensors")
    other = tiny_hosts.host_of("SDXL")
    save_file(lora_of(other, 0, "kohya"), folder / "sdxl.safetensors")

    stock, alone = (model, clip), model
    for file, of_model, of_clip in CHAIN:
        stock = LoraLoader().load_lora(*stock, f"{file}.safetensors", of_model, of_clip)
        alone = LoraLoaderModelOnly().load_lora_model_only(alone, f"{file}.safetensors", of_model)[
            0
        ]
    found = load(model, clip, TEXT)
    without_clip = load(model, None, TEXT)
    result: Json = {
        "model": count_same(found[0], stock[0]),
        "clip": count_same(found[1].patcher, stock[1].patcher),
        "alone": count_same(without_clip[0], alone),
        "no clip": without_clip[1] is None,
        "left": len(model.patches) + len(clip.patcher.patches),
    }

    text = f"<lora:a:0.7:0> {BLOCKS[name]}"
    use = use_without_prompts(read_rows(text, "loras")[0])
    adapter = host.adapter(use, load_file(folder / "a.safetensors"), {})
    merged = ComfyModel(model, clip).patched(adapter)
    blocks = load(model, clip, text)
    result["blocks"] = largest_difference(blocks[0], merged[0])
    result["left out"] = [len(merged[0].patches), len(blocks[0].patches), len(found[0].patches)]
    result["told"] = {
        text: told(model, clip, f"<lora:b>\n{text}")
        for text in ("<lora:sdxl>", "<lora:odd>", "<lora:c>", "<lora:a> blocks=NR1:0.5")
    }
    result["told"]["text"] = told(model, None, "<lora:text>")
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        in_comfy.tell(check(name, Path(folder)) for name in in_comfy.ARGUMENTS)
