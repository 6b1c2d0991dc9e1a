"""Plans of a merge's tasks: the captions, sampling runs and samples of each."""

from __future__ import annotations

import functools
import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..errors import CalibrationError
from ..network import IMAGE_STREAM, TEXT_STREAM
from ..tasks import PRESERVE_TASK, PerToken, Sample
from .calibration import Calibration
from .choices import base_captions, is_chosen, kept_levels, own_captions, path_to, staggered
from .lora_use import LoraUse
from .model import Encoded
from .regions import Region
from .samples import Context, Reading
from .sampling import Latents, Part, Run
from .scenes import (
    Length,
    Member,
    Scene,
    TokenPositions,
    by_kind,
    make_scenes,
    prefixes,
    shuffled,
    styled_forms,
    with_prefix,
)

# How much a subject in a style counts for each 1 of `scene_weight`: its own captions show the
# subject without the style, and in layers that read the picture alone the two are hard to tell
# apart (docs/why.md).
_STYLED_WEIGHT = 10.0


@dataclass(frozen=True, eq=False)
class Plan(ABC):
    """One task of a merge before its samples exist; compared by identity.

    Lifecycle:
        1. `readings`: the captions that the text encoder has to read for it.
        2. `runs`: its parts in sampling runs, once those captions are encoded.
        3. Of a `TaskPlan`, `samples`: once the runs are made.

    Args:
        mix: Mix that its teacher wears: number of a LoRA -> share.
        number: Decides the noise; plans share one only where they share their runs.
    """

    name: str
    mix: Mapping[int, float]
    weight: float
    number: int
    calibration: Calibration

    @abstractmethod
    def readings(self) -> list[Reading]:
        """Return the readings of teacher and student, without duplicates."""

    @abstractmethod
    def drawn_in(self) -> list[Run]:
        """Return the sampling runs that its teacher draws in."""

    @abstractmethod
    def runs(self, contexts: Contexts) -> dict[Run, Part]:
        """Return the sampling runs that its teacher draws in, and its part in each."""

    def samples_of_runs(self) -> list[int]:
        """Return the number of samples of each of its sampling runs."""
        return [len(run.kept) for run in self.drawn_in()]

    def sample_count(self) -> int:
        """Return the number of its samples of the diffusion model."""
        return sum(self.samples_of_runs())

    @property
    def unconditional(self) -> Reading:
        """The reading of the negative prompt."""
        return Reading.of(self.calibration.negative_prompt)

    def with_negative(self, captions: Sequence[str]) -> list[Reading]:
        """Return the readings of captions that teacher and student both read, without duplicates;
        with guidance, also of the negative prompt.
        """
        negative = [self.unconditional] if self.calibration.is_guided else []
        return list(dict.fromkeys([*map(Reading.of, captions), *negative]))

    def negative(self, contexts: Contexts) -> Encoded | None:
        """Return the negative prompt as its teacher reads it; None without guidance."""
        return contexts[self, self.unconditional].teacher if self.calibration.is_guided else None

    def run(self, owner: str, number: int) -> Run:
        """Return sampling run `number`."""
        kept = kept_levels(self.calibration, number)
        seed = self.seed(number)
        return Run(owner, number, seed, tuple(kept), tuple(path_to(self.calibration, kept)), seed)

    def seed(self, number: int) -> int:
        """Return the seed of run `number`; plans with other numbers have no run of this seed."""
        return self.calibration.seed * 1_000_003 + self.number * 1009 + number


class TaskPlan(Plan):
    """A plan with samples, which compare teacher and student."""

    @abstractmethod
    def samples(self, contexts: Contexts, latents: Latents) -> list[Sample]:
        """Return its samples of the diffusion model."""


# What teacher and student of a plan read, encoded.
Contexts = Mapping[tuple[Plan, Reading], Context]


