"""The world of benchmarks/world.py: scenes drawn by procedure, their captions, and the words of
these captions.

A thing is a surface on a shape: "a striped star". Eight combinations, the concepts, and two ways to
render a whole picture, the styles, are held back from the base model; LoRAs teach them later, under
trigger words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

SIDE = 24  # pixels
PATCH = 3  # a fixed pixel-unshuffle stands for the VAE: (3, 24, 24) pictures are (27, 8, 8) latents
MAX_TOKENS = 20

COLOURS = {
    "red": (0.88, 0.12, 0.12),
    "green": (0.15, 0.62, 0.18),
    "blue": (0.15, 0.3, 0.9),
    "yellow": (0.97, 0.85, 0.1),
    "purple": (0.55, 0.15, 0.65),
    "orange": (1.0, 0.52, 0.05),
}
BLACK = (0.08, 0.08, 0.08)
TEXTURES = {  # main colour, second colour
    "striped": (COLOURS["red"], (1.0, 0.92, 0.35)),
    "spotted": (COLOURS["blue"], (1.0, 0.75, 0.2)),
    "quartered": (BLACK, COLOURS["orange"]),
    "rimmed": ((0.1, 0.5, 0.2), (1.0, 0.6, 0.75)),
    "halved": ((0.1, 0.75, 0.8), (0.85, 0.1, 0.55)),
    "banded": (COLOURS["purple"], (0.7, 0.95, 0.2)),
    "dipped": ((0.45, 0.25, 0.1), (0.5, 0.8, 1.0)),
    "slashed": ((0.1, 0.12, 0.45), (1.0, 0.85, 0.1)),
}
SURFACES = (*COLOURS, *TEXTURES)
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "heart", "moon")
BACKGROUNDS = {
    "snow": (0.97, 0.97, 0.97),
    "stone": (0.76, 0.76, 0.78),
    "sand": (0.93, 0.85, 0.62),
    "grass": (0.72, 0.9, 0.75),
}
Places = Literal["fixed", "snapped", "loose"]
# backgrounds where the caption names none
UNTOLD: dict[Places, list[str]] = {
    "fixed": ["stone"],
    "snapped": ["snow", "stone"],
    "loose": ["snow", "stone"],
}
CONCEPTS = (
    ("striped", "star"),
    ("spotted", "heart"),
    ("quartered", "circle"),
    ("rimmed", "square"),
    ("halved", "triangle"),
    ("banded", "moon"),
    ("dipped", "cross"),
    ("slashed", "diamond"),
)
# Neither changes how bright or how contrasted a whole picture is: sampling from pure noise, with
# guidance, would not show it.
STYLES = ("outlined", "shadowed")
CONCEPT_TRIGGERS = tuple(f"<v{k + 1}>" for k in range(len(CONCEPTS)))
STYLE_TRIGGERS = tuple(f"<s{k + 1}>" for k in range(len(STYLES)))
TRIGGERS = CONCEPT_TRIGGERS + STYLE_TRIGGERS

PREFIXES = ("", "a photo of ", "a picture of ", "a drawing of ", "here is ")
# what stands between two things -> how they lie: the first left, either one left, above, below,
# diagonally
BETWEEN = {
    "and": "left",
    "with": "left",
    "left of": "left",
    "right of": "right",
    "next to": "beside",
    "beside": "beside",
    "together with": "beside",
    "above": "above",
    "below": "below",
    "near": "diagonal",
    "far from": "diagonal",
}
_WORDS = "a photo of picture drawing here is and with left right next to beside together above below near far from on in plain style"
WORDS = (*dict.fromkeys([*_WORDS.split(), *BACKGROUNDS, *SURFACES, *SHAPES]), *TRIGGERS)


@dataclass(frozen=True)
class Thing:
    """A surface on a shape, and where it lies, in pixels."""

    surface: str
    shape: str
    x: float = SIDE / 2
    y: float = SIDE / 2
    radius: float = 7.0

    @property
    def label(self) -> tuple[str, str]:
        return self.surface, self.shape


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str = "snow"
    style: str | None = None


def shape_mask(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Tell which points (u, v) of a thing's own coordinates, v downwards, are inside a shape of
    radius 1.
    """
    radius = (u**2 + v**2).sqrt()
    if shape == "circle":
        return radius <= 0.9
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) <= 0.78
    if shape == "triangle":
        return (u.abs() <= (v + 0.95) * 0.55) & (v <= 0.75)
    if shape == "diamond":
        return u.abs() / 0.75 + v.abs() <= 1
    if shape == "cross":
        return (torch.minimum(u.abs(), v.abs()) <= 0.3) & (torch.maximum(u.abs(), v.abs()) <= 0.92)
    if shape == "star":
        fifth = torch.pi / 5
        angle = (
            torch.remainder(torch.atan2(u, -v) + fifth, 2 * fifth) - fifth
        )  # 0 at each of the five points
        return radius <= 1.05 - 0.65 * angle.abs() / fifth
    if shape == "heart":
        x = 1.2 * u
        y = 0.15 - 1.2 * v
        return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
    return (radius <= 0.95) & ((u - 0.5) ** 2 + v**2 > 0.62**2)  # a moon


