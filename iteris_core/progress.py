"""The progress of long work, as data.

The listener decides how to show it, and may raise to cancel the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage of a longer piece of work.

    Args:
        number: Place among the stages, from 1 on.
        starts: Share of all work that is done when it begins.
        share: Its share of all work.
        is_alike: Whether its steps take as long as the steps of other stages, for their shares.
        told_by: Steps that users count as one, such as those of a picture.
    """

    name: str
    number: int = 1
    count: int = 1
    starts: float = 0.0
    share: float = 1.0
    is_alike: bool = True
    told_by: int = 1

    def __str__(self) -> str:
        if self.count == 1:
            return self.name
        return f"stage {self.number} of {self.count}: {self.name}"

    def part_done(self, done: int, total: int) -> float:
        """Return the share of all work that is done after some steps of the stage."""
        return self.starts + self.share * done / max(1, total)


# (steps done, steps in all) of one stage.
Progress = Callable[[int, int], None]
# (stage, steps done, steps in all).
StageProgress = Callable[[Stage, int, int], None]


def nobody(*step: object) -> None:
    """Listen to nothing."""
