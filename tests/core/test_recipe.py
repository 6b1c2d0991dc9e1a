"""A recipe is read back as it was written, or refused with a reason, whatever was done to it."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from fake_host import use
from fuzz_files import edited as edited_anywhere
from hypothesis import given, settings

from iteris_core import ConfigError, MergeConfig
from iteris_core.config import UNIT_GAIN, BaselineOptions
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.diffusion.recipe import read_recipe, recipe_of

_RIVAL = BaselineOptions(scale="search", density=1, projection=None)
_OTHERS = {"alpha": 1e-3, "alpha_cross": 0.0, "output_dtype": torch.bfloat16}
CONFIG = MergeConfig(rank={"a.b": 3}, method="ties", baseline=_RIVAL, **_OTHERS)
CALIBRATION = Calibration(preserve_captions=("a street",), scene_weight=0.1, seed=3)
_STYLE = {"strength_model": -1, "strength_clip": 0, "prompts_from": "trained_words"}
_STYLE |= {"weight": 2.5, "trigger": "in ink", "kind": "style", "blocks": "IN01:0.5,MID:0"}
LORAS = [
    use("a", ("a sks dog", "sks dog"), file="a.safetensors", sha256="1f", strength_clip=0.5),
    use("b", ("ink",), sha256="2e", **_STYLE, without=("*attn2*",)),
]
WRITTEN = recipe_of(LORAS, CALIBRATION, CONFIG, made_on={"base": "sd15"})
RECIPE = json.loads(json.dumps(WRITTEN))


def read(recipe):
    return read_recipe("merged.safetensors", json.dumps(recipe))


def edited(*path, to=None):
    recipe = copy.deepcopy(RECIPE)
    *outer, last = path
    place = recipe
    for step in outer:
        place = place[step]
    if to is GONE:
        del place[last]
    else:
        place[last] = to
    return recipe


GONE = object()


def test_a_recipe_is_read_as_it_was_written():
    found = read(RECIPE)
    config = replace(CONFIG, unit_gain=UNIT_GAIN)  # a later version may have another default
    assert (found.loras, found.calibration, found.config) == (tuple(LORAS), CALIBRATION, config)
    assert found.made_on["base"] == "sd15"


def test_what_is_left_out_has_its_default():
    found = read({**edited("loras", 0, "weight", to=GONE), "config": {}, "calibration": {}})
    assert (found.config, found.calibration) == (MergeConfig(), Calibration())
    assert found.loras[0].weight == 1.0


OF_RANK = "rank is {}; it must be a whole number from 1 to 65536, 'sum' or 'full', or an object"
REFUSED = [  # where it was edited, what was written there, what the message names
    (("loras",), GONE, "its recipe has no 'loras'"),
    (("loras",), [], r"loras is \[\]; it must be a list with one LoRA or more"),
    (("loras", 1, "sha256"), GONE, "LoRA 2 has no 'sha256'; it must be a text"),
    (("loras", 0, "strength_clip"), "1", "strength_clip is '1'; it must be a number from -100"),
    (("loras", 0, "kind"), "thing", "LoRA 1: .*kind is 'thing'; it must be 'subject' or 'style'"),
    (("loras", 0, "colour"), "red", "LoRA 1 has the setting 'colour', unknown to this version"),
    (("calibration",), None, "calibration is None; it must be an object"),
    (("calibration", "seed"), 2**40, r"calibration: seed is \d+; it must be a whole number"),
    (("calibration", "scene_forms"), ["{first}"], "its recipe: calibration: "),
    (("config", "method"), "magic", "config: method is 'magic'; it must be 'iteris' or 'average'"),
    (("config", "rank"), 1.5, OF_RANK.format("1.5")),
    (("config", "output_dtype"), "Tensor", "output_dtype is 'Tensor'; it must be 'float16' or"),
    (("config", "baseline", "density"), 2, "config: baseline: density is 2; it must be a number"),
    (("config", "max_iter"), "x" * 99, r"max_iter is 'x+\.\.\.; it must be "),
]


def test_an_edited_recipe_is_refused_with_place_found_and_expected():
    for place, value, message in REFUSED:
        with pytest.raises(ConfigError, match=f"^merged.safetensors: .*{message}"):
            read(edited(*place, to=value))
    with pytest.raises(ConfigError, match=r"its recipe is \[\]; it must be an object with loras"):
        read([])


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_json_is_refused(text):
    said = r"merged: its recipe is not JSON \(.*\); it was changed by hand"
    with pytest.raises(ConfigError, match=said):
        read_recipe("merged", text)


@settings(max_examples=150)
@given(edited_anywhere(RECIPE))
def test_whatever_is_edited_a_recipe_is_read_or_refused(recipe):
    try:
        found = read(recipe)
    except ConfigError as error:
        assert str(error).startswith("merged.safetensors: its recipe")
    else:
        assert isinstance(found.config, MergeConfig)
        assert all(isinstance(lora, LoraUse) for lora in found.loras)
