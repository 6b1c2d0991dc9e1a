"""Every family of models that can be merged, on tiny models of the host's own classes. With every
change a UNet, one with fused weights, and the pair of Wan 2.2 are checked; the others nightly.
"""

import functools
import re

import pytest
from comfy_process import figures_of, has_newer_classes

from iteris_core.files.families import FAMILIES

# Family -> layers that a LoRA of all of them changes.
LAYERS = {
    "SD1.5": 68,
    "SDXL": 96,
    "SDXL v-prediction": 96,
    "SD3.5": 62,
    "Flux.1": 54,
    "Flux.2": 31,
    "Chroma": 29,
    "Z-Image": 40,
    "Qwen-Image": 34,
    "AuraFlow": 30,
    "Wan": 27,
    "Wan 2.2 I2V": 27,
    "Wan 2.1 I2V": 33,
    "HunyuanVideo": 55,
    "HunyuanVideo I2V": 55,
    "HunyuanVideo 1.5": 33,
    "Lumina 2": 40,
    "Cosmos Predict2": 38,
    "LTX-Video": 27,
    "Chroma Radiance": 27,
    "Wan 2.2 5B": 27,
    "Flux.1 Kontext": 54,
    "Qwen-Image Edit": 34,
}
# Those that ComfyUI 0.3.75 does not have; run on a newer one, see CONTRIBUTING.
NEWER = {
    "Anima": 99,
    "Krea 2": 56,
    "LongCat-Image": 32,
    "ERNIE-Image": 20,
    "Kandinsky 5": 36,
    "Wan CausalAR": 27,
}
if has_newer_classes():
    LAYERS |= NEWER
ROUNDING = 1e-5
# Measured: 2e-4 to 8e-3, by family and processor. The tiny models show few tokens, so their statistics
# are nearly singular, and float32 is what is left.
TO_ITSELF = 1.5e-2
EACH_CHANGE = ("SD1.5", "Flux.1")
PREDICTS = {"SD1.5": "epsilon", "SDXL": "epsilon", "SDXL v-prediction": "v"}


@functools.cache
def figures(name):
    """Return the figures of a family, from a process with ComfyUI."""
    [found] = figures_of("family_checks.py", name)
    assert "failed" not in found, found["failed"]
    return found


@pytest.fixture(
    params=[
        pytest.param(name, marks=() if name in EACH_CHANGE else pytest.mark.nightly)
        for name in LAYERS
    ]
)
def family(request):
    return figures(request.param)


def test_scenes_tell_the_picture_from_the_text_and_a_polish_leaves_nothing(family):
    assert family["misread"] == []
    if "polished" in family:
        assert family["polished"]["again"] == 0
        assert family["polished"]["moved"] > 1e-4
        assert family["polished"]["hooks"] == 0


def test_every_layer_is_read_in_every_spelling_and_measured_once(family):
    """One change in the spellings of kohya and of diffusers is one adapter."""
    assert family["layers"] == LAYERS[family["family"]]
    # of all keys that the host's loader knows; of Lumina 2 it names rows that no weight has
    assert family["unread"] == [] or family["family"] == "Lumina 2"
    assert family["spellings"] == 0


def test_a_card_is_shared_out_between_calls_sums_and_waiting_rows(family):
    assert 0 < family["held"][0] < family["held"][1]  # what rows hold, at every layer
    large, none, loaded = family["rooms"]
    assert none == loaded  # what is free counts after the model is loaded
    assert large["samples_per_chunk"] == 16 and large["missing"] == 0
    assert large["required"] < large["waiting_bytes"] < 0.8 * 2**40
    assert (none["samples_per_chunk"], none["waiting_bytes"]) == (1, 0)
    # two samples in a call, and the sums of a layer
    assert 0 < none["missing"] < none["required"] < 2 * none["missing"]


def test_rows_that_wait_in_a_file_make_the_same_merge_bit_for_bit():
    found = figures("SD1.5")["parked"]
    assert found["written"] > 50 * LAYERS["SD1.5"]
    assert found["same"] == LAYERS["SD1.5"]


def test_rows_and_sampling_runs_are_what_the_host_makes_of_a_lora(family):
    assert family["stock"] < ROUNDING
    assert family["taken off"] < ROUNDING  # the same LoRA, off the model that carries it
    # our first step is a call of one row, and the host's of two, which rounds otherwise
    assert family["sampling"] < ROUNDING


def test_one_lora_merges_to_itself(family):
    """SDXL and Z-Image also without guidance, on a model that carries a turbo LoRA."""
    assert family["to itself"] < TO_ITSELF
    assert family.get("on turbo", 0) < TO_ITSELF


def test_the_saved_file_does_through_the_hosts_loader_what_the_merged_rows_do(family):
    assert max(family[way] for way in ("file", "patched", "read again")) < ROUNDING


def test_the_file_names_its_base_and_what_that_predicts(family):
    name = family["family"]
    expected = FAMILIES[
        re.sub(" v-prediction| (2.. )?I2V| 2.2 5B| CausalAR| Kontext| Edit", "", name)
    ]
    assert family["metadata"].get("ss_base_model_version", "") == expected.base_version
    architecture = family["metadata"].get("modelspec.architecture", "")
    assert architecture == (expected.architecture and f"{expected.architecture}/lora")
    assert family["predicts"] == PREDICTS.get(name)
    assert family.get("predicts by a node", "v") == "v"  # NoobAI's files without a marker


def test_two_loras_are_merged_and_checked_and_nothing_is_left_on_the_model(family):
    assert family["kinds"] == ["own", "own", "together", "together", "base"]
    # how far what is kept is from all; what a random model draws says no more
    assert all(0 < error < 10 for error in family["errors"][:2])
    assert family["unchanged"] == 0


def test_each_model_of_a_pair_is_measured_where_it_works_on_runs_through_both():
    [found] = figures_of("pair_checks.py")
    assert found["unmatched"] == []
    assert found["layers"] == [27, 27]
    high, low = found["levels"]
    assert low[1] < 0.875 <= high[0] and high[1] == 1
    assert found["kept"] == 2  # latents of each run, about one for each expert
    assert found["verdict"] == ["first", "second"]
    assert found["to itself"] < 2e-3
