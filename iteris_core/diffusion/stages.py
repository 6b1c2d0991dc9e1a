"""The stages of a merge, by their names, and listeners for the steps of each."""

from __future__ import annotations

from collections.abc import Sequence

from ..progress import Progress, Stage, StageProgress

CHECK = "Check of the LoRAs"
FILES = "Files"
TEXT = "Text encoder"
SAMPLING = "Sampling"
DENOISER = "Diffusion model"
POLISH = "Polish"


def numbered(progress: StageProgress, stages: Sequence[Stage]) -> StageProgress:
    """Return a listener that passes stages on to `progress` with their number, count and share."""
    known = {stage.name: stage for stage in stages}
    return lambda stage, done, total: progress(known.get(stage.name, stage), done, total)


def in_stage(progress: StageProgress, name: str) -> Progress:
    """Return a listener for the steps of one stage."""
    stage = Stage(name)
    return lambda done, total: progress(stage, done, total)
