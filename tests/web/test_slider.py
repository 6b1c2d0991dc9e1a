"""The slider of Compare: two of its pictures, and a divider that the user drags."""

import io
import re
import time

import av
import pytest
from PIL import Image
from playwright.sync_api import expect
from workflow_files import GROWTH

COLOURS = {"base model": (200, 0, 0), "<b>dog</b>": (200, 200, 0), "stacked": (0, 160, 0)}
COLOURS |= {"merged": (0, 0, 200)}
PROMPTS = ["<img src=x onerror=window.ran=1> and a cat", "a  dog"]
SIZE = (96, 64)
MOST_DRAWN_NARROW = 1200  # by which a narrow node grows


def compare_of(seed=0):
    return {"1": {"class_type": "IterISCompare", "inputs": {"seed": seed}}}


@pytest.fixture
def output(server):
    """Return what a run tells, with pictures of one colour each."""
    folder = server.base / "temp"
    folder.mkdir(exist_ok=True)
    for colour in COLOURS.values():
        Image.new("RGB", SIZE, colour).save(folder / f"tile {colour}.png")

    def row(prompt, *names):
        files = [f"tile {COLOURS[name]}.png" for name in names]
        pictures = [{"filename": file, "subfolder": "", "type": "temp"} for file in files]
        return {"prompt": prompt, "names": names, "pictures": pictures}

    rows = [
        row(PROMPTS[0], "base model", "stacked", "merged"),
        row(PROMPTS[1], "<b>dog</b>", "stacked", "merged"),
    ]
    return {"text": ["a dog"], "iteris_tiles": rows}


def frames_of(path):
    """Return the first picture of a video, and the one in its middle."""
    with av.open(str(path)) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    assert frames[0].size == SIZE
    return frames[0], frames[len(frames) // 2]


def near(colour, other):
    """Return whether two colours are one but for what a codec does."""
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) < 40


def test_a_divider_is_dragged_between_two_pictures(in_renderer, picture, output):
    frontend = in_renderer
    page = frontend.page
    frontend.load(compare_of(), "slider")
    frontend.show(1, left=500, top=60)
    slider, pair = page.locator(".iteris-slider"), page.locator(".iteris-pair")
    left, right = (slider.locator("select").nth(number) for number in range(2))
    divider, rows = slider.locator("input"), slider.locator(".iteris-drawn")
    assert not slider.is_visible()
    frontend.executed(1, output)
    page.wait_for_function(
        "[...document.querySelectorAll('.iteris-pair img')].every((image) => image.naturalWidth)"
    )
    frontend.settle()

    def bring():
        """Bring the two pictures into sight, at their full size; hosts show more or fewer inputs above them."""
        frontend.show(1, left=500, top=60)
        frontend.show(1, left=500, top=60 + 150 - pair.bounding_box()["y"])

    def chosen():
        """Return the row of the pictures that are marked as those of the slider, and its sides."""
        row = rows.filter(has=page.locator("[aria-pressed=true]"))
        assert row.locator("[aria-pressed=true]").count() == 2
        sides = [each.locator("option:checked").text_content() for each in (left, right)]
        return [row.locator(".iteris-drawn-by").text_content(), *sides]

    def seen(*places):
        """Return who drew what is seen at places of the width, near the upper edge."""
        image = Image.open(io.BytesIO(pair.screenshot())).convert("RGB")
        names = {colour: name for name, colour in COLOURS.items()}
        return [names.get(image.getpixel((int(image.width * place), 8))) for place in places]

    bring()
    assert chosen() == [PROMPTS[0], "stacked", "merged"]
    assert seen(0.05, 0.45, 0.55, 0.95) == ["stacked", "stacked", "merged", "merged"]
    picture(frontend, "slider")
    high = slider.bounding_box()["height"]
    frontend.show(1, left=500, top=60, scale=0.35)
    assert slider.bounding_box()["height"] == pytest.approx(0.35 * high, rel=0.02)
    bring()
    box = pair.bounding_box()
    assert box["height"] == pytest.approx(box["width"] * SIZE[1] / SIZE[0], rel=0.02)
    pos = page.evaluate("[...app.graph.getNodeById(1).pos]")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    assert seen(0.05, 0.76, 0.84) == ["stacked", "stacked", "merged"]
    assert page.evaluate("[...app.graph.getNodeById(1).pos]") == pos, "the node stays"
    page.mouse.wheel(0, -100)
    frontend.settle()
    assert page.evaluate("app.canvas.ds.scale") > 1, "the canvas is zoomed as anywhere on it"
    bring()
    before = float(divider.input_value())
    divider.press("ArrowLeft")
    assert before - 12 <= float(divider.input_value()) < before
    left.select_option(label="base model")
    frontend.settle()
    assert seen(0.05, 0.95) == ["base model", "merged"]
    rows.nth(1).locator("button").nth(1).click()
    frontend.settle()
    assert chosen() == [PROMPTS[1], "stacked", "merged"], "the base model has drawn no dog"
    rows.nth(1).get_by_role("button", name="<b>dog</b>").click()
    frontend.settle()
    assert seen(0.05, 0.95) == ["<b>dog</b>", "merged"]
    frontend.queued("b")
    frontend.executed(1, output, run="b")
    assert chosen() == [PROMPTS[1], "<b>dog</b>", "merged"], "after another run, too"
    picture(frontend, "slider_moved")
    video = slider.locator(".iteris-video")
    with page.expect_download() as saved:
        video.click()
        expect(video).to_have_text("Recording…")
    expect(video).to_have_text("Saved")
    expect(video).to_have_text("Save as video")
    expect(video).to_be_enabled()
    assert saved.value.suggested_filename.startswith("b dog b - merged.")
    first, middle = frames_of(saved.value.path())
    assert near(first.getpixel((4, 8)), COLOURS["<b>dog</b>"]), "the left one, then the right one"
    assert near(middle.getpixel((SIZE[0] - 4, 8)), COLOURS["merged"])

    size = page.evaluate("[...app.graph.getNodeById(1).size]")
    full = slider.get_by_role("button", name="Full screen", exact=True)
    full.click()
    page.wait_for_function("document.fullscreenElement?.className === 'iteris-frame'")
    frontend.settle()
    large, screen = pair.bounding_box(), page.viewport_size
    picture(frontend, "slider_full_screen")
    assert max(large[side] / screen[side] for side in screen) == pytest.approx(1, abs=0.01)
    assert large["width"] / large["height"] == pytest.approx(SIZE[0] / SIZE[1], rel=0.02)
    assert chosen()[1:] == ["<b>dog</b>", "merged"]
    left.select_option(label="stacked")
    assert seen(0.05, 0.95) == ["stacked", "merged"], "the fields are there, too"
    expect(divider).to_be_focused()
    left.select_option(label="<b>dog</b>")
    pair.dblclick()
    page.wait_for_function("!document.fullscreenElement")
    full.press("Enter")
    close = page.get_by_role("button", name="Close full screen")
    expect(close).to_be_visible()
    expect(divider).to_be_focused()  # some time after the picture is large
    prompt = page.locator(".iteris-turn > span")
    moved = divider.input_value()
    buttons = [
        page.get_by_role("button", name=f"Pictures of the row {way}") for way in ("below", "above")
    ]
    by_keys = [lambda key=key: page.keyboard.press(key) for key in ("ArrowDown", "ArrowUp")]
    for turn in (
        *by_keys,
        *(each.click for each in buttons),
        lambda: prompt.click() or by_keys[0](),
        by_keys[1],
    ):
        had = prompt.text_content()
        turn()
        assert prompt.text_content() != had, "another prompt's pictures"
        assert divider.input_value() == moved
    assert [*chosen()[1:], prompt.text_content()] == ["<b>dog</b>", "merged", PROMPTS[1]]
    close.press("Enter")
    page.wait_for_function("!document.fullscreenElement")
    expect(full).to_be_focused()
    expect(close).to_be_hidden()
    frontend.settle()
    assert page.evaluate("[...app.graph.getNodeById(1).size]") == pytest.approx(size, abs=1)

    workflow = frontend.workflow()
    assert len(workflow["nodes"][0]["widgets_values"]) == 10
    del workflow["nodes"][0]["widgets_values"][9]  # of a version without captions
    frontend.load(workflow, "slider again")
    assert frontend.prompt()["1"]["inputs"]["caption"] == ""
    assert page.evaluate("window.ran ?? 0") == 0
    assert frontend.errors == []


