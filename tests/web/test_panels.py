"""The pack's parts of nodes: buttons, the report panel and what a run tells it, in subgraphs, too."""

import json
import re

import pytest
from playwright.sync_api import expect

# nodes of the chain
MERGE = 5
FIRST = 2
SECOND = 3
SETTINGS = 4
SAVE = 6
DASH = "\N{EN DASH}"
GREY = "rgb(112, 112, 112)"


def chain_of(frontend):
    """Return the chain that Run would post: each LoRA's node, and what comes before it."""
    return {
        key: n["inputs"].get("previous")
        for key, n in frontend.prompt().items()
        if n["class_type"] == "IterISLora"
    }


def press(frontend, node_id, name):
    """Press a node's button without a mouse, whose click would select the node, too."""
    find = "([id, name]) => app.canvas.graph.getNodeById(id).widgets.map(w => w.element?.querySelector(name)).find(Boolean)"
    frontend.page.evaluate(f"found => ({find})(found).click()", [node_id, f".iteris-{name}"])
    frontend.settle()


def layer(block, residual):
    entry = {"task": "first", "residual": residual, "wears": True}
    path = f"diffusion_model.input_blocks.{block}.1.transformer_blocks.0.attn1.to_q"
    return {"path": path, "rank": 8, "tasks": [entry]}


def send_layer(frontend, prompt_id, node, number, residual=0.5):
    frontend.send(
        "iteris.layer",
        prompt_id=prompt_id,
        node=node,
        first=number == 1,
        layer=layer(number, residual),
    )


def report_of(residual, *others):
    layers = [layer(1, residual)]
    layers[0]["tasks"] += [{"task": name, "residual": residual, "wears": True} for name in others]
    report = {"layers": layers, "fidelity": [], "unmatched": {}, "notes": []}
    return {"iteris_report": [report | {"digest": str(residual)}]}


def kept(lora, share, level, kind=None, *names, between=None, levels=None):
    advice = kind and {"kind": kind, "names": names}
    levels = levels or [level]
    return {
        "lora": lora,
        "kept": share,
        "between": between,
        "level": level,
        "levels": levels,
        "advice": advice,
        "unread": 0,
        "is_told": True,
    }


def report_with_verdict(*loras, advice=None):
    """Return the output of a merge whose report has a verdict."""
    output = report_of(0.5, *(lora["lora"] for lora in loras[1:]))
    (report,) = output["iteris_report"]
    report["digest"] = str(hash(repr(loras)))
    report["notes"] = [
        {"kind": "host", "text": "a note"},
        {"kind": "prompts", "text": "first: taken out of its prompts: BREAK"},
    ]
    report["warnings"] = ["WARNING: the merge fails ink"] if len(loras) > 1 else []
    report["verdict"] = {
        "loras": loras,
        "together": "unlikely",
        "together_advice": {"kind": "together", "names": []},
        "unjudged": None,
        "against": {"leak": 0.12, "leak_stacked": 1.02, "base": 0.29},
        "advice": advice,
        "good_from": 0.75,
        "lost_below": 0.3,
    }
    return output


def send_stage(frontend, run, node, name, done, total, seconds_left=0):
    """Let the page believe that the server has told a step of stage 2 of 4."""
    stage = {"name": name, "number": 2, "count": 4, "starts": 0.25, "share": 0.5}
    stage |= {"is_alike": True, "told_by": 1}
    steps = {"stage": stage, "done": done, "total": total, "seconds_left": seconds_left}
    frontend.send("iteris.stage", prompt_id=run, node=str(node), **steps)


def press_run(frontend, run):
    """Let the page queue the workflow that is shown, and a server that does nothing answer."""
    with frontend.queueing(run):
        frontend.run()
    frontend.settle()


THREE = report_with_verdict(
    kept("first", 0.83, "good"),
    kept(
        "styles/a style of a rather long name",
        0.52,
        "weak",
        "method",
        "ties",
        between=[0.24, 0.8],
        levels=["good", "weak", "lost"],
    ),
    kept("ink", 0.04, "lost", "rank") | {"unread": 0.46},
)
THREE["iteris_report"][0]["settings"] = {"loras": [{"name": "ink", "strength_model": 0.6}]}
SAVED = {"merge": str(MERGE), "name": "iteris_merged.safetensors", "mb": 3.4321}
SAVED |= {"ranks": [4, 16], "words": ["sks dog", "ink wash style"]}


def size_of(frontend):
    return frontend.page.evaluate("id => [...app.graph.getNodeById(id).size]", MERGE)


def edges(page, selector, side):
    """Return where elements have an edge, in whole pixels."""
    return set(
        page.eval_on_selector_all(
            selector,
            f"all => all.map((each) => Math.round(each.getBoundingClientRect().{side}))",
        )
    )


def test_the_verdict_comes_first_and_the_rest_behind_details(frontend, picture, small):
    small(frontend, seed=13)
    frontend.show(MERGE, top=100)
    page = frontend.page
    panel = page.locator(".iteris-report")
    frontend.executed(MERGE, THREE)
    rows = page.locator(".iteris-kept")
    good, weak, lost = (row.splitlines() for row in rows.all_inner_texts())
    assert good == ["first", "kept 83 %", "good"]
    assert weak[-2:] == ["kept 52 %", "likely weak"]
    assert rows.nth(1).locator("b").text_content() == "a style of a rather long name"
    assert lost == ["ink at 0.6", "kept 4 %", "lost", "46 % of its file was not read"]
    head = page.locator(".iteris-headline")
    said = "Check the pictures: a style of a rather long name is likely weak, ink is lost"
    expect(head).to_have_text(said)
    assert "from 75 % on, lost below 30 %" in rows.first.get_attribute("title")
    ends = ["low", "kept", "high"]
    assert not page.locator(".iteris-share").first.is_visible()
    bars = page.locator(".iteris-share").evaluate_all(
        "(all, ends) => all.map(({ style }) => ends.map((end) => style.getPropertyValue(`--iteris-${end}`)))",
        ends,
    )
    assert bars == [["83%"] * 3, ["24%", "52%", "80%"], ["4%"] * 3], "as long as its range"
    words = page.locator(".iteris-badge").evaluate_all(
        "all => all.map((each) => getComputedStyle(each)).map((word) => [word.backgroundColor, word.color])"
    )
    assert {back for back, _ in words} == {"rgba(0, 0, 0, 0)"}, "they do not look like buttons"
    good, weak, lost, unlikely = (colour for _, colour in words)
    assert len({good, weak, lost}) == 3
    assert unlikely == weak, "which is no alarm: two may not be wanted in one picture"
    assert len(edges(page, ".iteris-percent", "right")) == 1, "figures are below one another"
    lines = panel.inner_text()
    against = "The LoRAs disturb each other 88 % less than stacked. Pictures of other things change 71 % less than stacked."
    taken = "taken out of its prompts: BREAK"
    together = "Two of them together in one picture\nunlikely"
    to_do = "To get two subjects into one picture, set “together” to on."
    parts = (said, "lost", together, to_do, "WARNING", "Notes, bars and layers")
    order = [lines.index(text) for text in parts]
    assert order == sorted(order)
    assert against not in lines and taken not in lines

    chart = page.locator(".iteris-chart")
    closed = size_of(frontend)
    assert not chart.is_visible() and "A note" not in lines
    picture(frontend, "verdict")
    page.locator(".iteris-details summary").click()
    frontend.settle()
    lines = panel.inner_text()
    assert chart.is_visible() and "A note" in lines
    order = [lines.index(text) for text in ("(24 to 80)", "ties.", "rank", against, taken)]
    assert order == sorted(order)
    ranges = page.locator(".iteris-range").all_inner_texts()
    assert ranges[1].splitlines()[-1] == "Merge with iteris instead of ties."
    assert ranges[2].splitlines() == ["ink at 0.6", "Allow a higher rank, or a larger file."]
    assert page.locator(".iteris-note > b").first.inner_text() == "first"
    assert page.locator(".iteris-axis").inner_html() == "error"
    parts = (".iteris-details .iteris-note", ".iteris-errors", ".iteris-overall", ".iteris-chart")
    order = [page.locator(part).first.bounding_box()["y"] for part in parts]
    assert order == sorted(order), "first what can be understood without the method"
    assert len(edges(page, ".iteris-figures", "left")) == 1, "figures are below one another"
    letters = "all => all.map((each) => parseFloat(getComputedStyle(each).fontSize) * each.getScreenCTM().a)"
    assert min(page.eval_on_selector_all(".iteris-label", letters)) > 9.9
    assert size_of(frontend)[1] > closed[1]
    (saved,) = [node for node in frontend.workflow()["nodes"] if node["id"] == MERGE]
    assert saved["size"][1] <= closed[1], "a workflow that is opened again has no hole there"
    picture(frontend, "verdict_details")
    page.locator(".iteris-details summary").click()
    frontend.settle()
    assert size_of(frontend) == closed
    assert frontend.errors == []


def add_compare(frontend):
    """Return the number of a Compare of the merge."""
    return frontend.page.evaluate(
        """(merge) => {
            const node = LiteGraph.createNode('IterISCompare');
            node.pos = [3000, 0];
            app.graph.add(node);
            app.graph.getNodeById(merge).connect(3, node, 'merged');
            return node.id;
        }""",
        MERGE,
    )


def test_a_lora_of_which_pictures_disagree_is_uncertain_in_grey(frontend, picture, small):
    small(frontend, seed=22)
    frontend.show(MERGE, top=100)
    levels = ["good", "weak", "lost"]
    lost = kept("first", 0.53, "lost", "priority", between=[0, 1], levels=levels)
    frontend.executed(MERGE, report_with_verdict(lost, kept("ink", 0.2, "lost")))
    first, ink = (
        row.splitlines() for row in frontend.page.locator(".iteris-kept").all_inner_texts()
    )
    assert first[:3] == ["first", "kept 53 %", "uncertain: look at Compare"]
    assert ink[1:] == ["kept 20 %", "lost"]
    grey, red = frontend.page.locator(".iteris-kept").evaluate_all(
        "all => all.map(line => getComputedStyle(line).borderLeftColor)"
    )
    assert (grey, red) == (GREY, "rgb(217, 54, 54)"), "it is no fault"
    picture(frontend, "verdict_uncertain")

    cut = """all => all.filter((part) => part.scrollWidth > part.clientWidth).map((part) => part.textContent)"""
    names = frontend.page.locator(".iteris-head .iteris-start, .iteris-head .iteris-end")
    for width, name in ((380, "iteris_merged"), (330, "zwx_owl")):
        report = report_with_verdict(lost | {"lora": name}, kept("ink", 0.2, "lost"))
        frontend.executed(MERGE, report)
        frontend.page.evaluate(
            "([id, width]) => app.graph.getNodeById(id).setSize([width, 500])", [MERGE, width]
        )
        frontend.show(MERGE, top=100)
        assert names.evaluate_all(cut) == [], "the badge leaves each name its room"


def test_a_compare_with_a_prompt_of_its_own_has_the_row_to_look_at(frontend, picture, small):
    small(frontend, seed=65)
    frontend.show(MERGE, top=100)
    weak = report_with_verdict(kept("first", 0.53, "weak", "priority"), kept("ink", 0.9, "good"))
    frontend.executed(MERGE, weak)
    verdict = frontend.page.locator(".iteris-report")
    verdict.locator("summary").click()
    where = "Look at the row of Compare's prompt; empty “prompt” there to see each LoRA by its own."
    compare = add_compare(frontend)
    for prompt, count in (("", 0), ("a dog", 1)):
        frontend.set_widgets(compare, prompt=prompt)
        frontend.keep()
        expect(verdict.get_by_text(where)).to_have_count(count)
    picture(frontend, "look_given")
    frontend.executed(MERGE, report_with_verdict(kept("first", 0.9, "good")))
    expect(verdict.get_by_text("kept 90 %")).to_have_count(1)
    expect(verdict.get_by_text(where)).to_have_count(0)
    assert frontend.errors == []


def test_on_a_transformer_what_is_not_lost_is_uncertain_and_the_panel_says_why_once(
    in_renderer, picture, small
):
    frontend = in_renderer
    small(frontend, seed=63)
    frontend.show(MERGE, top=100)
    levels = ["good", "weak", "lost"]
    loras = [
        kept("zwx_owl", 0.97, "good", between=[0.6, 1], levels=levels) | {"is_told": False},
        kept("sks_robot", 0.95, "good") | {"is_told": False},
        kept("ink", 0.2, "lost"),
    ]
    frontend.executed(MERGE, report_with_verdict(*loras))
    rows = frontend.page.locator(".iteris-kept")
    said = [row.splitlines() for row in rows.all_inner_texts()]
    assert said[0][-2:] == ["kept 97 %", "uncertain"]
    assert [line[-1] for line in said[1:]] == ["uncertain", "lost"]
    colours = rows.evaluate_all("all => all.map((each) => getComputedStyle(each).borderLeftColor)")
    assert colours == [GREY, GREY, "rgb(217, 54, 54)"]
    why = "On models other than SDXL and SD1.5 this figure does not tell a good LoRA: look at Compare."
    frontend.page.locator(".iteris-report summary").click()
    panel = frontend.page.locator(".iteris-report")
    assert panel.inner_text().count(why) == 1
    expect(panel.locator(".iteris-range").first).to_contain_text("(60 to 100)")
    picture(frontend, "verdict_on_a_transformer")
    frontend.executed(MERGE, report_with_verdict(loras[2]))
    expect(panel).not_to_contain_text("On models other than")


