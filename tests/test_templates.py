"""The templates' files, without a browser: all are there, and they say what their list says."""

import itertools
import json
from pathlib import Path

from workflow_files import GROWTH
from workflow_notes import TEMPLATES

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "workflows"
TITLE = 30  # of a node, above its place
UNSAVED = 82  # of a merge before a run: a workflow keeps a lower one
WINDOW = 800  # pixels
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


def test_a_template_is_read_from_its_note_on_and_no_node_covers_another_after_a_run():
    for name in FILES:
        nodes = read(FOLDER / f"{name}.json")["nodes"]
        (note,) = (node for node in nodes if node["type"] == "MarkdownNote")
        corner = [min(node["pos"][axis] for node in nodes) for axis in (0, 1)]
        assert note["pos"] == corner, name
        for one, other in itertools.combinations(nodes, 2):
            apart = (
                first["pos"][axis]
                + first["size"][axis]
                + (TITLE + GROWTH.get(first["type"], 0)) * axis
                <= second["pos"][axis]
                for first, second in ((one, other), (other, one))
                for axis in (0, 1)
            )
            assert any(apart), f"{name}: {one['type']}, {other['type']}"


def test_a_template_opens_with_the_users_first_checkpoint():
    for name in FILES:
        for node in read(FOLDER / f"{name}.json")["nodes"]:
            has_fields = any("widget" in item for item in node["inputs"])
            keeps = has_fields and node["type"] != "CheckpointLoaderSimple"
            assert ("widgets_values" in node) == (keeps or node["type"] == "MarkdownNote"), name


def test_groups_hold_their_nodes_and_end_together():
    for name in FILES:
        workflow = read(FOLDER / f"{name}.json")
        boxes = [group["bounding"] for group in workflow["groups"]]
        assert len({box[1] + box[3] for box in boxes}) == 1, name
        rooms = []
        for node in workflow["nodes"]:
            (box,) = (box for box in boxes if box[0] <= node["pos"][0] <= box[0] + box[2])
            height = node["size"][1] + UNSAVED * node["type"].startswith("IterISMerge")
            rooms.append(box[1] + box[3] - node["pos"][1] - height)
        assert 12 <= min(rooms) < 60, f"{name}: a run makes them higher, and nothing else"


def test_a_link_to_the_node_below_goes_round_both():
    for name in FILES:
        workflow = read(FOLDER / f"{name}.json")
        left = {node["id"]: node["pos"][0] for node in workflow["nodes"]}
        round_it = {link["id"] for link in workflow["extra"].get("linkExtensions", ())}
        ends = [(one, other) for _, one, _, other, *_ in workflow["links"]]
        for link, one, _, other, *_ in workflow["links"]:
            is_below = left[one] == left[other] and ends.count((one, other)) == 1
            assert link in round_it or not is_below, f"{name}: {one} to {other}"


def test_a_template_opens_with_letters():
    for name in FILES:
        assert read(FOLDER / f"{name}.json")["extra"]["ds"]["scale"] >= 0.58, name


def test_pictures_are_in_sight_once_they_are_drawn():
    """Compare stands beside the note, and what saves its picture at its right."""
    for name in FILES:
        workflow = read(FOLDER / f"{name}.json")
        inputs = [item for node in workflow["nodes"] for item in node["inputs"]]
        if not any(item["name"] == "cover" and item["link"] for item in inputs):
            continue
        view = workflow["extra"]["ds"]
        (compare,) = (node for node in workflow["nodes"] if node["type"] == "IterISCompare")
        end = compare["pos"][1] + compare["size"][1] + GROWTH["IterISCompare"]
        assert (end + view["offset"][1]) * view["scale"] <= WINDOW, name
