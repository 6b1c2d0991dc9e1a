"""What goes into a merge: each content once, by its hash, under a name of its own."""

import dataclasses
import hashlib
import types

import pytest
import torch
from iteris_pack.nodes.loras import entries
from iteris_pack.nodes.sockets import LoraEntry, Scenes
from safetensors.torch import save_file

from iteris_core import Adapter, ConfigError
from iteris_core.diffusion.calibration import Calibration


def test_what_went_into_a_merge_is_known_by_its_hash(replace_host, tmp_path):
    file = tmp_path / "cat.safetensors"
    file.write_bytes(b"abc")
    replace_host(lora_path=lambda name: file)
    entry = LoraEntry("style/cat.safetensors", 0.8, 0.5, ("a cat",), 2.0, "trained_words")
    [content] = entries.each_once([entry])[0]
    used = entries.used(entry, "style/cat", content)
    assert (used.name, used.file, used.prompts_from) == (
        "style/cat",
        "style/cat.safetensors",
        "trained_words",
    )
    assert used.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    trained = LoraEntry("trained", 1.0, 1.0, ("x",), 1.0, tensors={"a": torch.ones(2)})
    save_file(trained.tensors, file)
    [content] = entries.each_once([trained])[0]
    assert content == hashlib.sha256(file.read_bytes()).hexdigest()
    assert entries.used(trained, "trained", content).file is None


def test_one_content_is_one_lora_at_the_sum_of_the_strengths(replace_host, tmp_path):
    """Two files of one content, and a third one; a row that is off adds neither prompts nor
    weight.
    """
    replace_host(lora_path=lambda name: tmp_path / name)
    for name, content in (("cat", b"1"), ("copy of cat", b"1"), ("dog", b"2")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    loras, notes = entries.each_once(
        [
            LoraEntry("cat.safetensors", 0.5, 0.25, ("a", "b"), 1.0, "trained_words"),
            LoraEntry("dog.safetensors", 1.0, 1.0, ("d",), 1.0),
            LoraEntry(
                "copy of cat.safetensors", 1.0, 0.5, ("b", "c"), 2.0, trigger="a cat", kind="style"
            ),
            LoraEntry("cat.safetensors", 0.0, 0.0, ("off",), 9.0),
        ]
    )
    cat, dog = loras.values()
    assert (cat.lora_name, cat.strength_model, cat.strength_clip, cat.prompts) == (
        "cat.safetensors",
        1.5,
        0.75,
        ("a", "b", "c"),
    )
    assert (cat.weight, cat.prompts_from, cat.trigger, cat.kind) == (2.0, "", "a cat", "style")
    assert dog.strength_model == 1.0
    assert [note[:70] for note in notes] == [
        "cat and copy of cat: the same LoRA 3 times, so it is merged once, at t"
    ]
    assert "1.5 / 0.75" in notes[0]


def test_loras_of_one_name_are_numbered():
    base = types.SimpleNamespace(
        adapter=lambda name, tensors, metadata, *strengths: Adapter(name, {})
    )
    loras = [
        LoraEntry(name, 1.0, 1.0, ("x",), 1.0, tensors={}) for name in ("trained", "cat", "trained")
    ]
    assert [lora.adapter.name for lora in entries.read(base, loras)] == [
        "trained (1)",
        "cat",
        "trained (3)",
    ]


def test_scenes_come_with_the_loras_and_only_one_kind_of_them():
    scenes = Scenes(0.2, True, ("{first} and {second}",))
    plain = LoraEntry("a", 1.0, 1.0, ("x",), 1.0)
    with_scenes = dataclasses.replace(plain, scenes=scenes)
    assert entries.scenes_of([plain]) is None
    assert entries.scenes_of([plain, with_scenes, with_scenes]) is scenes
    calibration = scenes.applied_to(Calibration(seed=7))
    assert (calibration.scene_weight, calibration.scene_pictures, calibration.seed) == (
        0.2,
        True,
        7,
    )
    assert calibration.companions == Calibration().companions
    other = dataclasses.replace(plain, scenes=dataclasses.replace(scenes, scene_weight=0.3))
    with pytest.raises(
        ConfigError, match="the LoRAs come from 2 'Scene prompts' nodes with different settings"
    ):
        entries.scenes_of([with_scenes, other])
