"""Make the pictures that ComfyUI's template browser shows, and the README's.

    python tools/make_cards.py               # workflows/*.jpg, docs/img/compare.jpg
    python tools/make_cards.py tiles FOLDER  # the tiles that they are made of, anew

A tile is what the model of `iteris demo` draws with its LoRAs, or with the merge that `iteris demo`
has left in a folder.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
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
MERGED = "merged.safetensors"
# name -> (files of LoRAs, caption, seed); of those with a 0 there are four, for the comparison
DRAWN = {
    "robot": ([ROBOT], "a sks robot", drawn.SEED),
    "owl": ([OWL], "a zwx owl", drawn.SEED),
    "cat": ([], "a black cat", drawn.SEED),
    "style": ([STYLE], "a glass of water in qpr blueprint style", 3),
    "merged 0": ([MERGED], drawn.PROMPT, drawn.SEED),
    "stacked 0": (list(drawn.LORAS), drawn.PROMPT, drawn.SEED),
    "merged, robot": ([MERGED], "a sks robot", drawn.SEED),
    "merged, owl and cat": ([MERGED], "a zwx owl and a black cat", drawn.SEED),
    "merged, style": ([MERGED], "a wooden table and a bicycle in qpr blueprint style", 2),
}
SIDE = 460
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
    """

    label: str
    tiles: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    width: int = 128


@dataclass(frozen=True)
class Card:
    """What goes in, above, and what comes out, below."""

    given: tuple[Plate, ...]
    made: tuple[Plate, ...]


TWO = (Plate("a LoRA", ("robot",)), Plate("a LoRA", ("owl",)))
ONE = Plate("one LoRA", ("merged 0",))
CARDS = {
    "merge_two_loras": Card(TWO, (ONE,)),
    "character_and_style": Card(
        (Plate("character", ("robot",)), Plate("style", ("style",))),
        (Plate("one LoRA", ("merged, robot", "merged, style"), width=266),),
    ),
    "three_subjects_in_one_picture": Card(
        tuple(Plate(name, (name,), width=116) for name in ("robot", "owl", "cat")),
        (Plate("together", ("merged 0", "merged, owl and cat"), width=276),),
    ),
    "flux_and_other_models_in_parts": Card(
        (
            Plate("", words=("model",), width=110),
            Plate("Flux, Z-Image, Qwen-Image", words=("text", "encoder"), width=110),
            Plate("", words=("VAE",), width=110),
        ),
        (ONE,),
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
        (Plate("a checkpoint", ("merged 0",), ("check-", "point"), width=260),),
    ),
    "loras_that_a_model_carries": Card(
        (Plate("a model with LoRAs", ("robot", "owl"), ("model",), width=380),),
        (ONE,),
    ),
    "wan_video": Card(
        (Plate("LoRA pairs", ("robot", "owl"), ("high", "low"), 300),),
        (Plate("a pair, merged", ("merged 0",), ("high", "low"), 270),),
    ),
    "picture_to_video": Card(
        (Plate("LoRA pairs", ("robot", "owl"), ("first", "picture"), 300),),
        (Plate("a pair, merged", ("merged 0",), ("high", "low"), 270),),
    ),
    "make_a_merge_again": Card(
        (Plate("a file's recipe", ("merged 0",), ("LoRAs", "prompts", "settings"), 270),),
        (Plate("made again", ("merged 0",)),),
    ),
}


def names_of(name: str) -> list[str]:
    """Return the names of the tiles that are drawn together."""
    if not name.endswith("0"):
        return [name]
    return [f"{name[:-1]}{k}" for k in range(PICTURES)]


