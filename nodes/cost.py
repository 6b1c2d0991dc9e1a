"""What a merge took, and what it would take with each preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.presets import PRESETS, PREVIEW, Preset

if TYPE_CHECKING:
    from ..iteris_core.diffusion.job import Job
    from ..iteris_core.report.records import MergeReport
    from .asked import Asked


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
