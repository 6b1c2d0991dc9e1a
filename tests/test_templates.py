"""The templates' files, without a browser: all are there, and all open readable."""

import json
from pathlib import Path

import pytest
from PIL import Image
from workflow_notes import TEMPLATES

ROOT = Path(__file__).parents[1]
FILES = {
    f"{number} {template.title}": template for number, template in enumerate(TEMPLATES, start=1)
}
WINDOW = (1280, 800)
BARS = (60, 90)  # at its left and upper side


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_template_has_a_file_a_square_picture_and_a_twin():
    folder = ROOT / "workflows"
    assert {path.stem for path in folder.glob("*.json")} == set(FILES)
    assert {path.stem for path in folder.glob("*.jpg")} == set(FILES)
    twins = {path.stem for path in (folder / "api").glob("*.json")}
    # one is of LORA_STACK, which core has no node for, one of core's trainer, which changes
    assert twins - {template.name for template in TEMPLATES} == {
        "loras_of_a_stack",
        "train_and_merge",
    }
    for path in folder.glob("*.jpg"):
        picture = Image.open(path).convert("L")
        width, height = picture.size
        assert width == height
        assert path.stat().st_size < 60_000
        darkest, lightest = picture.crop((0, 0, width, height // 5)).getextrema()
        assert lightest - darkest < 8, "the frontend lays a badge over the upper fifth"


@pytest.mark.parametrize("name", FILES)
def test_a_template_opens_whole_at_70_percent_or_more(name):
    """In a window that is not large; without a view of its own, ComfyUI 0.3.75 scatters its nodes
    in Nodes 2.0.
    """
    workflow = read(ROOT / "workflows" / f"{name}.json")
    view = workflow["extra"]["ds"]
    assert view["scale"] >= 0.7
    for group in workflow["groups"]:
        *corner, width, height = group["bounding"]
        for at, offset, side, end, begin in zip(
            corner, view["offset"], (width, height), WINDOW, BARS, strict=True
        ):
            assert (at + offset) * view["scale"] >= begin
            assert (at + offset + side) * view["scale"] <= end


@pytest.mark.parametrize("name", FILES)
def test_a_template_opens_in_groups_and_with_the_users_first_checkpoint(name):
    workflow = read(ROOT / "workflows" / f"{name}.json")
    assert len(workflow["groups"]) == 3
    for node in workflow["nodes"]:
        assert ("widgets_values" in node) == (node["type"] != "CheckpointLoaderSimple")


def test_the_fields_of_an_app_are_those_of_its_nodes():
    apps = {name: template for name, template in FILES.items() if template.app}
    assert apps
    for name, template in apps.items():
        data = read(ROOT / "workflows" / f"{name}.json")["extra"]["linearData"]
        twin = read(ROOT / "workflows" / "api" / f"{template.name}.json")
        assert data["inputs"] == [list(field) for field in template.app]
        given = {(int(key), name) for key, node in twin.items() for name in node["inputs"]}
        # preset is left to its default
        assert {tuple(field) for field in data["inputs"]} - {(2, "preset")} <= given
        assert [twin[str(key)]["class_type"] for key in data["outputs"]] == ["IterISCompare"]


def test_the_search_for_nodes_says_what_the_blueprint_does():
    (path,) = (ROOT / "subgraphs").glob("*.json")
    (template,) = [template for template in TEMPLATES if template.title == path.stem]
    assert read(path)["extra"]["BlueprintDescription"] == template.does


def test_a_recipe_of_two_loras_does_not_grow_below_the_note():
    nodes = read(ROOT / "workflows" / "8 Make a merge again.json")["nodes"]
    place = {node["type"]: (node["pos"][1], node["size"][1]) for node in nodes}
    top, height = place["IterISRecipe"]
    lines = 8  # in Nodes 2.0, 15 high each; with the margins and the pack's name below them
    assert place["MarkdownNote"][0] - top - height >= 15 * lines + 70
