"""What a merge node is asked for, by preset, node and connected settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from ..iteris_core import ConfigError, MergeConfig
from ..iteris_core.config import MOST_RANK, UNIT_GAIN
from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.presets import PRESETS, PREVIEW, Changes, Preset
from ..iteris_core.settings import TOGETHER, settings, shown

if TYPE_CHECKING:
    from ..iteris_core.diffusion.job import MergeSettings
    from ..iteris_core.diffusion.lora_use import LoraUse
    from ..iteris_core.diffusion.recipe import Recipe

TOGETHER_POLISHED = 1.0  # weight of scenes where gradients see what both draw

Way = Literal["as is", "smaller", "rank"]
SMALLER = 0.99  # of its effect that every layer keeps


@settings
class Size:
    """The size of a merged LoRA.

    Args:
        way: "as is": the sum of the LoRAs' ranks; "smaller": what matters least is cut; "rank": as
            `value` says.
        value: One rank for all layers.

    Raises:
        ConfigError: A value that makes no sense.
    """

    way: Way = "as is"
    value: Annotated[float, Field(ge=0, le=MOST_RANK)] = 32.0

    def __post_init__(self) -> None:
        if self.way == "rank" and not (self.value >= 1 and self.value == int(self.value)):
            raise ConfigError(
                f"size is rank, and size_value is {shown(self.value)}; a rank is a whole number "
                "from 1 on, such as 32"
            )

    def check_alone(self, given: Changes) -> None:
        """Refuse a quality together with a rank.

        Raises:
            ConfigError: Each of them would decide the ranks.
        """
        quality = given.config.get("kept_energy")
        if quality is not None and self.way == "rank":
            raise ConfigError(
                f"size is {self.way} and quality_kept is {quality:g}, but each of them decides the "
                "ranks. Set quality_kept of Merge settings to 1, or size to 'as is'"
            )

    def changes(self) -> Changes:
        """Return what this size sets of a merge."""
        if self.way == "smaller":
            return Changes(config={"kept_energy": SMALLER})
        if self.way == "rank":
            return Changes(config={"rank": int(self.value)})
        return Changes()


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

    def settings(self) -> tuple[Calibration, MergeSettings]:
        """Return the settings of a merge: the preset's, overridden by the node's own, and these by
        connected ones.

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
                changes = self.size.changes().then(changes)
            return changed(Calibration(), start, changes)
        assert self.recipe is not None
        text = "all settings come from the recipe; preset, together and size did not count"
        settings = MergeSettings(self.recipe.config, notes=(Note("method", text),))
        return self.recipe.calibration, settings