def load_narrow(frontend, name):
    """Load a workflow whose Compare was saved narrow: one of 440 in all renderers, once it has pictures."""
    frontend.load(compare_of(), name)
    workflow = frontend.workflow()
    workflow["nodes"][0]["size"] = [366, workflow["nodes"][0]["size"][1]]
    frontend.load(workflow, f"{name} narrow")


def make_tall(output, server):
    """Let the pictures be as high as any that the slider shows whole."""
    for row in output["iteris_tiles"]:
        for file in row["pictures"]:
            name = f"tall {file['filename']}"  # the page has the others already
            folder = server.base / "temp"
            Image.open(folder / file["filename"]).resize((64, 96)).save(folder / name)
            file["filename"] = name


def test_the_pictures_of_a_wide_node_are_beside_the_slider(in_renderer, output, server):
    """As a new node is: as high as the slider, which few rows fill in the pictures' own shape; many scroll."""
    frontend = in_renderer
    page = frontend.page
    make_tall(output, server)
    rows = output["iteris_tiles"][1:]
    height = "app.graph.getNodeById(1).size[1]"
    frontend.load(compare_of(), "wide")
    frontend.show(1, left=500, top=60, scale=0.7)
    before = page.evaluate(height)
    strip, pair = page.locator(".iteris-strip"), page.locator(".iteris-pair")
    for run, tiles, scrolls in (("five", rows * 5, False), ("thirty", rows * 30, True)):
        frontend.begin(run)
        frontend.executed(1, output | {"iteris_tiles": tiles}, run=run)
        expect(page.locator(".iteris-drawn")).to_have_count(len(tiles))
        frontend.pictures_shown()
        assert frontend.still(height) < before + GROWTH["IterISCompare"]
        slider, beside = (each.bounding_box() for each in (pair, strip))
        ends = [box["y"] + box["height"] for box in (slider, beside)]
        assert beside["x"] >= slider["x"] + slider["width"]
        assert beside["y"] < slider["y"], "from the slider's head on"
        assert ends[0] == pytest.approx(ends[1], abs=1)
        assert strip.evaluate("all => all.scrollHeight > all.clientHeight") == scrolls
        assert strip.evaluate("all => all.scrollWidth <= all.clientWidth")
        if scrolls:
            break
        thumbs = [each.bounding_box() for each in strip.locator(".iteris-thumb > img").all()]
        assert all(box["height"] == pytest.approx(1.5 * box["width"], rel=0.05) for box in thumbs)
        assert thumbs[0]["width"] > 0.14 * beside["width"]
        end = max(box["x"] + box["width"] for box in thumbs)
        assert end == pytest.approx(beside["x"] + beside["width"], abs=2), "no room is left"
    assert frontend.errors == []


def test_how_many_pictures_a_run_draws_is_told_by_the_last_one(frontend, output):
    drawn = {"pictures": 9, "seconds": 90, "steps": 20, "size": [0, 0], "own": 9, "line": 5}
    frontend.load(compare_of(), "count")
    frontend.set_widgets(1, prompt="", steps=20, width=0, height=0)
    frontend.begin("count")
    frontend.executed(1, output | {"iteris_drawn": [drawn]}, run="count")
    told = frontend.page.locator(".iteris-times[data-of=IterISCompare]")
    expect(told).to_have_text("To draw all anew: 9 pictures, about 1.5 min")
    frontend.set_widgets(1, prompt="a dog")
    expect(told).to_have_text("To draw all anew: 5 pictures, about 50 s")
    frontend.page.evaluate(
        """() => {
            const [merge, settings] = ["Merge", "Settings"].map((name) => {
                const node = LiteGraph.createNode(`IterIS${name}`);
                app.graph.add(node);
                return node;
            });
            const link = (from, type, to, name) => from.connect(from.outputs.findIndex((each) => each.type === type), to, to.findInputSlot(name));
            link(settings, "ITERIS_SETTINGS", merge, "settings");
            link(merge, "ITERIS_MERGED", app.graph.getNodeById(1), "merged");
        }"""
    )
    settings = frontend.page.evaluate(
        "app.graph.nodes.find(({ type }) => type === 'IterISSettings').id"
    )
    for resolution, expected in ((512, ""), (0, ", about 50 s")):
        frontend.set_widgets(settings, resolution=resolution)
        frontend.keep()
        expect(told).to_have_text(f"To draw all anew: 5 pictures{expected}")


def test_how_many_pictures_are_of_earlier_runs_is_told_where_it_says_how_they_were_drawn(
    frontend, output
):
    frontend.load(compare_of(), "of earlier runs")
    drawn = {"pictures": 3, "seconds": 30, "steps": 20, "size": [0, 0], "own": 9, "line": 5}
    told = frontend.page.locator(".iteris-text details")
    for run, kept, pictures in (("first", 0, 9), ("second", 6, 3), ("third", 9, 0)):
        of_run = drawn | {"pictures": pictures, "kept": kept, "seconds": 10 * pictures}
        frontend.begin(run)
        frontend.executed(1, output | {"iteris_drawn": [of_run]}, run=run)
        frontend.settle()
        said = f"Kept from earlier runs: {kept} of 9 pictures." if kept else ""
        assert told.text_content().endswith(f"a dog{said}")
        expect(frontend.page.locator(".iteris-times[data-of=IterISCompare]")).to_have_text(
            "To draw all anew: 9 pictures, about 1.5 min"
        )
    assert frontend.errors == []


def test_the_time_and_the_pictures_stand_close_together(in_renderer, output, picture):
    frontend = in_renderer
    drawn = {"pictures": 9, "seconds": 90, "steps": 20, "size": [0, 0], "own": 9, "line": 5}
    frontend.load(compare_of(), "close")
    frontend.show(1, left=200, top=60, scale=1)
    frontend.begin("close")
    frontend.executed(1, output | {"iteris_drawn": [drawn]}, run="close")
    frontend.pictures_shown()
    picture(frontend, "close")
    parts = (".iteris-times > span", ".iteris-pair", ".iteris-sides", ".iteris-text")
    told, pair, sides, text = (frontend.page.locator(part).bounding_box() for part in parts)
    for above, below in ((told, sides), (pair, text)):
        assert 0 < below["y"] - above["y"] - above["height"] < 16
    assert told["x"] == sides["x"]


def test_what_is_open_below_the_pictures_is_open_after_the_next_run(frontend, output):
    frontend.load(compare_of(), "open")
    frontend.show(1, left=500, top=60, scale=0.7)
    details = frontend.page.locator(".iteris-text details")
    for run in ("first", "next"):
        frontend.begin(run)
        frontend.executed(1, output, run=run)
        expect(frontend.page.locator(".iteris-drawn")).to_have_count(2)
        frontend.settle()
        if run == "first":
            assert details.get_attribute("open") is None
            details.locator("summary").press("Enter")
    assert details.get_attribute("open") is not None


