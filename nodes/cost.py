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


# What was merged -> rows and seconds of the last merge that was complete.
_TIMED: dict[str, dict[str, float]] = {}


def cost_of(
    work: Mapping[Preset, Work], preset: Preset, seconds: float, report: MergeReport, what: str
) -> dict[str, Any] | None:
    """Return what a merge took, and would take with each preset, for the page; None if that is not
    known. A merge whose polish failed took less than it would otherwise; the figures are then
    those of the last one that was complete.

    Args:
        seconds: How long the merge took.
        what: What else the time of a row depends on: the model's family, and the latents' shape.
    """
    if preset not in work:
        return None
    shorter = ("unpolished", "unproved")
    if not any(note.kind in shorter for note in report.notes):
        _TIMED[what] = {"rows": work[preset].rows, "seconds": round(seconds, 1)}
    if what not in _TIMED:
        return None
    presets = {name: each._asdict() for name, each in work.items()}
    return {**_TIMED[what], "presets": presets}
