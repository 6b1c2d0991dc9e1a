"""The rows of Merge LoRAs are a view of its text, in both renderers."""

import itertools
import json
import re
import uuid
from pathlib import Path

import pytest
from browser import TRACKER
from playwright.sync_api import expect

MERGE = 1
PICTURE = Path(__file__).parents[2] / "workflows" / "1 Merge two LoRAs.jpg"
TEXT = """<lora:first:0.8> subject priority=2 | a photo of demo1
# <lora:second:1:0.5> style called="in ink style"
<lora:third:1>"""
FIRST, SECOND, THIRD = TEXT.split("\n")
# What the server says of files here, beside the rank.
FAMILIES = {"first": "SD1.5", "second": "SD1.5", "third": "SDXL"}
UNSEEN = {"new_1": "SDXL", "new_2": "SD1.5"}


def drag_left(rows, field, pixels, steps):
    box = field.bounding_box()
    x, y = box["x"] + 20, box["y"] + 8
    rows.page.mouse.move(x, y)
    rows.page.mouse.down()
    rows.page.mouse.move(x - pixels, y, steps=steps)
    rows.page.mouse.up()


def merge_of(text, **more):
    inputs = {"loras": text, "preset": "Balanced", "together": False, "size": "as is", **more}
    return {str(MERGE): {"class_type": "IterISMerge", "inputs": inputs}}


def answer(route):
    """Answer as the server does for files of several families, the first with a picture beside."""
    name = route.request.url.rpartition("=")[2].removesuffix(".safetensors")
    known = {**FAMILIES, **UNSEEN}
    family = "SDXL" if name.startswith("xl_") else known.get(name, "")  # other tests save files
    facts = {
        "name": name,
        "base": family,
        "family": family,
        "blocks": ["IN", "MID", "OUT"],
        "rank": 8,
    }
    words = {"trigger_words": [f"word of {name}"], "prompts": {}, "error": None}
    made = {"merged_from": ["robot", "owl"] if name == "third" else []}
    route.fulfill(json={**facts, **words, **made, "thumbnail": name == "first"})


def answer_all(frontend):
    frontend.page.route("**/iteris/lora?*", answer)
    frontend.page.route("**/iteris/thumbnail?*", lambda route: route.fulfill(path=PICTURE))


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.nightly)],
    ids=["canvas", "vue"],
)
def page_of_rows(request, lent):
    with lent(Comfy_VueNodes_Enabled=request.param) as frontend:
        answer_all(frontend)
        yield frontend


# of what is the same to both renderers, as the list of files is
IN_ONE = pytest.mark.parametrize("page_of_rows", [False], ids=["canvas"], indirect=True)


FORGET = """() => {
    for (const open of document.querySelectorAll(":popover-open")) open.hidePopover();
    localStorage.removeItem("iteris_recent");
    app.extensions.find(({ name }) => name === "IterIS.LoraMerge").refreshComboInNodes();
}"""


@pytest.fixture(autouse=True)
def what_a_test_leaves_is_forgotten(page_of_rows):
    """A list that it left open, what it let the server answer, and what the page knows of that."""
    yield
    page_of_rows.page.unroute_all(behavior="wait")  # a list asks for many files
    answer_all(page_of_rows)
    page_of_rows.page.evaluate(FORGET)


@pytest.fixture
def rows(page_of_rows):
    """Return the page with a merge of three rows."""
    before = len(page_of_rows.errors)
    page_of_rows.load(merge_of(TEXT), "rows")
    page_of_rows.show(MERGE, left=600, top=150)
    page_of_rows.page.wait_for_selector(".iteris-row")
    yield page_of_rows
    assert page_of_rows.errors[before:] == []


def text_of(frontend):
    return frontend.prompt()[str(MERGE)]["inputs"]["loras"]


def at(frontend, place, part):
    return frontend.page.locator(f'.iteris-row[data-place="{place}"] .iteris-{part}')


def called(frontend):
    """Return what the rows that are drawn are called; of lines that are not rows, their text."""
    return frontend.page.eval_on_selector_all(
        ".iteris-row",
        "all => all.map(r => r.querySelector('.iteris-called')?.textContent ?? r.querySelector('input').value)",
    )


def test_each_part_of_a_row_writes_the_text(rows, picture):
    assert called(rows) == ["first", "second", "third"]
    assert text_of(rows) == TEXT
    at(rows, 1, "toggle").click()
    assert text_of(rows) == "\n".join([FIRST, SECOND.removeprefix("# "), THIRD])
    at(rows, 1, "toggle").press("Space")
    assert text_of(rows) == TEXT
    expect(at(rows, 2, "kind")).to_have_text("subject?")  # nothing tells
    picture(rows, "rows_kind")
    for kind in ("subject", "style"):
        at(rows, 2, "kind").click()
        assert text_of(rows).endswith(f"\n<lora:third:1> {kind}")
        expect(at(rows, 2, "kind")).to_have_text(kind)
    at(rows, 1, "number").fill("0.7")
    assert SECOND.replace("1:0.5", "0.7:0.5") in text_of(rows), "the text's strength is its own"
    at(rows, 0, "number").first.fill("0.25")
    assert "<lora:first:0.25> subject" in text_of(rows), "and else goes along"
    at(rows, 0, "number").first.fill("1000")
    assert "<lora:first:0.25> subject" in text_of(rows), "no strength"
    idle = rows.page.locator(".iteris-idle .iteris-called")
    at(rows, 0, "number").first.fill("0")
    expect(idle).to_have_text("first")
    for part in ("toggle", "number"):
        assert "Strength 0: left out" in at(rows, 0, part).first.get_attribute("title")
    picture(rows, "rows_idle")
    at(rows, 0, "number").first.fill("0.25")
    expect(idle).to_have_count(0)
    assert "left out" not in at(rows, 0, "number").first.get_attribute("title")

    at(rows, 0, "opener").click()
    at(rows, 0, "prompts").fill("demo1 | and more\n\nanother")
    assert "priority=2 | demo1 \\| and more | another\n" in text_of(rows)
    at(rows, 0, "word").click()
    assert "| another, word of first\n" in text_of(rows)
    at(rows, 0, "word").click()
    assert "| another\n" in text_of(rows), "and a second click takes it back"
    at(rows, 0, "prompts").fill("a word of first here")
    expect(at(rows, 0, "word")).to_have_attribute("aria-disabled", "true")
    assert at(rows, 0, "word").get_attribute("title") == "In the prompts already"
    picture(rows, "rows_chip_there")
    at(rows, 0, "prompts").fill("another")
    at(rows, 0, "word").click()
    expect(at(rows, 0, "word")).to_have_attribute("aria-pressed", "true")
    picture(rows, "rows_chip_used")
    rows.page.get_by_label("Priority").last.fill("3")
    at(rows, 0, "more").fill('called="a dog" block')
    assert 'priority=3 blocks="called=\\"a dog\\" block" |' in text_of(rows), (
        "no older value is left"
    )
    at(rows, 0, "more").fill('called="a dog" blocks=1,0')
    assert 'priority=3 called="a dog" blocks=1,0 |' in text_of(rows)
    rows.page.wait_for_selector(".iteris-large img", state="attached")
    picture(rows, "rows_open")
    at(rows, 0, "opener").press("Enter")
    assert at(rows, 0, "prompts").count() == 0


def test_a_strength_is_written_with_a_comma_stepped_and_dragged(rows):
    """As core's own numbers are; one that hardly anybody means is marked."""
    strength = at(rows, 0, "number").first
    given = strength.input_value()
    for written, number in (("0,75", "0.75"), (" .5 ", "0.5"), ("75", "75"), ("3", "3")):
        strength.fill(written)
        assert f"<lora:first:{number}> subject" in text_of(rows)
        is_marked = "unusually strong" in strength.get_attribute("title")
        assert is_marked == (number == "75"), number
    for odd in ("1,5,5", "", "101", "x"):
        strength.fill(odd)
        assert "iteris-wrong" in strength.get_attribute("class"), odd
    assert "<lora:first:3> subject" in text_of(rows), "the last one that is a strength"
    strength.blur()
    expect(strength).to_have_value(given)
    assert f"<lora:first:{given}> subject" in text_of(rows), "as before all of that was written"
    strength.fill("0,7")
    strength.press("Escape")
    strength.fill("0,7")
    strength.blur()
    for odd in ("abc", "1e9", "--", "200"):
        strength.fill("0.4")
        strength.fill(odd)
        strength.blur()
        expect(strength).to_have_value("0.7")
        assert "<lora:first:0.7> subject" in text_of(rows), odd
        assert "iteris-wrong" in strength.get_attribute("class"), odd
        title = strength.get_attribute("title")
        assert title.endswith(f"Not a number from -100 to 100: {odd}")
    strength.focus()
    assert "iteris-wrong" not in strength.get_attribute("class")
    assert "Not a number" not in strength.get_attribute("title")
    strength.fill("0,72")
    for key, number in (("ArrowUp", "0.75"), ("ArrowUp", "0.8"), ("ArrowDown", "0.75")):
        strength.press(key)
        assert f"<lora:first:{number}> subject" in text_of(rows)
    rows.page.keyboard.type("0.75")
    assert "<lora:first:0.75> subject" in text_of(rows), "what is typed after a step replaces it"
    strength.fill("0,75")
    strength.blur()
    expect(strength).to_have_value("0.75")
    assert "<lora:first:0.75> subject" in text_of(rows)
    rows.settle()  # the frontend notes a key a frame later
    before = rows.page.evaluate("[...app.graph.getNodeById(1).pos]")
    drag_left(rows, strength, 60, steps=6)
    assert "<lora:first:0> subject" in text_of(rows)
    assert rows.page.evaluate("[...app.graph.getNodeById(1).pos]") == before
    rows.undo()
    assert "<lora:first:0.75> subject" in text_of(rows), "one step of Undo"
    for written in ("0,3", "0,4"):
        at(rows, 0, "number").first.click()
        rows.page.keyboard.type(written)
        rows.page.keyboard.press("Enter")
        number = written.replace(",", ".")
        assert f"<lora:first:{number}> subject" in text_of(rows), "a click marks what is there"


def test_escape_and_undo_give_a_strength_back_and_the_wheel_changes_it(rows):
    strength = at(rows, 0, "number").first
    at(rows, 0, "opener").click()
    scale = "app.canvas.ds.scale"
    before = rows.page.evaluate(scale)
    for key in ("Escape", "Control+z"):
        strength.click()
        rows.page.keyboard.type("0.4")
        assert "<lora:first:0.4> subject" in text_of(rows)
        rows.page.keyboard.press(key)
        assert text_of(rows) == TEXT, key
        expect(strength).to_have_value("0.8")
        if key == "Escape":
            rows.page.keyboard.press("Tab")
            expect(at(rows, 0, "opener")).to_be_focused()
            assert at(rows, 0, "prompts").count() == 1, "the row stays open"
    rows.page.keyboard.press("Escape")
    rows.page.mouse.click(250, 800)
    rows.page.keyboard.press("Tab")
    rows.settle()
    is_focused = "shown => shown.closest('.iteris-row').contains(document.activeElement)"
    assert not strength.evaluate(is_focused), "the user is elsewhere by now"
    strength.click()
    strength.hover()
    rows.page.mouse.wheel(0, -120)
    assert "<lora:first:0.85> subject" in text_of(rows)
    rows.settle()
    assert rows.page.evaluate(scale) == before, "the canvas does not zoom"
    rows.page.keyboard.press("Escape")
    assert text_of(rows) == TEXT


def test_a_strength_on_the_text_encoder_is_that_on_the_model_unless_they_differ(rows):
    at(rows, 0, "opener").click()
    strength = at(rows, 0, "number").first
    clip = at(rows, 0, "row-body").get_by_role("spinbutton", name="Text strength")
    clip.fill("abc")
    clip.blur()
    assert "iteris-wrong" in clip.get_attribute("class")
    strength.fill("0.7")
    expect(clip).to_have_value("0.7")
    assert "iteris-wrong" not in clip.get_attribute("class")
    assert "abc" not in clip.get_attribute("title")
    clip.fill("0.5")
    strength.click()
    rows.page.keyboard.type("0.55")  # by way of 0.5
    assert "<lora:first:0.55:0.5> subject" in text_of(rows)
    rows.page.keyboard.press("Escape")
    assert "<lora:first:0.7:0.5> subject" in text_of(rows)
    drag_left(rows, strength, 24, steps=24)
    assert "<lora:first:0.4:0.5> subject" in text_of(rows)


def test_enter_goes_down_the_strengths_of_the_rows_and_back(rows):
    """By Tab it is seven keys to the next one."""
    rows.set_widgets(MERGE, loras=f"{FIRST}\n# a remark\n{SECOND}\n{THIRD}")
    rows.settle()
    at(rows, 0, "opener").press("Enter")  # whose numbers are none of the column
    at(rows, 0, "number").first.click()
    for strength in ("0.6", "0.7", "0.9"):
        rows.page.keyboard.type(strength)
        rows.page.keyboard.press("Enter")
    numbers = rows.page.locator(".iteris-row-head > .iteris-number")
    strengths = re.findall(r"<lora:\w+:([\d.]+)", text_of(rows))
    assert strengths == ["0.6", "0.7", "0.9"]
    scale = rows.page.evaluate("app.canvas.ds.scale")
    rows.page.keyboard.press(".")
    rows.page.wait_for_function("scale => app.canvas.ds.scale !== scale", arg=scale)
    numbers.nth(2).click()
    rows.page.keyboard.press("Shift+Enter")
    expect(numbers.nth(1)).to_be_focused()