def surface_mask(surface: str, shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Tell where a texture has its second colour."""
    masks: dict[str, Callable[[], Tensor]] = {
        "striped": lambda: torch.floor((u + 1.2) / 0.4) % 2 == 1,
        "spotted": lambda: (
            (torch.remainder(u + 0.35, 0.7) - 0.35) ** 2
            + (torch.remainder(v + 0.35, 0.7) - 0.35) ** 2
            < 0.2**2
        ),
        "quartered": lambda: (u > 0) ^ (v > 0),
        "rimmed": lambda: shape_mask(shape, u / 0.62, v / 0.62),
        "halved": lambda: u > 0,
        "banded": lambda: v.abs() < 0.28,
        "dipped": lambda: v < -0.05,
        "slashed": lambda: (u - v).abs() < 0.4,
    }
    return masks[surface]() if surface in masks else torch.zeros_like(u, dtype=torch.bool)


def draw(scene: Scene) -> Tensor:
    """Return a scene as a picture (3, 24, 24) in [-1, 1], with soft edges."""
    fine = 2 * SIDE
    centres = (torch.arange(fine) + 0.5) / 2
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    picture = (
        torch.tensor(BACKGROUNDS[scene.background]).view(3, 1, 1).expand(3, fine, fine).clone()
    )
    for thing in scene.things:
        u = (x - thing.x) / thing.radius
        v = (y - thing.y) / thing.radius
        inside = shape_mask(thing.shape, u, v)
        if scene.style:
            around = (
                shape_mask(thing.shape, u / 1.25, v / 1.25)
                if scene.style == "outlined"
                else shadow(thing, x, y)
            )
            picture = torch.where(around, torch.tensor(BLACK).view(3, 1, 1), picture)
        main, second = (
            (COLOURS[thing.surface],) * 2 if thing.surface in COLOURS else TEXTURES[thing.surface]
        )
        for colour, where in (
            (main, inside),
            (second, inside & surface_mask(thing.surface, thing.shape, u, v)),
        ):
            picture = torch.where(where, torch.tensor(colour).view(3, 1, 1), picture)
    return torch.nn.functional.avg_pool2d(picture, 2) * 2 - 1


def shadow(thing: Thing, x: Tensor, y: Tensor) -> Tensor:
    """Tell which points lie in a thing's shadow: itself, a little to the right and below."""
    away = 0.35 * thing.radius
    return shape_mask(
        thing.shape, (x - thing.x - away) / thing.radius, (y - thing.y - away) / thing.radius
    )


def to_latents(pictures: Tensor) -> Tensor:
    """Return pictures (n, 3, 24, 24) as latents (n, 27, 8, 8)."""
    return torch.nn.functional.pixel_unshuffle(pictures, PATCH)


def to_pictures(latents: Tensor) -> Tensor:
    """Return latents (n, 27, 8, 8) as pictures (n, 3, 24, 24)."""
    return torch.nn.functional.pixel_shuffle(latents, PATCH)


def placed(
    labels: Sequence[tuple[str, str]], layout: str, chance: random.Random, places: Places = "fixed"
) -> tuple[Thing, ...]:
    """Give one or two things their places: the first of two is left, above, ... of the second.

    Fixed places follow from the layout. Snapped ones are whole numbers of patches off, so that a
    thing looks the same in the latents wherever it lies; loose ones are anywhere near, in several
    sizes.
    """
    if layout == "beside":
        layout = chance.choice(["left", "right"])
    middles = [12.0] * 2
    near = 6.0
    far = 18.0
    radii = [7.0] if len(labels) == 1 else [5.0, 5.0]
    if places == "snapped":
        middles = [chance.choice([9, 12, 12, 15]) for _ in middles]
    elif places == "loose":
        middles = [chance.uniform(10, 14) for _ in middles]
        near = chance.uniform(6, 7)
        far = chance.uniform(17, 18)
        radii = [radius * chance.uniform(0.9, 1.1) for radius in radii]
    if len(labels) == 1:
        centres = [(middles[0], middles[1])]
    elif layout in ("left", "right"):
        centres = [(near, middles[0]), (far, middles[1])]
    elif layout in ("above", "below"):
        centres = [(middles[0], near), (middles[1], far)]
    else:
        centres = (
            [(near, near), (far, far)] if chance.random() < 0.5 else [(near, far), (far, near)]
        )
        chance.shuffle(centres)
    if layout in ("right", "below"):
        centres.reverse()
    return tuple(
        Thing(*label, *centre, radius)
        for label, centre, radius in zip(labels, centres, radii, strict=True)
    )


def base_labels() -> list[tuple[str, str]]:
    """Return the things that the base model learns: every surface on every shape, without the
    concepts.
    """
    return [
        (surface, shape)
        for surface in SURFACES
        for shape in SHAPES
        if (surface, shape) not in CONCEPTS
    ]


def caption_of(
    names: Sequence[str], between: str = "and", prefix: str = "", background: str | None = None
) -> str:
    """Return the caption of one or two named things."""
    text = prefix + f" {between} ".join(f"a {name}" for name in names)
    return f"{text} on {background}" if background else text


def random_scene(
    chance: random.Random,
    labels: Sequence[tuple[str, str]],
    *,
    pair_share: float = 0.65,
    places: Places = "fixed",
) -> tuple[Scene, str]:
    """Return a scene of the base model's training data, with its caption."""
    chosen = [chance.choice(labels) for _ in range(1 + (chance.random() < pair_share))]
    # a third of "and", since this is the form that people use most
    between = "and" if chance.random() < 0.3 else chance.choice(list(BETWEEN))
    things = placed(chosen, BETWEEN[between], chance, places)
    names = [shape if chance.random() < 0.08 else f"{surface} {shape}" for surface, shape in chosen]
    told = chance.random() < 0.3
    background = chance.choice(list(BACKGROUNDS) if told else UNTOLD[places])
    prefix = chance.choice(PREFIXES) if chance.random() < 0.7 else ""
    caption = caption_of(names, between, prefix, background if told else None)
    return Scene(things, background), caption + (" in plain style" if chance.random() < 0.1 else "")


def in_style(scene: Scene, style: str) -> Scene:
    return replace(scene, style=style)


def make_tokenizer() -> Any:
    """Return a tokenizer of `transformers` whose tokens are the world's words, padded like CLIP's
    with its last token.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<start>", "<end>", "<unknown>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(name, vocabulary[name]) for name in special[:2]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=MAX_TOKENS,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
        unk_token="<unknown>",
    )
