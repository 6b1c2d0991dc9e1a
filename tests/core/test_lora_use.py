"""A LoRA as its user wants it: each once, under a name of its own, with its trigger words."""

from dataclasses import replace

import pytest
import torch
from fake_host import use

from iteris_core import Adapter, AdapterError, CalibrationError, ConfigError, LowRankDelta
from iteris_core.diffusion.loaded_loras import each_once, load_each_once
from iteris_core.diffusion.lora_use import check_prompts, with_prompts
from iteris_core.diffusion.prompts import subject_in
from iteris_core.diffusion.row_uses import likely_kind
from iteris_core.files.trigger_words import TriggerWords

TRIGGERS = TriggerWords(("sks cat",), ("sks cat",), "modelspec.trigger_phrase")


def test_one_content_is_one_lora_at_the_sum_of_the_strengths():
    """One that is off adds neither prompts nor weight."""
    half = {"strength_model": 0.5, "strength_clip": 0.25, "prompts_from": "trained_words"}
    as_style = {"strength_clip": 0.5, "weight": 2.0, "trigger": "a cat", "kind": "style"}
    off = {"strength_model": 0.0, "strength_clip": 0.0, "weight": 9.0}
    uses = [use("cat", ("a", "b"), sha256="1", **half), use("dog", ("d",), sha256="2")]
    uses.append(use("copy of cat", ("b", "c"), sha256="1", **as_style))
    uses.append(use("cat", ("off",), sha256="1", **off))
    cat, dog = each_once(uses)[0]
    assert (cat.name, cat.strength_model, cat.strength_clip) == ("cat", 1.5, 0.75)
    assert cat.prompts == ("a", "b", "c")
    assert (cat.weight, cat.prompts_from, cat.trigger, cat.kind) == (2.0, "", "a cat", "style")
    assert dog.strength_model == 1.0


def test_loras_whose_files_are_not_read_yet_are_not_one():
    once, notes = each_once([use("cat", sha256=""), use("dog", sha256="")])
    assert [one.name for one in once] == ["cat", "dog"] and notes == []


def test_loras_of_one_name_are_numbered_and_so_are_their_adapters():
    delta = LowRankDelta(torch.ones(2, 1), torch.ones(1, 2))
    uses = [use("cat", sha256="1"), use("dog", sha256="2"), use("cat", sha256="3")]
    loras, notes = load_each_once(uses, lambda lora: Adapter("file", {lora.sha256: delta}))
    names = ["cat (1)", "dog", "cat (3)"]
    assert [lora.use.name for lora in loras] == names
    assert [lora.adapter.name for lora in loras] == names
    assert [list(lora.adapter.deltas) for lora in loras] == [["1"], ["2"], ["3"]]
    assert notes == []


def test_a_lora_that_another_tool_merged_has_the_names_of_its_own_alone():
    delta = LowRankDelta(torch.ones(2, 1), torch.ones(1, 2))
    metadata = {"modelspec.merged_from": "cat, dog"}
    loras, notes = load_each_once(
        [use("x", sha256="1"), use("cat", sha256="2")],
        lambda lora: Adapter("x", {"x": delta}, metadata=metadata),
    )
    assert len(loras) == 2 and notes == []


def test_all_files_that_cannot_be_read_are_told_at_once():
    def read(lora):
        raise AdapterError(f"{lora.name}: damaged")

    with pytest.raises(AdapterError, match=r"^cat: damaged\. dog: damaged$"):
        load_each_once([use("cat", sha256="1"), use("dog", sha256="2")], read)


def test_trigger_words_are_filled_in_and_it_is_remembered_where_they_come_from():
    asked = use("cat", ("a photo of {trigger}", "a cat"), file="cat.safetensors")
    filled = with_prompts(asked, TRIGGERS)
    assert filled.prompts == ("a photo of sks cat", "a cat")
    assert filled.prompts_from == "modelspec.trigger_phrase"
    assert filled.trigger_words == ("sks cat",)
    written = use("cat", ("a cat",))
    assert with_prompts(written, TRIGGERS) == replace(written, trigger_words=("sks cat",))