def test_a_click_on_a_strength_that_enter_has_marked_keeps_the_mark(rows):
    at(rows, 0, "number").first.click()
    rows.page.keyboard.press("Enter")
    second = at(rows, 1, "number").first
    expect(second).to_be_focused()
    second.click()
    rows.page.keyboard.type("0.4")
    expect(second).to_have_value("0.4")
    second.dblclick(position={"x": 38, "y": 10})
    second.press("End")
    second.click(position={"x": 38, "y": 10})
    rows.page.keyboard.type("5")
    expect(second).to_have_value("0.45")


def test_a_strength_that_was_clicked_is_not_copied_instead_of_a_node(rows):
    """The browser copies a text that is marked, also in a field without the focus."""
    for key in ("ArrowUp", "ArrowDown"):
        at(rows, 0, "number").first.click()
        rows.page.keyboard.press(key)
    rows.page.mouse.click(200, 700)
    assert rows.page.evaluate("getSelection().toString()") == ""
    rows.page.mouse.click(760, 135)  # the node's title
    rows.page.keyboard.press("Control+c")
    rows.page.keyboard.press("Control+v")
    rows.page.wait_for_function("app.graph.nodes.length === 2")


def test_names_stand_below_each_other_and_a_closed_row_says_what_it_has(rows, picture):
    """Of the files, the first alone has a picture."""
    rows.page.wait_for_selector(".iteris-picture > img")
    rows.settle()
    lefts = {at(rows, place, "called").bounding_box()["x"] for place in range(3)}
    assert len(lefts) == 1
    rows.page.evaluate("app.graph.getNodeById(1).setSize([400, 500])")
    rows.settle()
    assert at(rows, 2, "lora").bounding_box()["width"] > 160, "no room for what another row has"
    assert at(rows, 0, "clip").text_content() == ""
    assert at(rows, 1, "clip").inner_text() == "/ 0.5"
    assert at(rows, 1, "clip").get_attribute("title") == "Text strength: 0.5"
    told = at(rows, 1, "opener").get_attribute("title")
    assert told.startswith('called="in ink style"\n')
    lacking = rows.page.locator(".iteris-lacking .iteris-further")
    expect(lacking).to_have_attribute(
        "title", re.compile(" trigger words.\npriority=2\na photo of demo1\n")
    )
    picture(rows, "rows_lacking")
    at(rows, 0, "opener").click()
    at(rows, 0, "word").click()
    expect(rows.page.locator(".iteris-lacking")).to_have_count(0)
    at(rows, 1, "opener").click()
    assert at(rows, 1, "clip").text_content() == "", "it stands below"


def test_all_rows_are_switched_at_once_and_a_pasted_prompt_gives_its_tags(rows):
    at(rows, 0, "toggle").click(modifiers=["Shift"])
    assert all(line.startswith("# <lora:") for line in text_of(rows).splitlines())
    at(rows, 1, "toggle").click(modifiers=["Alt"])
    assert "# <lora:" not in text_of(rows)
    rows.page.locator(".iteris-other").click()
    field = rows.page.locator(".iteris-rows-text")
    for pasted, taken in (
        ("<lora:first:0.8>, masterpiece", "<lora:first:0.8>"),
        ("<lora:first> style | x", "<lora:first> style | x"),
    ):
        field.press("Control+a")
        rows.page.evaluate("text => navigator.clipboard.writeText(text)", pasted)
        field.press("Control+v")
        assert text_of(rows) == taken


@IN_ONE
def test_a_file_that_is_added_goes_into_an_empty_row_first(rows):
    rows.set_widgets(1, loras="<lora:first:1>\n<lora::0.5> style\n# <lora::1>")
    for name, line in (("second", "<lora:second:0.5> style"), ("third", "<lora:third:1>")):
        rows.page.locator(".iteris-add").click()
        rows.page.wait_for_selector(".iteris-option")
        rows.page.keyboard.type(name)
        rows.page.keyboard.press("Enter")
        assert line in text_of(rows).splitlines()
    assert len(text_of(rows).splitlines()) == 4, "one that is switched off stays empty"


def test_what_is_typed_before_the_names_come_is_searched_and_enter_waits_for_it(rows, picture):
    page, held = rows.page, []
    load_merge_on_a_model(rows, TEXT)
    files = [f"{name}.safetensors" for name in ("a_new_2", "first", "new_2", "second")]

    def hold(route):
        held.append(route)

    page.route("**/models/loras", hold)
    field, option = page.locator(".iteris-search"), page.locator(".iteris-option")

    def come():
        while not held:
            rows.settle()
        while held:
            held.pop().fulfill(json=files)
            rows.settle()

    # as fast as the page takes them; "r" and "w" are hotkeys of the page
    at(rows, 0, "lora").click()
    page.keyboard.type("new_2")
    page.keyboard.press("Enter")
    expect(field).to_be_focused()
    expect(field).to_have_value("new_2")
    picture(rows, "rows_choose_waiting")
    assert text_of(rows) == TEXT, "nothing is chosen yet"
    come()
    expect(page.locator(".iteris-choice")).to_have_count(0)
    assert text_of(rows).startswith("<lora:new_2:0.8>"), "not the one before it"

    page.locator(".iteris-add").press("Enter")
    page.keyboard.press("Enter")  # of nothing
    page.keyboard.press("ArrowDown")
    page.keyboard.type("sec")
    come()
    expect(option).to_have_text(["second"])
    expect(option).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")
    expect(page.locator(".iteris-add")).to_be_focused()
    assert len(text_of(rows).splitlines()) == 3
    at(rows, 0, "lora").click()
    come()
    expect(option.nth(2)).to_have_attribute("aria-selected", "true")  # what the row has
    page.keyboard.press("Escape")


@IN_ONE
def test_the_choice_shows_the_picture_beside_a_file(rows, picture):
    rows.page.locator(".iteris-add").click()
    rows.page.wait_for_selector(".iteris-option")
    rows.page.keyboard.type("IR")  # first and third, whatever other tests have saved
    seen = rows.page.locator(".iteris-seen img")
    expect(seen).to_be_visible()
    picture(rows, "rows_choose_seen")
    words = rows.page.locator(".iteris-seen").get_by_text("word of first")
    within = "word => word.getBoundingClientRect().bottom <= word.parentElement.getBoundingClientRect().bottom"
    assert words.evaluate(within), "whole beside a short list"
    rows.page.keyboard.press("ArrowDown")
    expect(seen).to_have_count(0)
    rows.page.locator(".iteris-option", has_text="first").hover()
    expect(seen).to_be_visible()
    made = rows.page.locator(".iteris-option .iteris-made")
    expect(made).to_have_text("merge of robot+ owl")
    picture(rows, "rows_choose_made")
    rows.page.keyboard.press("Enter")
    assert text_of(rows).endswith("\n<lora:first:1>"), "the one that is pointed at and seen"


@IN_ONE
def test_a_file_is_found_by_its_words_and_what_it_is_made_of(rows, picture):
    option = rows.page.locator(".iteris-option")
    for said, listed in (("robot", "thirdmerge of robot+ owl"), ("of fir", "firstword of first")):
        name = listed[:5]
        rows.page.locator(".iteris-add").click()
        rows.page.wait_for_selector(".iteris-option")
        rows.page.keyboard.type(said)
        expect(option).to_have_text([listed])
        seen = option.locator(".iteris-picture")
        # where no file has a picture, there is no room for one
        expect(seen).to_be_visible(visible=name == "first")
        picture(rows, f"rows_found_{name}")
        rows.page.keyboard.press("Enter")
        assert text_of(rows).endswith(f"\n<lora:{name}:1>")
    many = [f"mine/many_{number}.safetensors" for number in range(100, 330)]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=many))
    rows.page.locator(".iteris-add").click()
    rows.page.wait_for_selector(".iteris-option")
    # beyond those that are listed, and so read, without a word
    rows.page.keyboard.type("of many_329")
    expect(option).to_have_text(["many_329mineword of mine%2Fmany_329"])
    picture(rows, "rows_found_many")
    assert option.bounding_box()["height"] < 30, "one line has room for all of it"
    rows.page.keyboard.press("Escape")


def test_a_files_picture_and_words_are_beside_the_row_where_the_pointer_rests(rows, picture):
    """And not in the way of a click; gone with the pointer, with a key, and with the row."""
    card = rows.page.locator(".iteris-peek")
    pictures = []
    rows.page.wait_for_selector(".iteris-picture > img")
    rows.settle()  # rows that are drawn once more know nothing for a moment
    rows.page.on("request", lambda request: pictures.append(request.url))
    at(rows, 0, "lora").hover()
    expect(card.locator("img")).to_be_visible()
    assert not any("/iteris/lora?" in url for url in pictures), "it is known already"
    expect(card).to_contain_text("first")
    expect(card).to_contain_text("SD1.5, rank 8")
    expect(card).to_contain_text("word of first")
    picture(rows, "rows_peek")
    list_box, card_box = rows.page.locator(".iteris-rows").bounding_box(), card.bounding_box()
    assert card_box["x"] >= list_box["x"] + list_box["width"]
    at(rows, 2, "lora").hover()
    expect(card.locator(".iteris-whole")).to_have_text("third")
    expect(card).to_contain_text("merge of robot + owl")
    expect(card).to_contain_text("others here are for another model")
    for leave in ("move", "click", "press", "remove"):
        rows.page.mouse.move(5, 500)
        expect(card).to_have_count(0)
        at(rows, 0, "lora").hover()
        expect(card).to_be_visible()
        if leave == "click":
            at(rows, 0, "lora").click()
            rows.page.wait_for_selector(".iteris-choice")
            rows.page.keyboard.press("Escape")
        elif leave == "press":
            at(rows, 1, "toggle").press("Space")
        elif leave == "remove":
            rows.set_widgets(MERGE, loras=THIRD)
        if leave in ("click", "press"):
            expect(card).to_have_count(0)
    rows.page.mouse.move(5, 500)
    expect(card).to_have_count(0)


@IN_ONE
def test_the_choice_marks_files_of_other_rows(rows, picture):
    rows.page.locator(".iteris-add").click()
    option = rows.page.locator(".iteris-option")
    option.first.wait_for()
    rows.page.keyboard.type("IR")
    expect(option.filter(has_text="first")).to_have_class(re.compile("iteris-taken"))
    assert option.first.get_attribute("aria-description") == "Already in another row"
    picture(rows, "rows_choose_taken")
    rows.page.keyboard.press("Escape")
    at(rows, 0, "lora").click()
    option.first.wait_for()
    rows.page.keyboard.type("first")
    expect(option).to_have_count(1)
    expect(option).not_to_have_class(re.compile("iteris-taken"))
    rows.page.keyboard.press("Escape")
    at(rows, 0, "out").click()
    rows.page.locator(".iteris-add").press("Enter")
    option.first.wait_for()
    rows.page.keyboard.type("IR")
    expect(option.first).to_have_attribute("aria-selected", "true")
    rows.page.keyboard.press("Shift+Enter")
    expect(option.first).to_have_class(re.compile("iteris-taken"))
    rows.page.keyboard.type("sec")
    option.first.click(modifiers=["Shift"])
    lines = "\n".join([SECOND, THIRD, "<lora:first:1>"])
    rows.page.keyboard.press("Enter")  # on what it has added
    rows.page.wait_for_function("document.activeElement.classList.contains('iteris-add')")
    assert text_of(rows) == f"{lines}\n<lora:second:1>", "the one in no row yet, and another"


@IN_ONE
def test_a_file_that_is_not_a_lora_is_not_chosen_and_the_choice_says_why(rows, picture):
    why = "first.safetensors is a textual inversion"
    refuse = lambda route: route.fulfill(json={"name": "first", "error": why})  # noqa: E731
    rows.page.route("**/iteris/lora?name=first.*", refuse)
    at(rows, 2, "lora").click()
    rows.page.keyboard.type("first")
    option = rows.page.locator(".iteris-option")
    expect(option).to_have_attribute("aria-disabled", "true")
    for choose in (lambda: rows.page.keyboard.press("Enter"), lambda: option.click(force=True)):
        choose()
        expect(rows.page.locator(".iteris-seen")).to_contain_text(why)
        assert text_of(rows) == TEXT
    picture(rows, "rows_choose_broken")
    rows.page.unroute("**/iteris/lora?name=first.*", refuse)
    rows.page.keyboard.press("ControlOrMeta+A")
    rows.page.keyboard.type("second")
    expect(option).to_have_attribute("aria-disabled", "false")
    rows.page.keyboard.press("Enter")
    assert text_of(rows).endswith("\n<lora:second:1>")


@IN_ONE
def test_files_of_the_same_name_are_told_apart_by_their_folders(rows, picture):
    name = f"{'long_' * 20}epoch_07"
    files = [f"people/of/my/{folder}/{name}" for folder in ("one", "two", "two/other")]
    files = [f"{file}.safetensors" for file in (*files[:2], f"{files[2]}_2")]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=files))
    rows.page.locator(".iteris-add").click()
    rows.page.locator(".iteris-option").first.wait_for()
    rows.page.keyboard.type("epoch")
    is_seen = """(all) => all.map((folder) => {
        const line = folder.parentElement.getBoundingClientRect();
        return folder.getBoundingClientRect().bottom <= line.bottom + 1;
    })"""
    assert rows.page.locator(".iteris-option .iteris-folder").evaluate_all(is_seen) == [
        *(True, True),
        False,
    ], "elsewhere it gives way to the name"
    picture(rows, "rows_choose_namesakes")
    for place in (0, 1):
        rows.page.locator(".iteris-option").nth(place).click(modifiers=["Shift"])
    rows.page.keyboard.press("Escape")
    rows.page.wait_for_selector('.iteris-namesake[data-place="4"]')
    for place, end in ((3, "one"), (4, "two")):
        folder = at(rows, place, "folder").locator(".iteris-end")
        assert folder.inner_text() == end
        assert folder.evaluate("end => end.scrollWidth <= end.clientWidth && end.clientWidth > 0")
    picture(rows, "rows_namesakes")


