"""From captions and sampling runs to samples of a diffusion model: what each task's rows read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..calibration import Calibration, base_captions, is_chosen, own_captions, preserve_runs
from ..errors import CalibrationError
from ..tasks import Sample

TEXT_STREAM, IMAGE_STREAM = "text", "image"
_MOST_PIECES = 4  # of a prompt; contexts of 1, 2, 3 and 4 pieces have 12 in common


@dataclass(frozen=True)
class UnetRow:
    """What one UNet row reads: latents (4, h, w) at noise level sigma (0-dim), and a context (tokens, 768)."""

    latents: Tensor
    sigma: Tensor
    context: Tensor


@dataclass(frozen=True)
class PromptedAdapter:
    """A LoRA to merge.

    Args:
        adapter: At the strengths at which the user would use it.
        prompts: What it is for; with its trigger words.
        weight: Of its task, relative to the others'.
    """

    adapter: Adapter
    prompts: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Plan:
    """One task before its samples exist: a caption per sampling run."""

    name: str
    mix: Mapping[int, float]
    weight: float
    captions: tuple[str, ...]
    unconditional_share: float


def make_plans(loras: Sequence[PromptedAdapter], calibration: Calibration) -> list[Plan]:
    plans = []
    for k, lora in enumerate(loras):
        try:
            captions = own_captions(lora.prompts, calibration, calibration.seed + k)
        except CalibrationError as error:
            raise CalibrationError(f"LoRA {lora.adapter.name!r}: {error}") from error
        plans.append(Plan(lora.adapter.name, {k: 1.0}, lora.weight, tuple(captions), calibration.unconditional_share))
    names = [plan.name for plan in plans]
    plans = [p if names.count(p.name) == 1 else replace(p, name=f"{p.name} ({k + 1})") for k, p in enumerate(plans)]
    if calibration.preserve_weight:
        captions = tuple(base_captions(calibration, preserve_runs(calibration)))
        plans.append(Plan("base model (preserve)", {}, calibration.preserve_weight, captions, 0.0))
    return plans


def mix_in(adapters: Sequence[Adapter], mix: Mapping[int, float]) -> dict[int, float]:
    """Return what a mix means for one part of the model; rows of adapters without that part run through the base."""
    return {k: share for k, share in mix.items() if adapters[k].deltas}


@dataclass(frozen=True)
class Context:
    """A caption as its teacher and as the student read it, (tokens, 768) each, and the tokens' weights."""

    teacher: Tensor
    student: Tensor
    weights: Tensor | None

    @classmethod
    def repeated(cls, teacher: Tensor, student: Tensor, times: int) -> Context:
        """Repeat a short context to the length of the longest: attention stays the same, and each token counts once."""
        if times == 1:
            return cls(teacher, student, None)
        teacher, student = teacher.repeat(times, 1), student.repeat(times, 1)
        return cls(teacher, student, torch.full((len(teacher),), 1 / times))


Contexts = Mapping[tuple[int, str], Context]  # by task and caption


def common_length(pieces: Sequence[tuple[str, Sequence[Any]]]) -> int:
    """Return the number of pieces to which every caption's context can be repeated a whole number of times."""
    caption, longest = max(pieces, key=lambda item: len(item[1]))
    if len(longest) > _MOST_PIECES:
        raise CalibrationError(
            f"the prompt {caption[:40]!r}... has {len(longest)} pieces of 75 tokens; calibration can use prompts of up to "
            f"{_MOST_PIECES}. Write shorter ones: trigger words and a few others are enough"
        )
    return math.lcm(*(len(of_caption) for _, of_caption in pieces))


def unet_samples(
    g: int, plan: Plan, calibration: Calibration, contexts: Contexts, runs: Sequence[Sequence[tuple[Tensor, Tensor]]]
) -> list[Sample]:
    """Return a task's UNet samples: each kept latent with its caption, and a share of them with the negative prompt."""
    samples = []
    for i, (caption, latents) in enumerate(zip(plan.captions, runs, strict=True)):
        for j, (x, sigma) in enumerate(latents):
            guided = is_chosen(j, plan.unconditional_share, i)
            for text in [caption, calibration.negative_prompt] if guided else [caption]:
                context = contexts[g, text]
                weights = {TEXT_STREAM: context.weights} if context.weights is not None else {}
                samples.append(Sample(UnetRow(x, sigma, context.teacher), UnetRow(x, sigma, context.student), weights))
    return samples
