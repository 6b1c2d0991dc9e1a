"""Every family of models that can be merged, on tiny models of the host's own classes: SDXL and the
transformers as well as SD1.5.
"""

import pytest
from comfy_process import figures_of

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
    "Wan": 26,
}
ROUNDING = 1e-5
# Measured: 2e-4 to 8e-3, by processor (5e-3, 8e-3 and 1e-3 on an AMD EPYC for the last three). The tiny models show few tokens, so their statistics are nearly singular,
# and float32 is what is left. Modulations read one token a row, and Chroma's same few everywhere.
TO_ITSELF = dict.fromkeys(LAYERS, 1e-3) | {
    "Chroma": 3e-3,
    "Flux.2": 1e-2,
    "AuraFlow": 1.5e-2,
    "Wan": 2e-3,
}


@pytest.fixture(scope="module")
def figures():
    """Figures of each family, from one process with ComfyUI."""
    return {found["family"]: found for found in figures_of("family_checks.py", *LAYERS)}


@pytest.fixture(params=LAYERS)
def family(request, figures):
    found = figures[request.param]
    assert "failed" not in found, found["failed"]
    return found


def name_of(family):
    return family["family"].removesuffix(" v-prediction")


def test_every_layer_is_read_and_measured_once(family):
    assert family["layers"] == LAYERS[family["family"]]


def test_one_change_in_the_spellings_of_kohya_diffusers_and_peft_is_one_adapter(family):
    assert family["spellings"] == {"kohya": 0, "peft": 0}
    beginnings = family["beginnings"]
    assert all(beginning.startswith("lora_") for beginning in beginnings["kohya"])
    assert all(beginning.startswith("base_model.model.") for beginning in beginnings["peft"])
    assert set(beginnings["diffusers"]).isdisjoint({*beginnings["kohya"], *beginnings["peft"]})


def test_what_rows_hold_is_counted_at_every_layer_of_the_denoiser(family):
    assert 0 < family["held"][0] < family["held"][1]


def test_a_card_is_shared_out_between_calls_sums_and_waiting_rows(family):
    large, none = family["rooms"]
    assert large["samples_per_chunk"] == 8 and large["missing"] == 0
    assert large["required"] < large["waiting_bytes"] < 0.8 * 2**40
    assert (none["samples_per_chunk"], none["waiting_bytes"]) == (1, 0)
    # two samples in a call, and the sums of a layer
    assert 0 < none["missing"] < none["required"] < 2 * none["missing"]


def test_rows_that_wear_a_lora_do_what_the_hosts_own_loader_makes_the_model_do(family):
    assert family["stock"] < ROUNDING


def test_one_lora_merges_to_itself(family):
    assert family["to itself"] < TO_ITSELF[family["family"]]


@pytest.mark.parametrize("name", ["SDXL", "Z-Image"])
def test_it_does_so_without_guidance_on_a_model_that_carries_a_turbo_lora(figures, name):
    assert figures[name]["on turbo"] < TO_ITSELF[name]


def test_the_saved_file_does_through_the_hosts_loader_what_the_merged_rows_do(family):
    assert family["file"] < ROUNDING
    assert family["patched"] < ROUNDING
    assert family["read again"] < ROUNDING


def test_the_file_names_its_base(family):
    metadata = family["metadata"]
    expected = FAMILIES[name_of(family)]
    assert metadata["ss_base_model_version"] == expected.base_version
    architecture = metadata.get("modelspec.architecture", "")
    assert architecture == (expected.architecture and f"{expected.architecture}/lora")


def test_the_file_names_what_its_base_predicts(family):
    expected = {"SD1.5": "epsilon", "SDXL": "epsilon", "SDXL v-prediction": "v"}
    assert family["predicts"] == expected.get(family["family"])


def test_a_node_can_say_what_the_base_predicts(figures):
    """NoobAI's files without a marker are used so."""
    assert figures["SDXL"]["predicts by a node"] == "v"


def test_two_loras_are_merged_and_checked_on_unseen_prompts(family):
    assert family["kinds"] == ["own", "own", "together", "together", "base"]
    # 1 is the error of doing nothing. One LoRA of a random model may be above it with so few runs.
    own = family["errors"][:2]
    assert min(own) > 0
    assert sum(own) / len(own) < 0.95


def test_sampling_runs_are_those_of_the_hosts_own_sampler(family):
    # our first step is a call of one row, and the host's of two, which rounds otherwise
    assert family["sampling"] < ROUNDING


def test_nothing_is_left_on_the_model(family):
    assert family["unchanged"] == 0
