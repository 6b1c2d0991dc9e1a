"""From captions and sampling runs to samples of a diffusion model: what each task's rows read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import CalibrationError, ConfigError
from ..tasks import Sample, TokenWeights
from .calibration import Calibration, base_captions, is_chosen, own_captions, preserve_runs
from .scenes import Kind, Trigger

TEXT_STREAM = "text"
IMAGE_STREAM = "image"
_PICTURE_OF = re.compile(
    r"^(an? )?(photo(graph)?|picture|image|painting|drawing|portrait) of (?=\S)", re.IGNORECASE
)
_MOST_PIECES = 4  # of a prompt; contexts of 1, 2, 3 and 4 pieces have 12 in common


@dataclass(frozen=True)
class UnetRow:
    """What one UNet row reads: latents (4, h, w) at noise level sigma (0-dim), and a context
    (tokens, 768).
    """

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
        trigger: What to call it in captions with other LoRAs, see `scenes.Trigger`; empty: the
            shortest prompt, without "a photo of" and the like.
        kind: Whether it is a thing, or a way to render whole pictures.

    Raises:
        ConfigError: Another kind.
    """

    adapter: Adapter
    prompts: tuple[str, ...]
    weight: float = 1.0
    trigger: str = ""
    kind: Kind = "subject"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(
                f"LoRA {self.adapter.name!r} is a {self.kind!r}; it can be "
                f"{' or '.join(get_args(Kind))}"
            )

    @property
    def in_scenes(self) -> Trigger:
        shortest = min((prompt.strip() for prompt in self.prompts), key=len, default="")
        return Trigger(self.trigger.strip() or _PICTURE_OF.sub("", shortest), self.kind)


@dataclass(frozen=True)
class Reading:
    """What the two rows of a sample read, and which tokens of it count; None: all."""

    teacher: str
    student: str
    positions: tuple[int, ...] | None = None

    @classmethod
    def of(cls, caption: str) -> Reading:
        return cls(caption, caption)


@dataclass(frozen=True)
class Plan:
    """One task before its samples exist: a caption per sampling run."""

    name: str
    mix: Mapping[int, float]
    weight: float
    captions: tuple[str, ...]
    unconditional_share: float

    def readings(self, negative_prompt: str) -> list[Reading]:
        return [Reading.of(caption) for caption in dict.fromkeys([*self.captions, negative_prompt])]


def make_plans(loras: Sequence[PromptedAdapter], calibration: Calibration) -> list[Plan]:
    plans = []
    for k, lora in enumerate(loras):
        try:
            captions = own_captions(lora.prompts, calibration, calibration.seed + k)
        except CalibrationError as error:
            raise CalibrationError(f"LoRA {lora.adapter.name!r}: {error}") from error
        plans.append(
            Plan(
                lora.adapter.name,
                {k: 1.0},
                lora.weight,
                tuple(captions),
                calibration.unconditional_share,
            )
        )
    names = [plan.name for plan in plans]
    plans = [
        p if names.count(p.name) == 1 else replace(p, name=f"{p.name} ({k + 1})")
        for k, p in enumerate(plans)
    ]
    if calibration.preserve_weight:
        captions = tuple(base_captions(calibration, preserve_runs(calibration)))
        plans.append(Plan("base model (preserve)", {}, calibration.preserve_weight, captions, 0.0))
    return plans


def mix_in(adapters: Sequence[Adapter], mix: Mapping[int, float]) -> dict[int, float]:
    """Return what a mix means for one part of the model; rows of adapters without that part run
    through the base.
    """
    return {k: share for k, share in mix.items() if adapters[k].deltas}


