"""What a merge leaves behind: pictures, a file that tells where it is from, and the way back."""

import re

import pytest
import torch
from comfy_host import node
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo.client import WorkflowFailed, WorkflowRejected


@pytest.fixture(scope="module")
def scene(host):
    """A merge with scenes, saved with a cover, and passed on as a stack."""
    small = {"negative_share": 0.0, "forms": "{first} and {second}"}
    nodes = host.merge(**small)
    more = {"reproduce": "whole output", "quality_kept": 0.9}
    nodes["14"] = host.merge(**small, **more)["4"]
    rows = '<lora:middle_1> called="a demo1" | a first thing\n<lora:middle_2> | a second thing in a park'
    nodes["5"]["inputs"] |= {"loras": rows, "together": True, "settings": ["14", 0]}
    del nodes["5"]["inputs"]["more_loras"], nodes["4"]
    inputs = {"vae": ["1", 2], "merged": ["5", 3], "prompt": "a demo1", "seed": 0, "steps": 1}
    nodes["7"] = node("IterISCompare", **inputs, cfg=1.0, width=64, height=64)
    nodes |= host.save("scene")
    nodes["6"]["inputs"]["cover"] = ["7", 1]
    return nodes, host.run(nodes)["outputs"]


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_scene_captions_are_shown_and_measured(scene):
    outputs = scene[1]
    report = outputs["5"]["iteris"][0]["report"]
    tasks = {entry["task"] for layer in report["layers"] for entry in layer["tasks"]}
    assert {"middle_1 in scenes", "middle_2 in scenes"} < tasks
    assert [lora["trigger"] for lora in report["settings"]["loras"]] == ["a demo1", ""]
    assert report["settings"]["calibration"]["scene_forms"] == ["{first} and {second}"]


def test_the_file_tells_what_is_in_it(host, scene):
    metadata = metadata_of(host.output / "loras" / "scene.safetensors")
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.title"] == "scene"
    assert metadata["modelspec.merged_from"] == "middle_1, middle_2"
    assert metadata["modelspec.trigger_phrase"] == "demo1, demo2"
    assert len(metadata["sshs_model_hash"]) == 64 and len(metadata["sshs_legacy_hash"]) == 8
    preview = Image.open(host.output / "loras" / "scene.preview.png")
    assert preview.format == "PNG" and max(preview.size) == 64


def test_what_was_read_back_is_shown_and_the_file_is_a_stack(scene):
    outputs = scene[1]
    read, size, preview = outputs["6"]["text"][1:]
    assert re.fullmatch(r"0\.\d MB, rank \d+ to \d+, trigger words: demo1, demo2", size)
    assert read.startswith("read back: 2 of 2 modules, largest difference")
    assert preview == "beside it: scene.preview.png"
    [saved] = outputs["6"]["iteris"][0]["files"]
    assert (saved["listed_as"], saved["words"]) == ("scene.safetensors", ["demo1", "demo2"])
    assert outputs["6"]["iteris"][0]["of"] == outputs["5"]["iteris"][0]["of"]
    of = outputs["5"]["iteris"][0]["of"]
    assert [row["name"] for row in of["rows"]] == ["middle_1", "middle_2"]
    assert (of["preset"], of["together"]) == ("Balanced", True)


def test_saving_leaves_nothing_that_is_hidden(host, scene):
    assert [path for path in host.output.rglob(".*") if ".iteris" in path.name] == []


def test_a_recipe_makes_the_same_file_again(host, scene):
    """The widgets say something else: the recipe's settings take their place."""
    recipe = node("IterISRecipe", lora_name="scene.safetensors", check_files=True)
    nodes = {"1": scene[0]["1"], "5": recipe}
    inputs = {"model": ["1", 0], "clip": ["1", 1], "loras": "", "preset": "Fast", "together": True}
    more = {"size": "rank", "size_value": 3.0, "more_loras": ["5", 0], "settings": ["5", 1]}
    nodes["6"] = node("IterISMerge", **inputs, **more)
    nodes["7"] = node("IterISSave", merged=["6", 3], file_name="loras/again", overwrite=False)
    nodes["8"] = node("PreviewAny", source=["5", 2])
    outputs = host.run(nodes)["outputs"]
    facts = outputs["8"]["text"][0].splitlines()
    assert {"reproduce: whole output", "quality_kept: 0.9"} < set(facts)
    assert any(fact.startswith("base: sd15.safetensors (") for fact in facts)
    assert facts[0].startswith('<lora:middle_1.safetensors:1> subject called="a demo1" | ')
    notes = [note["text"] for note in outputs["6"]["iteris"][0]["report"]["notes"]]
    assert any(note.endswith("preset, together and size did not count") for note in notes)
    first, again = (
        load_file(host.output / "loras" / f"{name}.safetensors") for name in ("scene", "again")
    )
    assert set(first) == set(again)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert host.cached_nodes(nodes) == set(nodes)  # though a file has been saved since


