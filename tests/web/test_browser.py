"""What a user does and sees: the pack in ComfyUI's own frontend, in headless Chromium."""

import json
import re
import statistics
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import browser
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


def lines_of(page):
    """Return the report panel's lines: (task, kind) -> its two figures."""
    page.wait_for_selector(".iteris-line", state="attached")  # behind the details
    found = page.eval_on_selector_all(
        ".iteris-line", "lines => lines.map(line => ({ ...line.dataset, text: line.textContent }))"
    )
    lines = {}
    for line in found:
        if line["kind"] == "unseen":
            strength = None if line["strength"] == "null" else float(line["strength"])
            values = (float(line["error"]), strength)
            read = re.search(r"(?:([\d-]+) % of its effect, error|changes) ([\d.]+)", line["text"])
            assert float(read[2]) == pytest.approx(values[0], abs=0.0051)
            assert strength is None or int(read[1]) == pytest.approx(100 * strength, abs=0.51)
        else:
            values = (float(line["median"]), float(line["worst"]))
            read = re.search(r"median ([\d.]+), worst ([\d.]+) at [A-Z]+\d*", line["text"])
            assert [float(value) for value in read.groups()] == pytest.approx(values, abs=0.0051)
        lines[line["task"], line["kind"]] = values
    return lines


def expected_lines(report):
    """Return the same from the report that the server's history holds."""
    values = {}
    for layer in report["layers"]:
        for entry in layer["tasks"]:
            kind = "residual" if entry["wears"] else "leak"
            values.setdefault((entry["task"], kind), []).append(entry["residual"])
    lines = {key: (statistics.median(found), max(found)) for key, found in values.items()}
    return lines | {
        (entry["task"], "unseen"): (entry["output_error"], entry["strength"])
        for entry in report["fidelity"]
        if entry["kind"] != "own"  # the verdict has these
    }


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
    assert numbers == list(range(1, len(TEMPLATES) + 1))
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


@dataclass
class MergeRun:
    """A merge that was run from the button: its page, id and report."""

    frontend: browser.Frontend
    run: str
    report: dict


@pytest.fixture(scope="module")
def merge_run(lent, small):
    with lent() as frontend:
        small(frontend, seed=3)
        run = frontend.run_to_the_end()
        frontend.page.wait_for_selector(".iteris-kept")
        outputs = get(frontend, f"/history/{run}")[run]["outputs"]
        (report,) = outputs[str(MERGE)]["iteris_report"]
        yield MergeRun(frontend, run, report)


def test_a_merge_runs_and_the_report_is_the_servers(merge_run):
    expected = expected_lines(merge_run.report)
    assert {
        ("first", "residual"),
        ("second", "residual"),
        ("base model (preserve)", "leak"),
    } <= set(expected)
    near = {
        key: tuple(value and pytest.approx(value, rel=1e-3) for value in values)
        for key, values in expected.items()
    }
    assert lines_of(merge_run.frontend.page) == near


def test_the_verdict_is_the_servers_and_the_file_stands_below(merge_run):
    page = merge_run.frontend.page
    rows = page.eval_on_selector_all(
        ".iteris-kept", "all => all.map(row => ({ ...row.dataset, text: row.innerText }))"
    )
    for row, kept in zip(rows, merge_run.report["verdict"]["loras"], strict=True):
        assert (row["lora"], row["level"]) == (kept["lora"], kept["level"])
        assert f"kept {round(100 * float(row['kept']))} %" in row["text"]
        is_open = "uncertain" in row["text"]
        assert ("likely" in row["text"]) == (len(kept["levels"]) > 1 and not is_open)
        assert float(row["kept"]) == pytest.approx(kept["kept"], rel=1e-3)
    file = page.locator(".iteris-file").inner_text()
    assert re.fullmatch(
        r"Load this\nSaved: iteris_merged\S*\.safetensors, [\d.]+\sMB, rank\s\d+\S*\.\nTrigger words: demo1, demo2\n*Copy",
        file,
    )


def test_the_saved_file_is_in_the_lists_of_loras_without_pressing_r(merge_run):
    """Of nodes that are there, of those added later, and of core's own."""
    page = merge_run.frontend.page
    lists = page.evaluate(
        """() => [app.graph.getNodeById(2), LiteGraph.createNode('LoraLoader')].map((node) =>
            node.widgets.find(({ name }) => name === 'lora_name').options.values)"""
    )
    for listed in lists:
        assert sum(name.startswith("iteris_merged") for name in listed) == 1
    checkpoints = page.evaluate("app.graph.getNodeById(1).widgets[0].options.values")
    assert checkpoints == ["checkpoint.safetensors"]
    assert page.locator(".p-toast-message", has_text="definitions").count() == 0


