"""The calibration of diffusion models: its settings, its captions, and the steps whose latents are
kept.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CalibrationError, ConfigError
from ..settings import MOST_SEEDS, called, check, setting, setting_to
from .captions import (
    COMPANIONS,
    COMPOSITIONS,
    ORDINARY_STYLES,
    PRESERVE_CAPTIONS,
    SCENE_FORMS,
    SCENE_PREFIXES,
    check_placeholders,
    check_scene_form,
    needs_style,
)

if TYPE_CHECKING:
    from ..files.families import Family
    from .lora_use import LoraUse

# Noise levels of a run as users sample, of which the kept ones are chosen.
_USUAL_LEVELS = 20
# Upper bounds, far above what is of use, so that nobody's recipe can ask for endless work.
_MOST_RUNS = 1000  # per LoRA; more than 20 measured no better, and 1009 would share seeds
_MOST_CHECKS = 100  # sampling runs per LoRA of the check; more than 16 say little more
_MOST_STEPS = 200  # of a run; samplers are done after 30
_MOST_LATENTS = 20_000  # of a LoRA's runs together, which wait in memory until they are measured
_MOST_PIXELS = 2048  # of a side; what models draw whole
_MOST_GUIDANCE = 100
MOST_WEIGHT = 100  # of a task; 2 and 0.3 are usual
# The multiples of these, modulo 1, cover an interval evenly, however many there are; and together
# they cover a square, of the two choices that they make.
_GOLDEN_RATIO = 0.6180339887
_SQUARE_ROOT_OF_11 = 3.3166247904


@dataclass(frozen=True)
class Calibration:
    """How the samples are made on which LoRAs are measured.

    The help of each field below states its meaning, and this list adds details. Where a default was
    measured, the rows that show it are named: those of "Ablations, LoRAs trained for too long" in
    ``benchmarks/RESULTS.md``.

    Args:
        trajectories: Sampling runs per LoRA, each with another caption and seed (rows
            "trajectories": more are not better in a world with few captions).
        timesteps: Latents kept of each run. The runs are staggered, so that together they cover all
            noise levels of a usual run (rows "timesteps": more change nothing).
        sampling_steps: A run ends at the last latents that are kept of it, so most make fewer
            ("Where less is measured" in RESULTS.md: 3 are as good as 20).
        cfg: The first step of a run is made without guidance, see `sampling.Sampler`.
        unconditional_share: Share of the latents that are also read with the negative prompt, as in
            guidance (rows "unconditional share").
        composition_share: Share of the captions with ordinary things (rows "composition share").
        companions: Ordinary things that the base model can draw.
        compositions: Caption forms with the places ``{prompt}``, where the subject of a prompt
            comes (see `LoraUse.subject_of`), and ``{thing}``.
        preserve_weight: Weight of the preserve task ("What was chosen" in RESULTS.md).
        preserve_captions: Captions of the preserve task, which has as many runs as a LoRA's.
        scene_weight: Weight of each LoRA's scene task, whose captions put it together with the
            others. A subject in a style counts ten times as much. 0.3 is a good weight (rows "scene
            weight"). A weight above 0 needs ``MergeConfig.target="full_output"``.
        scene_forms: Caption forms with the places ``{first}``, ``{second}`` and ``{third}`` for
            subjects, and ``{style}`` (row "one scene form").
        scene_prefix_share: Share of the scene captions that begin with random words, which teachers
            read, too. So the merge holds in captions of other forms.
        scene_prefixes: The words to choose from, one to four at a time.
        scene_pictures: Whether scenes are measured in pictures, where each LoRA counts in its part
            of the picture. Otherwise they count in the text alone: the text encoder, and keys and
            values of cross-attention (rows "scene weight, pictures").
        ordinary_styles: Styles for captions in which only the subject's LoRA is worn.
        held_out: Sampling runs per LoRA whose captions and seeds the merge does not see.
    """

    trajectories: int = setting(20, "Sampling runs per LoRA.", at_least=1, at_most=_MOST_RUNS)
    timesteps: int = setting(1, "Latents kept of each run.", at_least=1, at_most=_MOST_STEPS)
    sampling_steps: int = setting(3, "Steps of a whole run.", at_least=1, at_most=_MOST_STEPS)
    resolution: int = setting(
        0,
        "Side of the pictures in pixels, a multiple of 64; 0: what suits the model.",
        at_least=0,
        at_most=_MOST_PIXELS,
        multiple_of=64,
    )
    cfg: float = setting(
        0.0, "Guidance of the runs; 0: the model's own.", at_least=0, at_most=_MOST_GUIDANCE
    )
    unconditional_share: float = setting(
        0.5, "Share of the latents that are seen without the prompt, too.", at_least=0, at_most=1
    )
    composition_share: float = setting(
        0.5,
        "Share of the captions with an ordinary thing next to the prompt's subject.",
        at_least=0,
        at_most=1,
    )
    companions: tuple[str, ...] = setting(
        COMPANIONS,
        "Ordinary things to put next to a prompt's subject. The option may be repeated; given "
        "things replace the whole list.",
    )
    compositions: tuple[str, ...] = setting(
        COMPOSITIONS,
        "Captions of a prompt's subject next to an ordinary thing, with {prompt} and {thing}. The "
        "option may be repeated; given captions replace the whole list.",
    )
    preserve_weight: float = setting(
        2.0,
        "Weight of the task that keeps the base model as it is; 0: no such task.",
        at_least=0,
        at_most=MOST_WEIGHT,
    )
    preserve_captions: tuple[str, ...] = setting(
        PRESERVE_CAPTIONS,
        "Captions of the task that keeps the base model. The option may be repeated; given "
        "captions replace the whole list.",
    )
    scene_weight: float = setting(
        0.0,
        "Weight of captions in which several LoRAs meet, such as 0.3; 0: none.",
        at_least=0,
        at_most=MOST_WEIGHT,
    )
    scene_forms: tuple[str, ...] = setting(
        SCENE_FORMS,
        "Captions in which several LoRAs meet, with {first} and {second}, or {first} and {style}. "
        "The option may be repeated; given captions replace the whole list.",
    )
    scene_prefix_share: float = setting(
        0.5, "Share of these captions that begin with random words.", at_least=0, at_most=1
    )
    scene_prefixes: tuple[str, ...] = setting(
        SCENE_PREFIXES,
        "Words with which these captions may begin. The option may be repeated; given words "
        "replace the whole list.",
    )
    scene_pictures: bool = setting(
        True, "Whether scenes are measured in the picture too, or in the text alone."
    )
    ordinary_styles: tuple[str, ...] = setting(
        ORDINARY_STYLES,
        "Ordinary styles that replace the trigger of a style LoRA. The option may be "
        "repeated; given styles replace the whole list.",
    )
    negative_prompt: str = setting("", "Negative prompt, which unconditional samples read.")
    held_out: int = setting(
        4,
        "Sampling runs per LoRA on which the result is checked; 0: no check.",
        at_least=0,
        at_most=_MOST_CHECKS,
    )
    seed: int = setting(
        0, "Seed of the captions and the noise.", at_least=0, at_most=MOST_SEEDS - 1
    )

    def __post_init__(self) -> None:
        check(self)
        if self.timesteps > self.sampling_steps:
            raise ConfigError(
                f"{called('timesteps')} is {self.timesteps}, and {called('sampling_steps')} is "
                f"{self.sampling_steps}: a run has no more latents to keep than steps. Lower "
                f"{called('timesteps')}"
            )
        if self.timesteps * self.trajectories > _MOST_LATENTS:
            raise ConfigError(
                f"{called('trajectories')} is {self.trajectories}, and {called('timesteps')} is "
                f"{self.timesteps}, which are {self.timesteps * self.trajectories} latents per "
                f"LoRA; at most {_MOST_LATENTS} can be kept. 20 and 1 are usual"
            )
        self._check_captions()

    def for_family(self, family: Family) -> Calibration:
        """Return these settings with a family's own resolution and guidance where they are 0.

        Without guidance, a model never reads the negative prompt, so there is nothing to measure on
        it.
        """
        cfg = self.cfg or family.guidance
        return replace(
            self,
            resolution=self.resolution or family.measured_at,
            cfg=cfg,
            unconditional_share=0.0 if cfg == 1 else self.unconditional_share,
        )

    @property
    def levels(self) -> int:
        """Number of noise levels of which those of the kept latents are chosen, which is at least
        that of a run as users sample: the levels that the merged model will see.
        """
        return max(_USUAL_LEVELS, self.sampling_steps)

    @property
    def kept_below(self) -> int:
        """Number of the noise levels, from pure noise on, of which those of the kept latents are
        chosen.
        """
        return self.levels

    @property
    def is_guided(self) -> bool:
        """Whether a model reads the negative prompt: guidance of 1 is none."""
        return self.cfg != 1

    def _check_captions(self) -> None:
        if self.preserve_weight and not self.preserve_captions:
            raise ConfigError(
                f"{called('preserve_captions')} is empty; write some, or set "
                f"{called('preserve_weight')} to 0"
            )
        if self.composition_share and not (self.companions and self.compositions):
            raise ConfigError(
                "composition captions need companions and compositions; give both, or set "
                f"{called('composition_share')} to 0"
            )
        for form in self.compositions:
            check_placeholders(form, {"prompt", "thing"})
        if self.scene_weight and not (self.scene_forms and self.companions):
            raise ConfigError(
                f"scene tasks need {called('scene_forms')} and companions; give both, or set "
                f"{setting_to('scene_weight', 0)}"
            )
        for form in self.scene_forms:
            check_scene_form(form)
        if self.scene_weight and self.scene_prefix_share and not self.scene_prefixes:
            raise ConfigError(
                "scene captions that begin with random words need scene_prefixes; give some, or "
                "set scene_prefix_share to 0"
            )
        has_style = any(map(needs_style, self.scene_forms))
        if self.scene_weight and has_style and not self.ordinary_styles:
            raise ConfigError(
                "scene forms of several subjects in a {style} need ordinary_styles; give some, or "
                "leave such forms out"
            )


@dataclass(frozen=True)
class Changes:
    """What a preset, a way to merge, or a user sets of a merge; everything else stays as it is.
    See `job.changed`.

    Args:
        calibration: Field of `Calibration` -> value.
        config: Field of `MergeConfig` -> value.
        merge: Field of `MergeSettings` -> value.
    """

    calibration: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    merge: Mapping[str, Any] = field(default_factory=dict)

    def then(self, later: Changes) -> Changes:
        """Return these changes and later ones, which win."""
        return Changes(
            {**self.calibration, **later.calibration},
            {**self.config, **later.config},
            {**self.merge, **later.merge},
        )


# How thorough a merge is, in one word.
Preset = Literal["Fast", "Balanced"]
DEFAULT_PRESET: Preset = "Balanced"
PRESETS: Mapping[Preset, Changes] = {
    "Fast": Changes(calibration={"trajectories": 10}),
    "Balanced": Changes(),
}


def own_captions(lora: LoraUse, calibration: Calibration, seed: int) -> list[str]:
    """Return one caption per trajectory: a LoRA's prompts in turn, or the subjects of some of them
    in company of ordinary things.

    Raises:
        CalibrationError: No prompt, or an empty one.
    """
    prompts = lora.prompts
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise CalibrationError(
            "a prompt is empty; write at least one that contains the LoRA's trigger words"
        )
    chance = random.Random(seed)
    starts = staggered(len(prompts))
    captions = []
    for i in range(calibration.trajectories):
        turn, which = divmod(i, len(prompts))
        caption = prompts[which]
        if is_chosen(turn, calibration.composition_share, starts[which]):
            form = chance.choice(calibration.compositions)
            subject = lora.subject_of(caption)
            caption = form.format(prompt=subject, thing=chance.choice(calibration.companions))
        captions.append(caption)
    return captions


def is_chosen(index: int, share: float, start: float = 0.0) -> bool:
    """Whether item `index` falls in an evenly spread `share`; `start`, from 0 to below 1,
    shifts the pattern.
    """
    return math.floor((index + 1) * share + start) > math.floor(index * share + start)


def staggered(rows: int) -> list[float]:
    """Return starts of rows for `is_chosen`, with which the share is right over all rows together,
    and what is chosen does not go along with the steps that `kept_steps` keeps.
    """
    starts = [0.0] * rows
    for rank, row in enumerate(sorted(range(rows), key=lambda row: row * _SQUARE_ROOT_OF_11 % 1)):
        starts[row] = rank / rows
    return starts


def base_captions(calibration: Calibration) -> list[str]:
    """Return captions for the preserve task, one per trajectory; none without such a task.

    The last ones of the list, a quarter at most, are left to the check on unseen samples.
    """
    if not calibration.preserve_weight:
        return []
    known = calibration.preserve_captions
    known = known[: len(known) - min(calibration.held_out, len(known) // 4)]
    return [known[i % len(known)] for i in range(calibration.trajectories)]


def kept_levels(calibration: Calibration, run: int) -> list[int]:
    """Return the noise levels of a sampling run that are kept, evenly spread and staggered from one
    run to the next: numbers from 0, pure noise, to below ``calibration.kept_below``.
    """
    stride = calibration.kept_below / calibration.timesteps
    offset = (run * _GOLDEN_RATIO) % 1
    return [int((i + offset) * stride) for i in range(calibration.timesteps)]


def path_to(calibration: Calibration, kept: Sequence[int]) -> list[int]:
    """Return the noise levels at which a run stands, from pure noise to the last that it keeps.

    Its steps are as long as those of a whole run of ``calibration.sampling_steps``, or nearly so,
    since it stands at each level that it keeps.
    """
    path = [0]
    for level in kept:
        first = path[-1]
        steps = math.ceil((level - first) * calibration.sampling_steps / calibration.levels - 0.5)
        steps = max(steps, int(level > first))
        path += [first + (level - first) * step // steps for step in range(1, steps + 1)]
    return path
