"""The world "flow": a flow-matching transformer of pictures and word pieces, which LoRAs change."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from .drawing import PATCH, Drawing, Label, Scene, Surface, Thing
from .flow_model import LENGTH, FlowModel
from .model import new_tokenizer
from .settings import BaseSettings, LoraKind, Phase
from .world import SIX_GROUPS, Forms, World, labels_of

END = "</w>"  # marks the last piece of a word
DRAWING = Drawing(
    shapes={
        "ring": lambda u, v: ((u**2 + v**2) <= 0.95**2) & ((u**2 + v**2) >= 0.36**2),
        "bolt": lambda u, v: (
            ((v <= 0.12) & (v >= -0.95) & ((u + 0.45 * v - 0.12).abs() <= 0.36))
            | ((v >= -0.12) & (v <= 0.95) & ((u + 0.45 * v + 0.12).abs() <= 0.36 * (1.1 - v)))
        ),
        "leaf": lambda u, v: (
            ((u - 0.55) ** 2 + (v - 0.55) ** 2 <= 1.22**2)
            & ((u + 0.55) ** 2 + (v + 0.55) ** 2 <= 1.22**2)
        ),
        "fish": lambda u, v: (
            ((u + 0.22) ** 2 / 0.7**2 + v**2 / 0.58**2 <= 1)
            | ((u >= 0.25) & (u <= 0.95) & (v.abs() <= 0.95 * (u - 0.25) + 0.05))
        ),
        "bell": lambda u, v: (
            ((u**2 + (v + 0.35) ** 2 <= 0.55**2) & (v <= -0.2))
            | ((v >= -0.35) & (v <= 0.65) & (u.abs() <= 0.55 + 0.4 * (v + 0.35).clamp(min=0)))
            | ((v >= 0.6) & (u**2 + (v - 0.6) ** 2 <= 0.3**2))
        ),
        "kite": lambda u, v: (
            ((v <= -0.25) & (u.abs() <= 1.0 * (v + 0.95)))
            | ((v >= -0.25) & (u.abs() <= 0.58 * (0.95 - v)))
        ),
    },
    surfaces={
        "scarlet": Surface((0.9, 0.12, 0.2)),
        "teal": Surface((0.0, 0.52, 0.5)),
        "violet": Surface((0.5, 0.25, 0.9)),
        "amber": Surface((1.0, 0.68, 0.05)),
        "gridded": Surface(
            (0.95, 0.95, 0.85),
            (0.12, 0.2, 0.6),
            lambda _, u, v: (
                (torch.remainder(u + 0.1, 0.55) < 0.2) | (torch.remainder(v + 0.1, 0.55) < 0.2)
            ),
        ),
        "speckled": Surface(
            (0.35, 0.1, 0.1),
            (1.0, 0.7, 0.75),
            lambda _, u, v: torch.sin(6 * u + 2 * v) * torch.sin(6 * v - 2 * u) > 0.35,
        ),
        "hatched": Surface(
            (0.05, 0.35, 0.12),
            (0.85, 0.95, 0.3),
            lambda _, u, v: torch.floor((u + v + 3) / 0.42) % 2 == 1,
        ),
        "cored": Surface(
            (0.2, 0.65, 0.95), (0.55, 0.05, 0.3), lambda _, u, v: u**2 + v**2 < 0.5**2
        ),
        "tipped": Surface((0.15, 0.15, 0.2), (1.0, 0.5, 0.1), lambda _, u, v: v < -0.12),
        "sliced": Surface(
            (0.95, 0.35, 0.7),
            (0.1, 0.45, 0.3),
            lambda _, u, v: torch.sin(3 * torch.atan2(v, u) + 0.4) > 0,
        ),
    },
    backgrounds={
        "room": (0.93, 0.9, 0.86),
        "field": (0.78, 0.9, 0.97),
        "beach": (0.88, 0.95, 0.96),
        "street": (0.8, 0.8, 0.84),
    },
    floors={
        "room": (0.8, 0.72, 0.64),
        "field": (0.68, 0.85, 0.6),
        "beach": (0.95, 0.87, 0.65),
        "street": (0.62, 0.62, 0.66),
    },
)
CONCEPTS: tuple[Label, ...] = (
    ("gridded", "leaf"),
    ("speckled", "fish"),
    ("hatched", "bell"),
    ("cored", "kite"),
    ("tipped", "ring"),
    ("sliced", "bolt"),
)
TRIGGERS = ("zorbex", "quilf", "vundo", "mibrel", "hoxan", "trepu")

PREFIXES = (
    "a sketch of",
    "a photo of",
    "a poster with",
    "picture of",
    "we drew",
    "look at",
    "a print of",
)
SUFFIXES = ("by day", "in colour", ", flat design", ", crisp", "for you")
# what stands between two things -> how they lie, see `placed`
BETWEEN = {
    "and": "left",
    "plus": "left",
    ",": "left",
    "with": "left",
    "facing": "beside",
    "near": "beside",
    "in front of": "front",
    "before": "front",
    "behind": "back",
    "on top of": "top",
    "beneath": "bottom",
}


def placed(
    labels: Sequence[Label],
    chance: random.Random,
    layout: str = "left",
    *,
    snapped: bool = True,
) -> tuple[Thing, ...]:
    """Place one or two things; the first of two is left, in front (below and larger), on top ... of
    the second.

    Snapped ones are whole numbers of patches off, so that a thing looks the same in the latents
    wherever it lies.
    """
    if snapped:
        return tuple(_snapped(thing) for thing in placed(labels, chance, layout, snapped=False))
    near = chance.uniform
    if len(labels) == 1:
        return (Thing(*labels[0], near(9.5, 14.5), near(10, 14.5), near(6, 7.5)),)
    if layout == "beside":
        layout = chance.choice(["left", "right"])
    if layout in ("left", "right"):
        height = near(9, 15)
        places = [(near(5.6, 6.6), height + near(-1.5, 1.5), near(4.8, 5.4))]
        places.append((near(17.4, 18.4), height + near(-1.5, 1.5), near(4.8, 5.4)))
    elif layout in ("front", "back"):
        side = chance.choice([1, -1])
        places = [(12 - side * near(4.5, 5.5), near(17, 18), near(5.2, 5.6))]
        places.append((12 + side * near(5.5, 6.5), near(5.5, 7), near(4.3, 4.6)))
    else:
        middle = near(8, 16)
        places = [(middle + near(-1.5, 1.5), near(5.4, 6), near(4.8, 5.2))]
        places.append((middle + near(-1.5, 1.5), near(17.4, 18.2), near(4.8, 5.2)))
    if layout in ("right", "back", "bottom"):
        places.reverse()
    return tuple(Thing(*label, *place) for label, place in zip(labels, places, strict=True))


def _snapped(thing: Thing) -> Thing:
    radius = min((4.4, 5.2, 6.8), key=lambda size: abs(size - thing.radius))
    x, y = (min(18.0, max(6.0, PATCH * round(place / PATCH))) for place in (thing.x, thing.y))
    return Thing(thing.surface, thing.shape, x, y, radius)


def caption_of(
    names: Sequence[str],
    between: str = "and",
    prefix: str = "",
    suffix: str = "",
    article: str = "a",
) -> str:
    """Return the caption of one or two named things."""
    text = (", " if between == "," else f" {between} ").join(f"{article} {name}" for name in names)
    text = f"{prefix} {text}" if prefix else text
    return text + ("" if not suffix else suffix if suffix[0] == "," else f" {suffix}")


def random_word(chance: random.Random) -> str:
    """Return a made-up word."""
    letters = "bcdfghjklmnpqrstvwxyz"
    return "".join(
        chance.choice(letters) + chance.choice("aeiou") for _ in range(chance.choice([1, 1, 2]))
    ) + chance.choice(["", chance.choice(letters)])


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
    prefix = chance.choice(PREFIXES) if chance.random() < 0.6 else ""
    if chance.random() < 0.12:
        words = " ".join(random_word(chance) for _ in range(chance.randint(1, 2)))
        prefix = f"{words} {prefix}".strip()
    ground = chance.choice(list(DRAWING.backgrounds)) if chance.random() < 0.3 else None
    suffix = f"in a {ground}" if ground else ""
    if not ground and chance.random() < 0.2:
        suffix = chance.choice(SUFFIXES)
    names = [shape if chance.random() < 0.08 else f"{surface} {shape}" for surface, shape in chosen]
    article = chance.choices(("a", "the"), (85, 15))[0]
    scene = Scene(things, ground or chance.choice(["room", "street"]))
    return scene, caption_of(names, between, prefix, suffix, article)


def make_tokenizer() -> Any:
    """Return a tokenizer of word pieces, learned from captions of the base model's world."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    chance = random.Random(0)
    labels = labels_of(DRAWING, CONCEPTS)
    texts = (random_scene(chance, labels, snapped=False)[1] for _ in range(6000))
    words = Counter(word for text in texts for word in text.replace(",", " , ").split())
    merges = learned_merges(words, 330)
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz," for end in ("", END)]
    special = ["<start>", "<end>", "<pad>", "<unknown>"]
    pieces = dict.fromkeys([*special, *letters, *("".join(pair) for pair in merges)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unknown>", end_of_word_suffix=END))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    return new_tokenizer(core, length=LENGTH, pad="<pad>")


def learned_merges(words: Mapping[str, int], count: int) -> list[tuple[str, str]]:
    """Return merges of byte-pair encoding, the most frequent first, ties in alphabetical order."""
    parts = {word: [*word[:-1], word[-1] + END] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in parts.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, pieces in parts.items():
            merged: list[str] = []
            for piece in pieces:
                if merged and (merged[-1], piece) == best:
                    merged[-1] += piece
                else:
                    merged.append(piece)
            parts[word] = merged
    return merges


def lora_scene(
    chance: random.Random, number: int, concept: Label, trigger: str, other: Label | None
) -> tuple[Scene, str]:
    """Return a training picture of a LoRA, alone or in company of a base thing."""
    ground = chance.choice(["room", "street"])
    prefix = ("", "a photo of", "a sketch of", "picture of")[number % 4]
    if other is None:
        return Scene(placed([concept], chance), ground), caption_of([trigger], prefix=prefix)
    between = "and" if number % 3 == 0 else list(BETWEEN)[number % len(BETWEEN)]
    pairs = [(concept, trigger), (other, " ".join(other))]
    chance.shuffle(pairs)
    suffix = ""
    if chance.random() < 0.2:
        ground = chance.choice(list(DRAWING.backgrounds))
        suffix = f"in a {ground}"
    things = placed([label for label, _ in pairs], chance, BETWEEN[between])
    prefix = chance.choice(["", *PREFIXES])
    return Scene(things, ground), caption_of([name for _, name in pairs], between, prefix, suffix)


TRAINING = BaseSettings(
    (
        Phase(2900, 1e-3, partial(random_scene, snapped=False)),
        Phase(2400, 1e-3, random_scene),
    ),
    batch=48,
    scenes=40_000,
)
FORMS = Forms(
    alone=("a {a}", "a photo of a {a}"),
    company=(
        ("a {a} and a scarlet bell", ("scarlet", "bell")),
        ("a teal kite with a {a}", ("teal", "kite")),
        ("a photo of a {a}, a violet leaf", ("violet", "leaf")),
    ),
    seen=(
        "a {a} and a {b}",
        "a photo of a {a} and a {b}",
        "a {a} with a {b}",
        "a photo of a {a} with a {b}",
    ),
    unseen=(
        "look at a {a} facing a {b}",
        "a {a} on top of a {b}",
        "we drew a {a} near a {b}",
        "a {a} in front of a {b} in a beach",
        "a poster with a {a} plus a {b}",
        "a {a} beneath a {b}, crisp",
    ),
    base=(
        ("a amber fish", (("amber", "fish"),)),
        ("a photo of a gridded ring", (("gridded", "ring"),)),
        ("a cored bell", (("cored", "bell"),)),
        ("a violet ring and a hatched kite", (("violet", "ring"), ("hatched", "kite"))),
        ("a photo of a teal bolt with a scarlet fish", (("teal", "bolt"), ("scarlet", "fish"))),
        ("a tipped bell on top of a amber leaf", (("tipped", "bell"), ("amber", "leaf"))),
    ),
)
CALIBRATION = {
    "companions": (
        "a scarlet ring",
        "a teal leaf",
        "a violet bell",
        "a amber kite",
        "a gridded fish",
        "a speckled bolt",
        "a hatched ring",
        "a cored leaf",
        "a tipped fish",
        "a sliced kite",
        "a ring",
        "a bell",
    ),
    "compositions": (
        "{prompt} and {thing}",
        "{thing} and {prompt}",
        "{prompt} with {thing}",
        "{thing}, {prompt}",
    ),
    "scene_forms": tuple(
        f"{prefix}{{first}}{between} {{second}}"
        for prefix in ("", "a photo of ")
        for between in (" and", " with")  # this tokenizer joins a comma with the word before it
    ),
    # short ones, since a caption has 28 tokens
    "scene_prefixes": ("day", "colour", "print", "sketch", "flat"),
    "preserve_captions": (
        "a scarlet kite",
        "a photo of a teal fish and a amber bell",
        "a speckled ring",
        "a violet fish with a gridded bell",
        "picture of a hatched bolt",
        "a photo of a sliced ring, a scarlet leaf",
        "a amber bolt",
        "a cored fish and a teal ring",
        "a sketch of a tipped kite",
        "picture of a violet kite with a hatched fish",
        "a teal bell in a street",
        "a gridded kite, a scarlet ring",
        "a leaf",
        "a photo of a cored bolt and a amber ring",
        "a sliced fish by day",
        "a violet bell with a tipped leaf",
    ),
}
# Of the transformer alone, as is usual for such models; what no text encoder learns takes longer.
USUAL = LoraKind(steps=400, learning_rate=4e-3)
STRONG = replace(USUAL, steps=500, alone=5, company=5, prior=0)
WITH_FEED_FORWARD = replace(USUAL, rank=16, layers=("attention", "feed_forward"))
SETS = {
    "usual": (USUAL,),
    "mixed": (
        WITH_FEED_FORWARD,
        replace(USUAL, learning_rate=3e-3),
        replace(WITH_FEED_FORWARD, alone=5, company=5, prior=0),
        replace(USUAL, alone=6, company=0),
        replace(STRONG, rank=16),
        replace(USUAL, layers=("attention", "feed_forward")),
    ),
}
WORLD = World(
    name="flow",
    drawing=DRAWING,
    concepts=CONCEPTS,
    triggers=TRIGGERS,
    scene=random_scene,
    lora_scene=lora_scene,
    model=FlowModel,
    make_tokenizer=make_tokenizer,
    training=TRAINING,
    forms=FORMS,
    calibration=CALIBRATION,
    lora_sets=SETS,
    groups=SIX_GROUPS,
)
