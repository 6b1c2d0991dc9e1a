"""How long a stage still takes, and how its progress is shown."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN_SECONDS = 2  # less is not worth a word


@dataclass
class StageClock:
    """Times a stage by its pace since it began.

    What begins anew within a stage, as a second sweep does, is timed anew: the number of steps
    changes, or the steps done fall.
    """

    total: int = -1
    done: int = 0
    first_done: int = 0
    first_time: float = 0.0

    def seconds_left(self, done: int, total: int, now: float) -> float:
        """Return about how many seconds a stage still takes; 0 as long as nothing is known.

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
    """Return what a node shows, such as "stage 3 of 4: UNet 12/192, about 40 s left"."""
    left = f", about {seconds_left:.0f} s left" if seconds_left >= _SHOWN_SECONDS else ""
    return f"{stage} {done}/{total}{left}"
