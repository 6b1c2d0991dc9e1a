"""Make the pictures that ComfyUI's template browser shows.

    python tests/web/make_cards.py          # workflows/*.jpg
    python tests/web/make_cards.py tiles    # the tiles that they are made of, anew

A tile is what the small model of the world "words" (benchmarks/worlds) draws with a LoRA or with a
merge. The tiles need that world, trained in $ITERIS_WORLD_CACHE.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from workflow_notes import TEMPLATES

ROOT = Path(__file__).resolve().parents[2]
TILES = Path(__file__).parent / "tiles.png"
TILE = 24  # pixels of a tile's side, as the small model draws it
SEED = 0
# name -> (triggers of the LoRAs, caption); several LoRAs are merged
DRAWN = {
    "triangle": (["<v5>"], "a <v5>"),
    "moon": (["<v6>"], "a <v6>"),
    "star": (["<v1>"], "a <v1>"),
    "ball": (["<v3>"], "a <v3>"),
    "style": (["<s1>"], "a heart in <s1> style"),
    "triangle, moon": (["<v5>", "<v6>"], "a <v5> and a <v6>"),
    "triangle in style": (["<v5>", "<s1>"], "a <v5> in <s1> style"),
    "star, triangle": (["<v1>", "<v3>", "<v5>"], "a <v1> and a <v5>"),
    "ball, triangle": (["<v1>", "<v3>", "<v5>"], "a <v3> and a <v5>"),
    "star, ball": (["<v1>", "<v3>", "<v5>"], "a <v1> and a <v3>"),
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
    width: int = 148


@dataclass(frozen=True)
class Card:
    """What goes in, above, and what comes out, below."""

    given: tuple[Plate, ...]
    made: tuple[Plate, ...]


TWO = (Plate("a LoRA", ("triangle",)), Plate("a LoRA", ("moon",)))
ONE = Plate("one LoRA", ("triangle, moon",))
CARDS = {
    "merge_two_loras": Card(TWO, (ONE,)),
    "character_and_style": Card(
        (Plate("character", ("triangle",)), Plate("style", ("style",))),
        (Plate("both in one", ("triangle in style",)),),
    ),
    "three_subjects_in_one_picture": Card(
        tuple(Plate("subject", (name,), width=126) for name in ("star", "ball", "triangle")),
        (Plate("together", ("star, triangle", "ball, triangle"), width=276),),
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
        (Plate("a large file", ("triangle",)),),
        (Plate("a small file", ("triangle",), width=90),),
    ),
    "merge_into_a_checkpoint": Card(
        (
            *(replace(plate, width=134) for plate in TWO),
            Plate("", words=("check-", "point"), width=92),
        ),
        (Plate("a checkpoint", ("triangle, moon",), ("check-", "point"), width=260),),
    ),
    "loras_that_a_model_carries": Card(
        (Plate("a model with LoRAs", ("triangle", "moon"), ("model",), width=390),),
        (ONE,),
    ),
    "make_a_merge_again": Card(
        (Plate("a file's recipe", ("triangle, moon",), ("LoRAs", "prompts", "settings"), 270),),
        (Plate("made again", ("triangle, moon",)),),
    ),
}


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def read_tiles() -> dict[str, Image.Image]:
    sheet = Image.open(TILES).convert("RGB")
    return {name: sheet.crop((TILE * k, 0, TILE * (k + 1), TILE)) for k, name in enumerate(DRAWN)}


def draw_plate(
    image: Image.Image, plate: Plate, left: int, middle: int, tiles: dict[str, Image.Image]
) -> None:
    """Draw a plate whose middle is at a height."""
    draw = ImageDraw.Draw(image)
    parts = len(plate.tiles) + bool(plate.words)
    height = plate.width if parts == 1 else 140
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
        draw.text((left + plate.width // 2, top + height + 20), plate.label, INK, font(24), "mm")


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
    image = Image.new("RGB", (SIDE, SIDE), BACK)
    draw_row(image, card.given, 96, tiles)
    draw = ImageDraw.Draw(image)
    x, y = SIDE // 2, 226
    draw.line((x, y - 18, x, y + 10), ACCENT, 7)
    draw.polygon([(x - 15, y + 6), (x + 15, y + 6), (x, y + 24)], ACCENT)
    draw_row(image, card.made, 342, tiles)
    return image


def draw_tiles() -> Image.Image:
    """Return the tiles side by side, drawn by the small model."""
    from benchmarks.worlds.bench import load_bench
    from benchmarks.worlds.methods import Recipe, merged

    bench = load_bench("words")
    together = Recipe("together", calibration={"scene_weight": 0.3})
    sheet = Image.new("RGB", (TILE * len(DRAWN), TILE))
    for k, (triggers, caption) in enumerate(DRAWN.values()):
        if len(triggers) == 1:
            adapter = bench.lora(triggers[0]).adapter
        else:
            adapter, *_ = merged(bench, together, tuple(triggers), "usual", SEED)
        (picture,) = bench.sample(adapter, [caption], [SEED])
        levels = ((picture.permute(1, 2, 0) + 1) * 127.5).round().byte()
        sheet.paste(Image.fromarray(levels.numpy()), (TILE * k, 0))
    return sheet


def main() -> None:
    if sys.argv[1:] == ["tiles"]:
        draw_tiles().save(TILES)
        return
    tiles = read_tiles()
    for number, template in enumerate(TEMPLATES, start=1):
        path = ROOT / "workflows" / f"{number} {template.title}.jpg"
        draw_card(CARDS[template.name], tiles).save(path, quality=92)


if __name__ == "__main__":
    main()
