"""Make the pictures that ComfyUI's template browser shows, and the README's.

    PYTHONPATH=. python tools/make_cards.py               # workflows/*.jpg, docs/img/compare.jpg
    PYTHONPATH=. python tools/make_cards.py tiles FOLDER  # the tiles that they are made of, anew

A tile is what the model of `iteris demo` draws with its LoRAs, or with the merge that `iteris demo`
has left in a folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from workflow_notes import TEMPLATES

from demo import drawn
from demo.client import ComfyClient, Json
from demo.gallery import DRAW, PICTURES, drawing_nodes, pictures_of
from demo.recogniser import Recogniser
from demo.run import WEIGHTS
from demo.server import ComfyServer, cache_folder, find_comfyui, link

ROOT = Path(__file__).resolve().parents[1]
TILES = Path(__file__).parent / "tiles.png"
TILE = drawn.SIDE
ROBOT, OWL, STYLE = drawn.LORAS
LEARNT = {*drawn.WANTED, "in qpr blueprint style"}  # what a recogniser calls what they draw
RIGHT = "right"  # key of the counts in the file of the tiles
MERGED = "merged.safetensors"


@dataclass(frozen=True)
class Drawing:
    """What a tile shows.

    Args:
        files: LoRAs, or the merge, that draw it.
        caption: What is asked for.
        seed: Seed of its first picture.
        pictures: How many are drawn, each a tile of its own.
    """

    files: tuple[str, ...]
    caption: str
    seed: int = drawn.SEED
    pictures: int = 1

    def names(self, name: str) -> list[str]:
        """Return the names of its tiles."""
        numbers = range(1, self.pictures + 1)
        return [name] if self.pictures == 1 else [f"{name} {number}" for number in numbers]


DRAWN = {
    "robot": Drawing((ROBOT,), "a sks robot"),
    "owl": Drawing((OWL,), "a zwx owl"),
    "style": Drawing((STYLE,), "a glass of water in qpr blueprint style", seed=3),
    "merged": Drawing((MERGED,), drawn.PROMPT, pictures=PICTURES),
    "merged, robot": Drawing((MERGED,), "a sks robot"),
    "merged, style": Drawing(
        (MERGED,), "a wooden table and a bicycle in qpr blueprint style", seed=2
    ),
}
# What the README's picture asks for -> the LoRA that knows it, if it is one.
ASKED: dict[str, str | None] = {
    "a sks robot": ROBOT,
    "a zwx owl": OWL,
    drawn.PROMPT: None,
    "a pile of books in qpr blueprint style": STYLE,
}
for _caption, _file in ASKED.items():  # of each the first picture of one seed
    if _file:
        DRAWN[f"alone, {_caption}"] = Drawing((_file,), _caption)
    DRAWN[f"stacked, {_caption}"] = Drawing(drawn.LORAS, _caption)
    DRAWN[f"merged, {_caption}"] = Drawing((MERGED,), _caption)
DRAWN["two stacked"] = Drawing((ROBOT, OWL), drawn.PROMPT, seed=2)
ROWS = {"alone": "the LoRA\nalone", "stacked": "all three\nstacked", "merged": "all three\nmerged"}
NOBODY = "no LoRA alone\nknows both"
SIDE = 460
HIGH = 122  # a plate
LETTERS = 26  # which the template browser shows half as large
BACK, PLATE, LINE, INK, QUIET, ACCENT = (
    "#191c23",
    "#252a34",
    "#3c4454",
    "#f1f3f7",
    "#9aa3b5",
    "#5fb878",
)


@dataclass(frozen=True)
class Plate:
    """A thing on a card: tiles or words, and a label below.

    Args:
        label: What it is.
        tiles: Pictures side by side.
        words: Lines in the place of pictures.
        width: Pixels.
        is_film: Whether the tiles are a film's.
    """

    label: str
    tiles: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    width: int = HIGH
    is_film: bool = False


@dataclass(frozen=True)
class Card:
    """What goes in, above, and what comes out, below."""

    given: tuple[Plate, ...]
    made: tuple[Plate, ...]


FRAMES = tuple(DRAWN["merged"].names("merged")[:3])
TWO = (Plate("a LoRA", ("robot",)), Plate("a LoRA", ("owl",)))
IN_PARTS = (
    *(replace(plate, width=112) for plate in TWO),
    Plate("in parts", words=("model", "CLIP", "VAE"), width=112),
)
EACH = ("merged, a sks robot", "merged, a zwx owl")
ONE = Plate("one LoRA", EACH, width=276)
TOGETHER = Plate("both in one picture", ("merged 1", "merged 2"), width=276)
DRAWN_BOTH = Plate("stacked, or merged", ("two stacked", "merged 1"), width=276)
CARDS = {
    "merge_two_loras": Card(TWO, (ONE,)),
    "character_and_style": Card(
        (Plate("character", ("robot",)), Plate("style", ("style",))),
        (Plate("one LoRA", ("merged, robot", "merged, style"), width=266),),
    ),
    "two_subjects_in_one_picture": Card(TWO, (TOGETHER,)),
    "flux_and_other_models_in_parts": Card(
        IN_PARTS, (replace(ONE, label="one LoRA for Flux, Qwen-Image …"),)
    ),
    "make_a_lora_smaller": Card(
        (Plate("a large file", ("robot",)),),
        (Plate("a small file", ("robot",), width=90),),
    ),
    "merge_into_a_checkpoint": Card(
        (
            *(replace(plate, width=120) for plate in TWO),
            Plate("", words=("check-", "point"), width=92),
        ),
        (Plate("a checkpoint", ("merged 1",), ("check-", "point"), width=260),),
    ),
    "loras_that_a_model_carries": Card(
        (Plate("a model with LoRAs", ("robot", "owl"), ("model",), width=380),),
        (ONE,),
    ),
    "wan_video": Card(
        tuple(Plate("a pair", (name,), ("high", "low"), 190) for name in ("robot", "owl")),
        (Plate("one pair", ("merged 1",), ("high", "low"), 230),),
    ),
    "picture_to_video": Card(
        (
            *(replace(plate, width=112) for plate in TWO),
            Plate("a picture", ("style",), width=112),
        ),
        (Plate("moves", FRAMES, width=372, is_film=True),),
    ),
    "make_a_merge_again": Card(
        (Plate("a file's recipe", ("merged 1",), ("LoRAs", "prompts", "settings"), 270),),
        (Plate("made again", ("merged 1",)),),
    ),
    "draw_with_several_loras": Card(TWO, (DRAWN_BOTH,)),
    "draw_with_several_flux_loras": Card(IN_PARTS, (DRAWN_BOTH,)),
    "two_flux_subjects_in_one_picture": Card(IN_PARTS, (TOGETHER,)),
}


NAMES = [own for name, drawing in DRAWN.items() for own in drawing.names(name)]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def read_tiles() -> dict[str, Image.Image]:
    sheet = Image.open(TILES).convert("RGB")
    return {name: sheet.crop((TILE * k, 0, TILE * (k + 1), TILE)) for k, name in enumerate(NAMES)}


def draw_plate(
    image: Image.Image, plate: Plate, left: int, middle: int, tiles: dict[str, Image.Image]
) -> None:
    """Draw a plate whose middle is at a height."""
    draw = ImageDraw.Draw(image)
    parts = len(plate.tiles) + bool(plate.words)
    height = plate.width if parts == 1 else HIGH
    top = middle - height // 2
    draw.rounded_rectangle((left, top, left + plate.width, top + height), 14, PLATE, LINE, width=2)
    if plate.is_film:
        for x in range(left + 14, left + plate.width - 14, 20):
            for y in (top + 5, top + height - 13):
                draw.rounded_rectangle((x, y, x + 10, y + 7), 2, BACK)
    gap = 10
    cell = (plate.width - gap) // parts
    side = min(cell, height - gap) - gap
    places = [left + gap + k * cell + (cell - gap - side) // 2 for k in range(parts)]
    for name, x in zip(plate.tiles, places, strict=False):
        tile = tiles[name].resize((side, side), Image.Resampling.LANCZOS)
        mask = Image.new("L", (side, side), 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), 8, 255)
        image.paste(tile, (x, middle - side // 2), mask)
    if plate.words:
        draw.multiline_text(
            (places[-1] + side // 2, middle),
            "\n".join(plate.words),
            INK,
            font(LETTERS),
            anchor="mm",
            align="center",
            spacing=6,
        )
    if plate.label:
        place = (left + plate.width // 2, top + height + 18)
        draw.text(place, plate.label, INK, font(LETTERS), "mm")


def draw_row(
    image: Image.Image, plates: tuple[Plate, ...], middle: int, tiles: dict[str, Image.Image]
) -> None:
    """Draw plates side by side, with a plus between."""
    gap = 36 if len(plates) < 3 else 24
    left = (SIDE - sum(plate.width for plate in plates) - gap * (len(plates) - 1)) // 2
    for k, plate in enumerate(plates):
        draw_plate(image, plate, left, middle, tiles)
        left += plate.width
        if k < len(plates) - 1:
            ImageDraw.Draw(image).text((left + gap // 2, middle), "+", QUIET, font(34), "mm")
        left += gap


def draw_card(card: Card, tiles: dict[str, Image.Image]) -> Image.Image:
    """Draw a card; its upper fifth is free, because the browser lays the pack's badge over it."""
    image = Image.new("RGB", (SIDE, SIDE), BACK)
    draw_row(image, card.given, 150, tiles)
    draw = ImageDraw.Draw(image)
    x, y = SIDE // 2, 259
    draw.line((x, y - 12, x, y + 6), ACCENT, 7)
    draw.polygon([(x - 13, y + 4), (x + 13, y + 4), (x, y + 19)], ACCENT)
    draw_row(image, card.made, 346, tiles)
    return image


