"""All that a merge needs before its first forward call: LoRAs that are read, settings that go
together, memory that is shared out, and notes for the report.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..iteris_core import ConfigError
from ..iteris_core.diffusion.job import Job
from ..iteris_core.diffusion.lora_use import check_count
from ..iteris_core.report.records import Note
from ..iteris_core.settings import setting_to
from . import host
from .loras.chosen import identified, load
from .loras.on_model import notes_on_model
from .loras.prompts import each, use_of_row
from .sockets import ChosenLora, Loose, MergedLora
from .words import NO_LORA

if TYPE_CHECKING:
    from ..iteris_core import MergeResult
    from ..iteris_core.diffusion.calibration import Calibration
    from ..iteris_core.diffusion.loaded_loras import LoadedLora
    from ..iteris_core.diffusion.lora_rows import Row
    from ..iteris_core.diffusion.lora_use import LoraUse
    from ..iteris_core.files.families import Family
    from ..iteris_core.memory import Room
    from .asked import Asked

logger = logging.getLogger("iteris")


@dataclass(frozen=True)
class Prepared:
    """A merge that can begin.

    Args:
        loose: Weights of its LoRAs that are in no file.
    """

    base: host.ComfyModel
    job: Job
    loose: Loose

    def merged(self, result: MergeResult, of: Mapping[str, Any]) -> MergedLora:
        """Return the merged LoRA for the nodes after the merge, without its LoRAs' weights, since
        outputs stay in the host's cache.

        Args:
            of: See `payload.of_merge`.
        """
        return MergedLora(
            result.adapter,
            self.base.fresh(),
            json.dumps(result.report.settings),
            tuple(replace(lora, adapter=lora.adapter.scaled(0)) for lora in self.job.loras),
            self.loose,
            of,
        )


@dataclass(frozen=True)
class Connected:
    """What the sockets of a merge node bring.

    Args:
        model, clip: The host's, without the merged LoRA.
        texts: Texts in the nodes that they come from, such as names of files.
        start: A CONDITIONING with a first picture, or with pictures to edit; None: there is none.
    """

    model: Any
    clip: Any
    texts: Set[str]
    start: Any = None


def prepared(
    connected: Connected, rows: Sequence[Row], more_loras: Sequence[ChosenLora], asked: Asked
) -> Prepared:
    """Read the LoRAs, and find out what can be known of a merge before it begins.

    Args:
        rows: The LoRAs of the node's own text.
        more_loras: The LoRAs that are connected.

    Raises:
        IterisError: There is no LoRA, the model cannot be merged on, a LoRA cannot be read or does
            not fit it, or settings, prompts or captions do not go together.
    """
    if not rows and not more_loras:
        raise ConfigError(NO_LORA)
    check_count(len(rows) + len(more_loras))
    model, clip = connected.model, connected.clip
    base = host.ComfyModel(model, clip, start=host.start_of(connected.start))
    of_rows = each(rows, use_of_row)
    chosen = [*map(ChosenLora, of_rows), *more_loras]
    asked.check_prompts(lora.use for lora in chosen)
    uses, loose = identified(chosen)
    loras, joined = load(base, uses, loose)
    job = Job.of(base, loras, *asked.settings())
    notes = (
        *job.settings.notes,
        *check_untested(base.family, job.calibration),
        *of_editing(base, connected.texts, job.calibration),
        *joined,
        *(of_strengths(loras) if asked.recipe is None else ()),
        *(guessed_styles(rows, of_rows) if job.calibration.scene_weight else ()),
        *dict.fromkeys(
            notes_on_model(
                host.patches_of(model, clip),
                host.base_changes(model, clip),
                loras,
                sorted(connected.texts & set(host.lora_names())),
                is_guided=job.calibration.is_guided,
            )
        ),
    )
    if job.config.measured:
        room, base = base.make_room(job.latent_shape, job.cost.samples, job.layer_bytes)
        notes = (*notes, *too_small(room))
        job = replace(job, room=room, model=base)
    settings = replace(job.settings, made_on=_made_on(connected.texts), notes=notes)
    return Prepared(base, replace(job, settings=settings), loose)


def of_strengths(loras: Iterable[LoadedLora]) -> list[Note]:
    """Return a note if no LoRA is merged at full strength, and the merged one at 1 is as weak."""
    uses = [lora.use for lora in loras if not lora.use.is_idle]
    strengths = sorted({max(abs(use.strength_model), abs(use.strength_clip)) for use in uses})
    if not strengths or strengths[-1] >= 1:
        return []
    found = " and ".join(f"{strength:g}" for strength in strengths)
    text = (
        f"merged at {found}, so that the merged LoRA at strength 1 is as strong as that; set 1 to "
        "merge them at full strength"
    )
    return [Note("method", text)]


def guessed_styles(rows: Sequence[Row], uses: Sequence[LoraUse]) -> list[Note]:
    """Return a note for each row that does not say its kind and whose LoRA was taken as a style."""
    return [
        Note(
            "scenes",
            f"{row.where}: {use.file} was taken for a style, by its name or its trigger words; "
            "write style or subject after it",
        )
        for row, use in zip(rows, uses, strict=True)
        if row.kind is None and use.kind == "style"
    ]


def check_untested(family: Family, calibration: Calibration) -> list[Note]:
    """Return a warning about a model of a class that was never tested.

    Raises:
        ConfigError: It is to be measured on scenes, for which one must know which layers read the
            text.
    """
    if family.is_tested:
        return []
    if calibration.scene_weight:
        raise ConfigError(
            f"merging on {family.name} was never tested, and it is not known which of its layers "
            "read the text, as scenes need. Switch together off, or set "
            f"{setting_to('scene_weight', 0)}"
        )
    text = (
        f"merging on {family.name} (ComfyUI's name of it) was never tested. Each LoRA changes the "
        "weights as ComfyUI's loader does, and the model calls all of its layers; more is not "
        "known, so look at the results with Compare. It was measured with guidance "
        f"{calibration.cfg:g}, and on {'videos' if calibration.frames > 1 else 'single pictures'}: "
        "cfg and frames of Merge settings change that"
    )
    return [Note("untested", text)]


def of_editing(base: host.ComfyModel, texts: Iterable[str], calibration: Calibration) -> list[Note]:
    """Return a note about a model that edits pictures.

    Args:
        texts: Names in the nodes that MODEL and CLIP come from.

    Raises:
        ConfigError: Pictures to edit, and scenes.
    """
    if base.references and calibration.scene_weight:
        raise ConfigError(
            "pictures to edit are connected to start, and scenes of several LoRAs cannot be "
            "measured with them. Switch together off, or set "
            f"{setting_to('scene_weight', 0)}, or disconnect start"
        )
    if base.references:
        text = (
            f"measured with the middle of {base.references} pictures to edit, which are connected "
            "to start; the prompts were read without them"
        )
    elif base.is_for_editing(texts):
        text = (
            f"this {base.family.name} edits pictures, by its file's name or its settings, and the "
            "LoRAs were measured without one. To measure them with one, connect a conditioning "
            "with a ReferenceLatent to start"
        )
    else:
        return []
    return [Note("host", text)]


def _made_on(upstream: Set[str]) -> dict[str, str]:
    """Return what else a recipe should know: ComfyUI's version, and the base model's files as the
    workflow names them.
    """
    base = ", ".join(host.model_files(upstream))
    return {"comfyui_version": host.version(), **({"base": base} if base else {})}


def too_small(room: Room) -> list[Note]:
    """Return a note if a device is too small for the whole model and the smallest call, and log it
    at once.
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
