"""Stable Diffusion models from diffusers folders and from checkpoints of one file, without a
network.
"""

import json
import shutil

import pytest
import tiny_diffusers
import torch

from iteris_core import AdapterError, ConfigError
from iteris_core.diffusion.loading import load_diffusers


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def host():
    return tiny_diffusers.model()


@pytest.fixture(scope="module")
def saved(host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    tiny_diffusers.save_folder(host, folder / "pipeline", vae_scale_factor=2)
    tiny_diffusers.save_checkpoint(host, folder / "one.safetensors")
    return folder


def assert_same_weights(found, expected):
    for ours, theirs in (
        (found.unet_model, expected.unet_model),
        (found.text_models[0], expected.text_models[0]),
    ):
        weights = ours.state_dict()
        assert weights.keys() == theirs.state_dict().keys()
        assert all(torch.equal(weights[key], weight) for key, weight in theirs.state_dict().items())


@pytest.mark.parametrize("kind", ["folder", "file", "half precision"])
def test_a_model_is_loaded_without_a_network(host, saved, kind, tmp_path):
    if kind == "folder":
        model = load_diffusers(str(saved / "pipeline"))
    elif kind == "file":
        model = load_diffusers(str(saved / "one.safetensors"), config=str(saved / "pipeline"))
    else:
        half = tiny_diffusers.model(dtype=torch.float16)
        tiny_diffusers.pipeline(half).save_pretrained(tmp_path / "half", variant="fp16")
        shutil.copytree(saved / "pipeline" / "vae", tmp_path / "half" / "vae")
        model = load_diffusers(str(tmp_path / "half"), dtype=torch.bfloat16)
        assert {
            p.dtype for m in (model.unet_model, model.text_models[0]) for p in m.parameters()
        } == {torch.bfloat16}
    if kind != "half precision":
        assert_same_weights(model, host)
    assert (model.vae_scale_factor, model.prediction_type, model.piece_length) == (2, "epsilon", 16)
    assert torch.equal(model.tokenize("a cat")[0], host.tokenize("a cat")[0])
    assert torch.equal(model.training_sigmas, host.training_sigmas)
    assert not any(
        p.requires_grad or m.training
        for m in (model.unet_model, model.text_models[0])
        for p in m.parameters()
    )


def test_the_prediction_type_is_the_folders(tmp_path):
    tiny_diffusers.save_folder(
        tiny_diffusers.model(), tmp_path / "v", prediction_type="v_prediction"
    )
    assert load_diffusers(str(tmp_path / "v")).prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere"], "/nowhere: there is no such folder"),
        (
            ["/nowhere.safetensors"],
            "/nowhere.safetensors: there is no such file; give a checkpoint",
        ),
        (["no/body/here"], "no/body/here: a diffusers model cannot be loaded"),
        (["{pipeline}/unet"], "a diffusers model cannot be loaded"),
        (["{pipeline}", "{pipeline}"], "config is for a checkpoint of one file"),
        (
            ["{one}"],
            "cannot be loaded with SD1.5's settings from the hub .* give as config a diffusers "
            "folder",
        ),
        (
            ["{one}", "/nowhere"],
            "/nowhere: there is no such folder; give a diffusers folder with the model's settings",
        ),
        (["{one}", "{other}"], "cannot be loaded with the settings in"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(saved, tmp_path, arguments, said):
    other = tmp_path / "other"
    shutil.copytree(saved / "pipeline", other)
    settings = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(
        json.dumps({**settings, "block_out_channels": [16, 16]})
    )
    places = {"pipeline": saved / "pipeline", "one": saved / "one.safetensors", "other": other}
    with pytest.raises(ConfigError, match=said):
        load_diffusers(*(argument.format(**places) for argument in arguments))


def test_other_pipelines_pickles_and_devices_are_refused(saved, tmp_path):
    shutil.copytree(saved / "pipeline", tmp_path / "xl")
    index = json.loads((tmp_path / "xl" / "model_index.json").read_text())
    index |= {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    }
    (tmp_path / "xl" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ConfigError, match="is a StableDiffusionXLPipeline, it has a second text encoder; choose"
    ):
        load_diffusers(str(tmp_path / "xl"))
    torch.save({}, tmp_path / "old.ckpt")
    with pytest.raises(AdapterError, match="this is a pickle file, which can run code"):
        load_diffusers(str(tmp_path / "old.ckpt"))
    with pytest.raises(ConfigError, match="device 'tpu9' cannot be used"):
        load_diffusers(str(saved / "pipeline"), device="tpu9")