def test_a_subject_in_a_style_is_not_judged_beside_what_is(in_renderer, picture, small):
    """It is told where each LoRA is, and where to look: a Compare that makes its own prompts."""
    frontend = in_renderer
    small(frontend, seed=61)
    frontend.show(MERGE, top=100)
    output = report_with_verdict(kept("dog", 0.9, "good"), kept("styles/ink", 0.8, "good"))
    verdict = output["iteris_report"][0]["verdict"]
    verdict |= {
        "together": "uncertain",
        "unjudged": {"subjects": ["dog"], "styles": ["styles/ink"]},
    }
    frontend.executed(MERGE, output)
    line = frontend.page.locator(".iteris-unjudged")
    assert line.inner_text().splitlines() == ["dog in the style of ink", "not judged"]
    line = frontend.page.locator(".iteris-rest")
    frontend.page.locator(".iteris-report summary").click()
    badges = frontend.page.locator(".iteris-verdict .iteris-badge").evaluate_all(
        "all => all.map((each) => [each.textContent, getComputedStyle(each.closest('.iteris-said')).borderLeftColor])"
    )
    assert [badges[0], badges[-1]] == [["not judged", GREY], ["look at Compare", GREY]]
    against = "Pictures of other things change 71 % less than stacked."
    assert frontend.page.locator(".iteris-against").inner_text() == against
    stack = "If the stack shows it better, use the stack."
    assert len(edges(frontend.page, ".iteris-verdict .iteris-badge", "right")) == 1
    expect(line).to_contain_text(
        f"by a prompt that names both; an empty one draws it, too. {stack}"
    )
    compare = add_compare(frontend)
    for prompt, said in (
        ("", f"the first row of Compare. {stack}"),
        ("a dog", "by a prompt that names both"),
    ):
        frontend.set_widgets(compare, prompt=prompt)
        frontend.keep()
        expect(line).to_contain_text(said)
        picture(frontend, "not_judged")
    assert frontend.errors == []


def test_of_what_the_check_does_not_tell_the_advice_is_the_row_that_shows_it(frontend):
    """A prompt that names all LoRAs draws it; of another one it is said what would."""
    page = frontend.page
    known = "**/iteris/lora?*"
    facts = {"base": "", "rank": 8, "blocks": [], "prompts": {}, "error": None}

    def told(route):
        name = route.request.url.rpartition("=")[2].removesuffix(".safetensors")
        route.fulfill(json=facts | {"name": name, "trigger_words": [f"a {name} robot"]})

    page.route(known, told)
    forget = "app.extensions.find(({ name }) => name === 'IterIS.LoraMerge').refreshComboInNodes()"
    page.evaluate(forget)
    rows = {"loras": "<lora:first:1> subject\n<lora:second:1> subject", "together": True}
    compare = {"class_type": "IterISCompare", "inputs": {"merged": [str(MERGE), 3]}}
    frontend.load(
        {str(MERGE): {"class_type": "IterISMerge", "inputs": rows}, "7": compare}, "named"
    )
    frontend.show(MERGE, top=100)
    output = report_with_verdict(kept("first", 0.9, "good"), kept("second", 0.5, "lost"))
    output["iteris_report"][0]["verdict"] |= {
        "together": "uncertain",
        "unjudged": {"subjects": ["first"], "styles": ["second"]},
    }
    frontend.executed(MERGE, output)
    page.locator(".iteris-report summary").click()
    both, rest = page.locator(".iteris-together"), page.locator(".iteris-rest")
    for prompt, of_both, of_style in (
        ("", "at the first row of Compare.", "in the first row of Compare."),
        ("a dog", "by a prompt that names both", "by a prompt that names both"),
        ("a first robot\na second robot", "by a prompt that names both", "that names both"),
        (
            "a dog\na first robot and a second robot",
            "The check cannot tell: look in Compare, at the row whose prompt names them.",
            "Look for it in Compare, in the row whose prompt names them.",
        ),
    ):
        frontend.set_widgets(7, prompt=prompt)
        frontend.keep()
        expect(both).to_contain_text(of_both)
        expect(rest).to_contain_text(of_style)
    page.unroute(known)
    page.evaluate(forget)
    assert frontend.errors == []


def test_two_subjects_are_measured_together_at_a_click(in_renderer, picture, small):
    """Where it is said that they are not: before a run, and in its verdict; as a step of Undo."""
    frontend = in_renderer
    small(frontend, seed=63)
    frontend.set_widgets(MERGE, loras="<lora:first:1> subject\n<lora:second:1> subject")
    frontend.keep()
    frontend.show(MERGE, top=100)
    switch = frontend.page.locator("[data-advice=together] button", has_text="Switch on")
    advice = frontend.page.locator("[data-advice]")
    value = f"""app.graph.getNodeById({MERGE}).widgets.find(({{ name }}) => name === "together").value"""
    picture(frontend, "switch_on")
    switch.press("Enter")
    expect(advice).to_have_count(0)
    assert frontend.page.evaluate(value) is True
    assert frontend.page.evaluate("document.activeElement === app.canvas.canvas"), "for its keys"
    if frontend.settings["Comfy.VueNodes.Enabled"]:
        expect(frontend.page.get_by_role("switch", name="together")).to_be_checked()
    frontend.undo()
    assert frontend.page.evaluate(value) is False
    expect(switch).to_be_visible()

    output = report_with_verdict(kept("first", 0.9, "good"), kept("second", 0.8, "good"))
    frontend.executed(MERGE, output)
    expect(frontend.page.locator(".iteris-verdict [data-advice=together] button")).to_be_visible()
    picture(frontend, "switch_on_verdict")
    switch.click()
    expect(advice).to_have_count(0)
    expect(frontend.page.locator(".iteris-together")).to_contain_text("unlikely")
    verdict = output["iteris_report"][0]["verdict"]
    both = frontend.page.locator(".iteris-together")
    verdict["together"] = "uncertain"
    frontend.undo()
    frontend.executed(MERGE, output)
    cannot = "The check cannot tell: look in Compare, by a prompt that names both"
    expect(both).to_contain_text(f"look at Compare{cannot}")
    expect(both).to_contain_text("If one is missing there, set “together” to on.Switch on")
    frontend.executed(SAVE, {"iteris_saved": [SAVED]})
    buttons = frontend.page.locator(".iteris-report button")
    expect(buttons).to_have_text(["Switch on", "See it in pictures", "Copy"])
    assert len(edges(frontend.page, ".iteris-report button", "right")) == 1
    picture(frontend, "both_open")
    switch.click()
    add_compare(frontend)
    frontend.keep()
    first = "The check cannot tell: look at the first row of Compare."
    expect(both).to_contain_text(first)
    verdict["together_advice"] = {"kind": "compare", "names": []}
    frontend.executed(MERGE, output)
    expect(both).to_contain_text(first)
    expect(advice).to_have_count(0)
    verdict["together"] = "unlikely"
    details = frontend.page.locator(".iteris-report summary")
    details.focus()
    frontend.executed(MERGE, output)
    expect(details).to_be_focused()
    expect(advice).to_have_text("Measured together. Look for both in Compare.")

    verdict["together_advice"] = {"kind": "together", "names": []}
    frontend.executed(MERGE, output)
    expect(advice).to_have_count(0)
    frontend.page.evaluate(
        """(id) => {
            const held = LiteGraph.createNode("PrimitiveBoolean");
            app.graph.add(held);
            held.widgets[0].value = false;
            held.connect(0, app.graph.getNodeById(id), "together");
        }""",
        MERGE,
    )
    frontend.keep()
    expect(advice).to_be_visible()
    expect(switch).to_have_count(0)  # it is another node's value
    assert frontend.errors == []


def test_the_file_of_a_merge_stands_below_its_verdict_until_another_report(frontend, small):
    small(frontend, seed=14)
    frontend.show(MERGE, top=100)
    file = frontend.page.locator(".iteris-file")
    frontend.executed(SAVE, {"iteris_saved": [SAVED]})
    assert file.count() == 0, "there is no report yet"
    frontend.executed(MERGE, THREE)
    assert file.count() == 1, "the server's cache had the merge, and Save was told first"
    frontend.executed(MERGE, report_of(0.25))
    assert file.count() == 0
    frontend.executed(MERGE, THREE)
    frontend.executed(SAVE, {"iteris_saved": [{**SAVED, "merge": str(SAVE)}]})
    assert file.count() == 0, "it is another node's"
    frontend.executed(SAVE, {"iteris_saved": [SAVED]})
    said = "Saved: iteris_merged.safetensors, 3.4\xa0MB, rank\xa04 to 16."
    assert file.inner_text().split("\n") == [
        said,
        "Trigger words: sks dog, ink wash style",
        "Copy",
    ]
    copy = file.locator(".iteris-copy")
    copy.click()
    expect(copy).to_have_text("Copied")
    expect(copy).to_have_text("Copy")
    assert frontend.page.evaluate("navigator.clipboard.readText()") == "sks dog, ink wash style"
    saved_with(
        frontend,
        frontend.page.evaluate("id => app.graph.getNodeById(id).properties.iteris_report", MERGE),
    )
    assert file.inner_text().startswith(said), "the workflow has kept it"
    frontend.executed(MERGE, THREE)
    assert file.inner_text().startswith(said), "the same report, from the server's cache"
    known = "**/iteris/lora?name=merges*"
    frontend.page.route(known, lambda route: route.fulfill(json={"hash": "h"}))
    listed = {"listed_as": "merges/iteris_merged.safetensors", "hash": "h"}
    frontend.executed(SAVE, {"iteris_saved": [SAVED | listed]})
    expect(file).to_contain_text("Saved: merges/iteris_merged.safetensors, 3.4 MB")
    frontend.page.unroute(known)
    frontend.executed(MERGE, report_of(0.25))
    assert file.count() == 0
    assert frontend.errors == []


def test_no_report_has_the_file_of_another_merge(frontend, small):
    """Once a tab is shown again while Compare draws, the page is told the new report and the old file."""
    small(frontend, seed=71)
    frontend.show(MERGE, top=100)
    file = frontend.page.locator(".iteris-file")

    def report(digest):
        output = report_of(0.25)
        output["iteris_report"][0]["digest"] = digest
        frontend.executed(MERGE, output)

    def saved(digest):
        one = {**SAVED, "name": f"of_{digest}.safetensors", "report": digest}
        frontend.executed(SAVE, {"iteris_saved": [one]})

    report("first")
    saved("first")
    assert "of_first" in file.inner_text()
    report("second")
    saved("first")
    assert file.count() == 0
    saved("second")
    assert "of_second" in file.inner_text()
    saved("third")
    assert "of_second" in file.inner_text(), "its report is still to come"
    report("third")
    assert "of_third" in file.inner_text()
    assert frontend.errors == []


def test_a_figure_that_is_not_finite_is_a_dash_beside_the_verdict(frontend, small):
    small(frontend, seed=64)
    frontend.show(MERGE, top=100)
    output = report_with_verdict(kept("first", 0, "lost"))
    (report,) = output["iteris_report"]
    report["layers"][0]["tasks"][0]["residual"] = None  # what JSON has for it
    report["fidelity"] = [{"task": "base", "output_error": None, "strength": None}]
    frontend.executed(MERGE, output)
    panel = frontend.page.locator(".iteris-report")
    expect(panel.locator(".iteris-kept")).to_contain_text("lost")
    panel.locator("summary").click()
    expect(panel.locator(".iteris-line")).to_contain_text([DASH, DASH])
    panel.locator(".iteris-block").hover()
    expect(panel.locator(".iteris-suffers")).to_have_text(DASH)
    assert frontend.errors == []


def test_before_a_run_a_preview_promises_no_verdict(in_renderer, small):
    frontend = in_renderer
    small(frontend, seed=21)
    # the last value is left: newer frontends keep it for the next workflow of the API
    panel = frontend.page.locator(".iteris-report")
    for preset, promised in (
        ("Preview", "instead of a verdict"),
        ("Balanced", "The verdict on each LoRA"),
    ):
        frontend.set_widgets(MERGE, preset=preset)
        expect(panel).to_contain_text(promised)


def test_a_merge_that_was_not_checked_says_how_to_check(frontend, small):
    small(frontend, seed=15)
    frontend.show(MERGE, top=100)
    against = frontend.page.locator(".iteris-against")
    assert frontend.page.locator(".iteris-headline").count() == 0
    frontend.executed(MERGE, report_with_verdict(advice={"kind": "measure", "names": []}))
    expect(against).to_contain_text("By their files, the LoRAs disturb each other 88 % less")
    frontend.executed(MERGE, report_with_verdict(advice={"kind": "check", "names": []}))
    assert frontend.page.locator(".iteris-kept").count() == 0
    assert (
        "set check_runs to 1 or more" in frontend.page.locator("[data-advice=check]").inner_text()
    )
    expect(against).to_contain_text("The LoRAs disturb each other 88 % less")


