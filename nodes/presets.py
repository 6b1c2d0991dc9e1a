"""The settings of a merge by preset, node and recipe, and what each preset would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..iteris_core import MergeConfig
from ..iteris_core.config import UNIT_GAIN
from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.presets import PRESETS, PREVIEW, Changes, Preset
from .scene import TOGETHER, TOGETHER_POLISHED
from .size import Size
from .sockets import Scenes

if TYPE_CHECKING:
    from ..iteris_core.diffusion.job import Job, MergeSettings
    from ..iteris_core.diffusion.lora_use import LoadedLora
    from ..iteris_core.diffusion.recipe import Recipe
    from ..iteris_core.report.records import MergeReport


@dataclass(frozen=True)
class Asked:
    """What the widgets of a merge node ask for, and the settings that are connected to it.

    Args:
        together: Whether the LoRAs are measured together.
        given: Settings that are connected. A recipe's are all there are, and a note says so.
    """

    preset: Preset
    together: bool
    size: Size
    given: Changes | Recipe | None = None

    def changes(self, preset: Preset) -> Changes | None:
        """Return what a preset, the node and connected settings change of a merge; later ones win
        over earlier ones, but that a preview measures nothing. None: a recipe is connected, which
        has all settings.
        """
        if self.given is not None and not isinstance(self.given, Changes):
            return None
        weight = TOGETHER_POLISHED if PRESETS[preset].calibration.get("polish") else TOGETHER
        together = Changes(calibration={"scene_weight": weight} if self.together else {})
        asked = PRESETS[preset].then(together).then(self.given or Changes())
        return asked.then(PRESETS[PREVIEW]) if preset == PREVIEW else asked

    def settings(
        self, loras: Sequence[LoadedLora], scenes: Scenes | None
    ) -> tuple[Calibration, MergeSettings]:
        """Return the settings of a merge: the preset's, replaced by the node's own, and these by
        the connected ones.

        Args:
            loras: The LoRAs of the merge, whose layers a size in MB is shared out over.
            scenes: Settings of the scenes that come with the LoRAs; None: the defaults.

        Raises:
            ConfigError: Settings that do not go together.
        """
        from ..iteris_core.diffusion.job import MergeSettings, changed
        from ..iteris_core.report.records import Note

        changes = self.changes(self.preset)
        if changes is not None:
            dtype = changes.config.get("output_dtype", torch.float16)
            start = MergeSettings(MergeConfig(output_dtype=dtype, unit_gain=UNIT_GAIN))
            if self.preset == PREVIEW:
                idle = {"together": self.together, "size": self.size.way != Size.way}
                words = " and ".join(word for word, is_set in idle.items() if is_set)
                text = f"{words} did not count, since a preview measures nothing"
                start = replace(start, notes=(Note("method", text),) if words else ())
            else:
                self.size.check_alone(changes)
                changes = self.size.changes(loras, dtype).then(changes)
            calibration, settings = changed(Calibration(), start, changes)
        else:
            assert self.given is not None and not isinstance(self.given, Changes)
            kept = "preset, together and size"
            if scenes:
                kept = "the scenes come from Scene prompts; preset, together and size"
            text = f"all settings come from the recipe; {kept} did not count"
            calibration = self.given.calibration
            settings = MergeSettings(
                self.given.config, self.given.is_corrected, notes=(Note("method", text),)
            )
        if scenes and settings.config.measured:
            calibration = scenes.applied_to(calibration)
        return calibration, settings


def rows_by_preset(job: Job, asked: Asked) -> dict[Preset, int]:
    """Return about how many rows a merge takes with each preset that goes with the other settings;
    none of a preview, and with a recipe, where presets do not count.

    Args:
        asked: What was asked for; its preset does not count.
    """
    found: dict[Preset, int] = {}
    for preset in PRESETS if job.config.measured else ():
        changes = asked.changes(preset)
        if changes is not None and preset != PREVIEW:
            runs = changes.calibration.get("trajectories", Calibration.trajectories)
            steps = changes.calibration.get("polish", Calibration.polish)
            found[preset] = job.cost.rows_with(runs / job.calibration.trajectories, steps)
    return found


# What was merged -> seconds a row of the last merge whose sampling runs were its own.
_PACE: dict[str, float] = {}


def cost_shown(
    rows: Mapping[Preset, int], preset: Preset, seconds: float, report: MergeReport, what: str
) -> dict[str, Any]:
    """Return what a merge took and what it would take with each preset, for the page; nothing if
    that is not known. Runs of an earlier merge took no time in this one, so that the time is then
    told from the last one without any.

    Args:
        seconds: How long the merge took.
        what: What else the time of a row depends on: the model's family, and the latents' shape.
    """
    if preset not in rows:
        return {}
    if any(note.kind == "reused" for note in report.notes):
        if what not in _PACE:
            return {}
        seconds = _PACE[what] * rows[preset]
    else:
        _PACE[what] = seconds / rows[preset]
    shown = {"rows": rows[preset], "seconds": round(seconds, 1), "presets": dict(rows)}
    return {"iteris_cost": [shown]}
