"""The proof before a merge, against the host's own loader of LoRAs."""

import pytest
from comfy_process import figures_of

ROUNDING = 1e-5


@pytest.fixture(scope="module")
def cases():
    """What each case found, from one process with ComfyUI."""
    return {found["case"]: found for found in figures_of("proof_checks.py")}


FAMILIES = ["SD1.5", "SDXL", "Wan"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_that_is_read_well_is_proved_with_nothing_said(cases, family):
    """Its change of a bias, which rows do not wear, does not count. Text encoders that it leaves
    alone need no loading.
    """
    found = cases[family]
    assert found["steps"] == [[1, 1]]
    assert found["notes"] == []
    assert max(found["rounded"].values()) < ROUNDING
    assert found["same clip"] == found["same texts"] == (family == "Wan")


def test_block_weights_are_proved_as_the_host_would_apply_them(cases):
    """With layers left out."""
    found = cases["SD1.5 in blocks"]
    assert found["notes"] == []
    assert max(found["rounded"].values()) < ROUNDING


@pytest.mark.parametrize(
    "case",
    [
        "SD1.5 in blocks forgotten",
        "Flux.1 forgotten order",
        "Flux.1 in fp8 forgotten order",
        "Flux.1 forgotten keys",
    ],
)
def test_a_lora_that_is_misread_is_an_error(cases, case):
    """Also where the host rounds."""
    found = cases[case]
    assert found["error"] == "AdapterError"
    assert "ComfyUI's own loader makes another change of it" in found["text"]
    if case == "Flux.1 forgotten keys":
        assert "keys of its file were not read, such as 'transformer.single_" in found["text"]


@pytest.mark.parametrize("case", ["SDXL in old names", "Z-Image in musubi's names"])
def test_names_of_few_trainers_are_read_whole(cases, case):
    found = cases[case]
    assert found["unmatched"] == []
    assert max(found["rounded"].values()) < ROUNDING


def test_a_base_in_fp8_is_noted_and_one_in_16_bits_is_not(cases):
    found = cases["Flux.1 in fp8"]
    assert 0.1 < found["rounded"]["first"] < 0.6
    [note] = found["notes"]
    assert f"first by {found['rounded']['first']:.0%} of its effect" in note
    found = cases["Flux.1 in bf16"]
    assert 1e-4 < found["rounded"]["first"] < 0.05
    assert found["notes"] == []


def test_layers_that_are_computed_from_their_weights_are_named(cases):
    found = cases["Flux.1 uncalled layers"]
    assert found["error"] == "AdapterError"
    assert "does not call 5 of its layers" in found["text"]


def test_keys_for_a_t5_are_left_out_and_the_rest_is_read(cases):
    """Whether the CLIP has one or not."""
    for case in ("Flux.1 with T5", "Qwen-Image untested"):
        found = cases[case]
        assert found["left out"] == 4
        assert found["unmatched"] == []
        assert max(found["rounded"].values()) < ROUNDING


def test_a_class_that_no_row_names_is_tried_and_says_what_fails(cases):
    assert cases["Qwen-Image untested"]["layers"] == 34
    found = cases["Qwen-Image untested, other CLIP"]
    assert found["error"] == "CalibrationError"
    assert "the MODEL fails with RuntimeError" in found["text"]
    assert "ComfyUI's class QwenImage, on which merging was never tested" in found["text"]