def test_the_verdict_can_be_read_in_a_narrow_node(frontend, picture, small):
    small(frontend, seed=16)
    frontend.executed(MERGE, THREE)
    frontend.executed(SAVE, {"iteris_saved": [SAVED]})
    for _ in range(2):  # its height follows from what the width makes of the text
        frontend.page.evaluate(
            "id => { const node = app.graph.getNodeById(id); node.setSize([310, node.computeSize()[1]]); }",
            MERGE,
        )
        frontend.show(MERGE, top=60)
    assert size_of(frontend)[0] == 310
    inside = """panel => [...panel.querySelectorAll('.iteris-verdict *, .iteris-file :not(wbr)')].every((part) => {
        const [inner, outer] = [part, panel].map((element) => element.getBoundingClientRect());
        return inner.left >= outer.left && inner.right <= outer.right && inner.bottom <= outer.bottom;
    })"""
    assert frontend.page.locator(".iteris-report").evaluate(inside)
    words, copy = (
        frontend.page.locator(f".iteris-file .iteris-{part}").bounding_box()
        for part in ("words", "copy")
    )
    assert words["y"] < copy["y"] + copy["height"] / 2 < words["y"] + words["height"], "beside them"
    picture(frontend, "verdict_310")
    frontend.page.locator(".iteris-details summary").press("Enter")
    frontend.settle()
    lines = frontend.page.locator(".iteris-figures, .iteris-line b, .iteris-note")
    assert lines.count() > 2
    for width, room in lines.evaluate_all("all => all.map(l => [l.scrollWidth, l.clientWidth])"):
        assert width <= room, "the whole line is read"
    assert frontend.page.locator(".iteris-details .iteris-note").last.inner_text() == "A note."
    assert frontend.errors == []


def blocks_of(frontend, selector=".iteris-report"):
    return frontend.page.eval_on_selector_all(
        f"{selector} .iteris-block", "all => all.map(b => b.dataset.block)"
    )


def wait_for_blocks(frontend, *names):
    shown = (
        "[...document.querySelectorAll('.iteris-report .iteris-block')].map(b => b.dataset.block)"
    )
    frontend.page.wait_for_function(f"names => String({shown}) === names", arg=",".join(names))


def residual_of(frontend):
    """Return median and worst of the first line that the panel shows."""
    line = frontend.page.locator('.iteris-line[data-kind="residual"]').first
    return float(line.get_attribute("data-median")), float(line.get_attribute("data-worst"))


def test_another_lora_joins_the_chain(frontend, picture, small):
    small(frontend, seed=2)
    frontend.show(FIRST, scale=0.6)
    press(frontend, FIRST, "add")
    picture(frontend, "another_lora")
    chain = chain_of(frontend)
    (added,) = set(chain) - {"2", "3"}
    assert chain == {"2": None, added: ["2", 0], "3": [added, 0]}
    numbers = "app.graph.nodes.map(({ order }) => order)"
    now = frontend.page.evaluate(numbers)
    frontend.page.evaluate("app.graphToPrompt()")
    assert frontend.page.evaluate(numbers) == now, "a run would make other ones a step of Undo"

    frontend.show(FIRST, scale=0.6)
    press(frontend, int(added), "remove")
    picture(frontend, "taken_out")
    assert chain_of(frontend) == {"2": None, "3": ["2", 0]}
    frontend.undo()
    assert chain_of(frontend) == chain, "one step of Undo brings the node and its links back"
    frontend.undo()
    assert chain_of(frontend) == {"2": None, "3": ["2", 0]}
    assert frontend.errors == []


def test_a_chip_is_a_step_of_undo_and_a_list_that_is_renewed_brings_chips(frontend):
    page, files = frontend.page, {"error": "there is no such file"}
    known = "**/iteris/lora?name=gone*"
    page.route(known, lambda route: route.fulfill(json=files))
    lora = {"lora_name": "gone.safetensors", "prompts": "a photo"}
    frontend.load({"1": {"class_type": "IterISLora", "inputs": lora}}, "a chip")
    frontend.show(1)
    expect(page.locator(".iteris-triggers")).to_have_text("there is no such file")
    files.update(error=None, trigger_words=["sks dog"])
    page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    frontend.set_widgets(1, prompts="a photo, outside")
    frontend.keep()
    prompts = "app.graph.getNodeById(1).widgets.find(({ name }) => name === 'prompts').value"
    page.locator(".iteris-chip", has_text="sks dog").click()
    assert page.evaluate(prompts) == "a photo, outside, sks dog"
    frontend.undo()
    assert page.evaluate(prompts) == "a photo, outside"
    page.unroute(known)
    assert frontend.errors == []


def test_the_chain_changes_inside_a_subgraph(frontend, picture, small):
    """There, the first LoRA may hang on the subgraph's input, and the last one on its output."""
    small(frontend, seed=5)
    press(frontend, FIRST, "add")
    (added,) = set(chain_of(frontend)) - {"2", "3"}
    outer = frontend.into_subgraph(int(added), SECOND)
    inside = f"{outer}:{SECOND}"
    assert chain_of(frontend) == {
        "2": None,
        f"{outer}:{added}": ["2", 0],
        inside: [f"{outer}:{added}", 0],
    }
    frontend.page.evaluate("id => app.canvas.setGraph(app.graph.getNodeById(id).subgraph)", outer)
    frontend.settle()
    press(frontend, SECOND, "add")
    picture(frontend, "chain_in_subgraph")
    (last,) = set(chain_of(frontend)) - {"2", f"{outer}:{added}", inside}
    assert frontend.prompt()["5"]["inputs"]["more_loras"] == [last, 0]
    assert chain_of(frontend)[last] == [inside, 0]
    for node in (int(last.partition(":")[2]), int(added)):
        press(frontend, node, "remove")
    assert chain_of(frontend) == {"2": None, inside: ["2", 0]}
    assert frontend.prompt()["5"]["inputs"]["more_loras"] == [inside, 0]
    assert frontend.errors == []


def test_a_file_that_waits_for_its_cover_is_shown_before_and_after_a_stop(frontend, small):
    small(frontend, seed=72)
    frontend.show(MERGE, top=100)
    file = frontend.page.locator(".iteris-report .iteris-file")
    on_save = frontend.page.locator(".iteris-text[data-of=IterISSave]")
    frontend.begin("before_72")
    lines = ["/loras/older.safetensors", "read back", "3 MB"]
    older = {**SAVED, "name": "older.safetensors", "merge": "9"}
    frontend.executed(SAVE, {"text": lines, "iteris_saved": [older]}, run="before_72")
    expect(on_save).to_contain_text("older.safetensors")
    frontend.begin("of_72")
    frontend.executed(MERGE, THREE, run="of_72")
    early = {**SAVED, "listed_as": "merges/early.safetensors", "hash": "h"}
    known = "**/iteris/lora?name=merges*"
    frontend.page.route(known, lambda route: route.fulfill(json={"hash": "h"}))
    frontend.send("iteris.saved", prompt_id="another", node=str(SAVE), files=[SAVED])
    assert file.count() == 0
    frontend.send("iteris.saved", prompt_id="of_72", node=str(SAVE), files=[early])
    expect(file).to_contain_text("Saved: merges/early.safetensors, 3.4 MB")
    expect(on_save).to_contain_text("Saved: merges/early.safetensors, 3.4 MB")
    frontend.send("execution_interrupted", prompt_id="of_72", node_id="7")
    expect(file).to_contain_text("Saved: merges/early.safetensors, 3.4 MB")
    expect(on_save).to_contain_text("Saved: merges/early.safetensors, 3.4 MB")
    expect(on_save).not_to_contain_text("older")
    listed = (
        "LiteGraph.registered_node_types.IterISLora.nodeData.input.required.lora_name[1].options"
    )
    assert early["listed_as"] in frontend.page.evaluate(listed)
    frontend.page.unroute(known)
    assert frontend.errors == []


def test_layers_are_drawn_of_this_pages_run_alone(frontend, small):
    small(frontend, seed=6)
    frontend.show(MERGE, top=200)
    send_layer(frontend, "other", str(MERGE), 1)
    assert blocks_of(frontend) == [], "nothing runs here"
    frontend.begin("mine")
    send_layer(frontend, "other", str(MERGE), 1)
    assert blocks_of(frontend) == []
    send_layer(frontend, "mine", str(MERGE), 1)
    bars = frontend.page.locator(".iteris-chart")
    expect(bars).not_to_be_visible()  # they would be read as a verdict
    expect(frontend.page.locator(".iteris-report")).not_to_contain_text("After a run")
    frontend.page.locator(".iteris-details summary").click()
    expect(bars).to_be_visible()
    send_layer(frontend, "other", str(MERGE), 2)
    send_layer(frontend, "mine", str(MERGE), 3)
    assert blocks_of(frontend) == ["IN01", "IN03"]
    frontend.send("execution_interrupted", prompt_id="other")
    assert blocks_of(frontend) == ["IN01", "IN03"]
    expect(bars).to_be_visible()
    frontend.send("execution_interrupted", prompt_id="mine")
    assert blocks_of(frontend) == []
    frontend.begin("next")
    send_layer(frontend, "next", str(MERGE), 1)
    expect(bars).to_be_visible()  # as the user has left them
    frontend.executed(MERGE, THREE, run="next")
    frontend.page.locator(".iteris-kept").first.wait_for()
    expect(bars).to_be_visible()


def test_a_merge_that_was_stopped_says_so_until_the_next_run(in_renderer, small, picture):
    frontend = in_renderer
    small(frontend, seed=58)
    frontend.show(MERGE, top=200)
    report = frontend.page.locator(".iteris-report")
    before = report.inner_text()

    def stop(run, node):
        frontend.send("execution_interrupted", prompt_id=run, node_id=str(node))

    frontend.begin("of_58")
    send_stage(frontend, "of_58", MERGE, "Sampling", 3, 4)
    stop("of_58", FIRST)
    expect(report).to_have_text(before)  # it was not at work
    frontend.begin("again_58")
    send_stage(frontend, "again_58", MERGE, "Sampling", 3, 4)
    stop("again_58", MERGE)
    expect(report).to_have_text("Stopped.")
    frontend.begin("third_58")
    expect(report).to_have_text(before)
    send_stage(frontend, "third_58", MERGE, "Sampling", 4, 4)
    send_layer(frontend, "third_58", str(MERGE), 1)
    stop("third_58", MERGE)
    expect(report).to_contain_text("the next merge of these LoRAs reuses its runs")
    picture(frontend, "stopped")
    frontend.set_widgets(FIRST, lora_name="third.safetensors")
    frontend.keep()
    expect(report).to_have_text(before)  # its LoRAs are others now
    assert frontend.errors == []


def test_a_group_grows_with_a_run_and_shrinks_back(in_renderer, picture):
    frontend = in_renderer
    frontend.load_template(2)
    merge = frontend.page.evaluate("app.graph.nodes.find(({ type }) => type === 'IterISMerge').id")
    names = ("first", "second", "third")
    frontend.set_widgets(merge, loras="\n".join(f"<lora:{name}:1>" for name in names))
    frontend.show(merge, left=400, top=100, scale=0.8)
    heights = "app.graph.groups.map(({ size }) => size[1])"
    before = [group["bounding"][3] for group in frontend.workflow()["groups"]]
    shown = frontend.still(f"{heights}.join()")  # with a third row

    def run(name):
        frontend.begin(name)
        send_stage(frontend, name, merge, "Diffusion model", 6, 60, seconds_left=40)
        for block in (1, 2, 4, 5, 7, 8):
            told = layer(block, 0.5)
            told["tasks"] = [{"task": name, "residual": 0.5, "wears": True} for name in names]
            told["tasks"].append({"task": "preserve", "residual": 0.1, "wears": False})
            first = block == 1
            frontend.send("iteris.layer", prompt_id=name, node=str(merge), first=first, layer=told)
        frontend.settle(40)

    run("a")
    frontend.page.locator(".iteris-details summary").click()
    frontend.settle(40)
    picture(frontend, "three_live")
    room = """(id) => {
        const { pos, size } = app.graph.getNodeById(id);
        const [, top, , height] = app.graph.groups.find(({ title }) => title.startsWith("2"))._bounding;
        return top + height - pos[1] - size[1];
    }"""
    assert frontend.page.evaluate(room, merge) > 0
    grown = frontend.page.evaluate(heights)
    assert grown[1] > before[1] + 100
    by = [now - then for now, then in zip(grown, before, strict=True)]
    assert by == pytest.approx([by[1]] * 3, abs=1), "they go on ending at the same height"
    saved = [group["bounding"][3] for group in frontend.workflow()["groups"]]
    assert saved == before, "a workflow does not keep the bars' room"

    frontend.send("execution_interrupted", prompt_id="a")
    frontend.settle(40)
    assert frontend.page.evaluate(f"{heights}.join()") == shown
    put = """(below) => {
        const { pos, size } = app.graph.groups[0];
        const note = app.graph.nodes.find(({ title }) => title === "put here") ?? LiteGraph.createNode("Note");
        note.title = "put here";
        note.pos = [pos[0] + 20, pos[1] + size[1] + below];
        if (!note.graph) app.graph.add(note);
    }"""
    frontend.page.evaluate(put, -20)
    run("across")
    across = frontend.page.evaluate(heights)
    assert across == pytest.approx(grown, abs=1), "a node across its border is no hindrance"
    frontend.send("execution_interrupted", prompt_id="across")
    frontend.settle(40)
    frontend.page.evaluate(put, 50)
    run("c")
    beside = [saved[0], *grown[1:]]  # there is the note
    assert frontend.page.evaluate(heights) == pytest.approx(beside, abs=20)
    frontend.send("execution_interrupted", prompt_id="c")
    frontend.settle(40)
    edge = "height => { app.graph.groups[1].size = [app.graph.groups[1].size[0], height]; }"
    frontend.page.evaluate(edge, grown[1] + 500)
    frontend.begin("b")
    send_stage(frontend, "b", merge, "Diffusion model", 6, 60, seconds_left=40)
    frontend.settle(40)
    assert frontend.page.evaluate(heights)[1] == grown[1] + 500, "what a user has drawn stays"
    assert frontend.workflow()["groups"][1]["bounding"][3] == grown[1] + 500
    assert frontend.errors == []