@IN_ONE
def test_names_that_differ_in_the_middle_are_told_apart(rows, picture):
    names = [f"my_character_v1_{steps}_{'long_' * 12}bf16" for steps in ("000500", "001000")]
    files = [f"{name}.safetensors" for name in names]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=files))
    rows.set_widgets(MERGE, loras="\n".join(f"<lora:{name}:1> subject" for name in names))
    rows.page.evaluate("app.graph.getNodeById(1).setSize([330, 400])")
    at(rows, 1, "lora").click()
    rows.page.locator(".iteris-option").nth(1).wait_for()
    rows.settle()
    seen = """(all) => all.map((part) => {
        const line = part.parentElement.getBoundingClientRect();
        const { left, right } = part.getBoundingClientRect();
        const isWhole = part.scrollWidth <= part.clientWidth && line.left < left && right <= line.right;
        return isWhole ? part.textContent : "cut";
    })"""
    for where in (".iteris-row", ".iteris-option"):
        shown = rows.page.locator(f"{where} .iteris-called > .iteris-end")
        assert shown.evaluate_all(seen) == ["000500", "001000"], where
    picture(rows, "rows_told_apart")
    rows.page.keyboard.press("Escape")


BOX = "document.querySelector('.iteris-choice').getBoundingClientRect()"


@IN_ONE
def test_files_that_were_chosen_last_come_first_among_many(rows, picture):
    many = [f"many_{number}.safetensors" for number in sorted(map(str, range(40)))]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=many))
    option = rows.page.locator(".iteris-option")
    for name in ("many_33", "many_21"):
        rows.page.locator(".iteris-add").click()
        option.first.wait_for()
        rows.page.keyboard.type(name)
        rows.page.keyboard.press("Enter")
        at(rows, 3, "out").click()
    rows.show(MERGE, left=300, top=280)  # the button is half way down
    rows.page.locator(".iteris-add").click()
    option.first.wait_for()
    listed = ["many_21", "many_33", "many_0"]
    assert option.evaluate_all("all => all.slice(0, 3).map(o => o.textContent)") == listed
    picture(rows, "rows_choose_recent")
    choice = rows.page.locator(".iteris-choice")
    opened = choice.bounding_box()
    rows.page.keyboard.type("many_39")
    expect(option).to_have_count(1)
    picture(rows, "rows_choose_few")
    now = choice.bounding_box()
    assert now["y"] == opened["y"]
    assert now["height"] < opened["height"] - 100
    rows.page.locator(".iteris-search").fill("many")
    assert option.all_text_contents() == [f"many_{number}" for number in range(40)], "by name"
    top, bottom = (rows.page.evaluate(f"{BOX}.{end}") for end in ("top", "bottom"))
    button = rows.page.locator(".iteris-add").bounding_box()
    assert bottom <= button["y"] or button["y"] + button["height"] <= top, "beside what opened it"
    for key, place in (("End", 39), ("Home", 0)):
        rows.page.keyboard.press(key)
        expect(option.nth(place)).to_have_attribute("aria-selected", "true")
        expect(option.nth(place)).to_be_in_viewport()
    rows.page.keyboard.press("Escape")
    others = [f"other_v{number}.safetensors" for number in (1, 2)]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=[*many, *others]))
    rows.set_widgets(MERGE, loras="<lora:other_v2:1>")
    at(rows, 0, "lora").click()
    option.first.wait_for()
    listed = ["other_v1", "other_v2", "many_21"]
    assert option.evaluate_all("all => all.slice(0, 3).map(o => o.textContent)") == listed
    expect(option.nth(1)).to_have_attribute("aria-selected", "true")
    picture(rows, "rows_choose_versions")
    rows.set_widgets(MERGE, loras=TEXT)
    rows.page.unroute("**/models/loras")
    rows.page.keyboard.press("Escape")
    rows.page.locator(".iteris-add").press("Enter")  # what is listed is asked for again
    expect(option.filter(has_text="first")).to_have_count(1)


def test_many_files_are_looked_for_in_one_of_their_folders(rows, picture):
    files = [f"people/dog_{number}.safetensors" for number in range(30)]
    files += [f"people\\old\\cat_{number}.safetensors" for number in range(9)]
    files += ["ink.safetensors", "styles/oil_dog.safetensors"]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=files))
    rows.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    rows.page.locator(".iteris-add").click()
    option, folder = rows.page.locator(".iteris-option"), rows.page.locator(".iteris-where")
    expect(option).to_have_count(len(files))
    told = ["All folders (41)", "\u2003people (39)", "\u2003\u2003old (9)", "\u2003styles (1)"]
    assert folder.locator("option").all_text_contents() == told
    folder.select_option("people/")
    expect(option).to_have_count(39)
    expect(rows.page.locator(".iteris-search")).to_be_focused()
    picture(rows, "rows_choose_folder")
    rows.page.keyboard.type("dog")
    expect(option).to_have_count(30)
    folder.select_option("styles/")
    expect(option).to_have_count(1)
    for key in ("Tab", "Tab", "Enter"):  # round in a circle
        rows.page.keyboard.press(key)
    expect(at(rows, 3, "lora")).to_contain_text("oil_dog")
    rows.page.unroute("**/models/loras")
    rows.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")


def test_a_double_click_opens_one_list_and_a_right_click_the_nodes_menu(rows, picture):
    choice = rows.page.locator(".iteris-choice")
    at(rows, 0, "lora").dblclick()
    expect(choice).to_have_count(1)
    rows.page.keyboard.press("Escape")
    expect(choice).to_have_count(0)
    if rows.page.evaluate("LiteGraph.vueNodesMode"):
        return  # their menu is the frontend's own, and has what rows add in newer ones alone
    bypass = rows.page.get_by_text("Bypass").locator("visible=true")  # of the node's menu
    for place, chosen, lines in (
        (1, "Duplicate this row", [FIRST, SECOND, SECOND, THIRD]),
        (0, "Take this row out", [SECOND, SECOND, THIRD]),
        (1, "Switch all other rows off", [SECOND, SECOND.removeprefix("# "), f"# {THIRD}"]),
    ):
        at(rows, place, "lora").click(button="right")
        expect(bypass).to_have_count(1)
        picture(rows, f"rows_menu_{place}")
        rows.page.get_by_text(chosen).click()
        expect(bypass).to_have_count(0)
        assert text_of(rows) == "\n".join(lines)
    rows.page.mouse.click(760, 135, button="right")  # the node's title
    expect(bypass).to_have_count(1)
    assert rows.page.get_by_text("Duplicate this row").count() == 0
    rows.page.mouse.click(200, 700)
    expect(bypass).to_have_count(0)


def end_is_seen(name):
    """Check that a name is cut in its middle, and whole for who points at it."""
    start, end = (name.locator(f".iteris-called > .iteris-{part}") for part in ("start", "end"))
    assert start.evaluate("({ scrollWidth, clientWidth }) => scrollWidth > clientWidth")
    expect(end).to_have_text("_epoch_07")
    ends = [each.bounding_box()["x"] + each.bounding_box()["width"] for each in (end, name)]
    assert ends[0] <= ends[1]
    name.hover()
    whole = name.page.locator(".iteris-whole").filter(
        has_text=re.compile("^people/of/my/world/long_")
    )
    expect(whole).to_be_visible()


def load_merge_on_a_model(frontend, text=""):
    """Load a merge of these rows on a checkpoint that the server knows as SD1.5."""
    fits = {"name": "", "family": "SD1.5", "fits": ["SD1.5"], "error": None}
    frontend.page.route("**/iteris/model?*", lambda route: route.fulfill(json=fits))
    checkpoint = {"ckpt_name": "checkpoint.safetensors"}
    workflow = merge_of(text, model=["2", 0], clip=["2", 1])
    workflow["2"] = {"class_type": "CheckpointLoaderSimple", "inputs": checkpoint}
    frontend.load(workflow, "rows_of_a_model")
    frontend.show(MERGE, left=600, top=150)


def test_the_choice_leaves_out_files_for_other_models_and_shows_names_before_folders(rows, picture):
    deep = f"people/of/my/world/{'long_' * 20}epoch_07.safetensors"
    files = [deep, *(f"{name}.safetensors" for name in FAMILIES)]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=files))
    load_merge_on_a_model(rows, TEXT)
    rows.page.locator(".iteris-add").press("Enter")
    option = rows.page.locator(".iteris-option")
    third = option.filter(has_text="third")
    expect(third).to_have_count(0)
    expect(option).to_have_count(3)
    expect(option.filter(has_text="first").locator("img")).to_be_visible()
    for key, place in (("PageDown", 2), ("PageUp", 0)):
        rows.page.keyboard.press(key)
        expect(option.nth(place)).to_have_attribute("aria-selected", "true")
    picture(rows, "rows_choose_fitting")
    rows.page.get_by_text("Also LoRAs for other models").click()
    expect(third).to_have_count(1)
    rows.page.get_by_text("Also LoRAs for other models").click()
    expect(third).to_have_count(0)
    rows.page.keyboard.press("Shift+Tab")
    rows.page.locator(".iteris-search").fill("third")
    rows.page.get_by_text("1 for another model: show").click()
    expect(third).to_have_count(1)
    expect(third).to_have_attribute("data-family", "SDXL")
    picture(rows, "rows_choose_others")
    rows.page.get_by_text("Also LoRAs for other models").click()
    rows.page.locator(".iteris-search").fill("no such")
    said = rows.page.get_by_text("No LoRA has this name.")
    expect(said).to_be_visible()
    told, field, box = (
        part.bounding_box()
        for part in (said, rows.page.locator(".iteris-search"), rows.page.locator(".iteris-choice"))
    )
    assert field["y"] < told["y"] < field["y"] + field["height"] + 10
    assert box["height"] < 120, "no room for names is left"
    picture(rows, "rows_choose_nothing")
    rows.page.locator(".iteris-search").fill("")
    end_is_seen(option.filter(has_text="epoch"))
    option.filter(has_text="epoch").click()
    rows.page.locator(".iteris-add").press("Enter")
    option.filter(has_text="first").click()
    rows.page.wait_for_selector('.iteris-again[data-place="0"]')
    assert at(rows, 4, "family").inner_text() == "\N{MULTIPLICATION SIGN}2"
    assert "its strengths add up" in at(rows, 4, "lora").get_attribute("aria-description")
    own, folder = (at(rows, 3, part).bounding_box()["y"] for part in ("called", "folder"))
    assert folder > own + 10, "the folder gives way"
    end_is_seen(at(rows, 3, "lora"))
    picture(rows, "rows_again")


@IN_ONE
def test_a_file_for_another_model_is_never_offered_and_what_is_known_comes_at_once(rows, picture):
    files = [f"{name}.safetensors" for name in ("first", *UNSEEN, "third")]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=files))
    load_merge_on_a_model(rows)
    slow = []

    def wait(route):
        slow.append(route)

    rows.page.route("**/iteris/lora?*", wait)
    rows.page.locator(".iteris-add").press("Enter")
    option = rows.page.locator(".iteris-option")
    expect(rows.page.get_by_text("Reading files\N{HORIZONTAL ELLIPSIS}")).to_be_visible()
    expect(option).to_have_text(["first"])  # which was in a row
    picture(rows, "rows_choose_reading")
    height = rows.page.locator(".iteris-choice").bounding_box()["height"]
    while len(slow) < 3:  # third is known, too, and is not asked for again
        rows.settle()
    for route in slow:
        answer(route)
    expect(option).to_have_text(["first", "new_2"])
    assert rows.page.locator(".iteris-choice").bounding_box()["height"] <= height
    expect(rows.page.get_by_text("Reading files")).to_have_count(0)
    rows.page.keyboard.press("Escape")
    rows.page.locator(".iteris-add").press("Enter")
    expect(option).to_have_text(["first", "new_2"])
    while len(slow) < 5:  # the server is asked again
        rows.settle()
    rows.page.keyboard.press("Escape")
    for route in slow[3:]:
        answer(route)


@IN_ONE
def test_a_list_above_its_row_ends_there_also_where_few_of_many_files_fit(rows, picture):
    files = [f"{name}.safetensors" for name in FAMILIES]
    files += [f"xl_{number}.safetensors" for number in range(60)]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=files))
    load_merge_on_a_model(rows)
    rows.show(MERGE, left=300, top=700)
    add = rows.page.locator(".iteris-add")
    add.press("Enter")
    expect(rows.page.get_by_text("Reading files")).to_have_count(0)
    expect(rows.page.locator(".iteris-option")).to_have_text(["first", "second"])
    picture(rows, "rows_choose_above")
    box = rows.page.locator(".iteris-choice").bounding_box()
    assert 0 <= add.bounding_box()["y"] - box["y"] - box["height"] <= 4


