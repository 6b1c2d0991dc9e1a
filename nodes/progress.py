"""Remaining time of a stage, and the line that shows its progress."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN_SECONDS = 2  # less is not worth a word


@dataclass
class StageClock:
    """Clock that estimates the remaining time of a stage from its pace so far.

    It starts anew when the number of steps changes or the steps done fall, as in a second sweep.
    """

    total: int = -1
    done: int = 0
    first_done: int = 0
    first_time: float = 0.0

    def seconds_left(self, done: int, total: int, now: float) -> float:
        """Return the estimated remaining seconds of a stage; 0 before there is an estimate.

        Args:
            done: Steps done.
            total: Steps in all.
            now: The time in seconds, from any start.
        """
        if total != self.total or done < self.done:
            self.first_done = done
            self.first_time = now
        self.total = total
        self.done = done
        steps = done - self.first_done
        return (now - self.first_time) / steps * (total - done) if steps else 0.0


def progress_line(stage: object, done: int, total: int, seconds_left: float) -> str:
    """Return the line on a node, such as "stage 2 of 4: Sampling 12/60, about 40 s left"."""
    left = f", about {seconds_left:.0f} s left" if seconds_left >= _SHOWN_SECONDS else ""
    return f"{stage} {done}/{total}{left}"
