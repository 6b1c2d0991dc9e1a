"""What is merged, on what, how, and at what cost: made once, before any model runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from ..adapters import Adapter, check_adapters
from ..config import MergeConfig
from ..engines.layer_sums import layer_bytes
from ..errors import ConfigError
from ..memory import UNLIMITED, LayerBytes, Room, share_out
from ..merging import check_ranks, notes_about_vectors
from ..processes import Processes
from ..progress import Stage
from ..report.records import Note
from ..rivals.methods import check_used
from ..settings import label, setting_to, value_label
from . import stages
from .calibration import Calibration
from .contexts import Tokenized
from .cost import Cost, cost_of
from .loaded_loras import LoadedLora, loras_in_use
from .lora_use import LoraUse, check_prompts
from .model import DiffusionHost
from .presets import Changes
from .samples import SampleSpec, make_samples, tasks_of, texts_of

# Bytes of a forward call for each byte in one channel of its rows' latents: ComfyUI's estimate for
# SD1.5, which is more than SDXL takes (comfy/model_base.py, `memory_required`).
_BYTES_PER_BYTE = 0.01 * 2**20


@dataclass(frozen=True)
class MergeSettings:
    """Settings of a merge.

    Args:
        made_on: More entries of the recipe: the base model, the host's version.
    """

    config: MergeConfig = field(default_factory=MergeConfig)
    made_on: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    def check(self, calibration: Calibration) -> None:
        """Refuse what cannot be done, before any work.

        Raises:
            ConfigError: A setting that the method, or a merge of the files alone, would ignore.
        """
        check_used(self.config)
        unused = [name for name in ("scene_weight", "polish") if getattr(calibration, name)]
        if unused and not self.config.measured:
            raise ConfigError(
                f"{label('measured')} is off, so {label(unused[0])} would not count; set "
                f"{setting_to(unused[0], 0)}, or switch {label('measured')} on"
            )

    def check_prompts(self, uses: Iterable[LoraUse], *, is_fixed: bool = False) -> None:
        """Refuse LoRAs without prompts if a model would run on prompts.

        Args:
            is_fixed: Whether the settings are a recipe's, so that no others can be advised.

        Raises:
            CalibrationError: Names the LoRAs.
        """
        if self.config.measured:
            otherwise = "choose the preset Preview, which measures nothing"
            check_prompts(uses, "" if is_fixed else otherwise)


def changed(
    calibration: Calibration, settings: MergeSettings, changes: Changes
) -> tuple[Calibration, MergeSettings]:
    """Return settings with some replaced.

    Raises:
        ConfigError: The result is not allowed.
    """
    config = replace(settings.config, **changes.config)
    return replace(calibration, **changes.calibration), replace(settings, config=config)


@dataclass(frozen=True, eq=False)
class Job:
    """A merge that can begin; see `Job.of`.

    Args:
        asked: All LoRAs as the user wants them merged, for the recipe.
        loras: The LoRAs that change something, at least one, each with a name of its own.
        calibration: Settings of the calibration samples, for the model's family.
        polish_samples: What the polish learns from, and is judged by; none without it.
        room: What the machine allows.
    """

    model: DiffusionHost
    asked: tuple[LoraUse, ...]
    loras: tuple[LoadedLora, ...]
    calibration: Calibration
    settings: MergeSettings
    samples: tuple[SampleSpec, ...]
    polish_samples: tuple[SampleSpec, ...]
    notes: tuple[Note, ...]
    room: Room = UNLIMITED

    @classmethod
    def of(
        cls,
        model: DiffusionHost,
        loras: Sequence[LoadedLora],
        calibration: Calibration,
        settings: MergeSettings | None = None,
        room: Room = UNLIMITED,
    ) -> Job:
        """Plan a merge, and refuse what cannot be merged or measured; no model runs.

        Args:
            loras: LoRAs to merge, at least one; see `loaded_loras.load_each_once`.
            calibration: Settings of the calibration samples; 0 stands for the family's own.

        Raises:
            IterisError: Nothing to merge, settings that do not go together, unusable prompts, or
                scenes that the model or the target cannot have.
        """
        settings = settings or MergeSettings()
        calibration = calibration.for_family(model.family)
        settings.check(calibration)
        used = loras_in_use(loras)
        adapters = [lora.adapter for lora in used]
        check_adapters(adapters)
        check_ranks(settings.config, adapters)
        uses = [lora.use for lora in used]
        settings.check_prompts(uses)
        samples = _samples(model, uses, calibration) if settings.config.measured else []
        of_polish = (
            _samples(model, uses, calibration.of_polish, early=True) if calibration.polish else []
        )
        of_polish = [sample for sample in of_polish if sample.run]  # others are of the text alone
        check_target(samples, settings.config)
        return cls(
            model=model,
            asked=tuple(lora.use for lora in loras),
            loras=tuple(used),
            calibration=calibration,
            settings=settings,
            samples=tuple(samples),
            polish_samples=tuple(of_polish),
            notes=tuple(_notes(loras, used, calibration)),
            room=room,
        )

    @property
    def config(self) -> MergeConfig:
        return self.settings.config

    @property
    def adapters(self) -> list[Adapter]:
        return [lora.adapter for lora in self.loras]

    @cached_property
    def cost(self) -> Cost:
        """What the merge costs."""
        cost = cost_of(
            self.samples,
            self.polish_samples,
            guided=self.calibration.is_guided,
            changes_denoiser=self.config.measured and self._changes(text=False),
            polish_steps=self.calibration.polish,
            runs=self.calibration.trajectories,
        )
        return replace(cost, frames=math.prod(self.latent_shape[1:-2]))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, ..., height, width) of the latents that are measured."""
        return self.model.latent_shape(self.calibration.resolution, self.calibration.frames)

    @property
    def is_checked(self) -> bool:
        """Whether the model may pass over layers, as a host with a loader of its own may."""
        return self.model.loader is not None and self.config.measured

    @property
    def stages(self) -> list[Stage]:
        """The stages of the merge, in order, each with its share of the work."""
        is_measured = self.config.measured
        has_denoiser = is_measured and self._changes(text=False)
        possible = {
            stages.CHECK: self.is_checked,
            stages.FILES: not is_measured,
            stages.TEXT: is_measured and self._changes(text=True),
            stages.SAMPLING: has_denoiser,
            stages.DENOISER: has_denoiser,
            stages.POLISH: has_denoiser and self.calibration.polish > 0,
        }
        return self.cost.stages([name for name in possible if possible[name]], len(self.loras))

    def layer_bytes(
        self, modules: Mapping[str, nn.Module], device: torch.device
    ) -> Mapping[str, LayerBytes]:
        """Return about what each of these layers takes."""
        return layer_bytes(modules, self.adapters, self.cost.tasks, self.config, device)

    def within_free(self, free: int | None, bytes_per_number: int, device: torch.device) -> Job:
        """Return the job with calls, sums and waiting rows that fit into a device's memory.

        Processes that share a merge all take the memory of the device that has least.

        Args:
            free: Bytes that are free on the model's device while the model is loaded; None: not
                known, and nothing is changed.
            bytes_per_number: Size of a number of the model's rows.
            device: The model's device.
        """
        if free is None or not self.config.measured:
            return self
        of_row = _BYTES_PER_BYTE * bytes_per_number * math.prod(self.latent_shape[1:])
        layers: list[LayerBytes] = []
        denoiser = self.model.denoiser(self.calibration.levels)
        for opened in (self.model.text_encoder(), denoiser):
            with opened as network:
                layers += self.layer_bytes(network.modules, device).values()
        room = share_out(
            lambda count: 2 * count * of_row,
            self.cost.samples,
            self.room.samples_per_chunk,
            min(Processes.current().gather([free])),
            LayerBytes.most(layers),
        )
        return replace(self, room=room)

    def _changes(self, *, text: bool) -> bool:
        """Whether a LoRA changes a text encoder, or the diffusion model."""
        is_text = self.model.is_text_module
        return any(is_text(path) == text for lora in self.loras for path in lora.adapter.deltas)


