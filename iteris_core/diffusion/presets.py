"""Presets: how thorough a merge is, in one word, and what each of them sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Changes:
    """What a preset, a way to merge, or a user sets of a merge; everything else stays as it is.
    See `job.changed`.

    Args:
        calibration: Field of `Calibration` -> value.
        config: Field of `MergeConfig` -> value.
    """

    calibration: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def then(self, later: Changes) -> Changes:
        """Return these changes and later ones, which win."""
        return Changes(
            {**self.calibration, **later.calibration},
            {**self.config, **later.config},
        )


# How thorough a merge is, in one word.
Preset = Literal["Fast", "Balanced", "Polished", "Preview"]
DEFAULT_PRESET: Preset = "Balanced"
PREVIEW: Preset = "Preview"
PRESETS: Mapping[Preset, Changes] = {
    "Fast": Changes(calibration={"trajectories": 10}),
    "Balanced": Changes(),
    # with *together*, two LoRAs take as long as 58 pictures (benchmarks/README.md)
    "Polished": Changes(calibration={"polish": 52}),
    # the best of the files alone on pairs in a UNet, and level with others in a transformer
    PREVIEW: Changes(
        {"scene_weight": 0.0, "polish": 0},
        {"method": "np_lora", "measured": False, "rank": "sum", "kept_energy": None},
    ),
}