@pytest.mark.nightly
def test_in_vue_nodes_what_a_run_tells_is_seen(open_frontend, picture):
    """Older frontends draw nothing there that is added to a node after a value was changed."""
    vue = open_frontend(Comfy_VueNodes_Enabled=True)
    inputs = {"prompt": "", "seed": 0, "steps": 20, "cfg": 0.0}
    vue.load({"1": {"class_type": "IterISCompare", "inputs": inputs}}, "compare")
    vue.show(1, top=100)
    vue.set_widgets(1, steps=3)
    vue.settle()
    node = vue.page.locator("[data-node-id='1']")
    line = node.locator(".iteris-progress")
    assert not line.is_visible()
    vue.begin("a")
    for done in (1, 2):
        send_stage(vue, "a", 1, "<Prompts>", done, 4)
    line.wait_for()
    assert node.inner_text().count("Stage 2 of 4: <Prompts> 2/4") == 1
    picture(vue, "vue_progress")
    vue.send("execution_interrupted", prompt_id="a", node_id="1")
    line.wait_for(state="hidden")
    expect(node.locator(".iteris-text")).to_contain_text("Stopped before the first picture.")
    vue.begin("b")
    node.locator(".iteris-text").wait_for(state="hidden")
    vue.executed(1, {"text": ["a photo of sks dog"]})
    node.locator(".iteris-text", has_text="a photo of sks dog").wait_for()
    assert vue.errors == []


def test_how_far_a_run_is_can_be_read_where_the_canvas_is_far_away(in_renderer, picture, small):
    """And the time that is left counts down until the server tells more."""
    frontend = in_renderer
    small(frontend, seed=19)
    frontend.show(MERGE, top=300, scale=0.35)
    before = size_of(frontend)
    soon = frontend.page.get_by_text("The verdict on each LoRA")
    assert soon.is_visible()
    frontend.begin("a")
    send_stage(frontend, "a", MERGE, "Sampling", 12, 60, seconds_left=12)
    expect(soon).not_to_be_visible()
    shown = frontend.page.locator(".iteris-far")
    shown.wait_for()
    assert shown.inner_text().splitlines() == ["Sampling 12/60", "about 10 s left"]
    picture(frontend, "far_away")
    letters = "shown => parseFloat(getComputedStyle(shown).fontSize) * app.canvas.ds.scale"
    assert shown.evaluate(letters) >= 12
    low, high = shown.bounding_box(), frontend.page.locator(".iteris-rows").bounding_box()
    assert low["width"] <= size_of(frontend)[0] * 0.35, "it is inside its node"
    assert low["y"] + low["height"] > high["y"] + high["height"]
    frontend.page.get_by_text("about 7 s left").last.wait_for()
    frontend.show(MERGE, top=300, scale=1)
    shown.wait_for(state="hidden")
    line = frontend.page.locator(".iteris-stage")
    assert line.inner_text().startswith("Stage 2 of 4: Sampling 12/60")
    picture(frontend, "near")
    frontend.send("execution_interrupted", prompt_id="a")
    line.wait_for(state="hidden")
    soon.wait_for()
    assert size_of(frontend) == before
    assert frontend.errors == []


def test_what_a_verdict_comes_to_is_read_where_the_canvas_is_far_away(in_renderer, picture, small):
    frontend = in_renderer
    small(frontend, seed=18)
    frontend.executed(MERGE, report_with_verdict(kept("first", 0.9, "good"), kept("b", 1, "good")))
    frontend.show(MERGE, top=300)
    far = frontend.page.locator(".iteris-far-headline")
    expect(far).to_be_hidden()
    near = size_of(frontend)
    frontend.show(MERGE, top=300, scale=0.35)
    expect(far).to_be_visible()
    expect(far).to_have_text("Good: each LoRA alone is kept")
    letters = "shown => parseFloat(getComputedStyle(shown).fontSize) * app.canvas.ds.scale"
    assert far.evaluate(letters) >= 12
    assert far.evaluate("far => far.scrollHeight <= far.clientHeight"), "it has room"
    picture(frontend, "verdict_far")
    assert size_of(frontend) == near
    frontend.begin("fails_18")
    frontend.send("execution_error", prompt_id="fails_18", **FAILURE)
    frontend.page.keyboard.press("Escape")  # newer frontends tell it in a dialog, too
    expect(far).to_have_text("Out of memory")
    picture(frontend, "failure_far")
    assert frontend.errors == []


def test_a_run_is_shown_in_the_tab_of_its_workflow_alone(frontend, small):
    """Nodes of two tabs have the same ids, and the frontend tells an output to those on show."""
    page = frontend.page

    def report():
        return page.evaluate(f"app.graph.getNodeById({MERGE}).properties.iteris_report ?? null")

    small(frontend, seed=41)
    press_run(frontend, "of 41")
    frontend.send("execution_start", prompt_id="of 41", timestamp=0)
    small(frontend, seed=42)
    send_stage(frontend, "of 41", MERGE, "Sampling", 2, 4)
    send_layer(frontend, "of 41", str(MERGE), 1)
    frontend.executed(MERGE, report_of(0.25), run="of 41")
    assert (report(), blocks_of(frontend)) == (None, [])
    assert page.get_by_text("Sampling 2/4").count() == 0
    frontend.go_to("merge_41")
    assert report() is not None
    frontend.go_to("merge_42")
    assert report() is None
    assert frontend.errors == []


def test_what_a_run_that_goes_on_has_made_is_not_hidden_by_the_run_before_it(frontend, small):
    """The history has nothing of it yet, when its tab is shown again."""
    page = frontend.page
    frontend.load({"1": {"class_type": "IterISSave", "inputs": {}}}, "left_in_59")
    frontend.keep()
    small(frontend, seed=59)
    frontend.keep()
    frontend.show(MERGE)
    frontend.begin("before 59")
    frontend.executed(MERGE, report_of(0.25), run="before 59")
    ran = frontend.prompt()
    frontend.set_widgets(MERGE, together=True)
    frontend.begin("now 59")
    frontend.go_to("left_in_59")
    frontend.executed(MERGE, report_of(0.75), run="now 59")
    made = {str(MERGE): report_of(0.25)}
    history = {"before 59": {"prompt": [1, "before 59", ran, {}, [str(MERGE)]], "outputs": made}}
    page.route("**/history?**", lambda route: route.fulfill(json=history))
    with page.expect_response("**/history?**"):
        frontend.go_to("merge_59")
    frontend.settle(60)
    kept = f"app.graph.getNodeById({MERGE}).properties.iteris_report"
    assert page.evaluate(f"{kept}.overall[0].median") == 0.75
    assert page.get_by_text("Result of a run with other settings").count() == 0
    page.unroute("**/history?**")
    assert frontend.errors == []


def test_a_stage_told_while_another_workflow_is_opened_is_not_on_its_nodes(frontend, small):
    page = frontend.page
    for seed in (60, 61):
        small(frontend, seed=seed)
        frontend.keep()
    frontend.go_to("merge_60")
    frontend.begin("of 60")
    stage = {"name": "Sampling", "number": 2, "count": 4, "starts": 0.25, "share": 0.5}
    stage |= {"is_alike": True, "told_by": 1}
    told = {"prompt_id": "of 60", "node": str(MERGE), "stage": stage, "done": 2, "total": 4}
    page.evaluate(
        """detail => {
            const event = () => new CustomEvent("iteris.stage", { detail });
            const told = () => window.tellLate && comfyAPI.api.api.dispatchEvent(event());
            window.tellLate = true;
            comfyAPI.app.app.registerExtension({ name: "Test.late", afterConfigureGraph: told });
        }""",
        told | {"seconds_left": 0},
    )
    frontend.go_to("merge_61")
    frontend.settle(40)
    page.evaluate("window.tellLate = false")
    stage = page.locator(".iteris-stage > .iteris-steps")
    assert stage.count() == 0
    frontend.go_to("merge_60")
    expect(stage).to_have_text("Sampling 2/4")
    frontend.send("execution_interrupted", prompt_id="of 60")
    assert frontend.errors == []


def test_a_merge_in_the_queue_says_how_many_runs_are_before_it(frontend, small):
    page = frontend.page
    small(frontend, seed=55)
    frontend.show(MERGE, top=200)
    own = frontend.prompt()
    frontend.queued("of 55")
    line = page.locator(".iteris-progress:not(.iteris-hidden)", has_text="In the queue")

    def queue(now, later):
        runs = {"queue_running": now, "queue_pending": later}
        page.unroute("**/queue")
        page.route("**/queue", lambda route: route.fulfill(json=runs))
        with page.expect_response("**/queue"):
            frontend.send("status", exec_info={"queue_remaining": len(later)})

    mine = [2, "of 55", own, {}, [str(MERGE)]]
    others = [[at, f"other {at}", {}, {}, []] for at in (1, 3)]
    without = [2, "of 55", own, {}, [str(FIRST)]]
    for now, later in (([mine], others), (others[:1], [without])):
        queue(others[:1], [others[1], mine])
        expect(line).to_have_count(1)
        expect(line).to_contain_text("In the queue, 1 before it")
        queue(now, later)
        expect(line).to_have_count(0)
    page.unroute("**/queue")
    assert frontend.errors == []


def queue(frontend, now, later=()):
    """Let the page believe that the server has these runs, and wait until it has shown that."""
    frontend.page.unroute("**/queue")
    runs = {"queue_running": now, "queue_pending": later}
    frontend.page.route("**/queue", lambda route: route.fulfill(json=runs))
    frontend.page.evaluate(
        """id => {
            const node = app.graph.getNodeById(id);
            const { showIterisWaiting: show } = node;
            delete window.iterisShown;
            node.showIterisWaiting = (before, run, isElsewhere) => {
                show(before, run, isElsewhere);
                window.iterisShown = run ?? "none";
            };
        }""",
        MERGE,
    )
    frontend.send("status", exec_info={"queue_remaining": len(now)})
    (shown, *_) = [*[run for _, run, *_ in [*later, *now]], "none"]
    frontend.page.wait_for_function("run => window.iterisShown === run", arg=shown)


@pytest.fixture
def shown_merge(in_renderer, small):
    """Return what shows a merge in sight: the workflow as the server would get it, and the line of its progress."""

    def show(seed):
        small(in_renderer, seed=seed)
        in_renderer.set_widgets(MERGE, preset="Balanced")
        in_renderer.keep()
        in_renderer.show(MERGE, top=200)
        line = in_renderer.page.locator(".iteris-progress:not(.iteris-hidden)")
        return in_renderer.prompt(), line

    return show


def test_a_run_of_another_window_is_told_and_what_it_has_made(in_renderer, shown_merge):
    frontend = in_renderer
    page = frontend.page
    own, line = shown_merge(621)
    queue(frontend, [[0, "of another", own, {}, [str(MERGE)]]])
    expect(line).to_contain_text("Running in another window")
    frontend.queued("of 621")
    later = [1, "of 621", own, {}, [str(MERGE)]]
    queue(frontend, [[0, "of another", own, {}, [str(MERGE)]]], [later])
    expect(line).to_contain_text("In the queue, 1 before it")
    frontend.know("of another", own, {str(MERGE): report_of(0.25)})
    queue(frontend, [later])
    page.wait_for_function(f"app.graph.getNodeById({MERGE}).properties.iteris_report")
    assert residual_of(frontend) == (0.25, 0.25)
    queue(frontend, [])
    expect(line).to_have_count(0)
    frontend.forget("of another")
    frontend.set_widgets(MERGE, preset="Fast")
    frontend.keep()
    queue(frontend, [[0, "of other settings", own, {}, [str(MERGE)]]])
    expect(line).to_have_count(0)
    queue(frontend, [[0, "of the same", frontend.prompt(), {}, [str(MERGE)]]])
    expect(line).to_contain_text("Running in another window")
    queue(frontend, [])
    page.unroute("**/queue")
    assert frontend.errors == []


def test_a_merge_says_why_its_run_in_another_window_has_made_nothing(in_renderer, shown_merge):
    frontend = in_renderer
    page = frontend.page
    own, line = shown_merge(623)
    at_merge = {"node_id": str(MERGE), "node_type": "IterISMerge"}
    panel = page.locator(".iteris-report:visible")
    stop = ["execution_interrupted", at_merge]
    failure = ["execution_error", at_merge | {"exception_message": "Out of memory"}]
    start = ["execution_start", {}]
    at_other = ["execution_error", {"node_id": "1", "exception_message": "no such file"}]
    for end, said in (
        (at_other, "The verdict on each LoRA"),
        (stop, "Stopped in another window."),
        (failure, "Out of memory"),
        (stop, "Out of memory"),  # which still holds
    ):
        frontend.know("of_another", own, {}, start, end)
        queue(frontend, [[0, "of_another", own, {}, [str(MERGE)]]])
        expect(line).to_contain_text("Running in another window")
        queue(frontend, [])
        expect(line).to_have_count(0)
        expect(panel).to_contain_text(said)
        frontend.forget("of_another")
    frontend.set_widgets(MERGE, preset="Fast")
    frontend.keep()
    expect(panel).to_contain_text("The verdict on each LoRA")
    page.unroute("**/queue")
    assert frontend.errors == []


