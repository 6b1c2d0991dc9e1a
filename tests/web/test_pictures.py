"""Compare's pictures: two of a row with a divider between them, and all of them, small."""

import io

import av
import pytest
from browser import OF
from PIL import Image
from playwright.sync_api import expect

COLOURS = {"base model": (200, 0, 0), "<b>dog</b>": (200, 200, 0), "stacked": (0, 160, 0)}
COLOURS |= {"merged": (0, 0, 200)}
PROMPTS = ["<img src=x onerror=window.ran=1> and a cat", "a  dog"]
SIZE = (96, 64)


@pytest.fixture
def output(server):
    """Return what a run tells, with pictures of one colour each."""
    folder = server.base / "temp"
    folder.mkdir(exist_ok=True)
    for colour in COLOURS.values():
        Image.new("RGB", SIZE, colour).save(folder / f"tile {colour}.png")

    def file(name):
        return {"filename": f"tile {COLOURS[name]}.png", "subfolder": "", "type": "temp"}

    def row(prompt, shares, *names):
        files = [file(name) for name in names]
        return {"prompt": prompt, "names": names, "files": files, "shares": shares}

    of_both = {"<b>dog</b>": 61.4, "cat": 7}
    rows = [
        row(
            PROMPTS[0],
            [None, of_both, {"<b>dog</b>": 87.6, "cat": 93}],
            "base model",
            "stacked",
            "merged",
        ),
        row(PROMPTS[1], [None, None, None], "<b>dog</b>", "stacked", "merged"),
    ]
    whole = file("merged")
    return {"of": OF, "pictures": rows, "seconds": 3.0, "whole": whole, "notes": []}


