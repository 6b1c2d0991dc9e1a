"""Models from diffusers folders and from checkpoints of one file, without a network."""

import json
import shutil

import pytest
import tiny_diffusers
import torch
from safetensors.torch import load_file, save_file

from iteris_core import AdapterError, ConfigError
from iteris_core.diffusion.loading import load_diffusers
from iteris_core.files.families import FAMILIES

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def host():
    return tiny_diffusers.model()


@pytest.fixture(scope="module")
def host_xl():
    return tiny_diffusers.model_xl()


def save(host, folder):
    tiny_diffusers.save_folder(host, folder / "pipeline", vae_scale_factor=2)
    tiny_diffusers.save_checkpoint(host, folder / "one.safetensors")
    return folder


@pytest.fixture(scope="module")
def saved(host, tmp_path_factory):
    return save(host, tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def saved_xl(host_xl, tmp_path_factory):
    return save(host_xl, tmp_path_factory.mktemp("xl"))


def parts_of(model):
    return [model.unet_model, *model.text_models]


def assert_same_weights(found, expected):
    for ours, theirs in zip(parts_of(found), parts_of(expected), strict=True):
        weights = ours.state_dict()
        assert weights.keys() == theirs.state_dict().keys()
        assert all(torch.equal(weights[key], weight) for key, weight in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("family", "kind"),
    [("SD1.5", "file"), ("SDXL", "file"), ("SDXL", "folder"), ("SD1.5", "half precision")],
)
def test_a_model_is_loaded_without_a_network(request, family, kind, tmp_path):
    suffix = "_xl" if family == "SDXL" else ""
    host, saved = (request.getfixturevalue(name + suffix) for name in ("host", "saved"))
    if kind == "folder":
        model = load_diffusers(str(saved / "pipeline"))
    elif kind == "file":
        model = load_diffusers(str(saved / "one.safetensors"), config=str(saved / "pipeline"))
    else:
        half = tiny_diffusers.MODELS[family](dtype=torch.float16)
        tiny_diffusers.pipeline(half).save_pretrained(tmp_path / "half", variant="fp16")
        shutil.copytree(saved / "pipeline" / "vae", tmp_path / "half" / "vae")
        model = load_diffusers(str(tmp_path / "half"), dtype=torch.bfloat16)
        assert {p.dtype for m in parts_of(model) for p in m.parameters()} == {torch.bfloat16}
    if kind != "half precision":
        assert_same_weights(model, host)
    assert model.family.name == family
    assert (model.vae_scale_factor, model.prediction_type, model.piece_length) == (2, "epsilon", 16)
    assert torch.equal(model.tokenize("a cat")[0], host.tokenize("a cat")[0])
    assert torch.equal(model.training_sigmas, host.training_sigmas)
    assert not any(p.requires_grad or m.training for m in parts_of(model) for p in m.parameters())


def test_a_folder_without_a_vae_is_read(saved, tmp_path, caplog):
    caplog.set_level("INFO", logger="iteris")
    folder = shutil.copytree(saved / "pipeline", tmp_path / "bare")
    shutil.rmtree(folder / "vae")
    assert load_diffusers(str(folder)).vae_scale_factor == 8
    assert f"{folder} has no vae; a latent is taken for 8 x 8 pixels" in caplog.messages


def test_an_sdxl_checkpoint_says_itself_what_it_predicts(host_xl, saved_xl, tmp_path):
    """As those of NoobAI do, and as ComfyUI reads them; the settings are those of another SDXL."""
    settings = str(saved_xl / "pipeline")
    for marks, first in ((("v_pred",), 14.6), (("v_pred", "ztsnr"), 4096.0)):
        path = tmp_path / f"{len(marks)}.safetensors"
        tiny_diffusers.save_checkpoint(host_xl, path, marks)
        model = load_diffusers(str(path), config=settings)
        assert (model.prediction_type, model.keys.prediction_type) == ("v_prediction", "v")
        assert model.sigmas(4)[0] == pytest.approx(first, rel=0.01)
    path = tmp_path / "edm.safetensors"
    tiny_diffusers.save_checkpoint(host_xl, path, ("edm_mean", "edm_std"))
    with pytest.raises(ConfigError, match=r"is an SDXL of the EDM kind, such as Playground 2.5"):
        load_diffusers(str(path), config=settings)


def test_a_model_of_another_family_and_the_refiner_are_refused(saved, saved_xl, tmp_path):
    said = "is a model of SDXL, but SD1.5 is needed; choose another model, or the command"
    for source in ("pipeline", "one.safetensors"):
        with pytest.raises(ConfigError, match=said):
            load_diffusers(str(saved_xl / source), family=FAMILIES["SD1.5"])
        with pytest.raises(ConfigError, match=r"is a model of SD1.5, but SDXL is needed"):
            load_diffusers(str(saved / source), family=FAMILIES["SDXL"])
    refiner = tmp_path / "refiner"
    shutil.copytree(saved_xl / "pipeline", refiner)
    index = json.loads((refiner / "model_index.json").read_text())
    index |= {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "requires_aesthetics_score": True,
    }
    (refiner / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="it has no text_encoder, as SDXL's refiner; choose"):
        load_diffusers(str(refiner))
    tensors = load_file(saved_xl / "one.safetensors")
    second = "conditioner.embedders.1."
    alone = {key.replace(second, "conditioner.embedders.0."): t for key, t in tensors.items()}
    save_file(alone, tmp_path / "refiner.safetensors")
    with pytest.raises(ConfigError, match="has one text encoder under SDXL's names, as SDXL's ref"):
        load_diffusers(str(tmp_path / "refiner.safetensors"))


def test_what_cannot_be_loaded_is_said_in_one_sentence(saved, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(saved / "pipeline", other)
    settings = json.loads((other / "unet" / "config.json").read_text())
    settings["block_out_channels"] = [16, 16]
    (other / "unet" / "config.json").write_text(json.dumps(settings))
    pipeline, one = saved / "pipeline", saved / "one.safetensors"
    for arguments, said in (
        (["/nowhere"], "/nowhere: there is no such folder"),
        (["/nowhere.safetensors"], "/nowhere.safetensors: there is no such file; give a check"),
        (["no/body/here"], "no/body/here: a diffusers model cannot be loaded"),
        ([pipeline / "unet"], "a diffusers model cannot be loaded"),
        ([pipeline, pipeline], "config is for a checkpoint of one file"),
        ([one], "cannot be loaded with SD1.5's settings from the hub .* give as config a diff"),
        ([one, "/nowhere"], "/nowhere: there is no such folder; give a diffusers folder with"),
        ([one, other], "cannot be loaded with the settings in"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_diffusers(*map(str, arguments))


def test_other_pipelines_pickles_and_devices_are_refused(saved, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(saved / "pipeline", other)
    index = json.loads((other / "model_index.json").read_text())
    index["_class_name"] = "FluxPipeline"
    del index["unet"]
    (other / "model_index.json").write_text(json.dumps(index))
    torch.save({}, tmp_path / "old.ckpt")
    for place, more, said in (
        (other, {}, "is a FluxPipeline, it has no unet; choose a Stable"),
        (tmp_path / "old.ckpt", {}, "this is a pickle file, which can run code"),
        (saved / "pipeline", {"device": "tpu9"}, "device 'tpu9' cannot be used"),
    ):
        with pytest.raises((ConfigError, AdapterError), match=said):
            load_diffusers(str(place), **more)
