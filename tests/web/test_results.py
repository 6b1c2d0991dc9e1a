"""The panel of a node: what a run has done, how far it is, and why it failed."""

import re

import pytest
from browser import OF
from playwright.sync_api import expect

# nodes of the chain
MERGE, SAVE = 5, 6
NOTES = [
    {"code": "host", "text": "A note.", "warning": False},
    {"code": "ranks", "text": "A warning.", "warning": True},
]
PRESETS = {"Fast": {"rows": 50, "runs": 20, "steps": 0}}
PRESETS |= {name: {"rows": 100, "runs": 40, "steps": 0} for name in ("Balanced", "Thorough")}
RESULT = {
    "of": OF,
    "facts": ["207 rows measured, 60 s", "264 layers, rank 32, 75.5 MB"],
    "notes": NOTES,
    "cost": {"rows": 100, "seconds": 60.0, "presets": PRESETS},
}
STAGE = {"name": "Sampling", "number": 2, "count": 4, "starts": 0.25, "share": 0.5}
STAGE |= {"is_alike": True, "told_by": 1}
NOTHING = "What this node has done appears here after a run."
FILE = {
    "path": "/output/loras/x.safetensors",
    "name": "x.safetensors",
    "listed_as": "x.safetensors",
    "mb": 12.34,
    "ranks": [4, 8],
    "words": ["demo1", "demo2"],
    "hash": "ab",
    "read_back": "as written",
}


def panels(frontend):
    return frontend.page.locator(".iteris-result")


def fail(frontend, node_id, message):
    """Let the page believe that a run has failed in a node."""
    error = {"exception_message": message, "exception_type": "Error", "traceback": []}
    frontend.send("execution_error", prompt_id="a", node_id=str(node_id), **error)
    dismiss(frontend)


def dismiss(frontend):
    """Close the host's own message of a failure."""
    frontend.page.get_by_role("dialog").wait_for()
    frontend.page.keyboard.press("Escape")
    frontend.page.get_by_role("dialog").wait_for(state="hidden")


def load_merge(frontend, name):
    """Load a Merge LoRAs alone, number 5."""
    frontend.load({str(MERGE): {"class_type": "IterISMerge", "inputs": {"loras": ""}}}, name)
    frontend.show(MERGE, top=60)
    return panels(frontend)


def test_a_result_begins_with_what_it_is_of(in_renderer, picture):
    frontend = in_renderer
    panel = load_merge(frontend, "result")
    expect(panel).to_have_text(NOTHING)
    frontend.executed(MERGE, RESULT, "for the API")
    first, *rest = panel.locator("div").all_inner_texts()
    assert re.fullmatch(
        r"first \+ ink at 0.8, Balanced, together, rank 32, \d\d:\d\d( [AP]M)?", first
    )
    assert rest == [
        "A warning.",
        *RESULT["facts"],
        "A note.",
        "To merge again: Fast about 30 s · Balanced = Thorough about 60 s",
    ]
    picture(frontend, "result")
    assert frontend.errors == []


def test_a_panel_has_one_height_and_scrolls_inside(in_renderer):
    frontend = in_renderer
    panel = load_merge(frontend, "height")
    size, high = frontend.size_of(MERGE), panel.bounding_box()["height"]
    frontend.executed(MERGE, RESULT | {"facts": ["a fact"] * 100})
    assert frontend.size_of(MERGE) == size
    assert panel.bounding_box()["height"] == high
    scale = frontend.page.evaluate("app.canvas.ds.scale")
    panel.hover()
    frontend.page.mouse.wheel(0, 200)
    frontend.page.wait_for_function("document.querySelector('.iteris-result').scrollTop")
    assert frontend.page.evaluate("app.canvas.ds.scale") == scale
    frontend.executed(MERGE, RESULT | {"facts": [], "notes": [], "cost": None})
    frontend.page.mouse.wheel(0, 200)  # nothing to scroll
    frontend.page.wait_for_function("scale => app.canvas.ds.scale < scale", arg=scale)
    assert frontend.errors == []


