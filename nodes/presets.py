"""The settings that a merge node comes to, and what each preset would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..iteris_core import MergeConfig
from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.changes import Changes
from ..iteris_core.diffusion.presets import PRESETS, Preset
from .scene import TOGETHER
from .size import Size
from .sockets import Scenes

if TYPE_CHECKING:
    from ..iteris_core.diffusion.job import MergeSettings
    from ..iteris_core.diffusion.lora_use import LoadedLora
    from ..iteris_core.diffusion.recipe import Recipe
    from .host import ComfyModel


@dataclass(frozen=True)
class Asked:
    """What a merge node and the nodes that are connected to it ask for, but for the preset.

    Args:
        size: The size of the merged LoRA.
        together: Whether the LoRAs are measured together.
        scenes: Settings of the scenes that come with the LoRAs; None: the defaults.
        given: Settings that are connected. A recipe's are all there are, and a note says so.
    """

    size: Size
    together: bool
    scenes: Scenes | None = None
    given: Changes | Recipe | None = None

    def settings(
        self, preset: Preset, loras: Sequence[LoadedLora]
    ) -> tuple[Calibration, MergeSettings]:
        """Return the settings of a merge: those of the preset, replaced by the node's own, and
        those by the ones that are connected.

        Args:
            preset: How thorough the merge is.
            loras: The LoRAs of the merge, whose layers a size in MB is shared out over.

        Raises:
            ConfigError: Settings that do not go together.
        """
        from ..iteris_core.diffusion.job import MergeSettings, changed
        from ..iteris_core.report.records import Note

        if self.given is None or isinstance(self.given, Changes):
            changes = PRESETS[preset]
            if self.together:
                changes = changes.then(Changes(calibration={"scene_weight": TOGETHER}))
            changes = changes.then(self.given) if self.given else changes
            dtype = changes.config.get("output_dtype", torch.float16)
            self.size.check_alone(changes)
            changes = self.size.changes(loras, dtype).then(changes)
            start = MergeSettings(MergeConfig(output_dtype=dtype))
            calibration, settings = changed(Calibration(), start, changes)
        else:
            text = "all settings are those of the recipe; preset, together and size did not count"
            calibration = self.given.calibration
            settings = MergeSettings(
                self.given.config, self.given.is_corrected, notes=(Note("method", text),)
            )
        return self.scenes.applied_to(calibration) if self.scenes else calibration, settings


def cost_shown(
    base: ComfyModel, loras: Sequence[LoadedLora], asked: Asked, preset: Preset, seconds: float
) -> dict[str, Any]:
    """Return what a merge took and what it would take with each preset, for the page.

    Args:
        base: The model.
        loras: The LoRAs of the merge.
        asked: What was asked for.
        preset: How thorough the merge was.
        seconds: How long it took.
    """
    from ..iteris_core.diffusion.job import rows_of
    from ..iteris_core.diffusion.lora_use import loras_in_use

    used = loras_in_use(loras)

    def rows(preset: Preset) -> int:
        calibration, settings = asked.settings(preset, loras)
        return rows_of(base, used, calibration.for_family(base.family), settings)

    presets = {name: rows(name) for name in PRESETS}
    return {"rows": presets[preset], "seconds": round(seconds, 1), "presets": presets}
