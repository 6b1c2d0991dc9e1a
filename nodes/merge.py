"""The merge."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from comfy_api.latest import io

from ..iteris_core import ConfigError
from ..iteris_core.diffusion.presets import DEFAULT_PRESET, Preset
from ..iteris_core.settings import bounds
from . import host
from .inputs import checked
from .loras.kinds import likely_styles
from .loras.names import fingerprints
from .loras.prompts import use_of_row
from .loras.rows import read_rows
from .presets import Asked, cost_shown, rows_by_preset
from .size import Size, Way
from .sockets import (
    LORA_MODEL,
    LORAS,
    MERGED,
    REPORT,
    SETTINGS,
    ChosenLora,
    MergedLora,
    found_by,
)
from .stack import ROWS, ROWS_EXAMPLE, files_in
from .workflow import texts_upstream

if TYPE_CHECKING:
    from ..iteris_core.devices import Room
    from ..iteris_core.diffusion.changes import Changes
    from ..iteris_core.diffusion.lora_use import LoadedLora
    from ..iteris_core.diffusion.recipe import Recipe
    from ..iteris_core.report.records import Note

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
                io.Model.Input("model", tooltip="The model for which the LoRAs were made."),
                io.Clip.Input("clip", tooltip="The CLIP of this model: its text encoders."),
                io.String.Input(
                    "loras", multiline=True, default="", placeholder=ROWS_EXAMPLE, tooltip=ROWS
                ),
                io.Combo.Input(
                    "preset",
                    options=list(get_args(Preset)),
                    default=DEFAULT_PRESET,
                    optional=True,
                    tooltip="How thorough the merge is. Fast: half of the sampling runs; base "
                    "prompts and two subjects in one picture suffer a little. Best: several ways "
                    "to merge are tried on the same sampling runs, plain stacking among them, and "
                    "the best on unseen prompts is kept.",
                ),
                io.Boolean.Input(
                    "together",
                    default=False,
                    optional=True,
                    tooltip="On: the LoRAs are also measured together in one picture, so that the "
                    "merged LoRA can draw two subjects side by side, or a subject in a style. Say "
                    "of each LoRA whether it is a subject or a style. Several subjects need SD1.5 "
                    "or SDXL.",
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
                    tooltip="More LoRAs: from LoRA to merge, LoRA stack, LoRAs on this model, "
                    "Trained LoRA, Scene prompts or Load recipe.",
                ),
                SETTINGS.Input(
                    "settings",
                    optional=True,
                    tooltip="From Merge settings, whose values replace those of the preset. Or "
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
            # a merge may end in its report; and only an output node's is sent again from the cache
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, loras: object = None, **inputs: object) -> str:
        """Return a fingerprint of the files that the rows name; constant if the text comes through
        a link.
        """
        return fingerprints({name: host.find_lora(name) for name in files_in(loras, "loras")})

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
    ) -> io.NodeOutput:
        from ..iteris_core.diffusion.job import merge_and_check, planned
        from ..iteris_core.diffusion.lora_use import LoadedLora, check_count, loras_in_use
        from ..iteris_core.engines.measure import room_for_sums
        from ..iteris_core.processes import alone
        from .loras.chosen import identified, load, scenes_of, unread_in

        wanted = Size(size, size_value)  # before files are read
        rows = read_rows(loras, "loras")
        chosen = [*(ChosenLora(use_of_row(row)) for row in rows), *more_loras]
        check_count(len(chosen))
        if not chosen:
            raise ConfigError(
                "there is no LoRA to merge: write a row such as <lora:name:0.8> into loras, or "
                "connect LoRAs to more_loras"
            )
        scenes = scenes_of(chosen)
        base = host.ComfyModel(model, clip)
        uses, loose = identified(chosen)
        read, joined = load(base, uses, loose)
        used = loras_in_use(read)
        asked = Asked(wanted, together, scenes, settings)
        calibration, how = asked.settings(preset, read)
        calibration = calibration.for_family(base.family)
        node_id = cls.hidden.unique_id
        progress = host.stage_progress(node_id)
        cost = planned(base, used, calibration, how, progress)
        room = base.make_room(
            calibration.resolution,
            cost.samples,
            lambda modules: room_for_sums(
                modules, [lora.adapter for lora in used], cost.tasks, how.config
            ),
        )
        how = replace(
            how,
            config=replace(
                how.config,
                samples_per_chunk=room.samples_per_chunk,
                waiting_bytes=room.waiting_bytes,
            ),
            made_on=cls.made_on(),
            notes=(
                *how.notes,
                *joined,
                *(likely_styles(rows) if calibration.scene_weight else ()),
                *cls.of_base(model, clip, read, is_guided=calibration.is_guided),
                *unread_in(base, calibration),
                *too_small(room),
            ),
        )
        watch = host.layer_teller(node_id)
        rows_taken = rows_by_preset(base, read, asked, progress)
        begin = time.monotonic()
        with alone():  # a process group in this server is another node's
            result = merge_and_check(base, read, calibration, how, progress, watch, cost)
        seconds = time.monotonic() - begin
        report = result.report
        for alert in report.alerts:
            logger.warning(alert)
        # the LoRAs' weights are not needed any more, and outputs stay in the host's cache
        sources = [LoadedLora(lora.use, lora.adapter.scaled(0)) for lora in used]
        return io.NodeOutput(
            *base.patched(result.adapter),
            base.lora_model_tensors(result.adapter),
            MergedLora(
                result.adapter, base.keys, json.dumps(report.settings), tuple(sources), loose
            ),
            report,
            ui={
                "iteris_report": [report.to_dict()],
                "text": [str(report)],
                **cost_shown(rows_taken, preset, seconds, report),
            },
        )

    @classmethod
    def of_base(
        cls, model: Any, clip: Any, loras: Sequence[LoadedLora], *, is_guided: bool
    ) -> Iterator[Note]:
        """Yield notes about what MODEL and CLIP carry already."""
        from .loras.on_model import notes_on_model

        yield from notes_on_model(
            host.patches_of(model, clip),
            host.base_changes(model, clip),
            loras,
            sorted(cls.named_upstream() & set(host.lora_names())),
            is_guided=is_guided,
        )

    @classmethod
    def made_on(cls) -> dict[str, str]:
        """Return what else a recipe should know: ComfyUI's version, and the base model's files as
        the workflow names them.
        """
        base = ", ".join(host.model_files(cls.named_upstream()))
        return {"comfyui_version": host.version(), **({"base": base} if base else {})}

    @classmethod
    def named_upstream(cls) -> set[str]:
        """Return every text in the nodes from which MODEL and CLIP come, such as names of files."""
        prompt = cls.hidden.prompt or {}
        return set(texts_upstream(prompt, cls.hidden.unique_id, ("model", "clip")))


def too_small(room: Room) -> list[Note]:
    """Return a note about a device that is too small for the whole model and the least of work,
    which the log tells at once.
    """
    from ..iteris_core.report.records import Note

    if not room.missing:
        return []
    text = (
        "the whole model, a call of one sample and the sums of the largest layer take about "
        f"{room.missing / 1e9:.1f} GB more than is free, by ComfyUI's formula. Then a part "
        "of the model waits in the computer's memory, which is slow, or the merge runs out of "
        "memory. Lower resolution, or merge fewer LoRAs at once"
    )
    logger.warning(text)
    return [Note("memory", text)]
