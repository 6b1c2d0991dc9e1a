"""The proof before a merge, against the host's own loader of LoRAs."""

import pytest
from comfy_process import figures_of

ROUNDING = 1e-5


@pytest.fixture(scope="module")
def cases():
    """What each case found, from one process with ComfyUI."""
    return {found["case"]: found for found in figures_of("proof_checks.py")}


FAMILIES = ["SD1.5", "SDXL", "AuraFlow", "Wan", "Z-Image", "Chroma"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_that_is_read_well_is_proved_with_nothing_said(cases, family):
    """Its change of a bias, which rows do not wear, does not count."""
    found = cases[family]
    assert found["steps"] == [[1, 1]]
    assert found["notes"] == []
    assert max(found["rounded"].values()) < ROUNDING


@pytest.mark.parametrize("family", ["SD1.5", "Flux.1"])
def test_block_weights_are_proved_as_the_host_would_apply_them(cases, family):
    """With layers left out; a loader that knows nothing of them makes another change."""
    found = cases[f"{family} in blocks"]
    assert found["notes"] == []
    assert max(found["rounded"].values()) < ROUNDING
    forgotten = cases[f"{family} in blocks forgotten"]
    assert forgotten["error"] == "AdapterError"
    assert "ComfyUI's own loader makes another change of it" in forgotten["text"]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_encoders_that_a_lora_leaves_alone_need_no_loading(cases, family):
    has_texts = family in ("SD1.5", "SDXL")
    assert cases[family]["same clip"] != has_texts
    assert cases[family]["same texts"] != has_texts


def test_rows_that_wear_something_else_are_an_error_or_told_where_the_host_rounds(cases):
    found = cases["SDXL strong hooks"]
    assert found["error"] == "CalibrationError"
    assert found["text"].startswith("first: its rows do not draw what the model draws")
    assert len(cases["Flux.1 in fp8 strong hooks"]["notes"]) == 1


@pytest.mark.parametrize("model", ["SDXL", "Flux.1 in fp8"])
def test_a_model_that_does_not_carry_what_was_solved_is_not_handed_out(cases, model):
    found = cases[f"{model} strong patches"]
    assert found["error"] == "SolveError"
    assert "does not carry the merged LoRA that was solved" in found["text"]


@pytest.mark.parametrize("case", ["forgotten order", "scaled part"])
@pytest.mark.parametrize("family", ["Flux.1", "SD3.5"])
def test_a_weight_that_is_misread_in_part_is_an_error(cases, family, case):
    found = cases[f"{family} {case}"]
    assert found["error"] == "AdapterError"
    assert found["text"].startswith("first: ComfyUI's own loader makes another change of it")


def test_keys_that_the_host_applies_and_nobody_has_read_are_an_error(cases):
    found = cases["Flux.1 forgotten keys"]
    assert found["error"] == "AdapterError"
    assert found["text"].startswith("first: ComfyUI's own loader makes another change of it")
    assert "keys of its file were not read, such as 'transformer.single_" in found["text"]


@pytest.mark.parametrize(
    "case", ["SDXL in old names", "SD3.5 in old names", "Z-Image in musubi's names"]
)
def test_names_of_few_trainers_are_read_whole(cases, case):
    found = cases[case]
    assert found["unmatched"] == []
    assert max(found["rounded"].values()) < ROUNDING


def test_it_is_so_where_the_host_rounds(cases):
    found = cases["Flux.1 in fp8 forgotten order"]
    assert found["error"] == "AdapterError"
    assert found["text"].startswith("first: ComfyUI's own loader makes another change of it")


@pytest.mark.parametrize("dtype", ["fp8", "fp8 e5m2"])
def test_a_base_in_fp8_is_noted_and_no_error(cases, dtype):
    found = cases[f"Flux.1 in {dtype}"]
    assert 0.1 < found["rounded"]["first"] < 0.6
    [note] = found["notes"]
    assert f"first by {found['rounded']['first']:.0%} of its effect" in note


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_base_in_16_bits_is_no_error(cases, dtype):
    found = cases[f"Flux.1 in {dtype}"]
    assert 1e-4 < found["rounded"]["first"] < 0.05
    assert found["notes"] == []


def test_layers_that_are_computed_from_their_weights_are_named(cases):
    found = cases["Flux.1 uncalled layers"]
    assert found["error"] == "AdapterError"
    assert "does not call 5 of its layers" in found["text"]
