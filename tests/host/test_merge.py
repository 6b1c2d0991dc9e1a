"""The merge inside a real ComfyUI."""

import hashlib
import json

import pytest
import torch
from comfy_host import MIDDLE_LAYERS, write_few
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo.client import WorkflowFailed
from iteris_core import __version__

MIDDLES = ("middle_1.safetensors", "middle_2.safetensors")


@pytest.fixture(scope="module")
def merged(host):
    """LoRAs of every layer, merged and saved once, in float16."""
    names = []
    for seed in (1, 2):
        names.append(f"whole_{seed}.safetensors")
        write_few(host.loras / names[-1], seed, layers="")
    history = host.run({**host.merge(*names), **host.save("loras/merged_float16")})
    return history["outputs"]


def test_every_layer_of_both_networks_is_merged_and_reported(host, merged):
    report = merged["5"]["iteris"][0]["report"]
    paths = [layer["path"] for layer in report["layers"]]
    assert len(paths) == len(set(paths)) == 72 + 48
    assert sum(path.startswith("clip_l.") for path in paths) == 72
    # the text encoder comes first
    assert paths.index("clip_l.transformer.text_model.encoder.layers.11.mlp.fc2") < 72
    for layer in report["layers"]:
        assert layer["rank"] == 16
        tasks = ["whole_1", "whole_2", "base model (preserve)"]
        assert [task["task"] for task in layer["tasks"]] == tasks
        for task in layer["tasks"]:
            assert 0 <= task["residual"] < 1.5 and task["weight"] > 0 and task["tokens"] > 0
    assert report["settings"]["loras"][0]["prompts"] == ["a photo of a first thing"]


