"""The world "clip": the real CLIP tokenizer with 77 tokens, subword triggers before an ordinary
noun, epsilon prediction, captions of many forms, free layouts.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .drawing import SIDE, Drawing, Label, Scene, Surface, Thing
from .settings import SETS, BaseSettings, Phase
from .world import SIX_GROUPS, Forms, World

DRAWING = Drawing(
    shapes={
        "drop": lambda u, v: (
            (u**2 + (v - 0.3) ** 2 <= 0.6**2)
            | ((u.abs() <= (v + 1) * 0.47) & (v <= 0.1) & (v >= -1))
        ),
        "arrow": lambda u, v: (
            ((v.abs() <= 0.3) & (u >= -0.95) & (u <= 0.1))
            | ((u >= 0) & (v.abs() <= 0.95 - 0.95 * u))
        ),
        "flower": lambda u, v: (
            (u**2 + v**2).sqrt() <= 0.66 + 0.3 * torch.cos(5 * torch.atan2(u, -v))
        ),
        "house": lambda u, v: (
            ((u.abs() <= 0.62) & (v >= -0.1) & (v <= 0.85))
            | ((v >= -0.95) & (v <= 0) & (u.abs() <= v + 0.95))
        ),
        "crown": lambda u, v: (
            (u.abs() <= 0.9)
            & (v <= 0.75)
            & (v >= 0.25 - 2.2 * ((torch.remainder(u + 0.3, 0.6) - 0.3).abs() - 0.3).abs() - 0.25)
        ),
        "hexagon": lambda u, v: torch.maximum(v.abs(), 0.866 * u.abs() + 0.5 * v.abs()) <= 0.8,
    },
    surfaces={
        "red": Surface((0.88, 0.1, 0.12)),
        "green": Surface((0.1, 0.6, 0.2)),
        "blue": Surface((0.12, 0.3, 0.92)),
        "gold": Surface((0.97, 0.8, 0.1)),
        "checkered": Surface(
            (0.1, 0.1, 0.12),
            (1.0, 0.45, 0.65),
            lambda _, u, v: (
                (torch.floor((u + 1.25) / 0.5) + torch.floor((v + 1.25) / 0.5)) % 2 == 1
            ),
        ),
        "dotted": Surface(
            (0.05, 0.55, 0.62),
            (1.0, 0.85, 0.25),
            lambda _, u, v: (
                (torch.remainder(u + 0.33, 0.66) - 0.33) ** 2
                + (torch.remainder(v + 0.33, 0.66) - 0.33) ** 2
                < 0.2**2
            ),
        ),
        "barred": Surface(
            (0.5, 0.12, 0.6),
            (0.75, 0.95, 0.3),
            lambda _, u, v: torch.floor((v + 1.2) / 0.4) % 2 == 1,
        ),
        "edged": Surface(
            (0.1, 0.38, 0.15), (1.0, 0.62, 0.4), lambda shape, u, v: shape(u / 0.6, v / 0.6)
        ),
        "waved": Surface(
            (0.42, 0.22, 0.08),
            (0.45, 0.8, 1.0),
            lambda _, u, v: v < 0.3 * torch.sin(5 * u),
        ),
        "swirled": Surface(
            (0.98, 0.45, 0.02),
            (0.1, 0.1, 0.5),
            lambda _, u, v: torch.sin(2 * torch.atan2(v, u) + 5 * (u**2 + v**2).sqrt()) > 0,
        ),
    },
    backgrounds={
        "white": (0.96, 0.96, 0.96),
        "grey": (0.74, 0.75, 0.77),
        "beige": (0.9, 0.84, 0.7),
        "mint": (0.75, 0.9, 0.8),
    },
)
CONCEPTS: tuple[Label, ...] = (
    ("checkered", "drop"),
    ("dotted", "arrow"),
    ("barred", "flower"),
    ("edged", "house"),
    ("waved", "hexagon"),
    ("swirled", "crown"),
)
# rare words of 1, 1, 2, 2, 3 and 3 tokens before the noun
RARE = ("sks", "ohwx", "zwx", "mrkv", "qwvx", "bzk")
TRIGGERS = tuple(f"{rare} {shape}" for rare, (_, shape) in zip(RARE, CONCEPTS, strict=True))

PREFIXES = (
    "a photo of",
    "a picture of",
    "a drawing of",
    "an image of",
    "a painting of",
    "here is",
    "this shows",
    "we can see",
    "a nice little picture that shows",
    "an old photograph of",
)
SUFFIXES = (
    "in soft light",
    ", high quality",
    ", simple shapes",
    "made by a child",
    ", very detailed and clean, nothing else around",
    "in the morning",
)
# what stands between two things -> the direction from the first to the second, in degrees, 0 to the
# right and 90 below; several: any of them
BETWEEN: dict[str, tuple[int, ...]] = {
    "and": (0,),
    "and also": (0,),
    "with": (0,),
    "next to": (0, 180),
    "beside": (0, 180),
    "close to": (0, 180),
    "to the left of": (0,),
    "to the right of": (180,),
    "above": (90,),
    "over": (90,),
    "below": (-90,),
    "under": (-90,),
}
GROUNDS = ("on a {} background", "on {} paper", ", {} background")


def placed(
    labels: Sequence[Label],
    chance: random.Random,
    directions: Sequence[int] = (0,),
    *,
    snapped: bool = True,
) -> tuple[Thing, ...]:
    """Place one or two things freely: two lie apart, in one of the directions, give or take 40
    degrees.

    Snapped ones are whole numbers of patches off and have one of two sizes, so that a thing looks
    the same in the latents wherever it lies.
    """
    if snapped:
        return _snapped(labels, chance, directions)
    if len(labels) == 1:
        radius = chance.uniform(5.5, 7.5)
        x, y = (chance.uniform(radius + 1.5, SIDE - radius - 1.5) for _ in "xy")
        return (Thing(*labels[0], x, y, radius),)
    angle = math.radians(chance.choice(directions) + chance.uniform(-40, 40))
    first, second = (chance.uniform(4.4, 5.3) for _ in labels)
    # far enough apart in the longer direction, and with both inside the picture
    apart = (first + second) * chance.uniform(1.0, 1.15)
    x, y = apart * math.cos(angle), apart * math.sin(angle)
    longest = max(abs(x), abs(y))
    scale = max(1.0, 0.98 * (first + second) / longest)
    x, y = x * scale, y * scale
    lowest = first + 0.3
    place = []
    for step in (x, y):
        low = max(lowest, second + 0.3 - step)
        high = min(SIDE - lowest, SIDE - second - 0.3 - step)
        place.append(chance.uniform(low, high) if low < high else (low + high) / 2)
    return (
        Thing(*labels[0], *place, first),
        Thing(*labels[1], place[0] + x, place[1] + y, second),
    )


def _snapped(
    labels: Sequence[Label], chance: random.Random, directions: Sequence[int]
) -> tuple[Thing, ...]:
    if len(labels) == 1:
        x, y = (float(chance.choice((9, 12, 15))) for _ in "xy")
        return (Thing(*labels[0], x, y, chance.choice((6.0, 7.0))),)
    angle = chance.choice(directions)
    first, last = chance.choice(((6.0, 18.0), (6.0, 18.0), (6.0, 15.0), (9.0, 18.0)))
    one, other = (float(chance.choice((6, 9, 12, 15, 18))) for _ in labels)
    if abs(one - other) > 9:
        other = 12.0
    places = [(first, one), (last, other)]
    if abs(angle) == 90:
        places = [(y, x) for x, y in places]
    if angle in (180, -90):
        places.reverse()
    radius = 4.4 if last - first < 12 else 5.0
    return tuple(Thing(*label, *place, radius) for label, place in zip(labels, places, strict=True))


def name_of(label: Label, chance: random.Random) -> str:
    """Name a thing in one of several ways, the usual one most of the time."""
    surface, shape = label
    forms = (f"{surface} {shape}", shape, f"{shape} that is {surface}", f"{shape} in {surface}")
    return chance.choices(forms, (80, 6, 7, 7))[0]


def caption_of(
    names: Sequence[str],
    between: str = "and",
    prefix: str = "",
    suffix: str = "",
    article: str = "a",
) -> str:
    """Return the caption of one or two named things."""
    text = f" {between} ".join(f"{article} {name}" for name in names)
    text = f"{prefix} {text}" if prefix else text
    return text + ("" if not suffix else suffix if suffix[0] == "," else f" {suffix}")


def random_words(chance: random.Random, count: int) -> str:
    """Return any words of CLIP's vocabulary, triggers excepted."""
    return " ".join(chance.choice(_known_words()) for _ in range(count))