def test_a_recipe_whose_files_have_changed_is_refused_or_told(host, scene):
    moved = host.loras / "moved" / "middle_1_renamed.safetensors"
    moved.parent.mkdir()
    file = host.loras / "middle_1.safetensors"
    file.rename(moved)
    recipe = node("IterISRecipe", lora_name="scene.safetensors", check_files=True)
    show = {"5": recipe, "8": node("PreviewAny", source=["5", 0])}
    [found] = host.run(show)["outputs"]["5"]["text"]
    assert found.startswith("moved/middle_1_renamed.safetensors at ")
    kept = moved.read_bytes()
    moved.unlink()
    save_file(load_file(host.loras / "middle_2.safetensors"), file)
    said = r"middle_1\.safetensors is another file than the one that was merged"
    with pytest.raises(WorkflowFailed, match=said):
        host.run(show)
    recipe["inputs"]["check_files"] = False
    assert "middle_1.safetensors is another file" in host.run(show)["outputs"]["5"]["text"][0]
    file.write_bytes(kept)


@pytest.fixture
def quick(host):
    """A merge of two LoRAs in which nothing is measured."""
    nodes = host.merge("middle_1.safetensors", "middle_2.safetensors")
    nodes["5"]["inputs"]["preset"] = "Preview"
    return nodes


def test_a_preview_and_its_recipe_need_no_prompts(host, quick):
    """Compare then draws of the LoRAs that have some."""
    save_file(load_file(host.loras / "middle_2.safetensors"), host.loras / "bare.safetensors")
    merge = quick["5"]["inputs"]
    merge |= {"loras": '<lora:middle_1>\n<lora:bare> style called="in {trigger} style"'}
    del merge["more_loras"]
    quick |= host.save("of_bare")
    host.run(quick)
    inputs = {"vae": ["1", 2], "merged": ["5", 3], "prompt": "", "seed": 0, "steps": 1, "cfg": 1.0}
    quick["7"] = node("IterISCompare", **inputs, width=64, height=64)
    drawn = host.run(quick)["outputs"]["7"]
    assert "without a prompt of its own: bare" in drawn["text"][0]
    [row] = drawn["iteris"][0]["pictures"]
    assert row["prompt"] and len(row["files"]) == 3
    recipe = node("IterISRecipe", lora_name="of_bare.safetensors", check_files=True)
    again = {"1": quick["1"], "8": recipe, "5": quick["5"]} | host.save("bare_again")
    again["5"]["inputs"] |= {"loras": "", "more_loras": ["8", 0], "settings": ["8", 1]}
    host.run(again)
    first, second = (
        load_file(host.output / "loras" / f"{name}.safetensors")
        for name in ("of_bare", "bare_again")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    del again["5"]["inputs"]["settings"]
    again["5"]["inputs"]["preset"] = "Fast"
    with pytest.raises(WorkflowFailed, match=r"bare\.safetensors has no prompts, and"):
        host.run(again)


@pytest.mark.parametrize("name", ["middle_3", "styles/mine"])
def test_a_merge_gets_a_name_under_which_it_is_loaded(host, quick, name):
    """The first of ComfyUI's loras folders that has a name has the file that is loaded."""
    other = host.loras / f"{name}.safetensors"
    other.parent.mkdir(exist_ok=True)
    other.write_bytes((host.loras / "middle_3.safetensors").read_bytes())
    quick |= host.save(name)
    outputs = host.run(quick)["outputs"]
    [saved] = outputs["6"]["iteris"][0]["files"]
    assert saved["listed_as"] == f"{name}_02.safetensors"
    assert outputs["6"]["text"][0] == str(host.output / "loras" / f"{name}_02.safetensors")
    quick |= host.save(name, overwrite=True)
    with pytest.raises(WorkflowRejected) as refused:
        host.run(quick)
    said = f"{name}.safetensors is already the name of {other} in LoRA lists"
    for place, start in (("6", f"file_name - {said}"), ("5", f"loras - Save merged LoRA: {said}")):
        errors = refused.value.node_errors[place]["errors"]
        assert [error["details"].startswith(start) for error in errors] == [True]
    assert not (host.output / "loras" / f"{name}.safetensors").exists()
    quick |= host.save(f"{name}_02", overwrite=True)
    host.run(quick)
