"""Calibration for diffusion models: which captions, and which latents of each teacher's own
sampling runs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CalibrationError, ConfigError
from ..settings import check, setting
from .captions import (
    COMPANIONS,
    COMPOSITIONS,
    ORDINARY_STYLES,
    PRESERVE_CAPTIONS,
    SCENE_FORMS,
    check_placeholders,
    check_scene_form,
)

MOST_SEEDS = 1 << 32
# The multiples of these, modulo 1, cover an interval evenly, however many there are.
_GOLDEN_RATIO = 0.6180339887
_SQUARE_ROOT_OF_2 = 1.4142135624


@dataclass(frozen=True)
class Calibration:
    """How the samples are made on which LoRAs are measured.

    Each field below says what it means; here is what more there is to know. Where a default was
    measured, the rows that show it are named: those of "Ablations, LoRAs trained for too long" in
    ``benchmarks/RESULTS.md``.

    Args:
        trajectories: Each run has a caption and a seed of its own (rows "trajectories": more are
            not better in a world with few captions).
        timesteps: The runs are staggered, so that together they cover all steps (rows "timesteps":
            more change nothing).
        unconditional_share: These latents are also sampled with the negative prompt, as guidance
            does (rows "unconditional share").
        composition_share: Rows "composition share".
        companions: The base model must know how to draw them.
        compositions: Each has the places ``{prompt}`` and ``{thing}``.
        preserve_weight: Rows "preserve weight".
        preserve_captions: Every fifth sampling run has an empty caption instead.
        scene_weight: Weight of each LoRA's scene task, whose captions put it together with the
            others. A subject in a style counts ten times as much. 1 is a good weight (rows "scene
             weight").
            Needs ``MergeConfig.target="full_output"``.
        scene_forms: Each has the places ``{first}`` and ``{second}``, or ``{third}`` too, for
            subjects, and ``{style}`` (row "one scene form").
        scene_pictures: If so, each LoRA counts in its own part of the picture. Otherwise scenes
            count in the text alone: the text encoder, and keys and values of cross-attention (rows
            "scene weight, pictures").
        ordinary_styles: They stand in captions in which only the subject's LoRA is worn.
        held_out: Their captions and seeds are not seen by the merge.
    """

    trajectories: int = setting(10, "Sampling runs per LoRA.", at_least=1)
    timesteps: int = setting(2, "Latents kept of each run.", at_least=1)
    sampling_steps: int = setting(12, "Steps of each run.", at_least=1)
    resolution: int = setting(
        512, "Side of the pictures in pixels, a multiple of 64.", at_least=64, multiple_of=64
    )
    cfg: float = setting(7.0, "Guidance of the runs.", at_least=0)
    unconditional_share: float = setting(
        0.5, "Share of the latents that are seen without the prompt, too.", at_least=0, at_most=1
    )
    composition_share: float = setting(
        0.5,
        "Share of the captions that put ordinary things beside the prompt.",
        at_least=0,
        at_most=1,
    )
    companions: tuple[str, ...] = setting(COMPANIONS, "Ordinary things to put beside a prompt.")
    compositions: tuple[str, ...] = setting(
        COMPOSITIONS, "Captions of a prompt beside an ordinary thing, with {prompt} and {thing}."
    )
    preserve_weight: float = setting(
        1.0, "Weight of the task that keeps the base model as it is; 0: no such task.", at_least=0
    )
    preserve_captions: tuple[str, ...] = setting(PRESERVE_CAPTIONS, "Captions of that task.")
    scene_weight: float = setting(
        0.0, "Weight of captions in which several LoRAs meet, such as 1; 0: none.", at_least=0
    )
    scene_forms: tuple[str, ...] = setting(
        SCENE_FORMS, "Those captions, with {first} and {second}, or {first} and {style}."
    )
    scene_pictures: bool = setting(
        True, "Whether scenes are measured in the picture too, or in the text alone."
    )
    ordinary_styles: tuple[str, ...] = setting(
        ORDINARY_STYLES, "Ordinary styles that stand in for the trigger of a style LoRA."
    )
    negative_prompt: str = setting("", "Negative prompt, which unconditional samples read.")
    held_out: int = setting(
        2, "Sampling runs per LoRA on which the result is checked; 0: no check.", at_least=0
    )
    seed: int = setting(
        0, "Seed of the captions and the noise.", at_least=0, at_most=MOST_SEEDS - 1
    )

    def __post_init__(self) -> None:
        check(self)
        if self.timesteps > self.sampling_steps:
            raise ConfigError(
                f"{self.timesteps} timesteps cannot be kept of {self.sampling_steps} sampling "
                "steps; keep fewer"
            )
        self._check_captions()

    def _check_captions(self) -> None:
        if self.preserve_weight and not self.preserve_captions:
            raise ConfigError(
                "the preserve task has no captions; give it some, or set its weight to 0"
            )
        if self.composition_share and not (self.companions and self.compositions):
            raise ConfigError(
                "composition captions need companions and compositions; give both, or set "
                "composition_share to 0"
            )
        for form in self.compositions:
            check_placeholders(form, {"prompt", "thing"})
        if self.scene_weight and not (self.scene_forms and self.companions):
            raise ConfigError(
                "scene tasks need scene_forms and companions; give both, or set scene_weight to 0"
            )
        for form in self.scene_forms:
            check_scene_form(form)


def preserve_runs(calibration: Calibration) -> int:
    """Return the sampling runs of the preserve task: as many rows as one adapter has, empty
    captions for unconditional ones.
    """
    return (
        round(calibration.trajectories * (1 + calibration.unconditional_share))
        if calibration.preserve_weight
        else 0
    )


def sample_count(calibration: Calibration, adapters: int, styles: int = 0) -> int:
    """Return about how many samples a merge of so many adapters, or styles among them, has; each is
    two rows.
    """
    own = calibration.trajectories * (1 + calibration.unconditional_share)
    meets = bool(calibration.scene_weight) and adapters > 1
    scenes = calibration.trajectories * adapters + own * (styles if styles < adapters else 0)
    return round(
        (own * adapters + preserve_runs(calibration) + meets * scenes) * calibration.timesteps
    )


def own_captions(prompts: Sequence[str], calibration: Calibration, seed: int) -> list[str]:
    """Return one caption per trajectory: the user's prompts in turn, a part of them in company of
    ordinary things.

    Raises:
        CalibrationError: No prompt, or an empty one.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise CalibrationError(
            "a prompt is empty; write at least one that contains the LoRA's trigger words"
        )
    chance = random.Random(seed)
    captions = []
    for i in range(calibration.trajectories):
        turn, which = divmod(i, len(prompts))
        caption = prompts[which]
        if is_chosen(turn, calibration.composition_share, which):
            form = chance.choice(calibration.compositions)
            caption = form.format(prompt=caption, thing=chance.choice(calibration.companions))
        captions.append(caption)
    return captions


def is_chosen(index: int, share: float, row: int) -> bool:
    """Choose a share of the items 0, 1, 2, ... of a row, evenly spread, and staggered from one row
    to the next.
    """
    start = (
        row * _SQUARE_ROOT_OF_2
    ) % 1  # not the golden ratio, or the choice would go along with the steps that are kept
    return math.floor((index + 1) * share + start) > math.floor(index * share + start)


def base_captions(calibration: Calibration, count: int) -> list[str]:
    """Return captions for the preserve task, every fifth of them empty."""
    known = calibration.preserve_captions
    return ["" if i % 5 == 4 else known[(i - i // 5) % len(known)] for i in range(count)]


def kept_steps(calibration: Calibration, run: int) -> list[int]:
    """Return which steps of a sampling run are kept: evenly spread, and staggered from one run to
    the next.
    """
    stride = calibration.sampling_steps / calibration.timesteps
    offset = (run * _GOLDEN_RATIO) % 1
    return [int((i + offset) * stride) for i in range(calibration.timesteps)]