def test_a_failure_stays_while_another_window_makes_nothing_of_its_node(in_renderer, small):
    """Also where an earlier run of this workflow had made it, which was another one then."""
    frontend = in_renderer
    page = frontend.page
    small(frontend, seed=622)
    frontend.set_widgets(MERGE, preset="Balanced")
    frontend.begin("fine")
    frontend.executed(MERGE, report_of(0.25), run="fine")
    frontend.know("fine", frontend.prompt(), {str(MERGE): report_of(0.25)})
    frontend.set_widgets(MERGE, preset="Fast")
    frontend.keep()
    own = frontend.prompt()
    frontend.begin("fails")
    told = {"exception_message": "Out of memory", "exception_type": "Error", "traceback": []}
    frontend.send("execution_error", prompt_id="fails", node_id=str(MERGE), node_type="", **told)
    page.keyboard.press("Escape")  # newer frontends tell it in a dialog, too
    failure = page.locator(".iteris-failure")
    expect(failure).to_have_text("Out of memory")
    line = page.locator(".iteris-progress:not(.iteris-hidden)")
    others = {"1": {"class_type": "EmptyLatentImage", "inputs": {}}}
    for run, prompt in (("of others", others), ("stopped", own), ("of the same", own)):
        queue(frontend, [[0, run, prompt, {}, [*prompt]]])
        expect(line).to_have_count(int(prompt is own))
        expect(failure).to_have_text("Out of memory")
        queue(frontend, [])
        expect(line).to_have_count(0)
    page.unroute("**/queue")
    frontend.forget("fine")
    assert frontend.errors == []


def test_after_f5_a_merge_says_that_it_runs_before_the_server_tells_how_far(in_renderer, small):
    frontend = in_renderer
    page = frontend.page
    small(frontend, seed=57)
    frontend.load(frontend.workflow(), "runs on")
    own = frontend.prompt()
    frontend.begin("of_57")
    frontend.noted(",57,")
    busy = {"queue_running": [[0, "of_57", own, {}, [str(MERGE)]]], "queue_pending": []}
    page.route("**/queue", lambda route: route.fulfill(json=busy))
    frontend.open()
    line = page.locator(".iteris-progress:not(.iteris-hidden)")
    expect(line).to_have_count(1)
    expect(line).to_contain_text("Running")
    page.evaluate(
        "id => comfyAPI.api.api.dispatchEvent(new CustomEvent('executing', { detail: id }))",
        str(MERGE),
    )
    expect(line).to_contain_text("Running")
    send_stage(frontend, "of_57", MERGE, "Sampling", 2, 4)
    expect(line).to_contain_text("Sampling 2/4")
    page.unroute("**/queue")
    assert frontend.errors == []


def test_a_run_that_fails_before_its_request_is_answered_says_why(frontend, small):
    page, held = frontend.page, []
    small(frontend, seed=67)

    def hold(route):
        held.append(route)

    page.route("**/prompt", hold)
    with page.expect_request("**/prompt"):
        page.evaluate(
            "void app.graphToPrompt().then((built) => comfyAPI.api.api.queuePrompt(-1, built))"
        )
    frontend.send("execution_start", prompt_id="early", timestamp=0)
    told = {"exception_message": "it fails", "exception_type": "ConfigError", "traceback": []}
    frontend.send("execution_error", prompt_id="early", node_id=str(MERGE), node_type="", **told)
    held[0].fulfill(json={"prompt_id": "early", "number": 1, "node_errors": {}})
    page.unroute("**/prompt")
    expect(page.locator(".iteris-failure")).to_have_text("it fails")
    page.keyboard.press("Escape")  # newer frontends tell it in a dialog, too
    assert frontend.errors == []


def test_what_the_server_refuses_of_a_run_says_so_while_the_rest_runs(in_renderer, small):
    frontend = in_renderer
    small(frontend, seed=68)
    own = {"type": "custom_validation_failed", "details": "file_name - it goes out of the folder"}
    refused = {str(SAVE): {"errors": [own], "dependent_outputs": [str(SAVE)], "class_type": ""}}
    answer = {"prompt_id": "in part", "number": 1, "node_errors": refused}
    frontend.page.route("**/prompt", lambda route: route.fulfill(json=answer))
    frontend.page.evaluate(
        "async () => comfyAPI.api.api.queuePrompt(-1, await app.graphToPrompt())"
    )
    frontend.page.unroute("**/prompt")
    failure = frontend.page.locator(".iteris-failure:visible")
    expect(failure).to_have_text("it goes out of the folder")
    frontend.send("execution_start", prompt_id="in part", timestamp=0)
    frontend.executed(MERGE, report_of(0.25), run="in part")
    expect(failure).to_have_text("it goes out of the folder")
    frontend.begin("whole")
    expect(failure).to_have_count(0)
    assert frontend.errors == []


def test_what_is_not_connected_is_said_on_the_node(in_renderer, small):
    """Until it is connected; ComfyUI's own dialog names its inputs alone."""
    frontend = in_renderer
    small(frontend, seed=69)
    frontend.page.evaluate(f"app.graph.getNodeById({MERGE}).disconnectInput(0)")
    frontend.keep()
    frontend.page.evaluate("void app.queuePrompt(0)")
    failure = frontend.page.locator(".iteris-failure:visible")
    expect(failure).to_have_text(
        "Not connected: model. Connect it to a node that has it, such as the loader of the model."
    )
    frontend.page.keyboard.press("Escape")  # ComfyUI's dialog
    frontend.undo()
    expect(failure).to_have_count(0)
    frontend.load({"1": {"class_type": "IterISCompare", "inputs": {}}}, "alone")
    frontend.page.evaluate("void app.queuePrompt(0)")
    said = re.compile(r"^Not connected: \w+, \w+\. Connect them to nodes that have them, such as ")
    expect(failure).to_have_text(said)
    frontend.page.keyboard.press("Escape")


def test_a_merge_of_one_lora_says_before_a_run_that_it_would_be_the_same(frontend):
    inputs = {"loras": "", "preset": "Balanced", "together": False, "size": "as is"}
    frontend.load({str(MERGE): {"class_type": "IterISMerge", "inputs": inputs}}, "alone")
    frontend.show(MERGE, top=100)
    panel = frontend.page.locator(".iteris-report:visible")
    one, two = "<lora:first:1>", "<lora:first:1>\n<lora:second:1>"
    for alone, change in (
        (True, {"loras": one}),
        (False, {"loras": two}),
        (True, {"loras": f"{one}\n#<lora:second:1>"}),
        (False, {"size": "rank"}),  # its file is made smaller
        (True, {"size": "as is"}),
        (False, {"loras": f"{one}\n<lora::1>"}),  # another one is to be chosen
    ):
        frontend.set_widgets(MERGE, **change)
        expect(panel).to_contain_text("One LoRA alone" if alone else "The verdict on each LoRA")
    assert frontend.errors == []


def test_a_report_of_an_earlier_run_is_marked_as_such(frontend, picture, small):
    small(frontend, seed=7)
    frontend.show(MERGE, top=200)
    earlier = frontend.page.locator(".iteris-earlier")
    frontend.begin("a")
    frontend.executed(MERGE, report_of(0.25))
    assert blocks_of(frontend) == ["IN01"]
    frontend.send("execution_interrupted", prompt_id="a")
    assert earlier.count() == 0, "the run had come to this report when it was stopped"
    frontend.begin("b")
    send_layer(frontend, "b", str(MERGE), 1, residual=0.75)
    frontend.send("execution_interrupted", prompt_id="b")
    assert (residual_of(frontend), earlier.count()) == ((0.25, 0.25), 1)
    picture(frontend, "report_of_an_earlier_run")
    frontend.begin("c")
    frontend.executed(MERGE, report_of(0.5), run="c")
    assert (residual_of(frontend), earlier.count()) == ((0.5, 0.5), 0)
    frontend.begin("d", [str(FIRST)])
    frontend.send("execution_interrupted", prompt_id="d")
    assert earlier.count() == 0, "the run did without it"
    frontend.set_widgets(MERGE, preset="Fast")
    expect(earlier).to_contain_text("other settings")
    frontend.load(frontend.workflow(), "again")
    expect(earlier).to_contain_text("other settings")
    frontend.set_widgets(MERGE, preset="Balanced")
    expect(earlier).to_have_count(0)


def test_a_verdict_stays_until_the_next_run_has_another(in_renderer, picture, small):
    """Marked as that of the run before, while the details show what this one has told."""
    frontend = in_renderer
    small(frontend, seed=60)
    frontend.set_widgets(MERGE, preset="Balanced")
    frontend.show(MERGE, top=100)
    earlier = frontend.page.locator(".iteris-earlier")
    verdicts = frontend.page.locator(".iteris-kept")
    frontend.begin("a")
    frontend.executed(MERGE, THREE, run="a")
    expect(verdicts).to_have_count(3)
    frontend.begin("b")
    for number in (1, 3):
        send_layer(frontend, "b", str(MERGE), number)
        expect(verdicts).to_have_count(3)
        expect(earlier).to_have_text("Result of the run before this one.")
    frontend.set_widgets(MERGE, preset="Fast")
    said = "Result of a run with other settings (preset was Balanced)."
    expect(earlier).to_have_text(said)  # as on other nodes
    frontend.set_widgets(MERGE, preset="Balanced")
    expect(earlier).to_have_text("Result of the run before this one.")
    assert blocks_of(frontend) == ["IN01", "IN03"], "of this run"
    picture(frontend, "report_while_another_is_made")
    frontend.executed(MERGE, report_with_verdict(kept("first", 0.9, "good")), run="b")
    expect(verdicts).to_have_count(1)
    expect(earlier).to_have_count(0)
    assert frontend.errors == []


def test_a_report_of_other_settings_says_what_has_changed_since(frontend, small):
    """Also once its workflow is opened again; and a file stays that of the same report."""
    small(frontend, seed=619)
    frontend.set_widgets(MERGE, preset="Balanced")  # newer frontends put back what its id had
    earlier = frontend.page.locator(".iteris-earlier")
    output = report_with_verdict(kept("first", 0.83, "good"))
    (report,) = output["iteris_report"]
    report |= {"digest": "19", "is_measured": True}
    report["settings"] = {"calibration": {"resolution": 768}}
    for at in (1e9, 1e9 + 60):
        output["iteris_made"] = [{"preset": "Balanced", "strengths": [0.8, 0.8], "at": at}]
        frontend.begin(str(at))
        frontend.executed(MERGE, output, run=str(at))
        if at == 1e9:
            frontend.executed(SAVE, {"iteris_saved": [SAVED | {"report": "19"}]}, run=str(at))
        expect(frontend.page.locator(".iteris-file")).to_contain_text("Saved: iteris_merged")
    frontend.settle()
    frontend.set_widgets(MERGE, preset="Fast")
    other = "Result of a run with other settings"
    expect(earlier).to_have_text(f"{other} (preset was Balanced).")
    frontend.begin("stopped")
    send_layer(frontend, "stopped", str(MERGE), 1)
    frontend.send("execution_interrupted", prompt_id="stopped")
    of = r"\(Balanced, at 0\.8, 9/9/01, .*\)"
    expect(earlier).to_have_text(re.compile(rf"^Result of an earlier run {of}: the last one "))
    frontend.load(frontend.workflow(), "again")
    expect(earlier).to_have_text(f"{other}.")
    size = frontend.page.locator(".iteris-details .iteris-note").first
    expect(size).to_have_text("Measured at 768 \N{MULTIPLICATION SIGN} 768 pixels.")
    assert frontend.errors == []


def test_settings_that_set_nothing_leave_a_result_and_a_file_name_does_not(frontend, small):
    """Also after something else is undone, for which the frontend makes every node anew."""
    page = frontend.page
    small(frontend, seed=621)
    page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", SETTINGS)
    frontend.set_widgets(MERGE, loras="<lora:third:1>", preset="Balanced")
    frontend.set_widgets(SAVE, file_name="pair")
    frontend.keep()
    frontend.show(MERGE, left=300, top=100, scale=0.7)
    earlier = page.locator(".iteris-earlier")
    frontend.begin("of 621")
    frontend.executed(MERGE, report_of(0.25), run="of 621")
    frontend.executed(SAVE, {"iteris_saved": [SAVED], "text": ["saved"]}, run="of 621")
    page.wait_for_function(f"app.graph.getNodeById({SAVE}).properties.iteris_ran?.name")
    page.locator(".iteris-settings").click()
    page.wait_for_function("app.graph.nodes.some(({ type }) => type === 'IterISSettings')")
    frontend.settle(40)
    expect(earlier).to_have_count(0)
    frontend.set_widgets(SAVE, file_name="other")
    frontend.keep()
    said = ["Result of a run with other settings (file_name was pair)."]
    expect(earlier).to_have_text(said)
    for number in ("0.5", "0.25"):
        type_strength(frontend, number)
    expect(earlier).to_have_count(2)
    expect(earlier.first).to_have_text(
        "Result of a run with other settings (strength of third was 1)."
    )
    for _ in range(2):
        frontend.undo()
    assert strengths(frontend) == "<lora:third:1>"
    expect(earlier).to_have_text(said)
    assert frontend.errors == []


