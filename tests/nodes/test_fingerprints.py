"""What a second queueing finds changed, so that a node runs again."""

import json
from dataclasses import asdict

import pytest
import torch
from fake_host import use
from iteris_pack.nodes import rows
from iteris_pack.nodes.lora import LoraToMerge
from iteris_pack.nodes.loras.names import fingerprint
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.recipe import LoadRecipe
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


@pytest.mark.parametrize("linked", [{"lora_stack": None}, {}])
def test_of_what_comes_through_a_link_the_files_count_that_a_run_has_used(
    replace_host, monkeypatch, tmp_path, linked
):
    files = {name: tmp_path / name for name in ("named", "used", "other")}
    for path in files.values():
        path.write_bytes(b"1")
    replace_host(lora_names=lambda: list(files), find_lora=files.get)
    monkeypatch.setattr(rows, "_FIRST_USED", {})
    text = "<lora:named>" if linked else None

    def found():
        return Merge.fingerprint_inputs(loras=text, **linked)

    before = found()
    rows.remember([use("used", (), file="used"), use("on the model", (), file=None)])
    files["other"].write_bytes(b"22")
    files["new"] = tmp_path / "new"
    assert found() == before, "a second run is taken from the cache"
    files["used"].write_bytes(b"22")
    changed = found()
    rows.remember([use("used", (), file="used")])  # it runs again
    assert changed != before and found() == changed
    files["named"].write_bytes(b"22")
    assert (found() != changed) == bool(linked)


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
