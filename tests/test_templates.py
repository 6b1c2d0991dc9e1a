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
FILLED = 0.75  # of the window, when ComfyUI fits a template into it
MARGIN = 10
TITLE = 30


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
        width, height = Image.open(path).size
        assert width == height
        assert path.stat().st_size < 60_000


@pytest.mark.parametrize("name", FILES)
def test_a_template_opens_at_70_percent_or_more(name):
    """By the rectangles of its nodes, as ComfyUI fits them into a window that is not large."""
    nodes = read(ROOT / "workflows" / f"{name}.json")["nodes"]
    rectangles = [(*node["pos"], *node["size"]) for node in nodes]
    width = max(x + w for x, _, w, _ in rectangles) - min(x for x, *_ in rectangles)
    height = max(y + h for _, y, _, h in rectangles) - min(y - TITLE for _, y, *_ in rectangles)
    fits = [
        FILLED * side / (of + 2 * MARGIN) for side, of in zip(WINDOW, (width, height), strict=True)
    ]
    assert min(fits) >= 0.7


@pytest.mark.parametrize("name", FILES)
def test_a_template_opens_fitted_and_with_the_users_first_checkpoint(name):
    workflow = read(ROOT / "workflows" / f"{name}.json")
    assert "ds" not in workflow["extra"]
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
