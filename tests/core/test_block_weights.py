"""Weights of a LoRA's blocks by name, and layers left out."""

import re
import time

import pytest
import torch
from fake_host import use

from iteris_core import Adapter, ConfigError, LowRankDelta
from iteris_core.diffusion.loaded_loras import each_once
from iteris_core.files.block_weights import layer_weights
from iteris_core.settings import MOST_CHARACTERS

UNET = "diffusion_model."
# Name of a block -> a layer in it, as ComfyUI has it.
LAYERS = {
    "TE00": "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    "TG31": "clip_g.transformer.text_model.encoder.layers.31.mlp.fc1",
    "time": UNET + "time_embed.0",
    **{f"IN{i:02}": f"{UNET}input_blocks.{i}.1.proj_in" for i in range(12)},
    "MID": UNET + "middle_block.1.proj_in",
    **{f"OUT{i:02}": f"{UNET}output_blocks.{i}.1.proj_in" for i in range(12)},
    **{f"D{i:02}": f"{UNET}double_blocks.{i}.img_attn.qkv" for i in range(19)},
    **{f"S{i:02}": f"{UNET}single_blocks.{i}.linear1" for i in range(38)},
    "B03": UNET + "layers.3.attention.qkv",
    "NR01": UNET + "noise_refiner.1.attention.qkv",
}


def adapter_of(blocks):
    deltas = {LAYERS[b]: LowRankDelta(torch.ones(3, 1), torch.ones(1, 2)) for b in blocks}
    return Adapter("cat", deltas)


def weights(spelling, blocks, without=()):
    """Return block -> by how much its layer is scaled; 0 where it is left out."""
    of_layers = layer_weights("cat", spelling, without)
    made = of_layers.applied_to(adapter_of(blocks))
    found = {path: delta.up[0, 0].item() for path, delta in made.deltas.items()}
    assert 0 not in found.values()  # such layers are not there
    return {block: found.get(LAYERS[block], 0.0) for block in blocks}


def kept(found):
    return [block for block, weight in found.items() if weight]


SPELLINGS = [  # spelling, blocks, what each is scaled by
    ("IN01:0.5,MID:0", ["IN01", "IN02", "MID"], [0.5, 1, 0]),
    ("in1=-.5; mid00 : 2", ["IN01", "IN02", "MID"], [-0.5, 1, 2]),
    ("IN:0.5, IN04-IN07: 0", ["IN01", "IN04", "IN07", "OUT04"], [0.5, 0, 0, 1]),
    ("ALL:0,OUT3-5:1", ["TE00", "OUT02", "OUT03", "OUT05"], [0, 0, 1, 1]),
    ("BASE:0.25", ["TE00", "TG31", "time", "IN04"], [0.25, 0.25, 0.25, 1]),
    ("double 0-18:0.5,single:0", ["D00", "D18", "S00", "S37"], [0.5, 0.5, 0, 0]),
    ("D07:0", ["D06", "D07", "S07"], [1, 0, 1]),
    ("blocks 0-3:0.5", ["B03", "NR01"], [0.5, 1]),
    ("BASE:0", ["B03", "NR01"], [1, 0]),
    ("", ["TE00", "IN03"], [1, 1]),
]


def test_blocks_go_by_their_names():
    for spelling, blocks, expected in SPELLINGS:
        assert list(weights(spelling, blocks).values()) == expected, spelling


def test_layers_are_left_out_by_their_paths():
    blocks = ["TE00", "IN01", "OUT03"]
    assert kept(weights("", blocks, ["*input_blocks*"])) == ["TE00", "OUT03"]
    found = weights("OUT:0.5", blocks, ["clip_l.*.fc?", "*.input_blocks.[0-3].*"])
    assert list(found.values()) == [0, 0, 0.5]


def test_biases_and_norms_are_scaled_and_left_out_like_their_layers():
    vectors = {f"{LAYERS[b]}.bias": torch.ones(2) for b in ("IN01", "IN02", "MID")}
    adapter = Adapter("cat", {}, vectors=vectors)
    made = layer_weights("cat", "IN01:0.5,MID:0", ()).applied_to(adapter)
    assert {path: v.tolist() for path, v in made.vectors.items()} == {
        f"{LAYERS['IN01']}.bias": [0.5, 0.5],
        f"{LAYERS['IN02']}.bias": [1, 1],
    }


REFUSED = [  # spelling, layers to leave out, what the message names
    ("1,0,0", (), "have '1'. Write each as BLOCK:WEIGHT, by name and not as a list of"),
    ("OUTALL", (), "have 'OUTALL'. Write each as BLOCK:WEIGHT"),
    ("BASE:1e9", (), "have 'BASE:1e9'; a weight must be a number"),
    ("IN01:nan", (), "have 'IN01:nan'; a weight must be"),
    ("IN:1, D0-3:0", (), "have 'D0-3:0', and it changes no such block. It has BASE, IN01, MID"),
    ("IN01", (), "have 'IN01'. Write each as BLOCK:WEIGHT"),
    ("UP03:1", (), "have 'UP03:1'. Write each as BLOCK:WEIGHT"),
    ("OUT03:0", (), "have 'OUT03:0', and it changes no such block. It has BASE, IN01"),
    ("IN2-9:0", (), "have 'IN2-9:0', and it changes no such block"),
    ("", ("*attn9*",), "no layer that it changes has a path like '*attn9*'"),
    ("", ("",), "a pattern of layers to leave out is ''"),
]


def test_what_fits_nothing_is_named():
    for spelling, without, words in REFUSED:
        with pytest.raises(ConfigError, match=re.escape(words)) as error:
            weights(spelling, ["time", "IN01", "MID"], without)
        assert str(error.value).startswith("LoRA 'cat': ")


def test_what_no_model_could_read_is_refused_where_it_is_given():
    assert use("cat", blocks="MID:0", without=("*ff*",)).blocks == "MID:0"
    with pytest.raises(ConfigError, match="LoRA 'cat': its block weights have '1'"):
        use("cat", blocks="1,2")
    with pytest.raises(ConfigError, match="LoRA 'cat': a pattern of layers to leave out is"):
        use("cat", without=(" ",))


LONG = [text * (MOST_CHARACTERS // len(text)) for text in ("1,", "IN1:1,", "B0-9999:1,")]


@pytest.mark.parametrize("spelling", [*LONG, "a" + " " * (MOST_CHARACTERS - 2) + "b", "1:" * 10**6])
def test_a_long_spelling_holds_nothing_up(spelling):
    start = time.thread_time()
    blocks = [*LAYERS]
    with pytest.raises(ConfigError):
        for _ in range(20):
            weights(spelling, blocks, ["*a" * 149] * 50)
    assert time.thread_time() - start < 5


def test_one_file_with_other_weights_is_another_lora():
    whole, out = use("cat", ("a",), sha256="1"), use("cat", ("b",), sha256="1", blocks="OUT:0")
    twice = use("cat", ("c",), sha256="1", blocks="OUT:0")
    once, notes = each_once([whole, out, twice])
    assert [(one.blocks, one.strength_model) for one in once] == [("", 1.0), ("OUT:0", 2.0)]
    assert len(notes) == 1
