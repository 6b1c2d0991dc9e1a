"""How thorough a merge is, in one word: a few settings each, for the node and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from .changes import Changes

Preset = Literal["Fast", "Balanced", "Best"]
DEFAULT_PRESET: Preset = "Balanced"
# Half of the sampling runs lose 0.02 of recognition ("Where less is measured" in
# benchmarks/RESULTS.md); several ways gain 0.01 ("The choice among several ways").
PRESETS: Mapping[Preset, Changes] = {
    "Fast": Changes(calibration={"trajectories": 10, "held_out": 2}),
    "Balanced": Changes(),
    "Best": Changes(merge={"try_several": True}),
}
