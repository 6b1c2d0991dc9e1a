"""Widgets of our nodes that the page shows otherwise than the frontend does by itself."""

COMPARE = {"prompt": "", "seed": 0, "steps": 20, "cfg": 0.0, "width": 0, "height": 512}


def alone(frontend, kind, **inputs):
    """Load a workflow of one node, number 1."""
    frontend.load({"1": {"class_type": kind, "inputs": inputs}}, kind)
    frontend.show(1, top=60)


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


def test_in_vue_nodes_a_number_is_read_while_it_is_written(open_frontend):
    frontend = open_frontend(Comfy_VueNodes_Enabled=True)
    alone(frontend, "IterISCompare", **COMPARE)
    field(frontend, "width").focus()
    assert said(frontend, "width") == "0"
