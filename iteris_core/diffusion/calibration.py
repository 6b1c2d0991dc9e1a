"""The settings of a calibration of diffusion models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..errors import ConfigError
from ..settings import MOST_SEEDS, Texts, label, setting_to, settings
from .captions import (
    COMPANIONS,
    COMPOSITIONS,
    ORDINARY_STYLES,
    PRESERVE_CAPTIONS,
    SCENE_FORMS,
    SCENE_PREFIXES,
    STYLE_PLACE,
    check_composition,
    check_scene_form,
    placeholders,
)
from .lora_use import Weight

if TYPE_CHECKING:
    from ..files.families import Family

# Noise levels of a run as users sample; the measured ones are chosen among them.
_USUAL_LEVELS = 20
# Upper bounds, far above what is of use, so that nobody's recipe can ask for endless work.
_MOST_RUNS = 1000  # per LoRA; more than 20 measured no better, and 1009 would share seeds
_MOST_POLISH = 2000  # steps; 100 to 300 are of use
_MOST_STEPS = 200  # of a run; samplers are done after 30
_MOST_PIXELS = 2048  # of a side; what models draw whole
_MOST_FRAMES = 257  # of a video; those that models draw have 81 to 129
_MOST_GUIDANCE = 100
Share = Annotated[float, Field(ge=0, le=1)]


@settings
class Calibration:
    """How the samples are made that LoRAs are measured on.

    Raises:
        ConfigError: A setting outside its range, or settings that do not go together.
    """

    trajectories: Annotated[
        int,
        Field(
            ge=1,
            le=_MOST_RUNS,
            title="sample_runs",
            description="Short sampling runs per LoRA, each with its own prompt and seed "
            "(trajectories). More runs measure more, and take longer.",
        ),
    ] = 20
    sampling_steps: Annotated[
        int,
        Field(
            ge=1,
            le=_MOST_STEPS,
            description="Steps of a whole sampling run. A run ends at the noise level that its "
            "latents are measured at.",
        ),
    ] = 2
    resolution: Annotated[
        int,
        Field(
            ge=0,
            le=_MOST_PIXELS,
            multiple_of=64,
            description="Side of the measured pictures in pixels. Smaller is faster and needs less "
            "memory. 0: what suits the model, such as 768 for SDXL, 512 for Flux.1 and 384 for "
            "Wan.",
        ),
    ] = 0
    frames: Annotated[
        int,
        Field(
            ge=0,
            le=_MOST_FRAMES,
            description="Frames of the measured videos, for video models: 1, 5, 9, 13 ... for "
            "Wan and HunyuanVideo, 1, 9, 17 ... for LTX-Video. Each step takes the time and memory "
            "of one more picture. 0: what suits the model, such as 9 for Wan and 17 for LTX-Video.",
        ),
    ] = 0
    noise_levels: Annotated[
        Literal["all", "high", "low"],
        Field(
            description="Noise levels that the model draws. high, low: the first or the second "
            "half of a run, for the two models of Wan 2.2. Merge once on each.",
        ),
    ] = "all"
    # The first step of a run is made without guidance, see `sampling.Sampler`.
    cfg: Annotated[
        float,
        Field(
            ge=0,
            le=_MOST_GUIDANCE,
            description="Guidance of the sampling runs. Use the value that you will sample with. "
            "1: none, for turbo and distilled models; then the negative prompt is not measured. 0: "
            "what suits the model, such as 7 for SD1.5, 6 for SDXL and 1 for Flux.",
        ),
    ] = 0.0
    unconditional_share: Annotated[
        Share,
        Field(
            title="negative_share",
            description="Share of the latents that are also measured with the negative prompt "
            "(unconditional share). Sampling with guidance needs them. At a cfg of 1 there are "
            "none.",
        ),
    ] = 0.25
    composition_share: Annotated[
        Share,
        Field(
            title="company_share",
            description="Share of the captions that put the subject of your prompt next to an "
            "ordinary thing, such as 'a sks dog and a red chair' (composition share). So the "
            "merged LoRA can still draw its subject next to other things.",
        ),
    ] = 0.5
    companions: Annotated[
        Texts,
        Field(description="Ordinary things to put next to a prompt's subject."),
    ] = COMPANIONS
    compositions: Annotated[
        Texts,
        Field(
            description="Captions of a prompt's subject next to an ordinary thing, with {prompt} "
            "and {thing}."
        ),
    ] = COMPOSITIONS
    preserve_weight: Annotated[
        Weight,
        Field(
            title="protect_base",
            description="Protect the base model: how much it counts that pictures of other things "
            "stay as they were (weight of the preserve task). 0: off. Then the merged LoRA may "
            "show up in pictures that did not ask for it.",
        ),
    ] = 2.0
    preserve_captions: Annotated[
        Texts,
        Field(
            title="protected_prompts",
            description="Prompts of other things, whose pictures should stay as they were.",
        ),
    ] = PRESERVE_CAPTIONS
    # A weight above 0 needs ``MergeConfig.target="full_output"``.
    scene_weight: Annotated[
        Weight,
        Field(
            title="together",
            description="Weight of captions where several LoRAs meet, such as 0.3; 0: none.",
        ),
    ] = 0.0
    scene_forms: Annotated[
        Texts,
        Field(
            title="forms",
            description="Captions where several LoRAs meet, with {first} and {second}, "
            "{third} and {style}.",
        ),
    ] = SCENE_FORMS
    # Teachers read these words, too, so the merge holds in captions of other forms.
    scene_prefixes: Annotated[
        Texts,
        Field(description="Words that half of these captions begin with, one to four at a time."),
    ] = SCENE_PREFIXES
    polish: Annotated[
        int,
        Field(
            ge=0,
            le=_MOST_POLISH,
            title="polish_steps",
            description="Gradient steps that bring the merged LoRA's pictures nearer to those "
            "of its LoRAs, after the merge, each with a sampling run of its own. In small test "
            "transformers, 52 steps draw more of each LoRA, and of two together in captions of "
            "measured forms. They take many times as long as the merge. 0: none.",
        ),
    ] = 0
    ordinary_styles: Annotated[
        Texts,
        Field(
            description="Ordinary styles that replace the trigger of a style LoRA where only "
            "the subject's LoRA is worn."
        ),
    ] = ORDINARY_STYLES
    negative_prompt: Annotated[
        str,
        Field(
            description="The negative prompt that you will sample with. It counts only with "
            "guidance."
        ),
    ] = ""
    seed: Annotated[
        int, Field(ge=0, le=MOST_SEEDS - 1, description="Seed of the captions and the noise.")
    ] = 0

    def __post_init__(self) -> None:
        if self.preserve_weight and not self.preserve_captions:
            raise ConfigError(
                f"{label('preserve_captions')} is empty; write some, or set "
                f"{label('preserve_weight')} to 0"
            )
        if self.composition_share and not (self.companions and self.compositions):
            raise ConfigError(
                "composition captions need companions and compositions; give both, or set "
                f"{label('composition_share')} to 0"
            )
        for form in self.compositions:
            check_composition(form)
        if self.scene_weight and not (self.scene_forms and self.companions):
            raise ConfigError(
                f"scene tasks need {label('scene_forms')} and companions; give both, or set "
                f"{setting_to('scene_weight', 0)}"
            )
        for form in self.scene_forms:
            check_scene_form(form)
        has_style = any(STYLE_PLACE in placeholders(form) for form in self.scene_forms)
        if self.scene_weight and has_style and not self.ordinary_styles:
            raise ConfigError(
                "scene forms of several subjects in a {style} need ordinary_styles; give some, or "
                "leave such forms out"
            )

    def for_family(self, family: Family) -> Calibration:
        """Return these settings with a family's own resolution, frames and guidance for 0.

        Without guidance, a model never reads the negative prompt, so there is nothing to measure on
        it.

        Raises:
            ConfigError: A number of frames that the family does not draw.
        """
        cfg = self.cfg or family.guidance
        return replace(
            self,
            resolution=self.resolution or family.measured_at,
            frames=family.frames_of(self.frames),
            cfg=cfg,
            unconditional_share=0.0 if cfg == 1 else self.unconditional_share,
        )

    @property
    def of_polish(self) -> Calibration:
        """The settings of the polish's own samples: as many runs as it has steps, so that a sample
        is read about twice, and none is learnt by heart.
        """
        runs = min(max(1, self.polish), _MOST_RUNS)
        return replace(self, trajectories=runs, seed=(self.seed + 1) % MOST_SEEDS)

    @property
    def levels(self) -> int:
        """Number of noise levels that those of latents are chosen from: at least as many as in a
        usual run, since these are the levels that the merged model will see.
        """
        return max(_USUAL_LEVELS, self.sampling_steps)

    @property
    def measured_levels(self) -> range:
        """Numbers of the noise levels that latents are measured at, pure noise being 0."""
        half = self.levels // 2
        first = half if self.noise_levels == "low" else 0
        return range(first, half if self.noise_levels == "high" else self.levels)

    @property
    def is_guided(self) -> bool:
        """Whether a model reads the negative prompt: a guidance of 1 means no guidance."""
        return self.cfg != 1
