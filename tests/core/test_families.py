"""Which family of base models an adapter is for, told by its keys, shapes and metadata."""

import pytest
import torch

from iteris_core.files.families import FAMILIES
from iteris_core.files.recognition import (
    base_family,
    family_named,
    family_of,
    model_families,
    other_family,
)


def tensors(*bases, d_out=8, d_in=8):
    made = {}
    for base in bases:
        made[f"{base}.lora_down.weight"] = torch.empty(4, d_in, device="meta")
        made[f"{base}.lora_up.weight"] = torch.empty(d_out, 4, device="meta")
    return made


# Family -> bases as trainers write them, each of which tells it by itself.
BASES = {
    "SDXL": """lora_te2_text_model_encoder_layers_0_mlp_fc1
        text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj
        lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q
        unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q""",
    "SD2.x": "lora_te_text_model_encoder_layers_22_mlp_fc1",
    "Flux.1": """lora_unet_double_blocks_0_img_attn_qkv
        transformer.single_transformer_blocks.0.attn.to_q
        lora_transformer_single_transformer_blocks_9_proj_mlp""",
    "Flux.2": """transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj
        diffusion_model.double_stream_modulation_img.lin transformer.transformer_blocks.3.ff.linear_in""",
    "Chroma": "lora_unet_distilled_guidance_layer_layers_0_in_layer",
    "SD3.5": "lora_unet_joint_blocks_0_x_block_attn_qkv",
    "Z-Image": """diffusion_model.layers.0.attention.to_q lora_unet_layers_3_feed_forward_w1
        transformer.layers.29.attention.to_out.0""",
    "Qwen-Image": """transformer.transformer_blocks.0.img_mlp.net.0.proj
        lora_unet_transformer_blocks_59_attn_to_q diffusion_model.transformer_blocks.7.txt_mod.1""",
    "Anima": """diffusion_model.blocks.0.self_attn.q_proj lora_unet_blocks_0_cross_attn_output_proj
        lora_unet_llm_adapter_blocks_0_self_attn_q_proj""",
    "Krea 2": """diffusion_model.blocks.0.attn.wq transformer.transformer_blocks.0.attn.to_gate
        transformer.text_fusion.refiner_blocks.0.attn.to_q""",
    "AuraFlow": """transformer.joint_transformer_blocks.0.attn.to_q
        transformer.single_transformer_blocks.4.ff.linear_1 lora_unet_double_layers_0_attn_w1q""",
    "Wan": """lora_unet_blocks_0_self_attn_q lora_unet__blocks_0_cross_attn_k
        diffusion_model.blocks.0.ffn.0 transformer.blocks.0.attn1.to_q""",
    "HunyuanVideo": "lora_unet_double_blocks_0_img_mlp_fc1",
    "LTX-Video": """diffusion_model.transformer_blocks.0.attn1.to_q
        lycoris_transformer_blocks_0_attn1_to_q""",
    "Cosmos Predict2": "transformer.transformer_blocks.0.norm1.linear_1",
    "ERNIE-Image": "layers.0.self_attention.to_q lora_unet_layers_0_mlp_linear_fc2",
    "Kandinsky 5": "visual_transformer_blocks.0.self_attention.to_query",
    "Chroma Radiance": "diffusion_model.nerf_blocks.0.param_generator",
    "HiDream": "diffusion_model.double_stream_blocks.0.block.attn1.to_q",
    "a video model": "lora_unet_temporal_transformer_blocks_0 unet.down_blocks.0.motion_modules.0",
    "T5": "base_model.model.encoder.block.0.layer.0.SelfAttention.q",
    "BLIP": "base_model.model.text_decoder.bert.encoder.layer.0.attention.self.query",
    "BART": "base_model.model.model.decoder.layers.0.encoder_attn.q_proj",
}


def test_a_key_tells_the_family():
    for name, bases in BASES.items():
        for base in bases.split():
            assert family_of(tensors(base)) is FAMILIES[name], base