def test_no_run_of_other_settings_is_said_to_save_a_file_again(in_renderer, small):
    """It would save another merge there, or, without overwrite, under another number."""
    frontend = in_renderer
    frontend.load({"1": {"class_type": "IterISSave", "inputs": {}}}, "saves_over")
    frontend.keep()
    small(frontend, seed=73)
    frontend.set_widgets(MERGE, preset="Balanced")
    known = "**/iteris/lora?name=iteris_merged*"
    answer = {"hash": "mine"}
    frontend.page.route(known, lambda route: route.fulfill(json=answer))
    file = SAVED | {"listed_as": SAVED["name"], "hash": "mine"}
    text = [f"/loras/{SAVED['name']}", "read back", "3 MB"]
    frontend.begin("mine")
    frontend.executed(MERGE, report_with_verdict(kept("first", 0.83, "good")), run="mine")
    frontend.executed(SAVE, {"text": text, "iteris_saved": [file]}, run="mine")
    expect(frontend.page.locator(".iteris-load")).to_have_count(2)
    frontend.keep()
    frontend.go_to("saves_over")
    answer.update(hash="another's")
    frontend.executed(1, {"text": text, "iteris_saved": [file | answer]}, run=None)
    frontend.go_to("merge_73")
    frontend.show(MERGE, left=100, top=100, scale=0.5)  # and Save
    gone = frontend.page.locator(".iteris-file", has_text="has been removed or changed since.")
    again = frontend.page.get_by_text("Run saves it again.").filter(visible=True)
    expect(gone).to_have_count(2)
    expect(again).to_have_count(2)
    frontend.set_widgets(MERGE, preset="Fast")
    frontend.keep()  # as the page does after a click, which tells Save of it
    expect(frontend.page.locator(".iteris-old .iteris-file")).to_have_count(2)
    expect(again).to_have_count(0)
    expect(gone).to_have_count(2)
    frontend.page.unroute(known)
    assert frontend.errors == []


def test_a_run_of_other_settings_says_so_while_it_goes_on(in_renderer, picture, small):
    frontend = in_renderer
    small(frontend, seed=620)
    frontend.set_widgets(MERGE, preset="Balanced")
    frontend.show(MERGE, top=300)
    other = frontend.page.locator(".iteris-stage > .iteris-of-other")
    stage = frontend.page.locator(".iteris-stage > .iteris-steps")
    frontend.begin("of 20")
    send_stage(frontend, "of 20", MERGE, "Sampling", 2, 4)
    expect(stage).to_have_text("Sampling 2/4")
    for preset, marked in (("Fast", 1), ("Balanced", 0), ("Fast", 1)):
        frontend.set_widgets(MERGE, preset=preset)
        expect(other).to_have_count(marked)
    expect(other).to_have_text("With other settings")
    picture(frontend, "of_other_settings")
    send_stage(frontend, "of 20", MERGE, "Sampling", 3, 4)
    expect(stage).to_have_text("Sampling 3/4")
    expect(other).to_have_count(1)
    frontend.executed(MERGE, report_of(0.25), run="of 20")
    frontend.begin("of 20 and fast")
    send_stage(frontend, "of 20 and fast", MERGE, "Sampling", 2, 4)
    expect(stage).to_have_text("Sampling 2/4")
    expect(other).to_have_count(0)
    frontend.send("execution_interrupted", prompt_id="of 20 and fast")
    assert frontend.errors == []


def test_a_report_of_other_rows_or_of_other_nodes_before_is_marked(in_renderer, small):
    """As is an error of rows that are not there any more."""
    frontend = in_renderer
    small(frontend, seed=18)
    frontend.show(MERGE, top=100)
    earlier = frontend.page.locator(".iteris-earlier")
    other = "Result of a run with other settings{}."
    frontend.begin("a")
    frontend.executed(MERGE, report_of(0.25))
    frontend.settle()
    for node, changed, before, was in (
        (MERGE, {"loras": "<lora:first:0.5>"}, {"loras": ""}, ""),
        (MERGE, {"size": "rank", "size_value": 8}, {"size": "as is"}, " (size was as is)"),
        (SETTINGS, {"sample_runs": 3}, {"sample_runs": 1}, " (sample_runs was 1)"),
        (FIRST, {"strength_model": 0.5}, {"strength_model": 1.0}, " (strength_model was 1)"),
    ):
        for values, marked in ((changed, [other.format(was)]), (before, [])):
            frontend.set_widgets(node, **values)
            frontend.keep()
            expect(earlier).to_have_text(marked)
    frontend.page.locator(".iteris-other").first.press("Enter")
    frontend.page.locator(".iteris-rows-text").fill("<lora:first:1>")
    expect(earlier).to_have_text([other.format("")])

    failure = frontend.page.locator(".iteris-failure")
    frontend.begin("b")
    why = "Row 1: first has no prompts"
    told = {"exception_message": why, "exception_type": "ConfigError", "traceback": []}
    frontend.send("execution_error", prompt_id="b", node_id=str(MERGE), node_type="", **told)
    expect(failure).to_have_text(why)
    frontend.page.keyboard.press("Escape")  # newer frontends tell it in a dialog, too
    frontend.page.get_by_role("dialog").wait_for(state="hidden")
    frontend.page.locator(".iteris-rows-text").fill("")
    expect(failure).to_have_count(0)
    assert frontend.errors == []


def type_strength(frontend, number):
    """Give the first row a strength as a user does: it is one step of the frontend's history."""
    field = frontend.page.locator(".iteris-number").first
    field.fill(number)
    field.press("Enter")
    frontend.keep()
    frontend.settle()


def strengths(frontend):
    return frontend.prompt()[str(MERGE)]["inputs"]["loras"]


def test_undo_keeps_what_was_recalled_and_marks_it(frontend, small):
    """As after F5: the frontend makes every node anew, and keeps outputs of its own runs alone."""
    page = frontend.page
    small(frontend, seed=45)
    frontend.set_widgets(MERGE, loras="<lora:third:1>")
    workflow = frontend.workflow()
    outputs = {str(MERGE): THREE, str(SAVE): {"text": ["what the run has saved"]}}
    frontend.know("before", frontend.prompt(), outputs)
    frontend.load(workflow, "recalled")
    frontend.show(MERGE, left=300, top=100, scale=0.7)
    text = page.locator(".iteris-text:not(.iteris-hidden)", has_text="what the run has saved")
    verdict, earlier = page.locator(".iteris-kept"), page.locator(".iteris-report .iteris-earlier")
    expect(text).to_have_count(1)
    expect(verdict).to_have_count(3)
    for number in ("0.5", "0.25"):
        type_strength(frontend, number)
    expect(earlier).to_have_count(1)
    frontend.undo()
    assert strengths(frontend) == "<lora:third:0.5>"
    for each in (text, earlier):
        expect(each).to_have_count(1)
    expect(verdict).to_have_count(3)
    frontend.undo()
    assert strengths(frontend) == "<lora:third:1>"
    expect(earlier).to_have_count(0)
    expect(verdict).to_have_count(3)
    frontend.undo("redo")
    assert strengths(frontend) == "<lora:third:0.5>"
    expect(earlier).to_have_count(1)
    expect(text).to_have_count(1)

    page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", SAVE)
    frontend.keep()
    expect(text).to_have_count(0)
    frontend.undo()
    expect(text).to_have_count(1)
    del workflow["nodes"][0]["properties"]
    for node in workflow["nodes"]:
        node["properties"] = {}
        if node["id"] == MERGE:
            node["widgets_values"][0] = "<lora:second:1>"
    frontend.load(workflow, "another one with the same ids")
    type_strength(frontend, "0.5")
    frontend.undo()
    assert text.count() == verdict.count() == 0
    frontend.forget("before")
    assert frontend.errors == []


@pytest.mark.parametrize(("comes", "strength"), [("before", "0.55"), ("after", "0.65")])
def test_a_result_is_found_after_f5_though_settings_were_changed_since_its_run(
    frontend, small, comes, strength
):
    """And not in a workflow of the same nodes that is not the one of the run."""
    page = frontend.page
    small(frontend, seed=47)
    frontend.set_widgets(MERGE, loras="<lora:third:1>")
    run = f"of_47_{comes}"
    prompt = frontend.prompt()
    frontend.queued(run)
    type_strength(frontend, strength)
    frontend.noted(f"<lora:third:{strength}>")
    frontend.know(run, prompt, {str(MERGE): THREE})
    if comes == "after":
        page.route("**/history?*", lambda route: route.fulfill(json={}))
    frontend.open()
    if comes == "after":
        frontend.executed(MERGE, THREE, run=run)
    expect(page.locator(".iteris-kept")).to_have_count(3)
    expect(page.locator(".iteris-report .iteris-earlier")).to_have_count(1)
    assert strengths(frontend) == f"<lora:third:{strength}>"
    workflow = frontend.workflow()
    for node in workflow["nodes"]:
        node["properties"] = {}
    frontend.load(workflow, "another one of these nodes")
    frontend.prompt()
    frontend.settle()
    expect(page.locator(".iteris-kept")).to_have_count(0)
    frontend.forget(run)
    assert frontend.errors == []


def held_back(page, place):
    """Return the requests of a page for something, to which the server gives no answer yet."""
    held = []

    def hold(route):
        held.append(route)

    page.route(place, hold)
    return held


def reopened(frontend, small, seed):
    """Open a page anew with the result of an old run, and a run of other settings in the queue; return their ids."""
    old, new = f"old_{seed}", f"new_{seed}"
    small(frontend, seed=seed)
    frontend.set_widgets(MERGE, loras="<lora:third:1>")
    outputs = {str(MERGE): report_of(0.25), str(SAVE): {"text": ["what the old run has saved"]}}
    frontend.begin(old)
    for node, output in outputs.items():
        frontend.executed(node, output, run=old)
    frontend.know(old, frontend.prompt(), outputs)
    type_strength(frontend, "0.5")
    frontend.queued(new)
    frontend.noted("<lora:third:0.5>", "iteris_ran")
    return old, new


def test_after_f5_a_result_is_marked_before_the_server_tells_its_queue(in_renderer, small):
    frontend = in_renderer
    old, _ = reopened(frontend, small, 640)
    held = held_back(frontend.page, "**/queue")
    frontend.open()
    expect(frontend.page.locator(".iteris-report .iteris-earlier")).to_have_count(1)
    expect(frontend.page.locator(".iteris-text .iteris-earlier")).to_have_count(1)
    frontend.page.unroute("**/queue")
    for each in held:
        each.fulfill(json={"queue_running": [], "queue_pending": []})
    frontend.forget(old)
    assert frontend.errors == []


def test_what_is_told_while_an_older_result_is_asked_for_stays(in_renderer, small):
    """As where the first of two runs is stopped after F5, and the second merges at once."""
    frontend = in_renderer
    page = frontend.page
    old, new = reopened(frontend, small, 641)
    held = held_back(frontend.page, f"**/history/{old}")
    frontend.open()
    while not held:
        page.wait_for_timeout(50)
    frontend.send("execution_start", prompt_id=new, timestamp=0)
    frontend.executed(MERGE, THREE, run=new)
    expect(page.locator(".iteris-kept")).to_have_count(3)
    for each in held:
        each.fallback()  # to what the server knows
    expect(page.locator(".iteris-text", has_text="what the old run has saved")).to_have_count(1)
    expect(page.locator(".iteris-text .iteris-earlier")).to_have_count(1)
    expect(page.locator(".iteris-kept")).to_have_count(3)
    expect(page.locator(".iteris-report .iteris-earlier")).to_have_count(0)
    frontend.load({"1": {"class_type": "IterISSettings", "inputs": {}}}, "beside it")
    expect(page.locator(".iteris-kept")).to_have_count(0)
    frontend.go_to("merge_641")
    expect(page.locator(".iteris-kept")).to_have_count(3)
    expect(page.locator(".iteris-report .iteris-earlier")).to_have_count(0)
    frontend.forget(old)
    assert frontend.errors == []


def test_what_a_run_tells_before_the_workflow_is_open_is_shown_then(open_frontend, small):
    frontend = open_frontend(Comfy_Locale="ja")
    page = frontend.page
    old, new = reopened(frontend, small, 642)
    held = held_back(frontend.page, "**/templates/ja.json")
    page.goto(f"http://{frontend.address}/", wait_until="commit")
    while not held:
        page.wait_for_timeout(50)
    frontend.send("execution_start", prompt_id=new, timestamp=0)
    frontend.executed(MERGE, THREE, run=new)
    for each in held:
        each.continue_()
    expect(page.locator(".iteris-kept")).to_have_count(3)
    page.unroute("**/templates/ja.json")
    frontend.settle()
    expect(page.locator(".iteris-kept")).to_have_count(3)
    expect(page.locator(".iteris-report .iteris-earlier")).to_have_count(0)
    frontend.forget(old)
    assert frontend.errors == []


