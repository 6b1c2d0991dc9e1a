"""What a workflow tells about where something comes from, and the sockets of those that are shared."""

import json
from pathlib import Path

import pytest
from iteris_pack.nodes.compare import Compare
from iteris_pack.nodes.lora import LoraToMerge
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.recipe import LoadRecipe
from iteris_pack.nodes.save import SaveMergedLora
from iteris_pack.nodes.settings import Settings
from iteris_pack.nodes.workflow import needed_for, strings_in, texts_upstream

ROOT = Path(__file__).parents[2]
SHARED = list(ROOT.glob("workflows/*.json"))


def test_the_base_model_is_what_the_workflow_names_before_the_merge():
    prompt = {
        "1": {"inputs": {"ckpt_name": "sd15.safetensors"}},
        "2": {"inputs": {"model": ["1", 0], "lora": "x"}},
        "3": {"inputs": {"ckpt_name": "other"}},
        "5": {"inputs": {"model": ["2", 0], "clip": ["gone", 1], "more_loras": ["3", 0]}},
    }
    assert set(texts_upstream(prompt, "5", ("model", "clip"))) == {"sd15.safetensors", "x", "gone"}
    assert list(texts_upstream({}, "5", ("model",))) == []


def test_a_run_of_some_nodes_is_these_and_what_they_come_from():
    """So that a Save that is left out refuses no merge."""
    prompt = {
        "1": {"inputs": {"ckpt_name": "sd15.safetensors"}},
        "2": {"inputs": {"model": ["1", 0]}},
        "3": {"inputs": {"merged": ["2", 3]}},
        "12:4": {"inputs": {"merged": ["2", 3]}},
    }
    assert list(needed_for(prompt, ["12:4"])) == ["1", "2", "12:4"]
    assert needed_for(prompt, ["3", "12:4"]) == prompt
    assert needed_for(prompt, ["gone"]) == {}


def test_texts_are_found_at_any_depth():
    workflow = "cat"
    for _ in range(100_000):
        workflow = [workflow]
    assert list(strings_in({"1": workflow})) == ["cat"]


@pytest.mark.parametrize("path", SHARED, ids=lambda path: path.stem)
def test_a_shared_workflow_has_todays_sockets_in_their_order_and_links_join_them(
    path, replace_host
):
    replace_host(lora_names=list, sampler_names=list, scheduler_names=list)
    nodes = (Merge, Compare, LoraToMerge, SaveMergedLora, Settings, LoadRecipe)
    schemas = [node.define_schema() for node in nodes]
    today = {schema.node_id: [item.id for item in schema.inputs] for schema in schemas}
    labels = {(s.node_id, i.id): i.display_name or i.id for s in schemas for i in s.inputs}
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes.values():
        names = [item["name"] for item in node["inputs"] if "widget" not in item]
        known = today.get(node["type"], names)
        assert names == [name for name in known if name in names]
        for item in node["inputs"]:
            label = labels.get((node["type"], item["name"]))
            assert label in (None, item.get("localized_name"))
    for number, origin, out, target, into, _ in workflow["links"]:
        assert nodes[target]["inputs"][into]["link"] == number
        assert number in nodes[origin]["outputs"][out]["links"]
