"""What a second queueing finds changed, so that a node runs again."""

import json
from dataclasses import asdict

import pytest
import torch
from fake_host import use
from iteris_pack.nodes import stack
from iteris_pack.nodes.lora import LoraToMerge
from iteris_pack.nodes.loras.names import fingerprint
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.recipe import LoadRecipe
from iteris_pack.nodes.stack import LoraStack
from safetensors.torch import save_file


@pytest.mark.parametrize("node", [LoraToMerge, LoadRecipe])
def test_a_name_that_comes_through_a_link_does_not_break_the_cache(node):
    assert node.fingerprint_inputs(lora_name=None) == "linked"


def test_words_beside_a_file_change_its_fingerprint_and_nothing_else_there_does(tmp_path):
    path = tmp_path / "cat.safetensors"
    path.write_bytes(b"x")
    before = fingerprint(path)
    sidecar = tmp_path / "cat.metadata.json"
    found = []
    for favourite, words in ((True, ["cat"]), (False, ["cat"]), (False, ["cat", "sks"])):
        card = {"favorite": favourite, "civitai": {"trainedWords": words}}
        sidecar.write_text(json.dumps(card))
        found.append(fingerprint(path))
    assert found[0] == found[1]
    assert len({before, *found}) == 3
    sidecar.unlink()
    assert fingerprint(path) == before


def test_a_merge_changes_with_the_files_of_its_rows_that_are_switched_on(replace_host, tmp_path):
    replace_host(
        lora_names=lambda: ["cat.safetensors", "dog.safetensors"],
        find_lora=lambda name: tmp_path / name,
    )
    rows = "<lora:cat>\n# <lora:dog>"
    before = Merge.fingerprint_inputs(loras=rows)
    (tmp_path / "dog.safetensors").touch()
    assert Merge.fingerprint_inputs(loras=rows) == before
    (tmp_path / "cat.safetensors").touch()
    assert Merge.fingerprint_inputs(loras=rows) != before
    assert Merge.fingerprint_inputs(loras=None) == Merge.fingerprint_inputs() == ""


def test_saving_a_merge_changes_nothing_for_a_stack(replace_host, tmp_path):
    files = {"cat.safetensors": tmp_path / "cat", "dog.safetensors": tmp_path / "output" / "dog"}
    (tmp_path / "output").mkdir()
    replace_host(
        lora_names=lambda: list(files),
        find_lora=files.get,
        is_output=lambda path: path.parent.name == "output",
    )
    texts = ("", None, "<lora:dog>")
    before = [LoraStack.fingerprint_inputs(text=text, lora_stack=None) for text in texts]
    files["dog.safetensors"].write_bytes(b"1")
    files["new.safetensors"] = tmp_path / "output" / "new"
    after = [LoraStack.fingerprint_inputs(text=text, lora_stack=None) for text in texts]
    assert before[:2] == after[:2] and before[2] != after[2]
    files["cat.safetensors"].write_bytes(b"1")
    assert LoraStack.fingerprint_inputs(text="", lora_stack=None) != after[0]


def test_without_a_stack_only_files_that_the_text_names_count(replace_host, tmp_path):
    names = ["cat.safetensors"]
    replace_host(lora_names=lambda: names, find_lora=lambda name: tmp_path / name)
    before = LoraStack.fingerprint_inputs(text="<lora:cat>")
    names.append("dog.safetensors")
    (tmp_path / names[-1]).touch()
    assert LoraStack.fingerprint_inputs(text="<lora:cat>") == before
    (tmp_path / names[0]).touch()
    assert LoraStack.fingerprint_inputs(text="<lora:cat>") != before


def test_the_other_file_of_a_pair_counts(replace_host, tmp_path):
    names = ["dog-H.safetensors", "dog-L.safetensors"]
    replace_host(lora_names=lambda: names, find_lora=lambda name: tmp_path / name)
    before = LoraToMerge.fingerprint_inputs(lora_name=names[0])
    (tmp_path / names[1]).touch()
    assert LoraToMerge.fingerprint_inputs(lora_name=names[0]) != before


def test_a_saved_merge_that_a_connected_stack_names_is_noticed_when_it_changes(
    replace_host, monkeypatch, tmp_path
):
    files = {name: tmp_path / "output" / name for name in ("used", "other")}
    (tmp_path / "output").mkdir()
    replace_host(lora_names=lambda: list(files), find_lora=files.get, is_output=lambda path: True)
    monkeypatch.setattr(stack, "_FIRST_SEEN", {})
    files["used"].write_bytes(b"1")
    before = LoraStack.fingerprint_inputs(text="", lora_stack=None)
    stack.remember(["used"])
    files["other"].write_bytes(b"1")
    assert (
        LoraStack.fingerprint_inputs(text="", lora_stack=None) == before
    )  # a second run is taken from the cache
    files["used"].write_bytes(b"22")
    changed = LoraStack.fingerprint_inputs(text="", lora_stack=None)
    stack.remember(["used"])  # it runs again, and after that it is taken from the cache
    assert changed != before and LoraStack.fingerprint_inputs(text="", lora_stack=None) == changed


def test_a_recipe_changes_with_the_files_that_it_names(replace_host, tmp_path):
    files = {name: tmp_path / name for name in ("merged", "cat", "dog")}
    replace_host(lora_names=lambda: list(files), find_lora=files.get, lora_path=files.get)
    lora = asdict(use("cat", (), file="cat"))
    recipe = {"loras": [lora], "calibration": {}, "config": {"alpha": 1.0}}
    save_file({"a": torch.ones(1)}, files["merged"], {"iteris.recipe": json.dumps(recipe)})
    first = LoadRecipe.fingerprint_inputs(lora_name="merged")
    files["dog"].write_bytes(b"1")
    with_another_dog = LoadRecipe.fingerprint_inputs(lora_name="merged")
    files["cat"].write_bytes(b"1")
    with_another_cat = LoadRecipe.fingerprint_inputs(lora_name="merged")
    assert first == with_another_dog != with_another_cat
    files["moved cat"] = files.pop("cat")
    assert LoadRecipe.fingerprint_inputs(lora_name="merged") != with_another_cat
