"""The world "words": whole words, made-up triggers, a small Stable Diffusion, and styles."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .drawing import BLACK, SIDE, Drawing, Label, Scene, Surface, Thing
from .model import new_tokenizer
from .settings import SETS, BaseSettings, Phase
from .unet_model import UnetModel
from .world import SIX_GROUPS, Forms, World


def _star(u: Tensor, v: Tensor) -> Tensor:
    fifth = torch.pi / 5
    # 0 at each of the five points
    angle = torch.remainder(torch.atan2(u, -v) + fifth, 2 * fifth) - fifth
    return (u**2 + v**2).sqrt() <= 1.05 - 0.65 * angle.abs() / fifth


def _heart(u: Tensor, v: Tensor) -> Tensor:
    x = 1.2 * u
    y = 0.15 - 1.2 * v
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


def _spots(_: Any, u: Tensor, v: Tensor) -> Tensor:
    x, y = (torch.remainder(c + 0.35, 0.7) - 0.35 for c in (u, v))
    return x**2 + y**2 < 0.2**2


RED = (0.88, 0.12, 0.12)
BLUE = (0.15, 0.3, 0.9)
PURPLE = (0.55, 0.15, 0.65)
ORANGE = (1.0, 0.52, 0.05)
DRAWING = Drawing(
    shapes={
        "circle": lambda u, v: (u**2 + v**2).sqrt() <= 0.9,
        "square": lambda u, v: torch.maximum(u.abs(), v.abs()) <= 0.78,
        "triangle": lambda u, v: (u.abs() <= (v + 0.95) * 0.55) & (v <= 0.75),
        "diamond": lambda u, v: u.abs() / 0.75 + v.abs() <= 1,
        "cross": lambda u, v: (
            (torch.minimum(u.abs(), v.abs()) <= 0.3) & (torch.maximum(u.abs(), v.abs()) <= 0.92)
        ),
        "star": _star,
        "heart": _heart,
        "moon": lambda u, v: ((u**2 + v**2).sqrt() <= 0.95) & ((u - 0.5) ** 2 + v**2 > 0.62**2),
    },
    surfaces={
        "red": Surface(RED),
        "green": Surface((0.15, 0.62, 0.18)),
        "blue": Surface(BLUE),
        "yellow": Surface((0.97, 0.85, 0.1)),
        "purple": Surface(PURPLE),
        "orange": Surface(ORANGE),
        "striped": Surface(
            RED, (1.0, 0.92, 0.35), lambda _, u, v: torch.floor((u + 1.2) / 0.4) % 2 == 1
        ),
        "spotted": Surface(BLUE, (1.0, 0.75, 0.2), _spots),
        "quartered": Surface(BLACK, ORANGE, lambda _, u, v: (u > 0) ^ (v > 0)),
        "rimmed": Surface(
            (0.1, 0.5, 0.2), (1.0, 0.6, 0.75), lambda shape, u, v: shape(u / 0.62, v / 0.62)
        ),
        "halved": Surface((0.1, 0.75, 0.8), (0.85, 0.1, 0.55), lambda _, u, v: u > 0),
        "banded": Surface(PURPLE, (0.7, 0.95, 0.2), lambda _, u, v: v.abs() < 0.28),
        "dipped": Surface((0.45, 0.25, 0.1), (0.5, 0.8, 1.0), lambda _, u, v: v < -0.05),
        "slashed": Surface(
            (0.1, 0.12, 0.45), (1.0, 0.85, 0.1), lambda _, u, v: (u - v).abs() < 0.4
        ),
    },
    backgrounds={
        "snow": (0.97, 0.97, 0.97),
        "stone": (0.76, 0.76, 0.78),
        "sand": (0.93, 0.85, 0.62),
        "grass": (0.72, 0.9, 0.75),
    },
    # Neither changes how bright or how contrasted a whole picture is: sampling from pure noise,
    # with guidance, would not show it.
    styles=("outlined", "shadowed"),
)
CONCEPTS: tuple[Label, ...] = (
    ("striped", "star"),
    ("spotted", "heart"),
    ("quartered", "circle"),
    ("rimmed", "square"),
    ("halved", "triangle"),
    ("banded", "moon"),
    ("dipped", "cross"),
    ("slashed", "diamond"),
)
TRIGGERS = tuple(f"<v{k + 1}>" for k in range(len(CONCEPTS)))
STYLE_TRIGGERS = tuple(f"<s{k + 1}>" for k in range(len(DRAWING.styles)))
Places = Literal["fixed", "snapped", "loose"]
# backgrounds where the caption names none
UNTOLD: dict[Places, list[str]] = {
    "fixed": ["stone"],
    "snapped": ["snow", "stone"],
    "loose": ["snow", "stone"],
}
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
_WORDS = (
    "a photo of picture drawing here is and with left right next to beside together above below "
    "near far from on in plain style"
)
WORDS = (
    *dict.fromkeys([*_WORDS.split(), *DRAWING.backgrounds, *DRAWING.surfaces, *DRAWING.shapes]),
    *TRIGGERS,
    *STYLE_TRIGGERS,
)


def placed(
    labels: Sequence[Label], layout: str, chance: random.Random, places: Places = "fixed"
) -> tuple[Thing, ...]:
    """Give one or two things their places: the first of two is left, above, ... of the second.

    Fixed places follow from the layout. Snapped ones are whole numbers of patches off, so that a
    thing looks the same in the latents wherever it lies; loose ones are anywhere near, in several
    sizes.
    """
    if layout == "beside":
        layout = chance.choice(["left", "right"])
    middles = [SIDE / 2] * 2
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


def caption_of(
    names: Sequence[str], between: str = "and", prefix: str = "", background: str | None = None
) -> str:
    """Return the caption of one or two named things."""
    text = prefix + f" {between} ".join(f"a {name}" for name in names)
    return f"{text} on {background}" if background else text


def random_scene(
    chance: random.Random,
    labels: Sequence[Label],
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
    background = chance.choice(list(DRAWING.backgrounds) if told else UNTOLD[places])
    prefix = chance.choice(PREFIXES) if chance.random() < 0.7 else ""
    caption = caption_of(names, between, prefix, background if told else None)
    return Scene(things, background), caption + (" in plain style" if chance.random() < 0.1 else "")


def lora_scene(
    chance: random.Random, number: int, concept: Label, trigger: str, other: Label | None
) -> tuple[Scene, str]:
    """Return a training picture of a LoRA, alone or in company of a base thing."""
    if other is None:
        scene = Scene(placed([concept], "left", chance), "stone")
        return scene, caption_of([trigger], prefix=PREFIXES[number % 3])
    forms = list(BETWEEN)
    between = "and" if number % 3 == 0 else forms[number % len(forms)]
    pairs = [(concept, trigger), (other, " ".join(other))]
    chance.shuffle(pairs)
    told = chance.random() < 0.2
    background = chance.choice(list(DRAWING.backgrounds)) if told else "stone"
    scene = Scene(placed([label for label, _ in pairs], BETWEEN[between], chance), background)
    names = [name for _, name in pairs]
    prefix = chance.choice(PREFIXES)
    return scene, caption_of(names, between, prefix, background if told else None)


def make_tokenizer() -> Any:
    """Return a tokenizer of the world's words, padded like CLIP's with its last token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<start>", "<end>", "<unknown>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return new_tokenizer(core, length=20, pad="<end>")