def test_small_pictures_are_as_large_as_their_node_lets_them_be(in_renderer, output):
    """Three in a line over the strip's whole width, then with their prompts beside them."""
    frontend = in_renderer
    strip = frontend.page.locator(".iteris-strip")
    frontend.load(compare_of(), "as large")
    frontend.show(1, left=200, top=60, scale=0.7)
    for count, beside in ((2, False), (4, True)):
        tiles = output["iteris_tiles"][1:] * count
        frontend.begin(str(count))
        frontend.executed(1, output | {"iteris_tiles": tiles}, run=str(count))
        expect(frontend.page.locator(".iteris-drawn")).to_have_count(count)
        frontend.pictures_shown()
        text, first = (
            strip.locator(part).first.bounding_box() for part in (".iteris-drawn-by", "button")
        )
        assert (text["x"] + text["width"] <= first["x"]) == beside
        assert strip.evaluate("all => all.scrollHeight <= all.clientHeight")
        *_, last = strip.get_by_role("button").all()
        box, around = last.bounding_box(), strip.bounding_box()
        assert box["x"] + box["width"] == pytest.approx(around["x"] + around["width"], abs=1)
        image, name = (last.locator(part).bounding_box() for part in ("img", "span"))
        assert name["y"] >= image["y"] + image["height"] - 1, "no name lies on its picture"
    narrow = first["width"]
    draw_corner(frontend, 200, 1)
    assert strip.get_by_role("button").first.bounding_box()["width"] > 1.2 * narrow
    assert frontend.errors == []


def test_five_pictures_of_a_row_are_in_one_line_below_their_prompt(in_renderer, output):
    """Where there are several rows, as of prompts of one's own."""
    frontend = in_renderer
    row = output["iteris_tiles"][0]
    names = ["base model", "dog", "cat", "stacked", "merged"]
    rows = [
        {
            **row,
            "prompt": f"{n}: a dog and a cat",
            "names": names,
            "pictures": [row["pictures"][0]] * 5,
        }
        for n in range(3)
    ]
    frontend.load(compare_of(61), "five")
    frontend.show(1, left=500, top=60)
    frontend.executed(1, output | {"iteris_tiles": rows})
    frontend.pictures_shown()
    strip = frontend.page.locator(".iteris-strip").bounding_box()
    for drawn in frontend.page.locator(".iteris-drawn").all():
        prompt, *thumbs = (
            each.bounding_box() for each in drawn.locator(".iteris-drawn-by, button").all()
        )
        assert len({round(each["y"]) for each in thumbs}) == 1
        assert prompt["y"] + prompt["height"] <= thumbs[0]["y"]
        assert sum(each["width"] for each in thumbs) > 0.9 * strip["width"]
    assert frontend.errors == []


def test_the_row_of_the_lora_that_stacking_changes_most_is_shown_first(frontend, output):
    chosen = frontend.page.locator(".iteris-thumb[aria-pressed=true]").first

    def run(name, *spoilt):
        rows = zip(output["iteris_tiles"], spoilt, strict=True)
        tiles = [row | {"spoilt": by} for row, by in rows]
        frontend.begin(name)
        frontend.executed(1, output | {"iteris_tiles": tiles}, run=name)
        frontend.pictures_shown()

    frontend.load(compare_of(), "telling")
    run("first", 0.1, 0.3)
    expect(chosen).to_have_attribute("data-row", "1")
    why = frontend.page.locator(".iteris-drawn", has_text="(stacking changes it most)")
    expect(why).to_have_count(1)
    # it begins where others do
    expect(why.locator(".iteris-drawn-by > span")).to_have_css("padding-left", "0px")
    expect(why.locator(".iteris-thumb[aria-pressed=true]").first).to_be_visible()
    frontend.page.locator(".iteris-thumb[data-row='0']").first.click()
    run("second", 0.1, 0.3)
    expect(chosen).to_have_attribute("data-row", "0")  # what the user looks at stays


def test_a_merge_of_several_in_one_picture_is_shown_by_the_row_that_names_them(in_renderer, output):
    """Also where the run before, without together, began with another row, and nobody left it."""
    frontend = in_renderer
    page = frontend.page
    chosen = page.locator(".iteris-thumb[aria-pressed=true]").first
    reasons = page.locator(".iteris-drawn-by", has_text="(several LoRAs in one picture")

    def run(name, rows, *, together):
        named = [row | {"together": together and row is rows[0]} for row in rows]
        frontend.begin(name)
        frontend.executed(1, output | {"iteris_tiles": named}, run=name)
        frontend.pictures_shown()

    frontend.load(compare_of(), "several")
    first, second = output["iteris_tiles"]
    rows = [first, second | {"spoilt": 0.3}]
    run("apart", rows, together=False)
    expect(chosen).to_have_attribute("data-row", "1")
    run("together", rows, together=True)
    expect(chosen).to_have_attribute("data-row", "0")
    expect(reasons).to_have_text(f"{first['prompt']} (several LoRAs in one picture, as measured)")
    expect(page.get_by_text("(stacking changes it most)")).to_have_count(0)
    page.locator(".iteris-thumb[data-row='1']").first.click()
    run("again", rows, together=True)
    expect(chosen).to_have_attribute("data-row", "1")  # what the user looks at stays
    run("one row", rows[:1], together=True)
    expect(page.locator(".iteris-drawn-by")).to_have_text(first["prompt"])  # there is no choice
    assert frontend.errors == []


def test_the_row_that_the_verdict_names_is_shown_and_found_again_by_its_button(frontend, output):
    """Not the one that stacking changes most: a subject in a style is not judged."""
    page = frontend.page
    chosen = page.locator(".iteris-thumb[aria-pressed=true]").first
    first, second = output["iteris_tiles"]
    frontend.load(compare_of(71), "named")
    for told, why in (
        ("unjudged", "(not judged: look here)"),
        ("advised", "(the verdict doubts it)"),
    ):
        tiles = [first | {told: True}, second | {"spoilt": 0.3}]
        frontend.begin(told)
        frontend.executed(1, output | {"iteris_tiles": tiles}, run=told)
        frontend.pictures_shown()
        expect(chosen).to_have_attribute("data-row", "0")
        expect(page.locator(".iteris-drawn-by").first).to_have_text(f"{first['prompt']} {why}")
    page.locator(".iteris-thumb[data-row='1']").first.click()
    expect(chosen).to_have_attribute("data-row", "1")
    page.evaluate("app.graph.getNodeById(1).showIterisNamed()")  # as "See it in pictures" does
    expect(chosen).to_have_attribute("data-row", "0")
    assert frontend.errors == []


