"""The block weights of Load LoRAs against those of a merge.

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

Json = dict[str, Any]
BLOCKS = {
    "SD1.5": 'blocks="IN01:0.5, MID:0, BASE:0.25" without=*attn2*',
    "Flux.1": 'blocks="double:0.5, single 1:0" without=*linear2*',
}


def load(model: Any, clip: Any, text: str) -> Any:
    return LoadLoras.execute(model=model, clip=clip, loras=text).args


def told(model: Any, clip: Any, text: str) -> str:
    try:
        load(model, clip, text)
    except IterisError as error:
        return str(error)
    return "nothing"


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
    tensors = lora_of(host, 0, "kohya")
    save_file(tensors, folder / "a.safetensors")
    of_text = [key for key in tensors if key.startswith("lora_te")]
    save_file({key: tensors[key] for key in of_text}, folder / "text.safetensors")
    save_file({"nowhere.lora_up.weight": torch.ones(2, 2)}, folder / "odd.safetensors")
    other = tiny_hosts.host_of("SDXL")
    save_file(lora_of(other, 0, "kohya"), folder / "sdxl.safetensors")

    found = load(model, clip, "<lora:a>")
    result: Json = {"left": len(model.patches) + len(clip.patcher.patches)}

    text = f"<lora:a:0.7:0> {BLOCKS[name]}"
    use = use_without_prompts(read_rows(text, "loras")[0])
    adapter = host.adapter(use, load_file(folder / "a.safetensors"), {})
    merged = ComfyModel(model, clip).patched(adapter)
    blocks = load(model, clip, text)
    result["blocks"] = largest_difference(blocks[0], merged[0])
    result["left out"] = [len(merged[0].patches), len(blocks[0].patches), len(found[0].patches)]
    result["told"] = {
        text: told(model, clip, f"<lora:a>\n{text}")
        for text in ("<lora:sdxl>", "<lora:odd>", "<lora:c>", "<lora:a> blocks=NR1:0.5")
    }
    result["told"]["text"] = told(model, None, "<lora:text>")
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        in_comfy.tell(check(name, Path(folder)) for name in in_comfy.ARGUMENTS)
