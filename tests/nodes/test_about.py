"""What ComfyUI's page is told about the files of models; `tests/host/test_inputs.py` asks about LoRAs."""

import torch
from iteris_pack.nodes.loras.about import about_model
from safetensors.torch import save_file


def test_the_page_learns_whose_loras_fit_a_model(replace_host, tmp_path):
    one = torch.ones(640, 2)
    save_file({"a": one}, tmp_path / "bare.safetensors")
    save_file({"double_blocks.0.img_attn.qkv.weight": one}, tmp_path / "flux.safetensors")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}q\x00." + bytes(64))
    models = ["flux.safetensors", "bare.safetensors", "model.ckpt"]
    replace_host(find_model=lambda name: tmp_path / name if name in models else None)
    flux = about_model("flux.safetensors")
    assert (flux["family"], flux["fits"], flux["error"]) == ("Flux.1", ["Flux.1", "Chroma"], None)
    bare = about_model("bare.safetensors")
    assert (bare["family"], bare["fits"], bare["error"]) == ("", [], None)
    assert "pickle" in about_model("model.ckpt")["error"]
    assert "'xl.safetensors' is not in ComfyUI's lists" in about_model("xl.safetensors")["error"]