def test_a_merge_is_queued_by_keyboard_alone(page_of_rows):
    load_merge_on_a_model(page_of_rows)
    page, keys = page_of_rows.page, page_of_rows.page.keyboard

    def focused():
        return page.evaluate("document.activeElement.className.split(' ')[0]")

    def press(*pressed):
        for key in pressed:
            keys.press(key)
        page_of_rows.settle()

    page.locator(".iteris-add").focus()
    for name in ("first", "second"):
        press("Enter")
        assert focused() == "iteris-search"
        press("Tab", "Tab")
        assert focused() == "iteris-search", "Tab does not leave the list"
        press("Shift+Tab")
        assert page.locator(".iteris-others input").evaluate("box => box.matches(':focus')")
        press("Tab")
        keys.type(name)
        expect(page.locator(".iteris-option")).to_have_count(1)
        press("Enter")
        assert focused() == "iteris-lora"
        press(*["Tab"] * 5)
        assert focused() == "iteris-add"
    press("Enter")
    press("Escape")
    press("Shift+Tab", "Shift+Tab")
    assert focused() == "iteris-opener"
    press("Enter", "Tab", "Tab")
    assert focused() == "iteris-chip"
    press("Enter", "Escape")
    assert focused() == "iteris-opener"
    assert page.locator(".iteris-prompts").count() == 0, "Escape closes a row"
    press("Shift+Tab", "ArrowDown", "Enter", "Enter")
    assert page.locator(".iteris-prompts").count() == 0, "Enter opens no row from a number"
    assert text_of(page_of_rows) == "<lora:first:1>\n<lora:second:0.95> | word of second"
    press("Tab")
    assert focused() == "iteris-opener", "Tab goes on from the number"
    press("Shift+Tab", "Enter", "Shift+Tab")
    assert focused() == "iteris-kind", "and back"
    with page_of_rows.queueing("keys") as queued:
        press("Control+Enter")
    assert queued.value.post_data_json["prompt"][str(MERGE)]["inputs"]["loras"]


def test_undo_closes_no_row(rows):
    at(rows, 0, "opener").press("Enter")
    strength = at(rows, 0, "number").first
    strength.fill("0.6")
    strength.blur()
    rows.settle()
    rows.undo()
    assert text_of(rows) == TEXT
    assert at(rows, 0, "prompts").count() == 1
    assert at(rows, 1, "prompts").count() == 0


def test_what_only_shows_rows_in_another_way_is_no_step_of_undo(rows):
    steps = f"{TRACKER}.undoQueue.length"
    rows.keep()
    before = rows.page.evaluate(steps)
    for part in ("opener", "opener", "other", "other"):
        rows.page.locator(f".iteris-{part}").first.press("Enter")
        rows.settle(20)
    rows.keep()
    assert rows.page.evaluate(steps) == before


def test_an_edit_with_rows_open_leaves_the_height_that_a_workflow_keeps(rows):
    """Of what is open it keeps nothing."""
    kept = f"{TRACKER}.activeState.nodes[0].size[1]"
    rows.keep()
    before = rows.page.evaluate(kept)
    for place in (0, 1):
        at(rows, place, "opener").click()
    for place in (0, 1):
        at(rows, place, "toggle").click()
        rows.settle(20)
        rows.keep()
        assert rows.page.evaluate(kept) == before


EDITS = (
    (0, "number", "0.6"),
    (0, "prompts", "demo1 in the rain"),
    (0, "more", "called=dog"),
    (1, "number", "0.8"),
)


def test_undo_on_the_canvas_goes_back_edit_by_edit(rows):
    """The browser's own Undo, in the field that was written in last, is no change."""
    at(rows, 0, "opener").click()
    told = [text_of(rows)]
    for count, (place, part, written) in enumerate(EDITS):
        field = at(rows, place, part).first
        before = field.input_value()
        field.click()
        rows.page.keyboard.press("Control+a")
        rows.page.keyboard.type(written)
        told.append(text_of(rows))
        rows.page.mouse.click(1100 + 50 * count, 650)
        for word, value in (("undo", before), ("redo", written)):
            rows.press_undo(word)
            assert text_of(rows) == told[-2 if word == "undo" else -1], (part, word)
            expect(field).to_have_value(value)
    for expected in reversed(told[1:-1]):  # before, the frontend notes which renderer it has
        rows.press_undo()
        assert text_of(rows) == expected


def test_steps_in_a_row_by_wheel_or_key_are_one_step_of_undo(rows):
    steps = f"{TRACKER}.undoQueue.length"
    strength = at(rows, 0, "number").first
    strength.click()
    for event in (
        "WheelEvent('wheel', { deltaY: -120 })",
        "KeyboardEvent('keydown', { key: 'ArrowDown' })",
    ):
        before = rows.page.evaluate(steps)
        # at once, however busy the machine is
        strength.evaluate(
            f"field => {{ for (let i = 0; i < 3; i++) field.dispatchEvent(new {event}); }}"
        )
        rows.page.wait_for_function(f"before => {steps} > before", arg=before)
        rows.settle()
        assert rows.page.evaluate(steps) == before + 1
    assert text_of(rows) == TEXT
    rows.page.mouse.click(1100, 650)
    rows.press_undo()
    assert "<lora:first:0.95> subject" in text_of(rows)
    rows.press_undo()
    assert text_of(rows) == TEXT


def test_undo_in_a_field_goes_back_in_it_alone(rows):
    at(rows, 0, "opener").click()
    prompts = at(rows, 0, "prompts")
    before = prompts.input_value()
    for field, written in ((prompts, " in the rain"), (at(rows, 0, "more"), "called=dog")):
        field.click()
        rows.page.keyboard.press("End")
        rows.page.keyboard.type(written)
    rows.page.keyboard.press("Control+z")
    assert at(rows, 0, "more").input_value() in "called=dog"[:-1]
    expect(prompts).to_have_value(f"{before} in the rain")
    assert rows.page.evaluate(f"{TRACKER}.redoQueue.length") == 0


def test_undo_in_a_strength_that_was_only_come_to_takes_the_last_change_back(rows):
    """As after Enter, which goes to the next row's strength."""
    strengths = [at(rows, row, "number").first for row in range(3)]
    texts = [TEXT]
    for strength, written in zip(strengths, ("0.4", "0.6"), strict=False):
        strength.click()
        rows.page.keyboard.type(written)
        rows.page.keyboard.press("Enter")
        rows.settle()
        texts.append(text_of(rows))
    for word, text in (("undo", texts[1]), ("undo", TEXT), ("redo", texts[1])):
        rows.press_undo(word)
        assert text_of(rows) == text
        expect(strengths[2]).to_be_focused()


def test_a_merge_in_a_row_is_taken_apart_into_its_loras(rows):
    at(rows, 2, "opener").click()
    answers = [
        {"rows": "", "error": "it has no recipe"},
        {"rows": "<lora:first:0.7> | a robot\n<lora:gone:1> style", "error": None},
    ]
    rows.page.route("**/iteris/recipe?*", lambda route: route.fulfill(json=answers[0]))
    apart = at(rows, 2, "apart")
    apart.click()
    rows.page.get_by_text("it has no recipe").wait_for()
    assert text_of(rows) == TEXT
    rows.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    rows.settle()
    del answers[0]
    apart.click()
    expect(at(rows, 3, "lora")).to_be_visible()
    assert text_of(rows) == TEXT.replace(THIRD, answers[0]["rows"])
    rows.page.unroute("**/iteris/recipe?*")
    rows.undo()
    assert text_of(rows) == TEXT


def test_undo_leaves_the_rows_as_text(rows):
    rows.page.locator(".iteris-other").click()
    field = rows.page.locator(".iteris-rows-text")
    field.fill(THIRD)
    rows.page.mouse.click(1080, 720)  # two at one place are a double click
    for word, written in (("undo", TEXT), ("redo", THIRD)):
        rows.press_undo(word)
        expect(field).to_have_value(written)


def test_undo_by_keyboard_leaves_the_focus_in_its_row(rows):
    focused = """(() => {
        const { classList } = document.activeElement;
        return [classList[0], document.activeElement.closest('.iteris-row')?.dataset.place];
    })()"""
    at(rows, 1, "toggle").press("Space")
    rows.settle()
    assert text_of(rows) != TEXT
    rows.press_undo()
    assert text_of(rows) == TEXT
    assert rows.page.evaluate(focused) == ["iteris-toggle", "1"]
    rows.page.evaluate("document.activeElement.blur()")
    rows.press_undo("redo")
    assert text_of(rows) != TEXT
    assert rows.page.evaluate("document.activeElement === document.body"), "it was elsewhere"


def test_rows_are_added_taken_out_and_moved(rows, picture):
    rows.page.locator(".iteris-add").click()
    rows.page.wait_for_selector(".iteris-option")
    rows.page.keyboard.type("SEC")
    rows.settle()
    picture(rows, "rows_choose")
    rows.page.keyboard.press("Enter")
    rows.settle()
    assert text_of(rows) == f"{TEXT}\n<lora:second:1>"
    assert rows.page.evaluate("document.activeElement.closest('.iteris-row').dataset.place") == "3"
    rows.page.keyboard.press("Enter")
    rows.page.wait_for_selector(".iteris-option")
    rows.page.keyboard.type("IR")  # first and third, whatever other tests have saved
    for key in ("ArrowDown", "Enter"):
        rows.page.keyboard.press(key)
    rows.settle()
    assert called(rows) == ["first", "second", "third", "third"]
    at(rows, 3, "lora").click()
    rows.page.wait_for_selector(".iteris-option")
    rows.page.keyboard.press("Escape")
    at(rows, 3, "out").click()
    assert text_of(rows) == TEXT

    at(rows, 0, "grip").press("ArrowDown")
    rows.page.keyboard.press("ArrowDown")
    rows.page.keyboard.press("ArrowDown")
    assert text_of(rows) == "\n".join([SECOND, THIRD, FIRST])
    start, end = (at(rows, place, "grip").bounding_box() for place in (2, 0))
    rows.page.mouse.move(start["x"] + 5, start["y"] + 8)
    rows.page.mouse.down()
    rows.page.mouse.move(start["x"] + 5, end["y"] + 40, steps=4)
    rows.page.mouse.move(end["x"] + 5, end["y"] + 2, steps=4)
    rows.page.mouse.up()
    rows.settle()
    assert text_of(rows) == TEXT
    rows.undo()
    assert called(rows) == ["second", "third", "first"], "one step of Undo, seen in the rows"
    rows.undo()
    assert text_of(rows) == "\n".join([SECOND, FIRST, THIRD])
    at(rows, 0, "grip").press("Delete")
    focused = "[document.activeElement.className, document.activeElement.closest('[data-place]')?.dataset.place]"
    assert rows.page.evaluate(focused) == ["iteris-grip", "0"]
    assert text_of(rows) == "\n".join([FIRST, THIRD])
    at(rows, 1, "lora").press("Backspace")
    assert rows.page.evaluate(focused) == ["iteris-lora", "0"]
    assert text_of(rows) == FIRST
    rows.set_widgets(MERGE, loras=f"\n\n{TEXT}")
    at(rows, 2, "grip").press("Delete")
    assert rows.page.evaluate(focused) == ["iteris-grip", "2"], "empty lines have no row"


def drag_down(rows, place, to_y):
    start = at(rows, place, "grip").bounding_box()
    rows.page.mouse.move(start["x"] + 5, start["y"] + 8)
    rows.page.mouse.down()
    rows.page.mouse.move(start["x"] + 5, to_y, steps=4)
    rows.page.mouse.up()
    rows.settle()


def test_a_row_is_moved_past_a_line_that_was_emptied(rows):
    rows.set_widgets(MERGE, loras=f"{FIRST}\n# a remark\n{THIRD}")
    remark = rows.page.locator(".iteris-remark input")
    remark.fill("")
    remark.blur()
    drag_down(rows, 0, at(rows, 2, "out").bounding_box()["y"] + 60)
    assert text_of(rows) == f"\n{THIRD}\n{FIRST}"


def test_a_dragged_row_is_below_the_pointer_also_past_an_open_one(rows, picture):
    """Where it will land, since open rows are as low as the others meanwhile."""
    at(rows, 0, "opener").click()
    at(rows, 1, "opener").click()
    rows.settle()
    height = rows.page.evaluate("app.graph.getNodeById(1).size[1]")
    grip = at(rows, 2, "grip")
    start = grip.bounding_box()
    x, y = start["x"] + 5, start["y"] + 8
    rows.page.mouse.move(x, y)
    rows.page.mouse.down()
    for up in (3, 30, 56):
        rows.page.mouse.move(x, y - up, steps=4)
        assert abs(grip.bounding_box()["y"] + 8 - (y - up)) < 24, up
    rows.settle()
    picture(rows, "rows_dragged")
    assert called(rows) == ["third", "first", "second"]
    rows.page.mouse.up()
    rows.settle()
    assert text_of(rows) == "\n".join([THIRD, FIRST, SECOND])
    assert rows.page.locator(".iteris-row-body:visible").count() == 2
    assert abs(rows.page.evaluate("app.graph.getNodeById(1).size[1]") - height) < 1
    top = rows.page.locator(".iteris-rows").bounding_box()["y"]
    assert abs(at(rows, 0, "grip").bounding_box()["y"] - top) < 20, "no empty room is left"


def test_the_last_row_that_is_shown_is_not_moved_past_those_left_out(rows):
    text = "\n".join(f"<lora:first:{number / 100}>" for number in range(201))
    rows.set_widgets(MERGE, loras=text)
    rows.settle()
    top = at(rows, 199, "grip").bounding_box()["y"]
    rows.show(MERGE, left=600, top=150 + 500 - int(top))
    drag_down(rows, 199, at(rows, 199, "grip").bounding_box()["y"] + 90)
    assert text_of(rows) == text


