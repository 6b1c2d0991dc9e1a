"""Models from diffusers folders and from checkpoints of one file, without a network."""

import json
import shutil

import pytest
import tiny_diffusers
import torch

from iteris_core import AdapterError, ConfigError
from iteris_core.diffusion.loading import load_diffusers
from iteris_core.files.families import FAMILIES

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Family -> a model, and a folder in which it is a pipeline and one file."""
    made = {}
    for family, make in tiny_diffusers.MODELS.items():
        host, folder = make(), tmp_path_factory.mktemp("world")
        tiny_diffusers.save_folder(host, folder / "pipeline")
        tiny_diffusers.save_checkpoint(host, folder / "one.safetensors")
        made[family] = host, folder
    return made


def parts_of(model):
    return [model.unet_model, *model.text_models]


def load(source, family="SD1.5", *more, **options):
    return load_diffusers(str(source), FAMILIES[family], *map(str, more), **options)


@pytest.mark.parametrize("family", tiny_diffusers.MODELS)
@pytest.mark.parametrize("kind", ["pipeline", "one.safetensors"])
def test_a_model_is_loaded_without_a_network(worlds, family, kind):
    host, folder = worlds[family]
    more = [folder / "pipeline"] if kind == "one.safetensors" else []
    model = load(folder / kind, family, *more)
    for ours, theirs in zip(parts_of(model), parts_of(host), strict=True):
        weights = ours.state_dict()
        assert weights.keys() == theirs.state_dict().keys()
        assert all(torch.equal(weights[key], weight) for key, weight in theirs.state_dict().items())
    assert model.family.name == family
    assert (model.prediction_type, model.piece_length) == ("epsilon", 16)
    assert torch.equal(model.tokenize("a cat")[0], host.tokenize("a cat")[0])
    assert torch.equal(model.training_sigmas, host.training_sigmas)
    assert not any(p.requires_grad or m.training for m in parts_of(model) for p in m.parameters())


def test_an_sdxl_checkpoint_says_itself_what_it_predicts(worlds, tmp_path):
    """As those of NoobAI do, and as ComfyUI reads them; the settings are those of another SDXL."""
    host, folder = worlds["SDXL"]
    for marks, first in ((("v_pred",), 14.6), (("v_pred", "ztsnr"), 4096.0)):
        path = tmp_path / f"{len(marks)}.safetensors"
        tiny_diffusers.save_checkpoint(host, path, marks)
        model = load(path, "SDXL", folder / "pipeline")
        assert (model.prediction_type, model.keys.prediction_type) == ("v_prediction", "v")
        assert model.sigmas(4)[0] == pytest.approx(first, rel=0.01)


def test_a_model_of_another_family_and_the_refiner_are_refused(worlds, tmp_path):
    _, sd15 = worlds["SD1.5"]
    _, sdxl = worlds["SDXL"]
    refiner = shutil.copytree(sdxl / "pipeline", tmp_path / "refiner")
    index = json.loads((refiner / "model_index.json").read_text())
    index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    (refiner / "model_index.json").write_text(json.dumps(index))
    for family, source, more, said in (
        ("SD1.5", sdxl / "pipeline", (), "addition_embed_type 'text_time' where SD1.5's has None"),
        ("SD1.5", sdxl / "one.safetensors", [sd15 / "pipeline"], "cannot be loaded"),
        ("SDXL", sd15 / "pipeline", (), "has not all text encoders of SDXL"),
        ("SDXL", sd15 / "one.safetensors", [sdxl / "pipeline"], "cannot be loaded"),
        ("SDXL", refiner, (), "has not all text encoders of SDXL, such as"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(source, family, *more)


def test_what_cannot_be_loaded_is_said_in_one_sentence(worlds, tmp_path):
    _, folder = worlds["SD1.5"]
    pipeline, one = folder / "pipeline", folder / "one.safetensors"
    other = shutil.copytree(pipeline, tmp_path / "other")
    settings = json.loads((other / "unet" / "config.json").read_text())
    settings["block_out_channels"] = [16, 16]
    (other / "unet" / "config.json").write_text(json.dumps(settings))
    torch.save({}, tmp_path / "old.ckpt")
    for arguments, said in (
        (["/nowhere"], "/nowhere: there is no such folder"),
        (["/nowhere.safetensors"], "nowhere.safetensors: there is no such file"),
        (["no/body/here"], "no/body/here: SD1.5 cannot be loaded"),
        ([pipeline / "unet"], "SD1.5 cannot be loaded"),
        ([pipeline, pipeline], "config is for a checkpoint of one file"),
        ([one], "SD1.5 with the settings of its family from the hub cannot be loaded"),
        ([one, "/nowhere"], "SD1.5 with the settings /nowhere cannot be loaded"),
        ([one, other], "SD1.5 with the settings .*other cannot be loaded"),
        ([tmp_path / "old.ckpt"], "this is a pickle file, which can run code"),
    ):
        source, *config = arguments
        with pytest.raises((ConfigError, AdapterError), match=said) as error:
            load(source, "SD1.5", *config)
        assert str(error.value).count("\n") == 0
    with pytest.raises(ConfigError, match="device 'tpu9' cannot be used"):
        load(pipeline, device="tpu9")
