"""All that a merge needs before its first forward call: LoRAs that are read, settings that go
together, memory that is shared out, and notes for the report.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..iteris_core import ConfigError
from ..iteris_core.diffusion.job import MergeSettings, planned
from ..iteris_core.diffusion.lora_use import LoadedLora, check_count, loras_in_use
from ..iteris_core.engines.measure import room_for_sums
from ..iteris_core.report.records import Note
from . import host
from .loras.chosen import identified, load, scenes_of, unread_in
from .loras.kinds import likely_styles
from .loras.on_model import notes_on_model
from .loras.prompts import use_of_row
from .presets import Asked, rows_by_preset
from .sockets import ChosenLora, Loose, MergedLora

if TYPE_CHECKING:
    from ..iteris_core import MergeResult
    from ..iteris_core.devices import Room
    from ..iteris_core.diffusion.calibration import Calibration
    from ..iteris_core.diffusion.cost import Cost
    from ..iteris_core.diffusion.presets import Preset
    from ..iteris_core.progress import StageProgress
    from .loras.rows import Row

logger = logging.getLogger("iteris")


@dataclass(frozen=True)
class Prepared:
    """A merge that can begin.

    Args:
        base: The base model.
        loras: The LoRAs, read, each once.
        loose: Weights of those that are in no file.
        calibration: What is measured, for this model's family.
        settings: How it is merged.
        cost: What it costs.
        rows_by_preset: The rows that it would take with each preset.
    """

    base: host.ComfyModel
    loras: Sequence[LoadedLora]
    loose: Loose
    calibration: Calibration
    settings: MergeSettings
    cost: Cost
    rows_by_preset: Mapping[Preset, int]

    def merged(self, result: MergeResult) -> MergedLora:
        """Return the merged LoRA for the nodes after the merge, without its LoRAs' weights, since
        outputs stay in the host's cache.
        """
        sources = [
            LoadedLora(lora.use, lora.adapter.scaled(0)) for lora in loras_in_use(self.loras)
        ]
        return MergedLora(
            result.adapter,
            self.base.keys,
            json.dumps(result.report.settings),
            tuple(sources),
            self.loose,
            result.report,
        )


def prepared(
    model: Any,
    clip: Any,
    rows: Sequence[Row],
    more_loras: Sequence[ChosenLora],
    asked: Asked,
    upstream: Set[str],
    progress: StageProgress,
) -> Prepared:
    """Read the LoRAs, and find out what can be known of a merge before it begins.

    Args:
        model, clip: The host's, without the merged LoRA.
        rows: The LoRAs of the node's own text.
        more_loras: Those that are connected.
        asked: What was asked for.
        upstream: Texts in the nodes from which model and clip come, such as names of files.
        progress: Listener that may raise to cancel.

    Raises:
        IterisError: There is no LoRA, one cannot be read or does not fit the model, or settings,
            prompts or captions do not go together.
    """
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
    loras, joined = load(base, uses, loose)
    calibration, settings = asked.settings(loras, scenes)
    calibration = calibration.for_family(base.family)
    used = loras_in_use(loras)
    cost = planned(base, used, calibration, settings, progress)
    adapters = [lora.adapter for lora in used]
    room = base.make_room(
        calibration.resolution,
        cost.samples,
        lambda modules: room_for_sums(modules, adapters, cost.tasks, settings.config),
    )
    notes = (
        *settings.notes,
        *joined,
        *(likely_styles(rows) if calibration.scene_weight else ()),
        *notes_on_model(
            host.patches_of(model, clip),
            host.base_changes(model, clip),
            loras,
            sorted(upstream & set(host.lora_names())),
            is_guided=calibration.is_guided,
        ),
        *unread_in(base, calibration),
        *too_small(room),
    )
    config = replace(
        settings.config,
        samples_per_chunk=room.samples_per_chunk,
        waiting_bytes=room.waiting_bytes,
    )
    settings = replace(settings, config=config, made_on=_made_on(upstream), notes=notes)
    by_preset = rows_by_preset(base, loras, asked, scenes, progress)
    return Prepared(base, loras, loose, calibration, settings, cost, by_preset)


def _made_on(upstream: Set[str]) -> dict[str, str]:
    """Return what else a recipe should know: ComfyUI's version, and the base model's files as the
    workflow names them.
    """
    base = ", ".join(host.model_files(upstream))
    return {"comfyui_version": host.version(), **({"base": base} if base else {})}


def too_small(room: Room) -> list[Note]:
    """Return a note about a device that is too small for the whole model and the least of work,
    which the log tells at once.
    """
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