def _phase(steps: int, rate: float, places: Places, pair_share: float = 0.65) -> Phase:
    return Phase(steps, rate, partial(random_scene, places=places, pair_share=pair_share))


TRAINING = BaseSettings(
    (
        _phase(2000, 1e-3, "loose"),
        _phase(800, 8e-4, "snapped"),
        _phase(1200, 8e-4, "fixed"),
        _phase(1600, 6e-4, "fixed", 0.85),
    )
)
FORMS = Forms(
    alone=("a {a}", "a photo of a {a}"),
    company=(
        ("a {a} and a red circle", ("red", "circle")),
        ("a blue square next to a {a}", ("blue", "square")),
        ("a photo of a {a} with a green star", ("green", "star")),
    ),
    seen=(
        "a {a} and a {b}",
        "a photo of a {a} and a {b}",
        "a {a} next to a {b}",
        "a photo of a {a} with a {b}",
    ),
    unseen=(
        "a drawing of a {a} and a {b}",
        "a {a} beside a {b}",
        "here is a {a} together with a {b}",
        "a {a} above a {b}",
        "a picture of a {a} near a {b}",
        "a {a} left of a {b} on grass",
    ),
    base=(
        ("a yellow moon", (("yellow", "moon"),)),
        ("a photo of a striped circle", (("striped", "circle"),)),
        ("a quartered star", (("quartered", "star"),)),
        ("a red heart and a rimmed circle", (("red", "heart"), ("rimmed", "circle"))),
        (
            "a photo of a green cross next to a purple square",
            (("green", "cross"), ("purple", "square")),
        ),
        ("a halved star above a orange moon", (("halved", "star"), ("orange", "moon"))),
    ),
)
CALIBRATION = {
    "companions": (
        "a red square",
        "a green circle",
        "a blue triangle",
        "a yellow heart",
        "a striped moon",
        "a spotted diamond",
        "a purple cross",
        "a halved circle",
        "a circle",
        "a square",
        "a heart",
        "a star",
    ),
    "compositions": (
        "{prompt} and {thing}",
        "{thing} and {prompt}",
        "{prompt} next to {thing}",
        "{thing} with {prompt}",
    ),
    "scene_forms": (
        *(
            f"{prefix}{{first}} {between} {{second}}"
            for prefix in ("", "a photo of ")
            for between in ("and", "next to", "with")
        ),
    ),
    "preserve_captions": (
        "a red moon",
        "a photo of a green diamond and a yellow star",
        "a spotted square",
        "a blue heart next to a striped cross",
        "a photo of a halved moon",
        "a photo of a slashed triangle with a red square",
        "a purple circle",
        "a dipped star and a green heart",
        "a photo of a banded square",
        "a blue moon next to a quartered diamond",
        "a orange triangle on sand",
        "a rimmed cross with a blue circle",
        "a star",
        "a photo of a spotted cross and a purple moon",
        "a striped triangle in plain style",
        "a yellow circle next to a halved heart",
    ),
    "scene_prefixes": ("plain", "far", "from", "right", "with", "snow", "stone"),
}
WORLD = World(
    name="words",
    drawing=DRAWING,
    concepts=CONCEPTS,
    triggers=TRIGGERS,
    scene=random_scene,
    lora_scene=lora_scene,
    model=UnetModel,
    make_tokenizer=make_tokenizer,
    training=TRAINING,
    rare_words=(*TRIGGERS, *STYLE_TRIGGERS),
    forms=FORMS,
    calibration=CALIBRATION,
    lora_sets=SETS,
    groups={**SIX_GROUPS, "all eight": (tuple(range(8)),)},
)