def test_pictures_are_shown_as_they_are_drawn(in_renderer, picture, output):
    """And stay where the run is stopped, until the next one or a change; in no other workflow."""
    frontend = in_renderer
    page = frontend.page
    rows = [{"prompt": row["prompt"], "names": row["names"]} for row in output["iteris_tiles"]]
    thumbs, slider = page.locator(".iteris-thumb"), page.locator(".iteris-slider")
    drawn = page.locator(".iteris-thumb:enabled")

    def draw(run, row, place):
        file = output["iteris_tiles"][row]["pictures"][place]
        told = {"prompt_id": run, "node": "1", "rows": rows, "row": row, "place": place}
        frontend.send("iteris.picture", **told, picture=file)
        frontend.pictures_shown()

    def large():
        return page.locator(".iteris-pair img").evaluate_all("all => all.map(({ alt }) => alt)")

    frontend.load(compare_of(81), "drawn first")
    frontend.show(1, left=500, top=60)
    frontend.begin("of 81")
    draw("of 81", 0, 0)
    expect(thumbs).to_have_count(6)
    expect(drawn).to_have_count(1)
    assert large() == ["base model"] * 2
    draw("of 81", 1, 0)
    picture(frontend, "slider_drawing")
    expect(drawn).to_have_count(2)
    expect(slider.locator("select").first).to_be_hidden()
    assert large() == ["<b>dog</b>"] * 2
    drawn.first.click()
    assert large() == ["base model"] * 2
    frontend.load(compare_of(82), "of another seed")
    frontend.settle(40)
    expect(drawn).to_have_count(0)
    frontend.go_to("drawn first")
    expect(drawn).to_have_count(2)
    ended, earlier = slider.locator(".iteris-ended"), slider.locator(".iteris-earlier")
    text = page.locator(".iteris-text").filter(visible=True)
    stopped = "Stopped: {} of 6 pictures are drawn. The next run goes on with the others."
    frontend.send("execution_interrupted", prompt_id="of 81", node_id="1")
    expect(ended).to_contain_text(stopped.format(2))
    expect(text).to_have_count(0)
    above, below = (each.bounding_box() for each in (ended, page.locator(".iteris-pair")))
    assert above["y"] + above["height"] <= below["y"]
    frontend.show(1, left=500, top=300, scale=0.36)
    expect(ended.locator(".iteris-far")).to_be_visible()
    picture(frontend, "slider_stopped_afar")
    frontend.show(1, left=500, top=60)
    expect(slider).to_be_visible()
    expect(thumbs).to_have_count(6)
    expect(drawn).to_have_count(2)
    drawn.last.click()
    assert large() == ["<b>dog</b>"] * 2
    at = "app.graph.getNodeById(1).iterisPicturesAt()"
    assert page.evaluate(f"Number.isNaN({at})"), "those of no merge are all there"
    picture(frontend, "slider_stopped")
    frontend.begin("next")
    expect(ended).to_have_count(0)
    expect(slider.filter(visible=True)).to_have_count(0)

    frontend.begin("whole")
    frontend.executed(1, output, run="whole")
    frontend.pictures_shown()
    expect(drawn).to_have_count(6)
    assert large() == ["merged", "stacked"]
    ends = {"execution_interrupted": stopped.format(1), "execution_error": "No more memory."}
    for seed, (end, told) in enumerate(ends.items(), 83):
        frontend.begin(end)
        draw(end, 1, 0)
        expect(drawn).to_have_count(1)
        frontend.send(
            end, prompt_id=end, node_id="1", node_type="", exception_message=told, traceback=[]
        )
        page.keyboard.press("Escape")  # newer frontends tell a failure in a dialog, too
        expect(ended).to_contain_text(told)
        expect(text).to_have_count(0)
        expect(drawn).to_have_count(1)
        expect(earlier).to_be_hidden()
        frontend.set_widgets(1, seed=seed)  # then it is no news any more
        expect(earlier).to_be_visible()
        expect(ended).to_have_count(0)
        expect(drawn).to_have_count(6)
    frontend.begin("ended")
    draw("ended", 1, 0)
    expect(drawn).to_have_count(1)
    frontend.executed(1, output, run="ended")
    expect(drawn).to_have_count(6)
    assert large() == ["merged", "stacked"]
    expect(page.locator(".iteris-slider.iteris-live")).to_have_count(0)
    assert frontend.errors == []


def test_after_f5_a_merge_does_not_say_that_it_runs_while_its_compare_draws(frontend):
    """The server tells who is at work before the page has its nodes, and then how far that is."""
    page = frontend.page
    nodes = {"2": {"class_type": "IterISMerge", "inputs": {"loras": "<lora:second:1>"}}}
    nodes |= {"1": {"class_type": "IterISCompare", "inputs": {"seed": 85, "merged": ["2", 3]}}}
    frontend.load(nodes, "draws on")
    frontend.load(frontend.workflow(), "draws on")
    own = frontend.prompt()
    frontend.begin("of_85")
    frontend.noted("85,")
    busy = {"queue_running": [[0, "of_85", own, {}, ["1"]]], "queue_pending": []}
    page.route("**/queue", lambda route: route.fulfill(json=busy))
    frontend.open()
    line = page.locator(".iteris-progress:not(.iteris-hidden)")
    expect(line).to_contain_text("Running")
    stage = {"name": "Pictures", "number": 1, "count": 1, "starts": 0, "share": 1}
    stage |= {"is_alike": True, "told_by": 20}
    steps = {"stage": stage, "done": 40, "total": 180, "seconds_left": 0}
    frontend.send("iteris.stage", prompt_id="of_85", node="1", **steps)
    expect(line).to_have_count(1)
    expect(line).to_have_text(re.compile("^Pictures 2/9"))
    page.unroute("**/queue")
    assert frontend.errors == []


def made(at, preset="Balanced", drawn="from seed 0", **settings):
    merge = {"preset": preset, "strengths": [1, 0.8], "settings": settings, "at": at}
    return [merge | {"drawn": drawn}]


@pytest.fixture
def run_of(output, server):
    """Return what a run tells whose merge's picture has a colour of its own."""

    def tell(colour, merge):
        own = f"merged {colour}.png"
        Image.new("RGB", SIZE, colour).save(server.base / "temp" / own)
        file = {"filename": own, "subfolder": "", "type": "temp"}
        tiles = [
            {**row, "pictures": [*row["pictures"][:-1], file]} for row in output["iteris_tiles"]
        ]
        return output | {"iteris_tiles": tiles, "iteris_made": merge}

    return tell


def in_fields(page):
    """Return the fields of the slider: on the left, and on the right."""
    return [page.locator(".iteris-slider select").nth(number) for number in range(2)]


def of_merges(field):
    """Return what a field offers by the names of merges."""
    return field.locator("optgroup[label=merged] option")


def expect_pair(page, *pair):
    """Wait until a name and a colour are shown on the left, and on the right; of a merge, what its name begins with."""
    for field, image, (name, colour) in zip(
        in_fields(page), page.locator(".iteris-pair img").all()[::-1], pair, strict=True
    ):
        expect(field.locator("option:checked")).to_have_text(re.compile("^" + re.escape(name)))
        page.wait_for_function(
            """([image, colour]) => {
                if (!image.complete || !image.naturalWidth) return false;
                const canvas = new OffscreenCanvas(1, 1).getContext("2d");
                canvas.drawImage(image, 0, 0);
                return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).join() === colour.join();
            }""",
            arg=[image.element_handle(), list(colour)],
        )


STACKED = ("stacked", COLOURS["stacked"])


def test_two_merges_are_compared(in_renderer, picture, run_of):
    """With the run before, by what differs; what was chosen stays."""
    frontend = in_renderer
    page = frontend.page
    slider = page.locator(".iteris-slider")
    left, right = in_fields(page)
    now = time.time()  # of another day, its day would be told
    first, second, third = ((0, 0, blue) for blue in (90, 140, 240))

    def run(name, colour, merge):
        frontend.begin(name)
        frontend.executed(1, run_of(colour, merge), run=name)
        frontend.pictures_shown()
        frontend.pictures_kept(1, merge[0]["at"])

    frontend.load(compare_of(), "two merges")
    frontend.show(1, left=500, top=60)
    run("first", first, made(now, size="rank 16"))
    expect_pair(page, STACKED, ("merged", first))
    expect(of_merges(left)).to_have_count(0)
    run("second", second, made(now + 1))
    expect_pair(page, STACKED, ("size as is", second))
    name = of_merges(left).last.text_content()
    assert name == "size rank 16", "what differs, and nothing else"
    left.select_option(index=3)
    expect_pair(page, (name, first), ("size as is", second))
    picture(frontend, "slider_two_merges")
    right.select_option(index=0)
    width = "each => each.offsetWidth"
    whole = f"each => {{ each.style.minWidth = 'max-content'; return ({width})(each); }}"
    assert left.evaluate(width) == left.evaluate(whole), (
        "all of the name is seen beside a short one"
    )
    right.select_option(index=2)
    title = left.get_attribute("title")
    assert title.startswith("Picture on the left: merged (Balanced, at 1/0.8, size rank 16, ")
    expect_pair(page, (name, first), ("size as is", second))
    slider.locator(".iteris-drawn").nth(1).get_by_role("button", name="merged").click()
    expect_pair(page, (name, first), ("size as is", second))
    run("third", third, made(now + 2, "Fast"))
    expect_pair(page, ("Balanced, size rank 16", first), ("Fast, ", third))
    names = ["Fast, size as is", "Balanced, size as is", "Balanced, size rank 16"]
    expect(of_merges(left)).to_have_text(names)
    left.select_option(index=3)
    run("third again", third, made(now + 2, "Fast"))
    expect_pair(page, ("Balanced, ", second), ("Fast, ", third))
    run("of another seed", first, made(now + 3, drawn="from seed 1"))
    expect_pair(page, STACKED, ("merged", first))
    frontend.settle()
    expect(of_merges(left)).to_have_count(0)
    assert frontend.errors == []