@dataclass(frozen=True, eq=False)
class CaptionPlan(TaskPlan):
    """A task with captions that teacher and student both read, each with a sampling run.

    Args:
        captions: One caption per sampling run.
        unconditional_share: Share of the kept latents that are also read with the negative prompt.
    """

    captions: tuple[str, ...]
    unconditional_share: float

    def readings(self) -> list[Reading]:
        return self.with_negative(self.captions)

    def drawn_in(self) -> list[Run]:
        return [run for run, _ in self._captioned_runs()]

    def samples_of_runs(self) -> list[int]:
        runs = self.drawn_in()
        return [
            sum(1 + is_chosen(i, self.unconditional_share, start) for i in range(len(run.kept)))
            for run, start in zip(runs, staggered(len(runs)), strict=True)
        ]

    def runs(self, contexts: Contexts) -> dict[Run, Part]:
        negative = self.negative(contexts)
        parts = {
            caption: Part(self.mix, contexts[self, Reading.of(caption)].teacher, negative)
            for caption in self.captions
        }
        return {run: parts[caption] for run, caption in self._captioned_runs()}

    def samples(self, contexts: Contexts, latents: Latents) -> list[Sample]:
        samples = []
        starts = staggered(len(self.captions))
        for (run, caption), start in zip(self._captioned_runs(), starts, strict=True):
            for i, (x, sigma) in enumerate(latents.kept[run]):
                samples.append(contexts[self, Reading.of(caption)].sample(x, sigma))
                if is_chosen(i, self.unconditional_share, start):
                    negative = contexts[self, self.unconditional]
                    samples.append(negative.sample(x, sigma, is_negative=True))
        return samples

    def _captioned_runs(self) -> list[tuple[Run, str]]:
        """Return each run with its caption; runs of one caption share their first step."""
        runs = []
        first: dict[str, int] = {}  # seed of the caption's first run that makes a step
        for i, caption in enumerate(self.captions):
            run = self.run(self.name, i)
            if run.length:
                run = replace(run, first=first.setdefault(caption, run.seed))
            runs.append((run, caption))
        return runs


class ScenePart(NamedTuple):
    """A LoRA's part in a scene: the scene's number, the scene, and the LoRA as its member."""

    number: int
    scene: Scene
    member: Member


@dataclass(frozen=True, eq=False)
class ScenePlan(TaskPlan):
    """One LoRA's task in captions with other LoRAs, where only its words, the caption's end, and
    its region count.

    Args:
        parts: The scenes with the LoRA.
        own: Plan of the LoRA's own task, whose teacher reads the negative prompt for it.
    """

    parts: tuple[ScenePart, ...]
    own: CaptionPlan

    def readings(self) -> list[Reading]:
        return list(dict.fromkeys(_reading(part) for part in self.parts))

    def drawn_in(self) -> list[Run]:
        return [self._run(part) for part in self.parts if self._is_drawn(part)]

    def sample_count(self) -> int:
        return sum(len(self._run(part).kept) if self._is_drawn(part) else 1 for part in self.parts)

    def runs(self, contexts: Contexts) -> dict[Run, Part]:
        drawn = [part for part in self.parts if self._is_drawn(part)]
        negative = self.own.negative(contexts) if drawn else None
        return {
            self._run(part): Part(
                self.mix,
                contexts[self, _reading(part)].teacher,
                negative,
                functools.partial(part.scene.mask_of, part.member),
            )
            for part in drawn
        }

    def samples(self, contexts: Contexts, latents: Latents) -> list[Sample]:
        samples = []
        for part in self.parts:
            context = contexts[self, _reading(part)]
            kept = latents.kept.get(self._run(part))
            if kept is None:
                # It counts in the text alone, which depends on neither latents nor noise level.
                x, sigma = latents.pure_noise(part.number)
                samples.append(context.sample(x, sigma, {IMAGE_STREAM: torch.zeros}))
                continue
            mask = part.scene.mask_of(part.member, latents.shape)
            frames = math.prod(latents.shape[1:-2])
            weights: dict[str, PerToken] = {
                IMAGE_STREAM: Region(mask, latents.sampler.picture, frames)
            }
            if part.member.pairing.is_empty:
                weights[TEXT_STREAM] = torch.zeros
            samples += [context.sample(x, sigma, weights) for x, sigma in kept]
        return samples

    def _is_drawn(self, part: ScenePart) -> bool:
        return self.calibration.scene_pictures and part.scene.has_region(part.member)

    def _run(self, part: ScenePart) -> Run:
        return self.run("scenes", part.number)


def _reading(part: ScenePart) -> Reading:
    return Reading(part.member.caption, part.scene.caption, part.member.pairing)