def test_progress_names_the_stage_and_the_time_left_until_there_is_a_result(in_renderer, picture):
    frontend = in_renderer
    panel = load_merge(frontend, "progress")

    def send(**step):
        frontend.send("iteris.stage", prompt_id="a", node=str(MERGE), stage=STAGE, **step)

    send(done=0, total=60, seconds_left=0)
    expect(panel).to_have_text("Stage 2 of 4: Sampling 0/60")
    send(done=30, total=60, seconds_left=400)
    expect(panel).to_have_text(
        re.compile(r"^Stage 2 of 4: Sampling 30/60about [67](\.5)? min left$")
    )
    bar = panel.locator(".iteris-bar")
    assert bar.evaluate("bar => bar.style.getPropertyValue('--iteris-done')") == "50.0%"
    picture(frontend, "progress")
    frontend.send("reconnecting")
    expect(panel.locator(".iteris-left")).to_have_text("waiting for ComfyUI's server")
    frontend.send("reconnected")
    expect(panel.locator(".iteris-left")).to_have_text(re.compile("left"))
    frontend.executed(MERGE, RESULT)
    frontend.page.wait_for_timeout(500)  # no clock draws the line again
    expect(panel.locator(".iteris-stage")).to_have_count(0)
    expect(panel).to_contain_text("A warning.")
    send(done=30, total=60, seconds_left=400)
    frontend.send("execution_interrupted", prompt_id="a")
    expect(panel).to_contain_text("A warning.")
    assert frontend.errors == []


def test_an_error_of_a_run_is_on_its_node_until_the_next_run(in_renderer, small):
    frontend = in_renderer
    small(frontend, seed=1)
    frontend.show(MERGE, left=100, top=100, scale=0.5)
    frontend.executed(MERGE, RESULT)
    fail(frontend, MERGE, "No rows.\n")
    merge, save = panels(frontend).all()
    expect(merge).to_have_text("Failed:No rows.")
    expect(save).to_have_text(NOTHING)
    frontend.send("execution_start", prompt_id="b")
    expect(merge).to_contain_text("A warning.")
    assert frontend.errors == []


def test_what_the_server_refuses_is_said_on_the_node(in_renderer, small, picture):
    frontend = in_renderer
    small(frontend, seed=2)
    frontend.show(MERGE, left=100, top=100, scale=0.5)
    frontend.set_widgets(SAVE, file_name="../x")
    frontend.run()
    merge, save = panels(frontend).all()
    for panel in (merge, save):
        expect(panel).to_contain_text("'../x' is outside the folder loras")
    picture(frontend, "refused")
    dismiss(frontend)
    frontend.set_widgets(SAVE, file_name="x", overwrite=True)
    frontend.run_to_the_end()
    for panel in (merge, save):
        expect(panel).to_contain_text("first + second, ")
        expect(panel).not_to_contain_text("Failed")
    assert frontend.errors == []


def test_a_saved_file_is_shown_with_its_trigger_words(in_renderer, picture):
    frontend = in_renderer
    frontend.load({"1": {"class_type": "IterISSave", "inputs": {}}}, "save")
    frontend.show(1, top=60)
    frontend.executed(1, {"of": OF, "files": [FILE], "notes": []})
    panel = panels(frontend)
    expect(panel.locator("b")).to_have_text("x.safetensors")
    expect(panel).to_contain_text("12.3 MB, rank 4-8")
    expect(panel).to_contain_text("Trigger words: demo1, demo2")
    picture(frontend, "saved")
    frontend.executed(1, {"of": OF, "files": [FILE | {"listed_as": None}], "notes": []})
    expect(panel.locator(".iteris-warning")).to_contain_text("no list has it")
    assert frontend.errors == []


def test_results_find_their_node_in_a_subgraph(in_renderer, small):
    frontend = in_renderer
    small(frontend, seed=3)
    outer = frontend.into_subgraph(MERGE, SAVE, show=True)
    place = f"{outer}:{MERGE}"
    frontend.settle(30)
    frontend.executed(place, RESULT)
    merge, save = panels(frontend).all()
    expect(merge).to_contain_text("A warning.")
    frontend.send(
        "iteris.stage", prompt_id="a", node=place, stage=STAGE, done=3, total=60, seconds_left=0
    )
    expect(merge).to_have_text("Stage 2 of 4: Sampling 3/60")
    fail(frontend, place, "No.")
    expect(merge).to_have_text("Failed:No.")
    expect(save).to_have_text(NOTHING)
    assert frontend.errors == []


@pytest.mark.parametrize("payload", [None, {}, {"of": None}, {"report": [{}]}])
def test_what_is_no_result_is_shown_as_the_text_that_comes_with_it(frontend, payload):
    """As of other versions of the pack, whose results the host may still have."""
    panel = load_merge(frontend, "older")
    frontend.executed(MERGE, payload, "one\ntwo")
    assert panel.locator("div").all_inner_texts() == ["one", "two"]
    assert frontend.errors == []
