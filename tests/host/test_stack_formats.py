"""LoRA stacks in every shape, and LoRAs taken off a model: without ComfyUI, so these tests are
quick.
"""

import re
from types import SimpleNamespace

import pytest
import torch

from iteris_core import IterisError

CAT = ("cat.safetensors", 0.8, 0.5)
DOG = ("style/dog.safetensors", -1.0, -1.0)


def read(nodes, stack):
    return [
        (lora.name, lora.strength_model, lora.strength_clip)
        for lora in nodes("loras.stack_formats").read_stack(stack)
    ]


@pytest.mark.parametrize(
    "stack",
    [
        [("cat.safetensors", 0.8, 0.5), ("style/dog.safetensors", -1.0, -1.0)],
        [["cat.safetensors", 0.8, 0.5], ["style/dog.safetensors", -1]],
        (("cat.safetensors", 0.8, 0.5), ("None", 1.0, 1.0), ("style/dog.safetensors", -1, None)),
        [
            {"lora": "cat.safetensors", "strength": 0.8, "strengthTwo": 0.5, "on": True},
            {"lora": "style/dog.safetensors", "strength": -1.0, "strengthTwo": None},
            {"lora": "off.safetensors", "strength": 1, "on": False},
        ],
        {
            "lora_1": {
                "lora_name": "cat.safetensors",
                "strength_model": "0.8",
                "strength_clip": 0.5,
            },
            "mode": "simple",
            "lora_2": {
                "name": "style/dog.safetensors",
                "model_strength": -1.0,
                "clip_strength": -1.0,
                "enabled": True,
            },
        },
        {
            "loras": [
                {"file_name": "cat.safetensors", "model_weight": 0.8, "clip_weight": 0.5},
                ["style/dog.safetensors", -1.0],
            ]
        },
        "a photo <lora:cat.safetensors:0.8:0.5> on grass <lora:style/dog.safetensors:-1>, "
        "<lora:none:1>",
        ["<lora:cat.safetensors:0.8:0.5>", "<lora:style/dog.safetensors:-1>"],
        [["cat.safetensors", "0.8", "0.5", ""], ("style/dog.safetensors", "-1")],
        [
            {"name": "cat.safetensors", "strength": 0.8, "clip_strength": 0.5, "on": 1, "lbw": ""},
            {"name": "style/dog.safetensors", "strength": -1},
            {"name": None, "strength": 1},
            {"lora": "None"},
            {"lora_name": ""},
            {"lora": "x", "on": 0},
            {"lora": "x", "enabled": "off"},
            {"lora": "x", "active": "False"},
        ],
        {
            "name": "my stack",
            "loras": [
                ("cat.safetensors", 0.8, 0.5),
                (None, 1.0, 1.0),
                ("style/dog.safetensors", -1.0),
            ],
        },
        [
            {"name": "off", "enabled": False, "loras": [("x", 1.0, 1.0)]},
            {"stack": {"a": {"lora": "cat.safetensors", "strength": 0.8, "strength_clip": 0.5}}},
            {"lora": {"name": "style/dog.safetensors", "strength": -1}},
        ],
    ],
)
def test_every_shape_in_use_is_read(nodes, stack):
    assert read(nodes, stack) == [CAT, DOG]


@pytest.mark.parametrize(
    "stack", [["cat", "b/dog"], [["cat"], "b/dog", "None"], {"loras": ["cat", {"lora": "b/dog"}]}]
)
def test_names_alone_are_used_at_strength_one(nodes, stack):
    assert read(nodes, stack) == [("cat", 1.0, 1.0), ("b/dog", 1.0, 1.0)]


