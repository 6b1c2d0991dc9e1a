"""The merge."""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_api.latest import io

from ..iteris_core import IterisError, MergeConfig
from ..iteris_core.calibration import Calibration
from ..iteris_core.families.stable_diffusion import PromptedAdapter, merge_stable_diffusion
from ..iteris_core.formats import kohya
from . import host
from .sockets import CALIBRATION, LORA_MODEL, MERGED, REPORT, TASKS, LoraEntry, MergedLora

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
TARGETS = ("delta", "full_output")


class Merge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISMerge",
            display_name="IterIS Merge",
            category="loaders/IterIS",
            description="Merges LoRAs into one: runs each of them on its prompts, measures what enters every layer, and "
            "solves for the one LoRA that does the same. LoRAs that MODEL or CLIP already carry count "
            "as part of the base model.",
            inputs=[
                io.Model.Input("model", tooltip="The SD1.5 model for which the LoRAs were made."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                TASKS.Input("tasks", tooltip="The last 'LoRA to merge' of the chain."),
                CALIBRATION.Input("calibration", optional=True, tooltip="How samples are made. Not connected: the defaults."),
                io.Float.Input(
                    "alpha", default=MergeConfig.alpha, min=0.0, max=1.0, step=1e-7, round=False,
                    tooltip="Ridge: higher pulls the merged LoRA towards the average of the LoRAs. 1e-4 suits most; "
                    "try 1e-3 without a preserve task.",
                ),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default="float16",
                    tooltip="Of the merged LoRA. Later layers make up for the rounding of earlier ones.",
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=1280, optional=True,
                    tooltip="Of the merged LoRA. 0: the sum of the LoRAs' ranks, nothing is cut. Lower makes a smaller "
                    "file; what is cut is what matters least on the measured inputs, and later layers make up for it.",
                ),
                io.Combo.Input(
                    "target", options=list(TARGETS), default="delta", optional=True,
                    tooltip="delta: reproduce what each LoRA adds. full_output: the whole output of each layer, which "
                    "also makes up for the drift of its inputs.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                LORA_MODEL.Output(
                    display_name="LORA_MODEL", tooltip="The UNet part, for core's own Load LoRA Model and Save LoRA Weights.",
                ),
                MERGED.Output(display_name="merged LoRA", tooltip="UNet and text encoder, for Save merged LoRA."),
                REPORT.Output(
                    display_name="report", tooltip="How well each LoRA is reproduced; connect Preview Any to read it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
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
        target: str = "delta",
    ) -> io.NodeOutput:
        if precision not in PRECISIONS:
            raise IterisError(f"precision is {precision!r}; it can be {', '.join(PRECISIONS)}")
        calibration = calibration or Calibration()
        base = host.ComfyStableDiffusion(model, clip)
        loras = [
            PromptedAdapter(
                base.read_lora(host.lora_path(entry.lora_name), entry.strength_model, entry.strength_clip),
                entry.prompts,
                entry.weight,
            )
            for entry in tasks
        ]
        config = MergeConfig(
            alpha=alpha,
            target=target,
            rank=rank or "sum",
            output_dtype=PRECISIONS[precision],
            samples_per_chunk=base.samples_per_chunk(calibration.resolution),
        )
        result = merge_stable_diffusion(base, loras, calibration, config, host.stage_progress(cls.hidden.unique_id))
        metadata = kohya.metadata_of(result.adapter) | {"iteris.recipe": json.dumps(result.report.settings)}
        merged = MergedLora(base.kohya_tensors(result.adapter), metadata)
        return io.NodeOutput(
            *base.patched(result.adapter),
            base.lora_model_tensors(result.adapter),
            merged,
            result.report,
            ui={"iteris_report": [result.report.to_dict()], "text": [str(result.report)]},
        )
