"""Prompts of a LoRA, and the trigger words that its file names."""

import pytest
import torch
from fake_host import use
from iteris_pack.nodes.loras.prompts import use_of_file
from iteris_pack.nodes.scene import with_triggers
from safetensors.torch import save_file

from iteris_core import IterisError


@pytest.fixture
def files(replace_host, tmp_path):
    """Two files in the loras folders, of which only the first names its trigger words."""
    replace_host(lora_path=lambda name: tmp_path / name)
    save_file(
        {"a": torch.ones(1)}, tmp_path / "cat.safetensors", {"modelspec.trigger_phrase": "sks cat"}
    )
    save_file({"a": torch.ones(1)}, tmp_path / "bare.safetensors")


def test_a_subjects_trigger_words_are_filled_in_from_its_file(files):
    cats = [use(name, ("a photo of it",), file=f"{name}.safetensors") for name in ("cat", "bare")]
    named = with_triggers(cats, "cat: a {trigger}", "bare: in ink style")
    assert [(cat.kind, cat.trigger) for cat in named] == [
        ("subject", "a sks cat"),
        ("style", "in ink style"),
    ]
    with pytest.raises(
        IterisError,
        match=r"styles: bare\.safetensors is called 'in \{trigger\}', and its file names",
    ):
        with_triggers(cats, "", "bare: in {trigger}")
    with pytest.raises(IterisError, match=r"^styles, line 1: which LoRA is it for"):
        with_triggers(cats, "cat: a cat", "stray")
    with pytest.raises(
        IterisError, match="cat is called 'a cat' in subjects and 'in cat style' in styles"
    ):
        with_triggers(cats, "cat: a cat", "cat: in cat style")


def test_a_lora_without_strength_needs_no_prompts(files):
    assert use_of_file("bare.safetensors", 0.0, 0.0, ()).prompts == ()
    with pytest.raises(IterisError, match="has no prompts"):
        use_of_file("bare.safetensors", 0.0, 0.1, ())
