"""Remaining time of a merge, and the line that shows its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..iteris_core.progress import Stage

_SHOWN_SECONDS = 2  # less is not worth a word
_SHOWN_IN_SECONDS = 120  # more is told in minutes


@dataclass
class WorkClock:
    """Clock that estimates the remaining time of all stages, from the pace of the stage that runs,
    or of the one before as long as it has made no step; of a stage that is not like the others, the
    time of this stage.

    A stage is measured again when the number of its steps changes or the steps done fall, as in a
    second sweep.
    """

    stage: Stage | None = None
    total: int = 0
    part: float = 0.0
    first_part: float = 0.0
    first_time: float = 0.0
    pace: float = 0.0  # seconds for all work

    def seconds_left(self, stage: Stage, done: int, total: int, now: float) -> float:
        """Return the estimated remaining seconds; 0 before there is an estimate.

        Args:
            done: Steps done in it.
            total: Steps of it in all.
            now: The time in seconds, from any start.
        """
        part = stage.part_done(done, total)
        if self.stage and self.stage != stage and not self.stage.is_alike:
            self.pace = 0.0
        if (stage, total) != (self.stage, self.total) or part < self.part:
            self.first_part = part
            self.first_time = now
        self.stage = stage
        self.total = total
        self.part = part
        if part > self.first_part:
            self.pace = (now - self.first_time) / (part - self.first_part)
        end = 1.0 if stage.is_alike else stage.part_done(total, total)
        return self.pace * (end - part)


def progress_line(stage: Stage, done: int, total: int, seconds_left: float) -> str:
    """Return the line on a node, such as "stage 2 of 4: Sampling 12/60, about 40 s left", with the
    time from `WorkClock.seconds_left`. Work in one step shows its stage only.
    """
    many = total // stage.told_by
    steps = f"{stage} {done // stage.told_by}/{many}" if many > 1 else f"{stage}"
    if seconds_left < _SHOWN_SECONDS:
        return steps
    if seconds_left < _SHOWN_IN_SECONDS:
        time = f"{seconds_left:.0f} s"
    else:
        time = f"{seconds_left / 60:.0f} min"
    of_it = "" if stage.is_alike else " of this stage"
    return f"{steps}, about {time} left{of_it}"