SHAPES = [  # family, base, d_out, d_in
    ("SD1.5", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 768),
    ("SD2.x", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v", 320, 1024),
    ("SDXL", "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 640, 2048),
    ("SD1.5", "lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, 768),
    ("SD2.x", "lora_te_text_model_encoder_layers_0_mlp_fc1", 4096, 1024),
    ("Flux.1", "lora_unet_single_blocks_0_linear1", 21504, 3072),
    ("Flux.2", "lora_unet_single_blocks_0_linear1", 27648, 3072),
    ("Flux.2", "diffusion_model.double_blocks.0.img_mlp.0", 18432, 3072),
    ("Flux.2", "diffusion_model.double_blocks.0.img_attn.qkv", 12288, 4096),
    ("SD3.5", "transformer.transformer_blocks.0.attn.to_q", 2432, 2432),
    (None, "transformer.transformer_blocks.0.attn.to_q", 3072, 3072),  # Flux.1 or Qwen-Image
    ("Lumina 2", "lora_unet_layers_0_attention_qkv", 3840, 2304),
    ("PixArt", "transformer.transformer_blocks.0.attn1.to_q", 1152, 1152),
    ("LTX-Video", "transformer.transformer_blocks.0.attn1.to_q", 4096, 4096),
    ("Z-Image", "lora_unet_layers_0_attention_qkv", 11520, 3840),
    (None, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 320, 320),
    (None, "text_encoder.text_model.encoder.layers.0.mlp.fc1", 3072, 768),  # in many families
]


def test_a_shape_tells_the_family():
    for name, base, d_out, d_in in SHAPES:
        found = family_of(tensors(base, d_out=d_out, d_in=d_in))
        assert found is (name and FAMILIES[name]), base


LAYERS = [  # family, layer of its model, d_out, d_in
    ("SD1.5", "input_blocks.1.1.transformer_blocks.0.attn2.to_k", 320, 768),
    ("SD2.x", "input_blocks.1.1.transformer_blocks.0.attn2.to_k", 320, 1024),
    ("SDXL", "input_blocks.4.1.transformer_blocks.0.attn2.to_k", 640, 2048),
    (None, "input_blocks.4.1.transformer_blocks.0.attn2.to_k", 640, 1280),  # the refiner
    ("SD3.5", "joint_blocks.0.x_block.attn.qkv", 4608, 1536),
    ("Flux.1", "single_blocks.0.linear1", 21504, 3072),
    ("Flux.2", "single_blocks.0.linear1", 27648, 3072),
    ("Chroma", "distilled_guidance_layer.in_proj", 5120, 64),
    ("Z-Image", "layers.0.attention.qkv", 11520, 3840),
    ("Lumina 2", "layers.0.attention.qkv", 3840, 2304),
    ("Qwen-Image", "transformer_blocks.0.img_mlp.net.0.proj", 12288, 3072),
    ("AuraFlow", "double_layers.0.attn.w1q", 3072, 3072),
    ("Wan", "blocks.0.self_attn.q", 5120, 5120),
    ("Anima", "blocks.0.self_attn.q_proj", 2048, 2048),
    ("Krea 2", "blocks.0.attn.wq", 6144, 6144),
]


@pytest.mark.parametrize("start", ["model.diffusion_model.", ""])
def test_a_layer_tells_the_family_of_a_model(start):
    """The text encoders beside it do not count."""
    for name, layer, d_out, d_in in LAYERS:
        model = {f"{start}{layer}.weight": torch.empty(d_out, d_in, device="meta")}
        model[f"{start}{layer}.bias"] = torch.empty(d_out, device="meta")
        if start:
            key = "conditioner.embedders.1.model.transformer.resblocks.0.attn2.to_k.weight"
            model[key] = torch.empty(320, 768, device="meta")
        assert next(iter(model_families(model)), None) is (name and FAMILIES[name]), layer


def test_a_text_encoder_of_another_family_does_not_hide_the_transformer():
    both = tensors("lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_unet_joint_blocks_3_x")
    assert family_of(both) is FAMILIES["SD3.5"]


NAMES = {
    "SD1.5": "sd_v1 sd_1.5 stable-diffusion-v1/lora stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SD2.x": "sd_v2_v",
    "SDXL": "sdxl_base_v1-0 sdxl_1.0 stable-diffusion-xl-v1-base/lora",
    "Flux.1": "flux1 flux.1_kontext flux-1-dev/lora black-forest-labs/FLUX.1-Krea-dev",
    "Flux.2": "flux_2_klein_4b Flux.2-dev/lora",
    "Chroma": "chroma",
    "SD3.5": "stable-diffusion-3-5-large/lora sd_3 3-5-medium",
    "Lumina 2": "lumina2",
    "Z-Image": "z_image zimage Tongyi-MAI/Z-Image-Turbo",
    "Qwen-Image": "qwen_image_edit",
    "Anima": "anima-preview/lora",
    "Krea 2": "krea2",
    "AuraFlow": "auraflow",
    "Wan": "wan_2.2_14b Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "HunyuanVideo": "hunyuan_video",
    "Chroma Radiance": "chroma_radiance",
    "HunyuanVideo 1.5": "hunyuan_video_1_5 HunyuanVideo-1.5",
    "LTX-Video": "ltx2 ltxv",
    None: "ssd animatediff",
}


def test_names_of_base_models_in_files():
    for name, said in NAMES.items():
        for one in said.split():
            assert family_named(None, "", one) is (name and FAMILIES[name]), one


def test_what_is_written_is_recognised():
    for family in FAMILIES.values():
        for written in filter(None, (family.base_version, family.architecture)):
            assert family_named(written) is family, written


def test_keys_count_more_than_what_the_file_says():
    keys = tensors("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    metadata = {"ss_base_model_version": "sd_v1"}
    assert base_family(FAMILIES["SDXL"], metadata) == (FAMILIES["SDXL"], "SDXL (sd_v1)")
    assert base_family(None, metadata) == (FAMILIES["SD1.5"], "SD1.5 (sd_v1)")
    assert base_family(None, {"ss_base_model_version": "own"}) == (None, "own")
    assert base_family(None, {}) == (None, "unknown")
    assert other_family(keys, metadata, FAMILIES["SD1.5"]) is FAMILIES["SDXL"]
    assert other_family(keys, metadata, FAMILIES["SDXL"]) is None
    assert other_family({}, metadata, FAMILIES["SDXL"]) is FAMILIES["SD1.5"]
    assert other_family({}, {}, FAMILIES["SDXL"]) is None


def test_a_lora_of_flux_may_be_used_on_chroma():
    flux = tensors("lora_unet_double_blocks_0_img_attn_qkv")
    assert other_family(flux, {}, FAMILIES["Chroma"]) is None
    assert other_family(flux, {}, FAMILIES["SDXL"]) is FAMILIES["Flux.1"]
