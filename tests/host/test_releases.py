"""A workflow that a released version has saved runs in this one."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

RELEASES = Path(__file__).parents[1] / "data" / "releases"
VERSIONS = sorted(path.name for path in RELEASES.iterdir())


@pytest.fixture(params=VERSIONS)
def release(request, host):
    folder = RELEASES / request.param
    for path in folder.glob("*.safetensors"):
        shutil.copyfile(path, host.loras / path.name)
    return folder


def recipe_in(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["iteris.recipe"])


def settings_of(recipe):
    """Return what a recipe asks of the merge, without what made it and what its machine decided."""
    loras = [{**lora, "prompts_from": ""} for lora in recipe["loras"]]
    of_the_machine = ("samples_per_chunk", "waiting_bytes", "call_bytes")
    config = {key: value for key, value in recipe["config"].items() if key not in of_the_machine}
    made_on = {"base", *(key for key in recipe if key.endswith("_version"))}
    kept = {key: value for key, value in recipe.items() if key not in made_on}
    calibration = {**recipe["calibration"], "held_out": 0}
    return kept | {"loras": loras, "config": config, "calibration": calibration}


def means_the_same(now, then):
    """Whether settings are those of then; what there was not yet may be anything."""
    calibration = {key: now["calibration"].get(key) for key in then["calibration"]}
    config = {key: now["config"].get(key) for key in then["config"]}
    baseline = {key: config["baseline"].get(key) for key in then["config"]["baseline"]}
    config |= {"baseline": baseline}
    kept = {key: now.get(key) for key in then} | {"calibration": calibration, "config": config}
    return kept == then


def test_there_is_a_release():
    assert "0.1.0" in VERSIONS


def test_its_workflow_runs_and_means_the_same(host, release):
    nodes = json.loads((release / "workflow_api.json").read_text(encoding="utf-8"))
    outputs = host.run(nodes)["outputs"]
    # another folder has the name, where the file of then is
    [path] = (host.output / "loras").glob("released_merged_*.safetensors")
    assert outputs["6"]["text"][:2] == [
        str(path),
        "read back: 4 of 4 modules, largest difference 0",
    ]
    assert outputs["12"]["images"]
    then = settings_of(recipe_in(release / "released_merged.safetensors"))
    now = settings_of(recipe_in(path))
    path.unlink()
    assert means_the_same(now, then)
