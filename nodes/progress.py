"""Remaining time of a merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..iteris_core.progress import Stage


@dataclass
class WorkClock:
    """Estimates the remaining time of all stages, from the pace of the current stage, or until its
    first step of the one before. For a stage that is unlike the others, it is the time of this
    stage alone.

    A stage may be silent for long before its first step, and then solve many layers at once. So its
    pace lies between those with and without this silence, as near as possible to the pace of the
    stages before.

    A stage is measured again when the number of its steps changes or the steps done fall, as in a
    second sweep.
    """

    stage: Stage | None = None
    total: int = 0
    part: float = 0.0
    time: float = 0.0
    last_part: float = 0.0  # of the stage before
    last_time: float = 0.0
    first_part: float = 0.0
    first_time: float = 0.0
    pace_before: float = 0.0
    pace: float = 0.0  # seconds for all work; 0: not known

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
            self.pace_before = self.pace if stage.is_alike else 0.0
            self.last_part = min(part, self.part)
            self.last_time = self.time
            self.first_part = part
            self.first_time = now
        self.stage = stage
        self.total = total
        self.part = part
        self.time = now
        if part > self.first_part:
            self.pace = (now - self.first_time) / (part - self.first_part)
            if self.pace_before:
                with_silence = (now - self.last_time) / (part - self.last_part)
                self.pace = sorted((self.pace, self.pace_before, with_silence))[1]
        end = 1.0 if stage.is_alike else stage.part_done(total, total)
        return self.pace * (end - part)
