"""What a merge node is asked for, by preset, node and connected settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..iteris_core import MergeConfig
from ..iteris_core.config import UNIT_GAIN
from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.presets import PRESETS, PREVIEW, Changes, Preset
from ..iteris_core.settings import TOGETHER
from .scene import TOGETHER_POLISHED
from .settings import words_of_changes
from .size import Size
from .sockets import Scenes

if TYPE_CHECKING:
    from ..iteris_core.diffusion.job import MergeSettings
    from ..iteris_core.diffusion.lora_use import LoadedLora, LoraUse
    from ..iteris_core.diffusion.recipe import Recipe


@dataclass(frozen=True)
class Asked:
    """What the widgets of a merge node ask for, and the settings that are connected to it.

    Args:
        together: Whether the LoRAs are measured together.
        given: Settings that are connected.
    """

    preset: Preset
    together: bool
    size: Size
    given: Changes | Recipe | None = None

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that is connected; it has all settings, so that no others count."""
        return None if isinstance(self.given, Changes) else self.given

    def told(self) -> dict[str, Any]:
        """Return for the page what tells this merge from others of its LoRAs: its preset, and what
        else is set, word -> value; nothing where a recipe is connected.
        """
        if self.recipe is not None:
            return {"preset": "", "settings": {}}
        own = {"together": "on"} if self.together else {}
        if self.size.way != Size.way:
            value = f" {self.size.value:g}" if self.size.way in ("rank", "MB") else ""
            own["size"] = f"{self.size.way}{value}"
        given = self.given if isinstance(self.given, Changes) else Changes()
        set_here = {} if self.preset == PREVIEW else own  # which measures nothing
        return {"preset": self.preset, "settings": {**set_here, **words_of_changes(given)}}

    def changes(self, preset: Preset) -> Changes | None:
        """Return what a preset, the node and connected settings change of a merge; later ones win,
        except that a preview never measures. None: a recipe is connected.
        """
        if self.recipe is not None:
            return None
        given = self.given if isinstance(self.given, Changes) else Changes()
        weight = TOGETHER_POLISHED if PRESETS[preset].calibration.get("polish") else TOGETHER
        together = Changes(calibration={"scene_weight": weight} if self.together else {})
        asked = PRESETS[preset].then(together).then(given)
        return asked.then(PRESETS[PREVIEW]) if preset == PREVIEW else asked

    def check_prompts(self, uses: Iterable[LoraUse]) -> None:
        """Refuse LoRAs without prompts if a model would run on prompts, before files are read.

        Raises:
            IterisError: See `MergeSettings.check_prompts`; or settings that do not go together.
        """
        from ..iteris_core.diffusion.job import MergeSettings, changed

        if self.recipe is not None:
            how = MergeSettings(self.recipe.config)
            how.check_prompts(uses, is_fixed=True)
        elif (changes := self.changes(self.preset)) is not None:
            _, how = changed(Calibration(), MergeSettings(), changes)
            how.check_prompts(uses)

    def settings(
        self, loras: Sequence[LoadedLora], scenes: Scenes | None
    ) -> tuple[Calibration, MergeSettings]:
        """Return the settings of a merge: the preset's, overridden by the node's own, and these by
        connected ones.

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
                start = replace(start, notes=(Note("idle", text),) if words else ())
            else:
                self.size.check_alone(changes)
                changes = self.size.changes(loras, dtype).then(changes)
            calibration, settings = changed(Calibration(), start, changes)
        else:
            assert self.recipe is not None
            kept = "preset, together and size"
            if scenes:
                kept = "the scenes come from Scene prompts; preset, together and size"
            text = f"all settings come from the recipe; {kept} did not count"
            calibration = self.recipe.calibration
            settings = MergeSettings(self.recipe.config, notes=(Note("method", text),))
        if scenes and settings.config.measured:
            calibration = scenes.applied_to(calibration)
        return calibration, settings