def test_what_is_written_elsewhere_is_seen_in_the_rows(rows, picture):
    odd = "<lora:first:1> sytle | x\n\n# a remark\n<lora:gone:1>"
    rows.page.locator(".iteris-other").click()
    field = rows.page.locator(".iteris-rows-text")
    assert field.input_value() == TEXT
    field.fill(odd)
    assert text_of(rows) == odd
    picture(rows, "rows_text")
    rows.page.locator(".iteris-other").click()
    assert called(rows) == ["<lora:first:1> sytle | x", "# a remark", "gone"]
    rows.page.wait_for_selector(".iteris-row.iteris-missing")
    unread = rows.page.locator(".iteris-unread input")
    assert "sytle" in unread.get_attribute("title")
    assert text_of(rows) == odd, "it is kept as it stands"
    unread.fill("<lora:first:1> style | x")
    unread.blur()
    assert called(rows) == ["first", "# a remark", "gone"]
    rows.set_widgets(MERGE, loras=THIRD)
    rows.settle()
    assert called(rows) == ["third"]
    rows.page.locator(".iteris-row .iteris-out").click()
    rows.settle()
    assert text_of(rows) == ""
    assert "No LoRA yet" in rows.page.locator(".iteris-rows").inner_text()


def test_a_row_without_a_file_asks_for_one_and_what_is_said_twice_is_named(rows, picture):
    rows.set_widgets(MERGE, loras="<lora::0.8> style\n<lora:first:1> priority=1 priority=2")
    rows.page.wait_for_selector('.iteris-missing[data-place="0"]')
    assert at(rows, 0, "called").inner_text() == "choose a style"
    assert "no file yet" in at(rows, 0, "lora").get_attribute("aria-description")
    assert at(rows, 1, "why").inner_text() == "Written twice: priority=2"
    rows.settle()
    picture(rows, "rows_unchosen")
    at(rows, 0, "lora").click()
    rows.page.locator(".iteris-option", has_text="second").click()
    rows.settle()
    assert text_of(rows).startswith("<lora:second:0.8> style\n")
    rows.set_widgets(MERGE, loras="<lora::1>\n<lora::1>")
    at(rows, 0, "lora").click()
    search = rows.page.locator(".iteris-search")
    for row, name in enumerate(("first", "second"), start=1):  # the next list opens by itself
        expect(search).to_have_attribute("placeholder", f"Search LoRAs for row {row}")
        rows.page.wait_for_timeout(400)  # the pointer is still on the first row
        assert rows.page.locator(".iteris-peek").count() == 0
        rows.page.keyboard.type(name)
        rows.page.keyboard.press("Enter")
    rows.settle()
    assert text_of(rows) == "<lora:first:1>\n<lora:second:1>"
    rows.set_widgets(MERGE, loras="<lora::0.8>\n<lora:first:0.8>")
    for place in (0, 1):
        at(rows, place, "lora").click()
        rows.page.locator(".iteris-option", has_text="third").click()
    rows.settle()
    assert text_of(rows) == "<lora:third:1>\n<lora:third:0.8>", "a merge in a new row"
    expect(at(rows, 0, "made")).to_have_text("of 2 LoRAs")
    picture(rows, "rows_made")
    assert rows.page.locator(".iteris-choice").count() == 0


@pytest.mark.parametrize("named", ["", 'called="a second thing"'])
def test_what_a_row_is_said_to_be_is_not_kept_of_a_file_whose_words_say_another(rows, named):
    """As of a row of a template; a user who has named it too knows."""

    def told(route):
        file = {"name": "second", "trigger_words": ["in ink style"], "kind": "style"}
        route.fulfill(json={"base": "", "blocks": [], "prompts": {}, "error": None, **file})

    rows.page.route("**/iteris/lora?*second*", told)
    rows.page.evaluate(FORGET)
    rows.set_widgets(MERGE, loras=f"<lora::1> subject {named}".rstrip())
    at(rows, 0, "lora").click()
    option = rows.page.locator(".iteris-option", has_text="second")
    option.hover()
    rows.page.wait_for_selector(
        ".iteris-choice:has-text('in ink style')"
    )  # by now the file is known
    option.click()
    rows.settle()
    expected = f"<lora:second:1> subject {named}" if named else "<lora:second:1>"
    assert text_of(rows) == expected
    expect(at(rows, 0, "kind")).to_have_text("subject" if named else "style")


def test_that_two_subjects_in_one_picture_need_a_switch_is_said_before_the_run(rows, picture):
    """While there are two, and the switch, which a preview does not heed, is off."""
    advice = rows.page.get_by_text("To get two subjects into one picture, set “together” to on.")
    of_kind = {"subject": "<lora:second:1> subject", "style": "<lora:second:1> style"}
    saved = f"app.graph.getNodeById({MERGE}).serialize().size"

    def shown_after(is_shown, **inputs):
        rows.set_widgets(MERGE, **inputs)
        expect(advice).to_have_count(int(is_shown))

    shown_after(is_shown=False, loras=FIRST)
    shown_after(is_shown=True, loras=f"{FIRST}\n{of_kind['subject']}")
    rows.settle()
    picture(rows, "rows_two_subjects")
    before = rows.page.evaluate(saved)
    shown_after(is_shown=False, together=True)
    rows.settle()
    assert rows.page.evaluate(saved) == before, "its room is not kept"
    shown_after(is_shown=True, together=False)
    shown_after(is_shown=False, preset="Preview")
    shown_after(is_shown=True, preset="Balanced")
    shown_after(is_shown=False, loras=f"{FIRST}\n{of_kind['style']}")
    at(rows, 1, "kind").click()
    expect(advice).to_have_count(1)
    at(rows, 1, "toggle").click()
    expect(advice).to_have_count(0)
    shown_after(is_shown=False, loras=f"{FIRST}\n{FIRST}")  # the same one twice
    shown_after(is_shown=False, loras="")


@IN_ONE
def test_a_lora_of_another_family_is_marked_on_its_row(rows, picture):
    rows.set_widgets(MERGE, loras="<lora:first:1>\n<lora:second:1>\n<lora:third:1>")
    rows.page.wait_for_selector('.iteris-odd[data-place="2"]')
    assert at(rows, 2, "family").inner_text() == "SDXL"
    told = at(rows, 2, "lora").get_attribute("aria-description")
    assert "others here are for another model" in told
    assert rows.page.locator(".iteris-odd").count() == 1
    rows.settle()
    picture(rows, "rows_odd")
    at(rows, 2, "toggle").click()
    rows.page.wait_for_function("!document.querySelector('.iteris-odd')")


@IN_ONE
def test_files_that_state_the_same_tensors_are_the_same_lora(rows):
    def copy(route):
        facts = {"family": "SD1.5", "rank": 8, "error": None}
        route.fulfill(json=facts | {"hash": "h" if "third" not in route.request.url else ""})

    rows.page.route("**/iteris/lora?*", copy)
    rows.set_widgets(MERGE, loras="<lora:first:1>\n<lora:second:1>\n<lora:third:1>")
    rows.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    again = rows.page.locator(".iteris-again .iteris-family")
    expect(again).to_have_count(2)


@pytest.mark.parametrize("kind", ["IterISMerge", "IterISLoad"])
def test_a_lora_beside_a_merge_of_it_says_so(rows, picture, kind):
    def made(route):
        facts = {"family": "SD1.5", "rank": 8, "trigger_words": ["a word"], "error": None}
        of = {"merged_from": ["old/second", "gone"], "is_preview": True}
        route.fulfill(json=facts | (of if "first" in route.request.url else {}))

    rows.page.route("**/iteris/lora?*", made)
    text = "<lora:first:1>\n<lora:second:1>\n<lora:third:1>"
    of_merge = merge_of(text)["1"]["inputs"] if kind == "IterISMerge" else {"loras": text}
    rows.load({str(MERGE): {"class_type": kind, "inputs": of_merge}}, "rows")
    rows.show(MERGE, left=600, top=150)
    rows.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    again = rows.page.locator(".iteris-again")
    expect(again).to_have_count(1)  # other tests' facts are forgotten
    expect(again).to_have_attribute("data-place", "1")
    expect(again.locator(".iteris-made")).to_have_text("already in first")
    for place in (0, 1):
        at(rows, place, "opener").click()
    said = "second is in first, too: it counts twice."
    expect(at(rows, 1, "fitting")).to_have_text(said)
    expect(at(rows, 1, "lora")).to_have_attribute("aria-description", said)
    made_of = at(rows, 0, "triggers").locator("div").first
    expect(made_of).to_have_text("preview of second + gone")
    rows.settle()
    picture(rows, f"rows_in_a_merge_{kind}")
    at(rows, 0, "toggle").click()
    expect(again).to_have_count(0)


@IN_ONE
def test_a_list_that_is_asked_for_anew_tells_rows_of_files_that_have_come(rows):
    """As another window saves them."""
    files = ["first.safetensors"]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=files))
    rows.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    rows.set_widgets(MERGE, loras="<lora:first:1>\n<lora:second:1>")
    missing = rows.page.locator(".iteris-missing")
    expect(missing).to_have_attribute("data-place", "1")
    expect(missing.locator(".iteris-family")).to_have_text("not found")
    files.append("second.safetensors")
    rows.page.locator(".iteris-add").click()
    expect(missing).to_have_count(0)
    rows.page.keyboard.press("Escape")


@IN_ONE
def test_the_likest_name_is_marked_for_a_row_without_its_file_and_no_misfit(rows, picture):
    many = [f"many_{number:02}.safetensors" for number in range(40)]
    files = [*(f"{name}.safetensors" for name in FAMILIES), *many]
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=files))
    load_merge_on_a_model(rows, "<lora:secand:1>\n<lora:third_one:1>")
    rows.page.evaluate("localStorage.setItem('iteris_recent', '[\"third.safetensors\"]')")
    at(rows, 0, "lora").click()
    rows.page.get_by_text("Also LoRAs for other models").click()
    rows.page.keyboard.press("Escape")
    at(rows, 0, "lora").click()
    marked = rows.page.locator(".iteris-option[aria-selected=true]")
    expect(marked).to_have_text("second")
    picture(rows, "rows_choose_likest")
    rows.page.keyboard.press("Enter")
    assert text_of(rows).startswith("<lora:second:1>\n")
    at(rows, 1, "lora").click()
    expect(rows.page.locator(".iteris-stranger")).to_contain_text("third")
    expect(marked).to_have_text("first")
    rows.page.get_by_text("Also LoRAs for other models").click()
    rows.page.keyboard.press("Escape")


@IN_ONE
def test_a_lora_for_another_model_is_marked_inside_a_subgraph(rows, picture):
    load_merge_on_a_model(rows, TEXT)
    rows.page.evaluate(
        """() => {
            for (const id of [1, 2]) app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]));
            const around = app.graph.nodes.find(({ subgraph }) => subgraph?.nodes[0].type === 'IterISMerge');
            app.canvas.setGraph(around.subgraph);
            app.canvas.centerOnNode(around.subgraph.nodes[0]);
        }"""
    )
    rows.page.locator(".iteris-rows").dispatch_event("pointerenter")  # which looks again
    expect(rows.page.locator(".iteris-unfit .iteris-family")).to_have_text("SDXL")
    picture(rows, "rows_in_subgraph")
    rows.page.evaluate("app.canvas.setGraph(app.graph)")


def test_rows_that_cannot_run_stop_before_the_model_and_the_node_says_why(rows):
    load_merge_on_a_model(rows, "<lora:first:1>\n<lora::1>\n<lora::1>")
    height = "app.graph.getNodeById(1).size[1]"
    before = rows.page.evaluate(height)
    with rows.page.expect_response("**/prompt") as answer:
        rows.run()
    assert answer.value.status == 400
    failure = rows.page.locator(".iteris-failure")
    expect(failure).to_contain_text("Rows 2 and 3: no file yet. Choose one, or remove the row")
    dialog = rows.page.get_by_role("dialog")  # the frontend says it, too
    expect(dialog).to_contain_text("Rows 2 and 3")
    assert ".js" not in dialog.inner_text(), "no script is to blame"
    rows.page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    rows.set_widgets(MERGE, loras="<lora:first:1>")
    expect(failure).to_have_count(0)
    rows.settle()
    assert rows.page.evaluate(height) <= before
    rows.page.evaluate("document.querySelectorAll('.p-toast-close-button').forEach(b => b.click())")


