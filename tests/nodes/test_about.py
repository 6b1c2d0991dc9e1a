"""What ComfyUI's page is told about the files of LoRAs and models."""

import pytest
import torch
from iteris_pack.nodes.loras.about import about_lora, about_model, thumbnail_of
from safetensors.torch import save_file

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def files(replace_host, tmp_path):
    """An SDXL LoRA with a picture, one that nothing tells about, and a Flux.1 model."""
    up, down = torch.ones(640, 2), torch.ones(2, 2048)
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"{key}.lora_B.weight": up, f"{key}.lora_A.weight": down}, tmp_path / "xl.safetensors"
    )
    save_file({"a": up}, tmp_path / "bare.safetensors")
    save_file({"double_blocks.0.img_attn.qkv.weight": up}, tmp_path / "flux.safetensors")
    (tmp_path / "xl.preview.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}q\x00." + bytes(64))
    names = ["xl.safetensors", "bare.safetensors"]
    models = ["flux.safetensors", "bare.safetensors", "model.ckpt"]
    replace_host(
        lora_names=lambda: names,
        lora_path=lambda name: tmp_path / name,
        find_lora=lambda name: tmp_path / name,
        find_model=lambda name: tmp_path / name if name in models else None,
    )


def test_the_page_learns_family_and_picture_of_a_lora(files):
    xl = about_lora("xl.safetensors")
    assert (xl["family"], xl["thumbnail"], xl["error"]) == ("SDXL", True, None)
    bare = about_lora("bare.safetensors")
    assert (bare["family"], bare["thumbnail"], bare["error"]) == ("", False, None)


def test_pictures_are_sent_for_names_in_the_list_alone(files):
    assert thumbnail_of("xl.safetensors") == (PNG, "image/png")
    for name in ("bare.safetensors", "secret.safetensors", "../xl.safetensors", "", "secret.png"):
        assert thumbnail_of(name) is None


def test_the_page_learns_whose_loras_fit_a_model(files):
    flux = about_model("flux.safetensors")
    assert (flux["family"], flux["fits"], flux["error"]) == ("Flux.1", ["Flux.1", "Chroma"], None)
    bare = about_model("bare.safetensors")
    assert (bare["family"], bare["fits"], bare["error"]) == ("", [], None)
    assert "pickle" in about_model("model.ckpt")["error"]
    assert "'xl.safetensors' is not in ComfyUI's lists" in about_model("xl.safetensors")["error"]