def runs_of(plans: Sequence[Plan], contexts: Contexts) -> dict[Run, list[Part]]:
    """Return the sampling runs of all plans; plans that share a run each have a part in it."""
    runs: dict[Run, list[Part]] = {}
    for plan in plans:
        for run, part in plan.runs(contexts).items():
            runs.setdefault(run, []).append(part)
    return runs


def make_plans(
    loras: Sequence[LoraUse],
    calibration: Calibration,
    token_positions: TokenPositions | None,
    length: Length | None = None,
) -> list[TaskPlan]:
    """Return the tasks of a merge: of each LoRA, of the base model, of subjects in styles, and of
    scenes.

    Args:
        loras: LoRAs of different names.
        token_positions, length: See `scenes.make_scenes`.

    Raises:
        CalibrationError: A LoRA without prompts, or see `scenes.make_scenes`.
    """
    own = make_own_plans(loras, calibration)
    plans: list[TaskPlan] = [*own, *_preserve_plans(len(own), calibration)]
    plans += _styled_plans(loras, len(plans), calibration)
    if calibration.scene_weight and len(loras) > 1:
        scenes = make_scenes(loras, calibration, token_positions, length)
        plans += _scene_plans(loras, own, scenes, len(plans), calibration)
    return plans


def make_own_plans(loras: Sequence[LoraUse], calibration: Calibration) -> list[CaptionPlan]:
    """Return a task per LoRA on its prompts, some of them in company of ordinary things.

    Raises:
        CalibrationError: A LoRA without prompts, or with an empty one; names it.
    """
    plans = []
    for k, lora in enumerate(loras):
        try:
            captions = own_captions(lora, calibration, calibration.seed + k)
        except CalibrationError as error:
            raise CalibrationError(f"LoRA {lora.name!r}: {error}") from error
        share = calibration.unconditional_share
        plans.append(
            CaptionPlan(lora.name, {k: 1.0}, lora.weight, k, calibration, tuple(captions), share)
        )
    return plans


def _preserve_plans(number: int, calibration: Calibration) -> list[CaptionPlan]:
    """Return the task that keeps the base model, unless its weight is 0."""
    if not calibration.preserve_weight:
        return []
    captions = tuple(base_captions(calibration))
    weight = calibration.preserve_weight
    share = calibration.unconditional_share
    return [CaptionPlan(PRESERVE_TASK, {}, weight, number, calibration, captions, share)]


def _styled_plans(
    loras: Sequence[LoraUse], first: int, calibration: Calibration
) -> list[CaptionPlan]:
    """Return a task per subject and style, whose teacher wears both; a style's captions and weight
    are shared over subjects.
    """
    forms = styled_forms(calibration)
    subjects, styles = by_kind(loras)
    if not (calibration.scene_weight and forms and subjects):
        return []
    count = math.ceil(calibration.trajectories / len(subjects))
    rng = random.Random(calibration.seed)
    plans = []
    for number, (i, j) in enumerate(itertools.product(subjects, styles), first):
        subject = loras[i]
        style = loras[j]
        # zip asks `range` last, and so draws one form and prefix more, on which results depend
        captions = tuple(
            with_prefix(prefix, form).format(first=subject.called, style=style.called)
            for form, prefix, _ in zip(
                shuffled(forms, rng), prefixes(calibration, rng), range(count), strict=False
            )
        )
        of_both = _STYLED_WEIGHT * calibration.scene_weight * (subject.weight + style.weight)
        plans.append(
            CaptionPlan(
                f"{subject.name} in the style of {style.name}",
                {i: 1.0, j: 1.0},
                of_both / 2 / len(subjects),
                number,
                calibration,
                captions,
                calibration.unconditional_share,
            )
        )
    return plans


def _scene_plans(
    loras: Sequence[LoraUse],
    own: Sequence[CaptionPlan],
    scenes: Sequence[Scene],
    number: int,
    calibration: Calibration,
) -> list[ScenePlan]:
    """Return a scene task per LoRA that takes part in any."""
    plans = []
    for k, lora in enumerate(loras):
        parts = tuple(
            ScenePart(i, scene, member)
            for i, scene in enumerate(scenes)
            for member in scene.members
            if member.lora == k
        )
        if parts:
            name = f"{lora.name} in scenes"
            weight = calibration.scene_weight * lora.weight
            plans.append(ScenePlan(name, {k: 1.0}, weight, number, calibration, parts, own[k]))
    return plans