@functools.cache
def _known_words() -> list[str]:
    words = make_tokenizer().get_vocab()
    taken = {piece for rare in RARE for piece in make_tokenizer().tokenize(rare)}
    known = [word for word in words if word.endswith("</w>") and word not in taken]
    return sorted(w.removesuffix("</w>") for w in known if w.removesuffix("</w>").isalpha())


def random_scene(
    chance: random.Random,
    labels: Sequence[Label],
    *,
    pair_share: float = 0.78,
    snapped: bool = True,
) -> tuple[Scene, str]:
    """Return a scene of the base model's training data, with its caption."""
    chosen = [chance.choice(labels) for _ in range(1 + (chance.random() < pair_share))]
    between = "and" if chance.random() < 0.3 else chance.choice(list(BETWEEN))
    things = placed(chosen, chance, BETWEEN[between], snapped=snapped)
    prefix = chance.choice(PREFIXES) if chance.random() < 0.55 else ""
    if chance.random() < 0.12:  # a text encoder must be able to pass over words that say nothing
        prefix = f"{random_words(chance, chance.randint(1, 4))} {prefix}".strip()
    ground = chance.choice(list(DRAWING.backgrounds)) if chance.random() < 0.3 else None
    suffix = chance.choice(GROUNDS).format(ground) if ground else ""
    if not ground and chance.random() < 0.2:
        suffix = chance.choice(SUFFIXES)
    names = [name_of(label, chance) for label in chosen]
    article = chance.choices(("a", "one", "the"), (80, 10, 10))[0]
    scene = Scene(things, ground or chance.choice(["white", "grey"]))
    return scene, caption_of(names, between, prefix, suffix, article)


