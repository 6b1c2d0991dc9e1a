"""How modules of diffusers' models are called in files."""

import pytest
from torch import nn

from iteris_core.files.diffusers import model_keys
from iteris_core.files.families import FAMILIES

QUERY = "text_model.encoder.layers.0.self_attn.q_proj"
UNET = {
    "unet.mid_block.attentions.0.proj_in": nn.Linear(2, 2),
    "unet.down_blocks.0.resnets.0.conv1": nn.Conv2d(2, 2, 3),
    "unet.add_embedding.linear_1": nn.Linear(2, 2),
}
ONE = UNET | {f"text_encoder.{QUERY}": nn.Linear(2, 2)}
TWO = ONE | {
    f"text_encoder_2.{QUERY}": nn.Linear(3, 3),
    "text_encoder_2.text_projection": nn.Linear(3, 3),
}


def test_one_text_encoder():
    keys = model_keys(ONE, FAMILIES["SD1.5"], "v_prediction")
    path = f"text_encoder.{QUERY}"
    assert keys.base_of_module[path] == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    for base in (
        keys.base_of_module[path],
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        QUERY,
        "base_model.model.encoder.layers.0.self_attn.q_proj",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q",
    ):
        assert keys.module_of_base[base] == path
    unet = keys.base_of_module["unet.mid_block.attentions.0.proj_in"]
    assert unet == "lora_unet_mid_block_attentions_0_proj_in"
    assert keys.prediction_type == "v" and not keys.ambiguous


@pytest.mark.parametrize(
    ("part", "number", "comfy"), [("text_encoder", 1, "clip_l"), ("text_encoder_2", 2, "clip_g")]
)
def test_two_text_encoders(part, number, comfy):
    keys = model_keys(TWO, FAMILIES["SDXL"], "epsilon")
    path = f"{part}.{QUERY}"
    kohya = f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj"
    assert keys.base_of_module[path] == kohya
    for base in (
        kohya,
        path,
        f"{part}.encoder.layers.0.self_attn.q_proj",
        f"base_model.model.{path}",
        f"text_encoders.{comfy}.transformer.{QUERY}",
    ):
        assert keys.module_of_base[base] == path
    assert QUERY in keys.ambiguous and QUERY not in keys.module_of_base
    assert f"lora_te_{QUERY.replace('.', '_')}" not in keys.module_of_base


def test_sdxls_modules_are_saved_under_the_names_of_its_own_code():
    bases = model_keys(TWO, FAMILIES["SDXL"], "epsilon").base_of_module
    assert bases["unet.mid_block.attentions.0.proj_in"] == "lora_unet_middle_block_1_proj_in"
    assert bases["unet.down_blocks.0.resnets.0.conv1"] == "lora_unet_input_blocks_1_0_in_layers_2"
    assert bases["unet.add_embedding.linear_1"] == "lora_unet_label_emb_0_0"
    assert bases["text_encoder_2.text_projection"] == "lora_te2_text_projection"
