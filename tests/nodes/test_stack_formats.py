"""LoRA stacks in every shape that other nodes make."""

import re

import pytest
from iteris_pack.nodes.loras.names import find_name
from iteris_pack.nodes.loras.stack_formats import read_stack

from iteris_core import IterisError
from iteris_core.files.block_weights import check_spelling

CAT = ("cat.safetensors", 0.8, 0.5)
DOG = ("style/dog.safetensors", -1.0, -1.0)


def read(stack):
    return [(lora.name, lora.strength_model, lora.strength_clip) for lora in read_stack(stack)]


SHAPES = [
    [CAT, DOG],
    [["cat.safetensors", 0.8, 0.5], [DOG[0], -1]],
    (CAT, ("None", 1.0, 1.0), (DOG[0], -1, None)),
    "a photo <lora:cat.safetensors:0.8:0.5> on grass <lora:style/dog.safetensors:-1>, <lora:none:1>",
    ["<lora:cat.safetensors:0.8:0.5>", "<lora:style/dog.safetensors:-1>"],
    [["cat.safetensors", "0.8", "0.5", ""], (DOG[0], "-1")],
]


@pytest.mark.parametrize("stack", SHAPES)
def test_every_shape_in_use_is_read(stack):
    assert read(stack) == [CAT, DOG]


@pytest.mark.parametrize("stack", [["cat", "b/dog"], [["cat"], "b/dog", "None"]])
def test_names_alone_are_used_at_strength_one(stack):
    assert read(stack) == [("cat", 1.0, 1.0), ("b/dog", 1.0, 1.0)]


@pytest.mark.parametrize("stack", [None, [], "", "words only", ["None", "", None]])
def test_an_empty_stack_is_empty(stack):
    assert read(stack) == []


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ([("cat", 1.0), 7], "the stack[1] is 7, a int"),
        (
            [{"lora": "cat", "strength": 1.0}],
            "the stack[0] is {'lora': 'cat', 'strength': 1.0}, a dict",
        ),
        ("<lora:cat:high>", "a strength in '<lora:cat:high>' is 'high', which is not a number"),
        ("<lora:cat:nan>", "a strength in '<lora:cat:nan>' is 'nan', which is not a number"),
        ([("cat", 1.0, float("inf"))], "the stack[0]: 'cat' has the strength inf; write a number"),
        ("<lora:cat:1:stop=20>", "has 'stop=20', but a tag has strengths alone"),
        ("<lora:cat:1:lbw=OUTALL>", "has 'lbw=OUTALL', but a tag has strengths alone"),
    ],
)
def test_what_is_no_stack_is_named(stack, words):
    with pytest.raises(IterisError, match=re.escape(words)):
        read(stack)


def test_block_weights_are_read_if_they_have_names():
    (lora,) = read_stack([("cat", 0.8, 0.5, "MID:0")])
    assert (lora.strength_model, lora.strength_clip, lora.blocks) == (0.8, 0.5, "MID:0")
    for numbers in ("1,0.5", [1.0, 0.5]):
        (lora,) = read_stack([("cat", 0.8, 0.5, numbers)])
        with pytest.raises(IterisError, match=r"have '1'\. Write each as BLOCK:WEIGHT, by name"):
            check_spelling(lora.name, lora.blocks, lora.without)


def test_names_without_folder_or_suffix_find_their_file():
    names = ["cat.safetensors", "style/cat.safetensors", "style\\dog.safetensors", "a .safetensors"]
    for name, file in (
        ("cat", "cat.safetensors"),
        ("style/cat", "style/cat.safetensors"),
        ("dog", "style\\dog.safetensors"),
        ("a", "a .safetensors"),
        ("/models/loras/style/dog.safetensors", "style\\dog.safetensors"),
        # not the shorter end, "cat"
        ("D:\\loras\\style\\cat.safetensors", "style/cat.safetensors"),
    ):
        assert find_name(name, names) == file
    assert find_name("dog", [*names, "dog.safetensors", "x/dog.safetensors"]) == "dog.safetensors"
    for name, said in (
        ("bird", "'bird' is in none of ComfyUI's loras folders"),
        ("style/dig", "did you mean 'style"),
        ("cat", r"'cat' is the name of 2 files: a/cat\.safetensors, b/cat\.safetensors"),
    ):
        files = ["a/cat.safetensors", "b/cat.safetensors", "style/dog.safetensors"]
        with pytest.raises(IterisError, match=said):
            find_name(name, files)