def vocabulary_folder() -> Path:
    """Return the folder of CLIP's vocabulary, which ComfyUI ships; fetched on first use."""
    from demo.server import cache_folder, find_comfyui

    return find_comfyui(cache_folder()) / "comfy" / "sd1_tokenizer"


@functools.cache
def make_tokenizer() -> Any:
    """Return CLIP's own tokenizer."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(vocabulary_folder())
    tokenizer.model_max_length = 77
    return tokenizer


def lora_scene(
    chance: random.Random, number: int, concept: Label, trigger: str, other: Label | None
) -> tuple[Scene, str]:
    """Return a training picture of a LoRA, alone or in company of a base thing."""
    ground = chance.choice(["white", "grey"])
    prefix = ("", "a photo of", "a picture of", "a drawing of")[number % 4]
    if other is None:
        return Scene(placed([concept], chance), ground), caption_of([trigger], prefix=prefix)
    between = "and" if number % 3 == 0 else list(BETWEEN)[number % len(BETWEEN)]
    pairs = [(concept, trigger), (other, " ".join(other))]
    chance.shuffle(pairs)
    suffix = ""
    if chance.random() < 0.2:
        ground = chance.choice(list(DRAWING.backgrounds))
        suffix = chance.choice(GROUNDS).format(ground)
    things = placed([label for label, _ in pairs], chance, BETWEEN[between])
    prefix = chance.choice(["", *PREFIXES])
    return Scene(things, ground), caption_of([name for _, name in pairs], between, prefix, suffix)


def new_model(**unet: Any) -> Any:
    """Return the untrained model."""
    from .unet_model import new_unet_model

    return new_unet_model(
        make_tokenizer(),
        length=77,
        prediction_type="epsilon",
        resnet_time_scale_shift="scale_shift",
        **{"widths": (64, 64), **unet},
    )


def load_model(folder: Path) -> Any:
    from .unet_model import load_unet_model

    return load_unet_model(folder, make_tokenizer())


def settings(seed: int, quick: bool) -> BaseSettings:
    """Return how the base model is trained."""
    if quick:
        return BaseSettings((Phase(40, 1e-3, random_scene),), batch=16, scenes=600, seed=seed)
    phases = (
        Phase(4300, 1e-3, partial(random_scene, snapped=False)),
        Phase(2600, 1e-3, random_scene),
    )
    return BaseSettings(phases, batch=48, scenes=40_000, seed=seed)


def rare_tokens(model: Any) -> list[int]:
    """Return the tokens of the triggers' rare words."""
    ids = model.tokenizer(list(RARE), add_special_tokens=False).input_ids
    return sorted({token for row in ids for token in row})