@pytest.mark.parametrize(
    "stack", [None, [], "", "words only", {}, [{"lora": "x", "active": False}], ["None", "", None]]
)
def test_an_empty_stack_is_empty(nodes, stack):
    assert read(nodes, stack) == []


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ([("cat", 1.0), 7], "the stack[1] is 7, a int"),
        (
            [{"model": "cat", "power": 2}],
            "the stack[0] has 'model', 'power', and none of the names",
        ),
        (
            [{"lora": "cat", "strength": "much"}],
            "the stack[0] has the strength 'much', which is no number",
        ),
        ("<lora:cat:high>", "<lora:cat:high>: a strength is no number; write <lora:name:1.0>"),
        ("<lora:cat:nan>", "<lora:cat:nan>: cat has the strength nan; write a number"),
        ([("cat", 1.0, float("inf"))], "the stack[0]: cat has the strength inf; write a number"),
        (
            [{"lora": "cat", "strength": "NaN"}],
            "the stack[0]: cat has the strength nan; write a number",
        ),
        (
            "<lora:cat:1:1:lbw=OUTALL>",
            "<lora:cat:1:1:lbw=OUTALL> has 'lbw=OUTALL' behind the "
            "strengths, as block-weight loaders",
        ),
        ("<lora:cat:1:lbw=1,0,0>", "<lora:cat:1:lbw=1,0,0> has 'lbw=1,0,0' behind"),
        ([("cat", 1.0, 1.0, "1,0,0")], "the stack[0] has '1,0,0' behind the strengths"),
        ([{"lora": "cat", "lbw": "1,0"}], "the stack[0] has '1,0' behind the strengths"),
    ],
)
def test_what_is_no_stack_is_named(nodes, stack, words):
    with pytest.raises(IterisError, match=re.escape(words)):
        read(nodes, stack)


def test_names_without_folder_or_suffix_find_their_file(nodes):
    find = nodes("loras.stack_formats").find_name
    names = ["cat.safetensors", "style/cat.safetensors", "style\\dog.safetensors"]
    assert find("cat", names) == "cat.safetensors"
    assert find("style/cat", names) == "style/cat.safetensors"
    assert find("dog", names) == find("style/dog", names) == "style\\dog.safetensors"
    assert find("/models/loras/style/dog.safetensors", names) == "style\\dog.safetensors"
    assert (
        find("D:\\loras\\style\\cat.safetensors", names) == "style/cat.safetensors"
    )  # not the shorter end, "cat"
    assert find("dog", [*names, "dog.safetensors", "x/dog.safetensors"]) == "dog.safetensors"
    with pytest.raises(IterisError, match="'bird' is in none of ComfyUI's loras folders"):
        find("bird", names)
    with pytest.raises(
        IterisError, match=r"'cat' is the name of 2 files: a/cat\.safetensors, b/cat\.safetensors"
    ):
        find("cat", ["a/cat.safetensors", "b/cat.safetensors"])


def test_one_text_has_the_prompts_of_all(nodes):
    by_name = nodes("loras.stack_formats").prompts_by_name
    text = "cat: a photo of a sks cat\n\nDOG.safetensors: one dog: big\na drawing of {trigger}\ncat: a cat"
    assert by_name(text, ["cat", "style/DOG", "bird"]) == {
        "cat": ("a photo of a sks cat", "a drawing of {trigger}", "a cat"),
        "style/DOG": ("one dog: big", "a drawing of {trigger}"),
        "bird": ("a drawing of {trigger}",),
    }
    assert by_name("a photo, closeup: sks", ["cat"]) == {"cat": ("a photo, closeup: sks",)}
    with pytest.raises(
        IterisError, match=r"line 2: which LoRA is it for\? 'a stray one' begins with none"
    ):
        by_name("cat: x\na stray one", ["cat", "dog"])
    with pytest.raises(IterisError, match="'cat' is the name of 2 of them"):
        by_name("cat: x", ["a/cat", "b/cat"])
    assert by_name("a photo of sks\nstyle/cat: x", ["style/cat", "style/cat"]) == {
        "style/cat": ("a photo of sks", "x")
    }
    with pytest.raises(IterisError, match=r"^styles, line 1: which LoRA is it for"):
        by_name("stray", ["cat", "dog"], "styles")


