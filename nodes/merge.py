"""The node 'Merge LoRAs'."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, get_args

from comfy_api.latest import io

from ..iteris_core import IterisError
from ..iteris_core.diffusion.lora_rows import read_rows
from ..iteris_core.diffusion.presets import DEFAULT_PRESET, PREVIEW, Preset
from ..iteris_core.errors import plain
from ..iteris_core.settings import bounds
from . import host
from .asked import Asked, Size, Way
from .compare_checks import refusal_for
from .loras.names import fingerprints
from .loras.prompts import ready_row, use_of_row
from .payload import cost_of, facts_of, notes_of, of_merge, shown, work_by_preset
from .rows import ROWS, ROWS_EXAMPLE, refused, uses_of_stack, watched
from .save import check_names
from .sockets import (
    LORA_MODEL,
    LORA_STACK,
    LORAS,
    MERGED,
    SETTINGS,
    ChosenLora,
    found_by,
)
from .validation import checked
from .words import NO_LORA
from .workflow import inputs_of, text_at, texts_upstream, upstream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..iteris_core.diffusion.presets import Changes
    from ..iteris_core.diffusion.recipe import Recipe

logger = logging.getLogger("iteris")


class Merge(io.ComfyNode):
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
            "of the base model.",
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
                    "transformers such as Flux.1, not for SDXL and SD1.5: gradient steps, for "
                    "more of each LoRA and two subjects in one picture; with two LoRAs it takes "
                    "some 8 times as long, with together 13 times. Preview: the files alone, in "
                    "seconds; nothing is measured, so that no prompts are needed.",
                ),
                io.Boolean.Input(
                    "together",
                    default=False,
                    optional=True,
                    tooltip="On: the LoRAs are also measured together in one picture, so that the "
                    "merged LoRA can draw two subjects side by side. For a subject in a style it "
                    "does not help. Mark each LoRA as a subject or a style. On transformers such "
                    "as Flux.1, also choose the preset Polished.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(get_args(Way)),
                    default=Size.way,
                    optional=True,
                    tooltip="Size of the merged LoRA. as is: the sum of the LoRAs' ranks. smaller: "
                    "every layer keeps 99 % of its effect. rank: as size_value says.",
                ),
                io.Float.Input(
                    "size_value",
                    default=Size.value,
                    **bounds(Size, "value"),
                    step=1.0,
                    round=False,
                    optional=True,
                    tooltip="The rank of all layers. It counts only if size is rank.",
                ),
                LORA_STACK.Input(
                    "lora_stack",
                    optional=True,
                    tooltip="More LoRAs, from any node with a LORA_STACK. Prompts are made of the "
                    "trigger words that their files name.",
                ),
                LORAS.Input(
                    "more_loras",
                    optional=True,
                    tooltip="More LoRAs, from LoRA to merge or Load recipe.",
                ),
                SETTINGS.Input(
                    "settings",
                    optional=True,
                    tooltip="From Merge settings: what is set there overrides the preset. Or "
                    "from Load recipe, so that a file is made again as it was: then preset, "
                    "together and size do not count.",
                ),
                io.Conditioning.Input(
                    "start",
                    optional=True,
                    tooltip="For image-to-video models: the output positive of WanImageToVideo, "
                    "with a picture like those that your videos begin with. Without it, LoRAs are "
                    "measured on videos that begin grey. For editing models such as Kontext and "
                    "Qwen-Image-Edit: a text with a ReferenceLatent. Without it, LoRAs are "
                    "measured without a picture to edit.",
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
                io.String.Output(
                    display_name="report",
                    tooltip="What the merge did, for Preview Any.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            # a workflow may end here; and only output nodes send their report again from the cache
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, loras: object = "", **inputs: object) -> str:
        """Return a fingerprint of the files that count; see `watched`."""
        return fingerprints(watched(loras, "lora_stack" in inputs))

    @classmethod
    def validate_inputs(cls, loras: str | None = None) -> bool | str:
        """Refuse rows that cannot be merged, a Compare that could not draw them, and a file that
        could not be saved, before the model is loaded.
        """
        sent, node_id = host.prompt_sent(), cls.hidden.unique_id
        try:
            check_names(sent, node_id)
        except IterisError as error:
            return str(error)
        if of_compare := refusal_for(sent, node_id):
            return of_compare
        use = ready_row if measures(sent, node_id) else use_of_row
        answer = refused(loras, use, node_id)
        if answer is not True or not isinstance(loras, str):
            return answer
        try:
            rows = read_rows(loras)
        except IterisError as error:  # such as too many of them
            return str(error)
        linked = inputs_of(sent, node_id)
        has_more = any(name in linked for name in ("more_loras", "lora_stack"))
        return True if rows or has_more else NO_LORA

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
        lora_stack: Any = None,
        more_loras: tuple[ChosenLora, ...] = (),
        settings: Changes | Recipe | None = None,
        start: Any = None,
    ) -> io.NodeOutput:
        from ..iteris_core.diffusion.merging import merge_loras
        from ..iteris_core.processes import alone
        from .prepared import Connected, prepared

        wanted = Size(way=size, value=size_value)  # before files are read
        rows = read_rows(loras)
        asked = Asked(preset, together, wanted, settings)
        node_id = cls.hidden.unique_id
        progress = host.stage_progress(node_id)
        sent = cls.hidden.prompt or {}
        texts = frozenset(texts_upstream(sent, node_id, ("model", "clip")))
        more = (*(ChosenLora(use) for use in uses_of_stack(lora_stack)), *more_loras)
        work = prepared(Connected(model, clip, texts, start), rows, more, asked)
        begin = time.monotonic()
        # a process group in this server is another node's
        with alone(), host.naming_changes(model, clip):
            result = merge_loras(work.job, progress)
        seconds = time.monotonic() - begin
        merged = work.merged(result, of_merge(work.job, asked))
        report = result.report
        facts = facts_of(work.job, result.adapter, seconds)
        payload = {
            "of": merged.of,
            "facts": facts,
            "notes": notes_of(report.notes),
            "report": report.to_dict(),
            "cost": cost_of(work_by_preset(work.job, asked), preset, seconds, report),
        }
        for note in report.notes:
            if note.is_warning:
                logger.warning(plain(note.text))
        return io.NodeOutput(
            *work.base.patched(result.adapter),
            work.base.lora_model_tensors(result.adapter),
            merged,
            str(report),
            ui=shown(payload, *facts, str(report)),
        )


def measures(prompt: Mapping[str, Any], node_id: str) -> bool:
    """Return whether a merge certainly measures its LoRAs: its preset is not Preview, and no recipe
    is connected, which may be a preview's.

    Args:
        prompt: See `workflow.upstream`.
        node_id: The node that merges.
    """
    preset = text_at(prompt, inputs_of(prompt, node_id).get("preset", DEFAULT_PRESET))
    before = upstream(prompt, node_id, ("settings",))
    has_recipe = any(prompt[node].get("class_type") == "IterISRecipe" for node in before)
    return preset not in (None, PREVIEW) and not has_recipe