def test_the_prompts_of_the_last_run_are_shown(merge_run):
    filled = merge_run.frontend.page.locator(".iteris-filled").first
    assert (
        filled.inner_text() == "Prompts of the last run: a photo of demo1 · demo1 · demo1, outdoors"
    )


def test_with_a_report_the_nodes_do_not_overlap(merge_run):
    assert merge_run.frontend.overlaps() == []


def test_a_blocks_details_name_the_lora_that_suffers_most_and_where(merge_run, picture):
    frontend = merge_run.frontend
    frontend.show(MERGE, top=100)
    picture(frontend, "report")
    frontend.page.locator(".iteris-details summary").click()
    frontend.show(MERGE, top=-150)  # the details make it higher than the page
    frontend.page.locator('.iteris-block[data-block="MID"]').hover()
    picture(frontend, "report_details")
    worst = max(
        (task["residual"], task["task"], layer["path"])
        for layer in merge_run.report["layers"]
        for task in layer["tasks"]
        if task["wears"] and ".middle_block." in layer["path"]
    )
    detail = frontend.page.locator(".iteris-detail").inner_text()
    assert detail.startswith("MID") and f"{worst[1]} suffers most" in detail
    assert worst[2].rpartition(".attn")[2] in detail or worst[2].rpartition(".")[2] in detail


def test_the_report_is_kept_when_the_page_is_opened_anew(merge_run, picture):
    frontend = merge_run.frontend
    shown = lines_of(frontend.page)
    prompt = frontend.prompt()
    frontend.open()
    assert lines_of(frontend.page) == shown
    assert frontend.prompt() == prompt
    picture(frontend, "after_reload")


def test_another_page_shows_the_run_of_the_same_nodes_and_of_no_others(merge_run, open_frontend):
    """As after a crash, or in a second window: all that it knows is the server's history."""
    later = open_frontend()
    page = later.page
    nodes_as_run = merge_run.frontend.workflow()
    for node in nodes_as_run["nodes"]:
        node["properties"].pop("iteris_report", None)
    later.load(nodes_as_run, "as_run")
    page.wait_for_selector(".iteris-file")
    assert lines_of(page) == lines_of(merge_run.frontend.page)
    others = json.loads(json.dumps(nodes_as_run))
    (first,) = [node for node in others["nodes"] if node["id"] == FIRST]
    first["widgets_values"] = ["third.safetensors", *first["widgets_values"][1:]]
    with page.expect_response("**/history?*"):
        later.load(others, "others")
    # as the server goes on to tell a page that was opened anew
    output = {"iteris_report": [merge_run.report]}
    later.executed(MERGE, output, run=merge_run.run)
    later.prompt()  # with which it is compared
    later.settle()
    assert page.locator(".iteris-kept, .iteris-file").count() == 0
    with page.expect_response("**/history?*"):
        later.load(nodes_as_run, "as_run_again")
    page.wait_for_selector(".iteris-file")
    assert later.errors == []


@pytest.mark.nightly
def test_in_vue_nodes_the_report_and_the_chips_are_there(merge_run, open_frontend, picture):
    vue = open_frontend(Comfy_VueNodes_Enabled=True)
    vue.load(merge_run.frontend.workflow(), "vue")
    vue.show(MERGE, top=150)
    vue.page.locator(".lg-node .iteris-kept").first.wait_for()
    picture(vue, "vue_report")
    assert lines_of(vue.page) == lines_of(merge_run.frontend.page)
    vue.show(FIRST, top=150)
    vue.page.locator(".lg-node .iteris-word", has_text="demo1").first.click()
    assert "demo1" in vue.prompt()["2"]["inputs"]["prompts"]
    picture(vue, "vue_chips")
    assert vue.errors == []


def test_what_a_saved_workflow_keeps_is_the_nodes_own_inputs(merge_run):
    """The frontend would save a progress text as one more value, and read it back as another input's."""
    frontend = merge_run.frontend
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


