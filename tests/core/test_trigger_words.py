"""Trigger words from a file's metadata, and the prompts that are made of them."""

import json

import pytest

from iteris_core import CalibrationError
from iteris_core.files.trigger_words import (
    TEMPLATES,
    TriggerWords,
    default_prompts,
    fill_in,
    trigger_words,
)

TAGS = json.dumps({"10_sks dog": {"sks dog": 12, "grass": 3, "smile": 7}, "1_img": {"grass": 9}})


def of_tags(**folders):
    return {"ss_tag_frequency": json.dumps(folders)}


PHRASE, BY_TAGS = "modelspec.trigger_phrase", "ss_tag_frequency"
FOUND = [  # metadata, source, trigger words, all words
    ({PHRASE: " sks ", BY_TAGS: TAGS}, PHRASE, "sks", "sks|sks dog|grass|smile"),
    ({PHRASE: ", .", **of_tags(x={"!?": 3, "-": 2, "🐱": 1})}, BY_TAGS, "🐱", "🐱"),
    ({PHRASE: "None", **of_tags(x={"none": 2, "ohwx": 1})}, BY_TAGS, "ohwx", "ohwx"),
    ({BY_TAGS: TAGS}, BY_TAGS, "sks dog", "sks dog|grass|smile"),
    (of_tags(**{"5_images": {"b": 1, "a": 4}}), BY_TAGS, "a", "a|b"),
    (of_tags(**{"10_train images": {"b": 1, "a": 4}}), BY_TAGS, "a", "a|b"),
    (of_tags(**{"5_sks dog": {}, "2_img": {}}), BY_TAGS, "sks dog", "sks dog"),
    (of_tags(**{"10_sks dog": {"1girl": 20}}), BY_TAGS, "sks dog", "sks dog|1girl"),
    (of_tags(**{"1_ohwx": {"of ohwx": 1, "grass": 20}}), BY_TAGS, "ohwx", "ohwx|grass|of ohwx"),
    ({BY_TAGS: "not json"}, "", "", ""),
    ({BY_TAGS: '{"x": {"a": Infinity}}'}, "", "", ""),
    ({PHRASE: " ", **of_tags(x={"a": "many"})}, "", "", ""),
    ({}, "", "", ""),
]


def test_the_author_is_believed_before_the_captions():
    for metadata, *expected in FOUND:
        found = trigger_words(metadata)
        assert [found.source, "|".join(found.triggers), "|".join(found.words)] == expected


def test_all_words_that_are_stated_are_told_and_few_tags():
    tags = of_tags(x={f"tag {number}": 99 - number for number in range(30)})
    assert len(trigger_words(tags).words) == 8
    stated = [f"word {number}" for number in range(25)]
    assert trigger_words(tags, ("x.civitai.info", stated)).words == tuple(stated)
    many = [f"{number} {'w' * 1000}" for number in range(900)]
    assert 10 < len(trigger_words({}, ("x.civitai.info", many)).words) < 20


def test_a_merge_is_measured_on_the_prompts_of_each_of_its_loras():
    def lora(kind, words, prompts, strength=1.0, called=""):
        strengths = {"strength_model": strength, "strength_clip": 0.0}
        return strengths | {
            "kind": kind,
            "trigger_words": words,
            "prompts": prompts,
            "trigger": called,
        }

    loras = [
        lora("style", ["in ink"], ["a landscape, in ink", "in ink"]),
        lora("subject", [], ["my dog in the snow"], called="my dog"),
        lora("subject", ["ohwx man"], ["ohwx man"], strength=0.0),
    ]
    of_recipe = {PHRASE: "in ink, my dog", "iteris.recipe": json.dumps({"loras": loras})}
    found = trigger_words(of_recipe)
    assert (found.triggers, found.kind) == (("in ink", "my dog"), "subject")
    prompts = ("a landscape, in ink", "in ink", "my dog in the snow")
    for kind in TEMPLATES:
        assert fill_in("x", [], found, kind) == default_prompts(found, kind) == prompts
    assert fill_in("x", ["a {trigger}"], found, "style") == ("a in ink", "a my dog")
    assert trigger_words({"iteris.recipe": json.dumps({"loras": loras[:1]})}).kind == "style"
    unnamed = trigger_words({"iteris.recipe": json.dumps({"loras": [lora("style", [], ["b"])]})})
    assert fill_in("x", [], unnamed, "style") == ("b",)
    edited = trigger_words(of_recipe, ("x.metadata.json", ("ohwx",)))
    assert (edited.triggers, edited.prompts) == (("ohwx",), ())
    for other in ("no JSON", "[]", '{"loras": 1}', '{"loras": [1]}', '{"loras": [{}]}'):
        assert trigger_words(of_recipe | {"iteris.recipe": other}).triggers == ("in ink, my dog",)


def test_no_prompts_are_filled_from_templates_and_the_training_caption():
    found = trigger_words({"ss_tag_frequency": TAGS})
    for kind, templates in TEMPLATES.items():
        filled = (t.replace("{trigger}", "sks dog") for t in templates)
        assert default_prompts(found, kind) == (*filled, "sks dog, grass, smile")
        assert default_prompts(TriggerWords(), kind) == ()
    ink = TriggerWords(triggers=("in ink style",))
    assert default_prompts(ink, "style")[0] == "a landscape, in ink style"


def test_the_users_templates_are_filled_and_the_users_prompts_are_kept():
    found = trigger_words({}, ("x.civitai.info", ("one", "two")))
    assert fill_in("x", ["a drawing of {trigger}", "plain"], found, "subject") == (
        "a drawing of one",
        "plain",
        "a drawing of two",
    )
    assert fill_in("x", ["my own words"], TriggerWords(), "style") == ("my own words",)


def test_a_file_that_names_no_trigger_words_says_what_to_type():
    said = r"cat\.safetensors has \{trigger\} in a prompt, and .*Write them in its place"
    with pytest.raises(CalibrationError, match=said):
        fill_in("cat.safetensors", ["a {trigger}"], TriggerWords(), "subject")
    assert fill_in("cat", [], TriggerWords(), "subject") == ()
    with pytest.raises(CalibrationError, match=r"cat: the prompt ', \.' has no words in it"):
        fill_in("cat", ["a cat", ", ."], TriggerWords(), "subject")