def test_merges_before_are_offered_where_they_have_drawn_by_the_same_prompt(in_renderer, run_of):
    """A line more in the prompt is no reason to lose them in the other rows."""
    frontend = in_renderer
    left, _ = in_fields(frontend.page)
    now = time.time()
    rank, whole, last = ((0, 0, blue) for blue in (95, 145, 245))
    of_run = {"drawn": f"from seed 0 at {now}"}
    outputs = [
        run_of(rank, made(now, size="rank 16", **of_run)),
        run_of(whole, made(now + 1, **of_run)),
        run_of(last, made(now + 2, "Fast", **of_run)),
    ]
    outputs[0]["iteris_tiles"] = outputs[0]["iteris_tiles"][1:]
    new, *rows = outputs[2]["iteris_tiles"]
    outputs[2]["iteris_tiles"] = [{**new, "prompt": "a new line"}, new, *rows]
    frontend.load(compare_of(), "lines")
    frontend.show(1, left=500, top=60)
    for at, output in enumerate(outputs):
        frontend.begin(f"line {at}")
        frontend.executed(1, output, run=f"line {at}")
        frontend.pictures_shown()
        frontend.pictures_kept(1, now + at)
    earlier = "Balanced, size rank 16"
    expect(of_merges(left)).to_have_text(["Fast, size as is", "Balanced, size as is", earlier])
    left.select_option(index=4)
    expect_pair(frontend.page, (earlier, rank), ("Fast, ", last))
    merged = frontend.page.locator(".iteris-drawn").get_by_role("button", name="merged")
    merged.nth(0).click()
    expect(of_merges(left)).to_have_count(0)
    expect_pair(frontend.page, STACKED, ("merged", last))
    merged.nth(1).click()
    expect(of_merges(left)).to_have_text(["Fast", "Balanced"])
    expect_pair(frontend.page, STACKED, ("Fast", last))
    merged.nth(2).click()
    expect_pair(frontend.page, (earlier, rank), ("Fast, ", last))
    assert frontend.errors == []


def test_two_merges_are_compared_though_nobody_watched_the_second(in_renderer, run_of):
    """As merges take minutes: it ends in another tab; the page is opened anew; the node goes into a subgraph."""
    frontend = in_renderer
    page = frontend.page
    left, _ = in_fields(page)
    now = time.time()
    same = f"from seed 0 at {now}"  # the browser has other tests' merges
    first, second, third = ((0, 0, blue) for blue in (90, 140, 240))
    frontend.load(compare_of(61), "unwatched")
    prompt = frontend.prompt()
    frontend.begin("first")
    frontend.executed(1, run_of(first, made(now, size="rank 4", drawn=same)), run="first")
    frontend.pictures_kept(1, now)
    for name in ("second", "third"):
        frontend.queued(name)
    frontend.load(compare_of(62), "in front")
    last = run_of(third, made(now + 2, size="rank 1", drawn=same))
    for name, told in (
        ("second", run_of(second, made(now + 1, size="rank 2", drawn=same))),
        ("third", last),
    ):
        frontend.send("execution_start", prompt_id=name, timestamp=0)
        frontend.executed(1, told, run=name)
    assert not page.locator(".iteris-slider").is_visible()

    def compared():
        expect(of_merges(left)).to_have_count(3)
        left.select_option(index=3)
        expect_pair(page, ("size rank 2", second), ("size rank 1", third))

    frontend.go_to("unwatched")
    compared()
    frontend.keep()
    frontend.know("third", prompt, {"1": last})
    frontend.open()
    compared()
    frontend.into_subgraph(1, show=True)
    compared()
    frontend.forget("third")
    assert frontend.errors == []


def test_an_earlier_merge_names_its_file_and_is_loaded(in_renderer, picture, run_of):
    frontend = in_renderer
    page = frontend.page
    left, right = in_fields(page)
    load = page.locator(".iteris-sides").get_by_role("button", name="Load this")
    now = time.time()
    same = f"from seed 0 at {now}"
    workflow = {
        "1": {"class_type": "IterISCompare", "inputs": {"merged": ["2", 3]}},
        "2": {"class_type": "IterISMerge", "inputs": {"loras": "<lora:second:1>"}},
        "3": {"class_type": "IterISSave", "inputs": {"merged": ["2", 3]}},
    }
    frontend.load(workflow, "a merge with a file")
    frontend.show(1, left=500, top=60)
    about = "fetch('/iteris/lora?name=first.safetensors').then((answer) => answer.json())"
    name = "first.safetensors"
    file = {"name": name, "listed_as": name, "hash": page.evaluate(about)["hash"], "mb": 3}
    file |= {"ranks": [8, 8], "words": []}
    for at, saved in ((now, file), (now + 1, None)):
        merge = made(at, "Fast" if saved else "Balanced", drawn=same)
        frontend.begin(str(at))
        frontend.executed(1, run_of((0, 0, 90), merge), run=str(at))
        frontend.pictures_kept(1, at)
        if saved:
            lines = [f"/loras/{name}", "read back", "3 MB"]
            told = [{**merge[0], "drawn": None}]
            output = {"text": lines, "iteris_saved": [saved], "iteris_made": told}
            frontend.executed(3, output, run=str(at))
            frontend.pictures_kept(3, at)
    expect(of_merges(left)).to_have_text(["Balanced", "Fast"])
    expect(of_merges(left).last).to_have_attribute(
        "title", re.compile(r"^merged \(Fast, .*\) first$")
    )
    expect(load).to_have_count(0)
    left.select_option(index=3)
    expect(load).to_have_count(1)
    picture(frontend, "slider_load")
    right.select_option(index=3)
    expect(load).to_have_count(2)
    one, other = (each.bounding_box() for each in load.all())
    assert one["x"] + one["width"] < other["x"]
    for box in (one, other):
        assert box["y"] > right.bounding_box()["y"] + right.bounding_box()["height"]
    load.first.press("Enter")
    page.wait_for_function("app.graph.nodes.some(({ type }) => type === 'IterISLoad')")
    loaders = [node for node in frontend.prompt().values() if node["class_type"] == "IterISLoad"]
    assert [node["inputs"]["loras"] for node in loaders] == ["<lora:first:1>"]
    assert frontend.errors == []


def test_a_finger_drags_the_divider(open_frontend, output):
    frontend = open_frontend()  # touch would stay on for others
    page = frontend.page
    frontend.load(compare_of(), "by a finger")
    frontend.executed(1, output)
    frontend.pictures_shown()
    pair, divider = page.locator(".iteris-pair"), page.locator(".iteris-pair > input")
    frontend.show(1, left=500, top=60)
    pair.wait_for(timeout=20_000)
    frontend.show(1, left=500, top=60 + 150 - pair.bounding_box()["y"])
    touch = page.context.new_cdp_session(page)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    box = pair.bounding_box()
    assert divider.bounding_box()["width"] == pytest.approx(box["width"] + 44, abs=1)
    places = [
        (box["x"] + share * box["width"], box["y"] + box["height"] / 2) for share in (0.5, 0.6, 0.8)
    ]
    for kind, points in [
        ("touchStart", places[:1]),
        *[("touchMove", [place]) for place in places[1:]],
        ("touchEnd", []),
    ]:
        touch.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]},
        )
    assert float(divider.input_value()) == pytest.approx(80, abs=2)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
    touch.detach()
    assert frontend.errors == []


