"""The templates' files, without a browser: all are there, and they say what their list says."""

import itertools
import json
from pathlib import Path

from workflow_notes import TEMPLATES

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "workflows"
TITLE = 30  # of a node, above its place
FILES = {
    f"{number} {template.title}": template for number, template in enumerate(TEMPLATES, start=1)
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_template_has_a_file_with_its_note_a_picture_and_a_twin():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(FILES)
    assert {path.stem for path in FOLDER.glob("*.jpg")} == set(FILES)
    for name, template in FILES.items():
        nodes = read(FOLDER / f"{name}.json")["nodes"]
        (note,) = (node for node in nodes if node["type"] == "MarkdownNote")
        assert note["widgets_values"] == [template.note]
        assert (FOLDER / "api" / f"{template.name}.json").exists()


def test_a_template_is_read_from_its_note_on_and_no_node_covers_another():
    for name in FILES:
        nodes = read(FOLDER / f"{name}.json")["nodes"]
        (note,) = (node for node in nodes if node["type"] == "MarkdownNote")
        corner = [min(node["pos"][axis] for node in nodes) for axis in (0, 1)]
        assert note["pos"] == corner, name
        for one, other in itertools.combinations(nodes, 2):
            apart = (
                first["pos"][axis] + first["size"][axis] + TITLE * axis <= second["pos"][axis]
                for first, second in ((one, other), (other, one))
                for axis in (0, 1)
            )
            assert any(apart), f"{name}: {one['type']}, {other['type']}"


def test_a_group_has_room_for_the_panels_of_its_nodes():
    """In frontends of both kinds, which let a node be as high as its panels."""
    highest = {"IterISMerge": 600, "IterISCompare": 960, "IterISSave": 270}
    for name in FILES:
        workflow = read(FOLDER / f"{name}.json")
        ends = [
            node["pos"][1] + max(node["size"][1], highest.get(node["type"], 0))
            for node in workflow["nodes"]
        ]
        for group in workflow["groups"]:
            assert group["bounding"][1] + group["bounding"][3] > max(ends), name


def test_a_template_opens_with_the_users_first_checkpoint():
    for name in FILES:
        for node in read(FOLDER / f"{name}.json")["nodes"]:
            has_fields = any("widget" in item for item in node["inputs"])
            keeps = has_fields and node["type"] != "CheckpointLoaderSimple"
            assert ("widgets_values" in node) == (keeps or node["type"] == "MarkdownNote"), name


def test_a_template_has_the_inputs_that_its_nodes_have():
    """All of them; `tests/nodes/test_workflow.py` follows the links."""
    wanted = ["model", "clip", "lora_stack", "more_loras", "settings", "start"]
    for name in FILES:
        for node in read(FOLDER / f"{name}.json")["nodes"]:
            if node["type"] == "IterISMerge":
                assert [item["name"] for item in node["inputs"]][:6] == wanted, name


def test_each_half_of_wan_is_merged_on_its_noise_levels():
    """In the template and in its twin; the samplers' order says which half is which."""
    nodes = {node["id"]: node for node in read(FOLDER / "6 Wan video.json")["nodes"]}
    links = {link[0]: nodes[link[1]] for link in read(FOLDER / "6 Wan video.json")["links"]}

    def before(node, name):
        return links[next(item["link"] for item in node["inputs"] if item["name"] == name)]

    def level_of(sampler):
        settings = before(before(sampler, "model"), "settings")
        fields = [item["name"] for item in settings["inputs"] if "widget" in item]
        return dict(zip(fields, settings["widgets_values"], strict=True))["noise_levels"]

    assert [level_of(nodes[key]) for key in (10, 11)] == ["high", "low"]
    twin = read(FOLDER / "api" / "wan_video.json")

    def linked(key, name):
        return twin[key]["inputs"][name][0]

    settings = [linked(linked(key, "model"), "settings") for key in ("10", "11")]
    assert [twin[key]["inputs"]["noise_levels"] for key in settings] == ["high", "low"]
