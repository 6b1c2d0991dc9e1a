"""What Compare draws: which prompts, in which ways, and what it refuses before any work."""

import dataclasses
import types

import pytest
import torch
from fake_host import fake_base, use
from iteris_pack.nodes import compare, compare_checks, compare_rows
from iteris_pack.nodes.sockets import MergedLora

from iteris_core import (
    Adapter,
    CalibrationError,
    ConfigError,
    IterisError,
    LowRankDelta,
)
from iteris_core.files.families import FAMILIES

DOG = use("people/dog", ("a photo of a sks dog", "a sks dog runs"), trigger="a sks dog")
CAT = use("cat", ("a photo of a cat on a mat",), trigger="a cat", strength_model=0.8)
INK = use("ink", ("a house, ink style",), trigger="in ink style", kind="style", strength_clip=0.5)


def named(text, uses):
    rows, notes = compare_rows.rows_of(text, uses)
    names = compare_rows.names_of(uses)
    return [(row.prompt, [names[way] for way in row.ways]) for row in rows], [
        note.text for note in notes
    ]


def test_each_lora_has_a_row_of_its_own_ways_below_one_in_which_they_meet():
    """One LoRA meets nobody and is not stacked."""
    rows, taken = named("", [DOG, CAT, INK])
    assert rows == [
        ("a sks dog and a cat, in ink style", ["base model", "stacked", "merged"]),
        ("a photo of a sks dog", ["dog", "stacked", "merged"]),
        ("a photo of a cat on a mat", ["cat 0.8/1", "stacked", "merged"]),
        ("a house, ink style", ["ink 1/0.5", "stacked", "merged"]),
    ]
    assert taken == []
    alone = [("a photo of a sks dog", ["base model", "dog", "merged"])]
    assert named("\n \n", [DOG]) == (alone, [])
    bird = use("bird", ("a bird",))
    assert compare_rows.meeting_of([DOG, CAT, bird]) == "a sks dog, a cat and a bird"


def test_loras_without_prompts_take_no_pictures_from_the_others():
    """As after a preview, which needs none."""
    silent = use("people/silent", ())
    note = "without a prompt of its own: silent. Write one into prompt"
    of_cat = ("a photo of a cat on a mat", ["cat 0.8/1", "stacked", "merged"])
    assert named("", [silent, CAT]) == ([of_cat], [note])
    every = ["base model", "silent", "cat 0.8/1", "stacked", "merged"]
    assert named("a dog", [silent, CAT]) == ([("a dog", every)], [])
    assert named("", [silent]) == ([("", ["base model", "silent", "merged"])], [note])
    assert compare_rows.Row("", ()).label == "without a prompt"


def test_a_merge_beside_a_lora_of_it_repeats_neither_a_subject_nor_a_prompt():
    pair = use("pair", ("a photo of a sks dog", "a cat"), trigger="a sks dog")
    rows, _ = named("", [pair, DOG, CAT])
    assert rows == [
        ("a sks dog and a cat", ["base model", "stacked", "merged"]),
        ("a photo of a sks dog", ["pair", "stacked", "merged"]),
        ("a sks dog runs", ["dog", "stacked", "merged"]),
        ("a photo of a cat on a mat", ["cat 0.8/1", "stacked", "merged"]),
    ]
    rows, _ = named("", [pair, use("dog", ("a sks dog",))])
    assert rows == [
        ("a sks dog", ["base model", "dog", "stacked", "merged"]),
        ("a photo of a sks dog", ["pair", "stacked", "merged"]),
    ]


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("a dog\n\n  <lora:dog:0.8> a cat \n", "<lora:dog:0.8>"),
        ("a dog\nBREAK\na cat", "BREAK"),
        ("a dog\n<lora:dog:0.8>\na cat", "<lora:dog:0.8>"),
    ],
)
def test_each_line_of_the_users_that_is_a_prompt_is_a_row(text, taken):
    every = ["base model", "dog", "cat 0.8/1", "stacked", "merged"]
    said = f"taken out of the prompts: {taken}"
    assert named(text, [DOG, CAT]) == ([("a dog", every), ("a cat", every)], [said])


@pytest.mark.parametrize(
    ("text", "uses", "said"),
    [
        ("<lora:dog:1>", [DOG], "prompt has nothing to draw in it"),
        ("", [], "the merged LoRA brings no prompts"),
        ("a {red|blue} dog", [DOG], r"the prompt 'a {red\|blue} dog' has '{red\|blue}'"),
    ],
)
def test_a_prompt_that_draws_nothing_or_several_things_is_refused(text, uses, said):
    with pytest.raises((ConfigError, CalibrationError), match=said):
        compare_rows.rows_of(text, uses)


