"""LoRA stacks in every shape that other nodes make."""

import re

import pytest
from iteris_pack.nodes.loras.names import find_name
from iteris_pack.nodes.loras.stack_formats import prompts_by_name, read_stack

from iteris_core import IterisError

CAT = ("cat.safetensors", 0.8, 0.5)
DOG = ("style/dog.safetensors", -1.0, -1.0)


def read(stack):
    return [(lora.name, lora.strength_model, lora.strength_clip) for lora in read_stack(stack)]


SIMPLE = {"lora_name": "cat.safetensors", "strength_model": "0.8", "strength_clip": 0.5}
EASY = {"name": DOG[0], "model_strength": -1.0, "clip_strength": -1.0, "enabled": True}
LONG = {"file_name": "cat.safetensors", "model_weight": 0.8, "clip_weight": 0.5}
POWER = {"lora": "cat.safetensors", "strength": 0.8, "strengthTwo": 0.5, "on": True}
SHORT = {"name": DOG[0], "strength": -1}
OTHER = {"lora": "cat.safetensors", "strength": 0.8, "strength_clip": 0.5}
SWITCHED_OFF = [
    {"lora": "x", "on": 0},
    {"lora": "x", "enabled": "off"},
    {"lora": "x", "active": "False"},
]
NO_NAME = [{"name": None, "strength": 1}, {"lora": "None"}, {"lora_name": ""}]
SHAPES = [
    [CAT, DOG],
    [["cat.safetensors", 0.8, 0.5], [DOG[0], -1]],
    (CAT, ("None", 1.0, 1.0), (DOG[0], -1, None)),
    [POWER, {"lora": DOG[0], "strength": -1.0, "strengthTwo": None}, {**POWER, "on": False}],
    {"lora_1": SIMPLE, "mode": "simple", "lora_2": EASY},
    {"loras": [LONG, [DOG[0], -1.0]]},
    "a photo <lora:cat.safetensors:0.8:0.5> on grass <lora:style/dog.safetensors:-1>, <lora:none:1>",
    ["<lora:cat.safetensors:0.8:0.5>", "<lora:style/dog.safetensors:-1>"],
    [["cat.safetensors", "0.8", "0.5", ""], (DOG[0], "-1")],
    [{**OTHER, "on": 1, "lbw": ""}, SHORT, *NO_NAME, *SWITCHED_OFF],
    {"name": "my stack", "loras": [CAT, (None, 1.0, 1.0), (DOG[0], -1.0)]},
    [
        {"name": "off", "enabled": False, "loras": [("x", 1.0, 1.0)]},
        {"stack": {"a": OTHER}},
        {"lora": SHORT},
    ],
]


@pytest.mark.parametrize("stack", SHAPES)
def test_every_shape_in_use_is_read(stack):
    assert read(stack) == [CAT, DOG]


@pytest.mark.parametrize(
    "stack", [["cat", "b/dog"], [["cat"], "b/dog", "None"], {"loras": ["cat", {"lora": "b/dog"}]}]
)
def test_names_alone_are_used_at_strength_one(stack):
    assert read(stack) == [("cat", 1.0, 1.0), ("b/dog", 1.0, 1.0)]


@pytest.mark.parametrize(
    "stack", [None, [], "", "words only", {}, [{"lora": "x", "active": False}], ["None", "", None]]
)
def test_an_empty_stack_is_empty(stack):
    assert read(stack) == []


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ([("cat", 1.0), 7], "the stack[1] is 7, a int"),
        ([{"model": "cat", "power": 2}], "has 'model', 'power', and none of the names"),
        ([{"lora": "cat", "strength": "much"}], "the stack[0] has the strength 'much', which is"),
        ("<lora:cat:high>", "a strength in '<lora:cat:high>' is 'high', which is not a number"),
        ("<lora:cat:nan>", "a strength in '<lora:cat:nan>' is 'nan', which is not a number"),
        ([("cat", 1.0, float("inf"))], "the stack[0]: 'cat' has the strength inf; write a number"),
        ([{"lora": "cat", "strength": "NaN"}], "the stack[0]: 'cat' has the strength nan; write a"),
        ([{"lora": "cat", "lbw": ["x"]}], "the stack[0] has the strength 'x', which is not a"),
        ("<lora:cat:1:lbw=OUTALL:stop=20>", "has 'stop=20', which a merged LoRA cannot have"),
        ("<lora:cat:1:lbwe=ATTNDEEPON>", "has 'lbwe=ATTNDEEPON', which a merged LoRA cannot"),
    ],
)
def test_what_is_no_stack_is_named(stack, words):
    with pytest.raises(IterisError, match=re.escape(words)):
        read(stack)


NUMBERS = ",".join(["1", *["0.5"] * 16])


@pytest.mark.parametrize(
    ("stack", "blocks"),
    [
        ("<lora:cat:0.8:0.5:lbw=OUTALL>", "OUTALL"),
        ("<lora:cat:0.8:0.5:OUTALL>", "OUTALL"),
        ("<lora:cat:unet=0.8:te=0.5:w=OUTALL>", "OUTALL"),
        (f"<lora:cat:0.8:0.5:LBW={NUMBERS};A=4.0;B=1>", NUMBERS),
        ([("cat", 0.8, 0.5, NUMBERS)], NUMBERS),
        ([("cat", 0.8, 0.5, [1.0, *[0.5] * 16])], NUMBERS),
        ([{"lora": "cat", "strength": 0.8, "clip_strength": 0.5, "block_vector": "MIDD"}], "MIDD"),
        ([{"lora": "cat", "strength": 0.8, "clip_strength": 0.5, "lbw": "None"}], ""),
    ],
)
def test_block_weights_are_read(stack, blocks):
    (lora,) = read_stack(stack)
    assert (lora.strength_model, lora.strength_clip, lora.blocks) == (0.8, 0.5, blocks)


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


def test_one_text_has_the_prompts_of_all():
    text = "cat: a photo of a sks cat\n\nDOG.safetensors: one dog: big\na drawing of {trigger}\ncat: a cat"
    assert prompts_by_name(text, ["cat", "style/DOG", "bird"]) == {
        "cat": ("a photo of a sks cat", "a drawing of {trigger}", "a cat"),
        "style/DOG": ("one dog: big", "a drawing of {trigger}"),
        "bird": ("a drawing of {trigger}",),
    }
    numbers = prompts_by_name("2: a dog\n1: a {trigger}\n3: x", ["cat", "dog", "3", "bird"])
    assert numbers == {"cat": ("a {trigger}",), "dog": ("a dog",), "3": ("x",), "bird": ()}
    with pytest.raises(IterisError, match="'5: x' begins with none"):
        prompts_by_name("5: x", ["cat", "dog"])
    assert prompts_by_name("a photo, closeup: sks", ["cat"]) == {"cat": ("a photo, closeup: sks",)}
    said = r"line 2: which LoRA is it for\? 'a stray one' begins with none"
    with pytest.raises(IterisError, match=said):
        prompts_by_name("cat: x\na stray one", ["cat", "dog"])
    with pytest.raises(IterisError, match="'cat' is the name of 2 of them"):
        prompts_by_name("cat: x", ["a/cat", "b/cat"])
    assert prompts_by_name("a photo of sks\nstyle/cat: x", ["style/cat", "style/cat"]) == {
        "style/cat": ("a photo of sks", "x")
    }
    with pytest.raises(IterisError, match=r"^styles, line 1: which LoRA is it for"):
        prompts_by_name("stray", ["cat", "dog"], "styles")