@pytest.mark.parametrize(
    "in_vue", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["canvas", "vue"]
)
def test_after_a_restart_a_saved_file_is_named_as_long_as_it_is_there(
    merge_run, open_frontend, server, in_vue
):
    """All that is left is what the workflow keeps, and the file."""
    workflow = merge_run.frontend.workflow()
    later = open_frontend(Comfy_VueNodes_Enabled=in_vue)
    page = later.page
    page.evaluate("""fetch("/history", { method: "POST", body: '{"clear": true}' })""")
    later.load(workflow, "restarted")
    told = [".iteris-report .iteris-file", ".iteris-text .iteris-file"]
    for place in told:
        page.wait_for_selector(place, state="attached")
        saved = page.locator(f"{place} > span").first.text_content()
        assert re.match(r"Saved: (iteris_merged\S*\.safetensors), [\d.]+\sMB, rank", saved), place
    file = server.base / "output" / "loras" / saved.split(",")[0].removeprefix("Saved: ")
    content = file.read_bytes()
    file.unlink()
    try:
        page.evaluate("app.refreshComboInNodes()")
        later.load(workflow, "removed")
        for place in told:
            page.wait_for_function(
                "place => document.querySelector(place)?.textContent.includes('removed or changed')",
                arg=place,
            )
    finally:
        file.write_bytes(content)
    (first,) = [node for node in workflow["nodes"] if node["id"] == FIRST]
    first["widgets_values"] = ["third.safetensors", *first["widgets_values"][1:]]
    later.load(workflow, "another merge")
    for place in (".iteris-report.iteris-old .iteris-file", ".iteris-text.iteris-old .iteris-file"):
        page.wait_for_selector(place, state="attached")
    assert later.errors == []


def test_a_wrong_name_of_the_file_stops_the_run_before_the_merge(frontend, small):
    small(frontend, seed=33)
    frontend.show(MERGE, left=100, top=100, scale=0.5)  # and Save, wherever the page was before
    frontend.set_widgets(SAVE, file_name="../x")
    frontend.page.evaluate("app.queuePrompt(0)")
    said = "'../x' is outside the folder loras"
    failures = frontend.page.locator(".iteris-failure:visible")
    expect(failures).to_have_text(re.compile(f"^{re.escape(said)}"))  # told once, at Save
    note = frontend.page.locator(".iteris-report > .iteris-note").first
    expect(note).to_have_text("The last run merged nothing: Save merged LoRA had an error.")
    expect(frontend.page.locator(".iteris-text .iteris-failure")).to_have_count(1)
    frontend.page.keyboard.press("Escape")
    frontend.page.get_by_role("dialog").wait_for(state="hidden")
    frontend.set_widgets(SAVE, file_name="x")
    frontend.keep()
    expect(failures).to_have_count(0)


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


def test_the_blueprint_is_one_node_with_lists_of_files(in_renderer, picture):
    frontend = in_renderer
    listed = get(frontend, "/global_subgraphs").items()  # newer hosts have some of their own
    (entry,) = [entry for entry, found in listed if found["name"] == "Merge two LoRAs"]
    blueprint = json.loads(get(frontend, f"/global_subgraphs/{entry}")["data"])
    frontend.load(blueprint, "blueprint")
    chosen = {"first LoRA": "first.safetensors", "second LoRA": "second.safetensors"}
    place = blueprint["nodes"][0]["id"]
    frontend.show(place, left=500, top=150)
    picture(frontend, "blueprint")
    lists = """id => Object.fromEntries(app.graph.getNodeById(id).widgets.map(
        ({ name, options }) => [name, options?.values]))"""
    shown = frontend.page.evaluate(lists, place)
    assert all(file in shown[name] for name, file in chosen.items())
    fields = {"preset": "Fast", "together": True, "prompt": "a dog", "file_name": "x"}
    frontend.set_widgets(place, **chosen, **fields)
    posted = frontend.prompt()
    sent = {
        name: value
        for node in posted.values()
        for name, value in node["inputs"].items()
        if name in fields
    }
    assert sent == fields
    found = [n["inputs"] for n in posted.values() if n["class_type"] == "IterISLora"]
    assert [lora["lora_name"] for lora in found] == list(chosen.values())
    (merge,) = [n["inputs"] for n in posted.values() if n["class_type"] == "IterISMerge"]
    (last,) = [key for key, n in posted.items() if n["inputs"].get("previous")]
    assert (merge["loras"], merge["more_loras"]) == ("", [last, 0])
    assert frontend.errors == []