def test_what_the_run_that_goes_on_has_made_is_there_after_f5(in_renderer, small):
    """And not what the one before it has made, of other settings, either."""
    frontend = in_renderer
    page = frontend.page
    old, new = reopened(frontend, small, 646)
    busy = {"queue_running": [[0, new, frontend.prompt(), {}, [str(SAVE)]]], "queue_pending": []}
    frontend.send("execution_start", prompt_id=new, timestamp=0)
    frontend.executed(MERGE, THREE, run=new)
    saved = {"iteris_saved": [SAVED], "text": ["what the new run has saved"]}
    frontend.executed(SAVE, saved, run=new)
    frontend.pictures_kept(SAVE)
    type_strength(frontend, "0.25")
    frontend.noted("<lora:third:0.25>", new)
    page.route("**/queue", lambda route: route.fulfill(json=busy))
    with page.expect_response("**/history?*"):
        frontend.open()
    expect(page.locator(".iteris-text", has_text="what the new run has saved")).to_have_count(1)
    expect(page.locator(".iteris-kept")).to_have_count(3)
    expect(page.locator(".iteris-earlier")).to_have_count(2)
    page.unroute("**/queue")
    frontend.forget(old)
    assert frontend.errors == []


FAILURE = {"node_id": str(MERGE), "node_type": "", "traceback": []}
FAILURE |= {"exception_message": "Out of memory"}


def send_no_node(frontend):
    """Let the page believe that the server has told the end of a run."""
    frontend.page.evaluate(
        "comfyAPI.api.api.dispatchEvent(new CustomEvent('executing', { detail: null }))"
    )


def test_why_a_run_failed_stays_where_it_began_before_f5(in_renderer, small):
    frontend = in_renderer
    page = frontend.page
    old, new = reopened(frontend, small, 643)
    frontend.open()
    earlier = page.locator(".iteris-report .iteris-earlier")
    expect(earlier).to_have_count(1)
    frontend.send("execution_error", prompt_id=new, **FAILURE)
    page.keyboard.press("Escape")  # newer frontends tell it in a dialog, too
    expect(page.locator(".iteris-failure")).to_have_text("Out of memory")
    with page.expect_response("**/history?*"):
        send_no_node(frontend)
    frontend.settle(20)
    expect(page.locator(".iteris-failure")).to_have_text("Out of memory")
    expect(earlier).to_contain_text("the last one did not finish")
    frontend.forget(old)
    assert frontend.errors == []


def test_why_a_run_failed_while_the_page_was_closed_is_told(in_renderer, small):
    """Until its node is another one."""
    frontend = in_renderer
    small(frontend, seed=647)
    frontend.load(frontend.workflow(), "failed meanwhile")
    failure = frontend.page.locator(".iteris-failure")
    frontend.noted(",647,")
    frontend.know("of_647", frontend.prompt(), {}, ["execution_error", FAILURE])
    frontend.open()
    expect(failure).to_have_text("Out of memory")
    frontend.set_widgets(MERGE, preset="Fast")
    frontend.keep()
    expect(failure).to_have_count(0)
    frontend.undo()
    frontend.noted(",647,", "Balanced")
    queue(frontend, [[0, "again", frontend.prompt(), {}, [str(MERGE)]]])
    with frontend.page.expect_response("**/history?*"):
        frontend.open()
    frontend.settle(40)
    expect(failure).to_have_count(0)  # the run that goes on says more
    frontend.page.unroute("**/queue")
    frontend.forget("of_647")
    assert frontend.errors == []


def test_a_result_that_comes_late_after_f5_is_not_one_of_the_next_run(in_renderer, small):
    frontend = in_renderer
    page = frontend.page
    old, new = reopened(frontend, small, 644)
    frontend.open()
    earlier = page.locator(".iteris-report .iteris-earlier")
    expect(earlier).to_have_count(1)
    frontend.know(new, frontend.prompt(), {str(MERGE): THREE})
    held = held_back(page, "**/history?*")
    send_no_node(frontend)
    while not held:
        page.wait_for_timeout(50)
    frontend.begin("next_644")
    for each in held:
        each.fallback()
    expect(page.locator(".iteris-kept")).to_have_count(3)
    expect(earlier).to_have_count(0)
    frontend.send("execution_interrupted", prompt_id="next_644", node_id=str(FIRST))
    expect(earlier).to_contain_text("the last one did not finish")
    frontend.forget(old)
    frontend.forget(new)
    assert frontend.errors == []


def test_why_a_run_failed_is_told_once_the_server_is_there_again(in_renderer, small):
    """Though an earlier run has a result of the same settings."""
    frontend = in_renderer
    page = frontend.page
    small(frontend, seed=645)
    frontend.know("fine_645", frontend.prompt(), {str(MERGE): THREE})
    frontend.begin("of_645")
    send_stage(frontend, "of_645", MERGE, "Sampling", 2, 4)
    frontend.send("reconnecting")
    frontend.know("of_645", frontend.prompt(), {}, ["execution_error", FAILURE])
    page.unroute("**/history?*")
    frontend.know("fine_645", frontend.prompt(), {str(MERGE): THREE})
    frontend.send("reconnected")
    expect(page.locator(".iteris-failure")).to_have_text("Out of memory")
    expect(page.locator(".iteris-kept")).to_have_count(3)
    expect(page.locator(".iteris-earlier")).to_contain_text("the last one did not finish")
    for run in ("fine_645", "of_645"):
        frontend.forget(run)
    assert frontend.errors == []


def test_what_a_run_has_made_so_far_is_there_after_f5(frontend, small):
    """Its history comes when all of it has ended; frontend 1.49 has texts as ids."""
    page = frontend.page
    small(frontend, seed=54)
    frontend.set_widgets(MERGE, loras="<lora:third:0.54>")
    frontend.load(frontend.workflow(), "before f5")
    page.evaluate(
        """() => { for (const node of app.extensionManager.workflow.activeWorkflow.changeTracker.activeState.nodes)
            node.id = typeof app.graph.nodes[0].id === "string" ? Number(node.id) : String(node.id); }"""
    )
    frontend.begin("of_54")
    frontend.executed(MERGE, THREE, run="of_54")
    frontend.queued("alone_54", [str(FIRST)])
    frontend.noted("iteris_made_as", "<lora:third:0.54>")
    frontend.open()
    expect(page.locator(".iteris-kept")).to_have_count(3)
    expect(page.locator(".iteris-report .iteris-earlier")).to_have_count(0)
    alone = [0, "alone_54", frontend.prompt(), {}, [str(FIRST)]]
    busy = {"queue_running": [alone], "queue_pending": []}
    page.route("**/queue", lambda route: route.fulfill(json=busy))
    frontend.send("execution_start", prompt_id="alone_54", timestamp=0)
    frontend.send("execution_interrupted", prompt_id="alone_54")
    page.unroute("**/queue")
    frontend.settle()
    assert page.locator(".iteris-report .iteris-earlier").count() == 0, "the run did without it"
    assert frontend.errors == []


def test_a_result_comes_back_with_the_settings_it_was_made_with(frontend, small):
    small(frontend, seed=53)
    verdict, earlier = (frontend.page.locator(f".iteris-{part}") for part in ("kept", "earlier"))
    frontend.set_widgets(MERGE, loras="<lora:third:1>")
    frontend.know("of_53", frontend.prompt(), {str(MERGE): THREE})
    type_strength(frontend, "0.5")
    frontend.begin("a")
    frontend.executed(MERGE, report_of(0.25))
    assert blocks_of(frontend) == ["IN01"]
    expect(verdict).to_have_count(0)
    type_strength(frontend, "0.25")
    expect(earlier).to_have_count(1)
    type_strength(frontend, "1")
    expect(verdict).to_have_count(3)
    expect(earlier).to_have_count(0)
    type_strength(frontend, "0.5")
    expect(earlier).to_have_count(1)
    frontend.forget("of_53")
    assert frontend.errors == []


def test_a_result_is_no_step_of_undo(frontend, small):
    small(frontend, seed=46)
    frontend.set_widgets(MERGE, loras="<lora:third:1>")
    frontend.load(frontend.workflow(), "steps")
    frontend.show(MERGE, left=300, top=100, scale=0.7)
    for number in ("0.5", "0.25"):
        type_strength(frontend, number)
    press_run(frontend, "of 46")
    frontend.executed(MERGE, THREE, run="of 46")
    frontend.executed(SAVE, {"iteris_saved": [SAVED], "text": ["saved"]}, run="of 46")
    kept = "id => app.graph.getNodeById(id).properties.iteris_ran?.run === 'of 46'"
    frontend.page.wait_for_function(kept, arg=SAVE)
    frontend.settle()
    for strength in ("0.5", "1"):
        frontend.undo()
        assert strengths(frontend) == f"<lora:third:{strength}>"
        expect(frontend.page.locator(".iteris-kept")).to_have_count(3)
        expect(frontend.page.locator(".iteris-report .iteris-earlier")).to_have_count(1)
    for strength in ("0.5", "0.25"):
        frontend.undo("redo")
        assert strengths(frontend) == f"<lora:third:{strength}>"
    expect(frontend.page.locator(".iteris-report .iteris-earlier")).to_have_count(0)
    assert frontend.errors == []


def test_a_run_that_the_server_does_not_know_any_more_has_ended(in_renderer, small, picture):
    """As after its restart, while the page stays open."""
    frontend = in_renderer
    small(frontend, seed=20)
    frontend.show(MERGE, top=200)
    line = frontend.page.locator(".iteris-progress", has_text="Sampling")
    frontend.begin("a")
    send_stage(frontend, "a", MERGE, "Sampling", 2, 4)
    line.wait_for()
    frontend.send("reconnecting")
    expect(line).to_contain_text("waiting for ComfyUI's server")
    busy = {"queue_running": [[0, "a", {}, {}, []]], "queue_pending": []}
    frontend.page.route("**/queue", lambda route: route.fulfill(json=busy))
    with frontend.page.expect_response("**/queue"):
        frontend.send("reconnected")
    frontend.settle()
    assert line.is_visible()
    expect(line).not_to_contain_text("waiting")
    frontend.page.unroute("**/queue")
    frontend.send("reconnected")
    line.wait_for(state="hidden")
    lost = frontend.page.get_by_text("This run was lost with ComfyUI's server.")
    expect(lost).to_have_count(1)  # and not at what was not at work
    picture(frontend, "lost")
    frontend.begin("b")
    expect(lost).to_have_count(0)
    send_stage(frontend, "b", MERGE, "Sampling", 2, 4)
    line.wait_for()
    frontend.know("b", frontend.prompt(), {})  # it has ended while the page was away
    with frontend.page.expect_response("**/history?*"):
        frontend.send("reconnected")
    line.wait_for(state="hidden")
    frontend.settle()
    expect(lost).to_have_count(0)
    frontend.forget("b")
    assert frontend.errors == []


def test_undo_in_a_subgraph_leaves_a_node_its_height(frontend):
    frontend.load_template(1)
    merge = frontend.page.evaluate("app.graph.nodes.find(({ type }) => type === 'IterISMerge').id")
    outer = frontend.into_subgraph(merge)
    frontend.page.evaluate("id => app.canvas.setGraph(app.graph.getNodeById(id).subgraph)", outer)
    frontend.page.evaluate("id => app.canvas.centerOnNode(app.canvas.graph.getNodeById(id))", merge)
    frontend.settle(40)
    frontend.executed(f"{outer}:{merge}", report_of(0.5))
    kept = f"app.canvas.graph.serialize().nodes.find(({{ id }}) => id == {merge}).size[1]"
    before = frontend.still(kept)
    frontend.keep()
    strength = frontend.page.locator(".iteris-number").first
    strength.fill("0.9")
    strength.press("Shift+Enter")
    frontend.settle(40)
    frontend.page.evaluate("app.canvas.canvas.focus()")
    frontend.undo()
    expect(frontend.page.locator(".iteris-number").first).to_have_value("1")
    assert frontend.still(kept) == before
    assert frontend.errors == []


def test_in_a_subgraph_layers_and_reports_find_their_node(frontend, picture, small):
    small(frontend, seed=8)
    outer = frontend.into_subgraph(MERGE)
    inside = f"{outer}:{MERGE}"
    assert inside in frontend.prompt()
    frontend.page.evaluate("id => app.canvas.setGraph(app.graph.getNodeById(id).subgraph)", outer)
    frontend.settle()
    frontend.page.evaluate("id => app.canvas.centerOnNode(app.canvas.graph.getNodeById(id))", MERGE)
    frontend.begin("a")
    send_layer(frontend, "a", inside, 1)
    assert blocks_of(frontend) == ["IN01"]
    picture(frontend, "subgraph_live")
    frontend.send("execution_interrupted", prompt_id="a")
    assert blocks_of(frontend) == []
    subgraph = frontend.page.evaluate("id => app.graph.getNodeById(id).subgraph.id", outer)
    for found, residual in ((inside, 0.25), (f"{subgraph}:{MERGE}", 0.5)):
        frontend.page.evaluate(
            "outputs => { app.nodeOutputs = outputs; }", {found: report_of(residual)}
        )
        frontend.settle()
        assert residual_of(frontend) == (residual, residual)


