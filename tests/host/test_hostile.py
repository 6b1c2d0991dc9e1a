"""Workflows of strangers over HTTP: each is refused with a sentence, before any model runs."""

import json
import math

import pytest
from safetensors.torch import load_file, save_file

from demo.client import WorkflowFailed
from iteris_core.diffusion.recipe import METADATA_KEY


def number(value, kind="PrimitiveFloat"):
    """Return a node that gives a number to a link, where ComfyUI does not check it."""
    return {"class_type": kind, "inputs": {"value": value}}


def recipe(host, **calibration):
    """Write a LoRA with a recipe of the same file with these settings, and return the nodes that
    load it.
    """
    lora = {"name": "first", "file": "first.safetensors", "sha256": "", "prompts": ["a thing"]}
    settings = {
        "loras": [lora | {"strength_model": 1.0, "strength_clip": 1.0}],
        "calibration": calibration,
        "config": {},
    }
    tensors = load_file(host.loras / "first.safetensors")
    save_file(tensors, host.loras / "strange.safetensors", {METADATA_KEY: json.dumps(settings)})
    inputs = {"lora_name": "strange.safetensors", "check_files": False}
    return {"7": {"class_type": "IterISRecipe", "inputs": inputs}}


def changed(host, node, **inputs):
    nodes = host.merge()
    nodes[node]["inputs"].update(inputs)
    return nodes


CASES = {
    "endless recipe": (
        lambda host: {
            **changed(host, "5", more_loras=["7", 0], settings=["7", 1]),
            **recipe(host, trajectories=10**8),
        },
        "trajectories is 100000000; it must be a whole number from 1 to 1000",
    ),
    "no number": (
        lambda host: changed(host, "2", strength_model=math.nan),
        "strength_model is nan; it must be a number from -100 to 100",
    ),
    "fraction on a link": (
        lambda host: {**changed(host, "4", smoothing=["8", 0]), "8": number(1e12)},
        "smoothing is 1000000000000.0; it must be a number from 0 to",
    ),
    "large number on a link": (
        lambda host: {
            **changed(host, "4", sample_runs=["8", 0]),
            "8": number(10**15, "PrimitiveInt"),
        },
        "sample_runs is 1000000000000000",
    ),
    "long prompt": (
        lambda host: changed(host, "2", prompts="word " * 20_000),
        "prompts is ('word word",
    ),
    "prompt of many pieces": (
        lambda host: changed(host, "2", prompts="word " * 400),
        "pieces of 75 tokens; calibration can use prompts of up to 4",
    ),
    "negative prompt of many pieces": (
        lambda host: changed(host, "4", negative_prompt="word " * 400, cfg=7.0),
        "pieces of 75 tokens; calibration can use prompts of up to 4",
    ),
    "half a character": (
        lambda host: changed(host, "2", prompts="a photo of \ud83d"),
        "prompts is 'a photo of \\ud83d'; it must be a text",
    ),
}


@pytest.mark.parametrize(("nodes", "said"), CASES.values(), ids=CASES)
def test_a_workflow_that_asks_for_too_much_is_refused_before_any_model_runs(host, nodes, said):
    stages = []
    with pytest.raises(WorkflowFailed) as failed:
        host.run(
            nodes(host), lambda event, data: stages.append(data) if event == "iteris.stage" else 0
        )
    assert said in str(failed.value)
    assert stages == []
