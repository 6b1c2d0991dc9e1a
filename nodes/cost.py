"""What a merge took, and what it would take with each preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.presets import PRESETS, PREVIEW, Preset

if TYPE_CHECKING:
    from ..iteris_core.diffusion.job import Job
    from ..iteris_core.report.records import MergeReport
    from .asked import Asked

_SHORTER = ("unpolished", "unproved")  # notes of a merge that was not made whole


class Work(NamedTuple):
    """What a merge takes: about how many rows through the model, sampling runs of each LoRA, and
    steps of a polish.
    """

    rows: int
    runs: int
    steps: int


def work_by_preset(job: Job, asked: Asked) -> dict[Preset, Work]:
    """Return what a merge would take with each preset but a preview; nothing if it measures
    nothing, or has a recipe, with which presets do not count.

    Args:
        asked: What was asked for; its preset does not count.
    """
    found: dict[Preset, Work] = {}
    for preset in PRESETS if job.config.measured else ():
        changes = asked.changes(preset)
        if changes is not None and preset != PREVIEW:
            runs = changes.calibration.get("trajectories", Calibration.trajectories)
            steps = changes.calibration.get("polish", Calibration.polish)
            rows = job.cost.rows_with(runs / job.calibration.trajectories, steps)
            found[preset] = Work(rows, runs, steps)
    return found


def cost_of(
    work: Mapping[Preset, Work], preset: Preset, seconds: float, report: MergeReport
) -> dict[str, Any] | None:
    """Return what a merge took, and would take with each preset, for the page; None if that is not
    known, as of a merge whose polish failed, which took less than it would otherwise.

    Args:
        seconds: How long the merge took.
    """
    if preset not in work or any(note.kind in _SHORTER for note in report.notes):
        return None
    presets = {name: each._asdict() for name, each in work.items()}
    return {"rows": work[preset].rows, "seconds": round(seconds, 1), "presets": presets}
