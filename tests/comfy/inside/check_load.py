"""Load LoRAs scales blocks as a merge does; tests/host draws with it, tests/nodes has its errors."""

import os

import comfy.lora
import folder_paths
import pytest
import tiny_hosts
from comfy_loras import lora_of
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.load import LoadLoras
from iteris_pack.nodes.loras.prompts import use_without_prompts
from safetensors.torch import load_file, save_file

from iteris_core import IterisError
from iteris_core.diffusion.lora_rows import read_rows

NAME = os.environ["CHECKED"]
BLOCKS = {
    "SD1.5": 'blocks="IN01:0.5, MID:0, BASE:0.25" without=*attn2*',
    "Flux.1": 'blocks="double:0.5, single 1:0" without=*linear2*',
}


@pytest.fixture(scope="module")
def host():
    return tiny_hosts.host_of(NAME)


@pytest.fixture(scope="module")
def folder(host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    folder_paths.add_model_folder_path("loras", str(folder))
    tensors = lora_of(host, 0, "kohya")
    files = {
        "a": tensors,
        "text": {key: tensor for key, tensor in tensors.items() if key.startswith("lora_te")},
    }
    for name, content in files.items():
        save_file(content, folder / f"{name}.safetensors")
    return folder


def load(host, text):
    return LoadLoras.execute(model=host.model, clip=host.clip, loras=text).args


def largest_difference(found, expected):
    worst = 0.0
    for key in {**found.patches, **expected.patches}:
        weight = comfy.model_patcher.get_key_weight(expected.model, key)[0].float()
        ours, theirs = (
            comfy.lora.calculate_weight(each.patches.get(key, []), weight.clone(), key)
            for each in (found, expected)
        )
        worst = max(worst, ((ours - theirs).norm() / (weight - theirs).norm().clamp(1e-6)).item())
    return worst


def test_block_weights_are_those_of_a_merge(host, folder):
    text = f"<lora:a:0.7:0> {BLOCKS[NAME]}"
    adapter = host.adapter(
        use_without_prompts(read_rows(text)[0]), load_file(folder / "a.safetensors"), {}
    )
    merged = ComfyModel(host.model, host.clip).patched(adapter)[0]
    blocks = load(host, text)[0]
    assert largest_difference(blocks, merged) < 1e-5
    assert len(blocks.patches) <= len(merged.patches) < len(load(host, "<lora:a>")[0].patches)
    assert not host.model.patches and not host.clip.patcher.patches


def test_a_lora_of_the_text_encoder_needs_a_clip(host, folder):
    with pytest.raises(IterisError, match="needs CLIP"):
        LoadLoras.execute(model=host.model, clip=None, loras="<lora:text>")
