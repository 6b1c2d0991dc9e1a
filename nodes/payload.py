"""What a node shows of its run: one payload for the page, and lines of text for people."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.presets import PRESETS, PREVIEW, Preset

if TYPE_CHECKING:
    from ..iteris_core import Adapter
    from ..iteris_core.diffusion.job import Job
    from ..iteris_core.report.records import MergeReport, Note
    from .asked import Asked

_SHORTER = ("unpolished", "unproved")  # notes of a merge that was not made whole


def shown(payload: Mapping[str, Any], *lines: str) -> dict[str, list[Any]]:
    """Return what a node shows, as ComfyUI takes it."""
    return {"iteris": [payload], "text": list(lines)}


def of_merge(job: Job, asked: Asked) -> dict[str, Any]:
    """Return what a result is of: its LoRAs, how they were merged, and when."""
    config = job.config
    size = "as is" if config.kept_energy is None else "smaller"
    return {
        "rows": [
            {"name": lora.use.name, "strength": lora.use.strength_model} for lora in job.loras
        ],
        "preset": "" if asked.recipe is not None else asked.preset,
        "together": bool(job.calibration.scene_weight),
        "size": f"rank {config.rank}" if isinstance(config.rank, int) else size,
        "time": time.time(),
    }


def facts_of(job: Job, adapter: Adapter, seconds: float) -> list[str]:
    """Return what a merge did, in short lines."""
    deltas = adapter.deltas.values()
    ranks = [delta.rank for delta in deltas]
    weights = sum(delta.up.numel() + delta.down.numel() for delta in deltas)
    measured = f"{job.cost.rows} rows measured" if job.config.measured else "nothing measured"
    return [
        f"{measured}, {seconds:.0f} s",
        f"{len(ranks)} layers, {ranks_in_words(min(ranks, default=0), max(ranks, default=0))}, "
        f"{weights * job.config.output_dtype.itemsize / 1e6:.1f} MB",
    ]


def ranks_in_words(least: int, most: int) -> str:
    return f"rank {least}" if least == most else f"rank {least} to {most}"


def notes_of(notes: Iterable[Note]) -> list[dict[str, Any]]:
    """Return notes for the page."""
    return [{"code": note.kind, "text": note.text, "warning": note.is_warning} for note in notes]


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
