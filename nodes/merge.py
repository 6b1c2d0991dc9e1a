"""The nodes 'Merge LoRAs' and 'Merge LoRAs for video or editing'."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from comfy_api.latest import io

from ..iteris_core import IterisError
from ..iteris_core.diffusion.lora_rows import read_rows
from ..iteris_core.diffusion.presets import DEFAULT_PRESET, PREVIEW, Preset
from ..iteris_core.errors import plain
from ..iteris_core.settings import bounds
from . import host
from .asked import Asked
from .compare_checks import has_refused
from .cost import cost_shown, work_by_preset
from .expert_files import LOW_INPUT, partner_of
from .loras.names import fingerprints
from .loras.prompts import ready_row, use_of_row
from .save import check_names
from .size import Size, Way
from .sockets import (
    LORA_MODEL,
    LORAS,
    MERGED,
    REPORT,
    SETTINGS,
    ChosenLora,
    found_by,
)
from .stack import ROWS, ROWS_EXAMPLE, files_in, refused
from .validation import checked
from .words import NO_LORA, VIDEO_MERGE
from .workflow import inputs_of, text_at, texts_upstream, upstream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..iteris_core.diffusion.presets import Changes
    from ..iteris_core.diffusion.recipe import Recipe

logger = logging.getLogger("iteris")
NOT_BEGUN = "not begun, since "  # the page knows these words (web/run_events.js)


class _Merging(io.ComfyNode):
    """What both nodes do. Neither is a subclass of the other, which would take for its own what
    ComfyUI keeps of a schema on its class.
    """

    @classmethod
    def fingerprint_inputs(cls, loras: object = None, **inputs: object) -> str:
        """Return a fingerprint of the files that the rows name; constant if the text comes through
        a link.
        """
        names = files_in(loras)
        known = host.lora_names()
        others = (partner_of(name, known) for name in names)
        return fingerprints([*names, *filter(None, others)])

    @classmethod
    def validate_inputs(cls, loras: str | None = None) -> bool | str:
        """Refuse rows that cannot be merged, a Compare that could not draw them, and a file that
        could not be saved, before the model is loaded.
        """
        try:
            check_names(host.prompt_sent(), cls.hidden.unique_id)
        except IterisError:
            return f"{NOT_BEGUN}Save merged LoRA has an error"
        if has_refused(host.prompt_sent(), cls.hidden.unique_id):
            return f"{NOT_BEGUN}Compare has an error"
        is_measured = measures(host.prompt_sent(), cls.hidden.unique_id)
        use = ready_row if is_measured else use_of_row
        told = refused(loras, use, cls.hidden.unique_id)
        is_empty = told is True and isinstance(loras, str) and not read_rows(loras)
        linked = inputs_of(host.prompt_sent(), cls.hidden.unique_id)
        return NO_LORA if is_empty and "more_loras" not in linked else told

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        clip: Any,
        loras: str,
        preset: Preset = DEFAULT_PRESET,
        together: bool = False,
        size: Way = Size.way,
        size_value: float = Size.value,
        more_loras: tuple[ChosenLora, ...] = (),
        settings: Changes | Recipe | None = None,
        model_low_noise: Any = None,
        start: Any = None,
    ) -> io.NodeOutput:
        from ..iteris_core.diffusion.merging import merge_loras
        from ..iteris_core.processes import alone
        from .prepared import Connected, prepared

        check_names(cls.hidden.prompt or {}, cls.hidden.unique_id)
        wanted = Size(way=size, value=size_value)  # before files are read
        rows = read_rows(loras)
        asked = Asked(preset, together, wanted, settings)
        node_id = cls.hidden.unique_id
        progress = host.stage_progress(node_id)
        texts = {
            name: frozenset(texts_upstream(cls.hidden.prompt or {}, node_id, (name,)))
            for name in ("model", "clip", LOW_INPUT)
        }
        connected = Connected(model, clip, model_low_noise, texts, start)
        work = prepared(connected, rows, more_loras, asked)
        begin = time.monotonic()
        # a process group in this server is another node's
        with alone(), host.naming_changes(connected.models, clip):
            result = merge_loras(work.job, progress, host.layer_teller(node_id))
        seconds = time.monotonic() - begin
        merged = work.merged(result, asked)
        report = result.report
        what = f"{work.base.family.name} {work.job.latent_shape}"
        for warning in report.warnings:
            logger.warning(plain(warning))
        return io.NodeOutput(
            *work.base.patched(result.adapter),
            work.base.lora_model_tensors(result.adapter),
            merged,
            report,
            work.base.patched_low(result.adapter),  # ComfyUI drops it where no socket is for it
            ui={
                "iteris_report": [report.to_dict()],
                "iteris_made": [merged.made],
                "text": [str(report)],
                **cost_shown(work_by_preset(work.job, asked), preset, seconds, report, what),
            },
        )


class Merge(_Merging):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISMerge",
            display_name="Merge LoRAs (IterIS)",
            **found_by(
                "merge lora",
                "merge loras",
                "combine loras",
                "lora merger",
                "mix loras",
                essential="Image Generation",
            ),
            category="loaders/IterIS",
            description="Merges LoRAs into one. It runs each of them on its prompts, measures "
            "every layer, and computes the one LoRA that comes closest to doing what "
            "each of them does. LoRAs that MODEL or CLIP already carry count as part "
            "of the base model. For videos that begin with a picture, for editing, and for Wan "
            f"2.2's two models take {VIDEO_MERGE}: here LoRAs are measured without a picture.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRAs were made for."),
                io.Clip.Input("clip", tooltip="The CLIP of this model: its text encoders."),
                io.String.Input(
                    "loras", multiline=True, default="", placeholder=ROWS_EXAMPLE, tooltip=ROWS
                ),
                io.Combo.Input(
                    "preset",
                    options=list(get_args(Preset)),
                    default=DEFAULT_PRESET,
                    optional=True,
                    tooltip="How thorough the merge is. Fast: half of the sampling runs; pictures "
                    "of other things and of two subjects suffer. Polished: for "
                    "transformers such as Flux.1, not for SDXL and SD1.5: 40 runs, then 100 "
                    "gradient steps, for more of each LoRA and two subjects in one picture; it "
                    "takes 25 to 30 times as long with two LoRAs. Preview: the files alone, in "
                    "seconds; nothing is measured, so that no prompts are needed.",
                ),
                io.Boolean.Input(
                    "together",
                    default=False,
                    optional=True,
                    tooltip="On: the LoRAs are also measured together in one picture, so that the "
                    "merged LoRA can draw two subjects side by side. For a subject in a style it "
                    "was not shown to help. Mark each LoRA as a subject or a style. On "
                    "transformers such as Flux.1, also choose the preset Polished.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(get_args(Way)),
                    default=Size.way,
                    optional=True,
                    tooltip="Size of the merged LoRA. as is: the sum of the LoRAs' ranks. smaller: "
                    "every layer keeps 99 % of its effect. rank, MB: as size_value says; MB takes "
                    "a second pass.",
                ),
                io.Float.Input(
                    "size_value",
                    default=Size.value,
                    **bounds(Size, "value"),
                    step=1.0,
                    round=False,
                    optional=True,
                    tooltip="The rank of all layers, or the size of the file in MB. It counts only "
                    "if size is rank or MB.",
                ),
                LORAS.Input(
                    "more_loras",
                    optional=True,
                    tooltip="More LoRAs: from LoRA to merge, LoRA stack to merge, LoRAs on this "
                    "model, Trained LoRA to merge, Scene prompts or Load recipe.",
                ),
                SETTINGS.Input(
                    "settings",
                    optional=True,
                    tooltip="From Merge settings: what is set there overrides the preset. Or "
                    "from Load recipe, so that a file is made again as it was: then preset, "
                    "together and size do not count.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                LORA_MODEL.Output(
                    display_name="LORA_MODEL",
                    tooltip="The part for the diffusion model, for ComfyUI's own Load LoRA Model "
                    "and Save LoRA Weights.",
                ),
                MERGED.Output(
                    display_name="merged LoRA",
                    tooltip="Diffusion model and text encoders, for Save merged LoRA.",
                ),
                REPORT.Output(
                    display_name="report",
                    tooltip="How well each LoRA is reproduced, for Merge report.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            # a workflow may end here; and only output nodes send their report again from the cache
            is_output_node=True,
        )


class MergeVideo(_Merging):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = Merge.define_schema()
        inputs = [
            io.Conditioning.Input(
                "start",
                display_name="start (picture)",
                optional=True,
                tooltip="For image-to-video models: the output positive of WanImageToVideo, "
                "with a picture like those that your videos begin with. Without it, LoRAs are "
                "measured on videos that begin grey. For editing models such as Kontext and "
                "Qwen-Image-Edit: a text with a ReferenceLatent. Without it, LoRAs are "
                "measured without a picture to edit.",
            ),
            # at the position of its output, so that a bypassed node passes it on
            io.Model.Input(
                LOW_INPUT,
                display_name=f"{LOW_INPUT} (Wan 2.2)",
                optional=True,
                tooltip="For Wan 2.2 14B, which is a pair: connect its high noise model to "
                "model, and its low noise model here. Then a row is a pair of files, too: "
                "choose one, and the other is found by its name.",
            ),
        ]
        low_model = io.Model.Output(
            display_name="MODEL low noise",
            tooltip="The low noise model of a pair, with its part of the merged LoRA. "
            "MODEL and LORA_MODEL are then for the high noise model. Empty without a pair.",
        )
        return replace(
            schema,
            node_id="IterISMergeVideo",
            display_name=f"{VIDEO_MERGE} (IterIS)",
            **found_by(
                "merge lora",
                "merge loras",
                "combine loras",
                "merge wan lora",
                "merge video lora",
                "merge edit lora",
                "merge kontext lora",
            ),
            description="Merges LoRAs into one, as Merge LoRAs does, for models that take more "
            "than a text: a first picture (image to video), a picture to edit, or a second model "
            "(Wan 2.2).",
            inputs=[*schema.inputs, *inputs],
            outputs=[*schema.outputs, low_model],
        )


def measures(prompt: Mapping[str, Any], node_id: str) -> bool:
    """Return whether it is certain, before a merge runs, that it measures its LoRAs: its preset is
    not Preview, and no recipe is connected, whose preset may have been.

    Args:
        prompt: See `workflow.upstream`.
        node_id: The node that merges.
    """
    preset = text_at(prompt, inputs_of(prompt, node_id).get("preset", DEFAULT_PRESET))
    before = upstream(prompt, node_id, ("settings",))
    has_recipe = any(prompt[node].get("class_type") == "IterISRecipe" for node in before)
    return preset not in (None, PREVIEW) and not has_recipe
