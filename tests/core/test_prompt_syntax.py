"""What is taken out of prompts that were pasted from elsewhere, and what is refused."""

import time

import pytest
from fake_host import use

from iteris_core import CalibrationError
from iteris_core.diffusion.loaded_loras import load_each_once, with_plain_prompts
from iteris_core.diffusion.prompts import plain_prompts

PASTED = [  # prompt, what stays, what is taken out
    ("a photo of (sks dog:1.3) [red]", "a photo of (sks dog:1.3) [red]", ()),
    ("sks dog <lora:sks_dog:0.8>", "sks dog", ("<lora:sks_dog:0.8>",)),
    ("<lora:a:1>, sks dog, <LYCO:b:.5:.2>, 4k", "sks dog, 4k", ("<lora:a:1>", "<LYCO:b:.5:.2>")),
    ("sks dog BREAK on a beach", "sks dog , on a beach", ("BREAK",)),
    ("a , \u3000, BREAK\n ,b", "a, b", ("BREAK",)),
    ("a sks dog AND a cat", "a sks dog , a cat", ("AND",)),
    ("SKS DOG AND CAT", "SKS DOG AND CAT", ()),
    ("an android breaks and bends", "an android breaks and bends", ()),
    ("in a {trigger} place_a__b", "in a {trigger} place_a__b", ()),
    ("a <sks> dog < lora", "a <sks> dog < lora", ()),
]


def test_tags_and_cuts_are_taken_out_and_words_stay():
    for prompt, text, taken in PASTED:
        assert plain_prompts("a", [prompt]) == ((text,), taken)
    found = plain_prompts("a", ["a sks dog", "BREAK", "on a beach"])
    assert found == (("a sks dog", "on a beach"), ("BREAK",))
    assert plain_prompts("a", ["<lora:x:1>"])[0] == ("",)


@pytest.mark.parametrize(
    ("prompt", "sign"),
    [
        ("a {red|blue} sks dog", "{red|blue}"),
        ("a sks dog in __place__", "__place__"),
        ("__animals/dog__, 4k", "__animals/dog__"),
        ("a {red | {dark|light} blue} sks dog", "{dark|light}"),
    ],
)
def test_what_has_several_readings_is_refused(prompt, sign):
    with pytest.raises(CalibrationError) as refused:
        plain_prompts("a", ["a sks dog", prompt])
    assert repr(prompt) in str(refused.value)
    assert repr(sign) in str(refused.value)
    assert str(refused.value).endswith("Write one prompt a line")


def test_each_lora_has_a_note_of_its_own(host):
    uses = [use("a", ["x <lora:b:1>", "y BREAK <lora:b:1>"]), use("b"), use("c", ["z <lora:c:1>"])]
    _, notes = with_plain_prompts(uses)
    assert [note.text for note in notes] == [
        "a: taken out of its prompts: <lora:b:1>, BREAK",
        "c: taken out of its prompts: <lora:c:1>",
    ]
    adapter = host.lora("a").adapter
    loras, notes = load_each_once([use("a", ["x <lora:b:1>"])], lambda use: adapter)
    assert loras[0].use.prompts == ("x",)
    assert [note.kind for note in notes] == ["prompts"]


def test_blanks_are_read_in_linear_time():
    """990 prompts of 4,000 characters, as many as a recipe holds, once took 52 s."""
    for blank in ("\u3000", " ", "\t\u3000"):
        prompt = "<lora:a:1>a," + blank * (3_980 // len(blank)) + "b"
        begun = time.thread_time()
        assert plain_prompts("a", [prompt] * 300)[0][0].startswith("a,")
        assert time.thread_time() - begun < 2
