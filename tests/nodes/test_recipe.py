"""What a recipe says about a merge, read back."""

import dataclasses
import hashlib
import json

import pytest
from fake_host import use
from iteris_pack.nodes.recipe import as_text, source_of

from iteris_core import IterisError, MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.recipe import read_recipe, recipe_of


def test_a_file_that_is_only_called_alike_is_not_the_recipes(replace_host, tmp_path):
    files = {"cat_two.safetensors": tmp_path / "cat_two", "my cat.safetensors": tmp_path / "my"}
    replace_host(lora_names=lambda: list(files), find_lora=files.get, lora_path=files.get)
    for path in files.values():
        path.write_text(path.name)
    lora = use("cat", (), file="cat.safetensors", sha256=hashlib.sha256(b"my").hexdigest())
    today, change = source_of("merged", lora)
    assert (today.name, today.file, change) == ("my cat", "my cat.safetensors", "")
    said = r"its LoRA 'cat\.safetensors' is not in the loras folders"
    with pytest.raises(IterisError, match=said):
        source_of("merged", dataclasses.replace(lora, sha256="another"))


def test_a_recipe_is_shown_as_rows_and_settings():
    lora = use("a", ("a | b",), file="a.safetensors", kind="style", trigger="in a")
    text = json.dumps(recipe_of([lora], Calibration(), MergeConfig(method="sum")))
    row, empty, *settings = as_text(read_recipe("file", text)).splitlines()
    assert (row, empty) == ('<lora:a.safetensors:1> style called="in a" | a \\| b', "")
    assert {"method: sum", "seed: 0", "cfg: 0.0", "scene_weight: 0.0"} <= set(settings)
    assert not any(line.startswith("waiting_bytes") for line in settings), "no node sets that"
