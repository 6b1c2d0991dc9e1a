"""workflows/api/run.py: what its options set in a workflow."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "workflows" / "api" / "run.py"
WORKFLOW = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
    "2": {
        "class_type": "IterISMerge",
        "_meta": {"title": "Merge LoRAs"},
        "inputs": {"model": ["1", 0], "clip": ["1", 1], "loras": "<lora:old>"},
    },
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "old"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "ugly"}},
    "5": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["3", 0], "negative": ["4", 0]}},
    "6": {"class_type": "KSampler", "inputs": {"positive": ["5", 0], "negative": ["4", 0]}},
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("run_workflow", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    posted = []
    monkeypatch.setattr(module, "run", lambda nodes, server: posted.append(nodes))

    def started(*options, workflow=WORKFLOW):
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(workflow))
        module.main([str(path), *options])
        return posted[-1]

    started.posted = posted
    started.module = module
    return started


def without(*numbers, **changed):
    return {key: node for key, node in WORKFLOW.items() if key not in numbers} | changed


def test_the_options_set_what_they_name_and_nothing_else(start):
    row = "<lora:folder/sks dog:0.8:0.5> subject | a photo of sks dog"
    sent = start("--checkpoint", "b", "--lora", row, "--lora", "ink:0.7", "--prompt", "new")
    expected = json.loads(json.dumps(WORKFLOW))
    expected["1"]["inputs"]["ckpt_name"] = "b"
    expected["2"]["inputs"]["loras"] = f"{row}\n<lora:ink:0.7>"
    expected["3"]["inputs"]["text"] = "new"
    assert sent == expected


def test_a_side_is_set_at_what_draws_and_not_where_a_link_gives_it(start):
    drawing = {
        "7": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 1024}},
        "8": {"class_type": "IterISCompare", "inputs": {"prompt": ""}},
        "9": {"class_type": "IterISCompare", "inputs": {"width": ["1", 0], "height": ["1", 1]}},
    }
    sent = start("--width", "512", "--height", "768", workflow=WORKFLOW | drawing)
    expected = json.loads(json.dumps(WORKFLOW | drawing))
    for number in "78":
        expected[number]["inputs"] |= {"width": 512, "height": 768}
    assert sent == expected


def test_each_row_that_is_refused_has_a_line_of_its_own(start):
    rows = [f"Row {n}: this file is for SDXL, {'long ' * 30}" for n in (1, 2)]
    reason = {"message": "Custom validation failed", "details": "loras - " + "\n".join(rows)}
    told = start.module.refusal(json.dumps({"node_errors": {"2": {"errors": [reason]}}}), WORKFLOW)
    before = "ComfyUI refuses the workflow: node 2, Merge LoRAs: Custom validation failed: "
    assert told.splitlines() == [
        f"{before}loras - {rows[0].strip()}",
        f"{before}{rows[1].strip()}",
    ]


def test_what_is_missing_is_named(start):
    from_others = {"class_type": "IterISMerge", "inputs": {"loras": ["9", 0]}}
    for options, workflow, told in (
        (("--checkpoint", "b"), without("1"), "--checkpoint: .* no node CheckpointLoaderSimple"),
        (("--lora", "b"), without("2", **{"2": from_others}), "come from other nodes"),
        (("--lora", "b"), without("2"), "--lora: .* no node IterISMerge"),
        (("--width", "512"), WORKFLOW, "--width: no node"),
        ((), {"nodes": []}, "is not a workflow in the API's format"),
    ):
        with pytest.raises(SystemExit, match=told):
            start(*options, workflow=workflow)
    assert start.posted == []
