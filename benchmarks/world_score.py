"""The questions to a merge in benchmarks/world.py, and the judgement of its pictures."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from world_bench import Bench
from world_loras import LoraSet
from world_recogniser import Judgement
from world_scenes import CONCEPT_TRIGGERS, CONCEPTS, STYLE_TRIGGERS, STYLES, base_labels

from iteris_core.adapters import Adapter

Label = tuple[str, str]
ALONE = ("a {a}", "a photo of a {a}")
COMPANY = (
    "a {a} and a red circle",
    "a blue square next to a {a}",
    "a photo of a {a} with a green star",
)
COMPANY_LABELS: tuple[Label, ...] = (("red", "circle"), ("blue", "square"), ("green", "star"))
SEEN = (
    "a {a} and a {b}",
    "a photo of a {a} and a {b}",
    "a {a} next to a {b}",
    "a photo of a {a} with a {b}",
)
# what no calibration has read; the last three lie in other ways than left and right, or on another
# ground
UNSEEN = (
    "a drawing of a {a} and a {b}",
    "a {a} beside a {b}",
    "here is a {a} together with a {b}",
    "a {a} above a {b}",
    "a picture of a {a} near a {b}",
    "a {a} left of a {b} on grass",
)
STYLED = ("a {a} in {s} style", "a photo of a {a} in {s} style")
STYLED_UNSEEN = ("a drawing of a {a} in {s} style", "here is a {a} in {s} style")
STYLE_ALONE = (
    ("a green square in {s} style", ("green", "square")),
    ("a slashed heart in {s} style", ("slashed", "heart")),
)
BASE: tuple[tuple[str, tuple[Label, ...]], ...] = (
    ("a yellow moon", (("yellow", "moon"),)),
    ("a photo of a striped circle", (("striped", "circle"),)),
    ("a quartered star", (("quartered", "star"),)),
    ("a picture of a blue diamond", (("blue", "diamond"),)),
    ("a red heart and a rimmed circle", (("red", "heart"), ("rimmed", "circle"))),
    (
        "a photo of a green cross next to a purple square",
        (("green", "cross"), ("purple", "square")),
    ),
    (
        "a halved star above an orange moon".replace("an ", "a "),
        (("halved", "star"), ("orange", "moon")),
    ),
    ("a dipped square with a blue triangle", (("dipped", "square"), ("blue", "triangle"))),
)


@dataclass(frozen=True)
class Probe:
    """A picture to sample, and its correct content.

    Args:
        kind: Kind of question, a column of the tables.
        about: Triggers that the question is about.
        caption, seed: Caption of the picture, and seed of its noise.
        labels: Things in a correct picture, no more and no less.
        style: Style of a correct picture.
    """

    kind: str
    about: tuple[str, ...]
    caption: str
    seed: int
    labels: tuple[Label, ...]
    style: str | None = None

    def is_hit(self, seen: Judgement) -> bool:
        return sorted(seen.labels) == sorted(self.labels) and seen.style == self.style

    def leaks(self, seen: Judgement, triggers: Sequence[str]) -> bool:
        """Tell whether one of the merged concepts or styles is there unasked."""
        concepts = {label_of(trigger) for trigger in triggers if trigger in CONCEPT_TRIGGERS}
        styles = {style_of(trigger) for trigger in triggers if trigger in STYLE_TRIGGERS}
        unasked = seen.style in styles and seen.style != self.style
        return unasked or any(
            label in concepts and label not in self.labels for label in seen.labels
        )


def label_of(trigger: str) -> Label:
    return CONCEPTS[CONCEPT_TRIGGERS.index(trigger)]


def style_of(trigger: str) -> str:
    return STYLES[STYLE_TRIGGERS.index(trigger)]


class Question(NamedTuple):
    """A caption to be drawn `count` times, and the correct content of the pictures."""

    kind: str
    about: tuple[str, ...]
    caption: str
    count: int
    labels: tuple[Label, ...]
    style: str | None = None


def probes_of(triggers: Sequence[str], effort: int = 2, most_pairs: int = 8) -> list[Probe]:
    """Return the probes of a merge of these triggers.

    Args:
        triggers: Triggers of the concepts and styles in the merge.
        effort: Noise seeds per caption of two things.
        most_pairs: The number of pairs of concepts that are asked about.
    """
    concepts = [trigger for trigger in triggers if trigger in CONCEPT_TRIGGERS]
    styles = [trigger for trigger in triggers if trigger in STYLE_TRIGGERS]
    questions = [
        *_about_one(concepts, styles, effort),
        *_about_pairs(pairs_to_ask(concepts, most_pairs), effort),
        *_about_styled(concepts, styles, effort),
        *(Question("base", (), caption, effort, labels) for caption, labels in BASE),
    ]
    probes: list[Probe] = []
    asked: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for question in questions:
        for _ in range(question.count):
            # the number of the picture within its kind and its triggers is its seed
            number = asked[question.kind, question.about]
            asked[question.kind, question.about] += 1
            probes.append(
                Probe(
                    question.kind,
                    question.about,
                    question.caption,
                    10_000 + number,
                    question.labels,
                    question.style,
                )
            )
    return probes


def _about_one(concepts: Sequence[str], styles: Sequence[str], effort: int) -> Iterator[Question]:
    for a in concepts:
        for form in ALONE:
            yield Question("alone", (a,), form.format(a=a), 3 * effort, (label_of(a),))
        for form, other in zip(COMPANY, COMPANY_LABELS, strict=True):
            labels = (label_of(a), other)
            yield Question("company", (a,), form.format(a=a), effort, labels)
    for s in styles:
        for form, label in STYLE_ALONE:
            yield Question("alone", (s,), form.format(s=s), 3 * effort, (label,), style_of(s))


def _about_pairs(pairs: Sequence[tuple[str, str]], effort: int) -> Iterator[Question]:
    for a, b in pairs:
        labels = (label_of(a), label_of(b))
        for kind, forms in (("seen", SEEN), ("unseen", UNSEEN)):
            for form, (first, second) in itertools.product(forms, ((a, b), (b, a))):
                yield Question(kind, (a, b), form.format(a=first, b=second), effort, labels)


def _about_styled(
    concepts: Sequence[str], styles: Sequence[str], effort: int
) -> Iterator[Question]:
    for a, s in itertools.product(concepts, styles):
        for kind, forms in (("styled", STYLED), ("styled unseen", STYLED_UNSEEN)):
            for form in forms:
                caption = form.format(a=a, s=s)
                yield Question(kind, (a, s), caption, 3 * effort, (label_of(a),), style_of(s))


def pairs_to_ask(concepts: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Return all pairs, or, where these are too many, each concept with the next."""
    pairs = list(itertools.combinations(concepts, 2))
    return (
        pairs
        if len(pairs) <= most
        else list(zip(concepts, [*concepts[1:], concepts[0]], strict=True))[:most]
    )