@pytest.mark.nightly
def test_numbers_in_vue_nodes_are_not_rounded_away(open_frontend, picture, small):
    vue = open_frontend(Comfy_VueNodes_Enabled=True, Comfy_Node_AlwaysShowAdvancedWidgets=True)
    small(vue, seed=9)
    vue.show(SETTINGS, top=150)
    picture(vue, "vue_smoothing")
    smoothing = vue.page.locator(
        ".lg-node input[aria-label=smoothing], .lg-node [aria-label=smoothing] input"
    ).first
    assert float(smoothing.input_value()) == 0.0001


def saved_with(frontend, report):
    """Open the workflow that is shown anew, as if its file had kept this report."""
    workflow = frontend.workflow()
    (merge,) = [node for node in workflow["nodes"] if node["id"] == MERGE]
    merge["properties"]["iteris_report"] = report
    open_text = "text => app.loadGraphData(JSON.parse(text), true, true, 'saved')"
    frontend.page.evaluate(open_text, json.dumps(workflow))
    frontend.settle()
    frontend.show(MERGE, top=200)


def test_a_saved_report_of_any_shape_and_size_is_opened(frontend, picture, small):
    """The page would not come back from drawing all of it, nor from copying it at every change."""
    small(frontend, seed=12)
    panel = frontend.page.locator(".iteris-report")
    for report in (7, {"tasks": [3]}):
        saved_with(frontend, report)
        assert "cannot be read" in panel.inner_text(), report
    layers = [["q", 8, [0.5], "1"]]
    blocks = [{"name": f"IN{number}", "layers": layers} for number in range(20_000)]
    lines = {"unseen": [], "overall": [], "warnings": [], "prompts": [], "notes": []}
    overall = [{"task": 0, "wears": True, "median": 0.5, "worst": 0.5, "at": "IN01 q"}]
    saved_with(
        frontend,
        {"version": 1, "verdict": None, "tasks": ["cat"], "blocks": blocks}
        | lines
        | {"overall": overall},
    )
    assert len(blocks_of(frontend)) == 400
    assert "more than can be shown" in panel.inner_text()
    picture(frontend, "cut_report")
    kept = frontend.page.evaluate(
        "id => app.graph.getNodeById(id).properties.iteris_report.blocks.length", MERGE
    )
    assert kept == 400
    frontend.executed(MERGE, report_of(0.5, "x" * 3000))
    assert "cannot be read" in panel.inner_text(), "also of a run"
    assert frontend.errors == []


def test_below_the_last_line_of_a_panel_is_its_padding_alone(in_renderer, small):
    frontend = in_renderer
    small(frontend, seed=47)
    for node, output, panel in (
        (MERGE, THREE, "report"),
        (SAVE, {"text": ["a path\nread back"]}, "text:not(.iteris-hidden)"),
    ):
        frontend.show(node, left=500, top=60)
        frontend.executed(node, output)
        frontend.settle(40)
        below = frontend.page.locator(f".iteris-{panel}").evaluate(
            "(panel) => panel.getBoundingClientRect().bottom"
            " - panel.lastElementChild.getBoundingClientRect().bottom"
        )
        assert below == pytest.approx(6, abs=2), panel


def test_a_panel_is_as_it_was_after_its_tab_was_left_in_a_run(frontend, small):
    frontend.load({"1": {"class_type": "IterISSave", "inputs": {}}}, "left_for")
    frontend.keep()
    small(frontend, seed=48)
    frontend.keep()
    frontend.show(MERGE, left=500, top=60)
    before = size_of(frontend)
    frontend.begin("of_48")
    send_stage(frontend, "of_48", MERGE, "Sampling", 1, 12)
    for number in (1, 2, 4):
        send_layer(frontend, "of_48", str(MERGE), number)
    blocks = blocks_of(frontend)
    frontend.go_to("left_for")
    send_layer(frontend, "of_48", str(MERGE), 5)
    send_stage(frontend, "of_48", MERGE, "Sampling", 3, 12)
    assert blocks_of(frontend) == []
    frontend.go_to("merge_48")
    frontend.show(MERGE, left=500, top=60)
    wait_for_blocks(frontend, *blocks, "IN05")
    stage = frontend.page.locator(".iteris-stage > .iteris-steps")
    expect(stage).to_have_text("Sampling 3/12")
    frontend.send("execution_interrupted", prompt_id="of_48")
    expect(stage).not_to_be_visible()
    wait_for_blocks(frontend)
    frontend.still(f"app.graph.getNodeById({MERGE}).size[1]")
    assert size_of(frontend) == pytest.approx(before, abs=1)
    assert frontend.errors == []


def test_a_run_that_makes_the_same_again_does_not_change_the_workflow(frontend, small):
    page = frontend.page
    small(frontend, seed=50)
    saved = {"iteris_saved": [SAVED], "text": ["saved"]}
    kept = f"app.graph.getNodeById({SAVE}).properties.iteris_ran"
    workflow = "app.extensionManager.workflow.activeWorkflow"
    frontend.begin("first of 50")
    frontend.executed(SAVE, saved, run="first of 50")
    page.wait_for_function(f"{kept}?.run === 'first of 50'")
    frontend.settle(60)
    frontend.keep()
    # as when it is saved
    page.evaluate(f"{workflow}.changeTracker.reset(); {workflow}.isModified = false")
    frontend.begin("second of 50")
    frontend.executed(SAVE, saved, run="second of 50")
    frontend.settle(60)
    frontend.keep()
    assert page.evaluate(f"{kept}.run") == "first of 50"
    assert not page.evaluate(f"{workflow}.isModified")
    assert frontend.errors == []


def test_what_a_run_has_made_is_not_taken_for_an_earlier_runs(frontend, small):
    """Of that, the page may still ask the server whether it knows the run that made the same."""
    page = frontend.page
    small(frontend, seed=65)
    saved = {"iteris_saved": [SAVED], "text": ["saved"]}
    ran = f"app.graph.getNodeById({SAVE}).properties.iteris_ran"
    frontend.begin("first_65")
    frontend.executed(SAVE, saved, run="first_65")
    page.wait_for_function(f"{ran}?.run === 'first_65'")
    page.evaluate(f"{ran}.run = 'kept_65'")
    held = {}
    page.route("**/history/kept_65", lambda route: held.update(route=route))
    frontend.begin("second_65")
    frontend.executed(SAVE, saved, run="second_65")
    frontend.set_widgets(MERGE, loras="<lora:third:1>")
    frontend.begin("third_65")
    frontend.executed(SAVE, saved, run="third_65")
    page.wait_for_function(f"{ran}.run === 'third_65'")
    held["route"].fulfill(json={})
    frontend.settle(60)
    assert page.evaluate(f"{ran}.run") == "third_65"
    expect(page.locator(".iteris-text .iteris-earlier")).to_have_count(0)
    page.unroute("**/history/kept_65")
    assert frontend.errors == []


def test_a_server_that_was_stopped_is_not_blamed_on_a_script(frontend, small):
    small(frontend, seed=51)
    frontend.page.route("**/prompt", lambda route: route.abort())
    ask = "app.graphToPrompt().then((prompt) => comfyAPI.api.api.queuePrompt(0, prompt))"
    stack = frontend.page.evaluate(f"{ask}.catch(({{ stack }}) => stack)")
    frontend.page.unroute("**/prompt")
    assert "fetch" in stack
    assert "/extensions/" not in stack, "where the frontend looks for a script to name"


def test_an_error_of_a_file_name_is_at_its_save_until_the_next_run(frontend, small):
    """Also where the merge is in a subgraph, so that the page has no Save behind it."""
    small(frontend, seed=52)
    frontend.show(MERGE, top=100, scale=0.6)
    failures = frontend.page.locator(".iteris-failure:visible")

    def fail(run, merge):
        frontend.begin(run)
        frontend.send(
            "execution_error",
            prompt_id=run,
            node_id=merge,
            exception_message="Save merged LoRA: file_name: no",
            traceback=[],
        )

    fail("fails_52", str(MERGE))
    expect(failures).to_have_text(["file_name: no"])
    note = frontend.page.locator(".iteris-report > .iteris-note").first
    expect(note).to_have_text("The last run merged nothing: Save merged LoRA had an error.")
    frontend.begin("alone_52", [str(MERGE)])
    frontend.settle()
    expect(failures).to_have_text(["file_name: no"])  # the run did without it
    frontend.begin("next_52")
    expect(failures).to_have_count(0)

    lines = ["/models/loras/" + SAVED["name"], "read back: 2 of 2 modules", "3.4 MB"]
    frontend.executed(SAVE, {"iteris_saved": [SAVED], "text": lines}, run="next_52")
    text = frontend.page.locator(".iteris-text:visible", has_text="read back")
    name = text.locator(".iteris-saved-as")
    assert name.inner_text().replace("\n", "") == SAVED["name"]
    assert text.inner_text().splitlines()[-3:] == ["/models/loras", "3.4 MB", lines[1]]

    fail("outer_52", f"{frontend.into_subgraph(MERGE)}:{MERGE}")
    expect(failures).to_have_text(["file_name: no"])
    assert frontend.errors == []


def test_a_copy_begins_without_what_its_node_has_made(in_renderer, small):
    frontend = in_renderer
    page = frontend.page
    small(frontend, seed=73)
    frontend.begin("of 73")
    frontend.executed(MERGE, THREE, run="of 73")
    frontend.executed(SAVE, {"iteris_saved": [SAVED], "text": ["saved"]}, run="of 73")
    results = "({ properties: { iteris_report: report, iteris_ran: ran } }) => report?.file?.name ?? ran?.files[0].name"
    of_all = f"[...app.graph.nodes].map({results}).filter(Boolean)"
    page.wait_for_function(f"{of_all}.length === 2")
    copied = page.evaluate(
        """(ids) => {
            const nodes = ids.map((id) => app.graph.getNodeById(id));
            app.canvas.copyToClipboard(nodes);
            app.canvas.pasteFromClipboard();
            return app.graph.nodes.slice(-2).map(({ type }) => type);
        }""",
        [MERGE, SAVE],
    )
    frontend.settle()
    assert copied == ["IterISMerge", "IterISSave"]
    assert page.evaluate(of_all) == [SAVED["name"]] * 2, "of the nodes that have run"
    verdicts = "app.graph.nodes.map(({ widgets }) => widgets?.map(({ element }) => element?.querySelector('.iteris-kept')))"
    assert page.evaluate(f"({verdicts}).flat().filter(Boolean).length") > 0
    both = page.evaluate(
        f"""(ids) => {{
            const {{ node }} = app.graph.convertToSubgraph(new Set(ids.map((id) => app.graph.getNodeById(id))));
            app.canvas.copyToClipboard([node]);
            app.canvas.pasteFromClipboard();
            const copy = app.graph.nodes.at(-1);
            return [node, copy].map(({{ subgraph }}) => subgraph.nodes.map({results}).filter(Boolean));
        }}""",
        [MERGE, SAVE],
    )
    assert both == [[SAVED["name"]] * 2, []], "nor has a subgraph's copy"
    assert frontend.errors == []


def test_the_browser_keeps_what_the_server_has_told_of_a_saved_file(in_renderer, small):
    """As after its restart; but nothing that another workflow's run of the same has saved."""
    frontend = in_renderer
    page = frontend.page
    small(frontend, seed=76)
    text = [f"/loras/{SAVED['name']}", "read back: 24 modules", "3.4 MB", "beside it: a preview"]
    frontend.begin("saves")
    frontend.executed(SAVE, {"iteris_saved": [SAVED], "text": text}, run="saves")
    frontend.pictures_kept(SAVE)
    workflow = frontend.workflow()
    frontend.load({"1": {"class_type": "IterISReport", "inputs": {}}}, "elsewhere")
    frontend.load(workflow, "after a restart")
    told = page.locator(".iteris-text >> visible=true")
    for line in ("/loras", *text[1:]):
        expect(told).to_contain_text(line)
    (save,) = [node for node in workflow["nodes"] if node["id"] == SAVE]
    assert "/loras" not in json.dumps(save)
    (file,) = save["properties"]["iteris_ran"]["files"]
    file["mb"] = 9
    frontend.load(workflow, "another workflow")
    expect(told).to_have_text(re.compile(r"^Saved: iteris_merged.safetensors, 9.0\sMB"))
    assert frontend.errors == []


def test_what_was_saved_is_told_inside_a_subgraph(in_renderer, small, server):
    """Also where it was saved before its node went there, which the frontend makes anew, and the server knows the run no
    more."""
    frontend = in_renderer
    page = frontend.page
    for knows in (True, False):
        small(frontend, seed=74 if knows else 740)
        run = f"known-{knows}"
        text = [f"/loras/{SAVED['name']}", "read back: 24 modules", "3.4 MB"]
        output = {"iteris_saved": [SAVED], "text": text}
        frontend.begin(run)
        frontend.executed(SAVE, output, run=run)
        page.wait_for_function("id => app.graph.getNodeById(id).properties.iteris_ran", arg=SAVE)
        if knows:
            frontend.know(run, frontend.prompt(), {str(SAVE): output})
        frontend.into_subgraph(SAVE, show=True)
        told = page.locator(".iteris-text >> visible=true")
        expect(told).to_contain_text("read back: 24 modules")
        expect(told).to_contain_text(SAVED["name"].removesuffix(".safetensors"))
        frontend.forget(run)
    assert frontend.errors == []