NAMES = [own for name in DRAWN for own in names_of(name)]


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
    height = plate.width if parts == 1 else 128
    top = middle - height // 2
    draw.rounded_rectangle((left, top, left + plate.width, top + height), 14, PLATE, LINE, width=2)
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
            font(24),
            anchor="mm",
            align="center",
            spacing=6,
        )
    if plate.label:
        draw.text((left + plate.width // 2, top + height + 15), plate.label, INK, font(22), "mm")


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
    draw_row(image, card.given, 161, tiles)
    draw = ImageDraw.Draw(image)
    x, y = SIDE // 2, 269
    draw.line((x, y - 12, x, y + 6), ACCENT, 7)
    draw.polygon([(x - 13, y + 4), (x + 13, y + 4), (x, y + 19)], ACCENT)
    draw_row(image, card.made, 362, tiles)
    return image


def draw_comparison(tiles: dict[str, Image.Image]) -> Image.Image:
    """Return the LoRAs, each alone, and next to them what the stack and the merge draw from the
    same seeds, with what the recogniser sees in these.
    """
    recogniser = Recogniser.read(WEIGHTS / "recogniser.safetensors")
    gap, line, large = 8, 32, 3 * TILE // 2
    alone = {"robot": "a sks robot", "owl": "a zwx owl", "style": "qpr blueprint style"}
    column = TILE + 8 * gap
    block = 2 * large + gap
    size = (column + 2 * block + 6 * gap, line + len(alone) * (TILE + line))
    whole = Image.new("RGB", size, BACK)
    pen = ImageDraw.Draw(whole)

    def show(name: str, left: int, top: int, side: int) -> None:
        whole.paste(tiles[name].resize((side, side), Image.Resampling.LANCZOS), (left, top))

    pen.text((column // 2, line // 2), "each LoRA alone", INK, font(20), "mm")
    for k, (name, label) in enumerate(alone.items()):
        top = line + k * (TILE + line)
        show(name, (column - TILE) // 2, top, TILE)
        pen.text((column // 2, top + TILE + line // 2 - 3), label, QUIET, font(18), "mm")
    pen.line((column, gap, column, size[1] - gap), LINE, 2)
    for k, name in enumerate(("stacked", "merged")):
        left = column + 2 * gap + k * (block + 2 * gap)
        middle = left + block // 2
        pen.text((middle, line // 2), f"all three {name}", INK, font(20), "mm")
        names = names_of(f"{name} 0")
        for number, own in enumerate(names):
            x, y = number % 2 * (large + gap), number // 2 * (large + gap)
            show(own, left + x, line + y, large)
        seen = recogniser.sees_in([tiles[own] for own in names])
        right = sum(set(drawn.WANTED) <= set(labels) for labels in seen)
        colour = ACCENT if right > PICTURES // 2 else QUIET
        told = f'"{drawn.PROMPT}"\na recogniser sees both in {right} of {PICTURES}'
        place = (middle, (line + block + size[1]) // 2)
        pen.multiline_text(place, told, colour, font(20), "mm", 8, "center")
    return whole


def draw_tiles(merged: Path) -> Image.Image:
    """Return the tiles side by side, drawn in a ComfyUI.

    Args:
        merged: File of the merge.
    """
    checkpoint = {"ckpt_name": "demo.safetensors"}
    workflow: Json = {"loader": {"class_type": "CheckpointLoaderSimple", "inputs": checkpoint}}
    for name, (files, caption, seed) in DRAWN.items():
        at = "loader"
        for file in files:
            inputs = {"model": [at, 0], "clip": [at, 1], "lora_name": file}
            at = f"{name} {file}"
            strengths = {"strength_model": 1.0, "strength_clip": 1.0}
            workflow[at] = {"class_type": "LoraLoader", "inputs": inputs | strengths}
        workflow |= drawing_nodes(
            {name: ([at, 0], [at, 1])},
            ["loader", 2],
            caption,
            side=TILE,
            cfg=drawn.CFG,
            seed=seed,
        )
    sheet = Image.new("RGB", (TILE * len(NAMES), TILE))
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
            for name in DRAWN:
                for own, tile in zip(
                    names_of(name), pictures_of(client, outputs[DRAW + name]), strict=False
                ):
                    sheet.paste(tile, (TILE * NAMES.index(own), 0))
    return sheet


def main() -> None:
    if sys.argv[1:2] == ["tiles"]:
        draw_tiles(Path(sys.argv[2]) / MERGED).save(TILES, optimize=True)
        return
    tiles = read_tiles()
    for number, template in enumerate(TEMPLATES, start=1):
        path = ROOT / "workflows" / f"{number} {template.title}.jpg"
        draw_card(CARDS[template.name], tiles).save(path, quality=92)
    draw_comparison(tiles).save(ROOT / "docs" / "img" / "compare.jpg", quality=88)


if __name__ == "__main__":
    main()