@IN_ONE
def test_a_row_asks_for_prompts_where_its_file_names_no_words(rows, picture):
    def wordless(route):
        facts = {"name": "second", "base": "SD1.5", "family": "SD1.5", "rank": 8}
        words = {"trigger_words": [], "prompts": {}, "error": None}
        route.fulfill(json={**facts, **words, "thumbnail": False})

    rows.page.route("**/iteris/lora?*second*", wordless)
    at(rows, 1, "lora").click()  # what was known of files is forgotten
    rows.page.locator(".iteris-option", has_text="second").click()
    rows.settle()
    assert rows.page.locator(".iteris-asks").count() == 0, "it is left out of the merge"
    at(rows, 1, "toggle").click()
    rows.page.wait_for_selector('.iteris-asks[data-place="1"]')
    assert at(rows, 1, "needs").is_visible() and not at(rows, 0, "needs").is_visible()
    picture(rows, "rows_ask")
    for preset, asking in (("Preview", 0), ("Balanced", 1)):
        rows.set_widgets(MERGE, preset=preset)
        expect(rows.page.locator(".iteris-asks")).to_have_count(asking)
    at(rows, 1, "needs").click()
    said = rows.page.locator(".iteris-filled")
    field = rows.page.get_by_placeholder("such as: a landscape in ink style")
    expect(field).to_be_focused()
    for preset, asking in (("Preview", 0), ("Balanced", 1)):
        rows.set_widgets(MERGE, preset=preset)
        for each in (said, field):
            expect(each).to_have_count(asking)
    expect(field).to_be_focused()
    colours = [
        rows.page.locator(selector).evaluate(f"each => getComputedStyle(each).{name}")
        for selector, name in ((".iteris-filled", "borderLeftColor"), (".iteris-asks", "boxShadow"))
    ]
    assert colours[0] in colours[1], "one fact has one colour"
    height = f"app.graph.getNodeById({MERGE}).size[1]"
    high = rows.page.evaluate(height)
    open_row = rows.page.locator(".iteris-row-body")
    before = open_row.bounding_box()["height"]
    rows.page.keyboard.type("a photo")
    expect(said).to_have_count(0)
    assert open_row.bounding_box()["height"] < before - 10, "its line closes up"
    rows.settle()
    assert rows.page.evaluate(height) < high - 10
    assert text_of(rows).split("\n")[1].endswith("| a photo")
    assert rows.page.locator(".iteris-asks").count() == 0
    rows.set_widgets(MERGE, loras='<lora:second:1> style called="in {trigger} style"')
    needs, more, why = (at(rows, 0, part) for part in ("needs", "more", "fields .iteris-why"))
    expect(needs).to_have_text("write prompts")
    needs.click()
    rows.page.keyboard.type("a house in zwx style")
    expect(needs).to_have_text("write trigger words")
    told = 'in place of {trigger}, such as called="in zwx style"'
    expect(why).to_contain_text(told)
    expect(more).to_have_class(re.compile("iteris-wrong"))
    for preset, asking in (("Preview", 0), ("Balanced", 1)):
        rows.set_widgets(MERGE, preset=preset)
        expect(rows.page.locator(".iteris-asks")).to_have_count(asking)
        expect(why).to_have_text(re.compile(re.escape(told)) if asking else "")
    needs.click()
    expect(more).to_be_focused()
    picture(rows, "rows_ask_words")
    rows.page.keyboard.type("zwx")
    expect(why).to_be_empty()
    expect(more).not_to_have_class(re.compile("iteris-wrong"))
    assert rows.page.locator(".iteris-asks").count() == 0
    assert text_of(rows) == ('<lora:second:1> style called="in zwx style" | a house in zwx style')
    long = f"second_{'long_' * 12}"
    rows.page.route("**/models/loras", lambda route: route.fulfill(json=[f"{long}.safetensors"]))
    rows.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    rows.set_widgets(MERGE, loras=f"<lora:{long}:1>")
    needs.wait_for()
    assert needs.evaluate("tag => tag.scrollWidth <= tag.clientWidth"), "the name gives way"
    picture(rows, "rows_ask_long")


def test_words_beyond_the_first_are_counted_and_a_click_shows_them(rows, picture):
    many = [f"outfit {number}" for number in range(30)]

    def wordy(route):
        facts = {"name": "second", "base": "SD1.5", "family": "SD1.5", "rank": 8}
        route.fulfill(json={**facts, "trigger_words": many, "prompts": {}, "error": None})

    rows.page.route("**/iteris/lora?*second*", wordy)
    rows.set_widgets(MERGE, loras="<lora:second:1>")
    rows.page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    at(rows, 0, "lora").hover()
    expect(rows.page.locator(".iteris-peek")).to_contain_text("outfit 24+5 more")
    at(rows, 0, "opener").click()
    chip = at(rows, 0, "chip")
    expect(chip).to_have_count(13)
    height = rows.page.evaluate("app.graph.getNodeById(1).size[1]")
    picture(rows, "rows_few_words")
    rows.page.get_by_title("Show all trigger words").click()
    expect(chip).to_have_text(many)
    rows.settle()
    assert rows.page.evaluate("app.graph.getNodeById(1).size[1]") > height + 20
    chip.last.click()
    assert text_of(rows) == "<lora:second:1> | outfit 29"
    picture(rows, "rows_all_words")


def test_a_merge_whose_loras_come_from_elsewhere_does_not_ask_for_rows(page_of_rows):
    other = {"lora_name": "first.safetensors", "prompts": "a photo of demo1"}
    workflow = merge_of("", more_loras=["2", 0])
    page_of_rows.load(workflow | {"2": {"class_type": "IterISLora", "inputs": other}}, "chain")
    page_of_rows.show(MERGE, left=600, top=150)
    none = page_of_rows.page.locator(".iteris-none")
    assert "come through more_loras" in none.inner_text()
    page_of_rows.page.evaluate(
        "id => { const node = app.graph.getNodeById(id); node.disconnectInput(node.findInputSlot('more_loras')); }",
        MERGE,
    )
    page_of_rows.settle()
    assert "No LoRA yet" in none.inner_text()


def test_the_number_of_a_size_and_the_times_of_presets_show_where_they_count(rows, picture):
    def shown(name):
        rows.settle()
        y = """name => {
            const node = app.graph.getNodeById(1);
            const widget = node.widgets.find((each) => each.name === name);
            if (!LiteGraph.vueNodesMode) return !widget.hidden;
            const labels = [...document.querySelectorAll('.lg-node-widget')];
            const row = labels.find((each) => each.textContent.trim() === name);
            return getComputedStyle(row).visibility === 'visible' && row.offsetHeight > 0;
        }"""
        return rows.page.evaluate(y, name)

    assert not shown("size_value")
    for size, is_shown in (("rank", True), ("smaller", False), ("MB", True)):
        rows.set_widgets(MERGE, size=size)
        assert shown("size_value") is is_shown, size

    times = rows.page.locator(".iteris-times")
    assert not times.is_visible()
    cost = {"rows": 100, "seconds": 50, "presets": {"Fast": [40, 10, 0], "Balanced": [600, 20, 5]}}
    rows.executed(1, {"iteris_cost": [cost]})
    last = "To merge again, by the last run:"
    shown = [last, "Fast: about 20 s", "Balanced: about 5 min", "Preview: seconds"]
    assert times.inner_text().split("\n") == shown
    picture(rows, "rows_times")
    measured = "Estimated from the last merge that was timed on this machine: 50 s"
    told = ["10 sample runs a LoRA", "20 sample runs a LoRA, then 5 polish steps"]
    for line, runs in zip(times.locator("span").all()[1:], told, strict=False):
        assert line.get_attribute("title").split("\n") == [runs, measured]
    same = [40, 10, 0]
    of_settings = {**cost, "presets": {"Fast": same, "Balanced": same, "Polished": [600, 10, 9]}}
    rows.queued("b")
    rows.executed(1, {"iteris_cost": [of_settings]}, run="b")
    same = "Fast = Balanced: about 20 s (Merge settings says how many runs)"
    expect(times).not_to_be_visible()  # no settings say so
    rows.page.evaluate(
        """() => {
            const settings = LiteGraph.createNode("IterISSettings");
            settings.id = 2;
            app.graph.add(settings);
            const merge = app.graph.getNodeById(1);
            settings.connect(0, merge, merge.findInputSlot("settings"));
        }"""
    )
    for runs, is_shown in ((10, True), (0, False), (10, True)):
        rows.set_widgets(2, sample_runs=runs)
        rows.keep()
        expect(times).to_be_visible(visible=is_shown)
    rows.set_widgets(2, resolution=512)
    rows.keep()
    expect(times).not_to_be_visible()
    rows.set_widgets(2, resolution=0)
    rows.keep()
    expect(times).to_be_visible()
    assert times.inner_text().split("\n") == [
        last,
        same,
        "Polished: about 5 min",
        "Preview: seconds",
    ]
    rows.page.evaluate("app.graph.remove(app.graph.getNodeById(2))")
    workflow = rows.workflow()
    (node,) = workflow["nodes"]
    assert node["properties"]["iteris_cost"] == of_settings | {"resolution": 0}
    assert node["widgets_values"][:5] == [TEXT, "Balanced", False, "MB", node["widgets_values"][4]]
    node["properties"]["iteris_cost"] = {"rows": "<b>", "presets": 3}
    rows.page.evaluate("text => app.loadGraphData(JSON.parse(text))", json.dumps(workflow))
    rows.settle()
    assert called(rows) == ["first", "second", "third"]
    assert not times.is_visible()


def test_what_does_not_count_of_a_preview_or_beside_a_recipe_is_dimmed(page_of_rows, picture):
    before = len(page_of_rows.errors)
    merge = {"class_type": "IterISMerge", "inputs": {"loras": TEXT, "settings": ["2", 1]}}
    recipe = {"class_type": "IterISRecipe", "inputs": {}}
    page_of_rows.load({"1": merge, "2": recipe}, "recipe")
    page_of_rows.show(1, left=600, top=150)
    dimmed = """(disconnected) => {
        const node = app.graph.getNodeById(1);
        if (disconnected) node.disconnectInput(node.inputs.findIndex(({ name }) => name === "settings"));
        return node.widgets.filter(({ disabled }) => disabled).map(({ name }) => name);
    }"""
    page_of_rows.settle()
    picture(page_of_rows, "rows_recipe")
    names = ["preset", "together", "size", "size_value"]
    pale = """() => [...document.querySelectorAll(".lg-node-widget")]
        .filter((each) => each.offsetHeight && getComputedStyle(each).opacity < 1)
        .map((each) => each.textContent)"""
    is_vue = page_of_rows.settings["Comfy.VueNodes.Enabled"]  # where it does not dim by itself
    assert page_of_rows.page.evaluate(dimmed, False) == names
    seen = page_of_rows.page.evaluate(pale)
    assert len(seen) == (3 if is_vue else 0), "the size has no number"
    assert all(text.strip().startswith(name) for text, name in zip(seen, names, strict=False))
    for preset, idle in (("Preview", names[1:]), ("Balanced", [])):
        page_of_rows.set_widgets(1, preset=preset)
        assert page_of_rows.page.evaluate(dimmed, True) == idle
        page_of_rows.settle()
        seen = page_of_rows.page.evaluate(pale)
        assert len(seen) == (len(idle[:2]) if is_vue else 0)
        assert all(text.strip().startswith(name) for text, name in zip(seen, idle, strict=False))
        picture(page_of_rows, f"rows_{preset}")
    assert page_of_rows.errors[before:] == []


STACKED, LOADER, CHAIN, SAVED = "2", "3", "4", "5"


