"""The slider of Compare: two of its pictures, and a divider that the user drags."""

import io

import av
import pytest
from PIL import Image

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
    frontend.load({"1": {"class_type": "IterISCompare", "inputs": {}}}, "slider")
    frontend.show(1, left=500, top=60)
    slider, pair = page.locator(".iteris-slider"), page.locator(".iteris-pair")
    prompt, left, right = (slider.locator("select").nth(number) for number in range(3))
    divider = slider.locator("input")
    assert not slider.is_visible()
    frontend.queued("a")
    frontend.send("executed", prompt_id="a", node="1", display_node="1", output=output)
    page.wait_for_function(
        "[...document.querySelectorAll('.iteris-pair img')].every((image) => image.naturalWidth)"
    )
    frontend.settle()

    def chosen():
        return [each.locator("option:checked").text_content() for each in (prompt, left, right)]

    def seen(*places):
        """Return who drew what is seen at places of the width, near the upper edge."""
        image = Image.open(io.BytesIO(pair.screenshot())).convert("RGB")
        names = {colour: name for name, colour in COLOURS.items()}
        return [names.get(image.getpixel((int(image.width * place), 8))) for place in places]

    assert chosen() == [PROMPTS[0], "stacked", "merged"]
    assert seen(0.05, 0.45, 0.55, 0.95) == ["stacked", "stacked", "merged", "merged"]
    picture(frontend, "slider")
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
    frontend.show(1, left=500, top=60)
    before = float(divider.input_value())
    divider.press("ArrowLeft")
    assert before - 12 <= float(divider.input_value()) < before
    left.select_option(label="base model")
    frontend.settle()
    assert seen(0.05, 0.95) == ["base model", "merged"]
    prompt.select_option(index=1)
    frontend.settle()
    assert chosen() == [PROMPTS[1], "stacked", "merged"], "the base model has drawn no dog"
    left.select_option(index=0)
    frontend.settle()
    assert seen(0.05, 0.95) == ["<b>dog</b>", "merged"]
    frontend.queued("b")
    frontend.send("executed", prompt_id="b", node="1", display_node="1", output=output)
    assert chosen() == [PROMPTS[1], "<b>dog</b>", "merged"], "after another run, too"
    picture(frontend, "slider_moved")
    with page.expect_download() as saved:
        slider.locator(".iteris-video").click()
    assert saved.value.suggested_filename.startswith("_b_dog__b_ - merged.")
    first, middle = frames_of(saved.value.path())
    assert near(first.getpixel((4, 8)), COLOURS["<b>dog</b>"]), "the left one, then the right one"
    assert near(middle.getpixel((SIZE[0] - 4, 8)), COLOURS["merged"])

    workflow = frontend.workflow()
    assert len(workflow["nodes"][0]["widgets_values"]) == 10
    del workflow["nodes"][0]["widgets_values"][9]  # of a version without captions
    frontend.load(workflow, "slider again")
    assert not slider.is_visible()
    assert frontend.prompt()["1"]["inputs"]["caption"] == ""
    assert page.evaluate("window.ran ?? 0") == 0
    assert frontend.errors == []