def test_saved_file_has_kohya_keys_and_metadata(host, merged):
    path = host.output / "loras" / "merged_float16.safetensors"
    text = merged["6"]["text"]
    assert text[0] == str(path)
    assert text[1] == "read back: 120 of 120 modules, largest difference 0"
    assert len(text) == 3 and ", rank 16, trigger words: demo1, demo2" in text[2]
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        metadata = file.metadata()
        assert len(keys) == 120 * 3
        starts = ("lora_unet_down_", "lora_unet_mid_", "lora_unet_up_", "lora_te_text_model_")
        assert all(key.startswith(starts) for key in keys)
        down = file.get_tensor("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")
        assert down.dtype == torch.float16 and down.shape == (16, 320, 1, 1)
        assert file.get_tensor("lora_unet_mid_block_attentions_0_proj_in.alpha") == 16
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_network_dim"] == "16"
    recipe = json.loads(metadata["iteris.recipe"])
    assert (recipe["iteris_version"], recipe["torch_version"]) == (__version__, torch.__version__)
    checkpoint = (host.base / "models" / "checkpoints" / "sd15.safetensors").read_bytes()
    short = hashlib.sha256(checkpoint[0x100000:0x110000]).hexdigest()[:8]
    assert recipe["base"] == f"sd15.safetensors ({short})"
    assert recipe["comfyui_version"]
    file = host.loras / "whole_2.safetensors"
    expected = {"name": "whole_2", "file": file.name, "strength_model": 1.0, "strength_clip": 1.0}
    expected |= {"weight": 1.0, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    expected |= {"prompts": ["a photo of a second thing", "a second thing in a park"]}
    expected |= {"prompts_from": "", "trigger_words": ["demo2"], "trigger": "", "kind": "subject"}
    assert recipe["loras"][1] == expected | {"blocks": "", "without": []}


def test_outputs_sample_like_the_saved_file_and_the_lora_model_in_cores_own_nodes(host):
    workflow = {**host.merge(), **host.save("loras/sampled")}
    lora_model = {"model": ["1", 0], "lora": ["5", 2], "strength_model": 1.0}
    if "bypass" in host.client.object_info("LoraModelLoader")["input"]["required"]:
        lora_model["bypass"] = False
    workflow["11"] = {"class_type": "LoraModelLoader", "inputs": lora_model}
    saved = {"lora": ["5", 2], "prefix": "loras/by_core"}
    workflow["12"] = {"class_type": "SaveLoRA", "inputs": saved}
    before = len(host.log())
    sampled = host.sample("outputs", ["5", 0], ["5", 1])
    host.run({**workflow, **sampled, **host.sample("lora_model", ["11", 0], ["5", 1], 30)})
    loader = host.load_lora("sampled.safetensors")
    host.run({"1": workflow["1"], **loader, **host.sample("file", ["10", 0], ["10", 1])})
    host.run({"1": workflow["1"], **host.sample("base", ["1", 0], ["1", 1])})
    assert "lora key not loaded" not in host.log()[before:]
    assert torch.equal(host.latent("outputs"), host.latent("lora_model"))
    by_core = load_file(next((host.output / "loras").glob("by_core_*.safetensors")))
    assert len(by_core) == 13 * 3 and all(key.startswith("diffusion_model.") for key in by_core)
    outputs = host.latent("outputs")
    file = host.latent("file")
    base = host.latent("base")
    assert (outputs - file).abs().max() <= 1e-5 * file.abs().max()
    assert (outputs - base).norm() > 0.01 * base.norm()


def test_cancel_stops_soon_and_leaves_the_model_clean(host):
    """Soon: after a few more of its 48 layers."""
    write_few(host.loras / "unet.safetensors", 1, "lora_unet")
    base_only = {"1": host.merge()["1"], **host.sample("before", ["1", 0], ["1", 1])}
    host.run(base_only)
    solved = []

    def interrupt_in_the_unet(event, data):
        if event == "iteris.stage" and data["stage"]["name"] == "Diffusion model":
            solved.append(data["done"])
            if solved.count(3) == 1 and solved[-1] == 3:
                host.client.interrupt()

    with pytest.raises(WorkflowFailed):
        nodes = host.merge(*["unet.safetensors"] * 2, seed=99)
        host.run({**nodes, **host.save("loras/never")}, interrupt_in_the_unet)
    assert 3 <= max(solved) < 15
    assert not list((host.output / "loras").glob("never*"))
    again = {"1": base_only["1"], **host.sample("after", ["1", 0], ["1", 1], 40)}
    again["42"]["inputs"]["cfg"] = 1.0001  # not from the cache
    host.run(again)
    assert (host.latent("before") - host.latent("after")).abs().max() < 1e-3
    assert not list((host.output / "loras").glob(".*"))


def test_a_lora_that_the_model_already_carries_belongs_to_the_base(host):
    nodes = {**host.merge(MIDDLES[0]), **host.load_lora("second.safetensors")}
    nodes["5"]["inputs"].update(model=["10", 0], clip=["10", 1], more_loras=["2", 0])
    history = host.run({**nodes, **host.sample("on_top", ["5", 0], ["5", 1])})
    report = history["outputs"]["5"]["iteris"][0]["report"]
    assert len(report["layers"]) == MIDDLE_LAYERS
    (note,) = (note["text"] for note in report["notes"] if note["kind"] == "host")
    assert note.startswith("MODEL and CLIP carry 1 LoRA already")
    assert torch.isfinite(host.latent("on_top")).all()


def test_another_kind_of_text_encoder_is_refused_at_the_start(host):
    """The checkpoint's own CLIP, loaded as another model's."""
    prefix = "cond_stage_model.transformer."
    tensors = load_file(host.base / "models" / "checkpoints" / "sd15.safetensors")
    text = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
    (host.base / "models" / "text_encoders").mkdir(exist_ok=True)
    save_file(text, host.base / "models" / "text_encoders" / "clip_l.safetensors")
    nodes = host.merge()
    loader = {"clip_name": "clip_l.safetensors", "type": "sd3"}
    nodes["9"] = {"class_type": "CLIPLoader", "inputs": loader}
    nodes["5"]["inputs"]["clip"] = ["9", 0]
    said = r"the CLIP is a SD3\w* with the text encoders .*; the MODEL is SD1\.5, whose text enc"
    with pytest.raises(WorkflowFailed, match=said) as failure:
        host.run({**nodes, **host.save("loras/bad")})
    assert failure.value.node_type == "IterISMerge"


Q_PROJ = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def test_a_file_that_the_host_cannot_apply_is_refused_before_any_sampling(host):
    """Other bad files are in `tests/fuzz/test_hostile_files.py`."""
    kept = load_file(host.loras / "first.safetensors")
    kept = {key: tensor for key, tensor in kept.items() if not key.startswith(Q_PROJ)}
    kept |= {f"{Q_PROJ}.lokr_w1": torch.ones(4, 4), f"{Q_PROJ}.lokr_w2": torch.ones(5, 5)}
    kept[f"{Q_PROJ}.dora_scale"] = torch.ones(768, 1)  # by which ComfyUI applies it, and not we
    save_file(kept, host.loras / "lokr_shape.safetensors")
    stages = []

    def listen(event, data):
        if event == "iteris.stage" and data["node"] == "5":
            stages.append(data)

    said = "lokr_shape.*which ComfyUI could not apply: .*ERROR lokr .* shape"
    with pytest.raises(WorkflowFailed, match=said) as failure:
        host.run({**host.merge(second="lokr_shape.safetensors"), **host.save("loras/bad")}, listen)
    assert failure.value.node_type == "IterISMerge"
    assert not stages, "work had begun"