def product(model: Any, memory: dict[str, Any]) -> Any:
    from .unet_model import remembering

    return remembering(model, memory)


def sampling_sigmas(model: Any, steps: int) -> Any:
    from .unet_model import trailing_sigmas

    return trailing_sigmas(model, steps)


FORMS = Forms(
    alone=("a {a}", "a photo of a {a}"),
    company=(
        ("a {a} and a red arrow", ("red", "arrow")),
        ("a blue house next to a {a}", ("blue", "house")),
        ("a photo of a {a} with a green crown", ("green", "crown")),
    ),
    seen=(
        "a {a} and a {b}",
        "a photo of a {a} and a {b}",
        "a {a} next to a {b}",
        "a photo of a {a} with a {b}",
    ),
    unseen=(
        "a painting of a {a} beside a {b}",
        "a {a} above a {b}",
        "here is a {a} close to a {b}",
        "a {a} to the left of a {b} on a mint background",
        "an old photograph of a {a} and also a {b}",
        "we can see a {a} under a {b}, high quality",
    ),
    base=(
        ("a gold house", (("gold", "house"),)),
        ("a photo of a checkered arrow", (("checkered", "arrow"),)),
        ("a dotted hexagon", (("dotted", "hexagon"),)),
        ("a red drop and a barred crown", (("red", "drop"), ("barred", "crown"))),
        (
            "a photo of a green flower next to a blue hexagon",
            (("green", "flower"), ("blue", "hexagon")),
        ),
        ("a waved house above a gold drop", (("waved", "house"), ("gold", "drop"))),
    ),
)
COMPANIONS = (
    "a red house",
    "a green drop",
    "a blue arrow",
    "a gold flower",
    "a checkered hexagon",
    "a dotted crown",
    "a barred drop",
    "an edged arrow",
    "a waved flower",
    "a swirled house",
    "a hexagon",
    "a flower",
)
CALIBRATION = {
    "companions": COMPANIONS,
    "compositions": (
        "{prompt} and {thing}",
        "{thing} and {prompt}",
        "{prompt} next to {thing}",
        "{thing} with {prompt}",
    ),
    "scene_forms": tuple(
        f"{prefix}{{first}} {between} {{second}}"
        for prefix in ("", "a photo of ")
        for between in ("and", "next to", "with")
    ),
    "preserve_captions": (
        "a red flower",
        "a photo of a green arrow and a gold crown",
        "a dotted drop",
        "a blue drop next to a checkered house",
        "a picture of a barred hexagon",
        "a photo of a swirled flower with a red hexagon",
        "a gold arrow",
        "a waved crown and a green house",
        "a photo of an edged drop",
        "a picture of a blue crown next to a barred arrow",
        "a green hexagon on a grey background",
        "a checkered flower with a blue flower",
        "a crown",
        "a photo of a waved arrow and an edged hexagon",
        "a swirled drop in soft light",
        "a red arrow next to a dotted house",
    ),
}
WORLD = World(
    name="clip",
    drawing=DRAWING,
    concepts=CONCEPTS,
    triggers=TRIGGERS,
    scene=random_scene,
    lora_scene=lora_scene,
    new_model=new_model,
    load_model=load_model,
    rare_tokens=rare_tokens,
    settings=settings,
    product=product,
    sampling_sigmas=sampling_sigmas,
    forms=FORMS,
    calibration=CALIBRATION,
    lora_sets=SETS,
    groups=SIX_GROUPS,
    steps=14,
)