class Compare:
    """A Compare alone in a page, with pictures."""

    def __init__(self, frontend, output):
        self.frontend = frontend
        self.page = frontend.page
        frontend.load({"1": {"class_type": "IterISCompare", "inputs": {}}}, "compare")
        frontend.show(1, left=500, top=60)
        self.size = frontend.size_of(1)
        frontend.executed(1, output)
        frontend.pictures_shown()
        self.pair = self.page.locator(".iteris-pair")
        self.divider = self.pair.locator("input")
        self.left, self.right = (self.page.locator("select").nth(k) for k in range(2))
        self.show()

    def show(self):
        """Bring the two pictures into sight, at their full size; hosts show more or fewer inputs above them."""
        self.frontend.show(1, left=500, top=60)
        self.frontend.show(1, left=500, top=60 + 150 - self.pair.bounding_box()["y"])

    def seen(self, *places):
        """Return who drew what is seen at places of the picture's width."""
        image = Image.open(io.BytesIO(self.pair.screenshot())).convert("RGB")
        width = image.height * SIZE[0] / SIZE[1]  # black beside it
        start = (image.width - width) / 2
        names = {colour: name for name, colour in COLOURS.items()}
        found = [
            image.getpixel((int(start + width * place), image.height // 3)) for place in places
        ]
        return [names.get(colour) for colour in found]

    def chosen(self):
        """Return the sides, and the names below the small pictures that are marked."""
        marked = self.page.locator(".iteris-thumb[aria-pressed=true]").all_inner_texts()
        sides = [side.locator("option:checked").text_content() for side in (self.left, self.right)]
        return sides, marked

    def thumb(self, row, name):
        return self.page.locator(f".iteris-thumb[data-row='{row}']", has_text=name)

    def shares(self):
        return self.page.locator(".iteris-shares").all_inner_texts()


def test_a_divider_is_dragged_between_two_pictures(in_renderer, picture, output):
    frontend = in_renderer
    compare = Compare(frontend, output)
    page, divider = frontend.page, compare.divider
    assert frontend.size_of(1) == compare.size, "the node does not grow"
    assert compare.chosen() == (["stacked", "merged"], ["stacked", "merged"])
    assert compare.seen(0.1, 0.4, 0.6, 0.9) == ["stacked", "stacked", "merged", "merged"]
    picture(frontend, "compare")
    box = compare.pair.bounding_box()
    pos = page.evaluate("[...app.graph.getNodeById(1).pos]")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    assert float(divider.input_value()) == pytest.approx(70, abs=3)
    assert compare.seen(0.1, 0.6) == ["stacked", "stacked"]
    assert page.evaluate("[...app.graph.getNodeById(1).pos]") == pos, "the node stays"
    before = float(divider.input_value())
    divider.press("ArrowLeft")
    assert before - 12 <= float(divider.input_value()) < before
    assert frontend.errors == []


def test_pictures_are_chosen_by_name_and_by_their_small_ones(in_renderer, output, picture):
    frontend = in_renderer
    compare = Compare(frontend, output)
    compare.left.select_option(label="base model")
    frontend.pictures_shown()
    assert compare.seen(0.1, 0.9) == ["base model", "merged"]
    compare.thumb(1, "<b>dog</b>").click()
    frontend.pictures_shown()
    assert compare.chosen() == (["<b>dog</b>", "merged"], ["<b>dog</b>", "merged"])
    compare.show()
    assert compare.seen(0.1, 0.9) == ["<b>dog</b>", "merged"]
    compare.thumb(1, "stacked").click()
    assert compare.chosen()[0] == ["stacked", "merged"]
    compare.thumb(0, "merged").click()
    assert compare.chosen()[0] == ["stacked", "merged"], "of the other prompt"
    prompts = frontend.page.locator(".iteris-drawn-by").all_text_contents()
    assert prompts == PROMPTS
    picture(frontend, "compare_chosen")
    assert frontend.page.evaluate("window.ran ?? 0") == 0
    assert frontend.errors == []


def test_shares_are_numbers_below_the_pictures(frontend, output):
    compare = Compare(frontend, output)
    assert compare.shares() == ["61 of <b>dog</b>7 of cat", "88 of <b>dog</b>93 of cat"]
    compare.left.select_option(label="base model")
    assert compare.shares() == ["", "88 of <b>dog</b>93 of cat"]
    compare.thumb(1, "merged").click()
    assert compare.shares() == ["", ""]
    assert frontend.errors == []


def test_what_it_is_of_and_its_notes_stand_above_the_pictures(frontend, output):
    output["notes"] = [{"code": "host", "text": "A note.", "warning": False}]
    Compare(frontend, output)
    first, last = frontend.page.locator(".iteris-result div").all_inner_texts()
    assert first.startswith("first + ink at 0.8, Balanced, together, rank 32")
    assert last == "A note."
    assert frontend.errors == []


def test_both_pictures_fill_the_screen(in_renderer, picture, output):
    frontend = in_renderer
    compare = Compare(frontend, output)
    page = frontend.page
    full = page.get_by_role("button", name="Full screen", exact=True)
    full.click()
    page.wait_for_function("document.fullscreenElement?.className === 'iteris-frame'")
    frontend.settle()
    picture(frontend, "compare_full_screen")
    large, screen = compare.pair.bounding_box(), page.viewport_size
    assert large["width"] > 0.9 * screen["width"] and large["height"] > 0.85 * screen["height"]
    compare.left.select_option(label="base model")
    frontend.pictures_shown()
    assert compare.seen(0.1, 0.9) == ["base model", "merged"]
    page.get_by_role("button", name="Close full screen").click()
    page.wait_for_function("!document.fullscreenElement")
    frontend.settle()
    assert frontend.size_of(1) == compare.size
    assert frontend.errors == []


def frames_of(path):
    """Return the first picture of a video, and the one in its middle."""
    with av.open(str(path)) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    assert frames[0].size == SIZE
    return frames[0], frames[len(frames) // 2]


def near(colour, other):
    """Return whether two colours are one but for what a codec does."""
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) < 40


def test_a_video_of_the_divider_is_saved(frontend, output):
    compare = Compare(frontend, output)
    compare.thumb(1, "<b>dog</b>").click()
    frontend.pictures_shown()
    video = frontend.page.locator(".iteris-video")
    with frontend.page.expect_download() as saved:
        video.click()
        expect(video).to_have_text("Recording…")
    expect(video).to_have_text("Save as video")
    expect(video).to_be_enabled()
    assert saved.value.suggested_filename.startswith("b dog b - merged.")
    first, middle = frames_of(saved.value.path())
    assert near(first.getpixel((4, 8)), COLOURS["<b>dog</b>"]), "the left one, then the right one"
    assert near(middle.getpixel((SIZE[0] - 4, 8)), COLOURS["merged"])
    assert frontend.errors == []


def test_a_finger_drags_the_divider(frontend, output):
    """The page would scroll, were its touch not the divider's."""
    compare = Compare(frontend, output)
    client = frontend.page.context.new_cdp_session(frontend.page)
    box = compare.pair.bounding_box()

    def touch(kind, *shares):
        points = [{"x": box["x"] + share * box["width"], "y": box["y"] + 90} for share in shares]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.5)
    for share in (0.4, 0.3, 0.25):
        touch("touchMove", share)
    touch("touchEnd")
    frontend.settle()
    assert float(compare.divider.input_value()) == pytest.approx(25, abs=4)
    assert frontend.errors == []