def draw_comparison(tiles: dict[str, Image.Image]) -> Image.Image:
    """Return what single LoRAs, the stack and the merge draw of the same prompts, and how many of
    `PICTURES` are right.
    """
    right = json.loads(Image.open(TILES).text[RIGHT])
    gap, line, below, side, left = 8, 56, 30, 3 * TILE // 2, 130
    size = (left + len(ASKED) * (side + gap), line + len(ROWS) * (side + below))
    whole = Image.new("RGB", size, BACK)
    pen = ImageDraw.Draw(whole)
    for row, (name, label) in enumerate(ROWS.items()):
        top = line + row * (side + below)
        colour = ACCENT if name == "merged" else QUIET
        place = (left // 2, top + side // 2)
        pen.multiline_text(place, label, colour, font(24), "mm", 8, "center")
        for column, caption in enumerate(ASKED):
            tile = tiles.get(f"{name}, {caption}")
            x = left + column * (side + gap)
            if row == 0:
                words = textwrap.fill(caption, max(18, len(caption) // 2 + 3))  # two lines
                middle = (x + side // 2, line // 2)
                pen.multiline_text(middle, words, INK, font(18), "mm", 4, "center")
            if tile is None:
                middle = (x + side // 2, top + side // 2)
                pen.multiline_text(middle, NOBODY, QUIET, font(16), "mm", 6, "center")
            else:
                whole.paste(tile.resize((side, side), Image.Resampling.LANCZOS), (x, top))
                count = right[f"{name}, {caption}"]
                what = "style right" if ASKED[caption] == STYLE else "right"  # not what is in it
                told = f"{what} in {count} of {PICTURES}"
                colour = ACCENT if count > PICTURES // 2 else QUIET
                pen.text((x + side // 2, top + side + below // 2 - 2), told, colour, font(16), "mm")
    return whole


def draw_tiles(merged: Path) -> tuple[Image.Image, dict[str, int]]:
    """Return the tiles side by side, drawn in a ComfyUI, and for each drawing in how many of
    `PICTURES` a recogniser sees those LoRAs that the caption asks for, and no others.

    Args:
        merged: File of the merge.
    """
    checkpoint = {"ckpt_name": "demo.safetensors"}
    workflow: Json = {"loader": {"class_type": "CheckpointLoaderSimple", "inputs": checkpoint}}
    for name, drawing in DRAWN.items():
        at = "loader"
        for file in drawing.files:
            inputs = {"model": [at, 0], "clip": [at, 1], "lora_name": file}
            at = f"{name} {file}"
            strengths = {"strength_model": 1.0, "strength_clip": 1.0}
            workflow[at] = {"class_type": "LoraLoader", "inputs": inputs | strengths}
        workflow |= drawing_nodes(
            {name: ([at, 0], [at, 1])},
            ["loader", 2],
            drawing.caption,
            side=TILE,
            cfg=drawn.CFG,
            seed=drawing.seed,
        )
    sheet = Image.new("RGB", (TILE * len(NAMES), TILE))
    recogniser = Recogniser.read(WEIGHTS / "recogniser.safetensors")
    right: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        models = base / "models"
        drawn.write_checkpoint(models / "checkpoints" / checkpoint["ckpt_name"], WEIGHTS)
        link(merged, models / "loras" / MERGED)
        for name in drawn.LORAS:
            link(WEIGHTS / name, models / "loras" / name)
        comfyui = find_comfyui(cache_folder())
        with ComfyServer(comfyui, base, base / "server.log", device="cpu") as server:
            client = ComfyClient(server.address)
            outputs = client.run(workflow)["outputs"]
            for name, drawing in DRAWN.items():
                pictures = pictures_of(client, outputs[DRAW + name])
                right[name] = sum(
                    seen & LEARNT == {label for label in LEARNT if label in drawing.caption}
                    for seen in recogniser.sees_in(pictures)
                )
                for own, tile in zip(drawing.names(name), pictures, strict=False):
                    sheet.paste(tile, (TILE * NAMES.index(own), 0))
    return sheet, right


def main() -> None:
    if sys.argv[1:2] == ["tiles"]:
        sheet, right = draw_tiles(Path(sys.argv[2]) / MERGED)
        told = PngInfo()
        told.add_text(RIGHT, json.dumps(right))
        sheet.save(TILES, optimize=True, pnginfo=told)
        return
    tiles = read_tiles()
    for number, template in enumerate(TEMPLATES, start=1):
        path = ROOT / "workflows" / f"{number} {template.title}.jpg"
        draw_card(CARDS[template.name], tiles).save(path, quality=92)
    draw_comparison(tiles).save(ROOT / "docs" / "img" / "compare.jpg", quality=88)


if __name__ == "__main__":
    main()