def score(
    bench: Bench,
    adapter: Adapter | None,
    probes: Sequence[Probe],
    triggers: Sequence[str],
    alone: Callable[[Sequence[Probe], float], tuple[Tensor, Tensor]] | None = None,
    cfg: float = 3.0,
) -> dict[str, Any]:
    """Sample the probes and judge them.

    Args:
        alone: Function (probes about one trigger, cfg) -> their pictures by the single LoRAs and by
            the base model, for distances.

    Returns:
        ``hits``: kind -> trigger(s) -> [hits, pictures]; ``leaks``: [pictures with something
            unasked, pictures];
        ``distance``: squared distance to the single LoRA's pictures, over the base model's to them.
    """
    pictures = bench.sample(
        adapter, [probe.caption for probe in probes], [probe.seed for probe in probes], cfg
    )
    return tally(probes, bench.recogniser.judge(pictures), triggers) | distances(
        probes, pictures, alone, cfg
    )


def tally(
    probes: Sequence[Probe], judged: Sequence[Judgement], triggers: Sequence[str]
) -> dict[str, Any]:
    hits: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    leaks = 0
    for probe, seen in zip(probes, judged, strict=True):
        entry = hits[probe.kind][" ".join(probe.about)]
        entry[0] += probe.is_hit(seen)
        entry[1] += 1
        leaks += probe.leaks(seen, triggers)
    return {
        "hits": {kind: dict(of_kind) for kind, of_kind in hits.items()},
        "leaks": [leaks, len(probes)],
    }


def distances(
    probes: Sequence[Probe],
    pictures: Tensor,
    alone: Callable[[Sequence[Probe], float], tuple[Tensor, Tensor]] | None,
    cfg: float,
) -> dict[str, float]:
    about_one = [i for i, probe in enumerate(probes) if probe.kind == "alone"]
    if alone is None or not about_one:
        return {}
    single, base = alone([probes[i] for i in about_one], cfg)
    return {
        "distance": float(
            (pictures[about_one] - single).square().sum() / (base - single).square().sum()
        )
    }


def ceiling(bench: Bench, pairs: int = 16) -> dict[str, float]:
    """Return how often the base model draws two things that it knows, in the forms in which
    concepts are asked for.
    """
    chance = random.Random(5)
    rates = {}
    for kind, forms in (("seen", SEEN), ("unseen", UNSEEN)):
        asked = [(form, *chance.sample(base_labels(), 2)) for form in forms for _ in range(pairs)]
        probes = [
            Probe(kind, (), form.format(a=" ".join(a), b=" ".join(b)), 30_000 + i, (a, b))
            for i, (form, a, b) in enumerate(asked)
        ]
        judged = bench.recogniser.judge(
            bench.sample(None, [p.caption for p in probes], [p.seed for p in probes])
        )
        rates[kind] = sum(
            probe.is_hit(seen) for probe, seen in zip(probes, judged, strict=True)
        ) / len(probes)
    return rates


class SinglePictures:
    """Pictures of the single LoRAs and of the base model, sampled once."""

    def __init__(self, bench: Bench, lora_set: LoraSet) -> None:
        self.bench = bench
        self.lora_set = lora_set
        self.known: dict[tuple[Probe, float, bool], Tensor] = {}

    def __call__(self, probes: Sequence[Probe], cfg: float) -> tuple[Tensor, Tensor]:
        for worn in (True, False):
            for trigger in dict.fromkeys(probe.about[0] for probe in probes):
                new = [
                    p for p in probes if p.about[0] == trigger and (p, cfg, worn) not in self.known
                ]
                if new:
                    adapter = self.bench.lora(trigger, self.lora_set).adapter if worn else None
                    found = self.bench.sample(
                        adapter, [p.caption for p in new], [p.seed for p in new], cfg
                    )
                    self.known.update(
                        {(p, cfg, worn): picture for p, picture in zip(new, found, strict=True)}
                    )
        single, base = (
            torch.stack([self.known[p, cfg, worn] for p in probes]) for worn in (True, False)
        )
        return single, base
