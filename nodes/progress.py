"""Remaining time of a merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..iteris_core.progress import Stage


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