def test_pictures_are_below_the_settings_and_as_wide_as_the_node(in_renderer, output, server):
    """As many as there may be, in a height of their own; and the rest is in details below them."""
    frontend = in_renderer
    page = frontend.page
    make_tall(output, server)
    others = [{**output["iteris_tiles"][1], "prompt": prompt} for prompt in ("a third", "a fourth")]
    output["iteris_tiles"] += others
    load_narrow(frontend, "below")
    frontend.show(1, left=500, top=60, scale=0.7)
    height = "app.graph.getNodeById(1).size[1]"
    before = page.evaluate(height)
    frontend.begin("c")
    frontend.executed(1, output, run="c")
    frontend.pictures_shown()
    slider, details = page.locator(".iteris-slider"), page.locator(".iteris-text")
    expect(slider).to_be_visible()
    names = page.evaluate("app.graph.getNodeById(1).widgets.map(({ name }) => name)")
    assert names[-4:] == [f"iteris_{part}" for part in ("progress", "times", "slider", "text")]
    # what the newer frontend hides is above them on the canvas, too
    last = page.evaluate("app.graph.getNodeById(1).widgets.at(-5).name")
    assert last in ("caption", "iteris_advanced")
    assert page.locator("textarea").first.bounding_box()["y"] < slider.bounding_box()["y"]
    assert page.evaluate("app.graph.getNodeById(1).size[0]") == pytest.approx(440, abs=1)
    pair, strip = (page.locator(f".iteris-{part}").bounding_box() for part in ("pair", "strip"))
    assert strip["y"] >= pair["y"] + pair["height"]
    first = page.locator(".iteris-drawn").first.bounding_box()
    last = page.locator(".iteris-drawn").first.locator("button").last.bounding_box()
    assert last["x"] + last["width"] == pytest.approx(first["x"] + first["width"], abs=1)
    assert page.eval_on_selector(".iteris-strip", "all => all.scrollHeight <= all.clientHeight")
    box = slider.bounding_box()
    assert details.bounding_box()["y"] >= box["y"] + box["height"] - 1
    assert not details.get_by_text("a dog", exact=True).is_visible()
    closed = page.evaluate(height)
    assert closed < before + MOST_DRAWN_NARROW
    for isOpen in (True, False):
        details.locator("summary").evaluate("summary => summary.click()")
        frontend.settle()
        assert details.get_by_text("a dog", exact=True).is_visible() == isOpen
    assert page.evaluate(height) == pytest.approx(closed, abs=1)
    output["iteris_tiles"] += 13 * others
    frontend.executed(1, output, run="c")
    expect(page.locator(".iteris-drawn")).to_have_count(30)
    frontend.pictures_shown()
    assert page.evaluate(height) < before + MOST_DRAWN_NARROW, "they scroll"
    page.locator(".iteris-drawn").last.locator("button").last.evaluate(
        "all => all.scrollIntoView()"
    )
    assert page.eval_on_selector(".iteris-strip", "strip => strip.scrollTop") > 0
    assert frontend.errors == []


def change(frontend, **values):
    frontend.set_widgets(1, **values)
    frontend.keep()
    frontend.settle()


def test_pictures_of_the_last_run_are_there_once_the_page_is_opened_anew(in_renderer, output):
    """And marked where settings are others since; on no other workflow's node."""
    frontend = in_renderer
    page = frontend.page
    frontend.load(compare_of(11), "opened anew")
    prompt = frontend.prompt()
    frontend.begin("of_11")
    frontend.executed(1, output, run="of_11")
    page.wait_for_function("app.graph.getNodeById(1).properties.iteris_ran?.run")
    frontend.know("of_11", prompt, {"1": output})
    change(frontend, cfg=3)
    frontend.open()
    slider, earlier = page.locator(".iteris-slider"), page.locator(".iteris-earlier")
    heights = []
    for cfg, marked in 2 * ((3, ["Result of a run with other settings (cfg was auto)."]), (0, [])):
        change(frontend, cfg=cfg)
        expect(slider).to_be_visible()
        expect(earlier).to_have_text(marked)
        expect(page.locator(".iteris-slider.iteris-old")).to_have_count(len(marked))
        frontend.pictures_shown()
        heights.append(page.evaluate("app.graph.getNodeById(1).size[1]"))
    assert heights[:2] == pytest.approx(heights[2:], abs=1)
    change(frontend, cfg=3)
    expect(earlier).to_have_count(1)
    frontend.begin("stopped_11")
    frontend.send("execution_interrupted", prompt_id="stopped_11", node_id="1")
    why = "Stopped before the first picture. The merge is done: the next run goes on with the pictures."
    expect(page.locator(".iteris-text")).to_have_text(why)
    unfinished = "Result of an earlier run{}: the last one did not finish."
    expect(earlier).to_have_text([unfinished.format(" (cfg was auto)")])
    expect(page.locator(".iteris-slider.iteris-old")).to_have_count(1)
    change(frontend, cfg=4)
    expect(earlier).to_have_text([unfinished.format("")])
    workflow = frontend.workflow()
    for kept in ({"run": "of_11", "name": "of another node"}, {"run": 7}, {}, None):
        workflow["nodes"][0]["properties"]["iteris_ran"] = kept
        with page.expect_response("**/history?*"):
            frontend.load(workflow, "another one")
        frontend.settle()
        assert not slider.is_visible()
    frontend.forget("of_11")
    assert frontend.errors == []


