"""What a recipe says about a merge, read back."""

import dataclasses
import hashlib
import json

import pytest
import torch
from fake_host import use
from iteris_pack.nodes.merge import from_widgets
from iteris_pack.nodes.recipe import source_of

from iteris_core import Adapter, IterisError, LowRankDelta
from iteris_core.diffusion.lora_use import LoadedLora
from iteris_core.diffusion.recipe import read_recipe


def test_a_file_that_is_only_called_alike_is_not_the_recipes(replace_host, tmp_path):
    files = {"cat_two.safetensors": tmp_path / "cat_two", "my cat.safetensors": tmp_path / "my"}
    replace_host(lora_names=lambda: list(files), find_lora=files.get, lora_path=files.get)
    for path in files.values():
        path.write_text(path.name)
    lora = use("cat", (), file="cat.safetensors", sha256=hashlib.sha256(b"my").hexdigest())
    today, change = source_of("merged", lora)
    assert (today.name, today.file, change) == ("my cat", "my cat.safetensors", "")
    with pytest.raises(
        IterisError, match=r"its LoRA 'cat\.safetensors' is not in the loras folders"
    ):
        source_of("merged", dataclasses.replace(lora, sha256="another"))


def test_widgets_and_recipe_say_the_same():
    adapter = Adapter("a", {"x": LowRankDelta(torch.ones(1000, 4), torch.ones(4, 2000))})
    widgets = {
        "alpha": 1e-3,
        "precision": "bfloat16",
        "rank": 0,
        "kept_energy": 0.9,
        "size_mb": 0.0,
        "target": "full_output",
    }
    meant = from_widgets(
        [LoadedLora.of(adapter, ("p",))], method="svd", correct_strength=True, **widgets
    )
    assert (meant.config.kept_energy, meant.config.output_dtype, meant.config.rank) == (
        0.9,
        torch.bfloat16,
        "sum",
    )
    used = dataclasses.asdict(use("a", ("p",), file="a.safetensors"))
    text = json.dumps(
        {
            "loras": [used],
            "calibration": {},
            "config": meant.config.to_dict(),
            "strength_correction": 1.1,
        }
    )
    recipe = read_recipe("file", text)
    assert (recipe.config, recipe.is_corrected) == (meant.config, meant.correct_strength)
