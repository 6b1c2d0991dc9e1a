"""Widgets of our nodes that the page shows otherwise than the frontend does by itself."""

import json

import pytest
from playwright.sync_api import expect

SHOWN = ["prompt", "seed", "steps", "cfg"]  # of Compare
COMPARE = {"prompt": "", "seed": 0, "steps": 20, "cfg": 0.0, "width": 0, "height": 512}
FIRST = ["sample_runs", "check_runs", "protect_base", "protected_prompts"]
FIRST += ["resolution", "cfg", "negative_prompt", "precision"]


def alone(frontend, kind, **inputs):
    """Load a workflow of one node, number 1."""
    frontend.load({"1": {"class_type": kind, "inputs": inputs}}, kind)
    frontend.show(1, top=60)
    for button in frontend.page.get_by_role("button", name="Show advanced inputs").all():
        button.click()  # of Vue nodes


def said(frontend, name):
    """Return what is read at the place of a number."""
    find = "name => app.graph.getNodeById(1).widgets.find((widget) => widget.name === name)"
    if not frontend.page.evaluate("LiteGraph.vueNodesMode"):
        return frontend.page.evaluate(f"name => ({find})(name)._displayValue", name)
    return field(frontend, name).evaluate(
        """(input) => {
            const { content } = getComputedStyle(input.parentElement, "::after");
            const isHidden = getComputedStyle(input).color === "rgba(0, 0, 0, 0)";
            return isHidden ? JSON.parse(content) : input.value;
        }"""
    )


def field(frontend, name):
    return frontend.page.locator(f"[aria-label='{name}'] input, input[aria-label='{name}']")


def test_a_number_that_leaves_a_choice_to_others_is_a_word(in_renderer, picture):
    frontend = in_renderer
    alone(frontend, "IterISCompare", **COMPARE)
    assert [said(frontend, name) for name in ("cfg", "width", "height")] == ["auto", "auto", "512"]
    assert said(frontend, "seed") == "0"
    picture(frontend, "auto")
    frontend.set_widgets(1, cfg=4.5, height=0)
    frontend.settle()
    assert [said(frontend, name) for name in ("cfg", "height")] == ["4.5", "auto"]
    assert frontend.prompt()["1"]["inputs"].items() >= {"cfg": 4.5, "width": 0, "height": 0}.items()
    alone(frontend, "IterISSettings", sample_runs=0, check_runs=-1, cfg=0.0)
    for name, word in {
        "sample_runs": "by preset",
        "check_runs": "by preset",
        "cfg": "auto",
    }.items():
        assert said(frontend, name) == word
    frontend.set_widgets(1, check_runs=0)
    frontend.settle()
    assert said(frontend, "check_runs") == "0"
    assert frontend.errors == []


def test_a_prompt_says_what_it_means_to_leave_it_empty(in_renderer):
    frontend = in_renderer
    frontend.load_template(1)  # where other nodes have texts, too
    if frontend.page.evaluate("LiteGraph.vueNodesMode"):
        told = frontend.page.locator(".lg-node label").evaluate_all(
            "labels => labels.map((label) => getComputedStyle(label, '::after').content)"
        )
        # the older frontend has no label there
        assert [text for text in told if text != "none"] == ['" (empty: each LoRA\'s own)"'][
            : len(told)
        ]
    else:
        (field,) = frontend.page.get_by_placeholder("each LoRA's own").all()
        assert field.get_attribute("placeholder") == "prompt (empty: each LoRA's own)"


# names that are cut off at the width of a node
CUT = """() => app.graph.nodes[0].widgets.map(({ name }) => name).filter((name) => {
    const labels = [...document.querySelectorAll(".lg-node-widget *")].filter((each) =>
        !each.childElementCount && each.textContent === name);
    return labels.some(({ scrollWidth, clientWidth }) => scrollWidth > clientWidth);
})"""


@pytest.mark.nightly
def test_in_vue_nodes_no_name_of_a_setting_is_cut_off(open_frontend, picture):
    frontend = open_frontend(Comfy_VueNodes_Enabled=True)
    frontend.load({"1": {"class_type": "IterISMerge", "inputs": {"loras": ""}}}, "settings")
    frontend.show(1, left=700, top=60)
    frontend.page.locator(".iteris-settings").press("Enter")
    frontend.page.wait_for_function("app.graph.nodes.length === 2")
    frontend.page.evaluate("app.graph.remove(app.graph.getNodeById(1))")
    for button in frontend.page.get_by_role("button", name="Show advanced inputs").all():
        button.click()
    frontend.settle(20)
    picture(frontend, "settings_names")
    assert frontend.page.locator(".lg-node-widget", has_text="latents_per_run").count() == 1
    assert frontend.page.evaluate(CUT) == []


@pytest.mark.nightly
def test_in_vue_nodes_a_number_is_read_while_it_is_written(open_frontend):
    frontend = open_frontend(Comfy_VueNodes_Enabled=True)
    alone(frontend, "IterISCompare", **COMPARE)
    field(frontend, "width").focus()
    frontend.settle()  # its colour takes 0.2 s
    assert said(frontend, "width") == "0"