def _notes(
    loras: Sequence[LoadedLora], used: Sequence[LoadedLora], calibration: Calibration
) -> Iterator[Note]:
    """Yield what can be told of a merge before it begins: what is left out of it, and what its
    prompts are made of.

    Args:
        used: Those that change something.
    """
    idle = [lora.adapter.name for lora in loras if lora.adapter.is_idle]
    if idle:
        yield Note("idle", f"left out at strength 0: {', '.join(idle)}")
    weightless = [lora.use.name for lora in used if not lora.use.weight]
    if weightless:
        text = f"not kept, since their {label('weight')} is 0: {', '.join(weightless)}"
        yield Note("idle", text)
    yield from notes_about_vectors([lora.adapter for lora in used])
    if calibration.scene_weight and len(used) == 1:
        yield Note("scenes", "there are no scene tasks: a single LoRA meets no other")
    for use in (lora.use for lora in loras):
        if use.prompts_from:
            yield Note(
                "made",
                f"{use.name}: prompts made of the file's trigger words ({use.prompts_from}): "
                f"{'; '.join(use.prompts)}",
            )


def check_target(samples: Iterable[SampleSpec], config: MergeConfig) -> None:
    """Refuse a target that scenes cannot have.

    Raises:
        ConfigError: There are scenes, and the target is not ``full_output``.
    """
    if config.target != "full_output" and any(sample.is_of_scene for sample in samples):
        raise ConfigError(
            "scene tasks need whole outputs, since teacher and student read different captions; "
            f"{label('target')} is {value_label('target', config.target)!r}. Set it to "
            f"{value_label('target', 'full_output')!r}, or "
            f"{setting_to('scene_weight', 0)}"
        )


def _samples(
    model: DiffusionHost, uses: Sequence[LoraUse], calibration: Calibration, *, early: bool = False
) -> list[SampleSpec]:
    """Return the samples of a merge, or of its polish; see `make_samples`.

    Raises:
        IterisError: Captions that the model's text encoder cannot read.
    """
    tokens = model.picture_tokens
    samples = (
        make_samples(uses, calibration, None, tokens.length, early=early)
        if tokens
        else make_samples(uses, calibration, model.token_positions, early=early)
    )
    texts = [each for of_task in tasks_of(samples) for each in texts_of(of_task, calibration)]
    tokenized = Tokenized.of(model, texts)
    for each in texts:
        tokenized.samples(each)
    return samples
