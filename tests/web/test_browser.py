"""What a user does and sees: the pack in ComfyUI's own frontend, in headless Chromium."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect
from workflow_notes import TEMPLATES

ROOT = Path(__file__).parents[2]
# nodes of the chain
MERGE = 5
SAVE = 6
FIRST = 2
READABLE = 8 / 14  # below this scale the canvas draws no letters
WIDGETS = {"FLOAT", "INT", "STRING", "COMBO", "BOOLEAN"}


def get(frontend, path):
    with urllib.request.urlopen(f"http://{frontend.address}{path}") as response:
        return json.load(response)


def test_a_node_is_found_by_search_and_placed(frontend, picture):
    page = frontend.page
    page.evaluate("app.graph.clear()")
    frontend.settle()
    search = page.locator(
        ".comfy-vue-node-search-container input, [role=dialog] input[role=combobox]"
    ).first
    # the command of the toolbar: a busy page may take a double click for a drag
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    search.wait_for()
    search.press_sequentially("Merge LoRAs")
    page.get_by_role("option").filter(has_text="Merge LoRAs").first.wait_for()
    picture(frontend, "search_IterISMerge")
    page.keyboard.press("Enter")
    page.wait_for_function("app.graph.nodes.length")
    search.wait_for(state="hidden")
    # newer frontends let the node hang on the pointer until then; two clicks at one place would be a
    # double click, which opens the search again
    page.mouse.click(860, 300)
    (found,) = page.evaluate("app.graph.nodes.map((node) => [node.type, node.title])")
    assert found == ["IterISMerge", "Merge LoRAs"], "as the texts and the templates call it"
    assert frontend.errors == []


def test_the_template_opens_without_complaint(in_renderer, picture):
    frontend = in_renderer
    page = frontend.page
    page.get_by_role("button", name="Templates").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("iteris", exact=True).click()
    dialog.get_by_text("1 Merge two LoRAs").first.wait_for()
    picture(frontend, "templates")
    shown = dialog.get_by_text(re.compile(r"^\d+ \w")).all_inner_texts()
    numbers = [int(name.split()[0]) for name in dict.fromkeys(shown)]
    assert sorted(numbers) == list(range(1, len(TEMPLATES) + 1))
    dialog.get_by_text("1 Merge two LoRAs").first.click()
    page.wait_for_function("app.graph.nodes.some((node) => node.type === 'IterISMerge')")
    frontend.settle()
    picture(frontend, "template")
    assert frontend.overlaps() == []
    assert frontend.complaints().count() == 0, frontend.complaints().first.inner_text()
    dialog.wait_for(state="hidden")
    assert frontend.page.evaluate("app.canvas.ds.scale") >= READABLE
    assert frontend.prompt()["2"]["class_type"] == "IterISMerge"
    assert frontend.errors == []


def test_trigger_words_are_offered_and_written(frontend, picture, small):
    small(frontend, seed=1)
    page = frontend.page
    frontend.set_widgets(FIRST, prompts="")
    frontend.show(FIRST)
    chip = page.locator(".iteris-word", has_text="demo1").first
    chip.click()
    assert frontend.prompt()["2"]["inputs"]["prompts"] == "demo1"
    assert chip.get_attribute("aria-pressed") == "true"
    frontend.set_widgets(FIRST, lora_name="third.safetensors")
    page.locator(".iteris-word", has_text="demo3").first.click()
    assert frontend.prompt()["2"]["inputs"]["prompts"] == "demo1, demo3"
    picture(frontend, "trigger_words")


@pytest.fixture(scope="module")
def merge_run(lent, small):
    """A page in which a merge was run from the button."""
    with lent() as frontend:
        small(frontend, seed=3)
        frontend.run_to_the_end()
        frontend.page.wait_for_selector(".iteris-of", state="attached")
        yield frontend


def test_the_saved_file_is_in_the_lists_of_loras_without_pressing_r(merge_run):
    """Of nodes that are there, of those added later, and of core's own."""
    page = merge_run.page
    lists = page.evaluate(
        """() => [app.graph.getNodeById(2), LiteGraph.createNode('LoraLoader')].map((node) =>
            node.widgets.find(({ name }) => name === 'lora_name').options.values)"""
    )
    for listed in lists:
        assert sum(name.startswith("iteris_merged") for name in listed) == 1
    checkpoints = page.evaluate("app.graph.getNodeById(1).widgets[0].options.values")
    assert checkpoints == ["checkpoint.safetensors"]
    assert page.locator(".p-toast-message", has_text="definitions").count() == 0


def test_what_a_saved_workflow_keeps_is_the_nodes_own_inputs(merge_run):
    """The frontend would save a progress text as one more value, and read it back as another input's."""
    frontend = merge_run
    saved = {node["id"]: node for node in frontend.workflow()["nodes"]}
    for node_id in (FIRST, MERGE):
        schema = get(frontend, f"/object_info/{saved[node_id]['type']}")[saved[node_id]["type"]][
            "input"
        ]
        inputs = {**schema["required"], **schema.get("optional", {})}
        widgets = [
            name for name, (kind, *_) in inputs.items() if isinstance(kind, list) or kind in WIDGETS
        ]
        assert len(saved[node_id]["widgets_values"]) == len(widgets)


def test_a_wrong_name_of_the_file_stops_the_run_before_the_merge(frontend, small):
    small(frontend, seed=33)
    frontend.show(MERGE, left=100, top=100, scale=0.5)  # and Save, wherever the page was before
    frontend.set_widgets(SAVE, file_name="../x")
    frontend.page.evaluate("app.queuePrompt(0)")
    said = "'../x' is outside the folder loras"
    told = frontend.page.locator(".iteris-result > .iteris-warning")
    expect(told).to_contain_text([f"Save merged LoRA: {said}", said])
    frontend.page.keyboard.press("Escape")
    frontend.page.get_by_role("dialog").wait_for(state="hidden")


@pytest.mark.parametrize(
    ("number", "template"),
    list(enumerate(TEMPLATES, start=1)),
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_template_is_its_api_twin(frontend, picture, number, template):
    """Beyond what its twin in `workflows/api` says, it posts defaults only."""
    path = ROOT / "workflows" / f"{number} {template.title}.json"
    twin = json.loads((path.parent / "api" / f"{template.name}.json").read_text(encoding="utf-8"))
    saved = json.loads(path.read_text(encoding="utf-8"))
    frontend.load(saved, path.stem)
    assert frontend.overlaps() == []
    picture(frontend, f"workflow_{template.name}")
    assert frontend.complaints().count() == 0
    prompt = frontend.prompt()
    assert {key: node["class_type"] for key, node in prompt.items()} == {
        key: node["class_type"] for key, node in twin.items()
    }
    for key, node in twin.items():
        inputs = prompt[key]["inputs"]
        assert {name: inputs.get(name) for name in node["inputs"]} == node["inputs"], key
        optional = get(frontend, f"/object_info/{node['class_type']}")[node["class_type"]][
            "input"
        ].get("optional", {})
        for name in optional.keys() & (inputs.keys() - node["inputs"].keys()):
            assert inputs[name] == optional[name][1]["default"], f"{key} {name}"
    assert frontend.errors == []
