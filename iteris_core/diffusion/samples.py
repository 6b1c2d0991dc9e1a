"""The samples of a merge, before anything runs: what each of them is for, what its teacher and the
student read, and where its latents come from.

Captions, sampling runs, tasks and the cost of a merge are read off the list.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..errors import CalibrationError
from ..files.trigger_words import has_words
from ..network import IMAGE_STREAM, TEXT_STREAM
from ..tasks import PRESERVE_TASK, PerToken, Sample
from .calibration import Calibration
from .contexts import Contexts, Pairing, Texts
from .lora_use import LoraUse
from .regions import Area, Region
from .runs import Run, is_chosen, staggered
from .sampling import Latents, Part, Sampler
from .scenes import Length, Scene, TokenPositions, make_scenes


@dataclass(frozen=True)
class SampleSpec:
    """A sample of the diffusion model before it exists.

    Args:
        task: Name of its task.
        lora: Number of the LoRA that the teacher wears; None: the base model.
        weight: Weight of its task.
        teacher: What the teacher reads.
        student: What the student reads.
        run: The sampling run that its latents are of; None: they are pure noise, since the sample
            counts in the text alone.
        noise: Seed of the pure noise.
        pairing: The tokens of a scene that count; None: all.
        area: The part of the picture that counts, and that the teacher draws; None: all of it.
        is_negative: Whether both read the negative prompt.
    """

    task: str
    lora: int | None
    weight: float
    teacher: str
    student: str
    run: Run | None
    noise: int = 0
    pairing: Pairing | None = None
    area: Area | None = None
    is_negative: bool = False

    @property
    def mix(self) -> dict[int, float]:
        """The mix of LoRAs that the teacher wears."""
        return {} if self.lora is None else {self.lora: 1.0}

    @property
    def is_of_scene(self) -> bool:
        """Whether it is of a caption in which several LoRAs meet."""
        return self.pairing is not None

    @property
    def texts(self) -> Texts:
        return Texts(self.teacher, self.student, self.pairing, self.task, self.lora)


# Makes samples of one task: all fields of a `SampleSpec` after its weight.
_OfTask = Callable[..., SampleSpec]
# Number of a task's sampling run -> the run; see `Run.of`.
_RunOf = Callable[[int], Run]


def make_samples(
    loras: Sequence[LoraUse],
    calibration: Calibration,
    token_positions: TokenPositions | None,
    length: Length | None = None,
    *,
    early: bool = False,
) -> list[SampleSpec]:
    """Return the samples of a merge, task by task: those of each LoRA, of the base model, and of
    each LoRA in scenes.

    Args:
        loras: LoRAs of different names.
        token_positions, length: See `scenes.make_scenes`.
        early: See `runs.Run.of`.

    Raises:
        CalibrationError: A LoRA without prompts, or with an empty one; names it. Or see
            `scenes.make_scenes`.
    """
    samples: list[SampleSpec] = []
    run_of = partial(Run.of, calibration, early=early)
    for k, lora in enumerate(loras):
        try:
            captions = own_captions(lora, calibration, calibration.seed + k)
        except CalibrationError as error:
            raise CalibrationError(f"LoRA {lora.name!r}: {error}") from error
        of_task = partial(SampleSpec, lora.name, k, lora.weight)
        samples += _of_captions(of_task, partial(run_of, k), captions, calibration)
    group = len(loras)  # of sampling runs
    if calibration.preserve_weight:
        of_task = partial(SampleSpec, PRESERVE_TASK, None, calibration.preserve_weight)
        captions = base_captions(calibration)
        samples += _of_captions(of_task, partial(run_of, group), captions, calibration)
        group += 1
    if calibration.scene_weight and len(loras) > 1:
        scenes = make_scenes(loras, calibration, token_positions, length)
        for k, lora in enumerate(loras):
            weight = calibration.scene_weight * lora.weight
            of_task = partial(SampleSpec, f"{lora.name} in scenes", k, weight)
            samples += _of_scenes(of_task, k, partial(run_of, group), scenes)
    return samples


def _of_captions(
    of_task: _OfTask, run_of: _RunOf, captions: Sequence[str], calibration: Calibration
) -> Iterator[SampleSpec]:
    """Yield samples of captions that teacher and student both read, each with a sampling run, and
    of a share of their latents with the negative prompt. Runs of one caption share their first
    step.
    """
    negative = calibration.negative_prompt
    first: dict[str, int] = {}  # seed of a caption's first run that makes a step
    starts = staggered(len(captions))
    for number, (caption, start) in enumerate(zip(captions, starts, strict=True)):
        run = run_of(number)
        if run.length:
            run = replace(run, first=first.setdefault(caption, run.seed))
        yield of_task(caption, caption, run)
        if is_chosen(0, calibration.unconditional_share, start):
            yield of_task(negative, negative, run, is_negative=True)


def _of_scenes(
    of_task: _OfTask, lora: int, run_of: _RunOf, scenes: Sequence[Scene]
) -> Iterator[SampleSpec]:
    """Yield samples of a LoRA in captions with others, where only its words, the caption's end, and
    its part of the picture count. The LoRAs of a scene draw it together, in one run.
    """
    for number, scene in enumerate(scenes):
        for member in scene.members:
            if member.lora != lora:
                continue
            sample = partial(of_task, member.caption, scene.caption, pairing=member.pairing)
            if member.area is None:
                yield sample(None, noise=number)  # text depends on neither latents nor noise level
            else:
                yield sample(run_of(number), area=member.area)


def own_captions(lora: LoraUse, calibration: Calibration, seed: int) -> list[str]:
    """Return one caption per trajectory: a LoRA's prompts in turn, some of them replaced by their
    subject next to an ordinary thing.

    Raises:
        CalibrationError: No prompt, or one without words.
    """
    prompts = lora.prompts
    if not prompts or not all(map(has_words, prompts)):
        raise CalibrationError(
            "a prompt is empty, or of punctuation only; write at least one that contains "
            "the LoRA's trigger words"
        )
    rng = random.Random(seed)
    starts = staggered(len(prompts))
    captions = []
    for i in range(calibration.trajectories):
        turn, which = divmod(i, len(prompts))
        caption = prompts[which]
        if is_chosen(turn, calibration.composition_share, starts[which]):
            form = rng.choice(calibration.compositions)
            subject = lora.subject_of(caption)
            caption = form.format(prompt=subject, thing=rng.choice(calibration.companions))
        captions.append(caption)
    return captions


def base_captions(calibration: Calibration) -> list[str]:
    """Return captions for the preserve task, one per trajectory."""
    known = calibration.preserve_captions
    return [known[i % len(known)] for i in range(calibration.trajectories)]


def tasks_of(samples: Iterable[SampleSpec]) -> list[list[SampleSpec]]:
    """Return the samples of each task."""

    def task(sample: SampleSpec) -> tuple[str, int | None, bool]:
        return sample.task, sample.lora, sample.is_of_scene  # a LoRA may be called as another task

    return [list(of_task) for _, of_task in itertools.groupby(samples, task)]


def texts_of(of_task: Sequence[SampleSpec], calibration: Calibration) -> list[Texts]:
    """Return what the text encoder has to read for a task, without duplicates; with guidance also
    the negative prompt, once for each teacher.
    """
    texts = dict.fromkeys(sample.texts for sample in of_task if not sample.is_negative)
    if calibration.is_guided and not of_task[0].is_of_scene:
        negative = calibration.negative_prompt
        texts[of_task[0].texts._replace(teacher=negative, student=negative)] = None
    return list(texts)


def runs_of(
    samples: Iterable[SampleSpec], contexts: Contexts, calibration: Calibration
) -> dict[Run, list[Part]]:
    """Return the sampling runs of samples, and the part of each teacher in them."""
    negatives = {
        texts.lora: context.teacher
        for texts, context in contexts.items()
        if calibration.is_guided
        and texts.pairing is None
        and texts.teacher == calibration.negative_prompt
    }
    parts: dict[tuple[Texts, Area | None], Part] = {}
    runs: dict[Run, dict[Part, None]] = {}
    for sample in samples:
        if sample.run is None or sample.is_negative:
            continue
        key = sample.texts, sample.area
        if key not in parts:
            text, negative = contexts[sample.texts].teacher, negatives.get(sample.lora)
            region = None if sample.area is None else sample.area.mask
            parts[key] = Part(sample.mix, text, negative, region)
        runs.setdefault(sample.run, {})[parts[key]] = None
    return {run: list(of_run) for run, of_run in runs.items()}


def as_rows(
    samples: Iterable[SampleSpec],
    contexts: Contexts,
    sampler: Sampler,
    latents: Mapping[Run, Latents],
) -> list[Sample]:
    """Return samples with their contexts and latents, as rows of the diffusion model read them. The
    LoRAs of a scene share the student's row, which reads the same.
    """
    regions: dict[Area, Region] = {}
    students: dict[tuple[Run, str], Any] = {}
    found = []
    for sample in samples:
        weights: dict[str, PerToken] = {}
        if sample.run is None:
            x, sigma = sampler.pure_noise(sample.noise)
            weights[IMAGE_STREAM] = torch.zeros
        else:
            x, sigma = latents[sample.run]
        if sample.area is not None:
            if sample.area not in regions:
                regions[sample.area] = sampler.region(sample.area)
            weights[IMAGE_STREAM] = regions[sample.area]
            if sample.pairing is not None and sample.pairing.ends is None:
                weights[TEXT_STREAM] = torch.zeros
        row = contexts[sample.texts].sample(x, sigma, weights, is_negative=sample.is_negative)
        if sample.is_of_scene and sample.run is not None:
            shared = students.setdefault((sample.run, sample.student), row.student)
            row = replace(row, student=shared)
        found.append(row)
    return found
