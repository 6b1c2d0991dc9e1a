"""Scene tasks of a diffusion model: which rows the captions with several LoRAs become, and what
counts in them.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tasks import Sample
from .calibration import Calibration, kept_steps, noise
from .samples import IMAGE_STREAM, Contexts, Plan, PromptedAdapter, Reading, unet_sample
from .sampling import Part, Run
from .scenes import (
    Member,
    Scene,
    TokenPositions,
    by_kind,
    make_scenes,
    on_grid,
    region_masks,
    shuffled,
    styled_forms,
)

# How much a subject in a style counts for each 1 of `scene_weight`: its own captions show the
# subject without the style, and in layers that read the picture alone the two are hard to tell
# apart ("weight of the scenes" in benchmarks/RESULTS.md).
_STYLED_WEIGHT = 10.0


@dataclass(frozen=True)
class ScenePlan:
    """One LoRA's scene task before its samples exist: the scenes, by number, in which it takes
    part, and its part in them.
    """

    name: str
    mix: Mapping[int, float]
    weight: float
    parts: tuple[tuple[int, Member], ...]
    scenes: Sequence[Scene]

    def reading(self, number: int, member: Member) -> Reading:
        return Reading(member.caption, self.scenes[number].caption, member.positions)

    def readings(self, negative_prompt: str) -> list[Reading]:
        return list(dict.fromkeys(self.reading(*part) for part in self.parts))


def make_scene_plans(
    loras: Sequence[PromptedAdapter],
    names: Sequence[str],
    calibration: Calibration,
    token_positions: TokenPositions,
) -> list[ScenePlan]:
    """Return a scene task per LoRA that takes part in any; none for a single LoRA, or with a weight
    of 0.

    Raises:
        CalibrationError: See `scenes.make_scenes`.
    """
    if not calibration.scene_weight or len(loras) < 2:
        return []
    scenes = make_scenes([lora.in_scenes for lora in loras], calibration, token_positions)
    plans = []
    for k, lora in enumerate(loras):
        parts = tuple(
            (i, member)
            for i, scene in enumerate(scenes)
            for member in scene.members
            if member.lora == k
        )
        if parts:
            plans.append(
                ScenePlan(
                    f"{names[k]} in scenes",
                    {k: 1.0},
                    calibration.scene_weight * lora.weight,
                    parts,
                    scenes,
                )
            )
    return plans


def make_styled_plans(
    loras: Sequence[PromptedAdapter], names: Sequence[str], calibration: Calibration
) -> list[Plan]:
    """Return a task per subject and style, whose teacher wears both; a style's captions and weight
    are shared over subjects.
    """
    forms = styled_forms(calibration)
    triggers = [lora.in_scenes for lora in loras]
    subjects, styles = by_kind(triggers)
    if not (calibration.scene_weight and forms and subjects):
        return []
    count = math.ceil(calibration.trajectories / len(subjects))
    chance = random.Random(calibration.seed)
    plans = []
    for i, j in itertools.product(subjects, styles):
        chosen = itertools.islice(shuffled(forms, chance), count)
        captions = tuple(
            form.format(first=triggers[i].words, style=triggers[j].words) for form in chosen
        )
        weight = (
            _STYLED_WEIGHT
            * calibration.scene_weight
            * (loras[i].weight + loras[j].weight)
            / 2
            / len(subjects)
        )
        name = f"{names[i]} in the style of {names[j]}"
        both = {i: 1.0, j: 1.0}
        plans.append(Plan(name, both, weight, captions, calibration.unconditional_share))
    return plans


def scene_runs(
    plans: Sequence[ScenePlan],
    first: int,
    calibration: Calibration,
    contexts: Contexts,
    shape: tuple[int, int, int],
) -> dict[int, Run]:
    """Return one sampling run per scene with regions, by its number: each member's teacher draws
    its own region.

    Args:
        plans: Of the scene tasks; number ``first`` and following of the merge. Task k of the merge
            is LoRA k's own.
        shape: Of the latents.
    """
    if not calibration.scene_pictures:
        return {}
    parts: dict[int, list[Part]] = {}
    for g, plan in enumerate(plans, first):
        for number, member in plan.parts:
            mask = _region(plan.scenes[number], member, shape)
            if mask is not None:
                text = contexts[g, plan.reading(number, member)].teacher
                negative = contexts[member.lora, Reading.of(calibration.negative_prompt)].teacher
                parts.setdefault(number, []).append(Part(plan.mix, text, negative, mask))
    seed = calibration.seed * 1_000_003 + first * 1009
    return {
        i: Run(tuple(of_run), seed + i, tuple(kept_steps(calibration, i)))
        for i, of_run in parts.items()
    }


def scene_samples(
    g: int,
    plan: ScenePlan,
    contexts: Contexts,
    latents: Mapping[int, Sequence[tuple[Tensor, Tensor]]],
    shape: tuple[int, int, int],
    sigma: Tensor,
) -> list[Sample]:
    """Return a scene task's UNet samples: in its region of a scene's kept latents, or in the text
    alone.

    Args:
        g: The task's number.
        latents: Kept (latents, sigma) of each scene that was sampled, by its number.
        shape: Of the latents.
        sigma: Noise level of rows that count in the text alone, whose inputs do not depend on it.
    """
    samples = []
    for number, member in plan.parts:
        context = contexts[g, plan.reading(number, member)]
        mask = _region(plan.scenes[number], member, shape)
        if number in latents:
            weights = {IMAGE_STREAM: functools.cache(functools.partial(on_grid, mask))}
            samples += [unet_sample(x, level, context, weights) for x, level in latents[number]]
        else:
            samples.append(
                unet_sample(
                    noise(shape, number) * sigma, sigma, context, {IMAGE_STREAM: torch.zeros}
                )
            )
    return samples


def _region(scene: Scene, member: Member, shape: tuple[int, int, int]) -> Tensor | None:
    if scene.layout is None or member.region is None:
        return None
    return region_masks(scene.layout, len(scene.members), *shape[1:])[member.region]
