"""LoRAs that stay apart: one prediction for each at every step, put together by the sampler. What a
single file is measured against.

Every LoRA whose trigger stands in a caption takes part, so that a caption with one trigger is drawn
by that LoRA alone, and a caption without one by the base model.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from iteris_core.adapters import Adapter
from iteris_core.diffusion.captions import SUBJECT_PLACES
from iteris_core.diffusion.regions import layout_of, region_masks, regions_of

from .bench import Bench, in_rows, wearing


class Voice(NamedTuple):
    """A LoRA's part in pictures that several draw together.

    Args:
        adapter: The LoRA.
        texts: What it reads, one per picture.
        masks: Where it counts, (n, 1, height, width).
    """

    adapter: Adapter
    texts: list[str]
    masks: Tensor


Voices = Callable[[Bench, Mapping[str, Adapter], list[str], Sequence[int]], list[Voice]]


def whole_caption(
    bench: Bench, adapters: Mapping[str, Adapter], captions: list[str], seeds: Sequence[int]
) -> list[Voice]:
    """Let every LoRA read the whole caption, and take the mean of their guided predictions
    (LoRA Composite, arXiv 2402.16843).
    """
    share = torch.full((len(captions), 1, 1, 1), 1 / len(adapters))
    return [Voice(adapter, captions, share) for adapter in adapters.values()]


def own_part(
    bench: Bench, adapters: Mapping[str, Adapter], captions: list[str], seeds: Sequence[int]
) -> list[Voice]:
    """Let every LoRA read "a <v1>" alone, and add up their guidance (Composable Diffusion, arXiv
    2206.01714).
    """
    whole = torch.ones(len(captions), 1, 1, 1)
    return [
        Voice(adapter, [f"a {trigger}"] * len(captions), whole)
        for trigger, adapter in adapters.items()
    ]


def own_region(
    bench: Bench, adapters: Mapping[str, Adapter], captions: list[str], seeds: Sequence[int]
) -> list[Voice]:
    """Let every LoRA read the caption with ordinary things for the others' triggers, and count in
    its part of the picture, as the teachers of scenes do.
    """
    names = dict(zip(adapters, SUBJECT_PLACES, strict=False))
    height, width = bench.model.latent_shape(64)[-2:]
    texts: dict[str, list[str]] = defaultdict(list)
    masks: dict[str, list[Tensor]] = defaultdict(list)
    for caption, seed in zip(captions, seeds, strict=True):
        chance = random.Random(seed)
        form = caption
        for trigger, name in names.items():
            form = form.replace(trigger, f"{{{name}}}")
        layout = layout_of(form)
        assert layout is not None  # no form of a world has two things in one place
        regions = regions_of(form)
        parts = region_masks(layout, len(names), height, width)
        for trigger, name in names.items():
            things = {
                other: trigger
                if other == name
                else " ".join(chance.choice(bench.world.base_labels))
                for other in names.values()
            }
            texts[trigger].append(form.format(**things))
            masks[trigger].append(parts[regions[name]])
    return [
        Voice(adapter, texts[trigger], torch.stack(masks[trigger])[:, None])
        for trigger, adapter in adapters.items()
    ]


APART: dict[str, Voices] = {
    "whole caption": whole_caption,
    "own part": own_part,
    "own region": own_region,
}


@torch.no_grad()
def sample_apart(
    bench: Bench,
    adapters: Mapping[str, Adapter],
    captions: Sequence[str],
    seeds: Sequence[int],
    way: str,
) -> Tensor:
    """Return one picture per caption, (n, 3, 24, 24).

    Args:
        bench: The world.
        adapters: Trigger -> LoRA.
        captions, seeds: Captions of the pictures, and the seeds of their noise.
        way: How predictions are put together, one of `APART`.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, caption in enumerate(captions):
        groups[tuple(trigger for trigger in adapters if trigger in caption)].append(i)
    pictures: dict[int, Tensor] = {}
    for triggers, numbers in groups.items():
        of_group = [captions[i] for i in numbers], [seeds[i] for i in numbers]
        if len(triggers) < 2:
            found = bench.sample(adapters[triggers[0]] if triggers else None, *of_group)
        else:
            taking_part = {trigger: adapters[trigger] for trigger in triggers}
            found = torch.cat(
                [
                    _drawn(bench, APART[way](bench, taking_part, texts, of_texts), of_texts)
                    for texts, of_texts in in_rows(*of_group)
                ]
            )
        pictures.update(zip(numbers, found, strict=True))
    return torch.stack([pictures[i] for i in range(len(captions))])


def _drawn(bench: Bench, voices: Sequence[Voice], seeds: Sequence[int]) -> Tensor:
    """Return pictures that voices draw together: what the base model predicts without a prompt, and
    what each LoRA's guidance adds to it, where it counts.
    """
    cfg = bench.world.cfg
    nothing = bench.encoded([""] * len(seeds))
    prompts = []
    for voice in voices:
        with wearing(bench.model, voice.adapter):
            prompts.append(bench.encoded([*voice.texts, *[""] * len(seeds)]))

    def clean(x: Tensor, sigma: Tensor) -> Tensor:
        total = plain = bench.clean(x, sigma, nothing)
        for voice, of_voice in zip(voices, prompts, strict=True):
            with wearing(bench.model, voice.adapter):
                told, untold = bench.clean(x.repeat(2, 1, 1, 1), sigma, of_voice).chunk(2)
            total = total + voice.masks * (untold + cfg * (told - untold) - plain)
        return total

    return bench.drawn(seeds, clean)
