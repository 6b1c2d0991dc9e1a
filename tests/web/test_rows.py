"""The rows of Merge LoRAs are a view of its text, in both renderers."""

import re
from pathlib import Path

import pytest
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
    for row, name in enumerate(("first", "second"), start=1):  # the next list opens by itself
        expect(rows.page.get_by_placeholder(f"Search LoRAs for row {row}")).to_be_focused()
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
    rows.page.keyboard.type("a photo")
    expect(said).to_have_text("")
    rows.settle()
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


STACKED, LOADER, CHAIN, SAVED = "2", "3", "4", "5"


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


WRITTEN = """([id, text]) => {
    const [widget] = app.graph.getNodeById(id).widgets;
    widget.value = text;
    widget.callback?.(text);
}"""
