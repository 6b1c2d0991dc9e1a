"""Every workflow of `workflows/api` on a real ComfyUI, with little work in it."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from waiting import HANGS
from workflow_files import list_transformer

from demo.client import WorkflowFailed

FOLDER = Path(__file__).parents[2] / "workflows" / "api"
CHAIN = json.loads((FOLDER.parents[1] / "tests" / "data" / "chain.json").read_text())
FEW_SAMPLES = {"sample_runs": 1, "sampling_steps": 2, "resolution": 64}
FEW_SAMPLES |= {"negative_share": 0.0}
MERGED = "middle_1+middle_2.safetensors"
# no file of such a model is small
TRANSFORMERS = {path.stem for path in FOLDER.glob("*.json") if "UNETLoader" in path.read_text()}
SMALL = {
    "CheckpointLoaderSimple": {"ckpt_name": "sd15.safetensors"},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 1},
    "IterISSave": {"overwrite": True},  # several make the same file, which is saved once
    "IterISCompare": {"prompt": "a demo1", "steps": 1, "cfg": 1.0, "width": 64, "height": 64},
}


def whole(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def small(name: str) -> dict:
    """Return a workflow with the server's small files, and as little work in it as it can have."""
    names = itertools.cycle(("middle_1", "middle_2", "middle_3"))
    nodes = whole(name)
    for node in nodes.values():
        for key, value in node["inputs"].items():
            if key == "lora_name":
                node["inputs"][key] = MERGED
            elif isinstance(value, str):
                node["inputs"][key] = re.sub("<lora:(?=:)", lambda _: f"<lora:{next(names)}", value)
        node["inputs"].update(SMALL.get(node["class_type"], {}))
        if node["class_type"] == "IterISMerge":
            node["inputs"]["settings"] = ["few", 0]
    inputs = CHAIN["4"]["inputs"] | FEW_SAMPLES
    return nodes | {"few": {"class_type": "IterISSettings", "inputs": inputs}}


@pytest.fixture(scope="module")
def files(host):
    (host.base / "input").mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), "teal").save(host.base / "input" / "example.png")


@pytest.mark.parametrize(
    "name",
    sorted(
        {path.stem for path in FOLDER.glob("*.json")} - TRANSFORMERS,
        key=lambda name: (name == "make_a_merge_again", name),  # after those whose file it reads
    ),
)
def test_it_runs(host, files, name):
    if name == "make_a_merge_again" and not (host.output / "loras" / MERGED).exists():
        host.run(small("merge_two_loras"))
    nodes = small(name)
    outputs = host.run(nodes)["outputs"]
    merges = [key for key, node in nodes.items() if node["class_type"] == "IterISMerge"]
    saved = [key for key, node in nodes.items() if node["class_type"] == "IterISSave"]
    for merge in merges:
        assert outputs[merge]["iteris"][0]["report"]["layers"]
    assert outputs[saved[0]]["text"][1].startswith("read back:")
    for key, node in nodes.items():
        if node["class_type"] == "IterISCompare":
            assert outputs[key]["iteris"][0]["pictures"]
    if name == "make_a_lora_smaller":
        layers = outputs[merges[0]]["iteris"][0]["report"]["layers"]
        assert {layer["rank"] for layer in layers} == {8}


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_that_of_a_transformer_is_accepted_and_ends_where_its_files_are_missing(host, files, name):
    list_transformer(host.base / "models")
    with pytest.raises(WorkflowFailed) as failed:
        host.run(small(name))
    assert failed.value.node_type in ("UNETLoader", "DualCLIPLoader", "CLIPLoader", "VAELoader")


def test_the_client_runs_one_and_tells_what_went_wrong(host, files, tmp_path):
    def client(workflow):
        (tmp_path / "workflow.json").write_text(json.dumps(workflow))
        command = [sys.executable, FOLDER / "run.py", tmp_path / "workflow.json", "--server"]
        command.append(host.server.address)
        return subprocess.run(command, capture_output=True, text=True, timeout=HANGS)

    workflow = small("merge_two_loras")
    done = client(workflow)
    assert done.returncode == 0, done.stderr
    assert ", Save merged LoRA:" in done.stdout and "read back: 2 of 2 modules" in done.stdout
    workflow["few"]["inputs"]["sample_runs"] = -1
    refused = client(workflow).stderr
    assert refused.startswith(
        "ComfyUI refuses the workflow: node few, IterISSettings: Value -1 smaller"
    )
    assert refused.count("\n") == 1