@dataclass(frozen=True)
class Context:
    """A caption as its teacher and as the student read it, (tokens, 768) each, and the tokens'
    weights.
    """

    teacher: Tensor
    student: Tensor
    weights: Tensor | None

    @classmethod
    def repeated(
        cls, teacher: Tensor, student: Tensor, times: int, positions: Sequence[int] | None = None
    ) -> Context:
        """Repeat a short context to the length of the longest: attention stays the same, and each
        token counts once.
        """
        weights = position_weights(positions, len(teacher))
        if times == 1:
            return cls(teacher, student, weights)
        weights = torch.ones(len(teacher)) if weights is None else weights
        return cls(
            teacher.repeat(times, 1), student.repeat(times, 1), weights.repeat(times) / times
        )

    @property
    def token_weights(self) -> dict[str, TokenWeights]:
        return {} if self.weights is None else {TEXT_STREAM: self.weights}


def position_weights(positions: Sequence[int] | None, tokens: int) -> Tensor | None:
    """Return weights (tokens,) that are 1 at some positions and 0 elsewhere; None where all tokens
    count.
    """
    if positions is None:
        return None
    weights = torch.zeros(tokens)
    weights[list(positions)] = 1
    return weights


Contexts = Mapping[tuple[int, Reading], Context]  # by task and what it reads


def common_length(pieces: Sequence[tuple[str, Sequence[Any]]]) -> int:
    """Return the number of pieces to which every caption's context can be repeated a whole number
    of times.
    """
    caption, longest = max(pieces, key=lambda item: len(item[1]))
    if len(longest) > _MOST_PIECES:
        raise CalibrationError(
            f"the prompt {caption[:40]!r}... has {len(longest)} pieces of 75 tokens; calibration "
            f"can use prompts of up to {_MOST_PIECES}. Write shorter ones: trigger words and a few "
            "others are enough"
        )
    return math.lcm(*(len(of_caption) for _, of_caption in pieces))


def unet_samples(
    g: int,
    plan: Plan,
    calibration: Calibration,
    contexts: Contexts,
    runs: Sequence[Sequence[tuple[Tensor, Tensor]]],
) -> list[Sample]:
    """Return a task's UNet samples: each kept latent with its caption, and a share of them with the
    negative prompt.
    """
    samples = []
    for i, (caption, latents) in enumerate(zip(plan.captions, runs, strict=True)):
        for j, (x, sigma) in enumerate(latents):
            guided = is_chosen(j, plan.unconditional_share, i)
            for text in [caption, calibration.negative_prompt] if guided else [caption]:
                samples.append(unet_sample(x, sigma, contexts[g, Reading.of(text)], {}))
    return samples


def unet_sample(
    x: Tensor, sigma: Tensor, context: Context, weights: Mapping[str, TokenWeights]
) -> Sample:
    """Return the sample of one kept latent with one context; ``weights`` of other streams than the
    text.
    """
    token_weights = {**context.token_weights, **weights}
    return Sample(
        UnetRow(x, sigma, context.teacher), UnetRow(x, sigma, context.student), token_weights
    )


def text_samples(reading: Reading, pieces: Mapping[str, Sequence[Any]]) -> list[Sample]:
    """Return the text encoder's samples of one reading, one per piece."""
    if reading.teacher == reading.student and reading.positions is None:
        return [Sample(piece) for piece in pieces[reading.teacher]]
    weights = {TEXT_STREAM: partial(position_weights, reading.positions)}
    pairs = zip(pieces[reading.teacher], pieces[reading.student], strict=True)
    return [Sample(teacher, student, weights) for teacher, student in pairs]


def check_one_piece(readings: Sequence[Reading], pieces: Mapping[str, Sequence[Any]]) -> None:
    """Refuse captions of scenes that the text encoder cannot read at once.

    Raises:
        CalibrationError: Shows the caption.
    """
    for reading in readings:
        if reading.positions is not None and (
            len(pieces[reading.teacher]),
            len(pieces[reading.student]),
        ) != (1, 1):
            raise CalibrationError(
                f"the scene caption {reading.student[:60]!r}... has more than the 75 tokens of one "
                "piece; shorten the LoRAs' triggers (a few words that name the subject), or set "
                "scene_weight to 0"
            )
