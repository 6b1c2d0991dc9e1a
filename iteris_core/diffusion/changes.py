"""Settings of a merge that replace others, by the names of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Changes:
    """What a preset, a way to merge, or a user sets; everything else stays as it is. See
    `job.changed`.

    Args:
        calibration: Field of `Calibration` -> value.
        config: Field of `MergeConfig` -> value.
        merge: Field of `MergeSettings` -> value.
    """

    calibration: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    merge: Mapping[str, Any] = field(default_factory=dict)

    def then(self, later: Changes) -> Changes:
        """Return these changes and later ones, which win."""
        return Changes(
            {**self.calibration, **later.calibration},
            {**self.config, **later.config},
            {**self.merge, **later.merge},
        )
