"""The merge inside a real ComfyUI."""

import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from iteris_core.demo.client import WorkflowFailed, WorkflowRejected

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def merged(host):
    """Merge and save once, in float16."""
    history = host.run({**host.merge(), **host.save("loras/merged_float16")})
    return history["outputs"]


def test_every_layer_of_both_networks_is_merged_and_reported(host, merged):
    report = merged["5"]["iteris_report"][0]
    paths = [layer["path"] for layer in report["layers"]]
    assert len(paths) == len(set(paths)) == 72 + 48
    assert sum(path.startswith("clip_l.") for path in paths) == 72
    assert paths.index("clip_l.transformer.text_model.encoder.layers.11.mlp.fc2") < 72  # the text encoder comes first
    for layer in report["layers"]:
        assert layer["rank"] == 16
        assert [task["task"] for task in layer["tasks"]] == ["first", "second", "base model (preserve)"]
        assert all(0 <= task["residual"] < 1.5 and task["weight"] > 0 and task["tokens"] > 0 for task in layer["tasks"])
    assert report["settings"]["loras"][0]["prompts"] == ["a photo of a first thing"]


def test_saved_file_has_kohya_keys_and_metadata(host, merged):
    path = host.output / "loras" / "merged_float16.safetensors"
    assert merged["6"]["text"] == [str(path)]
    with safe_open(path, "pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
        assert len(keys) == 120 * 3
        assert all(
            key.startswith(("lora_unet_down_", "lora_unet_mid_", "lora_unet_up_", "lora_te_text_model_")) for key in keys
        )
        down = file.get_tensor("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")
        assert down.dtype == torch.float16 and down.shape == (16, 320, 1, 1)
        assert file.get_tensor("lora_unet_mid_block_attentions_0_proj_in.alpha") == 16
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_network_dim"] == "16"
    assert "a second thing in a park" in metadata["iteris.recipe"]


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_outputs_sample_like_the_saved_file_in_the_stock_loader(host, precision):
    name = f"loras/merged_{precision}"
    workflow = {**host.merge(precision=precision), **host.save(name, overwrite=True)}
    host.run({**workflow, **host.sample("outputs", ["5", 0], ["5", 1])})
    before = len(host.log())
    loader = host.load_lora(f"merged_{precision}.safetensors")
    host.run({"1": workflow["1"], **loader, **host.sample("file", ["10", 0], ["10", 1])})
    host.run({"1": workflow["1"], **host.sample("base", ["1", 0], ["1", 1])})
    assert "lora key not loaded" not in host.log()[before:]
    outputs, file, base = host.latent("outputs"), host.latent("file"), host.latent("base")
    assert (outputs - file).abs().max() <= 1e-5 * file.abs().max()
    assert (outputs - base).norm() > 0.01 * base.norm()


def test_the_log_does_tell_about_keys_that_are_not_loaded(host):
    save_file(
        load_file(host.loras / "first.safetensors") | {"lora_unet_nowhere.alpha": torch.tensor(1.0)},
        host.loras / "odd.safetensors",
    )
    before = len(host.log())
    nodes = host.merge()
    host.run({"1": nodes["1"], **host.load_lora("odd.safetensors"), **host.sample("odd", ["10", 0], ["10", 1])})
    assert "lora key not loaded: lora_unet_nowhere.alpha" in host.log()[before:]


def test_lora_model_goes_through_cores_own_nodes(host):
    nodes = host.merge()
    loader = {"model": ["1", 0], "lora": ["5", 2], "strength_model": 1.0}
    if "bypass" in host.client.object_info("LoraModelLoader")["input"]["required"]:
        loader["bypass"] = False
    nodes["11"] = {"class_type": "LoraModelLoader", "inputs": loader}
    nodes["12"] = {"class_type": "SaveLoRA", "inputs": {"lora": ["5", 2], "prefix": "loras/by_core"}}
    before = len(host.log())
    host.run({**nodes, **host.sample("outputs", ["5", 0], ["5", 1]), **host.sample("lora_model", ["11", 0], ["5", 1], 30)})
    assert "lora key not loaded" not in host.log()[before:]
    assert torch.equal(host.latent("outputs"), host.latent("lora_model"))
    saved = load_file(next((host.output / "loras").glob("by_core_*.safetensors")))
    assert len(saved) == 48 * 3 and all(key.startswith("diffusion_model.") for key in saved)


def cached_nodes(host, workflow):
    """Return the ids of the nodes that a run took from the cache."""
    cached = []
    host.run(workflow, lambda event, data: cached.extend(data["nodes"]) if event == "execution_cached" else None)
    return set(cached)


def test_second_run_is_cached_until_a_lora_file_changes(host):
    file = host.loras / "changing.safetensors"
    tensors = load_file(host.loras / "second.safetensors")
    save_file(tensors, file)
    workflow = {**host.merge(second="changing.safetensors"), **host.save("loras/cached", overwrite=True)}
    host.run(workflow)
    assert cached_nodes(host, workflow) == set(workflow)
    save_file({key: value * 0.5 for key, value in tensors.items()}, file)
    assert cached_nodes(host, workflow) == {"1", "2", "4"}


def test_cancel_stops_soon_and_leaves_the_model_clean(host):
    base_only = {"1": host.merge()["1"], **host.sample("before", ["1", 0], ["1", 1])}
    host.run(base_only)
    asked_at = []

    def interrupt_in_the_unet(event, data):
        if event == "text" and data["text"].startswith("UNet 3/") and not asked_at:
            asked_at.append(time.monotonic())
            host.client.interrupt()

    with pytest.raises(WorkflowFailed):
        host.run({**host.merge(seed=99), **host.save("loras/never")}, interrupt_in_the_unet)
    assert asked_at and time.monotonic() - asked_at[0] < 5
    assert not list((host.output / "loras").glob("never*"))
    again = {"1": base_only["1"], **host.sample("after", ["1", 0], ["1", 1], 40)}
    again["42"]["inputs"]["cfg"] = 1.0001  # not from the cache
    host.run(again)
    assert (host.latent("before") - host.latent("after")).abs().max() < 1e-3
    assert not list((host.output / "loras").glob(".*"))


def test_keys_without_a_module_are_counted_and_named(host):
    save_file(
        load_file(host.loras / "first.safetensors") | {"lora_unet_nowhere.alpha": torch.tensor(1.0)},
        host.loras / "odd.safetensors",
    )
    outputs = host.run({**host.merge(first="odd.safetensors"), **host.save("loras/odd")})["outputs"]
    assert outputs["5"]["iteris_report"][0]["unmatched"] == {"odd": ["lora_unet_nowhere.alpha"]}
    assert "odd: 1 keys belong to no module of this model: lora_unet_nowhere.alpha" in outputs["5"]["text"][0]


def test_files_are_numbered_or_overwritten_as_asked_and_stay_in_the_output_folder(host, merged):
    paths = [
        host.run({**host.merge(), **host.save("loras/twice", overwrite)})["outputs"]["6"]["text"][0]
        for overwrite in (False, True)
    ]
    assert paths[0] == paths[1]
    again = {**host.merge(), **host.save("loras/twice.safetensors")}
    assert host.run(again)["outputs"]["6"]["text"][0].endswith("twice_02.safetensors")
    for name in ("../../escape", "/tmp/escape", ""):
        with pytest.raises(WorkflowFailed, match=r"output folder|is empty"):
            host.run({**host.merge(), **host.save(name)})


def test_a_lora_that_the_model_already_carries_belongs_to_the_base(host):
    nodes = {**host.merge(), **host.load_lora("second.safetensors")}
    nodes["5"]["inputs"].update(model=["10", 0], clip=["10", 1], tasks=["2", 0])
    history = host.run({**nodes, **host.sample("on_top", ["5", 0], ["5", 1])})
    assert len(history["outputs"]["5"]["iteris_report"][0]["layers"]) == 120
    assert torch.isfinite(host.latent("on_top")).all()


def bad_loras(folder):
    """Write one file per kind of bad input; yield (file name, what the error must say)."""
    good = load_file(folder / "first.safetensors")
    te_key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"
    whole = (folder / "first.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    yield "truncated.safetensors", "download was probably cut off"
    (folder / "pickle.safetensors").write_bytes(b"\x80\x02}q\x00." + bytes(64))
    yield "pickle.safetensors", "pickle file"
    save_file({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(4, 4)}, folder / "sdxl.safetensors")
    yield "sdxl.safetensors", "looks like a LoRA for SDXL"
    save_file({"something.weight": torch.zeros(2, 2)}, folder / "alien.safetensors")
    yield "alien.safetensors", "none of its 1 keys"
    save_file(good | {te_key: torch.zeros(640, 8)}, folder / "shapes.safetensors")
    yield "shapes.safetensors", "this model's weight there is 768 x 768"
    save_file(good | {te_key: torch.full((768, 8), float("nan"))}, folder / "nan.safetensors")
    yield "nan.safetensors", "NaN or infinite weights"


def test_bad_files_are_refused_before_any_sampling(host):
    for name, expected in bad_loras(host.loras):
        stages = []
        with pytest.raises(WorkflowFailed, match=expected) as failure:
            host.run(
                {**host.merge(second=name), **host.save("loras/bad")},
                lambda event, data, stages=stages: stages.append(data) if event == "text" else None,
            )
        assert failure.value.node_type in ("IterISLora", "IterISMerge")
        assert name.removesuffix(".safetensors") in str(failure.value)
        assert not stages, f"{name}: work had begun"


def test_a_missing_file_and_missing_prompts_are_refused(host):
    with pytest.raises((WorkflowFailed, WorkflowRejected), match=r"gone\.safetensors"):
        host.run({**host.merge(second="gone.safetensors"), **host.save("loras/bad")})
    nodes = host.merge()
    nodes["3"]["inputs"]["prompts"] = " \n "
    with pytest.raises(WorkflowFailed, match=r"second\.safetensors has no prompts"):
        host.run({**nodes, **host.save("loras/bad")})
