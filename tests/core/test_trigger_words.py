"""Trigger words from a file's metadata, and the prompts that are made of them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from iteris_core import CalibrationError
from iteris_core.errors import AdapterError
from iteris_core.files.trigger_words import (
    TEMPLATES,
    TriggerWords,
    default_prompts,
    fill_in,
    lora_header,
    trigger_words,
)

TAGS = json.dumps({"10_sks dog": {"sks dog": 12, "grass": 3, "smile": 7}, "1_img": {"grass": 9}})


@pytest.mark.parametrize(
    ("metadata", "source", "triggers", "words"),
    [
        (
            {
                "modelspec.trigger_phrase": " sks ",
                "trained_words": '["a"]',
                "ss_tag_frequency": TAGS,
            },
            "modelspec.trigger_phrase",
            ("sks",),
            ("sks", "a", "sks dog", "grass", "smile"),
        ),
        (
            {"trained_words": '["ohwx man", "red coat"]'},
            "trained_words",
            ("ohwx man", "red coat"),
            ("ohwx man", "red coat"),
        ),
        (
            {"trainedWords": "ohwx, , red coat,"},
            "trained_words",
            ("ohwx", "red coat"),
            ("ohwx", "red coat"),
        ),
        (
            {"ss_tag_frequency": TAGS},
            "ss_tag_frequency",
            ("sks dog",),
            ("sks dog", "grass", "smile"),
        ),
        (
            {"ss_tag_frequency": json.dumps({"5_images": {"b": 1, "a": 4}})},
            "ss_tag_frequency",
            ("a",),
            ("a", "b"),
        ),
        (
            {"ss_tag_frequency": json.dumps({"5_dog": {"b": 1, "a": 4}})},
            "ss_tag_frequency",
            ("a",),
            ("a", "b"),
        ),
        (
            {"ss_tag_frequency": json.dumps({"5_sks dog": {}, "2_img": {}})},
            "ss_tag_frequency",
            ("sks dog",),
            ("sks dog",),
        ),
        ({"ss_tag_frequency": "not json"}, "", (), ()),
        (
            {"ss_tag_frequency": json.dumps({"x": {"a": "many"}}), "modelspec.trigger_phrase": " "},
            "",
            (),
            (),
        ),
        (
            {"ss_tag_frequency": json.dumps({"10_sks dog": {"1girl": 20, "smile": 3}})},
            "ss_tag_frequency",
            ("sks dog",),
            ("sks dog", "1girl", "smile"),
        ),
        (
            {"ss_tag_frequency": json.dumps({"10_ohwx": {"a photo of ohwx": 1, "grass": 20}})},
            "ss_tag_frequency",
            ("ohwx",),
            ("ohwx", "grass", "a photo of ohwx"),
        ),
        (
            {"ss_tag_frequency": json.dumps({"10_train images": {"b": 1, "a": 4}})},
            "ss_tag_frequency",
            ("a",),
            ("a", "b"),
        ),
        ({"ss_tag_frequency": '{"x": {"a": Infinity}}'}, "", (), ()),
        (
            {"modelspec.trigger_phrase": "None", "trained_words": '["none", "ohwx"]'},
            "trained_words",
            ("ohwx",),
            ("ohwx",),
        ),
        ({}, "", (), ()),
    ],
)
def test_the_author_is_believed_before_the_captions(metadata, source, triggers, words):
    found = trigger_words(metadata)
    assert (found.source, found.triggers, found.words) == (source, triggers, words)


def test_no_prompts_are_filled_from_templates_and_the_training_caption():
    prompts = default_prompts(trigger_words({"ss_tag_frequency": TAGS}))
    assert prompts == (
        *(t.replace("{trigger}", "sks dog") for t in TEMPLATES),
        "sks dog, grass, smile",
    )
    assert default_prompts(TriggerWords()) == ()


def test_the_users_templates_are_filled_and_the_users_prompts_are_kept():
    found = trigger_words({"trained_words": '["one", "two"]'})
    assert fill_in("x", ["a drawing of {trigger}", "plain"], found) == (
        "a drawing of one",
        "plain",
        "a drawing of two",
    )
    assert fill_in("x", ["my own words"], TriggerWords()) == ("my own words",)


@pytest.mark.parametrize(
    ("prompts", "why"), [([], "has no prompts"), (["a {trigger}"], r"has \{trigger\} in a prompt")]
)
def test_a_file_that_names_no_trigger_words_says_what_to_type(prompts, why):
    with pytest.raises(
        CalibrationError, match=rf"cat\.safetensors {why}, and .*such as 'a photo of sks dog'"
    ):
        fill_in("cat.safetensors", prompts, TriggerWords())


def test_a_header_tells_rank_and_base_without_the_tensors(tmp_path):
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file(
        {
            f"{base}.lora_down.weight": torch.zeros(6, 768),
            f"{base}.lora_up.weight": torch.zeros(320, 6),
        },
        tmp_path / "a.safetensors",
        {"modelspec.trigger_phrase": "sks", "ss_base_model_version": "sd_v1"},
    )
    header = lora_header(tmp_path / "a.safetensors")
    assert (header.rank, header.base, header.triggers.triggers) == (6, "SD1.5 (sd_v1)", ("sks",))
    (tmp_path / "b.safetensors").write_bytes(b"\x80\x02}q\x00." + bytes(64))
    with pytest.raises(AdapterError, match="pickle"):
        lora_header(tmp_path / "b.safetensors")