@pytest.fixture
def refused(monkeypatch, replace_host):
    """Return what refuses a Compare, node 3 of a workflow, which it is alone in at first."""
    prompt = {"3": {"class_type": "IterISCompare", "inputs": {"merged": ["2", 3]}}}
    replace_host(prompt_sent=lambda: prompt)
    hidden = types.SimpleNamespace(unique_id="3")
    monkeypatch.setattr(compare.Compare, "hidden", hidden, raising=False)
    return compare.Compare.validate_inputs, prompt


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a {red|blue} dog", "would be another prompt each time. Write one prompt a line"),
        (["4", 0], "would be another prompt each time. Write one prompt a line"),
        ("<lora:dog:1>", "nothing to draw"),
        ("a dog", ""),
        ("", ""),  # the LoRAs' own
        (["5", 0], ""),  # nobody knows it yet
    ],
)
def test_the_users_prompts_are_refused_before_the_merge(refused, text, said):
    refused, prompt = refused
    prompt["2"] = {"class_type": "IterISMerge", "inputs": {}}
    prompt["3"]["inputs"]["prompt"] = text
    prompt["4"] = {"class_type": "PrimitiveString", "inputs": {"value": "a {red|blue} dog"}}
    prompt["5"] = {"class_type": "Wildcards", "inputs": {}}
    found = refused()
    assert said in found if said else found is True
    assert bool(compare_checks.refusal_for(prompt, "2")) == bool(said)
    assert not compare_checks.refusal_for(prompt, "other")


@pytest.mark.parametrize(
    ("model", "clip", "said"),
    [
        (None, None, ""),
        (["1", 0], ["1", 1], ""),
        (["2", 0], ["1", 1], "model comes from the merge"),
        (["1", 0], ["4", 1], "clip comes from the merge"),
    ],
)
def test_a_compare_of_a_merge_with_itself_stops_the_merge(refused, model, clip, said):
    refused, prompt = refused
    prompt |= {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
        "2": {"class_type": "IterISMerge", "inputs": {"model": ["1", 0], "clip": ["1", 1]}},
        "3": {
            "class_type": "IterISCompare",
            "inputs": {"merged": ["2", 3], **({"model": model, "clip": clip} if model else {})},
        },
        "4": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["2", 1]}},
    }
    found = refused()
    assert found.startswith(said) if said else found is True
    assert bool(compare_checks.refusal_for(prompt, "2")) == bool(said)
    prompt["5"] = {"class_type": "Switch", "inputs": {"any_01": ["2", 3]}}
    prompt["3"]["inputs"]["merged"] = ["5", 0]
    assert compare_checks.merge_of(prompt, "3") == "2", "through a node that hands it on"
    assert not compare_checks.refusal_for(prompt, "other")


@pytest.mark.parametrize(
    ("recipe", "side"),
    [
        ('{"calibration": {"resolution": 128}}', 128),
        ('{"calibration": {"resolution": 768}}', 1024),  # as SDXL is measured by itself
        ("{}", 1024),
    ],
)
def test_pictures_are_of_the_size_that_the_merge_was_set_to_be_measured_at(merged, recipe, side):
    merged = dataclasses.replace(merged, recipe=recipe)
    assert compare.side_of(merged, FAMILIES["SDXL"]) == side


@pytest.fixture
def merged(keys):
    delta = LowRankDelta(torch.ones(6, 1), torch.ones(1, 4))
    return MergedLora(Adapter("merged", {"diffusion_model.mid.q": delta}), fake_base(keys), "{}")


def test_a_comparison_says_by_what_it_was_drawn(replace_host):
    names = ["b_ckpt.safetensors", "x/a_ckpt.safetensors", "cat", "b_ckpt.safetensors"]
    replace_host(
        find_model=lambda name: name if "ckpt" in name else None,
    )
    assert compare.base_name(names, "SDXL") == "b_ckpt + a_ckpt"
    assert compare.base_name([], "SDXL") == "SDXL"


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (
            lambda: compare_checks.check_side("width", 500),
            "width is 500; it must be a multiple of 16",
        ),
        (
            lambda: compare_checks.check_side("height", 24),
            "height is 24; it must be a multiple of 16",
        ),
        (
            lambda: compare_rows.check_pictures(
                compare_rows.rows_of("a dog\n" * 81, [DOG, CAT])[0]
            ),
            "81 prompts make 405 pictures, and at most 400 are drawn",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(check, said):
    with pytest.raises(ConfigError, match=said):
        check()


def test_a_model_of_another_family_is_refused(merged):
    def base(family):
        return types.SimpleNamespace(family=types.SimpleNamespace(name=family))

    compare_checks.check_base(base("SD1.5"), merged)
    with pytest.raises(IterisError, match=r"the MODEL is SDXL, and the merged LoRA is for SD1\.5"):
        compare_checks.check_base(base("SDXL"), merged)


def test_the_model_of_the_merge_is_drawn_with_but_for_what_is_connected(merged, replace_host):
    replace_host(ComfyModel=lambda *given: given)
    base = types.SimpleNamespace(given=("own model", "own clip"))
    merged = dataclasses.replace(merged, base=base)
    assert compare.base_of(merged, {}) is base
    assert compare.base_of(merged, {"model": "another"}) == ("another", "own clip")
    assert compare.base_of(merged, {"clip": None}) == ("own model", None), "a loader without a CLIP"


@pytest.mark.parametrize(
    ("measured", "told"), [(6, "cfg 4 (merge: 6)"), (4, "cfg 4"), (0, "cfg 4")]
)
def test_a_cfg_that_is_not_that_of_the_merge_is_told(measured, told):
    """A preview has measured at none."""
    sides = {"width": 64, "height": 64, "sampler": "euler", "scheduler": "simple"}
    how = types.SimpleNamespace(**sides, seed=7, steps=2, cfg=4.0)
    assert compare.how_in_words(how, measured)[2] == told