def test_a_plain_loader_has_the_same_rows_and_becomes_a_merge(page_of_rows, picture):
    before = len(page_of_rows.errors)
    checkpoint = {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "checkpoint.safetensors"},
    }
    model = {"model": ["6", 0], "clip": ["6", 1]}
    others = {"lora_stack": [STACKED, 2], "more_loras": [CHAIN, 0]}
    first = {"lora_name": "first.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    saved = {"model": [LOADER, 0], "filename_prefix": "x"}
    workflow = {
        "6": checkpoint,
        STACKED: {"class_type": "IterISLoad", "inputs": {**model, "loras": FIRST}},
        CHAIN: {"class_type": "IterISLora", "inputs": {**first, "prompts": "a", "priority": 1.0}},
        LOADER: {"class_type": "IterISLoad", "inputs": {**model, **others, "loras": ""}},
        SAVED: {"class_type": "ModelSave", "inputs": saved},
    }
    page_of_rows.load(workflow, "loader")
    # what the picture is made of is close below the loader, and at its right, where a merge needs more room
    places = {"6": [0, 0], STACKED: [0, 300], CHAIN: [500, 400], LOADER: [500, 0], SAVED: [860, 0]}
    page_of_rows.page.evaluate(
        """([places, loader]) => {
            Object.entries(places).forEach(([id, pos]) => { app.graph.getNodeById(id).pos = pos; });
            const narrow = app.graph.getNodeById(loader);
            narrow.setSize([340, narrow.size[1]]);
        }""",
        [places, LOADER],
    )
    page_of_rows.show(int(LOADER), left=600, top=150)
    node = page_of_rows.page.locator(".iteris-rows", has=page_of_rows.page.locator(".iteris-none"))
    node.locator(".iteris-add").press("Enter")  # other nodes may lie above
    page_of_rows.page.wait_for_selector(".iteris-option")
    page_of_rows.page.keyboard.type("SEC")
    page_of_rows.page.keyboard.press("Enter")
    page_of_rows.settle()
    picture(page_of_rows, "rows_loader")
    sent = page_of_rows.prompt()
    assert sent[LOADER]["inputs"] == {**model, **others, "loras": "<lora:second:1>"}

    rows = page_of_rows.page.locator(".iteris-rows", has_text="second")
    rows.locator(".iteris-opener").press("Enter")
    more = rows.locator(".iteris-more")
    assert more.get_attribute("placeholder") == "strengths of blocks, layers to leave out"
    assert "called=" not in more.locator("xpath=..").get_attribute("title")
    opener, strength = (rows.locator(f".iteris-{part}").first for part in ("opener", "number"))
    assert opener.get_attribute("title") == "Trigger words and more"
    assert strength.get_attribute("title") == "Strength of this LoRA"
    rows.locator(".iteris-opener").press("Enter")
    page_of_rows.settle()
    rows.locator(".iteris-merge-these").press("Enter")
    page_of_rows.settle()
    picture(page_of_rows, "rows_loader_merged")
    sent = page_of_rows.prompt()
    assert LOADER not in sent
    [(place, merge)] = [
        (k, v["inputs"]) for k, v in sent.items() if v["class_type"] == "IterISMerge"
    ]
    [(stack, given)] = [
        (k, v["inputs"]) for k, v in sent.items() if v["class_type"] == "IterISStack"
    ]
    assert merge["loras"] == "<lora:second:1>"
    assert (merge["model"], merge["clip"], merge["more_loras"]) == (["6", 0], ["6", 1], [stack, 0])
    assert (given["lora_stack"], given["previous"]) == ([STACKED, 2], [CHAIN, 0])
    assert sent[SAVED]["inputs"]["model"] == [place, 0]
    [(comparison, compared)] = [
        (k, v["inputs"]) for k, v in sent.items() if v["class_type"] == "IterISCompare"
    ]
    [(save, written)] = [
        (k, v["inputs"]) for k, v in sent.items() if v["class_type"] == "IterISSave"
    ]
    assert (written["merged"], written["cover"]) == ([place, 3], [comparison, 1])
    assert [compared.get(name) for name in ("model", "vae", "merged")] == [
        None,
        ["6", 2],
        [place, 3],
    ]
    page_of_rows.page.wait_for_function(
        """(ids) => {
            const [left, top, width, height] = app.canvas.visible_area;
            return ids.map((id) => app.graph.getNodeById(id)).every(({ pos, size }) =>
                left <= pos[0] && pos[0] + size[0] <= left + width &&
                top <= pos[1] - LiteGraph.NODE_TITLE_HEIGHT && pos[1] + size[1] <= top + height);
        }""",
        arg=[place],  # the others would need another zoom
    )
    picture(page_of_rows, "rows_loader_in_sight")
    # Nodes 2.0 of 0.3.75 moves nodes that are added
    if not page_of_rows.settings["Comfy.VueNodes.Enabled"]:
        at = page_of_rows.page.evaluate(
            "Object.fromEntries(app.graph.nodes.map(({ id, pos, size }) => [id, [...pos, ...size]]))"
        )
        assert page_of_rows.overlaps() == []
        assert at[place][:2] == [500, 0], "where the loader was"
        assert at[SAVED][:2] == [at[place][0] + at[place][2] + 60, 0]
        assert at[CHAIN][1] - at[place][3] >= 340, "room for the report and its times"
        steps = [stack, place, comparison, save]
        for first, second in itertools.pairwise(steps):
            assert at[first][0] + at[first][2] < at[second][0], "links go from left to right"
    selected = page_of_rows.page.evaluate(
        "[...app.canvas.selectedItems].filter(({ graph }) => !graph).length"
    )
    assert selected == 0, "the frontend would cut out what lies where the loader was"
    page_of_rows.undo()
    assert page_of_rows.prompt()[LOADER]["inputs"]["lora_stack"] == [STACKED, 2], "in one step"
    assert page_of_rows.errors[before:] == []


@IN_ONE
def test_a_loaders_rows_write_trigger_words_into_the_prompt(page_of_rows, picture):
    """Into the sampler's positive prompt; with strengths for each group of blocks."""
    before = len(page_of_rows.errors)
    encode = {"class_type": "CLIPTextEncode", "inputs": {"clip": [LOADER, 1], "text": ""}}
    workflow = {
        LOADER: {"class_type": "IterISLoad", "inputs": {"loras": "<lora:first:1>"}},
        "4": {**encode, "inputs": {**encode["inputs"], "text": "blurry"}},
        "5": {**encode, "inputs": {**encode["inputs"], "text": "a castle"}},
        "6": {"class_type": "KSampler", "inputs": {"positive": ["5", 0], "negative": ["4", 0]}},
    }
    page_of_rows.load(workflow, "words")
    page_of_rows.show(int(LOADER), left=600, top=150)
    page = page_of_rows.page
    page.locator(".iteris-opener").press("Enter")
    page.locator(".iteris-chip").press("Enter")
    sent = page_of_rows.prompt()
    assert [sent[place]["inputs"]["text"] for place in "45"] == [
        "blurry",
        "a castle, word of first",
    ]
    assert page.locator(".iteris-chip").get_attribute("aria-pressed") == "true"
    assert page.locator(".iteris-prompts").count() == 0, "nothing is measured"
    assert page.locator(".iteris-kind").count() == 0, "nor does the kind count"
    page.evaluate("id => app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))", LOADER)
    page.evaluate(
        """() => {
            const around = app.graph.nodes.find(({ subgraph }) => subgraph);
            app.canvas.setGraph(around.subgraph);
            app.canvas.centerOnNode(around.subgraph.nodes[0]);
        }"""
    )
    page.locator(".iteris-opener").press("Enter")
    page.locator(".iteris-chip").press("Enter")
    assert page.locator(".iteris-chip").get_attribute("aria-pressed") == "false"
    page.evaluate("app.canvas.setGraph(app.graph)")
    assert page_of_rows.prompt()["5"]["inputs"]["text"] == "a castle", "outside the subgraph"
    page_of_rows.load(workflow, "blocks")
    page_of_rows.show(int(LOADER), left=600, top=150)
    page.locator(".iteris-opener").press("Enter")

    fields = page.locator(".iteris-blocks input")
    fields.nth(0).fill("0.5")
    fields.nth(2).fill("0")
    more = page.locator(".iteris-more")
    assert page_of_rows.prompt()[LOADER]["inputs"]["loras"] == (
        '<lora:first:1> blocks="IN:0.5, OUT:0"'
    )
    assert more.input_value() == 'blocks="IN:0.5, OUT:0"'
    picture(page_of_rows, "rows_words")
    more.fill("blocks=OUT:0.3")
    assert [field.input_value() for field in fields.all()] == ["1", "1", "0.3"]
    more.fill("blocks=OUTALL")
    assert fields.count() == 3, "where one writes, nothing jumps"
    more.blur()
    expect(fields).to_have_count(0)
    more.fill("")
    expect(fields).to_have_count(3)
    assert page_of_rows.errors[before:] == []


def row_sent(rows):
    """Return the first row of the loader as the server gets it."""
    return rows.prompt()[LOADER]["inputs"]["loras"].split("\n")[0]


def test_blocks_that_no_model_has_are_marked_before_the_run(page_of_rows, picture):
    before = len(page_of_rows.errors)
    loader = {
        "class_type": "IterISLoad",
        "inputs": {"loras": "<lora:first:1> blocks=FOO\n<lora:second:1>"},
    }
    page_of_rows.load({LOADER: loader}, "no_such_block")
    page_of_rows.show(int(LOADER), left=600, top=150)
    page = page_of_rows.page
    refused = page.locator(".iteris-row.iteris-refused")
    expect(refused).to_have_count(1)
    sentence = re.compile("its block weights have 'FOO'; write BLOCK:WEIGHT")
    expect(at(page_of_rows, 0, "lora")).to_have_attribute("aria-description", sentence)
    at(page_of_rows, 0, "opener").click()
    why, more = at(page_of_rows, 0, "fields .iteris-why"), at(page_of_rows, 0, "more")
    expect(why).to_have_text(sentence)
    expect(more).to_have_class(re.compile("iteris-wrong"))
    page_of_rows.settle()
    picture(page_of_rows, "rows_refused")
    low, node = why.bounding_box(), page.locator(".iteris-rows").bounding_box()
    assert low["y"] + low["height"] < node["y"] + node["height"], "the node has grown for it"
    more.fill("blocks=IN01:0.5")
    for gone in (refused, page.locator(".iteris-why:visible"), page.locator(".iteris-wrong")):
        expect(gone).to_have_count(0)
    for typed in ("IN01:0.5, MID:0", "blocks=IN01:0.5, MID:0", 'blocks="IN01:0.5, MID:0"'):
        more.fill(typed)
        expect(page.locator(".iteris-wrong")).to_have_count(0)
        assert 'blocks="IN01:0.5, MID:0"' in page_of_rows.prompt()[LOADER]["inputs"]["loras"]
    more.fill("IN01=0.2")  # as the server reads it
    expect(page.locator(".iteris-wrong")).to_have_count(0)
    assert row_sent(page_of_rows) == "<lora:first:1> blocks=IN01=0.2"
    more.fill("block")
    expect(why).to_have_text("Not understood: block. Write, for example: IN01:0.5, MID:0")
    more.fill("XX99:0 without=*a*")
    expect(why).to_have_text("Not understood: XX99:0. Write, for example: IN01:0.5, MID:0")
    more.fill("IN01:0.5 without=*a*")
    expect(page.locator(".iteris-wrong")).to_have_count(0)
    assert row_sent(page_of_rows) == "<lora:first:1> blocks=IN01:0.5 without=*a*"
    more.fill("blocks=double:0")
    expect(why).to_have_text(re.compile("have 'double:0', and SD1.5 has no such block"))
    more.fill("block")
    expect(why).to_have_text("Not understood: block. Write, for example: IN01:0.5, MID:0")
    expect(refused).to_have_attribute("data-place", "0")
    assert row_sent(page_of_rows) == "<lora:first:1> blocks=block", (
        "a run is refused, and has no old value"
    )
    numbers = ",".join("1" * 17)
    for typed in (numbers, f"lbw={numbers}"):
        more.fill(typed)
        expect(page.locator(".iteris-wrong")).to_have_count(0)
        assert row_sent(page_of_rows) == f"<lora:first:1> blocks={numbers}"
    more.fill("block")
    at(page_of_rows, 1, "opener").click()
    more.fill("")
    at(page_of_rows, 1, "more").fill("blocks=FOO")
    expect(refused).to_have_attribute("data-place", "1")
    at(page_of_rows, 1, "toggle").click()
    expect(refused).to_have_count(0)
    assert page_of_rows.errors[before:] == []


def test_a_prompt_with_several_readings_is_marked_once_its_field_is_left(rows, picture):
    page, field = rows.page, at(rows, 0, "prompts")
    refused, why = page.locator(".iteris-refused"), page.locator(".iteris-prompts + .iteris-why")
    at(rows, 0, "opener").click()
    field.fill("a dog\na {red|blue} dog")
    field.press("Tab")
    sentence = re.compile(
        "^LoRA 'first': its prompt 'a {red|blue} dog' has '{red|blue}'".replace("|", r"\|")
    )
    expect(why).to_have_text(sentence)
    expect(field).to_have_class(re.compile("iteris-wrong"))
    expect(page.locator(".iteris-wrong")).to_have_count(1)
    rows.settle()
    picture(rows, "rows_several_readings")
    at(rows, 0, "opener").click()
    expect(refused).to_have_attribute("data-place", "0")
    expect(at(rows, 0, "lora")).to_have_attribute("aria-description", sentence)
    at(rows, 0, "opener").click()
    for said, count in (("a red dog\na blue dog", 0), ("a __colour__ dog", 1), ("{trigger}", 0)):
        field.fill(said)
        field.press("Tab")
        expect(refused).to_have_count(count)
        expect(why).to_be_visible(visible=count > 0)


def test_a_loader_says_what_its_stack_is_without(page_of_rows, picture):
    page, before = page_of_rows.page, len(page_of_rows.errors)
    rows = "<lora:first:1> without=*a*\n<lora:second:1>"
    workflow = {
        LOADER: {"class_type": "IterISLoad", "inputs": {"loras": rows}},
        CHAIN: {"class_type": "IterISStack", "inputs": {"lora_stack": [LOADER, 2]}},
    }
    page_of_rows.load(workflow, "plain_stack")
    page_of_rows.show(int(LOADER), left=600, top=150)
    said = page.locator(".iteris-rows > .iteris-warning:visible")
    expect(said).to_have_text(re.compile("^LORA_STACK has no strengths of blocks and no layers"))
    page_of_rows.settle()
    picture(page_of_rows, "rows_plain_stack")
    low, buttons = (
        said.bounding_box(),
        page.locator(".iteris-rows > .iteris-buttons").bounding_box(),
    )
    assert low["y"] + low["height"] <= buttons["y"] + 1
    at(page_of_rows, 0, "toggle").click()
    expect(said).to_have_count(0)
    at(page_of_rows, 1, "opener").click()
    at(page_of_rows, 1, "more").fill("blocks=OUT:0.5")
    expect(said).to_have_count(1)
    page.evaluate("id => app.graph.getNodeById(id).disconnectInput('lora_stack')", CHAIN)
    expect(said).to_have_count(0)
    assert page_of_rows.errors[before:] == []


@IN_ONE
def test_trigger_words_go_into_a_subgraphs_own_prompt(page_of_rows):
    before = len(page_of_rows.errors)
    encode = {"clip": [LOADER, 1], "text": "inside"}
    workflow = {
        LOADER: {"class_type": "IterISLoad", "inputs": {"loras": "<lora:first:1>"}},
        "5": {"class_type": "CLIPTextEncode", "inputs": encode},
        "6": {"class_type": "KSampler", "inputs": {"positive": ["5", 0]}},
    }
    page_of_rows.load(workflow, "own prompt")
    outer = page_of_rows.page.evaluate(
        """() => {
            const inner = app.graph.getNodeById("5");
            const { node } = app.graph.convertToSubgraph(new Set([inner]));
            const encode = node.subgraph.getNodeById("5");
            const input = encode.inputs.find(({ name }) => name === "text");
            node.subgraph.addInput("text", input.type).connect(input, encode);
            node.widgets[0].value = "a castle";
            return node.id;
        }"""
    )
    page_of_rows.show(int(LOADER), left=600, top=150)
    page_of_rows.page.locator(".iteris-opener").press("Enter")
    page_of_rows.page.locator(".iteris-chip").press("Enter")
    encode = page_of_rows.prompt()[f"{outer}:5"]["inputs"]
    assert encode["text"] == "a castle, word of first"
    assert page_of_rows.errors[before:] == []


def test_a_loader_says_which_words_its_prompt_lacks(page_of_rows, picture):
    """Of each LoRA of a merge, as it is typed; a click writes them, and nothing is kept of it."""
    page, before = page_of_rows.page, len(page_of_rows.errors)
    robot, owl = "a sks robot", "a zwx owl"
    facts = {"base": "", "rank": 8, "blocks": [], "prompts": {}, "error": None}
    known = {
        "first": {"trigger_words": [robot, owl], "merged_words": [[robot], [owl]]},
        "second": {"trigger_words": ["1girl", "ink"], "kind": "style", "are_tags": True},
        "third": {"trigger_words": []},
    }

    def told(route):
        name = route.request.url.rpartition("=")[2].removesuffix(".safetensors")
        route.fulfill(json=facts | known[name])

    page.route("**/iteris/lora?*", told)
    page.evaluate(FORGET)
    encode = {"class_type": "CLIPTextEncode", "inputs": {"clip": [LOADER, 1], "text": "blurry"}}
    rows = "<lora:first:1>\n<lora:second:1>\n<lora:third:1>\n# <lora:first:1>"
    workflow = {
        LOADER: {"class_type": "IterISLoad", "inputs": {"loras": rows}},
        "4": encode,
        "5": {**encode, "inputs": encode["inputs"] | {"text": robot}},
        "6": {"class_type": "KSampler", "inputs": {"positive": ["5", 0], "negative": ["4", 0]}},
    }
    page_of_rows.load(workflow, "lacks")
    page_of_rows.show(int(LOADER), left=700, top=150)
    page.evaluate("app.graph.nodes.forEach((node) => node.id == 5 && (node.pos = [-420, 0]))")
    page_of_rows.show(int(LOADER), left=700, top=150)
    saved = size_saved(page_of_rows)
    lacking = page.locator(".iteris-absent")
    expect(lacking).to_have_text([f"not in the prompt:{owl}"])
    picture(page_of_rows, "rows_lack_words")
    low, buttons = (
        lacking.bounding_box(),
        page.locator(".iteris-rows > .iteris-buttons").bounding_box(),
    )
    assert low["y"] + low["height"] < buttons["y"]
    prompt = next(each for each in page.locator("textarea").all() if each.input_value() == robot)
    prompt.press_sequentially("X and an owl")
    page_of_rows.settle()
    expect(lacking).to_have_text([f"not in the prompt:{owl}"])  # which the base model knows, too
    prompt.press_sequentially(", zwx")
    expect(lacking).to_have_count(0)
    page_of_rows.settle()
    assert size_saved(page_of_rows) == saved, "what is only shown is no step of Undo"
    prompt.fill("")
    expect(lacking.locator("button")).to_have_text([robot, owl])
    at(page_of_rows, 2, "toggle").click()
    at(page_of_rows, 2, "toggle").click()
    expect(lacking.locator("button")).to_have_text([robot, owl])
    page_of_rows.settle()
    assert size_saved(page_of_rows) == saved, "and leaves no hole when the workflow is opened again"
    at(page_of_rows, 0, "opener").click()
    expect(lacking).to_have_count(0)  # they are among the row's chips
    at(page_of_rows, 0, "opener").click()
    for words in (robot, owl):
        lacking.get_by_text(words).click()
    expect(lacking).to_have_count(0)
    assert page_of_rows.prompt()["5"]["inputs"]["text"] == f"{robot} and {owl}"
    page.evaluate("app.graph.getNodeById(5).disconnectInput('clip')")
    page_of_rows.set_widgets(4, text="a castle")
    page_of_rows.keep()
    expect(lacking.locator("button")).to_have_text([robot, owl])
    page_of_rows.into_subgraph(LOADER, show=True)
    expect(lacking.locator("button")).to_have_text([robot, owl])
    assert page_of_rows.errors[before:] == []


def size_saved(frontend, node=LOADER):
    return next(n["size"] for n in frontend.workflow()["nodes"] if n["id"] == int(node))


def test_compare_says_which_words_its_prompt_lacks(page_of_rows, picture):
    """As Load LoRAs does: of the merge's rows, also a style's tags, and where the prompt is linked in."""
    page, before = page_of_rows.page, len(page_of_rows.errors)
    first, second = "word of first", "word of second"

    def style(route):
        file = {"trigger_words": [second], "kind": "style", "are_tags": True}
        route.fulfill(json={"base": "", "blocks": [], "prompts": {}, "error": None, **file})

    page.route("**/iteris/lora?name=second*", style)
    page.evaluate(FORGET)
    merge = merge_of("<lora:first:1>\n<lora:second:1>\n# <lora:third:1>")
    compare = {"merged": [str(MERGE), 3], "prompt": f"a castle, {first}"}
    nodes = merge | {"2": {"class_type": "IterISCompare", "inputs": compare}}
    page_of_rows.load(nodes, "compare lacks")
    page_of_rows.show(2, left=600, top=100)
    lacking = page.locator(".iteris-lacks")
    expect(lacking).to_have_text(f"not in the prompt:{second}")
    picture(page_of_rows, "compare_lacks_words")
    saved = size_saved(page_of_rows, 2)
    prompt = next(
        each for each in page.locator("textarea:visible").all() if first in each.input_value()
    )
    prompt.fill("")
    expect(lacking).to_be_hidden()  # it draws each LoRA's own
    page_of_rows.settle()
    assert size_saved(page_of_rows, 2) == saved, "and leaves no hole"
    prompt.fill("a castle")
    expect(lacking.locator("button")).to_have_text([first, second])
    for words in (first, second):
        lacking.get_by_text(words).click()
    expect(lacking).to_be_hidden()
    both = f"a castle, {first}, {second}"
    assert page_of_rows.prompt()["2"]["inputs"]["prompt"] == both
    page_of_rows.set_widgets(MERGE, loras="<lora:second:1>\n<lora:third:1>")
    expect(lacking.locator("button")).to_have_text(["word of third"])

    text = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": first}}
    page_of_rows.load(
        merge
        | {
            "2": {"class_type": "IterISCompare", "inputs": compare | {"prompt": ["9", 0]}},
            "9": text,
        },
        "compare lacks linked",
    )
    page_of_rows.show(2, left=600, top=100)
    lacking.get_by_text(second).click()
    expect(lacking).to_be_hidden()
    assert page_of_rows.prompt()["9"]["inputs"]["value"] == f"{first}, {second}"
    page_of_rows.set_widgets(9, value="__animal__")
    page_of_rows.keep()
    page_of_rows.settle()
    expect(lacking).to_be_hidden()
    page.unroute("**/iteris/lora?name=second*")
    page.evaluate(FORGET)
    assert page_of_rows.errors[before:] == []


def test_a_loader_is_refused_until_its_rows_change_or_their_files_come(page_of_rows):
    """A row that is changed takes the sentence away, as a file does that is there again; no run is needed for it."""
    page = page_of_rows.page
    loader = {"class_type": "IterISLoad", "inputs": {"loras": "<lora:first:1>\n<lora:gone:1>"}}
    own = {"type": "custom_validation_failed", "details": "loras - Row 2: 'gone' is in none"}
    refusal = {"error": {"type": "prompt_outputs_failed_validation", "message": "no"}}
    refusal["node_errors"] = {LOADER: {"errors": [own], "class_type": "IterISLoad"}}
    failure = page.locator(".iteris-failure:visible")
    files = ["first.safetensors", "gone.safetensors"]
    for mended in ("by row", "by file", "by file, as nobody has seen"):
        page_of_rows.load({LOADER: loader}, f"refused {mended}")
        page_of_rows.show(int(LOADER), left=600, top=150)
        page.route("**/prompt", lambda route: route.fulfill(json=refusal, status=400))
        page.evaluate(
            "async () => comfyAPI.api.api.queuePrompt(-1, await app.graphToPrompt()).catch(() => {})"
        )
        page.unroute("**/prompt")
        expect(failure).to_have_text("Row 2: 'gone' is in none")
        if mended == "by row":
            at(page_of_rows, 1, "out").click()
        else:
            page.route("**/models/loras", lambda route: route.fulfill(json=files))
            page.evaluate(FORGET)
        expect(failure).to_have_count(0)
    page.unroute("**/models/loras")
    page.evaluate(FORGET)


def test_an_open_row_leaves_no_hole_once_the_workflow_is_opened_again(rows):
    """And no key that is pressed in a row deletes the node."""
    height = "app.graph.getNodeById(1).size[1]"
    closed = rows.page.evaluate(height)
    at(rows, 0, "opener").press("Enter")
    rows.settle()
    assert rows.page.evaluate(height) > closed + 40
    at(rows, 0, "opener").press("Delete")
    rows.load(rows.workflow(), "opened again")
    assert abs(rows.page.evaluate(height) - closed) < 30


@pytest.mark.parametrize("kind", ["IterISMerge", "IterISLoad"])
def test_a_copy_has_rows_of_its_own(rows, kind):
    if kind != "IterISMerge":
        rows.load({str(MERGE): {"class_type": kind, "inputs": {"loras": TEXT}}}, "copied")
        rows.page.wait_for_selector(".iteris-row")
    rows.page.mouse.move(800, 200)  # where the copy comes: in sight, where it has a height
    rows.page.evaluate(
        """() => {
            const node = app.graph.getNodeById(1);
            app.canvas.selectNode(node);
            app.canvas.copyToClipboard([node]);
            app.canvas.pasteFromClipboard();
        }"""
    )
    rows.settle()
    copy = rows.page.evaluate("app.graph.nodes.find(({ id }) => Number(id) !== 1).id")
    heights = rows.page.evaluate("app.graph.nodes.map(({ size }) => size[1])")
    # Nodes 2.0 of 0.3.75 counts the title at times
    assert heights[1] - heights[0] < 2, "no empty room in the copy"
    rows.page.evaluate("app.graph.getNodeById(1).setSize([120, 200])")
    assert rows.page.evaluate("app.graph.getNodeById(1).computeSize()[0]") >= 330
    assert rows.prompt()[str(copy)]["inputs"]["loras"] == TEXT
    rows.set_widgets(copy, loras=THIRD)
    assert text_of(rows) == TEXT


def test_tab_goes_to_no_text_that_is_behind_the_rows(rows):
    rows.page.mouse.click(760, 135)  # the node's title
    rows.page.locator(".iteris-grip").first.focus()
    rows.page.keyboard.press("Shift+Tab")
    rows.page.keyboard.type("zzz")
    assert text_of(rows) == TEXT
    hidden = rows.page.locator("textarea").evaluate_all(
        "fields => fields.filter((field) => { field.focus(); return field === document.activeElement; }).length"
    )
    assert hidden == 0


PROMOTED = """([id, way]) => {
    const { subgraph, node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]));
    const [merge] = subgraph.nodes;
    if (way === 'widget') node.properties.proxyWidgets = [[String(merge.id), 'loras']];
    else {
        const slot = merge.inputs.find(({ widget }) => widget?.name === 'loras');
        subgraph.addInput('loras', slot.type).connect(slot, merge);
    }
    node.setSize([400, 200]);
    return node.id;
}"""


IS_LINKED = "app.canvas.graph.nodes[0].inputs.find(({ name }) => name === 'loras').link != null"
# how far below the node's title the links of the rows' text and of its last plain input end
DOTS = """(() => {
    const [node] = app.canvas.graph.nodes;
    const slots = ["loras", "settings"].map(at => node.inputs.findIndex(({ name }) => name === at));
    return slots.map(slot => node.getInputPos(slot)[1] - node.pos[1]);
})()"""


WRITTEN = """([id, text]) => {
    const [widget] = app.graph.getNodeById(id).widgets;
    widget.value = text;
    widget.callback?.(text);
}"""


@pytest.mark.parametrize("way", ["widget", "input"])
def test_a_subgraph_that_promotes_the_rows_has_them_as_text(rows, picture, way):
    """As a widget, which is the same one, and as an input, which is a copy."""
    # newer frontends keep a value by the workflow's and the node's id, and files for the API have none
    rows.load({**rows.workflow(), "id": str(uuid.uuid4())}, "to_promote")
    outer = rows.page.evaluate(PROMOTED, [MERGE, way])
    rows.load(rows.workflow(), "promoted")  # before, the frontend draws no text of an input
    rows.show(outer, left=600, top=150)
    field = rows.page.locator(".dom-widget textarea, .lg-node textarea").locator("visible=true")
    assert field.input_value() == TEXT
    if rows.page.evaluate("LiteGraph.vueNodesMode"):
        # what is typed there reaches no node, core's own neither (frontend 1.32.9)
        rows.page.evaluate(WRITTEN, [outer, THIRD])
    else:
        field.fill(THIRD)
    rows.settle()
    picture(rows, f"rows_promoted_{way}")
    (inside,) = rows.prompt().values()
    assert inside["inputs"]["loras"] == THIRD

    rows.page.evaluate(
        """id => {
            app.canvas.setGraph(app.graph.getNodeById(id).subgraph);
            app.canvas.centerOnNode(app.canvas.graph.nodes[0]);
        }""",
        outer,
    )
    rows.settle()
    if rows.page.evaluate(IS_LINKED):
        picture(rows, "rows_linked")
        assert "come as a text" in rows.page.locator(".iteris-rows").inner_text()
        if not rows.page.evaluate("LiteGraph.vueNodesMode"):  # whose links end at parts of the page
            dot, plain = rows.page.evaluate(DOTS)
            assert dot > plain, "the link ends at the rows, and not at the first input"
        return
    assert way == "widget"
    assert called(rows) == ["third"], "inside, the rows stand in the place of the text"
    if not rows.page.evaluate("LiteGraph.vueNodesMode"):  # which show a line of the text as well
        assert field.count() == 0
    at(rows, 0, "toggle").click()
    (inside,) = rows.prompt().values()
    assert inside["inputs"]["loras"] == f"# {THIRD}"
