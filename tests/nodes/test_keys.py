"""How a model's modules are called in files."""

import pytest
import torch

from iteris_core.files import kohya


def test_only_modules_that_can_be_saved_are_read(keys):
    assert (
        keys.base_of_module["diffusion_model.mid.q"] == "lora_unet_mid_block_q"
    )  # the name that every program knows
    assert set(keys.module_of_base.values()) == {
        "diffusion_model.mid.q",
        "diffusion_model.mid.conv",
        "clip_l.transformer.text_model.q",
    }
    assert keys.module_of_base["base_model.model.unet.mid_block.q"] == "diffusion_model.mid.q"
    assert (
        keys.module_of_base["base_model.model.text_encoder.text_model.q"]
        == "clip_l.transformer.text_model.q"
    )
    assert set(keys.host_keys) == {
        "lora_unet_mid_q",
        "lora_unet_mid_conv",
        "lora_te_text_model_q",
        "lora_te1_text_projection",
    }
    assert keys.bases_of("diffusion_model.mid.q")[:2] == [
        "lora_unet_mid_block_q",
        "lora_unet_mid_q",
    ]
    assert keys.bases_of("clip_l.transformer.text_projection") == [
        "clip_l.transformer.text_projection",
        "lora_te1_text_projection",
    ]  # cannot be saved, but the host reads it
    assert keys.weight_shape("diffusion_model.mid.q") == (6, 4)
    assert keys.weight_shape("diffusion_model.mid.conv") == (3, 2, 3, 1)


@pytest.mark.parametrize(
    "odd",
    [
        {
            "text_projection.lora_A.weight": torch.ones(3, 3),
            "text_projection.lora_B.weight": torch.ones(3, 3),
        },
        {"text_model.norm.w_norm": torch.ones(3)},
    ],
    ids=["projection", "norm"],
)
def test_keys_of_modules_that_cannot_be_saved_are_unmatched(keys, odd):
    good = {
        "lora_te_text_model_q.lora_up.weight": torch.ones(3, 1),
        "lora_te_text_model_q.lora_down.weight": torch.ones(1, 3),
    }
    adapter = kohya.parse("file", good | odd, keys)
    assert adapter.unmatched == tuple(odd)
    assert len(kohya.to_tensors(adapter, keys.base_of_module, keys.kernels)) == 3
