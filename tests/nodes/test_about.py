"""What ComfyUI's page is told about files of models and LoRAs."""

import torch
from iteris_pack.nodes.loras.about import about_lora, about_model, about_row, thumbnail_of
from safetensors.torch import save_file


def test_the_page_learns_whose_loras_fit_a_model(replace_host, tmp_path):
    one = torch.ones(640, 2)
    save_file({"a": one}, tmp_path / "bare.safetensors")
    save_file({"double_blocks.0.img_attn.qkv.weight": one}, tmp_path / "flux.safetensors")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}q\x00." + bytes(64))
    models = ["flux.safetensors", "bare.safetensors", "model.ckpt"]
    replace_host(find_model=lambda name: tmp_path / name if name in models else None)
    flux = about_model("flux.safetensors")
    assert (flux["family"], flux["fits"][:2]) == ("Flux.1", ["Flux.1", "Chroma"])
    assert (flux["guidance"], flux["resolution"], flux["error"]) == (1, 1024, None)
    bare = about_model("bare.safetensors")
    assert (bare["family"], bare["fits"], bare["error"]) == ("", [], None)
    assert "pickle" in about_model("model.ckpt")["error"]
    assert "'xl.safetensors' is not in ComfyUI's lists" in about_model("xl.safetensors")["error"]


def test_only_files_of_the_lists_are_looked_at(replace_host, tmp_path):
    """Also where the host would find others."""
    for name in ("cat", "secret"):
        merged = {"modelspec.merged_from": "people/sks_robot, owl"}
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors", merged)
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    replace_host(
        lora_names=lambda: ["cat.safetensors"],
        find_lora=lambda name: tmp_path / name,
        lora_path=lambda name: tmp_path / name,
    )
    assert about_lora("cat.safetensors")["thumbnail"]
    assert about_lora("cat.safetensors")["merged_from"] == ["people/sks_robot", "owl"]
    assert thumbnail_of("cat.safetensors")[1] == "image/png"
    assert thumbnail_of("secret.safetensors") is None
    refused = about_lora("secret.safetensors")
    assert "is not in ComfyUI's list" in refused["error"] and not refused["thumbnail"]


def test_a_textual_inversion_is_told_from_a_lora(replace_host, tmp_path):
    path = tmp_path / "ink.safetensors"
    save_file({"emb_params": torch.ones(2, 768)}, path)
    replace_host(lora_names=lambda: [path.name], lora_path=lambda _: path)
    said = "write embedding:ink in a prompt"
    assert about_lora(path.name)["error"].endswith(said)


def test_a_row_learns_before_a_run_that_no_model_has_its_blocks(replace_host):
    replace_host(lora_names=list)
    for said in ("blocks=MID:0", 'blocks="IN01:0.5, MID:0" without=*attn2*', "subject | a dog"):
        assert about_row(f"<lora:ink:1> {said}") == {"error": None}, said
    assert "'ink': its block weights have 'FOO'" in about_row("<lora:ink:1> blocks=FOO")["error"]
    assert "have 'IN:1000'; a weight must be" in about_row("<lora:ink:1> blocks=IN:1000")["error"]
    assert about_row("nothing")["error"]


def test_a_row_learns_before_a_run_that_a_prompt_has_several_readings(replace_host):
    replace_host(lora_names=list)
    for said in ("a {red|blue} dog", "a __colour__ dog"):
        error = about_row(f"<lora:ink:1> subject | a dog | {said}")["error"]
        assert error.startswith(f"LoRA 'ink': its prompt '{said}' has ")
    assert about_row("<lora:ink:1> | {trigger}, BREAK <lora:x:1> a dog") == {"error": None}