def test_a_lora_without_strength_needs_no_prompts():
    idle = use("cat", (), strength_model=0.0, strength_clip=0.0)
    assert with_prompts(idle, TriggerWords()) is idle
    check_prompts([idle, use("dog", ("a dog",))])
    bare = with_prompts(use("cat", (), strength_model=0.0, strength_clip=0.1), TriggerWords())
    with pytest.raises(CalibrationError, match=r"^cat has no prompts"):
        check_prompts([idle, bare])


def test_a_name_that_waits_for_trigger_words_is_not_measured_with():
    drawn = use("ink", ("a house, ink",), trigger="in {trigger} style", kind="style")
    assert drawn.called == "a house, ink", "as if it had no name"
    said = r"^ink is called 'in \{trigger\} style', .* such as 'in zwx style'\. Or wait$"
    with pytest.raises(CalibrationError, match=said):
        check_prompts([drawn], "wait")
    check_prompts([replace(drawn, strength_model=0.0, strength_clip=0.0)])


@pytest.mark.parametrize("trigger", [", ,", "...", " "])
def test_a_name_without_words_is_refused(trigger):
    with pytest.raises(ConfigError, match=r"cat is called .* which has no words in it"):
        use("cat", trigger=trigger)


SUBJECTS = {  # prompt -> the phrase with "sks" in it
    "a photo of sks dog on the beach, best quality": "sks dog",
    "masterpiece, best quality, a SKS dog, 4k": "a SKS dog",
    "a portrait of a tall sks woman wearing a red hat": "a tall sks woman",
    "a cup next to a sks dog and a tree": "a sks dog",
    "(sks dog:1.2), night": "sks dog",
    "sks": "sks",
    "sks dog with built-in wings": "sks dog",
    "a photo of skso in the rain": "skso in the rain",  # another word
    "A photograph of a dog in the rain": "a dog in the rain",
    "the hat  of  a sks dog  on  grass": "a sks dog",
    "best ,  , a sks dog": "a sks dog",
    # the name of a learned token stays whole
    "a photo of embedding:sks dog on the beach": "embedding:sks dog",
    "best quality, a embedding:sks, 4k": "a embedding:sks",
    "note: a sks dog": "a sks dog",
}


def test_the_subject_of_a_prompt_is_the_phrase_with_the_trigger_word():
    assert {prompt: subject_in(prompt, ("ohwx", "sks")) for prompt in SUBJECTS} == SUBJECTS
    learned = "embedding:sks-in-ink.v2 dog"
    assert subject_in(f"{learned}, 4k", ("sks-in-ink.v2",)) == learned


def test_a_prompt_has_the_subject_by_which_its_lora_is_called():
    lora = use("a", ("a sks dog", "a photo of the sks dog at home", "a photo of a fox at home"))
    assert [lora.subject_of(prompt) for prompt in lora.prompts] == [
        "a sks dog",
        "a sks dog",
        "a fox at home",
    ]
    prompt = "a photo of a cat in ink style, night"
    style = use("a", (prompt,), trigger="in ink style", kind="style")  # has no subject of its own
    assert style.subject_of(prompt) == "a cat in ink style, night"


@pytest.mark.parametrize(
    ("file", "words", "kind"),
    [
        ("ink.safetensors", ("in ink style",), "style"),
        ("a_style_of_cats", ("cat",), "style"),
        ("InkArtstyle", (), None),  # one word
        ("sks_dog_v2", (), "subject"),
        ("v2", ("ohwx woman",), "subject"),
        ("watercolour", ("wtrcl",), "style"),
        ("qpr_blueprint", ("qpr blueprint",), "style"),
        ("xyz", ("xyz", "cat", "drawing"), None),  # what is on its pictures besides
        ("lifestyles", ("1girl",), None),
        ("xyz", ("xyz", *"abcdefg", "gothic style"), None),
    ],
)
def test_a_kind_is_guessed_from_the_name_and_the_words(file, words, kind):
    assert likely_kind(file, TriggerWords(words, words[:1])) == kind
