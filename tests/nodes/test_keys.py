"""How modules of ComfyUI's models are called in files."""

import pytest
import torch
from iteris_pack.nodes.keys import is_text, model_keys
from torch import nn

from iteris_core import AdapterError
from iteris_core.files import kohya
from iteris_core.files.families import FAMILIES


def test_a_module_is_read_in_every_spelling_and_saved_in_one(keys):
    # the name that every program knows
    assert keys.base_of_module["diffusion_model.mid.q"] == "lora_unet_mid_block_q"
    known = {"diffusion_model.mid.q", "diffusion_model.mid.conv"}
    known |= {f"clip_l.transformer.{name}" for name in ("text_model.q", "text_projection")}
    assert set(keys.module_of_base.values()) == known
    assert keys.module_of_base["base_model.model.unet.mid_block.q"] == "diffusion_model.mid.q"
    for base in ("base_model.model.text_encoder.text_model.q", "text_encoder.q", "text_model.q"):
        assert keys.module_of_base[base] == "clip_l.transformer.text_model.q"
    assert keys.module_of_base["lora_unet_mid_q"] == "diffusion_model.mid.q"
    assert keys.base_of_module["clip_l.transformer.text_projection"] == "lora_te1_text_projection"
    assert keys.weight_shape("diffusion_model.mid.q") == (6, 4)
    assert keys.weight_shape("diffusion_model.mid.conv") == (3, 2, 3, 1)
    assert not keys.ambiguous


def test_keys_of_modules_that_the_host_does_not_know_are_unmatched(keys):
    tensors = {
        "lora_te_text_model_q.lora_up.weight": torch.ones(3, 1),
        "lora_te_text_model_q.lora_down.weight": torch.ones(1, 3),
        "text_model.norm.w_norm": torch.ones(3),
    }
    adapter = kohya.parse("file", tensors, keys)
    assert adapter.unmatched == ("text_model.norm.w_norm",)
    assert len(kohya.to_tensors(adapter, keys.base_of_module, keys.kernels)) == 3


@pytest.fixture
def xl_keys():
    modules = {
        f"clip_{tower}.transformer.text_model.encoder.layers.0.{name}": nn.Linear(3, 3)
        for tower in "lg"
        for name in ("q", "k")
    } | {"diffusion_model.middle_block.1.q": nn.Linear(4, 6)}
    table = {f"text_encoders.{path}": f"{path}.weight" for path in modules if is_text(path)}
    for tower, number in (("clip_l", ""), ("clip_l", "1"), ("clip_g", "2")):
        for name in ("q", "k"):
            table[f"lora_te{number}_text_model_encoder_layers_0_{name}"] = (
                f"{tower}.transformer.text_model.encoder.layers.0.{name}.weight"
            )
    table["lora_unet_middle_block_1_q"] = "diffusion_model.middle_block.1.q.weight"
    table["lora_unet_mid_block_q"] = "diffusion_model.middle_block.1.q.weight"
    names = {"mid_block.q.weight": "middle_block.1.q.weight"}
    return model_keys(FAMILIES["SDXL"], modules, table, names, "v")


def test_two_text_encoders(xl_keys):
    for start in (
        "text_encoder_2.",
        "text_encoder_2.text_model.",
        "base_model.model.text_encoder_2.",
    ):
        path = xl_keys.module_of_base[start + "encoder.layers.0.q"]
        assert path == "clip_g.transformer.text_model.encoder.layers.0.q"
    path = xl_keys.module_of_base["text_encoder.encoder.layers.0.k"]
    assert path == "clip_l.transformer.text_model.encoder.layers.0.k"
    assert xl_keys.base_of_module[path] == "lora_te1_text_model_encoder_layers_0_k"
    # a few old files of SDXL have SD1.5's name of it, as ComfyUI knows
    path = xl_keys.module_of_base["lora_te_text_model_encoder_layers_0_q"]
    assert path == "clip_l.transformer.text_model.encoder.layers.0.q"
    # SDXL's trainers use the names of its own code
    of_unet = xl_keys.base_of_module["diffusion_model.middle_block.1.q"]
    assert of_unet == "lora_unet_middle_block_1_q"
    assert xl_keys.prediction_type == "v"


@pytest.mark.parametrize(
    "start", ["text_model.", "base_model.model.text_model.", "base_model.model."]
)
def test_a_key_that_may_mean_either_text_encoder_is_refused(xl_keys, start):
    base = f"{start}encoder.layers.0.q"
    tensors = {f"{base}.lora_A.weight": torch.ones(1, 3), f"{base}.lora_B.weight": torch.ones(3, 1)}
    good = "lora_te2_text_model_encoder_layers_0_k"
    tensors[f"{good}.lora_down.weight"] = torch.ones(1, 3)
    tensors[f"{good}.lora_up.weight"] = torch.ones(3, 1)
    with pytest.raises(AdapterError, match="does not say which text encoder of SDXL it changes"):
        kohya.parse("file", tensors, xl_keys)