# --- LoRAs on a model ---


class Loader:
    """Makes patches as ComfyUI does when it loads one file."""

    def __init__(self, *keys):
        self.keys = set(keys)

    def lora(self, up, down, alpha=None):
        return SimpleNamespace(
            name="lora", loaded_keys=self.keys, weights=(up, down, alpha, None, None, None)
        )


def patch(strength, value, of_weight=1.0):
    return (strength, value, of_weight, None, None)


def take(nodes, patches):
    return nodes("loras.harvest").take_off(
        patches,
        lambda weight: weight.startswith("clip"),
        lambda path: [f"lora_{path.replace('.', '_')}", f"other.{path}"],
    )


def test_loras_on_a_model_are_told_apart_by_what_was_loaded_together(nodes):
    up = torch.randn(4, 2)
    down = torch.randn(2, 3)
    first = Loader("a")
    second = Loader("a")
    again = Loader("a")
    merge_of_checkpoints = patch(0.5, [torch.ones(4, 3)])
    loras, rest = take(
        nodes,
        {
            "net.b.weight": [patch(0.5, second.lora(up, down))],
            "net.a.weight": [
                merge_of_checkpoints,
                patch(0.8, first.lora(up, down, 2.0)),
                patch(0.5, second.lora(up, down)),
            ],
            "clip.q.weight": [
                patch(0.3, first.lora(up, down)),
                patch(1.0, again.lora(2 * up, down)),
            ],
        },
    )
    assert [lora.strengths for lora in loras] == [
        {False: 0.8, True: 0.3},
        {False: 0.5},
        {True: 1.0},
    ]
    assert sorted(loras[0].tensors) == [
        "lora_clip_q.lora_down.weight",
        "lora_clip_q.lora_up.weight",
        "lora_net_a.alpha",
        "lora_net_a.lora_down.weight",
        "lora_net_a.lora_up.weight",
    ]
    assert loras[0].tensors["lora_net_a.alpha"] == 2.0
    assert torch.equal(loras[2].tensors["lora_clip_q.lora_up.weight"], 2 * up)
    assert rest == {"net.a.weight": [merge_of_checkpoints]}


def test_a_difference_belongs_to_the_file_that_names_it(nodes):
    up = torch.randn(4, 2)
    down = torch.randn(2, 3)
    bias = torch.randn(4)
    first = Loader("x")
    second = Loader("other.net.a.diff_b")
    patches = {
        "net.a.weight": [patch(1.0, first.lora(up, down)), patch(1.0, second.lora(up, down))],
        "net.a.bias": [patch(1.0, ("diff", (bias,)))],
        "net.z.weight": [patch(1.0, ("diff", (up,)))],
    }
    loras, rest = take(nodes, patches)
    assert "lora_net_a.diff_b" not in loras[0].tensors
    assert torch.equal(loras[1].tensors["lora_net_a.diff_b"], bias)
    assert set(rest) == {"net.z.weight"}
    first.keys.add("lora_net_a.b_norm")
    with pytest.raises(
        IterisError, match=r"2 LoRAs on this model change 'net\.a\.bias' by a difference"
    ):
        take(nodes, patches)


def test_what_is_no_longer_the_file_is_refused(nodes):
    loader = Loader("x")
    lora = loader.lora(torch.randn(4, 2), torch.randn(2, 3))
    with pytest.raises(IterisError, match="scaled or cut by another node after it was loaded"):
        take(
            nodes,
            {"net.a.weight": [patch(1.0, lora), patch(0.5, [torch.ones(4, 3)], of_weight=0.5)]},
        )
    with pytest.raises(IterisError, match=r"has the strengths 1 and 0\.5"):
        take(nodes, {"net.a.weight": [patch(1.0, lora)], "net.b.weight": [patch(0.5, lora)]})