ADVANCED = {  # what is set, and what is not
    "IterISCompare": ({"width": 512, "sampler": "heun"}, ["height", "caption"]),
    "IterISSettings": ({"smoothing": 0.5}, ["method"]),
    "IterISLora": ({"blocks": "IN:0"}, []),
    "IterISSave": ({"large_layers": "always in full"}, []),
}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ADVANCED)
def test_in_vue_nodes_an_advanced_input_is_shown_once_it_is_set(open_frontend, picture, kind):
    """ComfyUI before 0.10 shows all."""
    frontend = open_frontend(Comfy_VueNodes_Enabled=True)
    values, others = ADVANCED[kind]
    frontend.load({"1": {"class_type": kind, "inputs": {}}}, kind)
    frontend.show(1, top=60)
    button = frontend.page.get_by_role("button", name="Show advanced inputs")
    version = "fetch('/system_stats').then((answer) => answer.json()).then(({ system }) => system.comfyui_version)"
    hides = [int(part) for part in frontend.page.evaluate(version).split(".")[:2]] >= [0, 10]
    expect(button).to_have_count(1 if hides else 0)
    labels = {
        name: frontend.page.locator(".lg-node").get_by_text(name, exact=True)
        for name in (*values, *others)
    }

    def seen():
        frontend.settle()
        return [name for name, label in labels.items() if label.count()]

    first = list(values if hides else labels)
    assert seen() == ([] if hides else first)
    frontend.set_widgets(1, **values)
    assert seen() == first
    picture(frontend, f"advanced_{kind}")
    frontend.load(frontend.workflow(), "again")
    assert seen() == first
    if hides and others:
        button.click()
        assert seen() == list(labels)
    assert frontend.errors == []


def test_our_links_keep_their_colours_when_the_palette_changes(open_frontend):
    frontend = open_frontend()
    alone(frontend, "IterISCompare", **COMPARE)
    page = frontend.page
    colours = """[
        LGraphCanvas.link_type_colors.ITERIS_MERGED,
        app.canvas.default_connection_color_byType.ITERIS_MERGED,
        document.documentElement.style.getPropertyValue("--color-datatype-ITERIS_MERGED"),
    ]"""
    before = page.evaluate(colours)
    assert len(set(before)) == 1
    background = "document.documentElement.style.getPropertyValue('--bg-color')"
    for palette in ("light", "dark"):
        was = page.evaluate(background)
        page.evaluate(f"app.extensionManager.setting.set('Comfy.ColorPalette', '{palette}')")
        page.wait_for_function(f"{background} !== '{was}'")
        assert page.evaluate(colours) == before
    assert frontend.errors == []


def test_compares_pictures_stand_below_its_few_usual_inputs(open_frontend, picture):
    frontend = open_frontend()
    alone(frontend, "IterISCompare")
    picture(frontend, "compare_closed")
    widgets = "app.graph.getNodeById(1).widgets.filter((each) => !each.hidden)"
    names = frontend.page.evaluate(f"{widgets}.map(({{ name }}) => name)")
    assert names[:5] == [*SHOWN, "iteris_advanced"]
    alone(frontend, "IterISCompare", **COMPARE)
    assert frontend.page.evaluate(f"{widgets}.some(({{ name }}) => name === 'height')"), "it is set"


def test_of_merge_settings_the_usual_inputs_are_shown_and_those_that_are_set(
    open_frontend, picture
):
    frontend = open_frontend()
    node = "app.graph.getNodeById(1)"

    def seen():
        widgets = f"{node}.widgets.filter((each) => !each.hidden && each.serialize !== false)"
        return frontend.page.evaluate(f"{widgets}.map(({{ name }}) => name)")

    def press():
        button = f"{node}.widgets.find(({{ name }}) => name === 'iteris_advanced')"
        frontend.page.evaluate(f"{button}.callback()")
        frontend.settle()
        return frontend.page.evaluate(f"{node}.size[1]")

    alone(frontend, "IterISSettings")
    assert seen() == FIRST
    closed = frontend.page.evaluate(f"{node}.size[1]")
    picture(frontend, "settings_closed")
    every = list(frontend.page.evaluate(f"{node}.constructor.nodeData.input.optional"))
    opened = press()
    assert seen() == every and opened > closed + 200
    picture(frontend, "settings_open")
    assert press() == pytest.approx(closed, abs=2)
    frontend.set_widgets(1, smoothing=0.5, method="ties")
    before = frontend.prompt()
    press()
    frontend.load(json.loads(json.dumps(frontend.workflow())), "again")
    assert frontend.prompt() == before
    assert seen() == [name for name in every if name in (*FIRST, "smoothing", "method")]
    assert frontend.page.evaluate(f"{node}.size[1]") == pytest.approx(closed + 48, abs=8)
    assert frontend.errors == []
