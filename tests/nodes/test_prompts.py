"""Prompts of a LoRA, and the trigger words that its file names."""

import pytest
import torch
from fake_host import use
from iteris_pack.nodes.lora import LoraToMerge
from iteris_pack.nodes.loras.prompts import use_of_row
from safetensors.torch import save_file

from iteris_core import IterisError
from iteris_core.diffusion.lora_rows import read_rows
from iteris_core.files.trigger_words import TriggerWords, fill_in, with_trigger


@pytest.fixture
def files(replace_host, tmp_path):
    replace_host(
        lora_path=lambda name: tmp_path / name,
        lora_names=lambda: ["cat.safetensors", "bare.safetensors"],
    )
    for name, said in (("cat", {"modelspec.trigger_phrase": "sks cat"}), ("bare", None)):
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors", said)


def test_an_article_is_not_said_twice():
    robot = use("robot", ("The {trigger}", "a photo of a {trigger}", "{trigger}"))
    said = TriggerWords(triggers=("a sks robot",))
    assert fill_in("robot", robot.prompts, said, "subject") == (
        "a sks robot",
        "a photo of a sks robot",
    )
    assert with_trigger("on an {trigger}", "a sks robot") == "on a sks robot"
    assert with_trigger("the {trigger}", "theo") == "the theo"


@pytest.fixture
def node(files, widgets):
    def lora(**changed):
        given = widgets(LoraToMerge) | changed
        [[chosen]] = LoraToMerge.execute(lora_name="cat.safetensors", **given).args
        return chosen.use

    return lora


def test_blocks_and_layers_left_out_are_those_of_a_row(node):
    [row] = read_rows('<lora:cat:1> blocks="IN01:0.5, MID:0" without=*attn2* without=*ff*')
    assert node(blocks=" IN01:0.5, MID:0 ", without="*attn2*\n\n *ff* \n") == use_of_row(row)
    assert node() == use_of_row(read_rows("<lora:cat:1>")[0])
    with pytest.raises(IterisError, match=r"LoRA 'cat': .*IN01:0\.5, MID:0"):
        node(blocks="1,2,3")


def test_a_node_shows_its_lora_with_prompts_or_without(files, widgets):
    def shown(name):
        given = widgets(LoraToMerge) | {"lora_name": f"{name}.safetensors"}
        return LoraToMerge.execute(**given).ui["text"]

    assert shown("bare") == ["bare.safetensors at 1 / 1"]
    [told] = shown("cat")
    assert told.startswith("cat.safetensors at 1 / 1, its trigger words from the file (")
    assert "):\n  a photo of sks cat" in told
