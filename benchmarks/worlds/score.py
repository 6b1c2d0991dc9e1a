"""The questions to a merge, and the judgement of its pictures."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iteris_core.adapters import Adapter
from iteris_core.diffusion.captions import layout_of, regions_of
from iteris_core.diffusion.regions import region_masks

from .bench import Bench, Half
from .drawing import Label
from .recogniser import Judgement
from .world import World

# Pictures per concept alone, and about all pairs of a merge together in seen and in unseen forms.
ALONE = 12
PAIRS = {"seen": 16, "unseen": 12}
BASE = 12


@dataclass(frozen=True)
class Probe:
    """A picture to sample, and its correct content.

    Args:
        kind: Kind of question, a column of the tables.
        about: Triggers that the question is about.
        caption: Caption of the picture.
        labels: Things in a correct picture, no more and no less.
        seed: Seed of its noise.
    """

    kind: str
    about: tuple[str, ...]
    caption: str
    labels: tuple[Label, ...]
    seed: int = 0

    def is_hit(self, seen: Judgement) -> bool:
        return sorted(seen.labels) == sorted(self.labels) and seen.style is None

    def leaks(self, world: World, seen: Judgement, triggers: Sequence[str]) -> bool:
        """Tell whether one of the merged concepts is there unasked."""
        concepts = {world.concept_of(t) for t in triggers}
        return any(label in concepts and label not in self.labels for label in seen.labels)


Question = tuple[Probe, int]  # how many pictures of it are asked for


def probes_of(world: World, triggers: Sequence[str], effort: int = 1) -> list[Probe]:
    """Return the probes of a merge of these triggers, a pair's 76 times `effort`."""
    questions = [
        *_about_one(world, triggers),
        *_about_pairs(world, triggers),
        *(
            (Probe("base", (), caption, labels), -(-BASE // len(world.forms.base)))
            for caption, labels in world.forms.base
        ),
    ]
    probes: list[Probe] = []
    asked: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for probe, count in questions:
        for _ in range(count * effort):
            # the number of the picture within its kind and its triggers is its seed
            probes.append(replace(probe, seed=10_000 + asked[probe.kind, probe.about]))
            asked[probe.kind, probe.about] += 1
    return probes


def _about_one(world: World, concepts: Sequence[str]) -> Iterator[Question]:
    forms = world.forms
    for a in concepts:
        label = world.concept_of(a)
        for form in forms.alone:
            yield Probe("alone", (a,), form.format(a=a), (label,)), ALONE // len(forms.alone)
        for form, other in forms.company:
            yield Probe("company", (a,), form.format(a=a), (label, other)), 2


def _about_pairs(world: World, concepts: Sequence[str]) -> Iterator[Question]:
    """Yield the questions about two concepts; forms, orders and pairs come in turn."""
    pairs = list(itertools.combinations(concepts, 2))
    for kind, forms in (("seen", world.forms.seen), ("unseen", world.forms.unseen)):
        ways = list(itertools.product(forms, (False, True)))
        count = max(PAIRS[kind], len(pairs) * 2)
        for i in range(count if pairs else 0):
            a, b = pairs[i % len(pairs)]
            turn = i // len(pairs)
            form, swapped = ways[(turn + i % len(pairs)) % len(ways)]
            first, second = (b, a) if swapped else (a, b)
            labels = (world.concept_of(a), world.concept_of(b))
            yield Probe(kind, (a, b), form.format(a=first, b=second), labels), 1


def score(
    bench: Bench,
    adapter: Adapter | None,
    probes: Sequence[Probe],
    triggers: Sequence[str],
) -> dict[str, Any]:
    """Sample the probes and judge them.

    Returns:
        ``hits``: kind -> trigger(s) -> [hits, pictures]; ``leaks``: [pictures with something
        unasked, pictures].
    """
    captions = [probe.caption for probe in probes]
    pictures = bench.sample(adapter, captions, [probe.seed for probe in probes])
    return tally(bench.world, probes, bench.recogniser.judge(pictures), triggers)


def score_by_region(
    bench: Bench, loras: Mapping[str, Adapter], probes: Sequence[Probe]
) -> dict[str, Any]:
    """Sample and judge probes about two triggers, each LoRA drawing its half alone."""
    judged: list[Judgement] = []
    height, width = bench.model.latent_shape(64)[-2:]
    for probe in probes:
        first, second = sorted(probe.about, key=probe.caption.index)
        form = probe.caption.replace(first, "{first}").replace(second, "{second}")
        masks = region_masks(layout_of(form) or "columns", 2, height, width)
        things = random.Random(probe.seed).sample(bench.world.base_labels, 2)
        halves = [
            Half(
                loras[own],
                [probe.caption.replace(other, " ".join(thing))],
                masks[regions_of(form)[place]],
            )
            for own, other, place, thing in (
                (first, second, "first", things[0]),
                (second, first, "second", things[1]),
            )
        ]
        judged += bench.recogniser.judge(bench.sample_by_region(halves, [probe.seed]))
    return tally(bench.world, probes, judged, tuple(loras))


def tally(
    world: World, probes: Sequence[Probe], judged: Sequence[Judgement], triggers: Sequence[str]
) -> dict[str, Any]:
    hits: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    leaks = 0
    for probe, seen in zip(probes, judged, strict=True):
        entry = hits[probe.kind][" + ".join(probe.about)]
        entry[0] += probe.is_hit(seen)
        entry[1] += 1
        leaks += probe.leaks(world, seen, triggers)
    return {
        "hits": {kind: dict(of_kind) for kind, of_kind in hits.items()},
        "leaks": [leaks, len(probes)],
    }
