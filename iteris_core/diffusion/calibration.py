"""Calibration for diffusion models: which captions, and which latents of each teacher's own
sampling runs.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CalibrationError, ConfigError
from .captions import (
    COMPANIONS,
    COMPOSITIONS,
    ORDINARY_STYLES,
    PRESERVE_CAPTIONS,
    SCENE_FORMS,
    check_placeholders,
    check_scene_form,
)

# The multiples of these, modulo 1, cover an interval evenly, however many there are.
_GOLDEN_RATIO = 0.6180339887
_SQUARE_ROOT_OF_2 = 1.4142135624


@dataclass(frozen=True)
class Calibration:
    """How samples for a diffusion model are made.

    Where a default was measured, the rows are named in which to see it: of "Ablations, LoRAs
    trained for too long" in ``benchmarks/RESULTS.md``.

    Args:
        trajectories: Sampling runs per task, each with a caption and a seed of its own (rows
            "trajectories": more are not better in a world with few captions).
        timesteps: Latents kept of each run. The runs are staggered, so that together they cover all
            steps (rows "timesteps": more change nothing).
        sampling_steps: Steps of each run.
        resolution: Side of the pictures in pixels, a multiple of 64.
        cfg: Guidance of the runs.
        unconditional_share: Part of the kept latents that are also sampled with the negative
            prompt, as guidance does (rows "unconditional share").
        composition_share: Part of the captions that put ordinary things beside the user's prompt
            (rows "composition share").
        companions: Those ordinary things; the base model must know how to draw them.
        compositions: How prompt and thing are put together; each with ``{prompt}`` and ``{thing}``.
        preserve_weight: Weight of the task that keeps the base model as it is; 0 leaves it out
            (rows "preserve weight").
        preserve_captions: Its captions; every fifth sampling run has an empty one instead.
        scene_weight: Weight of each LoRA's scene task, captions in which it meets the others, and a
            tenth of that of a subject in a style; 0 leaves them out, 1 is a good one (rows "scene
            weight"). Needs ``MergeConfig.target="full_output"``.
        scene_forms: Their captions, with ``{first}`` and ``{second}``, or ``{third}`` too, for
            subjects, and ``{style}`` (row "one scene form").
        scene_pictures: Whether scenes also count in the picture, each LoRA in its own part of it;
            otherwise they count in the text alone: the text encoder, and keys and values of
            cross-attention (rows "scene weight, pictures").
        ordinary_styles: What stands for a style LoRA's trigger where only the subject's LoRA is
            worn.
        negative_prompt: What unconditional rows read.
        held_out: Sampling runs per task, with captions and seeds that the merge does not see, on
            which it is checked.
        seed: Of captions and noise.
    """

    trajectories: int = 10
    timesteps: int = 2
    sampling_steps: int = 12
    resolution: int = 512
    cfg: float = 7.0
    unconditional_share: float = 0.5
    composition_share: float = 0.5
    companions: tuple[str, ...] = COMPANIONS
    compositions: tuple[str, ...] = COMPOSITIONS
    preserve_weight: float = 1.0
    preserve_captions: tuple[str, ...] = PRESERVE_CAPTIONS
    scene_weight: float = 0.0
    scene_forms: tuple[str, ...] = SCENE_FORMS
    scene_pictures: bool = True
    ordinary_styles: tuple[str, ...] = ORDINARY_STYLES
    negative_prompt: str = ""
    held_out: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trajectories", "timesteps", "sampling_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed is {self.seed}; it must be from 0 to 2^32 - 1")
        if self.held_out < 0:
            raise ConfigError(f"held_out is {self.held_out}; it must be 0 or more")
        if self.timesteps > self.sampling_steps:
            raise ConfigError(
                f"{self.timesteps} timesteps cannot be kept of {self.sampling_steps} sampling "
                "steps; keep fewer"
            )
        if self.resolution < 64 or self.resolution % 64:
            raise ConfigError(f"resolution is {self.resolution}; it must be a multiple of 64")
        for name in ("unconditional_share", "composition_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        for name in ("cfg", "preserve_weight", "scene_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be a finite number, 0 or more"
                )
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


def noise(shape: Sequence[int], seed: int) -> Tensor:
    """Return standard normal noise that depends on nothing but the seed, on the CPU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def euler_trajectory(
    denoise: Callable[[Tensor, Tensor], Tensor], start: Tensor, sigmas: Tensor
) -> list[Tensor]:
    """Sample with Euler's method and return the latents that the model saw, one (runs, ...) tensor
    per step.

    Args:
        denoise: (latents, sigma) -> estimate of the clean latents, guidance included.
        start: Unit noise, (runs, channels, height, width).
        sigmas: (steps + 1,), falling to 0. The variance-exploding scale: latents are clean + sigma
            * noise.
    """
    x = start * (1 + sigmas[0] ** 2).sqrt()
    seen = []
    for sigma, following in itertools.pairwise(sigmas):
        seen.append(x)
        x = x + (x - denoise(x, sigma)) / sigma * (following - sigma)
    return seen
