"""How thorough a merge is, in one word: a few settings each, for the node and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from .changes import Changes

Preset = Literal["Fast", "Balanced"]
DEFAULT_PRESET: Preset = "Balanced"
# Half of the sampling runs cost 0.06 on pairs (docs/why.md).
PRESETS: Mapping[Preset, Changes] = {
    "Fast": Changes(calibration={"trajectories": 10}),
    "Balanced": Changes(),
}
