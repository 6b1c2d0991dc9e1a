"""The merge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from comfy_api.latest import io

from ..iteris_core import ConfigError, MergeConfig
from ..iteris_core.config import Method, Target
from ..iteris_core.diffusion.calibration import Calibration, sample_count
from . import host
from .settings import PRECISIONS, from_widgets
from .sockets import (
    CALIBRATION,
    LORA_MODEL,
    MERGED,
    REPORT,
    SETTINGS,
    TASKS,
    LoraEntry,
    MergedLora,
    MergeSettings,
    growing,
)
from .workflow import texts_upstream

if TYPE_CHECKING:
    from ..iteris_core import MergeReport, MergeResult
    from ..iteris_core.diffusion.samples import PromptedAdapter

TARGETS = get_args(Target)
METHODS = list(get_args(Method))


class Merge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISMerge",
            display_name="IterIS Merge",
            category="loaders/IterIS",
            description="Merges LoRAs into one: runs each of them on its prompts, measures what "
                        "enters every layer, and solves for the one LoRA that does the same. LoRAs "
                        "that MODEL or CLIP already carry count as part of the base model.",
            inputs=[
                io.Model.Input("model", tooltip="The SD1.5 model for which the LoRAs were made."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                TASKS.Input("tasks", tooltip="The last 'LoRA to merge' of the chain."),
                CALIBRATION.Input("calibration", optional=True, tooltip="How samples are made. Not "
                                                                        "connected: the "
                                                                        "defaults."),
                io.Float.Input(
                    "alpha", default=MergeConfig.alpha, min=0.0, max=1.0, step=1e-6, round=False,
                    tooltip="Ridge: higher pulls the merged LoRA towards the average of the LoRAs. "
                            "1e-4 suits most; try 1e-3 without a preserve task.",
                ),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default="float16",
                    tooltip="Of the merged LoRA. Later layers make up for the rounding of earlier "
                            "ones.",
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=1280, optional=True,
                    tooltip="Of the merged LoRA. 0: the sum of the LoRAs' ranks. Lower makes a "
                            "smaller file; what is cut is what matters least on the measured "
                            "inputs, and later layers make up for it.",
                ),
                io.Combo.Input(
                    "target", options=list(TARGETS), default=MergeConfig.target, optional=True,
                    tooltip="full_output: reproduce the whole output of each layer, which also "
                            "makes up for the drift of its inputs; better from three LoRAs on, and "
                            "needed by scenes. delta: only what each LoRA adds.",
                ),
                io.Float.Input(
                    "kept_energy", default=1.0, min=0.01, max=1.0, step=0.001, round=False, optional=True,
                    tooltip="Instead of rank: give every layer the smallest rank that keeps this "
                            "share of its effect on the measured inputs; 0.99 is a good start. 1: "
                            "off.",
                ),
                io.Float.Input(
                    "size_mb", default=0.0, min=0.0, max=10000.0, step=1.0, round=False, optional=True,
                    tooltip="Instead of rank: the size of the file in MB, at the chosen precision. "
                            "Ranks go to the layers that gain most by them. Takes twice the time. "
                            "0: off.",
                ),
                io.Combo.Input(
                    "method", options=METHODS, default=METHODS[0], optional=True,
                    tooltip="iteris, or another way to merge, to compare with; those take rank and "
                            "precision, and leave alpha and target alone.",
                ),
                io.Boolean.Input(
                    "correct_strength", default=False, optional=True,
                    tooltip="A merge is often a little weaker than its LoRAs. On: it is scaled by "
                            "what the check on unseen prompts measures, by 1.3 at most; that needs "
                            "held_out samples.",
                ),
                *growing("more", TASKS, "More LoRAs, each in a socket of its own instead of a "
                                        "chain."),
                SETTINGS.Input(
                    "settings", optional=True,
                    tooltip="From Load recipe: takes the place of all settings on this node, so "
                            "that a file is made as it was.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                LORA_MODEL.Output(
                    display_name="LORA_MODEL", tooltip="The UNet part, for core's own Load LoRA "
                                                       "Model and Save LoRA Weights.",
                ),
                MERGED.Output(display_name="merged LoRA", tooltip="UNet and text encoder, for Save "
                                                                  "merged LoRA."),
                REPORT.Output(
                    display_name="report", tooltip="How well each LoRA is reproduced, for Merge "
                                                   "report.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            # a merge may end in its report; and only an output node's is sent again from the cache
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        tasks: tuple[LoraEntry, ...],
        alpha: float,
        precision: str,
        calibration: Calibration | None = None,
        rank: int = 0,
        target: str = MergeConfig.target,
        kept_energy: float = 1.0,
        size_mb: float = 0.0,
        method: str = METHODS[0],
        correct_strength: bool = False,
        more: Mapping[str, tuple[LoraEntry, ...] | None] | None = None,
        settings: MergeSettings | None = None,
    ) -> io.NodeOutput:
        from ..iteris_core.diffusion.recipe import with_recipe
        from ..iteris_core.report.records import Note
        from .loras.entries import each_once, in_sockets, read, scenes_of, used

        entries = [*tasks, *in_sockets(more or {})]
        calibration = calibration or Calibration()
        scenes = scenes_of(entries)
        (tasks, notes) = each_once(entries)
        calibration = scenes.applied_to(calibration) if scenes else calibration
        base = host.ComfyStableDiffusion(model, clip)
        loras = read(base, tasks.values())
        settings = settings or from_widgets(
            loras,
            precision=precision,
            rank=rank,
            kept_energy=kept_energy,
            size_mb=size_mb,
            correct_strength=correct_strength,
            alpha=alpha,
            target=target,
            method=method,
        )
        result = cls.merged(base, loras, calibration, settings)
        names = [lora.adapter.name for lora in loras]
        sources = [
            used(entry, name, content)
            for (content, entry), name in zip(tasks.items(), names, strict=True)
        ]
        report = with_recipe(result.report, sources, **cls.made_on())
        more_notes = [Note("repeated", note) for note in notes]
        more_notes += [Note("host", note) for note in carried(host.patches_of(model, clip))]
        report = replace(report, notes=(*report.notes, *more_notes))
        return io.NodeOutput(
            *base.patched(result.adapter),
            base.lora_model_tensors(result.adapter),
            merged_lora(result, base, loras, report),
            report,
            ui={"iteris_report": [report.to_dict()], "text": [str(report)]},
        )

    @classmethod
    def merged(
        cls,
        base: host.ComfyStableDiffusion,
        loras: Sequence[PromptedAdapter],
        calibration: Calibration,
        settings: MergeSettings,
    ) -> MergeResult:
        """Merge, and check what came out; both are shown on the node as they go on."""
        from ..iteris_core.diffusion.held_out import with_held_out
        from ..iteris_core.diffusion.stable_diffusion import merge_stable_diffusion
        from ..iteris_core.diffusion.stages import numbered, stages_of

        if settings.correct_strength and not calibration.held_out:
            raise ConfigError(
                "correct_strength needs samples to measure it on; set held_out of the calibration "
                "to 1 or more"
            )
        rows = sample_count(calibration, len(loras), sum(lora.kind == "style" for lora in loras))
        at_once, park = base.make_room(calibration.resolution, rows)
        config = replace(settings.config, samples_per_chunk=at_once, park_on_host=park)
        progress = numbered(
            host.stage_progress(cls.hidden.unique_id), stages_of(base, loras, calibration)
        )
        watch = host.layer_teller(cls.hidden.unique_id)
        result = merge_stable_diffusion(base, loras, calibration, config, progress, watch)
        checked = {"correct_strength": settings.correct_strength, "samples_per_chunk": at_once}
        return with_held_out(base, loras, result, calibration, progress=progress, **checked)

    @classmethod
    def made_on(cls) -> dict[str, str]:
        """Return what else a recipe should know: ComfyUI's version, and the base model's files as
        the workflow names them.
        """
        named = set(
            texts_upstream(cls.hidden.prompt or {}, cls.hidden.unique_id, ("model", "clip"))
        )
        base = ", ".join(host.model_files(named))
        return {"comfyui_version": host.version(), **({"base": base} if base else {})}


def carried(patches: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return a note about LoRAs that are on the model and not in the merge."""
    from .loras.harvest import count_loras

    count = count_loras(patches)
    note = (
        f"MODEL and CLIP carry {count} LoRA{'s' * (count > 1)} already, which count as part of the "
        "base model: they are not in the merged LoRA. 'LoRAs on this model' takes them off and "
        "merges them"
    )
    return [note] if count else []


def merged_lora(
    result: MergeResult,
    base: host.ComfyStableDiffusion,
    loras: Sequence[PromptedAdapter],
    report: MergeReport,
) -> MergedLora:
    """Return a merge as Save merged LoRA needs it."""
    there = [lora for lora in loras if not lora.adapter.is_idle]
    sources = tuple((lora.adapter.name, lora.adapter.metadata) for lora in there)
    called = {lora.adapter.name: lora.in_scenes.words for lora in there}
    return MergedLora(result.adapter, base.keys, json.dumps(report.settings), sources, called)