def test_the_wheel_enlarges_both_pictures_in_full_screen(in_renderer, server, output):
    frontend = in_renderer
    page = frontend.page
    halves = Image.new("RGB", SIZE, (0, 160, 0))
    halves.paste((200, 0, 0), (SIZE[0] // 2, 0, *SIZE))  # red on the right
    halves.save(server.base / "temp" / "tile (0, 160, 0).png")  # drawn by the stack
    frontend.load(compare_of(51), "enlarged")
    frontend.show(1, left=500, top=60)
    frontend.executed(1, output)
    frontend.pictures_shown()
    scale = page.evaluate("app.canvas.ds.scale")
    full = page.get_by_role("button", name="Full screen", exact=True)

    def enter():
        full.click()
        page.wait_for_function("document.fullscreenElement")
        frontend.settle()
        return page.locator(".iteris-pair").bounding_box()

    def seen():
        """Return what is seen in the middle, in parts of the width."""
        frontend.settle()
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        names = {COLOURS["stacked"]: "green", (200, 0, 0): "red", COLOURS["merged"]: "merged"}
        y = int(box["y"] + 0.3 * box["height"])
        places = [int(box["x"] + part * box["width"]) for part in (0.1, 0.32, 0.48, 0.52, 0.9)]
        return [names.get(image.getpixel((x, y))) for x in places]

    def turn(place, by):
        page.mouse.move(box["x"] + place * box["width"], box["y"] + 0.3 * box["height"])
        page.mouse.wheel(0, by)

    box = enter()
    fitted = ["green", "green", "green", "merged", "merged"]
    assert seen() == fitted
    for _ in range(4):
        turn(0.75, -120)
    assert seen() == ["green", "red", "red", "merged", "merged"], "cut at the same place"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert seen()[1] == "red", "as large in another row"
    for _ in range(20):
        turn(0.5, -120)
    turn(0, 120)
    zoom = page.locator(".iteris-pair").evaluate(
        "(pair) => pair.querySelector('img').getBoundingClientRect().width / pair.offsetWidth"
    )
    assert zoom == pytest.approx(6.4, abs=0.1), "never more than eight times"
    for _ in range(12):
        turn(1, 120)
    assert seen() == fitted
    turn(0.75, -480)
    page.keyboard.press("Escape")
    page.evaluate("document.fullscreenElement && document.exitFullscreen()")
    page.wait_for_function("!document.fullscreenElement")
    box = enter()
    assert seen() == fitted, "as large as the screen once more"
    assert page.evaluate("app.canvas.ds.scale") == scale, "the canvas behind stays"
    assert frontend.errors == []


def test_pictures_are_marked_while_another_prompt_is_typed(in_renderer, output):
    """Before the field is left, which is when the frontend takes note of a change."""
    frontend = in_renderer
    frontend.load(compare_of(31), "typed")
    frontend.set_widgets(1, prompt="a dog")
    frontend.keep()
    frontend.show(1, left=500, top=60)
    frontend.begin("typed")
    frontend.executed(1, output, run="typed")
    frontend.page.wait_for_function("app.graph.getNodeById(1).properties.iteris_ran?.run")
    earlier = frontend.page.locator(".iteris-earlier")
    frontend.page.get_by_role("textbox").and_(frontend.page.locator("textarea")).first.focus()
    frontend.page.keyboard.press("End")
    frontend.page.keyboard.type("s")
    expect(earlier).to_have_text(["Result of a run with other settings (prompt was a dog)."])
    frontend.page.keyboard.press("Backspace")
    expect(earlier).to_have_count(0)
    assert frontend.errors == []


def test_pictures_that_came_while_another_tab_was_shown_are_there(in_renderer, output):
    frontend = in_renderer
    page = frontend.page
    slider, earlier = page.locator(".iteris-slider"), page.locator(".iteris-earlier")
    frontend.load(compare_of(21), "compare_21")
    frontend.begin("of_21")
    change(frontend, cfg=3)
    frontend.load(compare_of(22), "compare_22")
    frontend.executed(1, output, run="of_21")
    assert not slider.is_visible()
    for _ in range(2):
        frontend.go_to("compare_21")
        expect(slider).to_be_visible()
        expect(earlier).to_have_text(["Result of a run with other settings (cfg was auto)."])
        frontend.go_to("compare_22")
        assert not slider.is_visible()
    assert frontend.errors == []


def test_a_node_is_as_high_as_what_it_holds_while_it_draws_again_and_once_stopped(
    in_renderer, output
):
    frontend = in_renderer
    file = output["iteris_tiles"][0]["pictures"][0]
    rows = [{"prompt": row["prompt"], "names": row["names"]} for row in output["iteris_tiles"]]
    frontend.load(compare_of(), "as high")
    frontend.show(1, left=500, top=60, scale=0.6)

    def height():
        frontend.pictures_shown()
        return frontend.still("app.graph.getNodeById(1).size[1]")

    def draw(run):
        frontend.begin(run)
        told = {"prompt_id": run, "node": "1", "rows": rows, "row": 0, "place": 0}
        frontend.send("iteris.picture", **told, picture=file)
        return height()

    live = draw("first")
    frontend.send("execution_interrupted", prompt_id="first", node_id="1")
    assert height() < live + 60
    assert draw("second") == pytest.approx(live, abs=1)
    frontend.executed(1, output, run="second")
    frontend.set_widgets(1, seed=5)
    expect(frontend.page.locator(".iteris-slider > .iteris-earlier")).to_be_visible()
    marked = height()
    assert draw("third") <= marked
    assert frontend.errors == []


def test_a_node_is_no_higher_than_it_has_to_be_once_there_are_fewer_pictures(in_renderer, output):
    frontend = in_renderer
    height = "app.graph.getNodeById(1).size[1]"
    load_narrow(frontend, "fewer")
    frontend.show(1, left=500, top=60, scale=0.6)
    heights = []
    rows = output["iteris_tiles"]
    for run, tiles in (("few", rows), ("more", rows * 3), ("fewer", rows)):
        frontend.begin(run)
        frontend.executed(1, output | {"iteris_tiles": tiles}, run=run)
        expect(frontend.page.locator(".iteris-drawn")).to_have_count(len(tiles))
        frontend.pictures_shown()
        heights.append(frontend.still(height))
    first, higher, last = heights
    assert higher > first
    assert last == pytest.approx(first, abs=1)
    if not frontend.page.evaluate("LiteGraph.vueNodesMode"):
        frontend.page.evaluate("app.graph.getNodeById(1).setSize([440, 1500])")
        frontend.settle()
        frontend.page.evaluate("app.graph.getNodeById(1).widgets[0].callback('a\\nb')")
        frontend.settle()
        assert frontend.page.evaluate(height) == 1500, "as the user has made it"
    assert frontend.errors == []


def test_nodes_have_no_hole_once_the_other_renderer_draws_them(open_frontend, output):
    frontend = open_frontend(Comfy_VueNodes_Enabled=True)
    nodes = compare_of() | {
        str(number): {"class_type": f"IterIS{name}", "inputs": {}}
        for number, name in enumerate(("Settings", "Save"), start=2)
    }
    frontend.load(nodes, "the other renderer")
    frontend.show(1, left=100, top=60, scale=0.6)
    frontend.begin("run")
    frontend.executed(1, output, run="run")
    frontend.pictures_shown()
    frontend.page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    frontend.page.wait_for_function("!LiteGraph.vueNodesMode")
    frontend.settle(40)
    holes = "app.graph.nodes.map((node) => node.size[1] - node.computeSize()[1])"
    assert max(frontend.page.evaluate(holes)) < 5
    assert frontend.errors == []


def test_a_second_run_out_of_sight_leaves_the_node_as_high_as_it_was(in_renderer, output):
    """Or what is below it, and its group, would jump then, and once more when it is seen again."""
    frontend = in_renderer
    height = "app.graph.getNodeById(1).size[1]"
    frontend.load(compare_of(), "out of sight")
    heights = []
    for left in (500, -3000, 500):
        frontend.show(1, left=left, top=60, scale=0.6)
        if len(heights) < 2:
            frontend.begin("run")
            frontend.executed(1, output, run="run")
        frontend.pictures_shown()
        heights.append(frontend.still(height))
    assert heights[1:] == pytest.approx([heights[0]] * 2, abs=1)
    assert frontend.errors == []


def draw_corner(frontend, right, down):
    """Draw the node's lower right corner by so many pixels."""
    corner = "node.pos[0] + node.size[0], node.pos[1] + node.size[1]"
    x, y = frontend.page.evaluate(
        f"(() => {{ const node = app.graph.getNodeById(1); return app.canvas.ds.convertOffsetToCanvas([{corner}]); }})()"
    )
    frontend.page.mouse.move(x - 3, y - 3)
    frontend.page.mouse.down()
    frontend.page.mouse.move(x - 3 + right, y - 3 + down, steps=5)
    frontend.page.mouse.up()
    frontend.settle()


def test_a_node_that_is_made_wider_is_as_much_lower_as_its_pictures_are(in_renderer, output):
    """Or there would be a hole where they were below one another."""
    frontend = in_renderer
    load_narrow(frontend, "made wider")
    frontend.show(1, left=400, top=60, scale=0.55)
    frontend.begin("run")
    frontend.executed(1, output | {"iteris_tiles": output["iteris_tiles"] * 2}, run="run")
    frontend.pictures_shown()
    size = "[...app.graph.getNodeById(1).size]"
    added = f"({size})[1] - app.graph.getNodeById(1).computeSize()[1]"
    before, hole = frontend.still(f"({size})[1]"), frontend.page.evaluate(added)
    draw_corner(frontend, 160, 2)
    height = frontend.still(f"({size})[1]")
    assert frontend.page.evaluate(f"({size})[0]") > 620
    assert height < before - 300
    assert frontend.page.evaluate(added) == pytest.approx(hole, abs=35)
    assert frontend.errors == []


PADDING = 10  # of a group
BELOW = """(() => {  // how far a group reaches below the node in it
    const { nodes: [{ pos, size }], groups: [group] } = app.graph;
    return group.pos[1] + group.size[1] - pos[1] - size[1];
})()"""


def test_a_node_that_is_made_narrower_and_wider_again_is_as_it_was(in_renderer, output):
    frontend = in_renderer
    page = frontend.page
    frontend.load(compare_of(), "narrower")
    page.evaluate("""() => {
        const [{ pos: [x, y], size: [width, height] }] = app.graph.nodes;
        const group = Object.assign(new LiteGraph.LGraphGroup("around"), { pos: [x - 10, y - 80] });
        group.size = [width + 100, height + 100];
        app.graph.add(group);
    }""")
    frontend.show(1, left=400, top=60, scale=0.55)
    frontend.begin("run")
    frontend.executed(1, output | {"iteris_tiles": output["iteris_tiles"] * 2}, run="run")
    frontend.pictures_shown()
    width, height = (f"Math.round(app.graph.getNodeById(1).size[{axis}])" for axis in (0, 1))
    before = frontend.still(height)
    # Nodes 2.0 of 0.3.75 keeps the height of its edge while that is drawn
    for right in (-140, 140) if page.evaluate("LiteGraph.vueNodesMode") else (-100, -40, 60, 80):
        draw_corner(frontend, right, 1)
        frontend.still(height)
        assert page.evaluate(BELOW) == pytest.approx(PADDING, abs=5), "its group holds it"
    assert page.evaluate(width) == pytest.approx(720, abs=15)
    assert frontend.still(height) == pytest.approx(before, abs=35)
    assert frontend.errors == []


def test_a_node_that_was_drawn_higher_is_so_again_once_its_pictures_are_there(in_renderer, output):
    """Its workflow keeps what it was made higher by, without the room of the pictures."""
    frontend = in_renderer
    height = "app.graph.getNodeById(1).size[1]"
    added = f"{height} - app.graph.getNodeById(1).computeSize()[1]"

    def shown(run):
        frontend.show(1, left=500, top=60, scale=0.7)
        frontend.begin(run)
        frontend.executed(1, output, run=run)
        frontend.pictures_shown()
        frontend.settle(40)
        return frontend.page.evaluate(height)

    frontend.load(compare_of(), "drawn")
    before = shown("a")
    draw_corner(frontend, 3, 83)
    drawn = frontend.page.evaluate(height)
    assert drawn > before + 90
    higher = frontend.page.evaluate(added)
    saved = frontend.workflow()
    del saved["nodes"][0]["properties"]["iteris_ran"]  # or the browser has its pictures
    frontend.load(saved, "opened again")
    assert frontend.page.evaluate(height) < drawn - 100
    shown("b")
    # Nodes 2.0 of 0.3.75 counts the title at times; and it opens a workflow larger, its pictures, too
    assert frontend.page.evaluate(added) == pytest.approx(higher, abs=35)
    assert frontend.errors == []


def test_the_browser_keeps_a_comparison_that_the_server_has_lost(
    in_renderer, picture, output, server
):
    """As after a restart, which empties the folder of temporary files, and the history."""
    frontend = in_renderer
    page = frontend.page
    loaded = "[...document.querySelectorAll('.iteris-slider:not(.iteris-hidden) .iteris-pair img')]"
    loaded = f"({loaded}).length === 2 && ({loaded}).every((image) => image.naturalWidth)"
    frontend.load(compare_of(3), "drawn")
    frontend.begin("kept")
    frontend.executed(1, output, run="kept")
    frontend.pictures_kept(1)
    saved = frontend.workflow()
    for colour in COLOURS.values():
        (server.base / "temp" / f"tile {colour}.png").unlink()
    frontend.load({"1": {"class_type": "IterISSave", "inputs": {}}}, "elsewhere")
    frontend.load(saved, "after a restart")
    page.wait_for_function(loaded)
    frontend.show(1, left=500, top=60)
    picture(frontend, "slider_kept")
    assert page.locator(".iteris-forgotten").count() == 0
    assert page.locator(".iteris-earlier").count() == 0
    frontend.set_widgets(1, seed=4)
    frontend.keep()
    page.locator(".iteris-slider .iteris-earlier").wait_for()
    frontend.load(saved, "another tab")
    frontend.begin("kept again")
    # this page still takes the server to have its pictures
    frontend.executed(1, output, run="kept again")
    page.wait_for_function(loaded)
    assert [error for error in frontend.errors if "404" not in error] == []


def test_another_browser_says_that_the_pictures_are_not_there(
    frontend, open_frontend, output, server
):
    """Once the server has lost them, whether or not it knows their run."""
    frontend.load(compare_of(91), "in this browser")
    prompt = frontend.prompt()
    frontend.begin("of_91")
    frontend.executed(1, output, run="of_91")
    frontend.page.wait_for_function("app.graph.getNodeById(1).properties.iteris_ran?.run")
    saved = frontend.workflow()
    other = open_frontend()
    told = other.page.locator(".iteris-text > .iteris-forgotten")
    other.know("of_91", prompt, {"1": output})
    for colour in COLOURS.values():
        (server.base / "temp" / f"tile {colour}.png").unlink()
    said = "Pictures of this result are not here: run Compare."
    other.load(saved, "in another one")
    expect(told).to_have_text(said)
    assert not other.page.locator(".iteris-slider").is_visible()
    other.forget("of_91")
    other.load(saved, "after a restart")
    expect(told).to_contain_text("The server no longer has the result of the last run")
    widgets = saved["nodes"][0]["widgets_values"]
    widgets[widgets.index(91)] = 92
    other.load(saved, "and with another seed")
    expect(told).to_have_text(said)
    assert [error for error in other.errors if "404" not in error] == []


def test_pictures_go_into_a_subgraph_and_out_of_it(in_renderer, output):
    """The frontend makes their node anew, with another id; so does a page that is opened anew."""
    frontend = in_renderer
    page = frontend.page
    drawn = page.locator(".iteris-drawn >> visible=true")
    frontend.load(compare_of(41), "into a subgraph")
    frontend.begin("of_41")
    frontend.executed(1, output, run="of_41")
    frontend.pictures_kept(1)
    outer = frontend.into_subgraph(1, show=True)
    expect(drawn).to_have_count(2)
    frontend.keep()
    frontend.noted(page.evaluate("id => app.graph.getNodeById(id).subgraph.id", outer))
    frontend.open()
    page.evaluate(
        """id => {
            const { subgraph } = app.graph.getNodeById(id);
            app.canvas.setGraph(subgraph);
            app.canvas.centerOnNode(subgraph.nodes[0]);
        }""",
        outer,
    )
    expect(drawn).to_have_count(2)
    page.evaluate(
        """id => {
            app.canvas.setGraph(app.graph);
            app.graph.unpackSubgraph(app.graph.getNodeById(id));
            app.canvas.centerOnNode(app.graph.nodes[0]);
        }""",
        outer,
    )
    expect(drawn).to_have_count(2)
    assert page.locator(".iteris-earlier").count() == 0
    assert frontend.errors == []


def test_what_the_browser_keeps_has_an_address_while_the_page_has_the_picture(frontend):
    """Each address holds a picture's bytes."""
    page = frontend.page
    held, left = page.evaluate(
        """async () => {
            const { href } = document.querySelector("link[href$='/iteris.css']");
            const { addressOf } = await import(new URL("./browser_store.js", href));
            const text = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>';
            const drawn = () => new Blob([text], { type: "image/svg+xml" });
            window.held = drawn();
            return [addressOf(window.held), addressOf(drawn())];
        }"""
    )
    is_there = """src => new Promise((told) => {
        const [onload, onerror] = [() => told(true), () => told(false)];
        Object.assign(new Image(), { onload, onerror, src });
    })"""
    for _ in range(100):
        page.request_gc()
        if not page.evaluate(is_there, left):
            break
    assert not page.evaluate(is_there, left)
    assert page.evaluate(is_there, held)
